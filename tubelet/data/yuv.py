"""Clips as they are stored: cut and resized plane by plane, and only the small view made RGB.

RGB of whole frames, cut and then resized, is most of what a clip costs besides decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.sampling import Frames

Pixels = NDArray[np.uint8]

# Format -> (rows, columns) of brightness for one of colour, as powers of 2. 8 bits, three planes.
_COLOUR = {
    "yuv420p": (1, 1),
    "yuvj420p": (1, 1),
    "yuv422p": (0, 1),
    "yuvj422p": (0, 1),
}
FORMATS = frozenset(_COLOUR)
_GBR = (1, 2, 0)  # in this order FFmpeg stores planar RGB


class YuvClip:
    """Frames of one format and size, which `view` cuts, resizes and converts.

    `frames`: decoded ones; `order`: which of them each frame of the clip is (repeats allowed).
    """

    def __init__(self, frames: Sequence[VideoFrame], order: Sequence[int] | Frames) -> None:
        self._frames = frames
        self._order = np.asarray(order, np.int64)
        self.size = (frames[0].height, frames[0].width)

    def __len__(self) -> int:
        return len(self._order)

    def pick(self, order: Frames) -> YuvClip:
        """The clip of its frames of these numbers; nothing is copied."""
        return YuvClip(self._frames, self._order[order])

    def view(
        self,
        box: tuple[int, int, int, int],
        size: tuple[int, int],
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> Tensor:
        """Box (top, left, height, width) of each frame -> uint8 [3,T,h,w], RGB, antialiased.

        Resized to 4:2:2, of which FFmpeg makes RGB some ten times as fast as of 4:4:4, and by the
        same rounding as of a whole frame: no view is brighter than in evaluation.
        """
        (height, width), first = size, self._frames[0]
        name = first.format.name
        resized = "yuvj422p" if name.startswith("yuvj") else "yuv422p"
        way = Interpolation[interpolation.upper()]
        cut = _Cut(first, box)
        # Each keeps what it worked out for the first frame.
        resizer, converter = VideoReformatter(), VideoReformatter()
        view = np.empty((3, len(self), height, width), np.uint8)
        rows: dict[int, int] = {}
        # Frame by frame, so that what is made of one is still in the processor's cache.
        for row, number in enumerate(self._order.tolist()):
            if rows.setdefault(number, row) != row:
                view[:, row] = view[:, rows[number]]
                continue
            small = cut(self._frames[number])
            frame = resizer.reformat(small, width, height, resized, interpolation=way, threads=1)
            frame = converter.reformat(frame, format="gbrp", threads=1)
            for colour, plane in zip(_GBR, frame.planes, strict=True):
                view[colour, row] = _pixels(plane, 0, 0, height, width)
        return torch.from_numpy(view)


def _empty(like: VideoFrame, format: str, height: int, width: int) -> VideoFrame:
    """A frame in which numbers mean the same colours as in another."""
    frame = av.VideoFrame(width, height, format)
    frame.colorspace, frame.color_range = like.colorspace, like.color_range
    frame.color_primaries, frame.color_trc = like.color_primaries, like.color_trc
    return frame


def _pixels(plane: VideoPlane, top: int, left: int, height: int, width: int) -> Pixels:
    """uint8 [height,width] of a plane, in its own memory."""
    line = plane.line_size
    # A plane gives its memory, which typeshed cannot say of a class written in C.
    memory: Any = plane
    return np.ndarray((height, width), np.uint8, memory, top * line + left, (line, 1))


class _Cut:
    """A box (top, left, height, width) of frames of one format and size, as a frame of its own, which
    the next one takes again. At an odd edge the colour lies between two stored rows or columns:
    their mean."""

    def __init__(self, like: VideoFrame, box: tuple[int, int, int, int]) -> None:
        top, left, height, width = box
        down, across = _COLOUR[like.format.name]
        self._frame = _empty(like, like.format.name, height, width)
        self._out = [_pixels(p, 0, 0, p.height, p.width) for p in self._frame.planes]
        self._from = [(top, left), *[(top >> down, left >> across)] * 2]
        self._odd = bool(top & down), bool(left & across)

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        for number, (plane, (top, left), out) in enumerate(
            zip(frame.planes, self._from, self._out, strict=True)
        ):
            if number and any(self._odd):
                whole = _pixels(plane, 0, 0, plane.height, plane.width)
                rows = _rows(whole, top, out.shape[0], self._odd[0], up=True)
                out[:] = _rows(rows.T, left, out.shape[1], self._odd[1], up=False).T
            else:
                out[:] = _pixels(plane, top, left, *out.shape)
        return self._frame


def _rows(plane: Pixels, start: int, count: int, between: bool, *, up: bool) -> Pixels:
    """`count` rows from `start` on, or `between`: the means of each and the next.

    `up`: how halves are rounded; rows and columns differ, so that colours do not drift.
    """
    rows = plane[start : start + count]
    if not between:
        return rows
    following = plane[start + 1 : start + 1 + count]
    if len(following) < count:
        following = np.concatenate([following, plane[-1:]])
    half = (rows ^ following) >> 1  # within 8 bits
    mean = (rows | following) - half if up else (rows & following) + half
    return mean.astype(np.uint8, copy=False)
