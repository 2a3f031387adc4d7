"""Clips in the published way: whole frames made RGB, cut and resized by Pillow, normalised floats.

Decoded is everything from the key frame before the first frame wanted to the last one, once for all
clips of an opened file. (Planes are normalised one by one: three times as fast as broadcast.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Draw(NamedTuple):
    """A clip to be had: its frames, and its box (top, left, height, width) of them."""

    at: NDArray[np.int64]
    box: tuple[int, int, int, int]


class Clip(NamedTuple):
    """float32 [3,T,h,w], normalised, and the pixels before, uint8 [T,h,w,3]."""

    values: Tensor
    pixels: NDArray[np.uint8]


def decode(path: Path, needed: set[int], fps: int, take: Callable[[int, VideoFrame], None]) -> None:
    """Gives `take` the needed frames of a file of constant rate, of all that are decoded for them."""
    first, last = min(needed), max(needed)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        step = 1 / (fps * float(stream.time_base or 0))
        container.seek(round(first * step), stream=stream)
        for frame in container.decode(stream):
            number = round((frame.pts or 0) / step)
            if number in needed:
                take(number, frame)
            if number >= last:
                break


def clips(path: Path, draws: Sequence[Draw], size: tuple[int, int], fps: int) -> list[Clip]:
    """The clips of one opened file, (height, width) each."""
    images: dict[int, Image.Image] = {}
    reformatter = VideoReformatter()

    def take(number: int, frame: VideoFrame) -> None:
        images[number] = Image.fromarray(rgb(frame, reformatter))

    decode(path, {int(frame) for draw in draws for frame in draw.at}, fps, take)
    return [_clip(images, draw, size) for draw in draws]


def _clip(images: dict[int, Image.Image], draw: Draw, size: tuple[int, int]) -> Clip:
    top, left, height, width = draw.box
    corners = (left, top, left + width, top + height)
    cut = (images[int(at)].crop(corners) for at in draw.at)
    across = (size[1], size[0])
    pixels = np.stack([np.asarray(x.resize(across, Image.Resampling.BILINEAR)) for x in cut])
    planes = torch.from_numpy(pixels).permute(3, 0, 1, 2).contiguous().float().div_(255)
    for plane, mean, std in zip(planes, MEAN, STD, strict=True):
        plane.sub_(mean).div_(std)
    return Clip(planes, pixels)


def rgb(frame: VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """uint8 [H,W,3]; one thread, and one `reformatter` for all frames of a file."""
    made = reformatter.reformat(frame, format="rgb24", threads=1)
    return cast(NDArray[np.uint8], made.to_ndarray())
