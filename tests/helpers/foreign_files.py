"""Small models with their cards, and their files in the layouts of others, for tests of commands.

They are written by our own writers, whose files other tests compare with the reference ones.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from foreign import DECODER, SHAPE

from tubelet import stored
from tubelet.backbones.mvit import MViTShape
from tubelet.interop import layouts
from tubelet.methods.mae import ImageMAE, image
from tubelet.methods.maskfeat import MaskFeat
from tubelet.methods.mvd import MVD, Distilled
from tubelet.methods.run import to_dict
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Card, Classifier, VideoModel
from tubelet.shapes import ClipSpec

CLIP = ClipSpec(num_frames=4, sampling_rate=2, size=(32, 32))
# What files of these widths do not say.
ENCODER = ["--heads", "3", "--trained", "4", "32", "32"]
WHOLE = [*ENCODER, "--decoder-heads", "2"]
CLASSES = ("left", "right")


def randomised(model: Any, seed: int = 0) -> Any:
    """The same numbers each time, and none of them zero or one."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0.0 if value.dim() > 1 else 0.5, 0.1, generator=rng)
    return model.eval()


def pretrained(run: Any) -> VideoModel:
    model = randomised(run.model())
    model.card = Card(run.clip, run=to_dict(run))
    return model


def videomae() -> VideoModel:
    return pretrained(VideoMAE(clip=CLIP, encoder=SHAPE, decoder=DECODER))


def mvd() -> VideoModel:
    taught = {"image": Distilled(width=32), "video": Distilled(width=40)}
    shape = replace(SHAPE, position="sincos_3d")
    return pretrained(MVD(clip=CLIP, encoder=shape, decoder=DECODER, **taught))


def mae() -> VideoModel:
    frame = ClipSpec(num_frames=1, size=(32, 32))
    return pretrained(ImageMAE(clip=frame, encoder=image(SHAPE), decoder=DECODER))


def maskfeat() -> VideoModel:
    shape = MViTShape(depths=(1, 1, 1), widths=(8, 16, 16), heads=(1, 2, 2), pool_last=False)
    clip = ClipSpec(num_frames=8, size=(64, 64))
    return pretrained(MaskFeat(clip=clip, encoder=shape, mask_unit=(1, 1, 1)))


def classifier(outputs: int = 2, classes: tuple[str, ...] = ()) -> Classifier:
    model = randomised(Classifier(SHAPE.build(trained=(4, 32, 32), final_norm=False), outputs))
    model.card = Card(CLIP, classes or tuple(map(str, range(outputs))), "single")
    return model


def write(model: VideoModel, to: str, path: Path, **settings: Any) -> Path:
    """Writes it in that layout; `settings`: as a training script saves its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = stored.found_of(model)
    layouts.write(found, to, path)
    if settings:
        held = torch.load(path, weights_only=True)
        torch.save(held | {"args": argparse.Namespace(**settings), "epoch": 799}, path)
    return path
