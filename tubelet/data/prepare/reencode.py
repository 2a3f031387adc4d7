"""One video file made again, small and quick to decode, frame by frame.

The same frames at the same times, upright, in 8 bits without sound, for `job.py`.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import av
import numpy as np
from av.codec.context import Flags
from av.error import FFmpegError
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream

from tubelet.data.decode import look
from tubelet.data.info import DecodeError
from tubelet.data.packets import say
from tubelet.data.reader import Reader
from tubelet.errors import TubeletError

Codec = Literal["mpeg2", "h264"]

# Three frames between two others, to which no frame refers: a loader that takes every fourth frame
# skips most of them. Key frames at even distances, so that it meets the same ones all along, and
# groups that need no other. (docs/log.md, 2026-11-21)
_X264 = {
    # The fastest preset that still searches for motion in parts of a pixel.
    "preset": "veryfast",
    "tune": "fastdecode",
    "b-pyramid": "none",
    "b_strategy": "0",
    "sc_threshold": "0",
    # With it the same frames give other bytes from run to run.
    "mbtree": "0",
    # Blocks of 16x16 and, within a frame, of 4x4 alone: the others cost time and save no space.
    "partitions": "i4x4",
    "8x8dct": "0",
}
_MPEG2 = {
    "b_strategy": "0",
    "sc_threshold": "1000000000",
    "flags": "+cgop",
    "mpv_flags": "+strict_gop",
    # Any rate: the times of frames are the container's.
    "strict": "experimental",
    "lmin": "118",  # one step of the quantiser, so that 1 may be asked for
}
BEGUN = ".begun"  # ends the names of files that are not whole yet
_TAG = "tubelet prepare 2"
_NOT_THE_VIDEO = frozenset(  # errors of the disk, which the next file would meet too
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
    | {errno.ENOENT, errno.EMFILE, errno.ENOMEM}
)


@dataclass(frozen=True)
class Settings:
    """What videos are made into."""

    short_side: int = 256
    """Pixels of the shorter side; a smaller video keeps its size. Even."""
    keyframe_every: int = 24
    """Frames from a key frame to the next at most: fewer seek faster and take more space."""
    crf: int = 23
    """Quality on x264's scale: 18 is hardly told from the original, 23 its default; lower is larger.
    mpeg2 is no better below 9 and no worse above 36."""
    codec: Codec = "mpeg2"
    """mpeg2 is decoded in half the time; h264 takes less space, and is without loss at crf 0."""

    def __post_init__(self) -> None:
        wrong: list[str] = []
        if self.short_side < 16 or self.short_side % 2:
            wrong.append(f"--short-side is {self.short_side}: expected an even number from 16")
        if self.keyframe_every < 1:
            wrong.append(f"--keyframe-every is {self.keyframe_every}: expected 1 or more frames")
        if not 0 <= self.crf <= 51:
            wrong.append(f"--crf is {self.crf}: expected 0 (the best) to 51 (x264's scale)")
        if self.codec not in get_args(Codec):
            wrong.append(f"--codec is {self.codec!r}: expected one of {', '.join(get_args(Codec))}")
        if wrong:
            raise TubeletError(f"Videos cannot be made so. {'; '.join(wrong)}.")

    def tag(self) -> str:
        """What is written into a file: by it a file that is as wanted already is known."""
        return " ".join([_TAG, *(f"{name}={value}" for name, value in asdict(self).items())])

    def met_by(self, comment: str) -> bool:
        """Whether a file with this comment was made by the same settings, or for smaller videos."""
        values = dict(part.split("=") for part in comment.split()[3:] if part.count("=") == 1)
        found = {name: int(value) for name, value in values.items() if value.isdecimal()}
        return (
            comment.startswith(f"{_TAG} ")
            and found.keys() | {"codec"} == asdict(self).keys()
            and values.get("codec") == self.codec
            and found["short_side"] <= self.short_side
            and found["keyframe_every"] <= self.keyframe_every
            and found["crf"] == self.crf
        )

    def options(self) -> dict[str, str]:
        """The encoder's. The quantiser of MPEG-2 goes from 1 to 31: 7 is nearest to x264's 23 on real
        clips (docs/log.md), and 6 less is half as much."""
        every = {"g": str(self.keyframe_every), "bf": "3"}
        if self.codec == "h264":
            return {**_X264, **every, "crf": str(self.crf)}
        step = str(min(31, max(1, round(7 * 2 ** ((self.crf - 23) / 6)))))
        return {**_MPEG2, **every, "qmin": step, "qmax": step}


@dataclass(frozen=True)
class Made:
    """What became of one video."""

    source: str
    target: str
    error: str = ""  # why there is no file; what follows is then not set
    frames: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    cpu_seconds: float = 0.0
    copied: bool = False  # it was as wanted already


def make(job: tuple[str, str], settings: Settings) -> Made:
    """(source, target): the target appears whole or not at all.

    Raises `TubeletError` where the target cannot be written; a video that cannot be read, or made
    again frame by frame, is told by `Made.error`.
    """
    source, target = job
    begun = Path(target).with_name(f".{Path(target).name}.{os.getpid()}{BEGUN}")
    started = time.process_time()
    try:
        begun.parent.mkdir(parents=True, exist_ok=True)
        frames, copied = _make(source, begun, settings)
        made = os.path.getsize(begun)
        os.replace(begun, target)
    except DecodeError as error:
        return Made(source, target, error.reason)
    except (FFmpegError, OSError, ValueError) as error:
        if getattr(error, "errno", None) in _NOT_THE_VIDEO:
            raise TubeletError(_cannot_write(target, error)) from error
        return Made(source, target, f"it cannot be encoded ({say(error)}).")
    finally:
        begun.unlink(missing_ok=True)
    took = time.process_time() - started
    return Made(source, target, "", frames, os.path.getsize(source), made, took, copied)


def _make(source: str, begun: Path, settings: Settings) -> tuple[int, bool]:
    """-> the number of frames, and whether the file was only copied."""
    look(source)
    with closing(Reader(source)) as reader:
        copied = settings.met_by(reader.comment)
        if copied:
            shutil.copyfile(source, begun)
        else:
            encode(reader, begun, settings)
        _check(reader, begun)
        return reader.info.frames, copied


def encode(reader: Reader, out: Path, settings: Settings, frames: int | None = None) -> int:
    """Writes an .mp4 of all frames, or of the first `frames` -> how many these are."""
    ticks, unit = reader.clock
    whole = round(Fraction(reader.info.frames) / Fraction(reader.info.fps) / unit)
    durations = np.diff(ticks, append=max(whole, ticks[-1] + 1))  # the frame rate stays what it is
    count = 0
    with av.open(f"file:{out}", "w", format="mp4") as container:
        container.metadata["comment"] = settings.tag()
        stream: VideoStream | None = None
        for frame in islice(scaled(reader, settings), frames):
            if stream is None:
                if settings.codec == "mpeg2":
                    stream = container.add_stream("mpeg2video")
                else:
                    stream = container.add_stream("libx264")
                _configure(stream, frame, reader, unit, settings)
            frame.pts, frame.time_base = int(ticks[count]), unit
            frame.duration = int(durations[count])
            frame.pict_type = PictureType.NONE  # the encoder's to choose
            container.mux(stream.encode(frame))
            count += 1
        assert stream is not None, "a reader has at least one frame"
        container.mux(stream.encode(None))
    return count


def scaled(reader: Reader, settings: Settings) -> Iterator[VideoFrame]:
    """Every frame as 8 bits 4:2:0, upright, at its new size; colours as the loader reads them."""
    turns = reader.info.rotation // 90
    size = fit(reader.info.height, reader.info.width, settings.short_side)
    height, width = size[::-1] if turns % 2 else size
    reformatter = VideoReformatter()
    for frame in reader.stream():
        rgb = frame.format.is_rgb
        narrow = rgb or settings.codec == "mpeg2"  # it knows no values below 16 or above 235
        small = reformatter.reformat(
            frame,
            width,
            height,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU601 if rgb else None,
            dst_color_range=ColorRange.MPEG if narrow else None,
            interpolation="BICUBIC",
            threads=1,
        )
        yield _turned(small, turns) if turns else small


def fit(height: int, width: int, short_side: int) -> tuple[int, int]:
    """A size in pixels -> (height, width), even: the shorter side as wanted, none made larger."""
    short = min(height, width)
    if short <= short_side:
        return max(2, height // 2 * 2), max(2, width // 2 * 2)
    h, w = (round(side * short_side / short / 2) * 2 for side in (height, width))
    return h, w


def _turned(frame: VideoFrame, turns: int) -> VideoFrame:
    """4:2:0, turned by quarters counter-clockwise."""
    height, width = frame.height, frame.width
    flat: Any = frame.to_ndarray()
    luma, chroma = flat[:height], flat[height:].reshape(2, height // 2, width // 2)
    planes = [np.rot90(plane, turns) for plane in (luma, *chroma)]
    new_width = planes[0].shape[1]
    whole = np.concatenate([plane.reshape(-1, new_width) for plane in planes])
    turned = VideoFrame.from_ndarray(np.ascontiguousarray(whole), format="yuv420p")
    turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
    return turned


def _configure(
    stream: VideoStream, frame: VideoFrame, reader: Reader, unit: Fraction, settings: Settings
) -> None:
    context = stream.codec_context
    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
    stream.time_base = context.time_base = unit
    context.framerate = Fraction(reader.info.fps).limit_denominator(1001)
    context.thread_count = 1  # the same bytes whatever the machine; files go in parallel
    context.flags |= Flags.frame_duration
    context.color_range, context.colorspace = frame.color_range, frame.colorspace
    shape = reader.pixel_shape
    context.sample_aspect_ratio = 1 / shape if reader.info.rotation % 180 else shape
    stream.options = {**settings.options()}


def _check(reader: Reader, begun: Path) -> None:
    """Refuses a file whose frames are not those of the source, by their number and times."""
    with closing(Reader(str(begun))) as made:
        if made.info.frames != reader.info.frames:
            why = f"made again it has {made.info.frames} frames, and not {reader.info.frames}"
            raise DecodeError(reader.path, f"{why}: leave it as it is.")
        ticks, unit = reader.clock
        apart = np.abs(made.timestamps - ticks * float(unit)).max()
        if apart > 0.001:
            why = f"made again its frames are shown up to {apart:.3g} s off"
            raise DecodeError(reader.path, f"{why}: leave it as it is.")


def _cannot_write(target: str, error: Exception) -> str:
    return (
        f"{target} cannot be written: {say(error)}. What was made before is whole: make room (or the "
        "folder writable), and the same command goes on from there."
    )
