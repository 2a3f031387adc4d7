"""A process that kills itself where a file takes its name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def killing(count: int, after: bool) -> Callable[[Any, Any], None]:
    """os.replace, but the process dies at the n-th: before or after it takes place."""
    left, rename = [count], os.replace

    def replace(begun: Any, final: Any) -> None:
        left[0] -= 1
        if after:
            rename(begun, final)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        if not after:
            rename(begun, final)

    return replace
