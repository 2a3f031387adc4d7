"""RandAugment on whole clips: one draw of operations, strengths and signs for all frames.

Cubuk et al. 2020, arXiv 1909.13719, in the "increasing" variant that VideoMAE (arXiv 2203.12602)
fine-tunes with: every operation grows stronger with the magnitude.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn.functional import embedding_bag

from tubelet.errors import TubeletError

FILL = 128  # grey that geometric operations pull in
PROBABILITY = 0.5  # of applying each operation drawn
_CHUNK = 1 << 22  # numbers (16 MB) that a warp holds at a time


@dataclass(frozen=True)
class RandAugment:
    """`count` operations with replacement, magnitude N(magnitude, std) clipped to [0, 10]."""

    magnitude: float
    count: int
    std: float

    @staticmethod
    def parse(text: str) -> RandAugment:
        """Reads "rand-m7-n4-mstd0.5-inc1": the notation of published recipes."""
        found = re.fullmatch(r"rand-m([\d.]+)-n(\d+)(?:-mstd([\d.]+))?-inc1", text)
        try:
            if found is None:
                raise ValueError
            chosen = RandAugment(float(found[1]), int(found[2]), float(found[3] or 0))
        except ValueError:
            raise TubeletError(
                f"auto_augment is {text!r}, and expected is the form 'rand-m7-n4-mstd0.5-inc1' "
                "(magnitude 7 of 10, 4 operations, standard deviation 0.5, the increasing set), "
                "or '' for none."
            ) from None
        return chosen


def rand_augment(clip: Tensor, config: RandAugment, rng: np.random.Generator) -> Tensor:
    """uint8 [T,H,W,C] -> uint8 [T,H,W,C]; C is 3 or 1."""
    names = list(OPERATIONS)
    for choice in rng.integers(0, len(names), config.count):
        applied = rng.random() < PROBABILITY
        magnitude = float(np.clip(rng.normal(config.magnitude, config.std), 0, 10))
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if applied:
            clip = OPERATIONS[names[choice]](clip, magnitude / 10, sign)
    return clip


# Each operation: (clip, strength in [0, 1], sign) -> clip.


def auto_contrast(clip: Tensor, strength: float, sign: float) -> Tensor:
    """Stretches each channel of each frame to the full range."""
    return _by_frame(clip, ImageOps.autocontrast)


def equalize(clip: Tensor, strength: float, sign: float) -> Tensor:
    """Flattens the histogram of each channel of each frame."""
    return _by_frame(clip, ImageOps.equalize)


def invert(clip: Tensor, strength: float, sign: float) -> Tensor:
    return 255 - clip


def posterize(clip: Tensor, strength: float, sign: float) -> Tensor:
    """Keeps 4 bits (strength 0) to 1 (strength 1; no bits would be a black frame)."""
    bits = max(1, 4 - int(strength * 4))
    return clip & (256 - (1 << (8 - bits)))


def solarize(clip: Tensor, strength: float, sign: float) -> Tensor:
    """Inverts what is at least as bright as a threshold, 256 (strength 0) to 0."""
    amount = int(strength * 256)
    if not amount:  # 256 is no byte: the comparison would wrap around
        return clip
    return clip ^ (clip >= 256 - amount).to(torch.uint8) * 255


def solarize_add(clip: Tensor, strength: float, sign: float) -> Tensor:
    """Brightens what is darker than 128, by up to 110."""
    return clip + (clip < 128).to(torch.uint8) * int(strength * 110)


def color(clip: Tensor, strength: float, sign: float) -> Tensor:
    return _by_frame(clip, lambda frame: ImageEnhance.Color(frame).enhance(_factor(strength, sign)))


def contrast(clip: Tensor, strength: float, sign: float) -> Tensor:
    return _by_frame(
        clip, lambda frame: ImageEnhance.Contrast(frame).enhance(_factor(strength, sign))
    )


def brightness(clip: Tensor, strength: float, sign: float) -> Tensor:
    return _by_frame(
        clip, lambda frame: ImageEnhance.Brightness(frame).enhance(_factor(strength, sign))
    )


def sharpness(clip: Tensor, strength: float, sign: float) -> Tensor:
    return _by_frame(
        clip, lambda frame: ImageEnhance.Sharpness(frame).enhance(_factor(strength, sign))
    )


def rotate(clip: Tensor, strength: float, sign: float) -> Tensor:
    """By up to 30 degrees about the centre."""
    angle = radians(30 * strength * sign)
    _, height, width, _ = clip.shape
    a, b = cos(angle), -sin(angle)
    x, y = width / 2, height / 2
    return warp(clip, (a, b, x - a * x - b * y, -b, a, y + b * x - a * y))


def shear_x(clip: Tensor, strength: float, sign: float) -> Tensor:
    return warp(clip, (1, 0.3 * strength * sign, 0, 0, 1, 0))


def shear_y(clip: Tensor, strength: float, sign: float) -> Tensor:
    return warp(clip, (1, 0, 0, 0.3 * strength * sign, 1, 0))


def translate_x(clip: Tensor, strength: float, sign: float) -> Tensor:
    """By up to 0.45 of the width."""
    return warp(clip, (1, 0, 0.45 * strength * sign * clip.shape[2], 0, 1, 0))


def translate_y(clip: Tensor, strength: float, sign: float) -> Tensor:
    """By up to 0.45 of the height."""
    return warp(clip, (1, 0, 0, 0, 1, 0.45 * strength * sign * clip.shape[1]))


OPERATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Rotate": rotate,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
}


def warp(clip: Tensor, matrix: tuple[float, float, float, float, float, float]) -> Tensor:
    """uint8 [T,H,W,C] -> the same: every pixel (x, y) takes the source at
    (a*x + b*y + c, d*x + e*y + f), bicubic; grey where that is outside the frame.

    Pillow's `Image.transform` with its own kernel (a = -1) and truncation, to within a grey level
    (the test says so), in half its time: taps and weights are worked out once for all frames.
    """
    frames, height, width, channels = clip.shape
    out = torch.empty_like(clip)
    together = max(1, _CHUNK // (height * width * channels))
    rows = max(1, _CHUNK // (32 * width))
    for first in range(0, frames, together):
        part = clip[first : first + together]
        table = part.permute(1, 2, 0, 3).float().reshape(height * width, -1)
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            taps, weights, inside = _taps(matrix, (height, width), (top, bottom))
            mixed = embedding_bag(taps, table, per_sample_weights=weights, mode="sum")
            mixed.clamp_(0, 255).masked_fill_(~inside[:, None], FILL)
            shaped = mixed.to(torch.uint8).reshape(bottom - top, width, len(part), channels)
            out[first : first + together, top:bottom] = shaped.permute(2, 0, 1, 3)
    return out


def _taps(
    matrix: tuple[float, float, float, float, float, float],
    size: tuple[int, int],
    rows: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel of some rows: up to 16 source pixels [P,16], their weights, inside [P]."""
    a, b, c, d, e, f = matrix
    height, width = size
    row = torch.arange(*rows, dtype=torch.float64)[:, None] + 0.5
    column = torch.arange(width, dtype=torch.float64) + 0.5
    x, y = (a * column + b * row + c).flatten(), (d * column + e * row + f).flatten()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    columns, across = _cubic(x - 0.5, width)
    lines, down = _cubic(y - 0.5, height)
    taps = lines[:, :, None] * width + columns[:, None, :]
    weights = down[:, :, None] * across[:, None, :]
    return taps.flatten(1), weights.flatten(1), inside


def _cubic(at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Positions float64 [P] -> the 4 pixels around, int32 [P,4], repeated at the border, and their
    weights, float32 [P,4].

    One pixel, [P,1], where all positions are whole: a shear moves along one axis only.
    """
    base = at.floor()
    t = (at - base).float()
    whole = base.to(torch.int32)[:, None]
    if not t.any():
        return whole.clamp_(0, size - 1), torch.ones_like(t)[:, None]
    u = 1 - t
    # The cubic convolution kernel with a = -1 at distances 1 + t, t, 1 - t and 2 - t.
    weights = (-t * u * u, 1 - t * t * (1 + u), 1 - u * u * (1 + t), -u * t * t)
    steps = torch.arange(-1, 3, dtype=torch.int32)
    return (whole + steps).clamp_(0, size - 1), torch.stack(weights, 1)


def _factor(strength: float, sign: float) -> float:
    """How much of the picture an enhancement keeps: 1 is all, 0.1 to 1.9."""
    return max(0.1, 1 + 0.9 * strength * sign)


def _by_frame(clip: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """A Pillow operation on every frame."""
    array = clip.numpy()
    pictures = [Image.fromarray(f if f.shape[2] == 3 else f[:, :, 0]) for f in array]
    changed = np.stack([np.asarray(change(picture)) for picture in pictures])
    return torch.from_numpy(changed.reshape(array.shape))
