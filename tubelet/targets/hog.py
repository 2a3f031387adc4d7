"""Histograms of oriented gradients as a target (arXiv 2112.09133, section 3 and its code)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.shapes import Patch, gather


class Hog(nn.Module):
    """How strong the edges of each direction are, in cells of pixels of a token's first frame.

    Each colour has histograms of its own: `bins` directions in 180 degrees (a gradient and its
    opposite are one), hard bins, the gradient's length as weight, no weighing by distance; the
    histogram of each cell is divided by its L2 norm, with no blocks of cells and no clipping.

    The first frame of a tubelet is the one that the published network's convolution of 3 frames
    has at its centre. The published code takes normalised pixels; this one has no mean and std,
    as neither an offset nor a factor of a colour changes the result.

    The order within a token is (colour, bin, row, column of the cell), the column fastest.
    """

    EPS = 1e-12  # an empty histogram stays zero
    view = "clip"

    def __init__(self, patch: Patch, in_chans: int = 3, *, bins: int = 9, cell: int = 8):
        """`patch`: the pixels of a token; `cell`: pixels, high and wide. TubeletError where a token
        is not of whole cells."""
        super().__init__()
        side = math.gcd(patch.h, patch.w)
        if cell < 1 or side % cell:
            fit = ", ".join(str(n) for n in range(1, side + 1) if side % n == 0)
            raise TubeletError(
                f"Histograms of gradients are taken of whole cells, and tokens of {patch.h}x{patch.w} "
                f"pixels cannot be cut into cells of {cell}x{cell}: choose a patch that is a multiple "
                f"of the cell, or cells of {fit} pixels."
            )
        self.patch = patch
        self.bins = bins
        self.cell = cell
        self.width = in_chans * bins * (patch.h // cell) * (patch.w // cell)

    def forward(self, view: Tensor, asked: Tensor | None = None) -> Tensor:
        """view float [B,C,T,H,W] in [0,1], asked int64 [B,M] -> float32 [B,M,P]; None: all tokens."""
        grid = self.patch.grid_for(*view.shape[2:])
        cut = self.histograms(view).unflatten(-1, (grid.w, -1)).unflatten(-3, (grid.h, -1))
        # [B,t,C,bins,h,dy,w,dx] -> [B,t,h,w,C,bins,dy,dx]
        tokens = cut.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4).flatten(1, 3)
        return tokens if asked is None else gather(tokens, asked)

    def histograms(self, view: Tensor) -> Tensor:
        """view float [B,C,T,H,W] -> float32 [B,t,C,bins,cell rows,cell columns].

        No operation here is one that autocast lowers.
        """
        frames = view[:, :, :: self.patch.t].transpose(1, 2).float()
        across, down = gradients(frames.flatten(0, 1))
        length = torch.hypot(across, down)
        # The arguments in this order: the angle is from the vertical, as published.
        angle = torch.atan2(across, down) / math.pi * self.bins
        at = angle.floor().remainder(self.bins)  # 180 degrees, the last edge, is 0 again
        # One bin at a time: a ninth of the memory of all together.
        counts = [self._by_cell(length * (at == i)) for i in range(self.bins)]
        histograms = F.normalize(torch.stack(counts, 2), dim=2, eps=self.EPS)
        return histograms.unflatten(0, frames.shape[:2])

    def _by_cell(self, x: Tensor) -> Tensor:
        """[n,C,H,W] -> [n,C,H/cell,W/cell]: sums."""
        return x.unflatten(-1, (-1, self.cell)).unflatten(-3, (-1, self.cell)).sum((-3, -1))


def gradients(frames: Tensor) -> tuple[Tensor, Tensor]:
    """[n,C,H,W] -> Sobel's, left minus right and top minus bottom, [n,C,H,W]; edges are mirrored.

    As two passes each, smoothed and then subtracted: along a plain stretch they are exactly zero,
    where a sum of six products would leave its rounding as a direction.
    """
    x = F.pad(frames, (1, 1, 1, 1), mode="reflect")
    rows = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    columns = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    return rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]
