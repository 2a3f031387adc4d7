"""Decoders: `decoder(tokens, asked) -> [B,M,P]`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tubelet.backbones import layers as parts
from tubelet.backbones.positions import PositionKind, PositionMode, Positions
from tubelet.shapes import Grid, Tokens

SALT = 1000  # keeps the decoder's drop path apart from the encoder's


@dataclass(frozen=True)
class DecoderShape:
    """The size of a shallow ViT decoder (B: arXiv 2203.12602, Table 1a and appendix)."""

    width: int = 384
    depth: int = 4
    heads: int = 6


class Joint(nn.Module):
    """Self-attention over visible tokens and one query per asked position, jointly.

    A query is the mask token plus the position's table entry. An asked position that is also
    visible gets a query of its own beside the visible token (as VideoMAE V2).
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
    ):
        super().__init__()
        self.project = nn.Linear(dim, shape.width, bias=project_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.positions = Positions(position, shape.width, trained, positions)
        self.blocks = parts.blocks(
            shape.width, shape.depth, shape.heads, drop_path=drop_path, salt=SALT
        )
        self.grad_checkpointing = False
        self.norm = nn.LayerNorm(shape.width, eps=parts.NORM_EPS)
        self.head = nn.Linear(shape.width, out)
        # Published: Xavier for blocks and head; cut at one deviation; `project` keeps the default.
        self.blocks.apply(parts.init_xavier)
        self.head.apply(parts.init_xavier)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, tokens: Tokens, asked: Tensor, seeds: Tensor | None = None) -> Tensor:
        """tokens x [B,L,D], asked int64 [B,M] -> [B,M,P]."""
        table = self.positions(tokens.grid)
        visible = self.project(tokens.x) + table[tokens.at]
        x = torch.cat([visible, (self.mask_token + table[asked]).to(visible.dtype)], 1)
        for block in self.blocks:
            x = parts.run_block(block, x, seeds, recompute=self.grad_checkpointing)
        return self.head(self.norm(x[:, -asked.shape[1] :]))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, about a third more time."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """The mask token, as VideoMAE."""
        return {"mask_token"}
