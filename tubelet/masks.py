"""Masks: pure functions `(grid, rng, *, mask_ratio) -> hidden [N] bool`, and their packing.

True = hidden from the encoder: polarity is decided here and nowhere else. `N` is the backbone's
output grid; `unit` (t,h,w) is how many of its tokens are hidden or shown together.
"""

from __future__ import annotations

from math import ceil, floor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.shapes import Grid, Masks


def tube(grid: Grid, rng: np.random.Generator, *, mask_ratio: float) -> Tensor:
    """grid -> hidden [N]: one spatial mask repeated over time (arXiv 2203.12602, section 3.3)."""
    cells = _draw(grid.h * grid.w, mask_ratio, rng, "cells of one time slot")
    return cells.repeat(grid.t)


def random(grid: Grid, rng: np.random.Generator, *, mask_ratio: float) -> Tensor:
    """grid -> hidden [N]: cells drawn regardless of space and time (arXiv 2205.09113)."""
    return _draw(grid.size, mask_ratio, rng, "tokens")


def frame(
    grid: Grid, rng: np.random.Generator, *, mask_ratio: float, rounded: bool = False
) -> Tensor:
    """grid -> hidden [N]: whole time slots (the "frame" row of arXiv 2203.12602, Table 1b).

    `rounded`: as many as are nearest to the ratio, as MaskFeat hides (arXiv 2112.09133's code),
    where VideoMAE takes the next lower number.
    """
    slots = _draw(grid.t, mask_ratio, rng, "time slots", rounded=rounded)
    return slots.repeat_interleave(grid.h * grid.w)


DRAWS = {"tube": tube, "random": random, "frame": frame}  # by the `mask_type` of runs


def running_cell(grid: Grid, rng: np.random.Generator, *, mask_ratio: float) -> Tensor:
    """grid -> bool [N], True = not decoded: a pattern in each 2x2 cell that advances with time.

    The decoder mask of VideoMAE V2 (arXiv 2303.16727, 3.2): of the four places of a cell,
    `4 * mask_ratio` are left out in each time slot; the phase is uniform. The ratio has to be
    0.25, 0.5 or 0.75: the published code silently takes the next lower one of these.
    """
    if mask_ratio not in (0.25, 0.5, 0.75) or grid.h % 2 or grid.w % 2:
        raise TubeletError(
            f"Running cells of 2x2 tokens leave out 0.25, 0.5 or 0.75 of a grid with even sides; got "
            f"mask_ratio {mask_ratio} on {grid.t}x{grid.h}x{grid.w} (t x h x w)."
        )
    t, h, w = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    phase = int(rng.integers(4))
    return ((phase + t + 1 + 2 * (h % 2) + w % 2) % 4 < 4 * mask_ratio).flatten()


DECODER_DRAWS = {"running_cell": running_cell, "frame": frame, "random": random}


def cube(
    grid: Grid,
    rng: np.random.Generator,
    *,
    mask_ratio: float,
    unit: tuple[int, int, int] = (1, 2, 2),
) -> Tensor:
    """grid -> hidden [N]: blocks of space and time (the cubes of arXiv 2112.09133, as its code).

    Blocks are added until `round(mask_ratio * units)` units are hidden or 100 tries in a row do
    not fit into what is left; never more than that number, often a few less. Of h x w units a
    block covers from a fifth to all, with sides of ratio 0.3 to 1/0.3 and any number of slots. As
    published it is shorter than the grid in height and width: of 2 units a side it covers 1; of
    1 unit, where nothing is shorter, that one.
    """
    units = _units(grid, unit)
    least = max(1, units.h * units.w // 5)
    count = _count(units.size, mask_ratio, "units", rounded=True, least=least)
    hidden = _grow(units, rng, count, least, units.h * units.w, tries=100)
    return _spread(hidden, unit)


def block(
    grid: Grid,
    rng: np.random.Generator,
    *,
    mask_ratio: float,
    unit: tuple[int, int, int] = (1, 1, 1),
) -> Tensor:
    """grid -> hidden [N]: blocks of space, the same in all time slots.

    Block-wise masks of images (arXiv 2106.08254, Algorithm 1) as MaskFeat draws them for images,
    and with a unit of (1,2,2) its tubes for clips (arXiv 2112.09133's code). A block covers
    from a fifth of `round(mask_ratio * units)` to all that is left of it; sides as in `cube`; 10
    tries. Never more than that number, often a few less.
    """
    units = _units(grid, unit)
    slot = Grid(1, units.h, units.w)
    count = _count(slot.size, mask_ratio, "units of one time slot", rounded=True)
    hidden = _grow(slot, rng, count, max(1, count // 5), None, tries=10)
    return _spread(hidden.repeat(units.t, 0), unit)


def even(hidden: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """hidden bool [N] -> bool [N] of which `count` are hidden; single tokens change, uniformly drawn.

    For backbones that drop what is hidden, under masks that differ in size. Done sample by sample,
    so that a mask does not depend on the others of its batch.
    """
    n, had = len(hidden), int(hidden.sum())
    if not 0 < count < n:
        raise TubeletError(f"Hide from 1 to {n - 1} of {n} tokens; got a count of {count}.")
    # Those that may change: the visible ones where too few are hidden, else the hidden ones.
    pool = (hidden != (had < count)).nonzero()[:, 0]
    chosen = torch.from_numpy(rng.permutation(len(pool))[: abs(count - had)])
    changed = hidden.clone()
    changed[pool[chosen]] = had < count
    return changed


def _units(grid: Grid, unit: tuple[int, int, int]) -> Grid:
    """The grid of units. TubeletError where they do not divide the grid."""
    if any(u < 1 or n % u for n, u in zip(grid, unit, strict=True)):
        fit = (", ".join(str(u) for u in range(1, n + 1) if n % u == 0) for n in grid)
        sides = "; ".join(f"{axis}: {numbers}" for axis, numbers in zip("thw", fit, strict=True))
        raise TubeletError(
            f"Mask units of {'x'.join(map(str, unit))} do not divide the grid of "
            f"{'x'.join(map(str, grid))} tokens (t x h x w). Sides that do: {sides}."
        )
    return Grid(*(n // u for n, u in zip(grid, unit, strict=True)))


def _spread(units: npt.NDArray[np.bool_], unit: tuple[int, int, int]) -> Tensor:
    """bool [t,h,w] of units -> bool [N] of tokens."""
    for axis, times in enumerate(unit):
        units = units.repeat(times, axis) if times > 1 else units
    return torch.from_numpy(units.flatten())


def _grow(
    units: Grid,
    rng: np.random.Generator,
    count: int,
    least: int,
    most: int | None,
    *,
    tries: int,
) -> npt.NDArray[np.bool_]:
    """bool [t,h,w], at least one and at most `count` hidden: boxes of `least` to `most` units a slot.

    `most` None: what is left of `count`. The tries for a box are made together, and the first
    that hides something new and not too much is taken: the same as one after the other.
    """
    hidden = np.zeros(units, dtype=np.bool_)
    left, failed = count, 0
    # Published: one failure ends it. A mask that would be empty then goes on.
    while left and (not failed or (left == count and failed < 1000)):
        lows, highs = _boxes(units, rng, least, left if most is None else most, tries)
        size = (highs - lows).prod(0)
        new = size - _inside(hidden, lows, highs)
        fit = np.flatnonzero((new > 0) & (new <= left))
        failed = 0 if len(fit) else failed + 1
        if len(fit):
            (t, h, w), (t1, h1, w1) = lows[:, fit[0]].tolist(), highs[:, fit[0]].tolist()
            hidden[t:t1, h:h1, w:w1] = True
            left -= int(new[fit[0]])
    if left == count:
        raise TubeletError(
            f"No block of at least {least} units has room in {units.h}x{units.w} of them with sides "
            "of ratio 0.3 to 3.3: choose a smaller unit, a squarer grid or another mask."
        )
    return hidden


def _boxes(
    units: Grid, rng: np.random.Generator, least: float, most: float, tries: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and last + 1 of boxes [3,n] (t,h,w) in n <= `tries` draws; those too large are left out."""
    u = rng.random((6, tries))
    root, stretch = np.sqrt(least + (most - least) * u[0]), 0.3 ** (u[1] - 0.5)
    sides = np.array(
        [np.floor(units.t * u[2]) + 1, np.rint(root * stretch), np.rint(root / stretch)]
    )
    sides = np.maximum(sides, 1)
    sides[[n == 1 for n in units]] = 1
    longest = np.array([units.t, max(1, units.h - 1), max(1, units.w - 1)])
    room = (sides <= longest[:, None]).all(0)
    sides = sides[:, room]
    lows = np.floor(u[3:, room] * (np.array(units)[:, None] - sides + 1))
    return lows.astype(np.int64), (lows + sides).astype(np.int64)


def _inside(
    hidden: npt.NDArray[np.bool_], lows: npt.NDArray[np.int64], highs: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """How many are hidden in each box, by the table of sums from the corner: [n]."""
    sums = np.zeros([n + 1 for n in hidden.shape], dtype=np.int64)
    sums[1:, 1:, 1:] = hidden.cumsum(0).cumsum(1).cumsum(2)
    (t, h, w), (t1, h1, w1) = lows, highs
    early = sums[t, h1, w1] - sums[t, h, w1] - sums[t, h1, w] + sums[t, h, w]
    return sums[t1, h1, w1] - sums[t1, h, w1] - sums[t1, h1, w] + sums[t1, h, w] - early


def _draw(
    cells: int, mask_ratio: float, rng: np.random.Generator, what: str, *, rounded: bool = False
) -> Tensor:
    """bool [cells] with `mask_ratio` of them hidden, uniform without replacement."""
    hidden = np.zeros(cells, dtype=np.bool_)
    count = _count(cells, mask_ratio, what, rounded=rounded)
    hidden[rng.permutation(cells)[:count]] = True
    return torch.from_numpy(hidden)


def _count(
    cells: int, mask_ratio: float, what: str, *, rounded: bool = False, least: int = 1
) -> int:
    """How many of the cells to hide: the next lower number, or the nearest; `least` to cells - 1."""
    if cells <= least:
        raise TubeletError(f"The grid has {cells} {what}, too few to hide some and show some.")
    # The published count is int(ratio * n); the small term keeps 0.29 * 100 from becoming 28.
    count = round(mask_ratio * cells) if rounded else int(mask_ratio * cells + 1e-6)
    if not 0 < mask_ratio < 1 or not least <= count < cells:
        low, high = ceil(1e4 * least / cells) / 1e4, floor(1e4 - 1e4 / cells) / 1e4
        raise TubeletError(
            f"mask_ratio {mask_ratio} hides {count} of the {cells} {what}: at least {least} must be "
            f"hidden and one visible. Choose mask_ratio from {low} to {high}."
        )
    return count


def pack(
    hidden: Tensor,
    asked: Tensor | None = None,
    *,
    count_visible: bool = False,
    replace: bool = False,
    fill: bool = True,
) -> Masks:
    """hidden bool [B,k,N], asked bool [B,k,N] -> Masks of static size.

    `asked` defaults to what is hidden. A position that is asked for but visible has weight 0,
    unless `count_visible`. Raises where rows differ in how many tokens they hide or ask for.

    `replace`: for a backbone that replaces what is hidden and so takes all N tokens. Rows may
    differ then: `asked` is filled up with position 0 at weight 0, unless `fill` is off, as for a
    decoder that attends to what is asked for.
    """
    asked = hidden if asked is None else asked
    n = hidden.shape[-1]
    if replace and fill:
        at, real = _filled(asked)
    else:
        at = _indices(asked, "asks for")
        real = torch.ones_like(at, dtype=torch.bool)
    if replace:
        keep = torch.arange(n, device=hidden.device).expand(hidden.shape)
    else:
        keep = _indices(~hidden, "shows")
    counts = real if count_visible else real & hidden.gather(-1, at)
    return Masks(hidden=hidden, keep=keep, asked=at, weight=counts.float())


def as_masks(mask: Tensor, n: int, *, replace: bool = False) -> Masks:
    """A mask as users write it -> Masks.

    bool [B,N] or [B,k,N], True = hidden (Hugging Face's `bool_masked_pos`); or int64 [B,K] or
    [B,k,K]: the indices of the visible tokens (V-JEPA's `masks_enc`). `replace`: see `pack`.
    """
    rows = mask[:, None] if mask.dim() == 2 else mask
    if rows.dim() != 3 or (rows.dtype == torch.bool and rows.shape[-1] != n):
        raise TubeletError(
            f"A mask is bool [B,N] or [B,k,N] with N = {n}, or int64 indices of visible tokens "
            f"[B,K] or [B,k,K]; got {mask.dtype} {list(mask.shape)}."
        )
    if rows.dtype == torch.bool:
        return pack(rows, replace=replace)
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= n:
        raise TubeletError(f"Visible tokens are numbered 0 to {n - 1}; got {low} to {high}.")
    hidden = torch.ones(*rows.shape[:2], n, dtype=torch.bool, device=rows.device)
    return pack(hidden.scatter(-1, rows.long(), False), replace=replace)


def _indices(chosen: Tensor, verb: str) -> Tensor:
    """bool [B,k,N] -> int64 [B,k,count], ascending; every row must hold equally many."""
    counts = chosen.sum(-1)
    low, high = int(counts.min()), int(counts.max())
    if low != high or low == 0:
        raise TubeletError(
            f"The masks of a batch must be of equal size, and not empty: one row {verb} {low} "
            f"tokens and another {high}, of {chosen.shape[-1]}."
        )
    return chosen.nonzero()[:, -1].reshape(*chosen.shape[:2], low)


def _filled(asked: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B,k,N] -> int64 [B,k,M] ascending, then zeros; bool [B,k,M], False = filled.

    M is a multiple of a sixteenth of N, so that few sizes occur: each new one compiles anew.
    """
    n, counts = asked.shape[-1], asked.sum(-1, keepdim=True)
    if not int(counts.min()):
        raise TubeletError(
            f"A mask asks for none of the {n} tokens, so there is nothing to predict: hide at least one."
        )
    step = max(1, n // 16)
    size = min(n, ceil(int(counts.max()) / step) * step)
    real = torch.arange(size, device=asked.device) < counts
    order = asked.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., :size]
    return order.where(real, 0), real
