"""Predicted pixels back in their clip.

A model that predicts *normalised* pixels says nothing about the colour and contrast of a hidden
tubelet. Filling in the true ones, as the script published with arXiv 2203.12602 does, makes any
model look good, a random one too. Here they are estimated from what is visible, unless `oracle`
asks for the true ones.
"""

from __future__ import annotations

from math import log10

import torch
from torch import Tensor

from tubelet.analysis import colours
from tubelet.shapes import Masks, gather, patchify, unpatchify
from tubelet.targets.pixels import Pixels


def compose(
    target: Pixels, clip: Tensor, masks: Masks, cubes: Tensor, *, oracle: bool = False
) -> Tensor:
    """clip float [B,C,T,H,W] in [0,1], predictions [B,M,C,pt,ph,pw] -> the clip with these in it.

    One mask for each clip. Without `oracle` the result does not depend on hidden pixels, bit for
    bit: normalised predictions get their colour and contrast from visible tubelets (`colours`).
    """
    asked, hidden = masks.asked[:, 0], masks.hidden[:, 0]
    grid = target.patch.grid_for(*clip.shape[2:])
    patches = patchify(clip, target.patch)
    if target.normalise:
        # Not `masks.keep`: a backbone that replaces hidden tokens keeps them all.
        visible = (~hidden).nonzero()[:, 1].view(len(clip), -1)
        seen = gather(patches, asked if oracle else visible).flatten(3)
        mean, std = target.statistics(target.standardised(seen))
        if not oracle:
            weights = colours.nearness(grid, visible, asked)
            mean, std = (torch.einsum("bmk,bkco->bmco", weights, x) for x in (mean, std))
        cubes = cubes * std[..., None, None] + mean[..., None, None]
    cubes = target.coloured(cubes.flatten(3)).view_as(cubes)
    index = asked.view(*asked.shape, 1, 1, 1, 1).expand_as(cubes)
    patches = patches.scatter(1, index, cubes)
    if target.normalise and not oracle:
        patches = colours.continued(patches, hidden, grid)
    return unpatchify(patches, grid).clamp(0, 1)


def psnr(made: Tensor, true: Tensor, where: Tensor) -> float:
    """Two clips [C,T,H,W] in [0,1], bool [1,T,H,W] -> decibels over the pixels `where`."""
    error = float((made - true)[where.expand_as(true)].square().mean())
    return 10 * log10(1 / error) if error > 0 else float("inf")
