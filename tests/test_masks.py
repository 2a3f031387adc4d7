from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tubelet import masks
from tubelet.errors import TubeletError
from tubelet.shapes import Grid

GRID = Grid(8, 14, 14)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.9, 1408), (0.75, 1176), (0.95, 1488)])
def test_tube_hides_the_published_count_and_repeats_over_time(ratio: float, hidden: int) -> None:
    mask = masks.tube(GRID, rng(), mask_ratio=ratio)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == hidden
    slots = mask.view(8, 196)
    assert (slots == slots[0]).all()


def test_random_hides_the_published_count_regardless_of_time() -> None:
    mask = masks.random(GRID, rng(), mask_ratio=0.9)
    assert int(mask.sum()) == 1411
    slots = mask.view(8, 196)
    assert not (slots == slots[0]).all()


def test_frame_hides_whole_slots() -> None:
    slots = masks.frame(GRID, rng(), mask_ratio=0.75).view(8, 196)
    assert (slots.all(1) | ~slots.any(1)).all()
    assert int(slots.all(1).sum()) == 6


@pytest.mark.parametrize("draw", [masks.tube, masks.random, masks.frame])
def test_each_cell_is_hidden_equally_often(draw) -> None:
    generator, grid = rng(1), Grid(4, 4, 4)
    draws = torch.stack([draw(grid, generator, mask_ratio=0.5) for _ in range(2000)]).float()
    # Deviation of a mean of 2000 Bernoulli(0.5) draws: 0.011.
    assert (draws.mean(0) - 0.5).abs().max() < 0.06


def test_a_ratio_is_not_lost_to_rounding() -> None:
    assert int(masks.random(Grid(1, 10, 10), rng(), mask_ratio=0.29).sum()) == 29


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, 0.01])
def test_a_ratio_that_hides_nothing_or_all_is_refused_with_the_range(ratio: float) -> None:
    with pytest.raises(TubeletError, match=r"Choose mask_ratio from 0\.0625 to 0\.9375"):
        masks.tube(Grid(2, 4, 4), rng(), mask_ratio=ratio)


def test_pack_gives_indices_of_both_sides() -> None:
    hidden = torch.tensor([[[1, 0, 1, 0], [0, 1, 1, 0]]]).bool()
    packed = masks.pack(hidden)
    assert packed.keep.tolist() == [[[1, 3], [0, 3]]]
    assert packed.asked.tolist() == [[[0, 2], [1, 2]]]
    assert packed.weight.tolist() == [[[1, 1], [1, 1]]]


def test_asked_but_visible_weighs_nothing() -> None:
    hidden = torch.tensor([[[1, 0, 1, 0]]]).bool()
    packed = masks.pack(hidden, torch.tensor([[[1, 1, 0, 0]]]).bool())
    assert packed.asked.tolist() == [[[0, 1]]]
    assert packed.weight.tolist() == [[[1, 0]]]


def test_pack_refuses_unequal_rows() -> None:
    hidden = torch.tensor([[[1, 0, 1, 0]], [[1, 1, 1, 0]]]).bool()
    with pytest.raises(TubeletError, match="one row asks for 2 tokens and another 3, of 4"):
        masks.pack(hidden)


def test_as_masks_takes_booleans_and_indices() -> None:
    hidden = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]).bool()
    for mask in (hidden, hidden[:, None], torch.tensor([[1, 3], [0, 2]])):
        packed = masks.as_masks(mask, 4)
        assert torch.equal(packed.hidden[:, 0], hidden)
        assert packed.keep.tolist() == [[[1, 3]], [[0, 2]]]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.zeros(2, 5).bool(), "N = 4"),
        (torch.tensor([[1, 4]]), "numbered 0 to 3; got 1 to 4"),
        (torch.zeros(4).bool(), "N = 4"),
    ],
)
def test_as_masks_says_what_it_expects(mask: torch.Tensor, said: str) -> None:
    with pytest.raises(TubeletError, match=said):
        masks.as_masks(mask, 4)


GOLDEN = Path(__file__).parent / "golden/videomae_v2_masks/running_cell.safetensors"


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_running_cells_are_the_published_ones_in_all_four_phases(ratio: float) -> None:
    grid = Grid(4, 4, 4)
    drawn = [masks.running_cell(grid, rng(seed), mask_ratio=ratio) for seed in range(40)]
    phases = sorted({mask.to(torch.uint8).numpy().tobytes() for mask in drawn})
    published = load_file(GOLDEN)[f"running_cell.{ratio:g}"]
    assert phases == [phase.numpy().tobytes() for phase in published]


def test_running_cells_leave_out_each_place_equally_often() -> None:
    """Over time in one mask, and over phases at one time."""
    mask = masks.running_cell(Grid(8, 14, 14), rng(), mask_ratio=0.5).view(8, 14, 14)
    assert (mask.float().view(8, -1).mean(1) == 0.5).all()
    assert (mask.float().mean(0) == 0.5).all()
    draws = torch.stack([masks.running_cell(GRID, rng(i), mask_ratio=0.25) for i in range(800)])
    assert (draws.float().mean(0) - 0.25).abs().max() < 0.08  # deviation of the mean: 0.015


@pytest.mark.parametrize(("ratio", "grid"), [(0.4, (4, 4, 4)), (0.5, (4, 3, 4)), (1.0, (4, 4, 4))])
def test_running_cells_that_cannot_be_are_refused(ratio: float, grid: tuple[int, int, int]) -> None:
    with pytest.raises(TubeletError, match=r"0\.25, 0\.5 or 0\.75 of a grid with even sides"):
        masks.running_cell(Grid(*grid), rng(), mask_ratio=ratio)


def test_count_visible_counts_what_is_asked_and_visible() -> None:
    hidden = torch.tensor([[[1, 0, 1, 0]]]).bool()
    asked = torch.tensor([[[1, 1, 0, 0]]]).bool()
    packed = masks.pack(hidden, asked, count_visible=True)
    assert packed.asked.tolist() == [[[0, 1]]]
    assert packed.weight.tolist() == [[[1, 1]]]
    nothing = masks.pack(torch.zeros_like(hidden), torch.ones_like(hidden), count_visible=True)
    assert nothing.keep.tolist() == nothing.asked.tolist() == [[[0, 1, 2, 3]]]
