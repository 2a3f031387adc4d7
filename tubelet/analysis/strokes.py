"""Histograms of gradients as pictures: in each cell a stroke along every edge that it holds."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from tubelet.shapes import Grid
from tubelet.targets.hog import Hog

THICK = 0.11  # of a stroke, in cells


def histograms_of(tokens: Tensor, target: Hog, grid: Grid) -> Tensor:
    """[N,P] in the target's order -> [frames,C,bins,cell rows,cell columns]: what `Hog` cut, whole."""
    frames = target.patch.t // target.stride
    high, wide = target.patch.h // target.cell, target.patch.w // target.cell
    cut = tokens.view(*grid, frames, -1, target.bins, high, wide)
    return cut.permute(0, 3, 4, 5, 1, 6, 2, 7).flatten(6, 7).flatten(4, 5).flatten(0, 1)


def draw(histograms: Tensor, size: int) -> Tensor:
    """[n,C,bins,rows,columns] -> brightness [n,rows*size,columns*size] in [0,1]; cells of `size` pixels.

    A stroke is as bright as its direction weighs, over the colours' mean: 1 where a cell has no
    other in any colour. Where strokes cross, the brightest is seen. Negative weights, which only
    predictions have, are not drawn.
    """
    weights = histograms.mean(1).clamp(0, 1)
    page = weights.new_zeros(len(weights), weights.shape[2], size, weights.shape[3], size)
    for bin_, glyph in enumerate(glyphs(weights.shape[1], size).to(weights)):
        stroke = weights[:, bin_, :, None, :, None] * glyph[:, None]
        page = torch.maximum(page, stroke)
    return page.flatten(3, 4).flatten(1, 2)


def glyphs(bins: int, size: int) -> Tensor:
    """-> [bins,size,size] in [0,1]: a stroke through the middle for each direction, rows downwards.

    The angle of a bin is atan2(across, down) of the gradient (see `Hog`), so from the vertical: in
    a picture whose rows go down the gradient points along (x, y) = (sin, cos) of it, and the edge,
    which is at right angles to it, runs along (cos, -sin). A bin is drawn at its middle.
    """
    angle = ((torch.arange(bins) + 0.5) * pi / bins)[:, None, None]
    y, x = torch.meshgrid(*[torch.arange(size) - (size - 1) / 2] * 2, indexing="ij")
    beside = (x * angle.sin() + y * angle.cos()).abs()
    along = (x * angle.cos() - y * angle.sin()).abs()
    # Pixels that the stroke's outline cuts are lit in part.
    thin = (max(1.0, THICK * size) / 2 + 0.5 - beside).clamp(0, 1)
    return thin * (size / 2 - 0.5 - along).clamp(0, 1)
