"""MaskFeat's pretraining of an MViTv2 as it was published, in plain eager PyTorch.

Every token of the clip is embedded, goes through every block, is normed, and hidden ones are then
chosen by a boolean mask; attention is written out and has its relative positions added as a bias for
each pair of places; queries, keys and values are pooled by convolutions in three dimensions; HOG is
made of every second frame and then chosen (arXiv 2112.09133, section 3; arXiv 2112.01526, section 4.1).
Takes the weights of our model, so that both compute the same loss: tests/bench/test_maskfeat.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.backbones.mvit import STEM, MViT, Row
from tubelet.model import MaskedModel

Sizes = tuple[int, int, int]  # a grid: time, rows, columns


class Hog(nn.Module):
    """Histograms of oriented gradients of frames, each colour apart."""

    across: Tensor
    down: Tensor

    def __init__(self, bins: int = 9, cell: int = 8):
        super().__init__()
        self.bins, self.cell = bins, cell
        sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        self.register_buffer("across", sobel.expand(3, 1, 3, 3).contiguous())
        self.register_buffer("down", sobel.T.expand(3, 1, 3, 3).contiguous())

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """[n,3,H,W] -> [n,3,bins,H/cell,W/cell]."""
        padded = F.pad(frames, (1, 1, 1, 1), mode="reflect")
        across = F.conv2d(padded, self.across, groups=3)
        down = F.conv2d(padded, self.down, groups=3)
        length = (across**2 + down**2).sqrt()
        angle = torch.atan2(across, down) / math.pi * self.bins
        at = angle.floor().remainder(self.bins).long()
        return F.normalize(self.sums(length, at), dim=2)

    def sums(self, length: Tensor, at: Tensor) -> Tensor:
        """Lengths [n,3,H,W] and bins -> [n,3,bins,H/cell,W/cell]: a map of pixels for each bin."""
        maps = length.new_zeros(*length.shape[:2], self.bins, *length.shape[2:])
        maps.scatter_add_(2, at.unsqueeze(2), length.unsqueeze(2))
        return self.in_cells(maps).sum(-1)

    def in_cells(self, x: Tensor) -> Tensor:
        """[...,H,W] -> [...,rows,columns,cell * cell]."""
        cut = x.unflatten(-1, (-1, self.cell)).unflatten(-3, (-1, self.cell))
        return cut.transpose(-3, -2).flatten(-2)


class HogIntoCells(Hog):
    """Without maps, into the cells' histograms: the best that the same steps give."""

    def sums(self, length: Tensor, at: Tensor) -> Tensor:
        length, at = self.in_cells(length), self.in_cells(at)
        sums = length.new_zeros(*length.shape[:-1], self.bins)
        return sums.scatter_add_(-1, at, length).movedim(-1, 2)


def hog_of_tokens(clip: Tensor, hog: Hog, side: int) -> Tensor:
    """[B,3,T,H,W] -> [B,N,P] of tokens of 2 frames and `side` pixels, of the first frame of each."""
    frames = clip[:, :, ::2].transpose(1, 2).flatten(0, 1)
    cells = hog(frames).flatten(1, 2)
    n = side // hog.cell
    cut = cells.unflatten(3, (-1, n)).unflatten(2, (-1, n))  # [B*t,C*bins,h,n,w,n]
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).reshape(len(clip), -1, cells.shape[1] * n * n)


class Attention(nn.Module):
    """Pooling attention; parameters are named as ours."""

    def __init__(self, row: Row, inner: int, tables: dict[str, Tensor]):
        super().__init__()
        self.heads, self.strides = row.heads, {"q": row.pool_q, "k": row.pool_kv, "v": row.pool_kv}
        d = inner // row.heads
        self.scale = d**-0.5
        self.qkv, self.proj = nn.Linear(row.width, 3 * inner), nn.Linear(inner, inner)
        for name, stride in self.strides.items():
            conv = nn.Conv3d(d, d, 3, (1, stride, stride), padding=1, groups=d, bias=False)
            self.add_module(f"pool_{name}", conv)
            self.add_module(f"norm_{name}", nn.LayerNorm(d, eps=1e-6))
        for axis, table in tables.items():
            self.register_parameter(f"rel_pos_{axis}", nn.Parameter(table.clone()))

    def forward(self, x: Tensor, grid: Sizes) -> tuple[Tensor, Sizes]:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        (q, few), (k, many), (v, _) = (
            self.pooled(name, part, grid) for name, part in zip("qkv", parts, strict=True)
        )
        logits = (q * self.scale) @ k.transpose(-2, -1)
        logits[:, :, 1:, 1:] += self.bias(q[:, :, 1:], few, many)
        out = logits.softmax(-1) @ v
        out[:, :, 1:] += q[:, :, 1:]
        return self.proj(out.transpose(1, 2).flatten(2)), few

    def pooled(self, name: str, x: Tensor, grid: Sizes) -> tuple[Tensor, Sizes]:
        """[B,heads,1+n,d] -> [B,heads,1+n',d]; the class token goes past the convolution."""
        first, places = x[:, :, :1], x[:, :, 1:]
        volume = places.flatten(0, 1).transpose(1, 2).unflatten(2, grid)
        volume = self.get_submodule(f"pool_{name}")(volume)
        t, h, w = volume.shape[2:]
        places = volume.flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])
        x = self.get_submodule(f"norm_{name}")(torch.cat([first, places], 2))
        return x, (t, h, w)

    def bias(self, q: Tensor, few: Sizes, many: Sizes) -> Tensor:
        """[B,heads,n,d] -> [B,heads,n,m]: the sum over the axes, for each pair of places."""
        q = q.unflatten(2, few)
        t, h, w = (
            self.get_parameter(f"rel_pos_{axis}")[distances(m, n)]
            for axis, m, n in zip("thw", few, many, strict=True)
        )
        whole = (
            torch.einsum("bnthwd,tkd->bnthwk", q, t)[..., :, None, None]
            + torch.einsum("bnthwd,hkd->bnthwk", q, h)[..., None, :, None]
            + torch.einsum("bnthwd,wkd->bnthwk", q, w)[..., None, None, :]
        )
        return whole.flatten(5).flatten(2, 4)


def distances(queries: int, keys: int) -> Tensor:
    """-> [queries,keys]: the row of a table for each pair of places along an axis."""
    q, k = max(keys / queries, 1.0), max(queries / keys, 1.0)
    apart = torch.arange(queries)[:, None] * q - torch.arange(keys)[None] * k
    return (apart + (keys - 1) * k).long()


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, out: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, ours: Any, row: Row):
        super().__init__()
        attention = ours.attn
        tables = {axis: attention.get_parameter(f"rel_pos_{axis}") for axis in "thw"}
        inner = attention.proj.in_features
        self.norm1, self.norm2 = (nn.LayerNorm(n, eps=1e-6) for n in (row.width, inner))
        self.attn = Attention(row, inner, tables)
        self.mlp = Mlp(inner, ours.mlp.fc1.out_features, row.out)
        self.proj = nn.Linear(inner, row.out) if row.out != inner else None
        self.skip = nn.MaxPool3d((1, 3, 3), (1, row.pool_q, row.pool_q), (0, 1, 1))
        self.pools = row.pool_q > 1

    def forward(self, x: Tensor, grid: Sizes) -> tuple[Tensor, Sizes]:
        attended, few = self.attn(self.norm1(x), grid)
        if self.pools:
            volume = self.skip(x[:, 1:].transpose(1, 2).unflatten(2, grid))
            x = torch.cat([x[:, :1], volume.flatten(2).transpose(1, 2)], 1)
        x = x + attended
        z = self.norm2(x)
        return (x if self.proj is None else self.proj(z)) + self.mlp(z), few


class Plain(nn.Module):
    """Encoder and head with the weights of our model, which predicts HOG by a linear layer."""

    def __init__(self, ours: MaskedModel):
        super().__init__()
        encoder: Any = ours.backbone
        assert isinstance(encoder, MViT) and encoder.shape.widen == "mlp"
        decoder: Any = ours.branches["hog"].decoder
        first = encoder.class_token.shape[-1]
        stem = nn.Conv3d(encoder.in_chans, first, (3, 7, 7), stride=STEM, padding=(1, 3, 3))
        self.patch, self.side = stem, encoder.patch.h
        self.class_token = nn.Parameter(encoder.class_token.clone())
        assert encoder.mask_token is not None
        self.mask_token = nn.Parameter(encoder.mask_token.clone())
        rows = zip(encoder.blocks, encoder.shape.rows, strict=True)
        self.blocks = nn.ModuleList(Block(block, row) for block, row in rows)
        self.norm = nn.LayerNorm(encoder.dim, eps=1e-6)
        self.head = nn.Linear(encoder.dim, decoder.head.out_features)
        self.hog = Hog()
        self.patch.load_state_dict(encoder.patch_embed["proj"].state_dict())
        self.blocks.load_state_dict(encoder.blocks.state_dict())
        self.norm.load_state_dict(decoder.norm.state_dict())
        self.head.load_state_dict(decoder.head.state_dict())

    def forward(self, clip: Tensor, hidden: Tensor) -> Tensor:
        """Normalised clip [B,C,T,H,W], hidden bool [B,N] -> the mean loss."""
        targets = hog_of_tokens(clip, self.hog, self.side)[hidden]
        x = self.patch(clip)
        t, h, w = x.shape[2:]
        grid: Sizes = (t, h, w)
        volume = hidden.view(len(clip), t, clip.shape[3] // self.side, -1)
        fine = self.side // STEM.h
        mask = volume.repeat_interleave(fine, 2).repeat_interleave(fine, 3).flatten(1)
        mask = mask[..., None].to(x.dtype)
        x = x.flatten(2).transpose(1, 2)
        x = x * (1 - mask) + self.mask_token * mask
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x, grid = block(x, grid)
        predicted = self.head(self.norm(x)[:, 1:][hidden])
        return F.mse_loss(predicted.float(), targets)
