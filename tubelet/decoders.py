"""Decoders: `decoder(tokens, asked) -> [B,M,P]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.backbones import layers as parts
from tubelet.backbones.positions import PositionKind, PositionMode, positions_of
from tubelet.errors import TubeletError
from tubelet.shapes import Grid, Tokens, gather

SALT = 1000  # keeps the decoder's drop path apart from the encoder's


@dataclass(frozen=True)
class DecoderShape:
    """The size of a shallow ViT decoder (B: arXiv 2203.12602, Table 1a and appendix)."""

    width: int = 384
    depth: int = 4
    heads: int = 6
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        sizes = (self.width, self.depth, self.heads, self.mlp_ratio)
        least = (self.width, self.heads, self.depth + 1, self.mlp_ratio)
        if not all(size > 0 for size in least) or self.width % self.heads:
            raise TubeletError(
                f"A decoder's width, depth, heads and mlp_ratio are {sizes}: they must be above 0 (the "
                "depth may be 0), and the width a multiple of the heads."
            )


class Joint(nn.Module):
    """Self-attention over visible tokens and mask tokens, jointly; class tokens are attended to.

    `overlap` says what an asked position that is also visible gets. "query": a mask token of its
    own beside the visible token, as every asked position (VideoMAE V2); nothing else is decoded.
    "own": the visible token's output; all N positions are decoded, as image MAE does.
    `project_bias`: as MVD and image MAE, whose projection is also initialised like the rest;
    VideoMAE's has no bias and torch's default initialisation.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        shape: DecoderShape,
        *,
        trained: Grid,
        position: PositionKind = "sinusoid_1d",
        positions: PositionMode = "interpolate",
        project_bias: bool = False,
        drop_path: float = 0.0,
        overlap: Literal["query", "own"] = "query",
    ):
        super().__init__()
        self.overlap = overlap
        self.project = nn.Linear(dim, shape.width, bias=project_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.positions = positions_of(position, shape.width, trained, positions)
        self.blocks = parts.blocks(
            shape.width,
            shape.depth,
            shape.heads,
            shape.mlp_ratio,
            drop_path=drop_path,
            salt=SALT,
        )
        self.grad_checkpointing = False
        self.norm = nn.LayerNorm(shape.width, eps=parts.NORM_EPS)
        self.head = nn.Linear(shape.width, out)
        # Published: Xavier; the mask token cut at one deviation.
        self.blocks.apply(parts.init_xavier)
        self.head.apply(parts.init_xavier)
        if project_bias:
            self.project.apply(parts.init_xavier)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, tokens: Tokens, asked: Tensor, seeds: Tensor | None = None) -> Tensor:
        """tokens x [B,L,D] and prefix [B,R,D], asked int64 [B,M] -> [B,M,P]."""
        table = self.positions(tokens.grid)
        visible = self.project(tokens.x) + F.embedding(tokens.at, table)
        if self.overlap == "query":
            x = torch.cat(
                [visible, (self.mask_token + F.embedding(asked, table)).to(visible.dtype)], 1
            )
        else:
            canvas = (self.mask_token + table).to(visible.dtype).expand(len(visible), -1, -1)
            x = canvas.scatter(1, tokens.at[..., None].expand_as(visible), visible)
        if tokens.prefix.shape[1]:
            x = torch.cat([self.project(tokens.prefix).to(x.dtype), x], 1)
        # Nothing is predicted but at the queries: the last block computes only those.
        queries = asked.shape[1] if self.overlap == "query" else None
        for i, block in enumerate(self.blocks):
            last = queries if i + 1 == len(self.blocks) else None
            x = parts.run_block(block, x, seeds, last, recompute=self.grad_checkpointing)
        if self.overlap == "query":
            x = x[:, -asked.shape[1] :]
        else:
            x = gather(x[:, tokens.prefix.shape[1] :], asked)
        return self.head(self.norm(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, about a third more time."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """The mask token, as VideoMAE."""
        return {"mask_token"}


class Mlp(nn.Module):
    """Linear, GELU, Linear on the token at each asked position: distillation per token.

    Needs a backbone that returns all N tokens: one that sees the whole clip.
    """

    def __init__(self, dim: int, out: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)
        self.apply(parts.init_xavier)

    def forward(self, tokens: Tokens, asked: Tensor, seeds: Tensor | None = None) -> Tensor:
        """tokens x [B,N,D], asked int64 [B,M] -> [B,M,P]."""
        return self.fc2(F.gelu(self.fc1(at_asked(tokens, asked))))


class Linear(nn.Module):
    """LayerNorm and a linear layer on the token at each asked position (arXiv 2112.09133, 3).

    Needs a backbone that returns all N tokens: one that replaces hidden tokens, or sees all.
    """

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=parts.NORM_EPS)
        self.head = nn.Linear(dim, out)
        self.head.apply(parts.init_normal)

    def forward(self, tokens: Tokens, asked: Tensor, seeds: Tensor | None = None) -> Tensor:
        """tokens x [B,N,D], asked int64 [B,M] -> [B,M,P]."""
        return self.head(self.norm(at_asked(tokens, asked)))


def at_asked(tokens: Tokens, asked: Tensor) -> Tensor:
    """tokens x [B,N,D], asked int64 [B,M] -> [B,M,D]; TubeletError where tokens are left out."""
    if tokens.x.shape[1] != tokens.grid.size:
        raise TubeletError(
            "This decoder predicts from the token at each asked position, and the backbone returned "
            f"{tokens.x.shape[1]} of {tokens.grid.size}. Let the backbone replace hidden tokens "
            "(hide='replace'), show it the whole clip, or use the Joint decoder."
        )
    return gather(tokens.x, asked)
