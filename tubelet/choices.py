"""Which of several ways to compute the same is the quickest here: measured at its first use, and kept.

Ways differ in their last bits. So nothing is measured outside of `kept`, whose caller keeps what
was chosen beside what was computed: a training run does, and goes on with it when it is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from threading import RLock
from time import perf_counter

from torch.utils._python_dispatch import (
    _get_current_dispatch_mode,  # pyright: ignore[reportPrivateUsage]
)

Ways = Mapping[str, Callable[[], object]]  # name -> does the work once

ROUNDS = 3  # of each way at most, after one that is not timed
ENOUGH = 0.5  # seconds after which no further round begins
# Of the first one's time: what another way has to stay below, so that noise chooses less.
GAIN = 0.95

_lock = RLock()  # one measurement at a time, also where several threads ask
_kept: list[dict[str, str]] = []  # the innermost block's is the last


@contextmanager
def kept(made: dict[str, str]) -> Generator[None, None, None]:
    """Within the block, and in all threads, `choose` adds to `made` what it lacks."""
    _kept.append(made)
    try:
        yield
    finally:
        _kept.pop()


def choose(what: str, first: str, ways: Callable[[], Ways]) -> str:
    """The name of the quickest of `ways` for `what`; outside of `kept` that of the `first`.

    `ways` is called where it has to be measured. The first is taken where the others gain little.
    """
    if not _kept:
        return first
    made = _kept[-1]
    if what not in made:
        with _lock:
            if what not in made:  # another thread may have been quicker
                made[what] = _quickest(first, ways())
    return made[what]


def is_watched() -> bool:
    """Whether a mode of this thread looks at each operation: counts it, or gives tensors no memory."""
    return _get_current_dispatch_mode() is not None


def _quickest(first: str, ways: Ways) -> str:
    if len(ways) == 1:
        return first
    began = perf_counter()
    for act in ways.values():
        act()
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, act in ways.items():
            started = perf_counter()
            act()
            seconds[name] = min(seconds[name], perf_counter() - started)
        if perf_counter() - began > ENOUGH:
            break
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds[best] < GAIN * seconds[first] else first
