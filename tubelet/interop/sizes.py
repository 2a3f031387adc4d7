"""Sizes of networks, read from the shapes of their tensors; what shapes do not tell is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tubelet.backbones.positions import TABLES, PositionKind
from tubelet.backbones.vit import ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop.found import Told, ask
from tubelet.interop.names import some
from tubelet.interop.tables import tolerance
from tubelet.shapes import ClipSpec, Grid, Patch

PATCHES = "patch_embed.proj.weight"
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # of the published widths
DEPTHS = {384: 12, 768: 12, 1024: 24, 1280: 32, 1408: 40}
# Of decoders: VideoMAE's and V2's, and MVD's (whose S and B have the encoder's width).
DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8, 768: 12}
TRAINED = (16, 224, 224)  # frames, height, width of the clips of all published models of clips
WIDTHS: dict[PositionKind, int] = {
    "sincos_3d": 16,
    "sincos_2d": 4,
}  # what a table's width has to be a multiple of
MOST_TOKENS = 1 << 16  # of a clip: more is no size that anyone trains


def vit_shape(
    state: Mapping[str, Tensor], told: Told, path: Path, position: PositionKind, **options: Any
) -> tuple[ViTShape, int]:
    """Plain names -> the encoder's sizes, and its channels; `options`: further fields of the shape."""
    patches, hidden = state.get(PATCHES), state.get("blocks.0.mlp.fc1.weight")
    if hidden is None and any(name.startswith("blocks.") for name in state):
        depth_of(state, "blocks.", path)  # the first may be missing alone
    if patches is None or hidden is None or patches.dim() not in (4, 5) or hidden.dim() != 2:
        raise TubeletError(
            f"{path} is no vision transformer that is known: expected {PATCHES} and blocks with "
            f"mlp.fc1; it holds {some(sorted(state))}."
        )
    width, in_chans, *kernel = patches.shape
    tubelet, patch, across = (1, *kernel) if patches.dim() == 4 else kernel
    if patch != across:
        raise TubeletError(
            f"{path} has patches of {patch}x{across} pixels: only squares are known."
        )
    if told.heads is None and width not in HEADS:
        what = f"how many heads its attention of width {width} has"
        raise ask(path, what, "--heads", _divisors(width), 1)
    shape = ViTShape(
        width=width,
        depth=depth_of(state, "blocks.", path),
        heads=told.heads or HEADS[width],
        mlp_ratio=hidden.shape[0] / width,
        patch=patch,
        tubelet_size=tubelet,
        position=position,
        **options,
    )
    return shape, in_chans


def depth_of(state: Mapping[str, Tensor], prefix: str, path: Path) -> int:
    """How many blocks lie under the prefix; TubeletError where one between them is missing."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    blocks = {int(number) for number in numbers if number.isdecimal()}
    if not blocks or blocks != set(range(len(blocks))):
        missing = sorted(set(range(max(blocks, default=0) and min(max(blocks), 999))) - blocks)
        raise TubeletError(
            f"{path} lacks blocks: {prefix}{missing[0] if missing else 0} is missing, of "
            f"{len(blocks)} that are there. The file is incomplete."
        )
    return len(blocks)


def decoder_shape(
    state: Mapping[str, Tensor],
    prefix: str,
    told: Told,
    path: Path,
    heads: Mapping[int, int] = DECODER_HEADS,
) -> DecoderShape:
    """The sizes of the decoder whose blocks lie under the prefix, as in "decoder.blocks."."""
    hidden = state.get(f"{prefix}0.mlp.fc1.weight")
    if hidden is None or hidden.dim() != 2:
        raise TubeletError(
            f"{path} holds a decoder without a matrix {prefix}0.mlp.fc1.weight: damaged, or incomplete."
        )
    width = hidden.shape[1]
    if told.decoder_heads is None and width not in heads:
        what = f"how many heads the attention of its decoder of width {width} has (--encoder-only leaves it out)"
        raise ask(path, what, "--decoder-heads", _divisors(width), 1)
    return DecoderShape(
        width=width,
        depth=depth_of(state, prefix, path),
        heads=told.decoder_heads or heads[width],
        mlp_ratio=hidden.shape[0] / width,
    )


def trained_on(
    shape: ViTShape,
    told: Told,
    settings: Mapping[str, Any],
    path: Path,
    notes: list[str],
    table: Tensor | None = None,
    prefix: int = 0,
) -> tuple[int, int, int]:
    """Frames, height and width of the clips of its training.

    By what was told, by the file's position table ([R+N,D], R = `prefix`) and settings, else as all
    published models of these widths, with a note; TubeletError where the table says otherwise.
    """
    if told.trained is not None:
        frames, height, width = told.trained
    else:
        said = _number(settings.get("num_frames"))
        frames = said or TRAINED[0]
        height = width = _number(settings.get("input_size")) or 0
        slots = max(1, frames // shape.tubelet_size)
        if table is not None:
            side = math.isqrt((len(table) - prefix) // slots)
            height = width = side * shape.patch
        elif not height and shape.width not in HEADS:
            guess = (frames, 14 * shape.patch, 14 * shape.patch)
            choices = "FRAMES HEIGHT WIDTH, as in 16 224 224"
            raise ask(path, "the size of its clips", "--trained", choices, guess)
        elif not height:
            height, width = TRAINED[1:]
            notes.append(
                f"taken as trained on {frames} frames of {height}x{width}, as published: the file does "
                "not say (--trained FRAMES HEIGHT WIDTH says otherwise)"
            )
    grid = Patch(shape.tubelet_size, shape.patch, shape.patch).grid_for(frames, height, width)
    if grid.size > MOST_TOKENS:
        raise TubeletError(
            f"{path}: clips of {frames}x{height}x{width} would be {grid.size} tokens."
        )
    if table is not None and len(table) != prefix + grid.size:
        raise TubeletError(
            f"{path} has {len(table) - prefix} positions, and clips of {frames}x{height}x{width} have "
            f"{grid.size} tokens: say --trained FRAMES HEIGHT WIDTH (in Python: trained=...)."
        )
    return frames, height, width


def kind_of_table(
    table: Tensor, grid: Grid, kinds: Sequence[PositionKind], prefix: int = 0
) -> PositionKind:
    """table [R+N,D] -> the fixed kind that it is, or "learned"."""
    rows, width = table.float(), table.shape[1]
    if not rows[:prefix].any():
        for kind in kinds:
            if width % WIDTHS.get(kind, 1):
                continue
            own = TABLES[kind](grid, width)
            if own.shape != rows[prefix:].shape:
                continue
            if (rows[prefix:] - own).abs().max() < tolerance(table.dtype):
                return kind
    return "learned"


def table_of(state: Mapping[str, Tensor], name: str, width: int, path: Path) -> Tensor | None:
    """The position table [R+N,D] of a file, which holds it as [1,R+N,D]; None where it has none."""
    table = state.get(name)
    if table is None:
        return None
    if table.dim() != 3 or len(table) != 1 or table.shape[2] != width:
        raise TubeletError(f"{path}: {name} is {list(table.shape)}: expected [1,N,{width}].")
    return table[0]


def position_of(
    table: Tensor,
    grid: Grid,
    kinds: Sequence[PositionKind],
    told: Told,
    path: Path,
    prefix: int = 0,
) -> PositionKind:
    """table [R+N,D] -> its kind, by content; TubeletError where another was told."""
    kind = kind_of_table(table, grid, kinds, prefix)
    if told.position not in (None, kind):
        raise TubeletError(
            f"{path} holds a position table that is {kind}, and not {told.position}: leave --position "
            "out (in Python: position=...)."
        )
    return kind


def header_of(
    kind: str,
    shape: Any,
    trained: tuple[int, int, int],
    in_chans: int,
    settings: Mapping[str, Any] | None = None,
    *,
    outputs: int = 0,
    classes: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
    final_norm: bool = False,
    **clip: Any,
) -> dict[str, Any]:
    """A header as `tubelet.stored.describe` makes them; `run`: of pretraining, its `type` and fields
    beyond encoder and clip."""
    spec = asdict(ClipSpec(num_frames=trained[0], size=trained[1:], in_chans=in_chans, **clip))
    if settings:
        rate = _number(settings.get("sampling_rate"))
        spec |= {"sampling_rate": rate} if rate else {}
        if kind == "classifier" and str(settings.get("data_set", "")).upper().startswith("SSV2"):
            spec["sampling"] = "uniform"  # as both scripts do for that set
    described = asdict(shape)
    return {
        "kind": kind,
        "backbone": {
            "shape": described,
            "trained": list(trained),
            "in_chans": in_chans,
            "final_norm": final_norm,
        },
        "outputs": outputs,
        "clip": spec,
        "classes": list(classes) or [str(i) for i in range(outputs)],
        "label_kind": "single" if outputs else "unlabelled",
        # Copies: the model's clips may become others, those of its training do not.
        "run": {} if run is None else {"encoder": dict(described), "clip": dict(spec), **run},
    }


def _number(value: Any) -> int | None:
    """A positive int, or None for anything else that settings may hold."""
    return value if type(value) is int and 0 < value <= 1 << 16 else None


def _divisors(width: int) -> str:
    return "one of " + ", ".join(str(n) for n in range(1, 33) if width % n == 0)
