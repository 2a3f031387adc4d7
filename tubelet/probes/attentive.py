"""The attentive probe: one learned query looks at all tokens of a frozen encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AttentiveProbe(nn.Module):
    """Cross-attention with one query, LayerNorm, linear: as in V-JEPA (arXiv 2404.08471, 3.2).

    With a single query the keys need no projection of their own: `q . (W x)` is `(W' q) . x`, so
    each head learns the vector `W' q` directly; and values are projected after pooling, which is
    the same since both are linear. So a step costs little more than a linear probe's.
    """

    def __init__(self, dim: int, outputs: int, heads: int = 4):
        super().__init__()
        assert dim % heads == 0, f"width {dim} in {heads} heads"
        self.query = nn.Parameter(torch.randn(heads, dim) * 0.02)
        self.value = nn.Parameter(torch.randn(heads, dim, dim // heads) * dim**-0.5)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, outputs)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def attention(self, tokens: Tensor) -> Tensor:
        """[B,L,D] -> [B,L,heads]: the share of each token, 1 over L."""
        return (tokens @ self.query.T).softmax(1)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,L,D] -> logits [B,outputs]."""
        pooled = self.attention(tokens).transpose(1, 2) @ tokens  # [B,heads,D]
        values = torch.einsum("bhd,hde->bhe", pooled, self.value).flatten(1)
        return self.head(self.norm(values))
