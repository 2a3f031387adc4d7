"""Estimated colours against slow formulas."""

import numpy as np
import pytest
import torch

from tubelet import masks
from tubelet.analysis import colours
from tubelet.shapes import Grid, Patch, patchify

GRID = Grid(3, 4, 5)


def test_nearness_equals_a_slow_formula() -> None:
    hidden = masks.random(GRID, np.random.default_rng(2), mask_ratio=0.8)
    keep, asked = ((~hidden).nonzero()[:, 0], hidden.nonzero()[:, 0])
    weights = colours.nearness(GRID, keep[None], asked[None])[0]

    def place(n: int) -> np.ndarray:
        return np.array([n // 20 / 2, n // 5 % 4, n % 5])

    for m, here in enumerate(asked.tolist()):
        raw = [np.sum((place(here) - place(there)) ** 2) ** -2.0 for there in keep.tolist()]
        assert weights[m].tolist() == pytest.approx((np.array(raw) / sum(raw)).tolist(), rel=1e-5)


def test_continued_solves_the_least_squares_problem() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(1, 60, 2, 2, 4, 4, generator=generator, dtype=torch.float64)
    hidden = masks.random(GRID, np.random.default_rng(1), mask_ratio=0.6)[None]
    found = (colours.continued(patches, hidden, GRID) - patches)[0, :, :, 0, 0, 0]

    # One row an equation: moves of two neighbours make their borders meet; moves stay small.
    rows, sides = [], []
    for n in range(60):
        t, h, w = n // 20, n // 5 % 4, n % 5
        keep = torch.zeros(60, dtype=torch.float64)
        keep[n] = colours.GUESS**0.5 if hidden[0, n] else 1e6  # visible ones do not move
        rows.append(keep)
        sides.append(torch.zeros(2, dtype=torch.float64))
        for axis, (after, there) in enumerate(((20, t < 2), (5, h < 3), (1, w < 4))):
            if not there:
                continue
            scale = colours.TIME**0.5 if axis == 0 else 1.0
            row = torch.zeros(60, dtype=torch.float64)
            row[n], row[n + after] = scale, -scale
            last = patches[0, n].select(axis + 1, -1).mean((-1, -2))
            first = patches[0, n + after].select(axis + 1, 0).mean((-1, -2))
            rows.append(row)
            sides.append((first - last) * scale)
    expected = torch.linalg.lstsq(torch.stack(rows), torch.stack(sides)).solution
    assert torch.allclose(found, expected, atol=1e-6)
    assert bool((found[~hidden[0]] == 0).all())
    assert float(found.abs().max()) > 0.05


def test_a_slope_is_continued_where_neighbours_know_nothing_of_it() -> None:
    slope = torch.linspace(0, 1, 80).expand(1, 1, 2, 8, 80)
    patch = Patch(2, 8, 8)
    true = patchify(slope, patch)
    hidden = torch.tensor([[False] + [True] * 8 + [False]])
    nearest = torch.tensor([0] * 5 + [9] * 5)
    middle = true.mean((-1, -2, -3), keepdim=True)
    first = true - middle + middle[:, nearest]  # each has the colour of the nearest visible one
    made = colours.continued(first, hidden, Grid(1, 1, 10))
    before, after = (float((x - true).abs().mean()) for x in (first, made))
    assert after < 0.2 * before
