"""Features as colours: their first three principal components in red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RANGE = (0.02, 0.98)  # quantiles of a component that become 0 and 1: single tokens set no scale


@dataclass(frozen=True)
class Components:
    """One projection and one scale, for all features that are to be compared."""

    mean: Tensor  # [P]
    directions: Tensor  # [P,n], n up to 3
    low: Tensor  # [n]
    high: Tensor

    @classmethod
    def fitted(cls, features: Tensor) -> Components:
        """features float [N,P] -> the directions in which they differ most, strongest first.

        The sign of a component, which is free, is such that its largest coordinate is positive.
        """
        mean = features.mean(0)
        _, _, rows = torch.linalg.svd(features - mean, full_matrices=False)
        directions = rows[:3].T
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        directions = directions * largest.sign()
        low, high = ((features - mean) @ directions).quantile(features.new_tensor(RANGE), 0)
        return cls(mean, directions, low, high)

    def colours(self, features: Tensor) -> Tensor:
        """features [N,P] -> RGB [N,3] in [0,1]; the mean of the fitted is not always grey."""
        values = (features - self.mean) @ self.directions
        span = (self.high - self.low).clamp_min(1e-12)
        rgb = ((values - self.low) / span).clamp(0, 1)
        return F.pad(rgb, (0, 3 - rgb.shape[1]), value=0.5)
