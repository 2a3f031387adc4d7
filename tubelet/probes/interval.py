"""95 % intervals of a mean: over test clips by bootstrap, over seeds by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL = 1.960  # beyond these


def bootstrap(values: np.ndarray, seed: int, draws: int = 4000) -> tuple[float, float]:
    """[n] -> 95 % interval of the mean, from `draws` samples of n with replacement."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Two or more independent values -> 95 % interval of their mean."""
    n = len(values)
    assert n > 1, "one value has no spread"
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = (STUDENT[n - 2] if n - 2 < len(STUDENT) else NORMAL) * deviation / math.sqrt(n)
    return mean - half, mean + half
