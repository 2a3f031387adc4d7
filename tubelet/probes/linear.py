"""The linear probe: the mean of a frozen encoder's tokens, and one linear layer."""

from __future__ import annotations

from torch import Tensor, nn


class LinearProbe(nn.Module):
    """Mean over tokens, linear."""

    def __init__(self, dim: int, outputs: int):
        super().__init__()
        self.head = nn.Linear(dim, outputs)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B,L,D] -> logits [B,outputs]."""
        return self.head(tokens.mean(1))
