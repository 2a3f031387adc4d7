"""Training a probe on cached features, with settings tuned on validation alike for any encoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.backbones.backbone import Backbone
from tubelet.errors import TubeletError
from tubelet.probes.attentive import AttentiveProbe
from tubelet.probes.linear import LinearProbe


@dataclass(frozen=True)
class ProbeConfig:
    """How probes are trained. Every pair of `lrs` and `weight_decays` is, side by side."""

    kind: Literal["attentive", "linear"] = "attentive"
    heads: int = 4  # of the attentive probe
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # of AdamW
    weight_decays: tuple[float, ...] = (0.01, 0.3)
    epochs: int = 20
    batch_size: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Labelled:
    """Features float32 [n,L,D] of a frozen encoder, and labels int64 [n]."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Tried:
    """One setting, and its accuracy on validation."""

    lr: float
    weight_decay: float
    accuracy: float


@dataclass(frozen=True)
class Probed:
    """The setting that was best on validation, and how it did on the test clips."""

    best: Tried
    accuracy: float  # on the test clips
    predicted: Tensor  # int64 [n]: their classes
    tried: tuple[Tried, ...]


@torch.no_grad()
def frozen_features(
    backbone: Backbone,
    clips: Tensor,
    *,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """clips uint8 [n,C,T,H,W] -> the encoder's tokens in eval mode, float32 [n,L,D] on the CPU."""
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()
    found = []
    for at in range(0, len(clips), batch_size):
        clip = clips[at : at + batch_size].to(device).float() / 255
        found.append(backbone(clip).x.float().cpu())
        if progress is not None:
            progress(min(at + batch_size, len(clips)), len(clips))
    backbone.train(was_training)
    return torch.cat(found)


def probe(
    train: Labelled,
    val: Labelled,
    test: Labelled,
    classes: int,
    config: ProbeConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Probed:
    """Trains a probe for each setting, chooses by validation accuracy, and tests the chosen one.

    Features are first standardised by the training clips' mean and standard deviation. All
    settings see the same batches; the test clips are looked at once, with the setting chosen.
    """
    config = config or ProbeConfig()
    if len(train.labels) < config.batch_size:
        raise TubeletError(
            f"{len(train.labels)} training clips, fewer than a probe's batch of "
            f"{config.batch_size}: give more clips or a smaller batch_size."
        )
    mean = train.features.mean((0, 1))
    scale = 1 / (train.features.std((0, 1)) + 1e-6)
    settings = list(itertools.product(config.lrs, config.weight_decays))
    probes = [_new(config, train.features.shape[-1], classes) for _ in settings]
    standard = Labelled((train.features - mean) * scale, train.labels)
    _train(probes, settings, standard, config, progress)
    val_features = (val.features - mean) * scale
    tried = [
        Tried(lr, decay, accuracy(_classes(model, val_features), val.labels))
        for model, (lr, decay) in zip(probes, settings, strict=True)
    ]
    best = max(range(len(tried)), key=lambda i: tried[i].accuracy)  # the first of equals
    predicted = _classes(probes[best], (test.features - mean) * scale)
    return Probed(tried[best], accuracy(predicted, test.labels), predicted, tuple(tried))


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """int64 [n], int64 [n] -> the share that is equal."""
    return (predicted == labels).double().mean().item()


def _new(config: ProbeConfig, dim: int, classes: int) -> nn.Module:
    """A probe with the initial weights that `config.seed` gives, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.kind == "linear":
            return LinearProbe(dim, classes)
        return AttentiveProbe(dim, classes, config.heads)


def _train(
    probes: list[nn.Module],
    settings: list[tuple[float, float]],
    data: Labelled,
    config: ProbeConfig,
    progress: Callable[[int, int], None] | None,
) -> None:
    """All probes on the same batches: AdamW, a short warm-up and a cosine to 0."""
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) is decayed], "peak": lr}
        | {"weight_decay": decay if decayed else 0.0, "lr": lr}
        for model, (lr, decay) in zip(probes, settings, strict=True)
        for decayed in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    draws = torch.Generator().manual_seed(config.seed)
    per_epoch = len(data.labels) // config.batch_size
    total, step = config.epochs * per_epoch, 0
    for epoch in range(config.epochs):
        order = torch.randperm(len(data.labels), generator=draws)
        for rows in order[: per_epoch * config.batch_size].split(config.batch_size):
            share = min((step + 1) / (0.05 * total + 1), (1 + math.cos(math.pi * step / total)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            x, y = data.features[rows], data.labels[rows]
            torch.stack([F.cross_entropy(model(x), y) for model in probes]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        if progress is not None:
            progress(epoch + 1, config.epochs)


@torch.no_grad()
def _classes(model: nn.Module, features: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in features.split(256)])
