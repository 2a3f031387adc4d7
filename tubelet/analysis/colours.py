"""Colour and contrast of hidden tubelets, from what is visible and what is predicted.

A prediction of normalised pixels has neither. Its contrast, and a first guess of its colour, come
from the visible tubelets around it; then colours move until tubelets continue each other across
their borders, which the predictions inside decide. Ours; docs/reconstruction.md has numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tubelet.shapes import Grid

GUESS = 0.02  # weight of the first guess beside that of a border
TIME = 0.3  # weight of a border in time beside one in space: what moves does not continue
ROUNDS = 300  # enough for colours to cross a grid of some 20 tubelets


def nearness(grid: Grid, keep: Tensor, asked: Tensor) -> Tensor:
    """keep [B,K], asked [B,M] -> weights float32 [B,M,K], rows adding up to 1.

    Inverse distance to the fourth power on the token grid, a step in time counting as half a step
    in space. The nearest visible tubelets decide.
    """
    axes = [torch.arange(n, device=keep.device, dtype=torch.float32) for n in grid]
    places = torch.cartesian_prod(axes[0] / 2, axes[1], axes[2])
    square = (places[asked][:, :, None] - places[keep][:, None]).square().sum(-1)
    weights = 1 / square.clamp(min=1e-6).square()
    return weights / weights.sum(-1, keepdim=True)


def continued(patches: Tensor, hidden: Tensor, grid: Grid) -> Tensor:
    """patches [B,N,C,pt,ph,pw], hidden bool [B,N] -> the same, hidden ones moved in colour.

    Least squares, by Jacobi's rounds: the mean of a tubelet's border equals that of its
    neighbour's, where they touch; with little weight, a colour stays as it was. Visible tubelets
    do not move.
    """
    cells = patches.unflatten(1, tuple(grid))
    movable = hidden.unflatten(1, tuple(grid))[..., None]
    pairs: list[tuple[int, int, float, Tensor]] = []
    for axis, count in enumerate(grid):
        if count < 2:
            continue
        # What the border of the one lacks to that of the next one, [B,t,h,w,C] less one in `axis`.
        first, last = (cells.select(axis + 5, at).mean((-1, -2)) for at in (0, -1))
        step = last.narrow(axis + 1, 0, count - 1) - first.narrow(axis + 1, 1, count - 1)
        pairs.append((axis + 1, count - 1, 1.0 if axis else TIME, step))
    move = torch.zeros_like(cells[..., 0, 0, 0])  # added to all pixels of a tubelet
    weight = torch.full_like(move, GUESS)
    for axis, count, share, _ in pairs:
        weight.narrow(axis, 0, count).add_(share)
        weight.narrow(axis, 1, count).add_(share)
    for _ in range(ROUNDS):
        total = torch.zeros_like(move)
        for axis, count, share, step in pairs:
            total.narrow(axis, 1, count).add_((move.narrow(axis, 0, count) + step) * share)
            total.narrow(axis, 0, count).add_((move.narrow(axis, 1, count) - step) * share)
        move = torch.where(movable, total / weight, 0.0)
    return (cells + move[..., None, None, None]).flatten(1, 3)
