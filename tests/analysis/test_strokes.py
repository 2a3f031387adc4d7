"""Strokes lie along the edges of the picture, and are as bright as the histograms say."""

import math

import pytest
import torch
from torch import Tensor

from tubelet.analysis import strokes
from tubelet.shapes import Patch
from tubelet.targets.hog import Hog


def edge(degrees: float, size: int = 64) -> Tensor:
    """[1,3,1,size,size]: dark on one side of a soft straight line through the middle, bright on the
    other. The line runs along (cos, sin), x to the right and y downwards."""
    y, x = torch.meshgrid(*[torch.arange(size) - (size - 1) / 2] * 2, indexing="ij")
    angle = math.radians(degrees)
    beside = y * math.cos(angle) - x * math.sin(angle) if degrees else y
    return (beside / 2).sigmoid().expand(1, 3, 1, -1, -1)


def direction(picture: Tensor) -> float:
    """Degrees from 0 to 180 of the long axis of what is bright, by its second moments."""
    y, x = torch.meshgrid(*(torch.arange(n) for n in picture.shape), indexing="ij")
    points = torch.stack([x, y], -1).flatten(0, 1).double()
    weight = (picture.flatten() / picture.sum()).double()[:, None]
    spread = points - (points * weight).sum(0)
    _, vectors = torch.linalg.eigh((spread * weight).T @ spread)
    return math.degrees(math.atan2(vectors[1, -1], vectors[0, -1])) % 180


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 110, 135, 150, 170])
def test_a_stroke_lies_along_the_edge(degrees: float) -> None:
    hog = Hog(Patch(1, 16, 16))
    clip = edge(degrees)
    histograms = strokes.histograms_of(hog(clip)[0], hog, hog.patch.grid_for(1, 64, 64))
    # The cell below and right of the middle: that of the line itself.
    one = strokes.draw(histograms[..., 4:5, 4:5], 32)[0]
    off = abs(direction(one) - degrees)
    assert min(off, 180 - off) <= 10.5  # half a bin, and the pixels of the stroke


def test_a_stroke_of_each_bin_is_drawn_at_its_middle() -> None:
    found = [direction(glyph) for glyph in strokes.glyphs(9, 33)]
    for bin_, degrees in enumerate(found):
        assert degrees == pytest.approx(180 - (20 * bin_ + 10), abs=0.5)


@pytest.mark.parametrize(
    "options", [{}, {"colour": "grey"}, {"frames": "all"}, {"cell": 4, "bins": 5}]
)
def test_tokens_become_the_maps_they_were_cut_from(options) -> None:
    clip = torch.rand(1, 3, 4, 32, 48, generator=torch.Generator().manual_seed(0))
    hog = Hog(Patch(2, 16, 8), **options)
    grid = hog.patch.grid_for(4, 32, 48)
    assert torch.equal(strokes.histograms_of(hog(clip)[0], hog, grid), hog.histograms(clip)[0])


def test_brightness_is_the_weight_and_crossing_strokes_do_not_add() -> None:
    histograms = torch.zeros(1, 3, 9, 1, 2)
    histograms[0, :, 4, 0, 0] = 1.0  # vertical, in all colours
    histograms[0, :2, 4, 0, 1] = 0.6
    histograms[0, 0, 0, 0, 1] = 0.6
    histograms[0, :, 7, 0, 1] = -5.0
    left, right = strokes.draw(histograms, 17)[0].split(17, 1)
    assert left[8, 8] == 1
    assert left[:, :6].max() == 0
    assert right[8, 8] == pytest.approx(0.4)  # two colours of three
    assert direction(right) == pytest.approx(90, abs=30)
    assert strokes.draw(-histograms.abs(), 17).max() == 0
