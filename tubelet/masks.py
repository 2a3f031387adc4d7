"""Masks: pure functions `(grid, rng, *, mask_ratio) -> hidden [N] bool`, and their packing.

True = hidden from the encoder: polarity is decided here and nowhere else.
"""

from __future__ import annotations

from math import ceil, floor

import numpy as np
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


def frame(grid: Grid, rng: np.random.Generator, *, mask_ratio: float) -> Tensor:
    """grid -> hidden [N]: whole time slots (the "frame" row of arXiv 2203.12602, Table 1b)."""
    return _draw(grid.t, mask_ratio, rng, "time slots").repeat_interleave(grid.h * grid.w)


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


def _draw(cells: int, mask_ratio: float, rng: np.random.Generator, what: str) -> Tensor:
    """bool [cells] with `int(mask_ratio * cells)` hidden, uniform without replacement."""
    # The published count is int(ratio * n); the small term keeps 0.29 * 100 from becoming 28.
    count = int(mask_ratio * cells + 1e-6)
    if not 0 < mask_ratio < 1 or not 0 < count < cells:
        low, high = ceil(1e4 / cells) / 1e4, floor(1e4 - 1e4 / cells) / 1e4
        raise TubeletError(
            f"mask_ratio {mask_ratio} hides {count} of the {cells} {what}: at least one must be "
            f"hidden and one visible. Choose mask_ratio from {low} to {high}."
        )
    hidden = torch.zeros(cells, dtype=torch.bool)
    hidden[torch.from_numpy(rng.permutation(cells)[:count])] = True
    return hidden


def pack(hidden: Tensor, asked: Tensor | None = None, *, count_visible: bool = False) -> Masks:
    """hidden bool [B,k,N], asked bool [B,k,N] -> Masks of static size.

    `asked` defaults to what is hidden. A position that is asked for but visible has weight 0,
    unless `count_visible`. Raises where rows differ in how many tokens they hide or ask for.
    """
    asked = hidden if asked is None else asked
    at = _indices(asked, "asks for")
    weight = hidden.gather(-1, at).float()
    return Masks(
        hidden=hidden,
        keep=_indices(~hidden, "shows"),
        asked=at,
        weight=torch.ones_like(weight) if count_visible else weight,
    )


def as_masks(mask: Tensor, n: int) -> Masks:
    """A mask as users write it -> Masks.

    bool [B,N] or [B,k,N], True = hidden (Hugging Face's `bool_masked_pos`); or int64 [B,K] or
    [B,k,K]: the indices of the visible tokens (V-JEPA's `masks_enc`).
    """
    rows = mask[:, None] if mask.dim() == 2 else mask
    if rows.dim() != 3 or (rows.dtype == torch.bool and rows.shape[-1] != n):
        raise TubeletError(
            f"A mask is bool [B,N] or [B,k,N] with N = {n}, or int64 indices of visible tokens "
            f"[B,K] or [B,k,K]; got {mask.dtype} {list(mask.shape)}."
        )
    if rows.dtype == torch.bool:
        return pack(rows)
    low, high = int(rows.min()), int(rows.max())
    if low < 0 or high >= n:
        raise TubeletError(f"Visible tokens are numbered 0 to {n - 1}; got {low} to {high}.")
    hidden = torch.ones(*rows.shape[:2], n, dtype=torch.bool, device=rows.device)
    return pack(hidden.scatter(-1, rows.long(), False))


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
