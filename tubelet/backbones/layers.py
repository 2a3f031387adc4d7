"""The parts of a pre-norm vision transformer, with the published parameter names."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tubelet.backbones.attention import attend

NORM_EPS = 1e-6  # every published model of this family states it


def hashed(seeds: Tensor, salt: int) -> Tensor:
    """int64 [...] -> int64 [...] in [0, 2**32): a counter-based hash of (seed, salt).

    Randomness inside the network follows the sample's seed, not the history of a generator: so a
    resumed run, other ranks and other batch sizes draw the same. Products stay below 2**63.
    """

    def mix(x: Tensor) -> Tensor:
        for _ in range(2):
            x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
        return (x >> 16) ^ x

    low, high = seeds & 0xFFFFFFFF, (seeds >> 32) & 0xFFFFFFFF
    return mix(low ^ mix(high ^ mix(torch.full_like(low, salt & 0xFFFFFFFF) + 0x9E3779B9)))


def uniform(seeds: Tensor, salt: int, width: int = 1) -> Tensor:
    """int64 [B] -> float32 [B,width], uniform in [0,1), a function of (seed, salt) alone."""
    column = torch.arange(width, device=seeds.device)
    return hashed(hashed(seeds, salt)[:, None] + (column << 32), width).float() / 2**32


class DropPath(nn.Module):
    """Drops the whole branch of a sample (arXiv 1603.09382); survivors are rescaled."""

    def __init__(self, rate: float, salt: int):
        super().__init__()
        self.rate = rate
        self.salt = salt

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """x [B,L,D], seeds int64 [B] -> [B,L,D]."""
        if self.rate == 0 or not self.training:
            return x
        draw = (
            torch.rand(len(x), 1, device=x.device) if seeds is None else uniform(seeds, self.salt)
        )
        return x * ((draw >= self.rate) / (1 - self.rate)).to(x.dtype)[:, :, None]

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class Dropout(nn.Module):
    """Dropout on [B,D] whose draw follows the sample's seed."""

    def __init__(self, rate: float, salt: int):
        super().__init__()
        self.rate = rate
        self.salt = salt

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """x [B,D], seeds int64 [B] -> [B,D]."""
        if self.rate == 0 or not self.training:
            return x
        draw = (
            torch.rand_like(x, dtype=torch.float32)
            if seeds is None
            else uniform(seeds, self.salt, x.shape[-1])
        )
        return x * ((draw >= self.rate) / (1 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class Attention(nn.Module):
    """Multi-head self-attention; biases for queries and values only, as published.

    A key bias cannot change a softmax over keys, so leaving it out is exact.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """[B,L,D] -> [B,L,D]; with `last`, of the last so many tokens only: [B,last,D].

        All tokens are attended to.
        """
        weight, dim = self.qkv.weight, x.shape[-1]
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        if last is None:
            parts = F.linear(x, weight, bias).chunk(3, -1)
        else:
            queries = F.linear(x[:, -last:], weight[:dim], bias[:dim])
            parts = (queries, *F.linear(x, weight[dim:], bias[dim:]).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


def hidden_of(dim: int, ratio: float) -> int:
    """The width inside an MLP. A ratio that was read from weights is a quotient, whose product with
    the width may lie just below the whole number that it was made of."""
    return int(dim * ratio + 1e-6)


class GeluLinear(torch.autograd.Function):
    """linear(gelu(x)), whose backward pass computes gelu(x) again: as wide as an MLP, it would be
    most of what a block keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[...,D], [P,D], [P] -> [...,P]."""
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight.to(x.dtype), bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        # One wide tensor at a time beside x.
        of_weight = rows.t() @ F.gelu(x).flatten(0, -2).to(rows.dtype)
        inside = (rows @ weight.to(rows.dtype)).view_as(x)
        inside = torch.ops.aten.gelu_backward.grad_input(inside, x, grad_input=inside)
        return inside, of_weight, rows.sum(0)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int, out: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """[B,L,D] -> [B,L,D], or of width `out`."""
        x, last = self.fc1(x), self.fc2
        # Compiled, a block decides by itself what to compute again; and what was put in the place of
        # a layer, or looks at it, is called.
        hooks = last._forward_hooks or last._forward_pre_hooks or last._backward_hooks
        ours = type(last) is nn.Linear and not hooks
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not ours:
            return last(F.gelu(x))
        return cast(Tensor, GeluLinear.apply(x, last.weight, last.bias))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float, salt: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, hidden_of(dim, mlp_ratio))
        self.drop1 = DropPath(drop_path, 2 * salt)
        self.drop2 = DropPath(drop_path, 2 * salt + 1)

    def forward(self, x: Tensor, seeds: Tensor | None = None, last: int | None = None) -> Tensor:
        """[B,L,D], seeds int64 [B] -> [B,L,D]; with `last`, only the last so many tokens of it.

        Equal to cutting them out of the whole, without computing the rest.
        """
        attended = self.attn(self.norm1(x), last)
        x = (x if last is None else x[:, -last:]) + self.drop1(attended, seeds)
        return x + self.drop2(self.mlp(self.norm2(x)), seeds)


def blocks(
    dim: int, depth: int, heads: int, mlp_ratio: float = 4, drop_path: float = 0, salt: int = 0
) -> nn.ModuleList:
    """`depth` blocks; the drop-path rate grows linearly from 0 to `drop_path`."""
    rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
    return nn.ModuleList(
        Block(dim, heads, mlp_ratio, rate, salt + i) for i, rate in enumerate(rates)
    )


def run_block(block: nn.Module, *args: Any, recompute: bool) -> Tensor:
    """The block's output; with `recompute` its inside is computed again in the backward pass."""
    if recompute and block.training and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False)  # pyright: ignore[reportReturnType]
    return block(*args)


def init_xavier(module: nn.Module) -> None:
    """Linear: Xavier uniform, bias 0 (pretraining: arXiv 2203.12602's networks, as MAE)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            nn.init.zeros_(module.bias)


def init_normal(module: nn.Module) -> None:
    """Linear: normal of deviation 0.02, bias 0 (fine-tuning)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            nn.init.zeros_(module.bias)
