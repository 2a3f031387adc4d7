"""Mixup and cutmix: against the formulas, and independent of how a batch is divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tubelet.data.mix import Mixing, cut_box, mix, mix_clips, smooth
from tubelet.errors import TubeletError

CLASSES = 5
MIXUP = Mixing(cutmix=0, smoothing=0, mix_group=4)
CUTMIX = Mixing(mixup=0, smoothing=0, mix_group=4)


def flat_clips(count: int) -> Tensor:
    """float [B,1,2,12,10]: clip i is i everywhere."""
    return torch.arange(count).float()[:, None, None, None, None].expand(-1, 1, 2, 12, 10).clone()


def labels_of(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


def test_smoothed_labels() -> None:
    soft = smooth(torch.tensor([2, 0]), 4, 0.1)
    expected = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
    assert soft == pytest.approx(torch.tensor(expected))
    assert torch.equal(smooth(torch.tensor([1]), 2, 0.0), torch.tensor([[0.0, 1.0]]))


def test_mixup_meets_the_reversed_group_with_the_same_share_in_pixels_and_labels() -> None:
    shares = []
    for seed in range(50):
        clip, soft = mix(flat_clips(4), labels_of(4), CLASSES, MIXUP, [seed])
        kept = 1 - clip[0, 0, 0, 0, 0].item() / 3  # clip 0 met clip 3
        expected = torch.tensor([0, 1, 2, 3]) * kept + torch.tensor([3, 2, 1, 0]) * (1 - kept)
        assert torch.allclose(clip, expected[:, None, None, None, None].expand_as(clip), atol=1e-5)
        for i in range(4):
            assert soft[i, i] == pytest.approx(kept, abs=1e-5)
            assert soft[i, 3 - i] == pytest.approx(1 - kept, abs=1e-5)
        shares.append(kept)
    assert min(shares) < 0.1
    assert max(shares) > 0.9


def test_cutmix_cuts_space_and_not_time_and_counts_the_area() -> None:
    areas = []
    for seed in range(50):
        clip, soft = mix(flat_clips(4), labels_of(4), CLASSES, CUTMIX, [seed])
        other = clip[0] == 3
        assert (other | (clip[0] == 0)).all()
        assert torch.equal(other[0, 0], other[0, 1])  # all frames alike
        rows, columns = other[0, 0].any(1), other[0, 0].any(0)
        assert torch.equal(other[0, 0], rows[:, None] & columns[None, :])  # a box
        share = other.float().mean().item()
        assert soft[0, 3] == pytest.approx(share, abs=1e-6)
        assert soft[0, 0] == pytest.approx(1 - share, abs=1e-6)
        assert torch.equal(clip[1] == 2, other)
        areas.append(share)
    assert min(areas) < 0.1
    assert max(areas) > 0.6


def test_cut_box_has_the_area_where_it_is_not_clipped() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        top, bottom, left, right = cut_box(100, 60, 0.75, rng)
        assert 0 <= top <= bottom <= 100
        assert 0 <= left <= right <= 60
        areas.append((bottom - top) * (right - left) / 6000)
    assert max(areas) == pytest.approx(0.25)
    assert min(areas) < 0.15  # clipped at a corner


def test_both_are_drawn_by_the_switch() -> None:
    for switch, cuts in ((0.0, 0), (1.0, 40), (0.5, 20)):
        config = Mixing(mix_group=2, mixup_switch_prob=switch, smoothing=0)
        clips = [mix(flat_clips(2), labels_of(2), CLASSES, config, [s])[0] for s in range(40)]
        whole = sum(set(clip.unique().tolist()) <= {0.0, 1.0} for clip in clips)
        assert abs(whole - cuts) <= (10 if switch == 0.5 else 0)


def test_a_group_stays_unmixed_with_the_probability() -> None:
    config = Mixing(mix_group=2, mixup_prob=0.5, cutmix=0, smoothing=0)
    same = [
        torch.equal(mix(flat_clips(2), labels_of(2), CLASSES, config, [seed])[0], flat_clips(2))
        for seed in range(60)
    ]
    assert 15 < sum(same) < 45


def test_division_into_batches_does_not_matter() -> None:
    config = Mixing(mix_group=4)
    clip = torch.rand(12, 3, 2, 8, 8)
    labels, seeds = labels_of(12), [7, 8, 9]
    whole = mix(clip, labels, CLASSES, config, seeds)
    for at in range(3):
        part = slice(4 * at, 4 * at + 4)
        alone = mix(clip[part], labels[part], CLASSES, config, [seeds[at]])
        assert torch.equal(alone[0], whole[0][part])
        assert torch.equal(alone[1], whole[1][part])


def test_groups_have_draws_of_their_own() -> None:
    _, soft = mix(flat_clips(8), labels_of(8), CLASSES, MIXUP, [1, 2])
    assert soft[0].max() != soft[4].max()


def test_bytes_are_mixed_as_floats_and_rounded() -> None:
    clip = torch.randint(0, 256, (4, 3, 2, 6, 6), dtype=torch.uint8)
    before = clip.clone()
    mixed, soft = mix(clip, labels_of(4), CLASSES, MIXUP, [5])
    exact, same = mix(clip.float(), labels_of(4), CLASSES, MIXUP, [5])
    assert torch.equal(clip, before)
    assert mixed.dtype == torch.uint8
    assert (mixed.float() - exact).abs().max() <= 0.5 + 1e-3
    assert torch.equal(soft, same)


def test_labels_sum_to_one_and_are_smoothed() -> None:
    _, soft = mix(flat_clips(8), labels_of(8), CLASSES, Mixing(), [3])
    assert soft.dtype == torch.float32
    assert torch.allclose(soft.sum(1), torch.ones(8))
    assert soft.min() == pytest.approx(0.1 / CLASSES)


def test_soft_labels_are_mixed_as_they_are() -> None:
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.5]])
    config = Mixing(mix_group=2, cutmix=0)
    clip, soft = mix(flat_clips(2), labels, 3, config, [4])
    kept = 1 - clip[0, 0, 0, 0, 0].item()
    assert torch.allclose(soft, labels * kept + labels.flip(0) * (1 - kept))


def test_without_mixing_only_labels_change() -> None:
    clip = flat_clips(3)  # no whole group is needed
    same, soft = mix(clip, labels_of(3), CLASSES, Mixing(mixup=0, cutmix=0), [])
    assert same is clip
    assert torch.equal(soft, smooth(labels_of(3), CLASSES, 0.1))


@pytest.mark.parametrize(("count", "seeds"), [(6, 1), (6, 2), (8, 1), (4, 2)])
def test_broken_groups_are_refused(count: int, seeds: int) -> None:
    with pytest.raises(TubeletError, match=rf"groups of 4 .* got {count} clips and {seeds} seeds"):
        mix(flat_clips(count), labels_of(count), CLASSES, MIXUP, list(range(seeds)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mix_group": 3}, r"mix_group must be even and at least 2 \(got 3\)"),
        ({"mix_group": 0}, "mix_group must be even"),
        ({"mixup_prob": 1.5}, r"mixup_prob must be within 0 to 1 \(got 1.5\)"),
        ({"mixup": -1.0}, r"mixup must not be negative \(got -1.0\)"),
    ],
)
def test_wrong_settings(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(TubeletError, match=message):
        Mixing(**wrong)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("config", [MIXUP, CUTMIX])
def test_clips_alone_are_mixed_as_with_labels(config: Mixing) -> None:
    clip, kept = mix_clips(flat_clips(8), config, [3, 4])
    expected, soft = mix(flat_clips(8), labels_of(8), CLASSES, config, [3, 4])
    assert torch.equal(clip, expected)
    own = soft[torch.arange(8), labels_of(8)].view(2, 4)[:, 0]
    assert kept == pytest.approx(own.tolist()) and kept[0] != kept[1]
    plain = flat_clips(8)
    assert mix_clips(plain, Mixing(mixup=0, cutmix=0), []) == (plain, [])
