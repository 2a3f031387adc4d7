"""Making models by name and from files: `create`, `load`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from tubelet.backbones import Encoder
from tubelet.backbones.backbone import Backbone
from tubelet.backbones.mvit import MVIT_BASE, MVIT_LARGE, MVIT_SMALL
from tubelet.errors import TubeletError
from tubelet.methods.records import value_of
from tubelet.methods.run import (
    Pretraining,
    changed,
    find,
    from_dict,
    named_runs,
    record,
    to_dict,
)
from tubelet.model import Card, Classifier, MaskedModel, VideoModel
from tubelet.shapes import ClipSpec
from tubelet.train import checkpoint

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
) -> VideoModel:
    """A new model by name, with the published initialisation; or with the weights of a file.

    "vit_base_patch16_224" and "mvitv2_base" are `Classifier`s (`num_classes=0`: pooled features),
    "pretrain_videomae_base_patch16_224" and "videomae:base_k400" are `MaskedModel`s. What is left
    out is as in the name or the run: 16 frames, its size, 3 channels. `img_size`: pixels, one
    number or (height, width). `mean`, `std`: of each channel in [0,1]; needed for channels other
    than RGB or grey. The supervised MViTv2-B and L were published for 32x3 and 40x3 frames: say so.
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
    if labelled:
        encoder = new_encoder(shape, clip, drop_path=drop_path_rate)
        model: VideoModel = Classifier(encoder, num_classes)
        model.card = Card(clip=clip)
    else:
        run = changed(run, clip=clip, encoder=shape)
        model = (changed(run, drop_path=drop_path_rate) if drop_path_rate else run).model()
        model.card = Card(clip=clip, run=to_dict(run))
    if checkpoint_path:
        weights = checkpoint.load_weights(Path(checkpoint_path))
        checkpoint.apply_weights(model, weights, checkpoint_path)
    return model


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


def load(path: str | Path) -> VideoModel:
    """A run folder or checkpoint -> its model, in eval mode, with `card` telling how to use it.

    A pretraining run gives a `MaskedModel`, a fine-tuned one a `Classifier`.
    """
    header = checkpoint.read_header(Path(path))
    card = card_of(header, path)
    if header["kind"] == "pretraining":
        run = cast(Pretraining, from_dict(header["run"]))
        model: VideoModel = run.model()
    else:
        model = Classifier(_encoder(header["backbone"]), header["outputs"])
    checkpoint.apply_weights(model, checkpoint.load_weights(Path(path)), path)
    model.card = card
    return model.eval()


def save(model: VideoModel, path: str | Path) -> None:
    """A model with its card -> a file of weights that `load` reads, and every verb."""
    weights = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    header = describe(model, model.card)
    checkpoint.replace_file(
        Path(path), lambda begun: checkpoint.write_weights(begun, weights, header)
    )


def encoder_shape(path: str | Path) -> tuple[Encoder, int]:
    """A checkpoint -> the shape of its encoder, and its channels."""
    header = checkpoint.read_header(Path(path))
    card_of(header, path)  # an error where this was not written by tubelet
    described = header["backbone"]
    return value_of(Encoder, described["shape"], "backbone"), described["in_chans"]


def encoder_of(
    path: str | Path,
    *,
    drop_path: float = 0.0,
    shape: Encoder | None = None,
    trained: tuple[int, int, int] | None = None,
) -> tuple[Backbone, Card]:
    """A checkpoint -> its encoder for fine-tuning, and its card.

    Left out, as published: decoders, heads, the mask token and the last LayerNorm of a
    pretrained encoder.
    `shape`, `trained`: make it with other pooling, or for other clips (frames, height, width);
    learned relative positions are resized.
    """
    header = checkpoint.read_header(Path(path))
    card = card_of(header, path)
    described = dict(header["backbone"])
    if shape is not None:
        described["shape"] = asdict(shape)
    described["trained"] = trained or described["trained"]
    encoder = _encoder(described, drop_path=drop_path)
    weights = {
        name.removeprefix("backbone."): value
        for name, value in checkpoint.load_weights(Path(path)).items()
        if name.startswith("backbone.")
        and not name.startswith(("backbone.norm.", "backbone.mask_token"))
    }
    checkpoint.apply_weights(encoder, encoder.fitted(weights), path)
    return encoder, card


def describe(model: VideoModel, card: Card) -> dict[str, Any]:
    """What a checkpoint's header says, so that `load` can make the model again."""
    backbone = model.backbone
    return {
        "kind": "pretraining" if isinstance(model, MaskedModel) else "classifier",
        "backbone": {
            "shape": asdict(backbone.shape),
            "trained": list(backbone.trained),
            "in_chans": backbone.in_chans,
        },
        "outputs": model.num_classes if isinstance(model, Classifier) else 0,
        "clip": asdict(card.clip),
        "classes": list(card.classes),
        "label_kind": card.label_kind,
        "run": card.run,
    }


def card_of(header: Mapping[str, Any], path: str | Path) -> Card:
    """A checkpoint's header -> the card of its model."""
    missing = [key for key in ("kind", "backbone", "outputs", "clip") if key not in header]
    if missing:
        raise TubeletError(
            f"{path} has no {' and '.join(missing)} in its header: it was not written by tubelet."
        )
    return Card(
        clip=record(ClipSpec, header["clip"]),
        classes=tuple(header.get("classes", ())),
        label_kind=header.get("label_kind", "unlabelled"),
        run=header.get("run", {}),
    )


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


def _encoder(described: Mapping[str, Any], *, drop_path: float = 0.0) -> Backbone:
    """The encoder that a header describes, for whole clips and without a last norm."""
    shape: Encoder = value_of(Encoder, described["shape"], "backbone")
    return shape.build(
        trained=tuple(described["trained"]),
        in_chans=described["in_chans"],
        drop_path=drop_path,
        final_norm=False,
        masked=False,
    )
