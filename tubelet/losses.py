"""Losses per token or per clip, in float32 whatever the precision of the rest."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mse(pred: Tensor, y: Tensor) -> Tensor:
    """[B,M,P], float32 [B,M,P] -> [B,M]: mean squared error over the target's width.

    A half-precision prediction is widened to the target's type by the subtraction.
    """
    return (pred - y).square().mean(-1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B,classes], int64 [B] or soft float [B,classes] -> [B]."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B,classes], float [B,classes] in [0,1] -> [B]: for several labels a clip, mean over classes."""
    return F.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), reduction="none"
    ).mean(-1)


def squared_error(pred: Tensor, y: Tensor) -> Tensor:
    """[B,targets], float [B,targets] -> [B]: for regression."""
    return mse(pred, y.float())
