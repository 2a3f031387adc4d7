"""Histograms of gradients are the published ones.

Of golden/maskfeat_pretrain only `io.safetensors` is here, whole: the network that made the rest of
its numbers needs another backbone. Without a config.json it is no case of tests/parity.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.shapes import Patch
from tubelet.targets.hog import Hog

GOLDEN = Path(__file__).parents[1] / "golden/maskfeat_pretrain/io.safetensors"
TOLERANCE = 1e-5
AT_EDGES = 0.001  # of the cells: a gradient exactly on the edge of a bin may fall on either side


def loops(
    clip: Tensor,
    patch: Patch,
    bins: int = 9,
    cell: int = 8,
    colour: str = "rgb",
    frames: str = "centre",
    normalise: bool = True,
) -> np.ndarray:
    """clip [C,T,H,W] -> [N,P], pixel by pixel, in float64."""
    pixels = clip.double().numpy()
    if colour == "grey":
        pixels = np.einsum("c...,c->...", pixels, [0.299, 0.587, 0.114])[None]
    x = np.pad(pixels, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    colours, length, height, width = pixels.shape
    smooth, down = np.array([1, 2, 1]), np.array([1, 0, -1])
    sums = np.zeros((colours, length, height // cell, width // cell, bins))
    for c, t, i, j in np.ndindex(colours, length, height, width):
        around = x[c, t, i : i + 3, j : j + 3]
        gx, gy = smooth @ around @ down, down @ around @ smooth
        degrees = math.degrees(math.atan2(gx, gy)) % 180
        at = int(degrees / (180 / bins)) % bins
        sums[c, t, i // cell, j // cell, at] += math.sqrt(gx**2 + gy**2)
    if normalise:
        sums /= np.linalg.norm(sums, axis=-1, keepdims=True)
    rows, columns = patch.h // cell, patch.w // cell
    taken = patch.t if frames == "all" else 1
    tokens: list[list[Any]] = []
    for t, i, j in np.ndindex(length // patch.t, height // patch.h, width // patch.w):
        tokens.append(
            [
                sums[c, t * patch.t + u, i * rows + dy, j * columns + dx, b]
                for u, c, b, dy, dx in np.ndindex(taken, colours, bins, rows, columns)
            ]
        )
    return np.array(tokens)


def test_the_published_maps_and_targets() -> None:
    io = load_file(GOLDEN)
    clip = io["clip"] * 0.225 + 0.45  # the stored one is normalised
    target = Hog(Patch(2, 16, 16))
    maps = target.histograms(clip)
    assert maps.shape == io["hog_map"].shape == (2, 4, 3, 9, 8, 8)
    differ = (maps - io["hog_map"]).abs().amax(3) > TOLERANCE * io["hog_map"].abs().max()
    assert differ.float().mean() <= AT_EDGES
    mask = io["mask"].repeat_interleave(2, 2).repeat_interleave(2, 3)  # 2x2 tokens each
    found = target(clip)[mask.flatten(1).bool()]
    assert found.shape == io["target"].shape == (64, target.width)
    differ = (found - io["target"]).abs().unflatten(1, (3, 9, 4)).amax(2)
    assert (differ > TOLERANCE * io["target"].abs().max()).float().mean() <= AT_EDGES


def test_the_numbers_of_a_picture_made_by_formula() -> None:
    """Of the published code for this picture, to the five digits that are known."""
    y, x = torch.meshgrid(torch.arange(224.0), torch.arange(224.0), indexing="ij")
    red = torch.sin(x / 7) + 0.5 * torch.cos(y / 11)
    picture = torch.stack([red, torch.cos((x + 2 * y) / 13), ((3 * x + 5 * y) % 17) / 17])
    target = Hog(Patch(1, 16, 16))
    found = target.histograms(picture[None, :, None])[0, 0]
    expected = {
        (0, 0, 0): [0.02189, 0, 0, 0, 0.93992, 0.34070, 0, 0, 0],
        (1, 0, 0): [0.09820, 0.99467, 0, 0, 0.03142, 0, 0, 0, 0],
        (2, 0, 0): [0.94235, 0.14555, 0, 0.24258, 0.11648, 0, 0, 0.13560, 0],
        (0, 13, 20): [
            *(0.07229, 0.02128, 0.13007, 0.13426, 0.58643, 0.77676, 0.10293, 0.03904, 0),
        ],
        (2, 13, 20): [0.94432, 0.17539, 0, 0.21924, 0, 0, 0, 0.17158, 0],
    }
    for (colour, row, column), values in expected.items():
        given = found[colour, :, row, column].tolist()
        assert given == pytest.approx(values, abs=6e-6)
    assert float(found.sum()) == pytest.approx(3070.274, abs=1e-3)
    assert float(found.square().sum()) == pytest.approx(3 * 784, rel=TOLERANCE)
    token = target(picture[None, :, None])[0, 0]
    expected_token = [0.02189, 0.08181, 0.04573, 0.19174, 0, 0.02487, 0, 0.21729, 0, 0.15042, 0]
    assert token[:12].tolist() == pytest.approx([*expected_token, 0.54723], abs=6e-6)


@pytest.mark.parametrize(
    ("patch", "bins", "cell"),
    [((2, 16, 16), 9, 8), ((2, 8, 8), 9, 8), ((1, 16, 8), 9, 8), ((4, 8, 12), 6, 4)],
    ids=str,
)
def test_against_loops(patch: tuple[int, int, int], bins: int, cell: int) -> None:
    clip = torch.rand(2, 4, 32, 24 if patch[2] == 12 else 16)
    target = Hog(Patch(*patch), in_chans=2, bins=bins, cell=cell)
    found, expected = target(clip[None])[0], loops(clip, target.patch, bins, cell)
    assert found.dtype is torch.float32
    assert found.shape == expected.shape and found.shape[1] == target.width
    np.testing.assert_allclose(found.numpy(), expected, atol=TOLERANCE)


VARIANTS: dict[str, tuple[dict[str, Any], int]] = {  # options, width
    "grey": ({"colour": "grey"}, 36),
    "one bin": ({"bins": 1, "normalise": False}, 12),
    "12 bins": ({"bins": 12}, 144),
    "cells of 4": ({"cell": 4}, 432),
    "cells of 16": ({"cell": 16}, 27),
    "no normalisation": ({"normalise": False}, 108),
    "all frames": ({"frames": "all"}, 216),
    "all together": (
        {"colour": "grey", "frames": "all", "normalise": False, "bins": 6, "cell": 4},
        192,
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_paper_against_loops(variant: str) -> None:
    options, width = VARIANTS[variant]
    clip = torch.rand(3, 4, 16, 32)
    target = Hog(Patch(2, 16, 16), **options)
    found, expected = target(clip[None])[0], loops(clip, target.patch, **options)
    assert found.shape == expected.shape == (4, width) and target.width == width
    np.testing.assert_allclose(found.numpy(), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("variant", [{}, VARIANTS["all together"][0]], ids=["published", "other"])
def test_compiled_it_is_one_graph_and_the_same(variant: dict[str, Any]) -> None:
    """There the sums are taken bin by bin, as on a GPU."""
    target = Hog(Patch(2, 16, 16), **variant)
    compiled = torch.compile(target, fullgraph=True, backend="eager")
    for clip in (torch.rand(2, 3, 4, 32, 16), torch.full((2, 3, 4, 32, 16), 0.3)):
        torch.testing.assert_close(compiled(clip), target(clip), rtol=1e-6, atol=1e-6)


def test_how_many_clips_are_taken_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = torch.rand(5, 3, 2, 16, 16)
    target = Hog(Patch(1, 16, 16))
    together = target(clips)
    for pixels in (1, 2 * 3 * 2 * 16 * 16):  # one by one; two and two and the one that is left
        monkeypatch.setattr(Hog, "AT_ONCE", pixels)
        assert torch.equal(target(clips), together)


def test_a_pixel_that_is_no_number_is_seen_in_its_cell() -> None:
    clip = torch.rand(1, 1, 1, 16, 16)
    clip[..., 3, 3] = torch.nan
    empty = Hog(Patch(1, 8, 8), 1)(clip).isnan().any(-1)
    assert empty.tolist() == [[True, False, False, False]]


def test_asked_tokens_are_those_of_all() -> None:
    clip = torch.rand(2, 3, 4, 32, 32)
    target = Hog(Patch(2, 8, 8))
    asked = torch.tensor([[3, 31, 0], [7, 7, 16]])
    every = target(clip)
    assert every.shape == (2, 32, 27)
    expected = torch.stack([every[i, rows] for i, rows in enumerate(asked)])
    assert torch.equal(target(clip, asked), expected)


def test_only_the_first_frame_of_a_tubelet_counts() -> None:
    clip = torch.rand(1, 3, 4, 16, 16)
    other = clip.clone()
    other[:, :, 1::2] = torch.rand(1, 3, 2, 16, 16)
    target = Hog(Patch(2, 16, 16))
    assert torch.equal(target(other), target(clip))


def test_opposite_edges_are_one_and_brightness_and_contrast_do_not_matter() -> None:
    clip = torch.rand(1, 3, 2, 32, 32)
    target = Hog(Patch(2, 16, 16))
    torch.testing.assert_close(target(1 - clip), target(clip), atol=TOLERANCE, rtol=0)
    contrast = torch.tensor([0.3, 0.5, 2.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(target(clip * contrast + 0.1), target(clip), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.3, 1 / 3, 200 / 255])
def test_a_plain_picture_has_no_edges(value: float) -> None:
    assert not Hog(Patch(2, 16, 16))(torch.full((1, 3, 2, 32, 32), value)).any()


def test_autocast_does_not_change_it() -> None:
    clip = torch.rand(1, 3, 2, 32, 32)
    target = Hog(Patch(2, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        found = target(clip)
    assert found.dtype is torch.float32 and torch.equal(found, target(clip))


@pytest.mark.parametrize("patch", [(2, 14, 14), (2, 4, 4), (2, 16, 12)])
def test_tokens_that_are_not_of_whole_cells(patch: tuple[int, int, int]) -> None:
    _, high, wide = patch
    with pytest.raises(TubeletError, match=rf"{high}x{wide} pixels cannot be cut .*of 8x8"):
        Hog(Patch(*patch))


@pytest.mark.parametrize("cell", [0, 8])
def test_the_cells_that_would_fit_are_named(cell: int) -> None:
    with pytest.raises(TubeletError, match=r"or cells of 1, 2, 7, 14 pixels\."):
        Hog(Patch(2, 14, 14), cell=cell)


@pytest.mark.parametrize("bins", [0, -9])
def test_without_bins_there_is_no_histogram(bins: int) -> None:
    with pytest.raises(
        TubeletError, match=rf"at least 1 bin .*, got bins={bins}: choose 1 or more"
    ):
        Hog(Patch(2, 16, 16), bins=bins)


def test_there_is_no_luma_of_one_channel() -> None:
    with pytest.raises(TubeletError, match=r"of 3 colours .* have 1: choose colour=\"rgb\""):
        Hog(Patch(2, 16, 16), 1, colour="grey")
