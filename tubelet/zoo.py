"""Making models by name: `create`, `list_models`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tubelet import stored
from tubelet.backbones import Encoder
from tubelet.backbones.backbone import Backbone
from tubelet.backbones.mvit import MVIT_BASE, MVIT_LARGE, MVIT_SMALL
from tubelet.backbones.vit import ViTShape
from tubelet.errors import TubeletError
from tubelet.interop.found import Found, Told, Unsaid
from tubelet.methods.records import record, value_of
from tubelet.methods.run import Pretraining, changed, find, named_runs, to_dict
from tubelet.model import Card, Classifier, VideoModel
from tubelet.shapes import ClipSpec

SIZES = ("small", "base", "large", "huge")
ALIAS = re.compile(
    r"(pretrain_videomae|vit)_(?:(small|base|large|huge)_patch16|(giant)_patch14)_(\d+)"
)
# arXiv 2112.01526, supervised: S and B widen in attention, L as MaskFeat's.
MVITS = {
    "mvitv2_small": replace(MVIT_SMALL, widen="attention"),
    "mvitv2_base": replace(MVIT_BASE, widen="attention"),
    "mvitv2_large": MVIT_LARGE,
}


def list_models() -> list[str]:
    """The names that `create` takes: published model names, and the named pretraining runs."""
    kinds = ("vit", "pretrain_videomae")
    published = [f"{kind}_{size}_patch16_224" for kind in kinds for size in SIZES]
    published += [f"{kind}_giant_patch14_224" for kind in kinds]
    published += MVITS
    return published + [name for name, run in named_runs().items() if isinstance(run, Pretraining)]


def create(
    name: str,
    *,
    num_classes: int = 400,
    num_frames: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    in_chans: int | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    drop_path_rate: float = 0.0,
    checkpoint_path: str | Path = "",
    allow_missing: Sequence[str] = (),
) -> VideoModel:
    """A new model by name, with the published initialisation; or with the weights of a file.

    "vit_base_patch16_224" and "mvitv2_base" are `Classifier`s (`num_classes=0`: pooled features),
    "pretrain_videomae_base_patch16_224" and "videomae:base_k400" are `MaskedModel`s. What is left
    out is as in the name or the run: 16 frames, its size, 3 channels. `img_size`: pixels, one
    number or (height, width). `mean`, `std`: of each channel in [0,1]; needed for channels other
    than RGB or grey. The supervised MViTv2-B and L were published for 32x3 and 40x3 frames: say so.

    `checkpoint_path`: weights of whatever layout (see `tubelet.load`). Positions are those of their
    training, made for this size. A tensor that they lack is an error, unless `allow_missing` names
    it (by the begin of its name): a new head is `["head", "fc_norm"]`, a new decoder `["branches"]`.
    """
    run, labelled = _known(name)
    size = img_size or run.clip.size
    clip = replace(
        run.clip,
        size=(size, size) if isinstance(size, int) else size,
        num_frames=num_frames or run.clip.num_frames,
        in_chans=in_chans or run.clip.in_chans,
    )
    shape = replace(run.encoder, mean=mean or run.encoder.mean, std=std or run.encoder.std)
    run = changed(run, clip=clip, encoder=shape)
    found = None
    if checkpoint_path:
        found = _opened(checkpoint_path, run, labelled)
        read = _as_read(found, run, name, checkpoint_path)
        shape = replace(shape, mean=mean or read.mean, std=std or read.std)
        run = changed(run, clip=_trained_on(found, clip), encoder=shape)
    if labelled:
        encoder = new_encoder(shape, run.clip, drop_path=drop_path_rate)
        model: VideoModel = Classifier(encoder, num_classes)
        model.card = Card(clip=clip)
    else:
        model = (changed(run, drop_path=drop_path_rate) if drop_path_rate else run).model()
        model.card = Card(clip=clip, run=to_dict(run))
    if found is not None:
        told = Told(allow_missing=tuple(allow_missing))
        stored.fill(model, found, told, checkpoint_path)
        model.report = found.report
    return model


def _opened(path: str | Path, run: Pretraining, labelled: bool) -> Found:
    """Weights for the model of this name, which says what files of others do not."""
    shape: Any = run.encoder
    known = {
        "position": getattr(shape, "position", None),
        "heads": shape.heads if isinstance(shape, ViTShape) else None,
        "decoder_heads": getattr(getattr(run, "decoder", None), "heads", None),
    }
    try:
        found = stored.opened(path)
    except Unsaid as unsaid:
        asked = {question.name for question in unsaid.questions}
        said = {name: value for name, value in known.items() if name in asked}
        found = stored.opened(path, record(Told, said))
    if not labelled or found.kind == "classifier":
        return found
    rest = ("branches.", "backbone.norm.", "backbone.mask_token")  # what only pretraining has
    weights = {n: v for n, v in found.weights.items() if not n.startswith(rest)}
    return replace(found, weights=weights)


def _as_read(found: Found, run: Pretraining, name: str, path: str | Path) -> Encoder:
    """The encoder of the weights; TubeletError where it is another than that of this name, with
    tensors of the same shapes or not. Its pixels' statistics and its resizing are its own affair."""
    read: Encoder = value_of(Encoder, found.header["backbone"]["shape"], "backbone")
    decoder, decoded = getattr(run, "decoder", None), found.header["run"].get("decoder")
    own, theirs = dict(vars(run.encoder)), dict(vars(read))
    if decoder is not None and decoded:
        own["decoder_heads"], theirs["decoder_heads"] = decoder.heads, decoded["heads"]
    free = ("mean", "std", "positions", "hide")
    wrong = [
        f"{field} {theirs.get(field)!r} where {name} has {value!r}"
        for field, value in own.items()
        if field not in free and theirs.get(field) != value
    ]
    if wrong:
        raise TubeletError(
            f"The weights in {path} are of another network: {'; '.join(wrong)}. tubelet.load makes the "
            "network that they are of."
        )
    return read


def _trained_on(found: Found, clip: ClipSpec) -> ClipSpec:
    """The clips that a plain encoder of these weights keeps its positions for; a multiscale one has
    its tables resized."""
    backbone = found.header["backbone"]
    if "width" not in backbone["shape"]:
        return clip
    frames, height, width = backbone["trained"]
    return replace(clip, num_frames=frames, size=(height, width))


def _known(name: str) -> tuple[Pretraining, bool]:
    """A name that `create` takes -> the run with its encoder and clips, and whether it has labels."""
    match = ALIAS.fullmatch(name)
    if match:
        side = int(match[4])
        of = f"videomae:{match[2]}_k400" if match[2] else f"videomae_v2:{match[3]}_hybrid"
        run = changed(find(of), size=(side, side))
    elif name in MVITS:
        run = changed(find("maskfeat:small_k400"), encoder=MVITS[name])
    elif ":" in name:
        run = find(name)
    else:
        raise TubeletError(
            f"There is no model {name!r}. Known: {', '.join(list_models())}; or module:run."
        )
    if not isinstance(run, Pretraining):
        raise TubeletError(f"{name} is no run for pretraining. Known: {', '.join(list_models())}.")
    return run, name in MVITS or (match is not None and match[1] == "vit")


def new_encoder(shape: Encoder, clip: ClipSpec, *, drop_path: float = 0.0) -> Backbone:
    """An encoder to be trained with labels from scratch, initialised as published for that."""
    return shape.build(
        trained=(clip.num_frames, *clip.size),
        in_chans=clip.in_chans,
        drop_path=drop_path,
        final_norm=False,
        init="normal",
        masked=False,
    )
