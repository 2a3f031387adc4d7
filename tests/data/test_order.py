"""The order of a mixed run: shares, passes, resumption."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from tubelet.data.clips import Key
from tubelet.data.lists import Part
from tubelet.data.loader import Order
from tubelet.data.order import draws_of, mixed_order, shares
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec


def parts(*sources: tuple[int, float | None]) -> tuple[Part, ...]:
    firsts = itertools.accumulate((videos for videos, _ in sources), initial=0)
    return tuple(
        Part(f"s{at}", first, videos, weight, ClipSpec(), "")
        for at, ((videos, weight), first) in enumerate(zip(sources, firsts, strict=False))
    )


MIX = parts((40, 0.5), (3, 0.3), (17, 0.2), (5, 0.0))
VIDEOS = 65


def keys(mix: tuple[Part, ...], **options: int) -> list[Key]:
    given = {"batch_size": 8, "micro_batch": 4, "seed": 3, "total_steps": 40, **options}
    return [key for batch in Order(VIDEOS, parts=mix, **given) for key in batch]


def source(key: Key, mix: tuple[Part, ...] = MIX) -> int:
    return next(s for s, p in enumerate(mix) if p.first <= key.index < p.first + p.videos)


def test_shares_are_those_of_the_weights_or_of_the_videos() -> None:
    assert shares(parts((10, 2.0), (10, 6.0))) == [0.25, 0.75]
    assert shares(parts((10, None), (30, None))) == [0.25, 0.75]


@pytest.mark.parametrize(
    ("weights", "draws", "counts"),
    [
        ((1, 1, 1), 10, [4, 3, 3]),
        ((0.5, 0.3, 0.2), 64, [32, 19, 13]),
        ((0.0, 1.0), 7, [0, 7]),
        ((1, 1000), 8, [0, 8]),
    ],
)
def test_the_largest_remainders_get_what_is_left(
    weights: tuple[float, ...], draws: int, counts: list[int]
) -> None:
    assert draws_of(parts(*((5, w) for w in weights)), draws) == counts


def test_a_source_that_no_epoch_would_have_is_refused() -> None:
    mix = parts((60, 0.99), (5, 0.005))
    with pytest.raises(
        TubeletError, match=r"Source 's1': its weight is 0\.005 of all, 0\.32 of the 64"
    ):
        Order(65, parts=mix, batch_size=8, micro_batch=8, seed=0, total_steps=1)
    for rare in (0.01, 0.0, None):  # none: each as often as it has videos
        mix = parts((60, None if rare is None else 0.99), (5, rare))
        Order(65, parts=mix, batch_size=8, micro_batch=8, seed=0, total_steps=1)


def test_each_epoch_has_each_source_as_often_as_its_share() -> None:
    """64 of 65 draws fill batches: 32, 19.2, 12.8 and none of them."""
    drawn = keys(MIX)
    for epoch in range(5):
        counts = Counter(map(source, drawn[64 * epoch : 64 * (epoch + 1)]))
        assert [counts[s] for s in range(4)] == [32, 19, 13, 0]


def test_inside_an_epoch_counts_are_those_of_a_random_order() -> None:
    """The first half of an epoch: within four standard deviations of drawing without return."""
    halves = []
    for seed in range(50):
        counts = Counter(map(source, keys(MIX, seed=seed, total_steps=4)))
        halves.append([counts[s] for s in range(3)])
    expected = np.array([32, 19, 13]) / 2
    share = 2 * expected / 64
    deviation = np.sqrt(32 * share * (1 - share) * 32 / 63)
    assert (np.abs(np.array(halves) - expected) < 4 * deviation).all()
    assert (np.abs(np.mean(halves, 0) - expected) < 4 * deviation / np.sqrt(50)).all()


def test_no_video_comes_again_before_all_of_its_source_came() -> None:
    drawn = keys(MIX)
    assert len(set(drawn)) == len(drawn)  # a pass is part of the key: repeats are other samples
    for s, part in enumerate(MIX[:3]):
        mine = [key for key in drawn if source(key) == s]
        orders = []
        for at in range(0, len(mine), part.videos):
            now = mine[at : at + part.videos]
            assert {key.epoch for key in now} == {at // part.videos}
            assert len({key.index for key in now}) == len(now)
            orders.append([key.index for key in now])
        assert part.videos == 3 or orders[0] != orders[1]
    small = [key.index for key in drawn if source(key) == 1]
    assert len({tuple(small[at : at + 3]) for at in range(0, 90, 3)}) == 6  # all permutations


@pytest.mark.parametrize("start", [1, 7, 8, 9, 23])
def test_resumed_at_any_step_the_order_goes_on(start: int) -> None:
    assert keys(MIX, start_step=start) == keys(MIX)[8 * start :]


@pytest.mark.parametrize(("world", "micro"), [(2, 2), (4, 1)])
def test_processes_share_the_same_order(world: int, micro: int) -> None:
    ranks = [keys(MIX, world=world, micro_batch=micro, rank=rank) for rank in range(world)]
    each = 8 // world
    together = [key for s in range(40) for mine in ranks for key in mine[s * each : (s + 1) * each]]
    assert together == keys(MIX)


def test_seeds_and_sources_have_orders_of_their_own() -> None:
    twins = parts((20, 1.0), (20, 1.0))
    passes, order = mixed_order(twins, 40, seed=0, epoch=0)
    assert (passes == 0).all()
    first, second = (order[order // 20 == s] % 20 for s in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first.tolist() != second.tolist()
    assert order.tolist() != mixed_order(twins, 40, seed=1, epoch=0)[1].tolist()
    assert order.tolist() != mixed_order(twins, 40, seed=0, epoch=1)[1].tolist()


def test_without_weights_it_is_the_order_of_one_list() -> None:
    assert keys(parts((40, None), (25, None))) == keys(())
