"""How much of a run is spent waiting for data, what the loading workers do meanwhile, and what helps."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

SETTLED_STEPS = 10  # not judged: workers start, and files are read for the first time
JUDGED_SECONDS = 30.0  # at least, of what is judged
LET_PASS = 0.05  # share of the time


class Waiting:
    """Seconds waited and seconds of the workers, since they were last read; and of the whole run."""

    def __init__(self, workers: int, start: int = 0) -> None:
        """`workers`: loading processes; `start`: the step that the run begins at."""
        self.workers = workers
        self._from = self._start = start
        self._waited, self._spent = 0.0, Counter[str]()
        self._waited_judged, self._judged = 0.0, 0.0
        self._told = False

    def add(self, waited: float, spent: Mapping[str, float]) -> None:
        """Seconds that a batch was waited for, and those of the worker that made it, by part."""
        self._waited += waited
        self._spent.update(spent)

    def read(self, step: int, seconds: float) -> tuple[float, dict[str, float]]:
        """-> of the `seconds` up to `step`, the share that was waited; of the workers' time, the
        share of each part ({} where it is not known)."""
        if self._from >= self._start + SETTLED_STEPS:
            self._waited_judged += self._waited
            self._judged += seconds
        share, whole = self._waited / seconds, sum(self._spent.values())
        parts = {part: took / whole for part, took in self._spent.items()} if whole else {}
        self._from = step
        self.forget()
        return share, parts

    def forget(self) -> None:
        """Leaves out what has passed since the last reading."""
        self._waited, self._spent = 0.0, Counter()

    def advice(self, parts: Mapping[str, float]) -> str:
        """What to do where training waits too much; once, else ""."""
        share = self._waited_judged / self._judged if self._judged else 0.0
        if self._told or share <= LET_PASS or self._judged < JUDGED_SECONDS:
            return ""
        self._told = True
        cause = f", and the workers' time goes into {in_words(parts)}" if parts else ""
        return (
            f"Training waits for data {share:.0%} of the time{cause}. What helps: "
            f"{'; '.join(remedies(parts, self.workers))}."
        )


def in_words(parts: Mapping[str, float]) -> str:
    """{"decode": 0.8, "augment": 0.2} -> "decode 80%, augment 20%", the largest first."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered)


def remedies(parts: Mapping[str, float], workers: int) -> list[str]:
    """What to try, the most promising first."""
    cores, found = _cores(), []
    if cores > workers:
        now = f"{workers} now" if workers else "now the training itself decodes"
        found.append(f"more --workers ({now}; this machine has {cores} cores)")
    for part in sorted(parts, key=lambda part: -parts[part]):
        if parts[part] < 0.2:
            continue
        if part == "decode":
            found.append(
                "`tubelet prepare`, once, for files that are decoded several times as fast"
            )
            found.append("--num-sample 4 --repeats clip, for several clips of each opened file")
        elif part == "augment":
            found.append("--augment.pixels fast, where nothing needs whole RGB frames")
    return found or ["a machine with more cores"]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
