"""Losses per token against torch's own modules."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tubelet import losses

MODULES: dict[str, nn.Module] = {
    "mse": nn.MSELoss(reduction="none"),
    "l1": nn.L1Loss(reduction="none"),
    "smooth_l1": nn.SmoothL1Loss(reduction="none", beta=1.0),
}


def both() -> tuple[Tensor, Tensor]:
    """Differences below and above 1, on both sides of smooth L1's threshold."""
    return 2 * torch.randn(3, 5, 16), 2 * torch.randn(3, 5, 16)


@pytest.mark.parametrize("name", MODULES)
def test_a_loss_is_the_mean_over_the_width(name: str) -> None:
    pred, y = both()
    found = getattr(losses, name)(pred, y)
    assert found.shape == (3, 5) and found.dtype is torch.float32
    torch.testing.assert_close(found, MODULES[name](pred, y).mean(-1))


def test_smooth_l1_is_the_formula() -> None:
    pred, y = both()
    d = (pred - y).abs()
    assert ((d < 1).any() and (d > 1).any()) and (d - 1).abs().min() < 0.1
    slow = torch.tensor(
        [
            [sum(v * v / 2 if v < 1 else v - 0.5 for v in token) / 16 for token in row]
            for row in d.tolist()
        ]
    )
    torch.testing.assert_close(losses.smooth_l1(pred, y), slow)


def test_cosine_leaves_scales_out() -> None:
    pred, y = both()
    module = nn.CosineEmbeddingLoss(reduction="none")
    slow = module(pred.flatten(0, 1), y.flatten(0, 1), torch.ones(15)).view(3, 5)
    torch.testing.assert_close(losses.cosine(pred, y), slow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.cosine(7 * pred, y / 3), slow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.cosine(y, y), torch.zeros(3, 5), rtol=0, atol=1e-6)
    torch.testing.assert_close(losses.cosine(-y, y), torch.full((3, 5), 2.0))


@pytest.mark.parametrize(
    "loss", [losses.mse, losses.l1, losses.smooth_l1, losses.cosine], ids=lambda f: f.__name__
)
def test_half_precision_predictions_are_compared_in_float32(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    pred, y = both()
    low = pred.bfloat16().requires_grad_()
    found = loss(low, y)
    assert found.dtype is torch.float32
    assert torch.equal(found, loss(low.float(), y))
    found.sum().backward()
    assert low.grad is not None and low.grad.dtype is torch.bfloat16
    full = low.detach().float().requires_grad_()
    loss(full, y).sum().backward()
    assert full.grad is not None
    torch.testing.assert_close(low.grad.float(), full.grad, rtol=1e-2, atol=1e-4)


def test_cross_entropy_is_per_clip_or_per_token() -> None:
    logits = 3 * torch.randn(3, 5, 7)
    ids, soft = torch.randint(7, (3, 5)), torch.randn(3, 5, 7).softmax(-1)
    log = logits - logits.exp().sum(-1, keepdim=True).log()
    of_ids = torch.tensor([[-float(log[b, m, ids[b, m]]) for m in range(5)] for b in range(3)])
    torch.testing.assert_close(losses.cross_entropy(logits, ids), of_ids)
    torch.testing.assert_close(losses.cross_entropy(logits, soft), -(soft * log).sum(-1))
    torch.testing.assert_close(losses.cross_entropy(logits[0], ids[0]), of_ids[0])
    torch.testing.assert_close(losses.cross_entropy(logits[0], soft[0]), -(soft * log).sum(-1)[0])
    assert losses.cross_entropy(logits.bfloat16(), ids).dtype is torch.float32


def softmax(row: list[float], temperature: float) -> list[float]:
    high = max(row)
    parts = [math.exp((x - high) / temperature) for x in row]
    return [part / sum(parts) for part in parts]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_softened_kl_is_the_sum_written_out(temperature: float) -> None:
    student, teacher = 3 * torch.randn(2, 5, 7, dtype=torch.float64)
    expected = []
    for mine, given in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax(mine, temperature), softmax(given, temperature)
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        expected.append(temperature**2 * kl)
    found = losses.softened_kl(student, teacher, temperature)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert losses.softened_kl(teacher, teacher, temperature).abs().max() < 1e-6


def test_the_gradient_keeps_its_size_as_the_temperature_rises() -> None:
    """At high temperatures it is that of half the squared distance of centred logits, over classes."""
    student, teacher = torch.randn(2, 5, 7)
    student.requires_grad_()
    (grad,) = torch.autograd.grad(losses.softened_kl(student, teacher, 1000.0).sum(), student)
    difference = student.detach() - teacher
    expected = (difference - difference.mean(-1, keepdim=True)) / 7
    torch.testing.assert_close(grad, expected, rtol=1e-2, atol=1e-3)


def test_softened_binary_is_the_sum_written_out() -> None:
    student, teacher = 2 * torch.randn(2, 3, 4, dtype=torch.float64)
    expected = []
    for mine, given in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([1 / (1 + math.exp(-x / 2)) for x in row] for row in (mine, given))
        terms = [a * math.log(b) + (1 - a) * math.log(1 - b) for a, b in zip(p, q, strict=True)]
        expected.append(-4 * sum(terms) / 4)
    assert losses.softened_binary(student, teacher, 2.0).tolist() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("name", MODULES)
def test_its_gradient_is_torchs(name: str) -> None:
    """Of ours, half precision too, and where prediction and target are equal."""
    pred, y = both()
    y[0, 0] = pred[0, 0]
    weights = torch.rand(3, 5)
    for kind in (torch.float32, torch.bfloat16):
        ours, theirs = (pred.to(kind, copy=True).requires_grad_() for _ in range(2))
        (getattr(losses, name)(ours, y) * weights).sum().backward()
        (MODULES[name](theirs.float(), y).mean(-1) * weights).sum().backward()
        assert ours.grad is not None and ours.grad.dtype is kind
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    leaf = pred.clone().requires_grad_()
    between = leaf * 1
    [of] = torch.autograd.grad(getattr(losses, name)(between, y).sum(), between)
    assert not of.requires_grad  # as where a penalty on gradients would begin anew
    assert torch.equal(between, pred)
