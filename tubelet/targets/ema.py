"""The student's own moving average as its teacher ("bootstrapped"; arXiv 2212.04500, section 4.3)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.targets.features import Precision, in_bf16, select


class Bootstrap(nn.Module):
    """Features of an average of the student's backbone over its updates, on the whole clip.

    The average is training state: it is in `state_dict`, and learns nothing by gradient. It
    starts as a copy, and `move`s after each update that was applied. `norm_feature`: a LayerNorm
    without weights over the features; without it nothing holds their scale.
    """

    view = "clip"

    def __init__(
        self,
        backbone: Any,
        width: int,
        *,
        momentum: float = 0.999,
        layer: int = -1,
        norm_feature: bool = True,
        precision: Precision = "auto",
    ):
        super().__init__()
        backbone.check_layer(layer)
        self.network: Any = copy.deepcopy(backbone).eval().requires_grad_(False)
        self.width = width
        self.momentum = momentum
        self.layer = layer
        self.norm_feature = norm_feature
        self.precision: Precision = precision

    def train(self, mode: bool = True) -> Bootstrap:
        """It stays in eval mode: no drop path in a target."""
        return super().train(False)

    def forward(self, view: Tensor, asked: Tensor | None = None) -> Tensor:
        """view float [B,C,T,H,W] in [0,1], asked int64 [B,M] -> float32 [B,M,P]."""
        low = in_bf16(self.precision, view.device)
        with torch.autocast(view.device.type, torch.bfloat16, enabled=low):
            features = self.network(view, layers=[self.layer], norm=False).layers[0]
        return select(features, asked, self.norm_feature)

    @torch.no_grad()
    def move(self, backbone: nn.Module) -> None:
        """average = momentum * average + (1 - momentum) * student.

        Both are split alike where processes share them (FSDP2): each moves its own part.
        """
        torch._foreach_lerp_(_parts(self.network), _parts(backbone), 1 - self.momentum)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]


def _parts(module: nn.Module) -> list[Tensor]:
    """What this process holds of the weights."""
    parameters: list[Any] = list(module.parameters())
    return [p.to_local() if hasattr(p, "to_local") else p for p in parameters]
