"""The header of a file of ours, read: whoever made it, its values are of the kinds that they have here."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tubelet.backbones import Encoder
from tubelet.errors import TubeletError
from tubelet.interop.sizes import MOST_TOKENS
from tubelet.methods.records import record
from tubelet.methods.run import from_dict
from tubelet.shapes import ClipSpec
from tubelet.train import checkpoint


@dataclass(frozen=True)
class _Backbone:
    shape: Encoder
    trained: tuple[int, int, int]
    in_chans: int
    final_norm: bool = False  # of encoders alone; 0.1.0 did not write it


@dataclass(frozen=True)
class _Origin:
    layout: str
    names: dict[str, str]
    dtypes: dict[str, Literal["float16", "bfloat16", "float32", "float64"]]
    wrapper: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Header:
    """What a model is made of; `stored.describe` writes it."""

    kind: Literal["pretraining", "classifier", "encoder"]
    backbone: _Backbone
    outputs: int
    clip: ClipSpec
    classes: tuple[str, ...] = ()
    label_kind: Literal["unlabelled", "single", "multi", "regression"] = "unlabelled"
    run: dict[str, Any] | None = None
    origin: _Origin | None = None


OURS = re.compile(r"tubelet\.methods\.\w+:\w+")  # the names of our runs; of no file
NEEDED = ("kind", "backbone", "outputs", "clip")


def read(path: str | Path) -> dict[str, Any]:
    """A run's folder, a checkpoint or a file of ours -> its header.

    TubeletError for what tubelet has not written: values that are missing, of another kind, or sizes
    that no model has.
    """
    header = {"classes": [], "label_kind": "unlabelled", "run": {}, **checkpoint.read_header(path)}
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise TubeletError(
            f"{path} has no {' and '.join(missing)} in its header: it was not written by tubelet."
        )
    known = [one.name for one in fields(_Header)]
    try:
        told = record(_Header, {n: header[n] for n in known if n in header}, "its header")
        _check(told)
    except (TubeletError, ArithmeticError) as error:
        raise TubeletError(
            f"{path} has a header that is damaged, or not of tubelet: {error}"
        ) from error
    clip, backbone = asdict(told.clip), asdict(told.backbone)  # with what has a default
    return {**header, "clip": clip, "backbone": backbone}


def is_our_run(run: dict[str, Any]) -> bool:
    """Whether a run is of tubelet's own methods: then no code of others is run to make it."""
    return "file" not in run and OURS.fullmatch(str(run.get("type", ""))) is not None


def _check(told: _Header) -> None:
    """TubeletError for numbers that are none of a network."""
    shape, clip, backbone = told.backbone.shape, told.clip, told.backbone
    least = (*backbone.trained, backbone.in_chans, clip.num_frames, *clip.size, shape.mlp_ratio)
    if not all(size > 0 for size in least) or told.outputs < 0 or not isinstance(told.run, dict):
        raise TubeletError(
            f"clips of {list(backbone.trained)} in training and {[clip.num_frames, *clip.size]} now, "
            f"{backbone.in_chans} channels, mlp_ratio {shape.mlp_ratio:g} and {told.outputs} outputs are "
            "no sizes of a model."
        )
    clips = [backbone.trained, (clip.num_frames, *clip.size)]
    if told.kind == "pretraining" and is_our_run(told.run):  # its network is made of it
        run = from_dict(told.run)
        clips.append((run.clip.num_frames, *run.clip.size))
    for size in clips:
        if shape.grid_for(*size).size > MOST_TOKENS:
            raise TubeletError(f"clips of {list(size)} would be more than {MOST_TOKENS} tokens.")
