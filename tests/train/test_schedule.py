"""The learning rate, against the published values and a slow formula."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tubelet.train.schedule import cosine

GOLDEN = Path(__file__).parents[1] / "golden" / "videomae_lr_schedule.json"


def test_published_values() -> None:
    golden = json.loads(GOLDEN.read_text())
    total = golden["epochs"] * golden["steps_per_epoch"]
    assert len(golden["values"]) == total == 70
    found = [
        cosine(
            step,
            total_steps=total,
            warmup_steps=golden["warmup_epochs"] * golden["steps_per_epoch"],
            peak=golden["base_value"],
            final=golden["final_value"],
        )
        for step in range(total)
    ]
    np.testing.assert_allclose(found, golden["values"], rtol=1e-12)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (5, 0), (5, 1), (5, 2), (5, 5), (100, 7)])
def test_every_length(total: int, warmup: int) -> None:
    values = [
        cosine(step, total_steps=total, warmup_steps=warmup, peak=2.0, final=0.5)
        for step in range(total + 3)
    ]
    rest = np.arange(total - warmup)
    slow = [*np.linspace(0, 2.0, warmup), *(1.25 + 0.75 * np.cos(np.pi * rest / max(len(rest), 1)))]
    np.testing.assert_allclose(values, [*slow, 0.5, 0.5, 0.5], atol=1e-12)
