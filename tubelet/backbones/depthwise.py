"""Depthwise 3x3x3 convolutions of tokens; on a CPU frame by frame, which is much faster there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tubelet.shapes import Grid

EVERY, BUT_FIRST, BUT_LAST = slice(None), slice(1, None), slice(None, -1)


class Pooling(NamedTuple):
    """A depthwise convolution of tokens: its kernel [d,1,3,3,3], which the heads share, and its
    stride over rows and columns."""

    weight: Tensor
    stride: int


def pooled(x: Tensor, grid: Grid, poolings: Sequence[Pooling]) -> tuple[Tensor, ...]:
    """x [B,1+N,parts*heads*d] over `grid`, a pooling for each part -> a [B,1+n,heads*d] each.

    The first token, the class token, stays as it is. Beyond the edges are zeros.
    """
    if x.device.type == "cpu":
        weights, strides = zip(*poolings, strict=True)
        return _FrameByFrame.apply(x, grid, strides, *weights)  # pyright: ignore[reportReturnType]
    parts = zip(x.chunk(len(poolings), -1), poolings, strict=True)
    return tuple(by_volume(part, grid, pooling) for part, pooling in parts)


def by_volume(x: Tensor, grid: Grid, pooling: Pooling) -> Tensor:
    """[B,1+N,heads*d] -> [B,1+n,heads*d], as one convolution in three dimensions."""
    weight, stride = pooling
    places = x[:, 1:].unflatten(-1, (-1, len(weight)))
    volume = places.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, tuple(grid))
    volume = F.conv3d(volume, weight, None, (1, stride, stride), 1, groups=len(weight))
    places = volume.flatten(2).unflatten(0, (len(x), -1)).permute(0, 3, 1, 2).flatten(2)
    return torch.cat([x[:, :1], places], 1)


def pooled_grid(grid: Grid, stride: int) -> Grid:
    """The grid after a convolution of 3x3x3 with this stride over rows and columns, and padding."""
    return Grid(grid.t, -(-grid.h // stride), -(-grid.w // stride))


class _FrameByFrame(torch.autograd.Function):
    """As `by_volume`, by a convolution in two dimensions for each of the kernel's three frames.

    CPUs have kernels for depthwise convolutions in two dimensions with channels last, and none in
    three. Tokens lie in memory with channels last, and the gradients of the parts are written to
    their places in that of `x`. Computes and sums as the kernels are, float32, also where `x` is bf16.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, grid: Grid, strides: tuple[int, ...], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.grid, ctx.strides = grid, strides
        ctx.save_for_backward(x, *weights)
        outs: list[Tensor] = []
        with torch.autocast("cpu", enabled=False):
            for part, stride, weight in zip(
                x.chunk(len(weights), -1), strides, weights, strict=True
            ):
                width, few = part.shape[-1], pooled_grid(grid, stride)
                kernels = _kernels(weight, width)
                out = weight.new_empty(len(part), 1 + few.size, width)
                out[:, 0] = part[:, 0]
                for clip, sums in zip(part, out, strict=True):
                    frames = _frames(clip, grid, weight.dtype)
                    _convolve(frames, kernels, stride, sums[1:].view(*few, width))
                outs.append(out)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *weights = ctx.saved_tensors
        grad_x, grid = torch.empty_like(x), ctx.grid
        grad_weights = [torch.zeros_like(weight) for weight in weights]
        parts = (x.chunk(len(weights), -1), grad_x.chunk(len(weights), -1))
        for part, sums, grad, stride, weight, grad_weight in zip(
            *parts, grads, ctx.strides, weights, grad_weights, strict=True
        ):
            width, few = part.shape[-1], pooled_grid(grid, stride)
            kernels = _kernels(weight, width)
            sums[:, 0] = grad[:, 0]
            for clip, below, above in zip(part, sums, grad, strict=True):
                into = below[1:].unflatten(0, tuple(grid))
                exact = into if x.dtype == weight.dtype else into.to(weight.dtype)
                frames = (_frames(clip, grid, weight.dtype), _frames(above, few, weight.dtype))
                _convolve_back(*frames, kernels, stride, exact, grad_weight)
                if exact is not into:
                    into.copy_(exact)
        return grad_x, None, None, *grad_weights


def _kernels(weight: Tensor, width: int) -> list[tuple[Tensor, int, slice, slice]]:
    """[d,1,3,3,3] -> of each of its frames, its own first: [width,1,3,3], its number, the frames that
    it reads, and those that it adds to."""
    wide = weight.repeat(width // len(weight), 1, 1, 1, 1)
    ways = ((1, EVERY, EVERY), (0, BUT_LAST, BUT_FIRST), (2, BUT_FIRST, BUT_LAST))
    return [(wide[:, :, at].contiguous(), at, of, to) for at, of, to in ways]


def _frames(tokens: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """[1+N,C] -> [t,C,h,w], channels last; without the class token."""
    return tokens[1:].to(dtype).contiguous().view(*grid, -1).permute(0, 3, 1, 2)


def _convolve(
    frames: Tensor, kernels: list[tuple[Tensor, int, slice, slice]], stride: int, sums: Tensor
) -> None:
    """frames [t,C,h,w] -> writes their convolution to `sums` [t,h',w',C]."""
    for kernel, _, of, to in kernels:
        maps = F.conv2d(frames[of], kernel, None, stride, 1, groups=len(kernel))
        maps = maps.permute(0, 2, 3, 1)
        sums[to].copy_(maps) if of == to else sums[to].add_(maps)


def _convolve_back(
    frames: Tensor,
    above: Tensor,
    kernels: list[tuple[Tensor, int, slice, slice]],
    stride: int,
    sums: Tensor,
    grad_weight: Tensor,
) -> None:
    """frames [t,C,h,w], the gradient of their convolution [t,C,h',w'] -> writes the gradient of the
    frames to `sums` [t,h,w,C], and adds that of the kernel, [d,1,3,3,3]."""
    for kernel, at, of, to in kernels:
        maps, grad, _ = torch.ops.aten.convolution_backward(
            *(above[to], frames[of], kernel, None, [stride] * 2, [1, 1], [1, 1]),
            *(False, [0, 0], len(kernel), [True, True, False]),
        )
        maps = maps.permute(0, 2, 3, 1)
        sums[of].copy_(maps) if of == to else sums[of].add_(maps)
        grad_weight[:, :, at] += grad.unflatten(0, (-1, len(grad_weight))).sum(0)
