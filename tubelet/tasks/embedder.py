"""The network that features come from, and the published preprocessing of its clips."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from tubelet.model import Classifier, VideoModel
from tubelet.shapes import ClipSpec

Pool = Literal["mean", "time", "none"]


class Embedder(nn.Module):
    """The part of a model that features come from.

    Of a classifier: tokens averaged, then its norm (what its head sees); of a pretrained model:
    the normed tokens averaged. `unnormalised`: the encoder sees the values as they are, without its
    mean and standard deviation.
    """

    def __init__(self, model: VideoModel, pool: Pool, *, unnormalised: bool = False):
        super().__init__()
        self.backbone = model.backbone
        self.norm = model.fc_norm if isinstance(model, Classifier) else nn.Identity()
        self.pool = pool
        self.unnormalised = unnormalised
        self.training = model.training  # so that the model gets its mode back

    def forward(self, clip: Tensor) -> Tensor:
        """clip float [B,C,T,H,W] in [0,1] -> [B,D]; "time": [B,t,D]; "none": [B,t,h,w,D]."""
        if self.unnormalised:
            # The encoder takes these off again.
            clip = clip * self.backbone.std + self.backbone.mean
        tokens = self.backbone(clip)
        if self.pool == "mean":
            return self.norm(tokens.x.mean(1))
        x = tokens.x.unflatten(1, tuple(tokens.grid))
        return self.norm(x.mean((2, 3)) if self.pool == "time" else x)


def published_clip(spec: ClipSpec) -> ClipSpec:
    """As VideoMAE V2 cut clips for detection: consecutive frames, the whole picture stretched."""
    return replace(spec, sampling="dense", sampling_rate=1, crop_pct=1.0, interpolation="bilinear")


def stretched(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [n,H,W,C] -> float [C,n,h,w] in [0,255]: whole frames, their aspect not kept.

    Bilinear without antialiasing, in floating point: the published script resizes after its
    division by 255 (arXiv 2303.16727's code); whether it smooths is not said.
    """
    planes = frames.permute(0, 3, 1, 2)
    # One by one: as floats, frames of the original size take four times the memory.
    small = [interpolate(one[None].float(), size=size, mode="bilinear")[0] for one in planes]
    return torch.stack(small, 1)
