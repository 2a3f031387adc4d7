"""Files of MaskFeat, made by the tests: small networks of clips and images with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from foreign import randomised
from torch import Tensor

from tubelet.backbones.mvit import MViTShape
from tubelet.backbones.vit import ViTShape
from tubelet.methods.maskfeat import MaskFeat, image
from tubelet.methods.run import to_dict
from tubelet.model import Card, Classifier, MaskedModel
from tubelet.shapes import ClipSpec

SPEC = ClipSpec(num_frames=4, sampling="dense_fps", size=(32, 32), crop_pct=0.875)
SHAPE = MViTShape((1, 1, 1, 2), (8, 16, 32, 64), (1, 2, 4, 8), pool_last=False)
TUNED = SHAPE.finetuned()
IMAGE = image(ViTShape(48, 2, 3, patch=8))
FRAME = ClipSpec(
    num_frames=1, sampling_rate=1, size=(32, 24), crop_pct=0.875, interpolation="bicubic"
)


def pretrained(shape: Any = SHAPE, clip: ClipSpec = SPEC, **run: Any) -> MaskedModel:
    made = MaskFeat(clip=clip, encoder=shape, **run)
    model = randomised(made.model())
    model.card = Card(clip, run=to_dict(made))
    return model


def finetuned(shape: Any = TUNED, clip: ClipSpec = SPEC) -> Classifier:
    trained = (clip.num_frames, *clip.size)
    encoder = shape.build(trained=trained, final_norm=False, masked=False)
    model = randomised(Classifier(encoder, 5))
    model.card = Card(clip, tuple("01234"), "single")
    return model


def save(path: Path, state: dict[str, Tensor], cfg: str = "") -> Path:
    """As PySlowFast saves its checkpoints."""
    told = {"cfg": cfg} if cfg else {}
    torch.save({"epoch": 3, "model_state": state, "optimizer_state": {"lr": 0.1}, **told}, path)
    return path


def clips(frames: int = 4, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, frames, height, width, generator=generator)
