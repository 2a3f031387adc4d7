"""Freed memory is kept where glibc gives memory: each step of training asks for the same again.

As it comes, glibc maps large tensors anew and gives them back when they are freed, and the system
clears each page before its next use: a tenth of a step on a CPU (docs/log.md). The largest still come
from the system: in what is kept they would leave holes that only their like fit into.
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8  # of mallopt(3)
LARGEST = 6 << 20  # bytes of a tensor that is kept
PAD = 64 << 20  # bytes asked of the system at a time


def keep_freed() -> bool:
    """Whether this process keeps from now on what it frees, for its next use.

    Not where the user has set an option of glibc (`MALLOC_...`), which stays, nor with another
    library (macOS, Windows, musl, or one that is preloaded).
    """
    if sys.platform != "linux" or chosen():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    options = {
        ARENA_MAX: 1,  # threads share what is kept
        MMAP_THRESHOLD: LARGEST,
        TRIM_THRESHOLD: 2**31 - 1,
        TOP_PAD: PAD,
    }
    return all(bool(mallopt(option, value)) for option, value in options.items())


def chosen() -> list[str]:
    """What the user has said of memory: options of glibc, or another library in its place."""
    names = [name for name in os.environ if name.startswith("MALLOC_")]
    other = any(name in os.environ.get("LD_PRELOAD", "") for name in ("malloc", "mimalloc"))
    return sorted(names) + (["LD_PRELOAD"] if other else [])
