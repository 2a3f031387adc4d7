"""Image MAE's layout (arXiv 2111.06377; its code) and timm's of the same network, both ways.

Theirs: a Conv2d for patches, one bias for queries, keys and values, position tables in the file with a
row for the class token: zeros where the table is fixed (image MAE), learned elsewhere. Ours: a
Conv3d over one frame, no bias of keys (it cannot change a softmax over keys), fixed tables computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from tubelet.backbones.positions import TABLES, PositionKind
from tubelet.backbones.vit import ViTShape
from tubelet.errors import TubeletError
from tubelet.interop import sizes
from tubelet.interop.found import Found, ask
from tubelet.interop.ledger import Ledger
from tubelet.interop.names import Table, renamed
from tubelet.interop.sizes import PATCHES
from tubelet.interop.tables import FIXED, POSITIONS, check_table, fixed_table, join_biases
from tubelet.interop.videomae import CLASSIFIER, HEADS, NORM, TRUNK, read_classifier, require

NAME = "mae"
KIND: PositionKind = "sincos_2d"
# The `_full` files hold the decoder too.
DECODER: Table = (
    ("mask_token", "branches.pixels.decoder.mask_token"),
    ("decoder_embed.", "branches.pixels.decoder.project."),
    ("decoder_blocks.", "branches.pixels.decoder.blocks."),
    ("decoder_norm.", "branches.pixels.decoder.norm."),
    ("decoder_pred.", "branches.pixels.decoder.head."),
)
PRETRAIN: Table = (*TRUNK, *NORM, *DECODER)
DECODER_HEADS = {512: 16}  # of all published sizes
ONE = {"num_frames": 1}  # an image, whatever its settings say of clips
# Options of timm's vision transformer that change what it computes: part of a name, in words.
UNKNOWN = {
    "reg_token": "register tokens",
    "dist_token": "a distillation token",
    "norm_pre.": "a norm before its blocks",
    "attn_pool.": "pooling by attention",
    ".ls1.": "layer scale",
    ".gamma_1": "layer scale",
    ".q_norm.": "norms of queries and keys",
    ".relative_position": "relative positions",
    "patch_embed.norm.": "a norm of its patches",
    "pre_logits.": "a layer before its head",
}


def read(ledger: Ledger) -> Found:
    """A network of images: pretrained, fine-tuned, or an encoder alone."""
    told = ledger.told
    _refuse(ledger)
    if told.encoder_only:
        ledger.drop_all(("decoder_", "mask_token", *HEADS), "only the encoder was asked for")
    shape, trained, in_chans = _shape(ledger)
    ledger.put({"backbone.patch_embed.proj.weight": ledger.left[PATCHES].unsqueeze(2)}, PATCHES)
    ledger.move(TRUNK)
    if ledger.has("decoder_"):
        run = _decoder(ledger, shape, trained)
        ledger.move((*NORM, *DECODER))
        header = sizes.header_of(
            *("pretraining", shape, trained, in_chans), run=run, sampling_rate=1
        )
        return ledger.done(NAME, "image MAE, pretrained: encoder and decoder", header)
    if ledger.has(*HEADS):
        found = read_classifier(
            ledger, NAME, "a vision transformer of images, fine-tuned", shape, trained, in_chans
        )
        found.header["clip"]["sampling_rate"] = 1
        return found
    normed = ledger.has("norm.")
    ledger.move(NORM)
    header = sizes.header_of(
        *("encoder", shape, trained, in_chans), final_norm=normed, sampling_rate=1
    )
    whose = "image MAE" if shape.position == KIND else "a vision transformer of images"
    return ledger.done(NAME, f"{whose}, the encoder alone", header)


def _refuse(ledger: Ledger) -> None:
    for part, what in UNKNOWN.items():
        named = next((name for name in ledger.left if part in name), None)
        if named is not None:
            raise TubeletError(
                f"{ledger.raw.path} has {what} ({named}), which no encoder here has: only the plain "
                "vision transformer of image MAE is known."
            )


def _shape(ledger: Ledger) -> tuple[ViTShape, tuple[int, int, int], int]:
    """-> the encoder's shape, the size of its images, its channels; its position table is learned,
    and moved, or fixed, and kept."""
    settings, told, path = ledger.raw.settings | ONE, ledger.told, ledger.raw.path
    notes, prefix = ledger.report.notes, int("cls_token" in ledger.left)
    shape, in_chans = sizes.vit_shape(ledger.left, told, path, KIND, class_token=prefix > 0)
    table = sizes.table_of(ledger.left, "pos_embed", shape.width, path)
    if table is None:
        if told.position is None and not ledger.has("decoder_"):
            raise ask(path, "its positions, and holds no table", "--position", KIND, KIND)
        shape = replace(shape, position=told.position or KIND)
        return shape, sizes.trained_on(shape, told, settings, path, notes), in_chans
    if prefix and told.trained is None and math.isqrt(len(table)) ** 2 == len(table):
        raise TubeletError(
            f"{path} has a class token and {len(table)} positions in all: none for the class token, which "
            "is unknown here, or its images are no squares: then say --trained FRAMES HEIGHT WIDTH (in "
            "Python: trained=...)."
        )
    trained = sizes.trained_on(shape, told, settings, path, notes, table, prefix)
    kind = sizes.position_of(table, shape.grid_for(*trained), (KIND,), told, path, prefix)
    if kind == "learned":
        ledger.put({POSITIONS: table}, "pos_embed")
        notes.append("pixels are normalised by ImageNet's mean and std: the file does not say")
    else:
        ledger.keep("pos_embed", FIXED)
    return replace(shape, position=kind), trained, in_chans


def _decoder(ledger: Ledger, shape: ViTShape, trained: tuple[int, int, int]) -> dict[str, Any]:
    """The run's type, decoder and target; the decoder's table is kept."""
    path, settings = ledger.raw.path, ledger.raw.settings
    if shape.position != KIND:
        raise TubeletError(
            f"{path} has a decoder, and an encoder with learned positions, where image MAE's are "
            "fixed: take its encoder alone, with --encoder-only (in Python: encoder_only=True)."
        )
    own = sizes.decoder_shape(ledger.left, "decoder_blocks.", ledger.told, path, DECODER_HEADS)
    table = sizes.table_of(ledger.left, "decoder_pos_embed", own.width, path)
    if table is not None:
        check_table("decoder_pos_embed", table, TABLES[KIND](shape.grid_for(*trained), own.width))
        ledger.keep("decoder_pos_embed", FIXED)
    run: dict[str, Any] = {"type": "tubelet.methods.mae:ImageMAE", "decoder": asdict(own)}
    for theirs, ours in {"mask_ratio": "mask_ratio", "norm_pix_loss": "normalise_target"}.items():
        value = settings.get(theirs)
        if isinstance(value, (bool, float)):
            run[ours] = value
    return run


def write(found: Found) -> dict[str, Tensor]:
    """A model of ours -> its tensors under plain names; TubeletError for what has no place."""
    shape = found.header["backbone"]["shape"]
    learned = shape.get("position") == "learned" and found.kind != "pretraining"
    position = "learned" if learned else KIND
    require(found, "Image MAE's layout", tubelet_size=1, position=position)
    weights = dict(found.weights)
    table = weights.pop(POSITIONS, None)
    origin = found.origin
    kept = {} if origin is None else origin.kept
    before = origin.names.values() if origin is not None and origin.layout == NAME else ()
    split = any(name.endswith("attn.q_bias") for name in before)  # 13-key blocks stay such
    names = CLASSIFIER if found.kind == "classifier" else PRETRAIN
    state = names_back(weights, names, kept, join=not split)
    if table is not None:
        return {"pos_embed": table[None], **state}
    return state if before else {**_tables(found), **state}


def _tables(found: Found) -> dict[str, Tensor]:
    """The fixed tables of a new file."""
    shape = found.header["backbone"]["shape"]
    prefix = int(shape["class_token"])
    tables = {"pos_embed": fixed_table(found.header, shape["width"], prefix)}
    token = found.weights.get("branches.pixels.decoder.mask_token")
    if token is not None:
        tables["decoder_pos_embed"] = fixed_table(found.header, token.shape[-1], prefix)
    return tables


def names_back(
    state: Mapping[str, Tensor],
    names: Table = PRETRAIN,
    kept: Mapping[str, Tensor] | None = None,
    *,
    join: bool = True,
) -> dict[str, Tensor]:
    """Our names -> theirs, biases joined, kernels of images; for gradients too."""
    theirs = join_biases(renamed(state, names, back=True), kept or {}, always=join)
    return {k: v.squeeze(2) if k == PATCHES else v for k, v in theirs.items()}
