"""MVD's pretraining as it was published, in plain eager PyTorch.

Student and decoders as in `vit`; both teachers see every clip under `no_grad` (the image teacher the
first frame of each tubelet), and their features are computed for all tokens and then chosen by the
mask (arXiv 2212.04500, section 3). Takes the weights of our model, so that both compute the same loss:
tests/bench/test_mvd.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.bench.plain.vit import Decoder, Trunk
from tubelet.methods.mvd import MVD
from tubelet.model import MaskedModel


class Plain(nn.Module):
    """Student and teachers with the weights of our model."""

    def __init__(self, ours: MaskedModel, run: MVD):
        super().__init__()
        branches: dict[str, Any] = dict(ours.branches.items())
        student: Any = ours.backbone
        self.tubelet = student.patch.t
        self.backbone = Trunk(student, run.drop_path)
        self.decoders = nn.ModuleDict(
            {n: Decoder(b.decoder, run.decoder, run.drop_path) for n, b in branches.items()}
        )
        teachers = {n: Trunk(b.target.teacher.module) for n, b in branches.items()}
        self.teachers = nn.ModuleDict(teachers).requires_grad_(False)

    def train(self, mode: bool = True) -> Plain:
        super().train(mode)
        self.teachers.eval()
        return self

    @torch.no_grad()
    def targets(self, clip: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """Normalised clip -> {branch: features of the hidden tokens [B,M,P]}."""
        frames = clip[:, :, :: self.tubelet].transpose(1, 2).flatten(0, 1)
        features = {
            "image": self.teachers["image"](frames)[:, 1:].reshape(*hidden.shape, -1),
            "video": self.teachers["video"](clip),
        }
        return {n: f[hidden].unflatten(0, (len(clip), -1)) for n, f in features.items()}

    def forward(self, clip: Tensor, hidden: Tensor) -> Tensor:
        """Normalised clip [B,C,T,H,W], hidden bool [B,N] -> the mean loss."""
        targets = self.targets(clip, hidden)
        x = self.backbone.norm(self.backbone(clip, ~hidden))
        losses = [
            F.smooth_l1_loss(decoder(x, hidden).float(), targets[name].float())
            for name, decoder in self.decoders.items()
        ]
        return torch.stack(losses).sum()
