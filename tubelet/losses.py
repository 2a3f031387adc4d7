"""Losses per token or per clip, in float32 whatever the precision of the rest."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def mse(pred: Tensor, y: Tensor) -> Tensor:
    """[B,M,P], float32 [B,M,P] -> [B,M]: mean squared error over the target's width.

    A half-precision prediction is widened to the target's type by the subtraction.
    """
    difference = pred - y
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return difference.square().mean(-1)
    return cast(Tensor, _MeanSquare.apply(difference))


class _MeanSquare(torch.autograd.Function):
    """[...,P] -> [...]: square().mean(-1) that reads its input once each way, and makes no other
    tensor as large: the gradient is written where the input was, which nobody else holds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.linalg.vector_norm(x, dim=-1).square_().div_(x.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return x.detach().mul_((grad * (2 / x.shape[-1]))[..., None])


def smooth_l1(pred: Tensor, y: Tensor) -> Tensor:
    """[B,M,P], float32 [B,M,P] -> [B,M]: mean of d²/2 where |d| < 1, else |d| - 1/2.

    The loss of MVD (arXiv 2212.04500, 4.1), with torch's threshold of 1.
    """
    return F.smooth_l1_loss(pred.float(), y, reduction="none").mean(-1)


def l1(pred: Tensor, y: Tensor) -> Tensor:
    """[B,M,P], float32 [B,M,P] -> [B,M]: mean absolute error over the target's width."""
    return (pred - y).abs().mean(-1)


def cosine(pred: Tensor, y: Tensor) -> Tensor:
    """[B,M,P], float32 [B,M,P] -> [B,M]: 1 - the cosine of the angle; scales are left out."""
    return 1 - F.cosine_similarity(pred.float(), y, dim=-1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B,classes], int64 [B] or soft float [B,classes] -> [B].

    Per token too: [B,M,P], int64 [B,M] or soft float [B,M,P] -> [B,M].
    """
    rows = logits.float().flatten(0, -2)
    labels = labels.flatten() if labels.dim() < logits.dim() else labels.flatten(0, -2)
    return F.cross_entropy(rows, labels, reduction="none").view(logits.shape[:-1])


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[B,classes], float [B,classes] in [0,1] -> [B]: for several labels a clip, mean over classes."""
    return F.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), reduction="none"
    ).mean(-1)


def squared_error(pred: Tensor, y: Tensor) -> Tensor:
    """[B,targets], float [B,targets] -> [B]: for regression."""
    return mse(pred, y.float())


def softened_kl(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """[B,classes], [B,classes] -> [B]: T² KL(teacher || student) of softmax(logits / T).

    T² keeps the size of the gradient (Hinton et al., 1503.02531, section 2).
    """
    taught = F.log_softmax(teacher.float() / temperature, -1)
    learned = F.log_softmax(logits.float() / temperature, -1)
    return temperature**2 * F.kl_div(learned, taught, reduction="none", log_target=True).sum(-1)


def softened_binary(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """[B,classes], [B,classes] -> [B]: T² binary cross-entropy, mean over classes, of
    sigmoid(logits / T) with the teacher's in the place of labels."""
    wanted = (teacher.float() / temperature).sigmoid()
    return temperature**2 * binary_cross_entropy(logits.float() / temperature, wanted)
