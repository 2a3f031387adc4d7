"""Histograms of oriented gradients as a target (arXiv 2112.09133, section 3 and its code)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.shapes import Patch, gather


class Hog(nn.Module):
    """How strong the edges of each direction are, in cells of pixels.

    `bins` directions in 180 degrees (a gradient and its opposite are one), hard bins, the gradient's
    length as weight, no weighing by distance; the histogram of each cell is divided by its L2 norm,
    with no blocks of cells and no clipping. The defaults are the published ones. Others of the
    paper's study:

    `colour`: "rgb", each colour has histograms of its own; "grey", one of the luma (BT.601).
    `frames`: "centre", the first frame of each tubelet, the one that the published network's
    convolution of 3 frames has at its centre; "all" of a tubelet.
    `normalise`: divide by the norm; otherwise lengths are summed, of pixels in [0,1].

    The published code takes normalised pixels; this one has no mean and std, as neither an offset
    nor a factor of a colour changes a histogram that is divided by its norm.

    The order within a token is (frame, colour, bin, row, column of the cell), the column fastest.
    """

    EPS = 1e-12  # an empty histogram stays zero
    LUMA = (0.299, 0.587, 0.114)  # BT.601
    # Pixels, so that what is made of them stays in a processor's cache. Fewer would be a little faster
    # on an idle machine, but where others use its cores too, each operation's threads wait for them.
    AT_ONCE = 2**21
    view = "clip"

    def __init__(
        self,
        patch: Patch,
        in_chans: int = 3,
        *,
        bins: int = 9,
        cell: int = 8,
        colour: Literal["rgb", "grey"] = "rgb",
        frames: Literal["centre", "all"] = "centre",
        normalise: bool = True,
    ):
        """`patch`: the pixels of a token; `cell`: pixels, high and wide. TubeletError where a token
        is not of whole cells, where there is no bin, and for the luma of other than 3 colours."""
        super().__init__()
        side = math.gcd(patch.h, patch.w)
        if cell < 1 or side % cell:
            fit = ", ".join(str(n) for n in range(1, side + 1) if side % n == 0)
            raise TubeletError(
                f"Histograms of gradients are taken of whole cells, and tokens of {patch.h}x{patch.w} "
                f"pixels cannot be cut into cells of {cell}x{cell}: choose a patch that is a multiple "
                f"of the cell, or cells of {fit} pixels."
            )
        if bins < 1:
            raise TubeletError(
                f"A histogram of gradients has at least 1 bin of directions, got bins={bins}: "
                "choose 1 or more (published: 9)."
            )
        if colour == "grey" and in_chans != len(self.LUMA):
            raise TubeletError(
                f"The luma is of 3 colours (red, green, blue), and clips here have {in_chans}: "
                'choose colour="rgb", which gives each channel a histogram of its own.'
            )
        self.patch = patch
        self.bins = bins
        self.cell = cell
        self.colour = colour
        self.stride = patch.t if frames == "centre" else 1
        self.normalise = normalise
        colours = 1 if colour == "grey" else in_chans
        cells = (patch.h // cell) * (patch.w // cell)
        self.width = patch.t // self.stride * colours * bins * cells

    def forward(self, view: Tensor, asked: Tensor | None = None) -> Tensor:
        """view float [B,C,T,H,W] in [0,1], asked int64 [B,M] -> float32 [B,M,P]; None: all tokens."""
        grid = self.patch.grid_for(*view.shape[2:])
        maps = self.histograms(view).unflatten(1, (grid.t, -1))
        cut = maps.unflatten(-1, (grid.w, -1)).unflatten(-3, (grid.h, -1))
        # [B,t,u,C,bins,h,dy,w,dx] -> [B,t,h,w,u,C,bins,dy,dx]
        tokens = cut.permute(0, 1, 5, 7, 2, 3, 4, 6, 8).flatten(4).flatten(1, 3)
        return tokens if asked is None else gather(tokens, asked)

    def histograms(self, view: Tensor) -> Tensor:
        """view float [B,C,T,H,W] -> float32 [B,frames,colours,bins,cell rows,cell columns].

        The frames are those of the target. No operation here is one that autocast lowers.
        """
        frames = view[:, :, :: self.stride].transpose(1, 2)
        if view.device.type == "cpu" and not torch.compiler.is_compiling():
            parts = frames.split(max(1, self.AT_ONCE // frames[0].numel()))
            sums = torch.cat([self._scattered(self._planes(x)) for x in parts])
        else:
            sums = self._bin_by_bin(self._planes(frames))
        if self.normalise:
            sums = F.normalize(sums, dim=-1, eps=self.EPS)
        return sums.unflatten(0, (*frames.shape[:2], -1)).movedim(-1, 3)

    def _planes(self, frames: Tensor) -> Tensor:
        """[n,frames,C,H,W] -> float32 [n * frames * colours,H,W]."""
        x = frames.float()
        if self.colour == "grey":
            red, green, blue = (x[:, :, i] * weight for i, weight in enumerate(self.LUMA))
            return (red + green + blue).flatten(0, 1)
        return x.flatten(0, 2)

    def _scattered(self, planes: Tensor) -> Tensor:
        """[n,H,W] -> sums [n,H/cell,W/cell,bins].

        A row of cells is one stretch of memory, so each pixel's length is added straight to its
        cell's bin. On a CPU in a fixed order; on a GPU the order would change from run to run.
        """
        length, slot = slots(planes, self.bins)
        columns, size = planes.shape[-1] // self.cell, self.bins + 1
        first = torch.arange(0.0, columns * size, size).repeat_interleave(self.cell)
        at = slot.add_(first).long()
        rows = (-1, self.cell)
        sums = planes.new_zeros(len(planes), planes.shape[1] // self.cell, columns * size)
        sums.scatter_add_(2, at.unflatten(1, rows).flatten(2), length.unflatten(1, rows).flatten(2))
        sums = sums.unflatten(-1, (columns, size))
        sums[..., 0] += sums[..., self.bins]
        return sums[..., : self.bins]

    def _bin_by_bin(self, planes: Tensor) -> Tensor:
        """The same in a fixed order on every device; a compiler can make one pass of it."""
        length, slot = slots(planes, self.bins)
        at = slot.remainder(self.bins)
        cells = (-1, self.cell)
        sums = [
            (length * (at == i)).unflatten(-1, cells).unflatten(-3, cells).sum((-3, -1))
            for i in range(self.bins)
        ]
        return torch.stack(sums, -1)


def slots(planes: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """[n,H,W] -> each gradient's length and the number of its bin, float, [n,H,W].

    The angle is from the vertical, as published; 180 degrees are number `bins`, which is bin 0.
    By the arctangent of the ratio, which knows no sign and takes a third of the time of atan2. It
    is not a number where there is no gradient: that counts nothing, in bin 0. At 0 degrees rounding
    could leave it below 0.
    """
    across, down = gradients(planes)
    slot = (down / across).atan_().mul_(-bins / math.pi).add_(bins / 2).floor_()
    length = (across * across).addcmul_(down, down).sqrt_()
    return length, slot.nan_to_num_(0.0).clamp_min_(0.0)


def gradients(planes: Tensor) -> tuple[Tensor, Tensor]:
    """[n,H,W] -> Sobel's, left minus right and top minus bottom, [n,H,W]; edges are mirrored.

    As two passes each, smoothed and then subtracted: along a plain stretch they are exactly zero,
    where a sum of six products would leave its rounding as a direction.
    """
    x = F.pad(planes, (1, 1, 1, 1), mode="reflect")
    rows = (x[..., :-2, :] + x[..., 2:, :]).add_(x[..., 1:-1, :], alpha=2)
    columns = (x[..., :-2] + x[..., 2:]).add_(x[..., 1:-1], alpha=2)
    return rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]
