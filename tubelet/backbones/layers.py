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

    def forward(self, x: Tensor, norm: nn.Module, last: int | None = None) -> Tensor:
        """Attention to norm(x), [B,L,D] -> [B,L,D]; with `last`, of the last so many tokens only:
        [B,last,D].

        All tokens are attended to.
        """
        weight, dim = self.qkv.weight, x.shape[-1]
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        if last is None:
            parts = norm_linear(norm, x, weight, bias).chunk(3, -1)
        else:
            x = norm(x)
            queries = F.linear(x[:, -last:], weight[:dim], bias[:dim])
            parts = (queries, *F.linear(x, weight[dim:], bias[dim:]).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


def hidden_of(dim: int, ratio: float) -> int:
    """The width inside an MLP. A ratio that was read from weights is a quotient, whose product with
    the width may lie just below the whole number that it was made of."""
    return int(dim * ratio + 1e-6)


class NormLinear(torch.autograd.Function):
    """linear(norm(x)), whose backward pass computes norm(x) again: a sixth of what a block keeps."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """[...,D], LayerNorm's [D], [D] and eps, [P,D], [P] -> [...,P]."""
        y, mean, deviation = torch.native_layer_norm(x, scale.shape, scale, shift, eps)
        ctx.save_for_backward(x, mean, deviation, scale, shift, weight)
        ctx.eps = eps
        return F.linear(y, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, mean, deviation, scale, shift, weight = ctx.saved_tensors
        shape, rows = scale.shape, grad.flatten(0, -2)
        y = torch.native_layer_norm(x, shape, scale, shift, ctx.eps)[0]
        of_weight = rows.t() @ y.flatten(0, -2).to(rows.dtype)
        del y
        inside = (rows @ weight.to(rows.dtype)).view_as(x).to(x.dtype)
        of_norm = torch.ops.aten.native_layer_norm_backward(
            inside, x, shape, mean, deviation, scale, shift, [True, True, True]
        )
        return *of_norm, None, of_weight, rows.sum(0)


def norm_linear(norm: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear(norm(x), weight, bias), without keeping norm(x) for the backward pass."""
    # Of two types, what autocast makes of a norm differs by device.
    one_type = isinstance(norm, nn.LayerNorm) and norm.weight.dtype is x.dtype
    if not one_type or not _may_recompute(norm, nn.LayerNorm):
        return F.linear(norm(x), weight, bias)
    y = NormLinear.apply(x, norm.weight, norm.bias, norm.eps, weight, bias)
    return cast(Tensor, y)


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


def _may_recompute(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer's product may be computed in our way. Compiled, a block decides by itself what to
    compute again; and what was put in the place of a layer, or looks at it, is called."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or type(layer) is not kind:
        return False
    hooks = ("forward", "forward_pre", "backward", "backward_pre")
    return not any(getattr(layer, f"_{of}_hooks") for of in hooks)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int, out: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """[B,L,D] -> [B,L,D], or of width `out`; with `norm`, of norm(x)."""
        first, last = self.fc1, self.fc2
        if norm is None:
            x = first(x)
        elif _may_recompute(first, nn.Linear):
            x = norm_linear(norm, x, first.weight, first.bias)
        else:
            x = first(norm(x))
        if not _may_recompute(last, nn.Linear):
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
        attended = self.attn(x, self.norm1, last)
        x = (x if last is None else x[:, -last:]) + self.drop1(attended, seeds)
        return x + self.drop2(self.mlp(x, self.norm2), seeds)


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
