"""Position tables over a token grid, fixed or learned, and their resizing."""

from __future__ import annotations

import logging
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.shapes import Grid

PositionKind = Literal["sinusoid_1d", "sincos_2d", "sincos_3d", "learned"]
PositionMode = Literal["interpolate", "rebuild"]

log = logging.getLogger("tubelet")


def sinusoid_1d(grid: Grid, dim: int) -> Tensor:
    """-> float32 [N,D]: one sinusoid over the flattened index, as VideoMAE and V2 published it.

    angle(p, j) = p / 10000^(2*floor(j/2)/D); even j sine, odd j cosine (arXiv 1706.03762, 3.5).
    """
    j = torch.arange(dim, dtype=torch.float64)
    rate = 10000.0 ** (-2 * (j // 2) / dim)
    angle = torch.arange(grid.size, dtype=torch.float64)[:, None] * rate
    return torch.where(j % 2 == 0, angle.sin(), angle.cos()).float()


def sincos_3d(grid: Grid, dim: int) -> Tensor:
    """-> float32 [N,D]: D/4 for time, then 3D/8 for the column, 3D/8 for the row, as MVD.

    Each part of width m is [sin(pos * 10000^(-k/(m/2))) for k < m/2], then the cosines.
    """
    if dim % 16:
        raise TubeletError(f"sincos_3d positions need a width divisible by 16, got {dim}.")
    t, h, w = _axes(grid)
    parts = [_sincos(t, dim // 4), _sincos(w, dim * 3 // 8), _sincos(h, dim * 3 // 8)]
    return torch.cat(parts, 1).float()


def sincos_2d(grid: Grid, dim: int) -> Tensor:
    """-> float32 [N,D]: D/2 for the column, D/2 for the row, as image MAE (arXiv 2111.06377).

    The same in every time slot.
    """
    if dim % 4:
        raise TubeletError(f"sincos_2d positions need a width divisible by 4, got {dim}.")
    _, h, w = _axes(grid)
    return torch.cat([_sincos(w, dim // 2), _sincos(h, dim // 2)], 1).float()


def _axes(grid: Grid) -> list[Tensor]:
    """-> float64 [N] each: time slot, row and column of every token."""
    axes = (torch.arange(n, dtype=torch.float64) for n in grid)
    return [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]


def _sincos(pos: Tensor, width: int) -> Tensor:
    """[N] -> [N,width]: the sines of pos * 10000^(-k/(width/2)), then the cosines."""
    k = torch.arange(width // 2, dtype=torch.float64)
    angle = pos[:, None] * 10000.0 ** (-k / (width // 2))
    return torch.cat([angle.sin(), angle.cos()], 1)


TABLES = {"sinusoid_1d": sinusoid_1d, "sincos_2d": sincos_2d, "sincos_3d": sincos_3d}


def resize_table(table: Tensor, trained: Grid, grid: Grid) -> Tensor:
    """[N,D] over `trained` -> [N',D] over `grid`, linear on the three axes (half-pixel centres)."""
    volume = table.T.reshape(1, -1, *trained)
    return F.interpolate(volume, size=tuple(grid), mode="trilinear").flatten(2)[0].T


class Positions(nn.Module):
    """The table of a network: fixed, so a buffer outside `state_dict`.

    mode "interpolate" takes the table of the `trained` grid as a function of (t, h, w) and
    resizes it; "rebuild" makes it anew for another grid, as VideoMAE and V2 do (with
    `sinusoid_1d` that renumbers every position). At the trained grid they are equal.
    """

    table: Tensor

    def __init__(
        self, kind: PositionKind, dim: int, trained: Grid, mode: PositionMode = "interpolate"
    ):
        super().__init__()
        self.kind: PositionKind = kind
        self.mode: PositionMode = mode
        self.trained = trained
        self.dim = dim
        self.register_buffer("table", TABLES[kind](trained, dim), persistent=False)
        self.told: set[Grid] = set()

    def prefix(self) -> float:
        """Of class tokens: fixed tables have no positions for them."""
        return 0.0

    def forward(self, grid: Grid) -> Tensor:
        """-> [N,D] for this grid."""
        if grid == self.trained:
            return self.table
        _tell(self, grid)
        if self.mode == "interpolate":
            return resize_table(self.table, self.trained, grid)
        return TABLES[self.kind](grid, self.dim).to(self.table)

    def extra_repr(self) -> str:
        return f"{self.kind}, trained={tuple(self.trained)}, mode={self.mode!r}"


class Learned(nn.Module):
    """A learned table (arXiv 2010.11929), also for class tokens; resized for another grid."""

    mode: PositionMode = "interpolate"

    def __init__(self, dim: int, trained: Grid, prefix: int):
        super().__init__()
        self.trained = trained
        self.first = prefix  # rows in front: positions of class tokens
        self.table = nn.Parameter(torch.empty(prefix + trained.size, dim))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.told: set[Grid] = set()

    def prefix(self) -> Tensor:
        """-> [R,D]: of class tokens."""
        return self.table[: self.first]

    def forward(self, grid: Grid) -> Tensor:
        """-> [N,D] for this grid."""
        table = self.table[self.first :]
        if grid == self.trained:
            return table
        _tell(self, grid)
        return resize_table(table, self.trained, grid)

    def extra_repr(self) -> str:
        return f"learned, trained={tuple(self.trained)}"


def positions_of(
    kind: PositionKind, dim: int, trained: Grid, mode: PositionMode, *, prefix: int = 0
) -> Positions | Learned:
    """The positions of a network; `prefix`: class tokens in front."""
    if kind != "learned":
        return Positions(kind, dim, trained, mode)
    if mode != "interpolate":
        raise TubeletError("Learned positions cannot be rebuilt: leave positions at 'interpolate'.")
    return Learned(dim, trained, prefix)


def _tell(positions: Positions | Learned, grid: Grid) -> None:
    """Says once for each grid that the table is made for another."""
    if torch.compiler.is_compiling() or grid in positions.told:
        return
    positions.told.add(grid)
    log.info(
        "positions: %s from the trained grid %s to %s (positions=%r)",
        "resized" if positions.mode == "interpolate" else "rebuilt",
        "x".join(map(str, positions.trained)),
        "x".join(map(str, grid)),
        positions.mode,
    )
