"""From a decoded clip to a view of it: one crop, flip and erasure for all its frames, in uint8.

Nothing here normalises: every network applies its own mean and standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tubelet.data.randaugment import RandAugment, rand_augment
from tubelet.data.yuv import YuvClip
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec

Size = tuple[int, int]  # height, width in pixels
Pixels = Literal["fast", "exact"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for the noise of erasing
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow makes grey
_TRIES = 10


@dataclass(frozen=True)
class Augment:
    """How a training view is cut from a decoded clip. The default is VideoMAE's pretraining.

    `crop`: "multiscale" (arXiv 2203.12602, pretraining): a box of scales of the largest box, at
    one of 13 places; "random_resized": a box of random area and aspect; "centre": none drawn.
    """

    crop: Literal["multiscale", "random_resized", "centre"] = "multiscale"
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)  # for "multiscale"
    area: tuple[float, float] = (0.08, 1.0)  # of the frame, for "random_resized"
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, for "random_resized"
    flip: float = 0.0  # probability; 0 where left and right mean something
    auto_augment: str = ""  # or "rand-m7-n4-mstd0.5-inc1"
    reprob: float = 0.0  # probability of erasing a box
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    pixels: Pixels = "exact"
    """exact: frames made RGB whole, then cut and resized as Pillow does. fast: cut and resized as they
    are stored (YUV), and then made RGB, where that can be (docs/data.md)."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is a probability, and {value} is not within 0 to 1"
            for name, value in (("flip", self.flip), ("reprob", self.reprob))
            if not 0 <= value <= 1
        ]
        for name, low, high in (("area", *self.area), ("aspect", *self.aspect)):
            if not 0 < low <= high:
                wrong.append(f"{name} is (lowest, highest) above 0, and ({low}, {high}) is not")
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            wrong.append(f"scales are above 0 and at most 1, and {self.scales} are not")
        if self.auto_augment:
            RandAugment.parse(self.auto_augment)
        if self.pixels not in get_args(Pixels):
            wrong.append(f"pixels is one of {', '.join(get_args(Pixels))}, and not {self.pixels!r}")
        if wrong:
            raise TubeletError(f"This augmentation cannot be: {'; '.join(wrong)}.")

    @property
    def takes_yuv(self) -> bool:
        """Whether views can be cut from frames as they are stored: not where RandAugment changes the
        whole frame's colours, or its centre is taken as in evaluation."""
        return self.pixels == "fast" and self.crop != "centre" and not self.auto_augment


PRETRAIN = Augment()
FINETUNE = Augment(
    crop="random_resized", flip=0.5, auto_augment="rand-m7-n4-mstd0.5-inc1", reprob=0.25
)
EVALUATE = Augment(crop="centre")


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: Tensor) -> Tensor:
        """[T,H,W,C] -> [T,height,width,C]."""
        return x[:, self.top : self.top + self.height, self.left : self.left + self.width]


def augment(
    clip: Tensor | YuvClip, sizes: dict[str, Size], config: Augment, rng: np.random.Generator
) -> dict[str, Tensor]:
    """uint8 [T,H,W,C] -> views, uint8 [C,T,h,w] each, of the names and sizes given.

    All frames and all views share RandAugment, crop, flip and the place that is erased: the same
    ones for a `YuvClip` (where `config.takes_yuv`). The first view's size decides the shape of the
    crop.
    """
    if isinstance(clip, YuvClip):
        assert config.takes_yuv, "this augmentation needs whole RGB frames"
        box = _draw_box(clip.size, sizes, config, rng)
        views = {name: clip.view(box, size, config.interpolation) for name, size in sizes.items()}
    else:
        views = _views_of_rgb(clip, sizes, config, rng)
    if config.flip and rng.random() < config.flip:
        views = {name: view.flip(-1) for name, view in views.items()}
    if config.reprob and rng.random() < config.reprob:
        _erase(views, rng)
    return views


def _views_of_rgb(
    clip: Tensor, sizes: dict[str, Size], config: Augment, rng: np.random.Generator
) -> dict[str, Tensor]:
    """`augment` up to the crop, of whole RGB frames."""
    _check(clip)
    if config.auto_augment:
        clip = rand_augment(clip, RandAugment.parse(config.auto_augment), rng)
    if config.crop == "centre":
        return {
            name: spatial_views(clip, size, 1, interpolation=config.interpolation)[0]
            for name, size in sizes.items()
        }
    cut = _draw_box((clip.shape[1], clip.shape[2]), sizes, config, rng).cut(clip)
    return {name: resize(cut, size, config.interpolation) for name, size in sizes.items()}


def _draw_box(
    frame: Size, sizes: dict[str, Size], config: Augment, rng: np.random.Generator
) -> Box:
    """The box that the first view's size and the configuration give in a frame."""
    draw = multiscale_box if config.crop == "multiscale" else random_resized_box
    return draw(frame, next(iter(sizes.values())), config, rng)


def spatial_views(
    clip: Tensor,
    size: Size,
    crops: int,
    *,
    crop_pct: float = 1.0,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Tensor:
    """uint8 [T,H,W,C] -> uint8 [crops,C,T,h,w]: the test crops; one is the centre.

    The frame is resized to the smallest that covers the size (VideoMAE's test, arXiv 2203.12602);
    with `crop_pct` below 1, to the smallest that covers size / crop_pct (MaskFeat's 0.875: a short
    side of 256 pixels for crops of 224). Crop j starts at floor(j*room/(crops-1)) along the axis
    with more room, in the middle of the other.
    """
    _check(clip)
    if crops < 1:
        raise TubeletError(f"crops must be at least 1 (got {crops}): 1 is the centre.")
    h, w = size
    cover = _cover((clip.shape[1], clip.shape[2]), (round(h / crop_pct), round(w / crop_pct)))
    whole = resize(clip, cover, interpolation)
    down, across = cover[0] - h, cover[1] - w
    views = []
    for j in range(crops):
        top, left = down // 2, across // 2
        if crops > 1 and down > across:
            top = j * down // (crops - 1)
        elif crops > 1:
            left = j * across // (crops - 1)
        views.append(whole[:, :, top : top + h, left : left + w])
    return torch.stack(views)


def _cover(frame: Size, size: Size) -> Size:
    """The frame's shape, scaled to the smallest that covers the size."""
    (height, width), (h, w) = frame, size
    # Integers: a float scale could make a side one pixel short.
    if h * width >= w * height:
        return h, max(w, h * width // height)
    return max(h, w * height // width), w


def views_of(frames: Tensor, spec: ClipSpec, crops: int = 1) -> Tensor:
    """uint8 [T,H,W,C] -> uint8 [crops,C,T,h,w]: what evaluation and prediction see of frames."""
    return spatial_views(
        frames, spec.size, crops, crop_pct=spec.crop_pct, interpolation=spec.interpolation
    )


def resize(
    frames: Tensor, size: Size, interpolation: Literal["bilinear", "bicubic"] = "bilinear"
) -> Tensor:
    """uint8 [T,H,W,C] -> uint8 [C,T,h,w], antialiased: Pillow's result to within a grey level."""
    planes = frames.contiguous().permute(0, 3, 1, 2)
    if tuple(planes.shape[2:]) != tuple(size):
        planes = interpolate(planes, size=size, mode=interpolation, antialias=True)
    return planes.transpose(0, 1).contiguous()


def to_channels(clip: Tensor, in_chans: int) -> Tensor:
    """uint8 [T,H,W,3] or [T,H,W,1] -> uint8 [T,H,W,in_chans]; 1 is grey (BT.601, as Pillow's)."""
    channels = clip.shape[-1]
    if channels == in_chans:
        return clip
    if (channels, in_chans) == (1, 3):
        return clip.expand(*clip.shape[:-1], 3)
    if (channels, in_chans) == (3, 1):
        # 16-bit fixed point, as Pillow: exact, and without a float copy of the clip.
        weights = [round(weight * 65536) for weight in _LUMA]
        parts = [clip[..., c].to(torch.int32) * weight for c, weight in enumerate(weights)]
        return ((parts[0] + parts[1] + parts[2] + 32768) >> 16).to(torch.uint8)[..., None]
    raise TubeletError(
        f"A video has 3 channels (or 1, grey), and in_chans is {in_chans}: use 3 or 1."
    )


def multiscale_box(frame: Size, size: Size, config: Augment, rng: np.random.Generator) -> Box:
    """The box of the published pretraining crop (arXiv 2203.12602; Wang et al. 2016, 1608.00859).

    Height and width are scales of the largest box with the output's aspect, drawn from the pairs
    whose scales are neighbours in the list; a side within 2 pixels of the output's snaps to it;
    the place is one of 13 on a grid of quarters: corners, middles, centre, and between.
    """
    base = _largest(frame, size)
    sides = [
        [_snap(int(side * scale), out, limit) for scale in config.scales]
        for side, out, limit in zip(base, size, frame, strict=True)
    ]
    count = len(config.scales)
    pairs = [(i, j) for i in range(count) for j in range(count) if abs(i - j) <= 1]
    i, j = pairs[rng.integers(len(pairs))]
    height, width = sides[0][i], sides[1][j]
    grid = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)] + [(y, x) for y in (1, 3) for x in (1, 3)]
    y, x = grid[rng.integers(len(grid))]
    return Box((frame[0] - height) // 4 * y, (frame[1] - width) // 4 * x, height, width)


def random_resized_box(frame: Size, size: Size, config: Augment, rng: np.random.Generator) -> Box:
    """A box of random area and log-uniform aspect at a random place (Szegedy et al., 1409.4842).

    After ten that do not fit, the largest centred one of an allowed aspect. The published
    fine-tuning resizes it without antialiasing; we do it with, as everywhere.
    """
    height, width = frame
    low, high = (log(bound) for bound in config.aspect)
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*config.area)
        aspect = exp(rng.uniform(low, high))
        h, w = round(sqrt(area / aspect)), round(sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return Box(
                int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
            )
    aspect = min(max(width / height, config.aspect[0]), config.aspect[1])
    h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
    h, w = max(1, h), max(1, w)
    return Box((height - h) // 2, (width - w) // 2, h, w)


def erase_box(size: Size, rng: np.random.Generator) -> Box | None:
    """The box that random erasing fills (arXiv 1708.04896): area 0.02 to 1/3 of the view,
    log-uniform aspect 0.3 to 1/0.3; None after ten that do not fit."""
    height, width = size
    for _ in range(_TRIES):
        area = height * width * rng.uniform(0.02, 1 / 3)
        aspect = exp(rng.uniform(log(0.3), -log(0.3)))
        h, w = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < h < height and 0 < w < width:
            return Box(
                int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
            )
    return None


def _erase(views: dict[str, Tensor], rng: np.random.Generator) -> None:
    """Fills one box of each view [C,T,h,w], in place, with noise for each pixel of each frame.

    The noise is N(0,1) in units normalised by ImageNet's mean and deviation (as published), put
    back into uint8: what falls outside of 0 to 255 is cut.
    """
    first = next(iter(views.values()))
    box = erase_box((first.shape[2], first.shape[3]), rng)
    if box is None:
        return
    for name, view in views.items():
        channels, frames, height, width = view.shape
        y, x = height / first.shape[2], width / first.shape[3]
        top, left = int(box.top * y), int(box.left * x)
        h, w = max(1, int(box.height * y)), max(1, int(box.width * x))
        noise = rng.standard_normal((channels, frames, h, w), dtype=np.float32)
        mean, std = np.array(_MEAN, np.float32), np.array(_STD, np.float32)
        if channels == 1:
            mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
        grey = 255 * (noise * std[:, None, None, None] + mean[:, None, None, None])
        patch = torch.from_numpy(np.rint(grey).clip(0, 255).astype(np.uint8))
        views[name] = view = view.contiguous()
        view[:, :, top : top + h, left : left + w] = patch


def _largest(frame: Size, size: Size) -> Size:
    """The largest box with the aspect of `size` within a frame."""
    (height, width), (h, w) = frame, size
    if height * w <= width * h:
        return height, max(1, height * w // h)
    return max(1, width * h // w), width


def _snap(side: int, out: int, limit: int) -> int:
    """The side, or the output's if that is within 2 pixels; at least 1, at most the frame's."""
    return max(1, min(out if abs(side - out) <= 2 else side, limit))


def _check(clip: Tensor) -> None:
    if clip.dtype != torch.uint8 or clip.dim() != 4 or clip.shape[-1] not in (1, 3):
        raise TubeletError(
            f"A clip is uint8 [T,H,W,C] with 3 channels or 1 (got {clip.dtype} {list(clip.shape)})."
        )
