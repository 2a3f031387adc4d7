"""MaskFeat's layout in PySlowFast (arXiv 2112.09133), both ways.

The multiscale networks of clips keep their names; the plain ones of images have one bias for queries,
keys and values, learned positions, and a patch embedding in two dimensions. Pretraining has a mask
token, a linear head (`pred_head`) and the fixed filters of its target (`hogs`). MAE-ST's files are
read by `mae_st`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tubelet.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, KINETICS_MEAN, KINETICS_STD
from tubelet.errors import TubeletError
from tubelet.interop import mae, mae_st, sizes
from tubelet.interop.found import Found
from tubelet.interop.ledger import Ledger
from tubelet.interop.mvit import MULTISCALE, hog_width, mvit_shape
from tubelet.interop.names import Table, renamed
from tubelet.interop.sizes import PATCHES
from tubelet.interop.slowfast import (
    HEAD,
    HEADS,
    NAME,
    clip_of,
    drop_all_but_encoder,
    read_classifier,
    require_statistics,
    statistics,
)
from tubelet.interop.tables import POSITIONS, join_biases
from tubelet.interop.videomae import NORM, TRUNK, require

FILTERS = "hogs."
DECODERS = ("pred_head.", "mask_token", FILTERS)
PREDICTION = "pred_head.projections.0.weight"
TABLE = "pos_embed"


def decoder(branch: str) -> Table:
    """The names of pretraining alone; `branch`: hog or pixels."""
    return (
        ("mask_token", "backbone.mask_token"),
        ("pred_head.transforms.0.0.", f"branches.{branch}.decoder.norm."),
        ("pred_head.projections.0.", f"branches.{branch}.decoder.head."),
    )


def is_one(ledger: Ledger) -> bool:
    """Whether the names are of a multiscale network, or of images and with heads of this layout."""
    patches = ledger.left.get(PATCHES)
    image = patches is not None and patches.dim() == 4
    return MULTISCALE in ledger.left or (image and ledger.has("pred_head.", "head.projection."))


def read(ledger: Ledger) -> Found:
    """A network of clips or images: pretrained, fine-tuned, or an encoder alone."""
    multiscale = MULTISCALE in ledger.left
    shape, trained, in_chans = (mvit_shape if multiscale else _image)(ledger)
    if ledger.told.encoder_only:
        drop_all_but_encoder(ledger, DECODERS)
    ledger.move(TRUNK, split=not multiscale)
    whose = f"MaskFeat's {'MViT of clips' if multiscale else 'ViT of images'}"
    if ledger.has("pred_head."):
        run = _run(ledger, shape.token.h, in_chans, image=not multiscale)
        clip = clip_of(ledger.raw.settings, trained[0])
        header = sizes.header_of("pretraining", shape, trained, in_chans, run=run, **clip)
        return ledger.done(NAME, f"{whose}, pretrained: encoder and linear decoder", header)
    if ledger.has(*HEADS):
        supervised = multiscale and shape.widen == "attention"
        return read_classifier(ledger, whose, shape, trained, in_chans, doubtful=supervised)
    ledger.keep_all(DECODERS, "of pretraining, whose head is not in the file")
    normed = ledger.has("norm.")
    ledger.move(NORM)
    clip = clip_of(ledger.raw.settings, trained[0])
    header = sizes.header_of("encoder", shape, trained, in_chans, final_norm=normed, **clip)
    return ledger.done(NAME, f"{whose}, the encoder alone", header)


def _image(ledger: Ledger) -> tuple[Any, tuple[int, int, int], int]:
    """-> the plain encoder's shape, the size of its images, its channels; its table is moved."""
    told, path, notes = ledger.told, ledger.raw.path, ledger.report.notes
    shape, in_chans = sizes.vit_shape(
        *(ledger.left, told, path, "learned"),
        class_token=True,
        hide="replace",
        **statistics(ledger.raw.settings, IMAGENET_MEAN, IMAGENET_STD),
    )
    table = sizes.table_of(ledger.left, TABLE, shape.width, path)
    if table is None:
        raise TubeletError(f"{path} lacks {TABLE}, which MaskFeat's networks of images learn.")
    trained = sizes.trained_on(shape, told, mae.ONE, path, notes, table, prefix=1)
    ledger.put({POSITIONS: table}, TABLE)
    ledger.put({f"backbone.{PATCHES}": ledger.left[PATCHES].unsqueeze(2)}, PATCHES)
    return shape, trained, in_chans


def _run(ledger: Ledger, side: int, in_chans: int, *, image: bool) -> dict[str, Any]:
    """The run's type, target and masks; its decoder is moved, its target's filters are kept."""
    path, prediction = ledger.raw.path, ledger.left.get(PREDICTION)
    alone = "take its encoder alone, with --encoder-only (in Python: encoder_only=True)."
    if prediction is None or prediction.dim() != 2 or ledger.has("pred_head.projections.1."):
        raise TubeletError(f"{path} has not one head that predicts, {PREDICTION}: {alone}")
    width, histograms, pixels = len(prediction), hog_width(side, in_chans), in_chans * side**2
    if width not in (histograms, pixels if image else histograms):
        raise TubeletError(
            f"{path} predicts {width} values a token, where histograms of 9 directions in cells of "
            f"8x8 pixels are {histograms}{f', and pixels {pixels}' if image else ''}: {alone}"
        )
    target = "hog" if width == histograms else "pixels"
    own = filters(in_chans)
    for name in [name for name in ledger.left if name.startswith(FILTERS)]:
        if name in own and not torch.equal(ledger.left[name].float(), own[name]):
            raise TubeletError(
                f"{path}: {name} is not Sobel's filter, by which our targets are made: {alone}"
            )
        ledger.keep(name, "a fixed filter: the target is computed without")
    ledger.move(decoder(target))
    run: dict[str, Any] = {"type": "tubelet.methods.maskfeat:MaskFeat", "target": target}
    return run | ({"mask_type": "tube", "mask_unit": [1, 1, 1]} if image else {})


def write(found: Found) -> dict[str, Tensor]:
    """A model of ours -> its tensors under plain names; TubeletError for what has no place."""
    shape = found.header["backbone"]["shape"]
    image = "depths" not in shape
    if image and shape["tubelet_size"] != 1:
        return mae_st.write(found)
    if image:
        hide = "replace" if found.kind == "pretraining" else shape["hide"]
        require(
            found,
            "MaskFeat's layout",
            position="learned",
            class_token=True,
            tubelet_size=1,
            hide=hide,
        )
    usual = (IMAGENET_MEAN, IMAGENET_STD) if image else (KINETICS_MEAN, KINETICS_STD)
    require_statistics(found, *usual)
    origin = found.origin
    kept = {} if origin is None else origin.kept
    state = names_back(found.weights, found.kind, kept)
    if found.kind == "pretraining" and (origin is None or origin.layout != NAME):
        state |= filters(found.header["backbone"]["in_chans"])
    return state


def names_back(
    weights: Mapping[str, Tensor], kind: str, kept: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Our names -> theirs, without fixed filters; for gradients too."""
    branch = "pixels" if any(name.startswith("branches.pixels.") for name in weights) else "hog"
    rest = {"pretraining": decoder(branch), "classifier": HEAD, "encoder": NORM}[kind]
    table: Table = ((TABLE, POSITIONS), *TRUNK, *rest)
    state = renamed(weights, table, back=True)
    if TABLE not in state:
        return state
    images = {PATCHES: state[PATCHES].squeeze(2), TABLE: state[TABLE][None]}
    return join_biases(state | images, kept or {}, always=True)


def filters(in_chans: int = 3) -> dict[str, Tensor]:
    """The fixed filters that published pretraining files hold: Sobel's, for each colour."""
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).expand(in_chans, 1, 3, 3)
    return {
        f"{FILTERS}0.weight_x": across.clone(),
        f"{FILTERS}0.weight_y": across.transpose(2, 3).clone(),
    }
