"""Clips as they are stored: cut and resized plane by plane, and only the small view made RGB.

RGB of whole frames, cut and then resized, is most of what a clip costs besides decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
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
_RGB = (2, 0, 1)  # FFmpeg's planar RGB is stored as green, blue, red


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
        small = _empty(first, name, box[2], box[3])
        small_planes = _planes(small)
        # Each keeps what it worked out for the first frame.
        resizer, converter = VideoReformatter(), VideoReformatter()
        view = np.empty((3, len(self), height, width), np.uint8)
        rows: dict[int, int] = {}
        # Frame by frame, so that what is made of one is still in the processor's cache.
        for row, number in enumerate(self._order.tolist()):
            if rows.setdefault(number, row) != row:
                view[:, row] = view[:, rows[number]]
                continue
            _cut(self._frames[number], box, small_planes)
            frame = resizer.reformat(
                small, width, height, resized, interpolation=interpolation.upper(), threads=1
            )
            planes = _planes(converter.reformat(frame, format="gbrp", threads=1))
            for colour, plane in enumerate(_RGB):
                view[colour, row] = planes[plane]
        return torch.from_numpy(view)


def _empty(like: VideoFrame, format: str, height: int, width: int) -> VideoFrame:
    """A frame in which numbers mean the same colours as in another."""
    frame = av.VideoFrame(width, height, format)
    frame.colorspace, frame.color_range = like.colorspace, like.color_range
    frame.color_primaries, frame.color_trc = like.color_primaries, like.color_trc
    return frame


def _planes(frame: VideoFrame) -> list[Pixels]:
    """The planes of a frame, uint8 [rows,columns] each, in its own memory."""
    return [
        np.ndarray((p.height, p.width), np.uint8, memoryview(p), strides=(p.line_size, 1))
        for p in frame.planes
    ]


def _cut(frame: VideoFrame, box: tuple[int, int, int, int], out: Sequence[Pixels]) -> None:
    """Copies a box into the planes `out`. At an odd edge the colour lies between two stored rows or
    columns: their mean."""
    top, left, _, _ = box
    down, across = _COLOUR[frame.format.name]
    for number, (plane, small) in enumerate(zip(_planes(frame), out, strict=True)):
        y, x = (down, across) if number else (0, 0)
        rows = _rows(plane, top >> y, small.shape[0], bool(top & y), up=True)
        small[:] = _rows(rows.T, left >> x, small.shape[1], bool(left & x), up=False).T


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
