"""Softmax attention: torch's fused kernel, or in bf16 on a CPU what is measured to be the quickest.

Three ways that differ in rounding alone. On a CPU torch's kernel for bf16 loses to plain products
of matrices at short lengths and to products in pieces at long ones, by how much depends on the
machine; in float32 it beats both (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tubelet import choices

Way = Callable[[Tensor, Tensor, Tensor, float], Tensor]

# `plain` keeps its weights for the backward pass: below so many keys for each of a head's
# dimensions they are no more than what the MLP of a block keeps, four times its width.
PLAIN_KEYS = 4
PIECE = 2**20  # weights that `chunked` has in hand at a time: 2 MiB, what a cache holds
ROWS = 128  # but of so many queries at least: products of fewer are slow


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """q [B,heads,L',d], k and v [B,heads,L,d] -> [B,heads,L',d]: softmax(scale q k^T) v.

    `scale`: d**-0.5 unless given. The way is chosen within `choices.kept` alone.
    """
    if q.device.type == "cpu" and not _is_watched():
        if torch.is_autocast_enabled("cpu"):
            low = torch.get_autocast_dtype("cpu")
            q, k, v = q.to(low), k.to(low), v.to(low)
        if q.dtype is torch.bfloat16:
            factor = 1 / sqrt(q.shape[-1]) if scale is None else scale
            return _chosen(q, k, v, factor)(q, k, v, factor)
    return fused(q, k, v, scale)


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Torch's kernel; keeps no weights."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Two products of matrices. Logits and weights are rounded to the type of q; the softmax
    between them is computed in float32."""
    with torch.autocast(q.device.type, enabled=False):
        return _weights(q, k, scale) @ v


def chunked(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """As `plain`, a piece of the heads and queries at a time; the backward pass computes the weights
    again, so that a piece is all of them that there is at any time."""
    return _Chunked.apply(q, k, v, scale)  # pyright: ignore[reportReturnType]


WAYS: dict[str, Way] = {"fused": fused, "plain": plain, "chunked": chunked}


class _Chunked(torch.autograd.Function):
    """`chunked`. Sums over pieces, of the gradients of keys and values, are float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        batch, heads, queries, width = q.shape
        out = q.new_empty(batch, queries, heads, width).transpose(1, 2)  # as it is needed next
        with torch.autocast(q.device.type, enabled=False):
            for at, rows in _pieces(q, k):
                keys, values = k[at].contiguous(), v[at].contiguous()
                for row in rows:
                    out[at][:, row] = _weights(q[at][:, row], keys, scale) @ values
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = ctx.saved_tensors
        found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        with torch.autocast(q.device.type, enabled=False):
            for at, rows in _pieces(q, k):
                keys, values = k[at].contiguous(), v[at].contiguous()
                of_k, of_v = (torch.zeros(x.shape, dtype=torch.float32) for x in (keys, values))
                for row in rows:
                    queries, of_out = q[at][:, row] * ctx.scale, grad[at][:, row].contiguous()
                    weights = _weights(queries, keys, 1.0)
                    of_v += weights.mT @ of_out
                    of_logits = torch.ops.aten._softmax_backward_data(
                        of_out @ values.mT, weights, -1, weights.dtype
                    )
                    of_k += of_logits.mT @ queries
                    found[0][at][:, row] = (of_logits @ keys).mul_(ctx.scale)
                found[1][at], found[2][at] = of_k, of_v
        return (*found, None)


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[...,L',d], [...,L,d] -> [...,L',L], which sum up to 1 over the keys."""
    return torch.softmax((q * scale) @ k.mT, -1)


def _pieces(q: Tensor, k: Tensor) -> Iterator[tuple[tuple[int, slice], list[slice]]]:
    """Where each piece is: its sample and heads, and the queries of one piece after another."""
    batch, heads, queries, _ = q.shape
    keys = k.shape[-2]
    at_once = min(queries, max(ROWS, PIECE // keys))
    together = max(1, PIECE // (at_once * keys))
    rows = [slice(i, i + at_once) for i in range(0, queries, at_once)]
    for sample in range(batch):
        for head in range(0, heads, together):
            yield (sample, slice(head, head + together)), rows


def _is_watched() -> bool:
    """Whether a compiler or a mode (counted operations, tensors without memory) looks on."""
    return torch.compiler.is_compiling() or choices.is_watched()


def _chosen(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Way:
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    sizes = "x".join(map(str, (*q.shape[:3], k.shape[2], q.shape[3])))
    what = f"attention {sizes}{' learning' if learns else ''} on {torch.get_num_threads()}"

    def ways() -> choices.Ways:
        names = [name for name in WAYS if name != "plain" or k.shape[2] <= PLAIN_KEYS * q.shape[3]]
        with _apart(learns):
            tensors = _random(q, k, v, learns)
        return {name: lambda name=name: _turn(WAYS[name], tensors, scale) for name in names}

    return WAYS[choices.choose(what, "fused", ways)]


def _random(q: Tensor, k: Tensor, v: Tensor, learns: bool) -> list[Tensor]:
    """Tensors of these shapes; the history of torch's own generator stays as it was."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.empty_like(x).normal_(generator=generator) for x in (q, k, v)]
    return [x.requires_grad_(learns) for x in drawn]


def _turn(way: Way, tensors: list[Tensor], scale: float) -> None:
    """Once forward and, where they learn, backward, as a block uses it."""
    learns = tensors[0].requires_grad
    with _apart(learns):
        q, k, v = tensors
        out = way(q, k, v, scale).transpose(1, 2).flatten(2)
        if learns:
            torch.autograd.grad(out, tensors, torch.ones_like(out))


@contextmanager
def _apart(learns: bool) -> Generator[None, None, None]:
    """Nothing of the surroundings holds: no inference mode, and no hooks that keep tensors for
    somebody's backward pass (a block that is computed again counts them)."""

    def same(x: Tensor) -> Tensor:
        return x

    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(learns),
        torch.autocast("cpu", enabled=False),
        torch.autograd.graph.saved_tensors_hooks(same, same),
    ):
        yield
