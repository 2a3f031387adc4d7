"""Weights of whatever layout, ours or of others: opened, made into models, written.

Whoever wrote them, `opened` gives a header and tensors in our terms (`Found`), and everything that
takes a checkpoint goes through it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tubelet import building, headers
from tubelet.backbones import Encoder
from tubelet.backbones.backbone import Backbone
from tubelet.backbones.positions import PositionMode
from tubelet.errors import TubeletError
from tubelet.files import replace_file
from tubelet.interop import layouts
from tubelet.interop.found import NOTHING, Found, Told
from tubelet.interop.inflate import inflated
from tubelet.interop.names import some
from tubelet.interop.report import Report, Resized
from tubelet.methods.records import record, value_of
from tubelet.methods.run import Pretraining, from_dict
from tubelet.model import Card, Classifier, MaskedModel, VideoModel
from tubelet.shapes import ClipSpec
from tubelet.train import checkpoint

log = logging.getLogger("tubelet")


def load(
    path: str | Path,
    *,
    num_frames: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    positions: PositionMode | None = None,
    told: Told = NOTHING,
    **said: Any,
) -> VideoModel:
    """Weights of whatever layout -> their model, in eval mode, with `card` telling how to use it.

    A pretrained encoder and decoder give a `MaskedModel`, a fine-tuned model a `Classifier`, an
    encoder alone a `MaskedModel` without branches. `report` says what became of each tensor.

    Args:
        path: a run's folder or a checkpoint of ours; a published file of VideoMAE, VideoMAE V2, MVD,
            image MAE, timm's ViT, MaskFeat or MAE-ST; DeepSpeed's folder; the folder of a Hugging
            Face model. What it is, is read from its content.
        num_frames, img_size: of the clips that the model shall see, where other than it was trained
            on; pixels: one number or (height, width).
        positions: how its position tables are made for another size: "interpolate" or "rebuild".
        told, said: what the file does not say of itself, as a `Told` or by name: `position`, `heads`,
            `trained`, `allow_missing`, ...; and whether a model of images shall become one of clips:
            `inflate` "mean" or "centre" (see `interop.inflate.inflated`), `tubelet_size`.

    Raises:
        TubeletError: a file that is damaged, unknown or not safe to open; numbers that are not
            finite; a tensor that is missing or has no place, unless it is named.
    """
    told = record(Told, {**told.said(), **said})
    found = resized(opened(path, told), num_frames, img_size, positions)
    model = made(found, told, path)
    if found.report.layout != "tubelet" or told.inflate:
        log.info("%s", found.report.line())
        for note in found.report.notes:
            log.info("  %s", note)
    return model


def made(found: Found, told: Told, path: str | Path) -> VideoModel:
    """The model that was found at `path`, in eval mode; see `load`."""
    if told.allow_missing:
        model = _built(found.header, told, path)
    else:
        building.check_size(found.header, found.weights, path)
        with building.Zeros():
            model = _built(found.header, told, path)
    fill(model, found, told, path)
    model.card = card_of(found.header, path)
    model.origin, model.report = found.origin, found.report
    return model.eval()


def opened(path: str | Path, told: Told = NOTHING) -> Found:
    """Weights of whatever layout -> header and tensors in our terms; see `load`."""
    path = Path(path)
    found = _ours(path, told) if is_ours(path) else layouts.read(path, told)
    if told.inflate is None:
        return found
    return inflated(found, told.inflate, tubelet_size=told.tubelet_size)


def _ours(path: Path, told: Told) -> Found:
    """A run's folder or a checkpoint of ours, which says all of itself."""
    header = headers.read(path)
    answered = {"allow_missing", "trust_code", "inflate", "tubelet_size"}
    unasked = sorted(set(told.said()) - answered)
    if unasked:
        raise TubeletError(
            f"{path} says its {' and '.join(unasked)} itself: leave {'that' if len(unasked) == 1 else 'them'} "
            "out. They are for files of others, which do not."
        )
    weights = checkpoint.load_weights(path)
    origin = layouts.origin_of(header, weights)
    report = Report(str(path), "tubelet", f"tubelet, {header['kind']}", list(weights))
    return Found(header, weights, origin, report)


def is_ours(path: Path) -> bool:
    """Whether tubelet has written this (or nothing is there): weights of others have no header."""
    if path.is_dir():
        return not layouts.is_folder(path)
    if not path.is_file():
        return True  # the reader of ours says what is wrong
    try:
        with safe_open(path, framework="pt") as file:
            return "tubelet" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def header_of(path: str | Path, told: Told = NOTHING) -> dict[str, Any]:
    """The header of weights of whatever layout."""
    if told.inflate is None and is_ours(Path(path)):
        return headers.read(path)
    return opened(path, told).header


def save(model: VideoModel, path: str | Path) -> None:
    """A model with its card -> a file of weights that `load` reads, and every verb."""
    write(found_of(model), path)


def found_of(model: VideoModel) -> Found:
    """A model -> header and tensors, as `opened` gives them."""
    return Found(
        describe(model, model.card),
        {name: value.detach() for name, value in model.state_dict().items()},
        model.origin,
        model.report or Report(),
    )


def write(found: Found, path: str | Path) -> None:
    """Header and tensors -> a file of ours, in float32, with what it takes to write the file that
    they came from again."""
    weights = {name: value.float() for name, value in found.weights.items()}
    header, weights = layouts.with_origin(replace(found, weights=weights))
    weights = {name: value.contiguous() for name, value in weights.items()}
    replace_file(Path(path), lambda begun: checkpoint.write_weights(begun, weights, header))


def encoder_shape(path: str | Path, told: Told = NOTHING) -> tuple[Encoder, int]:
    """A checkpoint -> the shape of its encoder, and its channels."""
    described = _opened_encoder(path, told).header["backbone"]
    return value_of(Encoder, described["shape"], "backbone"), described["in_chans"]


def encoder_of(
    path: str | Path,
    *,
    drop_path: float = 0.0,
    shape: Encoder | None = None,
    trained: tuple[int, int, int] | None = None,
    told: Told = NOTHING,
) -> tuple[Backbone, Card]:
    """A checkpoint -> its encoder for fine-tuning, and its card.

    Left out, as published: decoders, heads, the mask token and the last LayerNorm of a
    pretrained encoder.
    `shape`, `trained`: make it with other pooling, or for other clips (frames, height, width);
    learned relative positions are resized. `told`: see `load`.
    """
    found = _opened_encoder(path, told)
    described = dict(found.header["backbone"])
    if shape is not None:
        described["shape"] = asdict(shape)
    described["trained"] = trained or described["trained"]
    building.check_size({"backbone": described, "run": {}}, found.weights, path)
    encoder = _encoder(described, drop_path=drop_path)
    weights = {
        name.removeprefix("backbone."): value
        for name, value in found.weights.items()
        if name.startswith("backbone.")
        and not name.startswith(("backbone.norm.", "backbone.mask_token"))
    }
    _check_finite(weights, path)
    checkpoint.apply_weights(encoder, encoder.fitted(weights), path)
    return encoder, card_of(found.header, path)


def _opened_encoder(path: str | Path, told: Told) -> Found:
    """What decoders and heads do not say of themselves is not asked for."""
    return opened(path, told if is_ours(Path(path)) else replace(told, encoder_only=True))


def resized(
    found: Found,
    num_frames: int | None,
    img_size: int | tuple[int, int] | None,
    positions: PositionMode | None,
) -> Found:
    """The same weights for clips of another size. A plain encoder keeps the table that it was trained
    with, and its positions are made from that; tables of a multiscale one are resized when filled."""
    header, report = deepcopy(found.header), deepcopy(found.report)
    clip, backbone, run = header["clip"], header["backbone"], header["run"]
    plain = "width" in backbone["shape"]
    if positions is not None:
        if not plain or backbone["shape"]["position"] == "learned":
            if positions == "rebuild":
                raise TubeletError(
                    f"{report.path} has learned positions, which cannot be rebuilt: leave positions "
                    "at 'interpolate'."
                )
        else:
            for shape in (backbone["shape"], run.get("encoder", {})):
                shape["positions"] = positions
    frames = clip["num_frames"] if num_frames is None else num_frames
    size = clip["size"] if img_size is None else img_size
    size = [size, size] if isinstance(size, int) else list(size)
    before, after = list(backbone["trained"]), [frames, *size]
    if before != after:
        encoder: Encoder = value_of(Encoder, backbone["shape"], "backbone")
        grids = ["x".join(map(str, encoder.grid_for(*of))) for of in (before, after)]
        how = "interpolated" if backbone["shape"].get("positions") != "rebuild" else "rebuilt"
        names = ["backbone.positions"]
        names += [f"{b}.positions" for b in _decoders(found.weights)]
        if plain:
            report.resized += [Resized(name, grids[0], grids[1], how) for name in names]
        else:
            backbone["trained"] = after
        clip |= {"num_frames": frames, "size": size}
        if run and not plain:
            run["clip"] = dict(clip)
    return replace(found, header=header, report=report)


def _decoders(weights: Mapping[str, Tensor]) -> list[str]:
    """The decoders that attend, and so have positions: `branches.NAME.decoder`."""
    ends = ".decoder.mask_token"
    return [n.removesuffix(".mask_token") for n in weights if n.endswith(ends)]


def _built(header: Mapping[str, Any], told: Told, source: str | Path) -> VideoModel:
    """A new model as the header says; where it names code of its own, only if that is trusted."""
    if header["kind"] == "pretraining":
        kind = str(header["run"].get("type", ""))
        if not kind:
            raise TubeletError(
                f"{source} does not say by which run its decoders were made, so they cannot be made "
                "again. Save the model with a card that holds its run."
            )
        if not headers.is_our_run(header["run"]) and not told.trust_code:
            raise TubeletError(
                f"{source} was trained by a run of its own, {header['run'].get('file', kind)}, and loading "
                "it runs that code. If you trust it: --trust-code (in Python: trust_code=True)."
            )
        return cast(Pretraining, from_dict(header["run"])).model()
    if header["kind"] == "encoder":
        return MaskedModel(_encoder(header["backbone"], final_norm=True), [])
    return Classifier(_encoder(header["backbone"]), header["outputs"])


def fill(model: VideoModel, found: Found, told: Told, source: str | Path) -> None:
    """Copies the tensors into the model, strictly but for what `allow_missing` names."""
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in found.weights.items()
        if name.startswith("backbone.")
    }
    _check_finite(found.weights, source)
    weights = dict(found.weights)
    for name, value in model.backbone.fitted(backbone).items():
        if value.shape != backbone[name].shape:
            before, after = str(list(backbone[name].shape)), str(list(value.shape))
            found.report.resized.append(Resized(f"backbone.{name}", before, after, "interpolated"))
            weights[f"backbone.{name}"] = value
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    idle = [p for p in told.allow_missing if not any(name.startswith(p) for name in missing)]
    if idle:
        raise TubeletError(
            f"allow_missing names {', '.join(map(repr, idle))}, and nothing of that name is missing in "
            f"{source}: leave it out."
        )
    allowed = [name for name in missing if name.startswith(told.allow_missing)]
    found.report.missing += allowed
    weights |= {name: own[name] for name in allowed}
    _check_whole(model, weights, [name for name in missing if name not in allowed], source)
    checkpoint.apply_weights(model, weights, source)


def _check_whole(
    model: VideoModel, weights: Mapping[str, Tensor], lacking: list[str], source: str | Path
) -> None:
    """TubeletError for weights of this very model of which some, `lacking`, are missing."""
    own = model.state_dict()
    same = all(name in own and value.shape == own[name].shape for name, value in weights.items())
    if lacking and same:
        gone = "; ".join(f"{name} is missing" for name in lacking[:4])
        more = f"; and {len(lacking) - 4} more" if len(lacking) > 4 else ""
        raise TubeletError(
            f"{source} lacks tensors of this {type(model).__name__}: {gone}{more}. To leave those at "
            f"new, random values, name them: --allow-missing-weights {lacking[0]} (in Python: "
            "allow_missing=[...])."
        )


def _check_finite(weights: Mapping[str, Tensor], source: str | Path) -> None:
    """TubeletError for numbers that are not finite: training on would spread them."""
    wrong = [name for name, value in weights.items() if not _is_finite(value)]
    if wrong:
        raise TubeletError(
            f"{source} holds numbers that are not finite, in {len(wrong)} of {len(weights)} tensors: "
            f"{some(wrong)}. It is damaged, or its training had diverged: take an earlier checkpoint."
        )


def _is_finite(value: Tensor) -> bool:
    """By the extremes, which are NaN where any number is: no memory is taken."""
    least, most = torch.aminmax(value)
    return bool(least.isfinite() & most.isfinite())


def describe(model: VideoModel, card: Card) -> dict[str, Any]:
    """What a checkpoint's header says, so that `load` can make the model again."""
    backbone = model.backbone
    return {
        "kind": _kind(model),
        "backbone": {
            "shape": asdict(backbone.shape),
            "trained": list(backbone.trained),
            "in_chans": backbone.in_chans,
            "final_norm": not isinstance(backbone.norm, nn.Identity),
        },
        "outputs": model.num_classes if isinstance(model, Classifier) else 0,
        "clip": asdict(card.clip),
        "classes": list(card.classes),
        "label_kind": card.label_kind,
        "run": card.run,
    }


def _kind(model: VideoModel) -> str:
    if not isinstance(model, MaskedModel):
        return "classifier"
    return "pretraining" if len(model.branches) else "encoder"


def card_of(header: Mapping[str, Any], path: str | Path) -> Card:
    """A checkpoint's header -> the card of its model."""
    return Card(
        clip=record(ClipSpec, header["clip"]),
        classes=tuple(header.get("classes", ())),
        label_kind=header.get("label_kind", "unlabelled"),
        run=header.get("run", {}),
    )


def _encoder(
    described: Mapping[str, Any], *, drop_path: float = 0.0, final_norm: bool = False
) -> Backbone:
    """The encoder that a header describes, for whole clips; `final_norm`: with its last norm, if it
    had one."""
    shape: Encoder = value_of(Encoder, described["shape"], "backbone")
    return shape.build(
        trained=tuple(described["trained"]),
        in_chans=described["in_chans"],
        drop_path=drop_path,
        final_norm=final_norm and described["final_norm"],
        masked=False,
    )
