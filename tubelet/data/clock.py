"""What a loading worker's time goes into: a few readings of a clock a sample, no profiler."""

from __future__ import annotations

import time
from typing import Literal

# decode: a file opened, its frames decoded (exact pixels: and made RGB whole), or features read;
# augment: cut, resized, changed; collate: masks drawn and packed, samples put side by side.
Part = Literal["decode", "augment", "collate"]


class Clock:
    """Seconds by part, since it was made or last asked."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: Part) -> None:
        """What has passed since the last lap went into this part."""
        now = time.perf_counter()
        self._spent[part] = self._spent.get(part, 0.0) + now - self._last
        self._last = now

    def taken(self) -> dict[str, float]:
        """-> {part: seconds}, which are forgotten here."""
        spent, self._spent = self._spent, {}
        return spent
