"""Attention over a grid that it makes coarser: the core of the multiscale transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.backbones.attention import attend
from tubelet.backbones.depthwise import Pooling, pooled, pooled_grid
from tubelet.backbones.layers import NORM_EPS
from tubelet.shapes import Grid


class PoolingAttention(nn.Module):
    """Attention of pooled queries over pooled keys and values, with relative positions.

    Queries, keys and values are each pooled by a depthwise convolution shared by the heads. The
    logits get q·R for each axis, R the learned vector of the distance along it (arXiv 2112.01526,
    equation 4), and the output the pooled queries (equation 5). The class token is not pooled, has
    no position, and gets no query.
    """

    def __init__(
        self, dim: int, width: int, *, heads: int, pool_q: int, pool_kv: int, trained: Grid
    ):
        """`dim`: of the input; `width`: of the attention and the output; `pool_q`, `pool_kv`: by how
        much rows and columns are pooled; `trained`: the grid that the tables are made for."""
        super().__init__()
        self.heads = heads
        self.stride_q, self.stride_kv = pool_q, pool_kv
        d = width // heads
        self.qkv = nn.Linear(dim, 3 * width)
        self.proj = nn.Linear(width, width)
        for name in "qkv":
            self.add_module(f"pool_{name}", nn.Conv3d(d, d, 3, padding=1, groups=d, bias=False))
            self.add_module(f"norm_{name}", nn.LayerNorm(d, eps=NORM_EPS))
        q, k = cut_grid(trained, pool_q), cut_grid(trained, pool_kv)
        sizes = {axis: 2 * max(m, n) - 1 for axis, m, n in zip("thw", q, k, strict=True)}
        for axis, size in sizes.items():
            table = nn.Parameter(torch.zeros(size, d))
            nn.init.trunc_normal_(table, std=0.02)
            self.register_parameter(f"rel_pos_{axis}", table)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """[B,1+n,D] over `grid` -> [B,1+n',D'] over the pooled grid."""
        q, k, v = self._pooled(self.qkv(x), grid)
        few, many = pooled_grid(grid, self.stride_q), pooled_grid(grid, self.stride_kv)
        # The logits of an axis depend on the key by its place along it alone: they join the fused
        # kernel as more dimensions, of the query its logits, of the key where it is, as one-hot.
        scaled = _padded(torch.cat([q * q.shape[-1] ** -0.5, self._relative(q, few, many)], -1))
        places = places_of(many, k.device, k.dtype).expand(*k.shape[:2], -1, -1)
        keys = _padded(torch.cat([k, places], -1))
        values = F.pad(v, (0, keys.shape[-1] - v.shape[-1]))  # kernels want one width for all
        out = attend(scaled, keys, values, 1.0)
        out = out[..., : v.shape[-1]]
        out = torch.cat([out[:, :, :1], out[:, :, 1:] + q[:, :, 1:]], 2)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _pooled(self, qkv: Tensor, grid: Grid) -> list[Tensor]:
        """[B,1+n,3*D] -> queries, keys and values [B,heads,1+n',d], convolved and normed."""
        strides = {"q": self.stride_q, "k": self.stride_kv, "v": self.stride_kv}
        poolings = [
            Pooling(self.get_parameter(f"pool_{name}.weight"), stride)
            for name, stride in strides.items()
        ]
        parts = zip(strides, pooled(qkv, grid, poolings), strict=True)
        heads = {name: part.unflatten(-1, (self.heads, -1)) for name, part in parts}
        return [self.get_submodule(f"norm_{n}")(x).transpose(1, 2) for n, x in heads.items()]

    def _relative(self, q: Tensor, few: Grid, many: Grid) -> Tensor:
        """q [B,heads,1+n,d] over `few` -> [B,heads,1+n,t+h+w]: its logits by place along each axis
        of `many`; none for the class token."""
        places = q[:, :, 1:].unflatten(2, tuple(few))
        sums = {"t": "bnthwd,tkd->bnthwk", "h": "bnthwd,hkd->bnthwk", "w": "bnthwd,wkd->bnthwk"}
        axes = [
            torch.einsum(
                rule, places, relative(self.get_parameter(f"rel_pos_{a}"), m, n).to(q.dtype)
            )
            for (a, rule), m, n in zip(sums.items(), few, many, strict=True)
        ]
        return F.pad(torch.cat(axes, -1).flatten(2, 4), (0, 0, 1, 0))


def relative(table: Tensor, queries: int, keys: int) -> Tensor:
    """table [2n-1,d] -> [queries,keys,d]: the row for the distance of each pair along an axis.

    Distances are in steps of the finer of the two; a table for other lengths is resized first.
    """
    table = resize_relative(table, 2 * max(queries, keys) - 1)
    q, k = max(keys / queries, 1.0), max(queries / keys, 1.0)
    at = torch.arange(queries, device=table.device)[:, None] * q
    at = at - torch.arange(keys, device=table.device) * k + (keys - 1) * k
    return F.embedding(at.long(), table)  # its gradient is the same however many threads add it


def resize_relative(table: Tensor, rows: int) -> Tensor:
    """[n,d] -> [rows,d], linear (half-pixel centres)."""
    if len(table) == rows:
        return table
    return F.interpolate(table.T[None], rows, mode="linear")[0].T


def places_of(grid: Grid, device: torch.device, dtype: torch.dtype) -> Tensor:
    """-> [1+N,t+h+w]: one-hot slot, row and column of each token; zeros for the class token."""
    axes = (torch.eye(n, device=device, dtype=dtype) for n in grid)
    t, h, w = grid
    slot, row, column = (
        one.view(*shape, -1).expand(t, h, w, -1)
        for one, shape in zip(axes, ((t, 1, 1), (1, h, 1), (1, 1, w)), strict=True)
    )
    return F.pad(torch.cat([slot, row, column], -1).flatten(0, 2), (0, 0, 1, 0))


def cut_grid(grid: Grid, stride: int) -> Grid:
    """As `pooled_grid`, rounded down: how the published code sizes its tables."""
    return Grid(grid.t, max(1, grid.h // stride), max(1, grid.w // stride))


def _padded(x: Tensor) -> Tensor:
    """[...,d] -> [...,d']: zeros up to a multiple of 8, which fused kernels on GPUs ask for."""
    return F.pad(x, (0, -x.shape[-1] % 8))
