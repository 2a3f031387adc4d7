"""Freed memory is kept where glibc gives memory: each step of training asks for the same again.

As it comes, glibc maps large tensors anew and gives them back when they are freed, and the system
clears each page before its next use: a tenth of a step on a CPU (docs/log.md). The largest still come
from the system: in what is kept they would leave holes that only their like fit into. How large that
is depends on the network and its batches: `adapt` looks at what it costs.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8  # of mallopt(3)
LARGEST, MOST = 6 << 20, 32 << 20  # bytes of a tensor that is kept: at first, and as glibc allows
PAD = 64 << 20  # bytes asked of the system at a time
SHARE = 0.03  # of the CPU time, that the system may take
LOOKS = 12  # batches after which it stays as it is


@dataclass
class _Kept:
    """What this process keeps: the system's library knows no other unit."""

    largest: int = 0  # bytes of a tensor; 0: nothing is kept
    looks: int = 0  # that are left
    before: tuple[float, float] | None = None  # CPU seconds: the system's, and all


_kept = _Kept()


def keep_freed() -> bool:
    """Whether this process keeps from now on what it frees, for its next use.

    Not where the user has set an option of glibc (`MALLOC_...`), which stays, nor with another
    library (macOS, Windows, musl, or one that is preloaded).
    """
    if sys.platform != "linux" or chosen():
        return False
    options = {
        ARENA_MAX: 1,  # threads share what is kept
        MMAP_THRESHOLD: LARGEST,
        TRIM_THRESHOLD: 2**31 - 1,
        TOP_PAD: PAD,
    }
    if not all(_set(option, value) for option, value in options.items()):
        return False
    _kept.largest, _kept.looks, _kept.before = LARGEST, LOOKS, None
    return True


def adapt() -> None:
    """After a batch: from now on larger tensors are kept where the system takes much of the time, which
    is that of clearing them. Numbers do not depend on it."""
    if not _kept.looks:
        return
    import resource  # not on all systems, but where something is kept

    used = resource.getrusage(resource.RUSAGE_SELF)
    before, now = _kept.before, (used.ru_stime, used.ru_stime + used.ru_utime)
    _kept.before = now
    _kept.looks -= 1
    # The first batch with a setting is given memory that it has not had before.
    if before is None or now[0] - before[0] <= SHARE * (now[1] - before[1]):
        return
    _kept.largest, _kept.before = min(2 * _kept.largest, MOST), None
    _set(MMAP_THRESHOLD, _kept.largest)
    if _kept.largest == MOST:
        _kept.looks = 0


def _set(option: int, value: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).mallopt(option, value))
    except (OSError, AttributeError):
        return False


def chosen() -> list[str]:
    """What the user has said of memory: options of glibc, or another library in its place."""
    names = [name for name in os.environ if name.startswith("MALLOC_")]
    other = any(name in os.environ.get("LD_PRELOAD", "") for name in ("malloc", "mimalloc"))
    return sorted(names) + (["LD_PRELOAD"] if other else [])
