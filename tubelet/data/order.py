"""The order of an epoch: which video comes when, and in a mix, how often its source does.

Without weights an epoch is a permutation of all videos. With weights an epoch has as many draws, in
whole batches, and each source has its share of them, the same number in every epoch. A source's
draws go through its own videos pass by pass, each pass a permutation of its own, and go on over the
epochs: no video is seen again before all others of its source were. Which source is next is a
permutation of the epoch. All of it is a function of (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tubelet.data.lists import Part
from tubelet.errors import TubeletError

ORDER_STREAM = 0x6F72646572  # keeps the order's random numbers apart from all others


def epoch_order(videos: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """int64 [videos]: the order of an epoch, a function of (seed, epoch) alone."""
    # Raw 64-bit draws of a bit generator, which NumPy keeps stable over versions.
    draws = np.random.PCG64([ORDER_STREAM, seed, epoch]).random_raw(videos)
    return np.argsort(draws, kind="stable")


def weighted(parts: Sequence[Part]) -> bool:
    """Whether weights decide how often a source is drawn."""
    return any(part.weight is not None for part in parts)


def shares(parts: Sequence[Part]) -> list[float]:
    """The share of the draws that each source has; they sum to 1."""
    counts = [part.videos if part.weight is None else part.weight for part in parts]
    return [count / sum(counts) for count in counts]


def draws_of(parts: Sequence[Part], draws: int) -> list[int]:
    """How many of an epoch's draws each source has: its share, by largest remainder."""
    exact = [share * draws for share in shares(parts)]
    counts = [int(value) for value in exact]
    by_rest = sorted(range(len(parts)), key=lambda s: counts[s] - exact[s])
    for s in by_rest[: draws - sum(counts)]:
        counts[s] += 1
    return counts


def check_drawn(parts: Sequence[Part], draws: int) -> None:
    """TubeletError for a source whose weight is so small that no epoch would have a video of it."""
    for part, share, count in zip(parts, shares(parts), draws_of(parts, draws), strict=True):
        if part.weight and not count:
            raise TubeletError(
                f"Source {part.name!r}: its weight is {share:.2g} of all, {share * draws:.2g} of the "
                f"{draws} draws of an epoch, so it would never be drawn. Expected at least "
                f"{1 / draws:.2g} of all: raise its weight, or say weight=0 to leave it out."
            )


def mixed_order(
    parts: Sequence[Part], draws: int, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """-> the pass and the index of each draw of an epoch, int64 [draws] each."""
    counts = draws_of(parts, draws)
    of = np.repeat(np.arange(len(parts)), counts)[epoch_order(draws, seed, epoch)]
    passes, order = np.empty(draws, np.int64), np.empty(draws, np.int64)
    for s, (part, count) in enumerate(zip(parts, counts, strict=True)):
        mine = of == s
        passes[mine], order[mine] = _of_source(part, count, seed, epoch, s)
    return passes, order


def _of_source(
    part: Part, count: int, seed: int, epoch: int, number: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The passes and indices of a source's draws `epoch * count` to `(epoch + 1) * count - 1`."""
    at = np.arange(epoch * count, (epoch + 1) * count)
    passes, place = np.divmod(at, part.videos)
    if not count:
        return passes, place
    first, last = int(passes[0]), int(passes[-1])
    # One stream a source, of which pass p has the p-th part: any pass is had without those before.
    stream = np.random.PCG64([ORDER_STREAM, seed, 0, number + 1]).advance(first * part.videos)
    raw = stream.random_raw((last - first + 1) * part.videos).reshape(-1, part.videos)
    orders = np.argsort(raw, axis=1, kind="stable")
    return passes, part.first + orders[passes - first, place]
