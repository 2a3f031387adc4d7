"""Teachers by where they are: runs of ours, checkpoints of others, networks of your own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tubelet import zoo
from tubelet.backbones.positions import PositionMode
from tubelet.backbones.vit import ViT
from tubelet.errors import TubeletError
from tubelet.model import MaskedModel
from tubelet.targets.features import Features, Teacher


def load_teacher(source: str | Path, *, positions: PositionMode = "interpolate") -> Teacher:
    """A run folder or checkpoint -> its encoder as a teacher.

    `positions`: how the encoder takes another size than the one that it was trained at.
    """
    vit, _ = zoo.encoder_of(source)
    vit.positions.mode = positions
    return teacher_of(vit, name=str(source))


def teacher_of(vit: ViT, *, name: str = "") -> Teacher:
    """An encoder of ours as a teacher: of single frames if it is one of images, else of clips."""
    return Teacher(
        vit,
        width=vit.dim,
        patch=vit.patch,
        sees="frames" if vit.trained[0] == 1 else "clip",
        read=_block,
        mean=(0.0,) * vit.in_chans,  # it normalises by itself
        std=(1.0,) * vit.in_chans,
        name=name,
        digest=digest(vit),
    )


def _block(vit: ViT, x: Tensor, layer: int) -> Tensor:
    return vit(x, layers=[layer], norm=False).layers[0]


def connect(model: MaskedModel, teachers: Mapping[str, Teacher]) -> dict[str, tuple[int, int]]:
    """Gives the branches their teachers -> the views that these want beside the student's clip."""
    views: dict[str, tuple[int, int]] = {}
    for name, teacher in teachers.items():
        target: Any = getattr(model.branches[name], "target", None)
        if not isinstance(target, Features):
            raise TubeletError(
                f"The branch {name} learns from {type(target).__name__}, no teacher."
            )
        target.connect(teacher)
        if target.view_size is not None:
            views[target.view] = target.view_size
    return views


def digest(module: nn.Module) -> str:
    """A hash of all weights with their names: 16 hex digits."""
    found = hashlib.blake2b(digest_size=8)
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return found.hexdigest()
