"""A ViT and its decoder as they were published, in plain eager PyTorch, with the weights of ours.

Patches are embedded by a convolution over the whole clip and visible tokens are then chosen by a boolean
mask, softmax attention is written out, and every token goes through every decoder block (arXiv
2203.12602, section 3; arXiv 2212.04500, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.backbones.vit import ViT
from tubelet.decoders import DecoderShape


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        shares = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((shares @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))

    def drop(self, x: Tensor) -> Tensor:
        if not self.drop_path or not self.training:
            return x
        kept = torch.rand(len(x), 1, 1) >= self.drop_path
        return x * kept.to(x.dtype) / (1 - self.drop_path)


def blocks(dim: int, depth: int, heads: int, drop_path: float = 0) -> nn.ModuleList:
    return nn.ModuleList(Block(dim, heads, drop_path * i / max(1, depth - 1)) for i in range(depth))


class Embed(nn.Module):
    """Clips [B,C,T,H,W] or images [B,C,H,W] -> every token [B,N,D]: a convolution over all of it."""

    def __init__(self, vit: ViT):
        super().__init__()
        t, h, w = vit.patch
        self.proj = (
            nn.Conv2d(vit.in_chans, vit.dim, kernel_size=(h, w), stride=(h, w))
            if vit.trained[0] == 1
            else nn.Conv3d(vit.in_chans, vit.dim, kernel_size=(t, h, w), stride=(t, h, w))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Trunk(nn.Module):
    """A ViT with the weights and the position table of one of ours."""

    def __init__(self, vit: ViT, drop_path: float = 0.0):
        super().__init__()
        shape = vit.shape
        self.images = vit.trained[0] == 1
        self.table = vit.positions.table.clone()
        self.patch_embed = Embed(vit)
        if vit.class_token is not None:
            self.class_token = nn.Parameter(torch.zeros(1, 1, vit.dim))
        self.blocks = blocks(vit.dim, shape.depth, shape.heads, drop_path)
        self.norm = nn.LayerNorm(vit.dim, eps=1e-6)
        weights = dict(vit.state_dict())
        kernel = weights["patch_embed.proj.weight"]
        weights["patch_embed.proj.weight"] = kernel.squeeze(2) if self.images else kernel
        self.load_state_dict(weights)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Normalised clips [B,C,T,H,W] or images [B,C,H,W], visible bool [B,N] -> [B,L,D]."""
        x = self.patch_embed(x) + self.table
        if visible is not None:
            x = x[visible].unflatten(0, (len(x), -1))
        if self.images:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x


class Decoder(nn.Module):
    """With the weights of one of ours."""

    def __init__(self, ours: Any, shape: DecoderShape, drop_path: float):
        super().__init__()
        self.table = ours.positions.table.clone()
        bias = ours.project.bias is not None
        self.project = nn.Linear(ours.project.in_features, shape.width, bias=bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.blocks = blocks(shape.width, shape.depth, shape.heads, drop_path)
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.head = nn.Linear(shape.width, ours.head.out_features)
        self.load_state_dict(ours.state_dict())

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Visible tokens [B,K,D], hidden bool [B,N] -> predictions at the hidden ones [B,M,P]."""
        b, table = len(x), self.table.expand(len(x), -1, -1)
        x = self.project(x)
        x = x + table[~hidden].unflatten(0, (b, -1)).to(x.dtype)
        queries = self.mask_token + table[hidden].unflatten(0, (b, -1))
        m = queries.shape[1]
        x = torch.cat([x, queries.to(x.dtype)], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -m:]))
