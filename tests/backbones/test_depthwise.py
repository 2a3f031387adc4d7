"""Depthwise convolutions frame by frame, against one convolution in three dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tubelet.backbones.depthwise import Pooling, by_volume, pooled
from tubelet.shapes import Grid


def gradients(outs: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sums = [(out * torch.randn(out.shape, generator=generator)).sum() for out in outs]
    return list(torch.autograd.grad(torch.stack(sums).sum(), leaves))


@pytest.mark.parametrize("grid", [Grid(4, 6, 6), Grid(2, 7, 5), Grid(1, 4, 4)])
@pytest.mark.parametrize("strides", [(1, 2, 2), (2, 1, 4)])
def test_frame_by_frame_is_the_convolution_in_three_dimensions(
    grid: Grid, strides: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1 + grid.size, 3 * 2 * 8, requires_grad=True)
    weights = [torch.randn(8, 1, 3, 3, 3, requires_grad=True) for _ in strides]
    poolings = [Pooling(weight, stride) for weight, stride in zip(weights, strides, strict=True)]
    found = pooled(x, grid, poolings)
    parts = zip(x.chunk(3, -1), poolings, strict=True)
    expected = tuple(by_volume(part, grid, pooling) for part, pooling in parts)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    leaves = [x, *weights]
    for a, b in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)  # sums of hundreds


def test_under_autocast_it_computes_in_float32_and_gives_gradients_as_its_input() -> None:
    torch.manual_seed(0)
    grid = Grid(2, 4, 4)
    x = torch.randn(1, 1 + grid.size, 24).bfloat16().requires_grad_()
    weight = torch.randn(8, 1, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outs = pooled(x, grid, [Pooling(weight, 1)] * 3)
    full = x.detach().float().requires_grad_()
    exact = pooled(full, grid, [Pooling(weight, 1)] * 3)
    for a, b in zip(outs, exact, strict=True):
        assert torch.equal(a, b)
    of_x, of_weight = gradients(outs, [x, weight])
    of_full, _ = gradients(exact, [full, weight])
    assert torch.equal(of_x, of_full.bfloat16())  # rounded once, after the sum
    assert of_weight.dtype == torch.float32
