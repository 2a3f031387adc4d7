"""Mixup and cutmix of clips, and soft labels.

Consecutive samples of the global batch are mixed in groups of fixed size, each with its own draw:
so what a clip is mixed with does not depend on processes, workers or micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tubelet.errors import TubeletError

_STREAM = 0x6D6978  # keeps these draws apart from those of the sample with the same seed


@dataclass(frozen=True)
class Mixing:
    """How clips are mixed; as published for fine-tuning (arXiv 2203.12602).

    `mixup`, `cutmix`: the parameter of Beta(a, a), 0 for never. `mix_group`: how many consecutive
    samples share one draw; published is the whole batch of a process, which makes the result
    depend on the number of processes.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    mixup_prob: float = 1.0  # of mixing a group at all
    mixup_switch_prob: float = 0.5  # of cutmix, where both are on
    smoothing: float = 0.1  # of labels, mixed or not
    mix_group: int = 8

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be within 0 to 1 (got {value})"
            for name, value in (
                ("mixup_prob", self.mixup_prob),
                ("mixup_switch_prob", self.mixup_switch_prob),
                ("smoothing", self.smoothing),
            )
            if not 0 <= value <= 1
        ]
        wrong += [
            f"{name} must not be negative (got {value})"
            for name, value in (("mixup", self.mixup), ("cutmix", self.cutmix))
            if value < 0
        ]
        if self.mix_group < 2 or self.mix_group % 2:
            wrong.append(f"mix_group must be even and at least 2 (got {self.mix_group})")
        if wrong:
            raise TubeletError(f"This mixing cannot be: {'; '.join(wrong)}.")

    @property
    def mixes(self) -> bool:
        """Whether any clip is ever mixed; if not, only labels are smoothed."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)


def smooth(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """int64 [B] -> float32 [B,classes]: 1 - s + s/classes for the label, s/classes for others."""
    return one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def mix(
    clip: Tensor, labels: Tensor, classes: int, config: Mixing, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """clip uint8 or float [B,C,T,H,W], labels int64 [B], a seed for each group of
    `config.mix_group` clips -> clip of the same dtype, labels float32 [B,classes].

    Clip i of a group of g meets clip g-1-i (mixup: Zhang et al., 1710.09412; cutmix: Yun et al.,
    1905.04899). The box of cutmix lies in height and width and is the same in all frames, and its
    share of the label is the area that it covers after clipping at the border. (The published MVD
    cut time and height by mistake.) Labels float [B,classes] are mixed as they are.
    """
    soft = smooth(labels, classes, config.smoothing) if labels.dim() == 1 else labels.float()
    clip, kept = mix_clips(clip, config, seeds)
    groups = zip(kept, soft.split(config.mix_group), strict=True) if kept else ()
    parts = [y * share + y.flip(0) * (1 - share) for share, y in groups]
    return clip, torch.cat(parts) if parts else soft


def mix_clips(clip: Tensor, config: Mixing, seeds: Sequence[int]) -> tuple[Tensor, list[float]]:
    """Clips alone, as `mix` -> mixed clips, and for each group the share that its clips keep of
    themselves ([] where nothing is ever mixed)."""
    if not config.mixes:
        return clip, []
    size = config.mix_group
    if len(clip) % size or len(seeds) * size != len(clip):
        raise TubeletError(
            f"Mixing works on whole groups of {size} consecutive clips with a seed each, and got "
            f"{len(clip)} clips and {len(seeds)} seeds: choose a micro-batch that is a multiple of "
            f"the group, or a smaller group (an even number)."
        )
    clip = clip.clone()
    groups = zip(seeds, clip.split(size), strict=True)
    return clip, [_mix_group(x, config, _rng(seed)) for seed, x in groups]


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([_STREAM, int(seed)])


def _mix_group(x: Tensor, config: Mixing, rng: np.random.Generator) -> float:
    """Mixes a group [g,C,T,H,W] in place -> the share that each clip keeps of itself."""
    if rng.random() >= config.mixup_prob:
        return 1.0
    cut = config.cutmix > 0 and (config.mixup == 0 or rng.random() < config.mixup_switch_prob)
    alpha = config.cutmix if cut else config.mixup
    kept = float(rng.beta(alpha, alpha))
    if not cut:
        mixed = x.float() * kept + x.flip(0).float() * (1 - kept)
        x.copy_(mixed.round() if x.dtype == torch.uint8 else mixed)
        return kept
    height, width = x.shape[-2:]
    top, bottom, left, right = cut_box(height, width, kept, rng)
    x[..., top:bottom, left:right] = x.flip(0)[..., top:bottom, left:right]
    return 1 - (bottom - top) * (right - left) / (height * width)


def cut_box(
    height: int, width: int, kept: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box of area 1 - kept and the frame's shape, centred
    anywhere in the frame and clipped to it (1905.04899, appendix A)."""
    side = sqrt(1 - kept)
    h, w = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    return (
        max(0, y - h // 2),
        min(height, y + h // 2),
        max(0, x - w // 2),
        min(width, x + w // 2),
    )
