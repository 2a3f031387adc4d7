"""The sizes of a multiscale transformer, read from the shapes of its tensors.

Widths and heads follow from the weights. Where queries are pooled, and keys and values by how much,
shows in the tables of relative positions alone: all schedules that fit them are made, and what of
them is in doubt is taken as published, or asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tubelet.backbones.mvit import (
    MVIT_BASE,
    MVIT_LARGE,
    MVIT_SMALL,
    STEM,
    MViTShape,
    stem_grid,
)
from tubelet.backbones.pooling import cut_grid
from tubelet.errors import TubeletError
from tubelet.interop.found import Question, Told, Unsaid
from tubelet.interop.ledger import Ledger
from tubelet.interop.names import some
from tubelet.interop.sizes import MOST_TOKENS, PATCHES, depth_of
from tubelet.interop.slowfast import numbers, statistics
from tubelet.shapes import Grid

KERNEL = (3, 7, 7)  # of the patch embedding
MOST_PATCHES = 16 * MOST_TOKENS  # of 4x4 pixels, where tokens of other encoders have 16x16
NEEDED = (
    *("norm1.weight", "attn.proj.weight", "attn.pool_q.weight", "mlp.fc1.weight", "mlp.fc2.weight"),
    *("attn.rel_pos_t", "attn.rel_pos_h", "attn.rel_pos_w"),
)
MULTISCALE = "blocks.0.attn.pool_q.weight"


class Measured(NamedTuple):
    """A block by its tensors: widths that it takes, attends with and returns, heads, and how many
    rows its tables (t, h, w) have."""

    into: int
    inner: int
    out: int
    heads: int
    rows: tuple[int, ...]


def mvit_shape(ledger: Ledger) -> tuple[MViTShape, tuple[int, int, int], int]:
    """-> the encoder's shape, frames, height and width of the clips of its training, its channels."""
    state, told, path = ledger.left, ledger.told, ledger.raw.path
    patches = state.get(PATCHES)
    if patches is None or tuple(patches.shape[2:]) != KERNEL:
        raise TubeletError(
            f"{path} is no multiscale transformer of clips that is known: its patches are "
            f"{None if patches is None else list(patches.shape)}, expected [D,C,3,7,7] in {PATCHES}."
        )
    blocks = _measured(state, path)
    ratio = len(state["blocks.0.mlp.fc1.weight"]) / blocks[0].inner
    begin = Grid(*((rows + 1) // 2 for rows in blocks[0].rows))  # its first queries are not pooled
    trained = told.trained or (begin.t * STEM.t, begin.h * STEM.h, begin.w * STEM.w)
    if max(begin.size, stem_grid(*trained).size) > MOST_PATCHES:
        size = "x".join(map(str, trained))
        raise TubeletError(f"{path}: clips of {size} would be {stem_grid(*trained).size} patches.")
    schedules = list(_schedules(blocks, ratio, ledger, begin))
    fit = [shape for shape in schedules if _tables(shape, trained) == [b.rows for b in blocks]]
    if not fit:
        size = "x".join(map(str, trained))
        raise TubeletError(
            f"{path}: the widths {[block.inner for block in blocks]} of its blocks and the rows "
            f"{[block.rows for block in blocks]} of their tables (time, rows, columns) fit no MViTv2 "
            f"trained on clips of {size}, which pools queries 2x2 where a stage begins: the file is "
            "damaged, or --trained, --pooled or --pool-kv say otherwise than it."
        )
    shape = _chosen(fit, state, path, ledger.report.notes)
    said = statistics(ledger.raw.settings, shape.mean, shape.std)
    return replace(shape, **said), trained, patches.shape[1]


def _measured(state: Mapping[str, Tensor], path: Path) -> list[Measured]:
    """The blocks in their order."""
    found: list[Measured] = []
    for i in range(depth_of(state, "blocks.", path)):
        parts = {name: state.get(f"blocks.{i}.{name}") for name in NEEDED}
        missing = [f"blocks.{i}.{name}" for name, value in parts.items() if value is None]
        if missing:
            raise TubeletError(
                f"{path} lacks {some(missing)}, which each block of an MViTv2 with relative "
                "positions in time, rows and columns has."
            )
        sizes: list[Any] = [len(value) for value in parts.values() if value is not None]
        into, inner, head, _, out, *rows = sizes
        if not head or inner % head:
            raise TubeletError(
                f"{path}: the attention of block {i} is {inner} wide, which is no multiple of the "
                f"{head} channels that a head pools."
            )
        found.append(Measured(into, inner, out, inner // head, tuple(rows)))
    return found


def _schedules(
    blocks: Sequence[Measured], ratio: float, ledger: Ledger, begin: Grid
) -> Iterator[MViTShape]:
    """Every schedule with these widths and heads."""
    grows = [
        i + 1
        for i, (one, next_) in enumerate(pairwise(blocks))
        if (one.inner, one.heads) != (next_.inner, next_.heads)
    ]
    widen = "attention" if any(block.inner != block.into for block in blocks) else "mlp"
    for pooled in _pooled(grows, len(blocks), ledger.told, ledger.raw.settings):
        starts = sorted({0, *grows, *pooled})
        if set(starts[1:-1]) - set(pooled) or not all(0 < i < len(blocks) for i in pooled):
            continue  # only the last stage may begin without pooling
        ends = [*starts[1:], len(blocks)]
        for pool_kv in _pools_of_keys(ledger.told, ledger.raw.settings, begin):
            shape = MViTShape(
                depths=tuple(end - start for start, end in zip(starts, ends, strict=True)),
                widths=tuple(blocks[i].inner for i in starts),
                heads=tuple(blocks[i].heads for i in starts),
                pool_last=starts[-1] in pooled or len(starts) == 1,
                pool_kv=pool_kv,
                mlp_ratio=ratio,
                widen=widen,
            )
            rows = [(row.width, row.out, row.heads) for row in shape.rows]
            if rows == [(block.into, block.out, block.heads) for block in blocks]:
                yield shape


def _pooled(
    grows: list[int], depth: int, told: Told, settings: Mapping[str, Any]
) -> list[list[int]]:
    """At which blocks queries may be pooled: where a stage begins, but for the last one; at one more
    block, which begins a stage of the same width. What was told or configured is taken."""
    if told.pooled is not None:
        return [sorted(told.pooled)]
    said = numbers(settings, "MVIT.POOL_Q_STRIDE")
    if said and len(said) % 4 == 0:  # block, then strides in time, rows, columns
        rows = [said[i : i + 4] for i in range(0, len(said), 4)]
        return [sorted(int(block) for block, *strides in rows if strides == [1, 2, 2])]
    more = [sorted([*grows, i]) for i in range(1, depth) if i not in grows]
    return [grows, *([grows[:-1]] if grows else []), *more]


def _pools_of_keys(told: Told, settings: Mapping[str, Any], begin: Grid) -> list[int]:
    """By how much keys and values may be pooled in the first stage: a power of two within a frame."""
    said = numbers(settings, "MVIT.POOL_KV_STRIDE_ADAPTIVE")
    if told.pool_kv is not None:
        return [told.pool_kv]
    if len(said) == 3 and said[0] == 1 and said[1] == said[2] >= 1:
        return [int(said[1])]
    return [2**i for i in range(min(begin.h, begin.w).bit_length())]


def _tables(shape: MViTShape, trained: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """How many rows the tables of each block have for clips of this size."""
    grid, found = stem_grid(*trained), []
    for row in shape.rows:
        queries, keys = cut_grid(grid, row.pool_q), cut_grid(grid, row.pool_kv)
        found.append(tuple(2 * max(m, n) - 1 for m, n in zip(queries, keys, strict=True)))
        grid = queries
    return found


def _chosen(
    fit: list[MViTShape], state: Mapping[str, Tensor], path: Path, notes: list[str]
) -> MViTShape:
    """Of the schedules that fit: by the width of predicted histograms, else as published, else as
    asked."""
    predicted = state.get("pred_head.projections.0.weight")
    if predicted is not None and predicted.dim() == 2:
        channels = state[PATCHES].shape[1]
        fit = [s for s in fit if hog_width(s.token.h, channels) == len(predicted)] or fit
    published = [s for s in fit if replace(s, pool_last=True, widen="mlp") in PUBLISHED]
    if len(fit) > 1 and len(published) == 1:
        notes.append(
            f"keys and values taken as pooled by {published[0].pool_kv} first, and queries at blocks "
            f"{_listed(published[0])}, as published: other schedules (--pooled, --pool-kv) have the "
            "same tables"
        )
    fit = published if len(published) == 1 else fit
    questions: list[Question] = []
    ways = list(dict.fromkeys(_listed(shape) for shape in fit))
    if len(ways) > 1:
        choices = " or ".join(way or "(none)" for way in ways)
        guess = tuple(map(int, ways[0].split()))
        what = "which of its blocks pool their queries"
        questions.append(Question(what, "--pooled", choices, guess))
    pools = sorted({shape.pool_kv for shape in fit})
    if len(pools) > 1:
        choices = " or ".join(map(str, pools))
        what = "by how much its first blocks pool keys and values"
        questions.append(Question(what, "--pool-kv", choices, fit[0].pool_kv))
    if questions:
        raise Unsaid(path, questions)
    return fit[0]


PUBLISHED = (MVIT_SMALL, MVIT_BASE, MVIT_LARGE)


def _listed(shape: MViTShape) -> str:
    """The blocks that pool their queries."""
    return " ".join(str(i) for i, row in enumerate(shape.rows) if row.pool_q > 1)


def hog_width(side: int, channels: int) -> int:
    """How many values MaskFeat's histograms have for a token of side x side pixels: 9 directions in
    cells of 8x8 pixels (arXiv 2112.09133, section 3); 0 where cells do not fit."""
    return 0 if side % 8 else 9 * channels * (side // 8) ** 2
