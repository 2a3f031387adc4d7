"""VideoMAE's pretraining as it was published, in plain eager PyTorch, and Hugging Face's.

Plain: the clip is embedded by a convolution over all of it and visible tokens are chosen by a boolean
mask, softmax attention is written out, every token goes through every decoder block, the target is
made for all tokens and chosen by the mask (arXiv 2203.12602, section 3; the published target and loss).
Both take the weights of our model, so that all compute the same loss: tests/bench/test_videomae.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import stored
from tubelet.bench.plain.vit import Decoder, Trunk
from tubelet.interop import layouts
from tubelet.methods.run import to_dict
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Card, MaskedModel


class Plain(nn.Module):
    """Encoder and decoder with the weights of our model."""

    def __init__(self, ours: MaskedModel, run: VideoMAE):
        super().__init__()
        decoder: Any = ours.branches["pixels"].decoder
        self.patch = ours.backbone.patch
        self.mean, self.std = ours.backbone.mean, ours.backbone.std
        self.encoder = Trunk(ours.backbone)  # pyright: ignore[reportArgumentType]
        self.decoder = Decoder(decoder, run.decoder, 0.0)

    @torch.no_grad()
    def targets(self, clip: Tensor, hidden: Tensor) -> Tensor:
        """Normalised clip -> pixels of the hidden cubes, each channel of a cube normalised."""
        b, c, t, h, w = clip.shape
        pt, ph, pw = self.patch
        x = clip * self.std + self.mean
        x = x.view(b, c, t // pt, pt, h // ph, ph, w // pw, pw)
        x = x.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, -1, pt * ph * pw, c)
        x = (x - x.mean(-2, keepdim=True)) / (x.var(-2, unbiased=True, keepdim=True).sqrt() + 1e-6)
        return x.flatten(2)[hidden].view(b, -1, pt * ph * pw * c)

    def forward(self, clip: Tensor, hidden: Tensor) -> Tensor:
        """Normalised clip [B,C,T,H,W], hidden bool [B,N] -> the mean loss."""
        targets = self.targets(clip, hidden)
        x = self.encoder.norm(self.encoder(clip, ~hidden))
        return F.mse_loss(self.decoder(x, hidden).float(), targets)


def huggingface(ours: MaskedModel, run: VideoMAE) -> nn.Module:
    """`VideoMAEForPreTraining` with the weights of our model, as its users make it (fused attention)."""
    from transformers import VideoMAEForPreTraining
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would be in the way of the benchmark's own
    ours.card = Card(clip=run.clip, run=to_dict(run))
    with tempfile.TemporaryDirectory() as folder:
        layouts.write(stored.found_of(ours), "hf", Path(folder) / "model")
        return VideoMAEForPreTraining.from_pretrained(f"{folder}/model").train()
