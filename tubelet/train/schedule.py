"""The learning rate of each update."""

from __future__ import annotations

import math


def cosine(step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """The learning rate of update `step` (0 is the first): linear warm-up, then half a cosine.

    The warm-up runs from 0 to `peak`, both included (so the very first update changes nothing);
    `final` would be reached one update after the last. As published with VideoMAE and MVD, where
    `warmup_lr` is printed but not used; pinned by tests/golden/videomae_lr_schedule.json.
    From `total_steps` on, the value is `final`.
    """
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps - 1)
    if step >= total_steps:
        return final
    done = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * done))
