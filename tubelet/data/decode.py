"""Videos as exact frames: `Video(path).frames([0, 4, 8])`.

PyAV decodes by default (its wheel carries FFmpeg); torchcodec is an extra that gives the same
frames: equal for 8 bits and even sizes, and otherwise as near as two versions of FFmpeg
interpolate colour alike. A picture is a video of one frame, and so is read a folder of frames
(see `frames.py`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data import frames
from tubelet.data.info import DecodeError, VideoInfo
from tubelet.data.pictures import IMAGES, Picture
from tubelet.data.reader import Reader
from tubelet.data.yuv import FORMATS, YuvClip
from tubelet.errors import TubeletError

__all__ = ["IMAGES", "DecodeError", "Decoder", "Video", "VideoInfo", "available_decoders"]

Decoder = Literal["pyav", "torchcodec"]


class _Source(Protocol):
    """What `Video` needs of a file."""

    info: VideoInfo
    timestamps: NDArray[np.float64]
    decoded: int

    def read(self, wanted: NDArray[np.int64], out: NDArray[np.uint8]) -> None: ...

    def close(self) -> None: ...


class Video:
    """One video file, read by frame number; a context manager.

    `path`: a video, a picture (a clip of one frame), or a folder of frames. `decoder`: "pyav" or "torchcodec" (the
    extra `tubelet[torchcodec]`). `threads`: of the decoder; a loader has its own processes, so 1.
    Not to be shared between threads.

    Raises `DecodeError` for a file that is missing, empty, no video, or without a frame.
    """

    def __init__(self, path: str | Path, *, decoder: Decoder = "pyav", threads: int = 1) -> None:
        self.path = str(path)
        if decoder not in ("pyav", "torchcodec"):
            raise TubeletError(f"decoder is 'pyav' or 'torchcodec', and not {decoder!r}.")
        folder = frames.parse(self.path)
        if folder is not None:
            self._source: _Source = frames.Frames(self.path, folder)
            return
        look(self.path)
        if Path(self.path).suffix.lower() in IMAGES:
            self._source = Picture(self.path)
        else:
            self._source = reader = Reader(self.path, threads)
            # Files whose frames only decoding can number (see `reader.py`) or whose groups are open
            # stay with PyAV: torchcodec relies on guessed time stamps and starts at any key frame.
            if decoder == "torchcodec" and reader.plain:
                reader.close()
                self._source = _Torchcodec(reader, threads)

    @property
    def info(self) -> VideoInfo:
        """The exact number of frames, the frame rate, the size as shown."""
        return self._source.info

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """float64 [n]: when each frame is shown, in seconds after the first."""
        return self._source.timestamps

    @property
    def decoded(self) -> int:
        """Frames that the decoder has put out so far, wanted or not."""
        return self._source.decoded

    def frames(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """indices [T], 0-based in order of presentation -> uint8 [T,H,W,3], RGB.

        Any order, repeats allowed; each needed frame is decoded once. Raises `DecodeError` where
        a frame cannot be had: it names the frame and how many could be read.
        """
        asked = self._inside(indices)
        wanted, where = np.unique(asked, return_inverse=True)
        info = self.info
        out = np.empty((len(wanted), info.height, info.width, 3), np.uint8)
        self._source.read(wanted, out)
        frames = torch.from_numpy(out)
        return frames if np.array_equal(wanted, asked) else frames[torch.from_numpy(where)]

    def yuv(self, indices: Sequence[int] | NDArray[np.int64]) -> YuvClip | None:
        """The same frames as they are stored: for views of them, which are cut and resized before
        they are made RGB. None where only `frames` can: what is no video or was shot on its side,
        a format of other than 8 bits and three planes, a size that changes, torchcodec."""
        info, source = self.info, self._source
        if not isinstance(source, Reader) or info.rotation or info.pixel_format not in FORMATS:
            return None
        wanted, where = np.unique(self._inside(indices), return_inverse=True)
        frames = source.raw(wanted)
        as_said = (info.pixel_format, info.height, info.width)
        alike = all((f.format.name, f.height, f.width) == as_said for f in frames)
        return YuvClip(frames, where) if frames and alike else None

    def _inside(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """indices, all of them of frames that the video has; else DecodeError."""
        asked = np.asarray(indices, dtype=np.int64).reshape(-1)
        count = self.info.frames
        outside = asked[(asked < 0) | (asked >= count)]
        if outside.size:
            raise DecodeError(
                self.path,
                f"frame {outside[0]} was asked for, but it has {count} frames (0 to {count - 1}).",
            )
        return asked

    def close(self) -> None:
        """Frees the file; called at the end of a `with` block."""
        self._source.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def available_decoders() -> dict[str, str]:
    """Name -> its version, or "missing: " and why it cannot be used."""
    avcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    found = {"pyav": f"{av.__version__} (libavcodec {avcodec})"}
    try:
        found["torchcodec"] = _torchcodec().__version__
    except (ImportError, OSError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        found["torchcodec"] = f"missing: {why}; pip install 'tubelet[torchcodec]', and FFmpeg"
    return found


def look(path: str) -> None:
    """Raises the errors that need no decoder to be told."""
    file = Path(path)
    if not file.exists():
        raise DecodeError(path, "there is no such file.")
    if file.is_dir():
        raise DecodeError(path, "it is a folder, and a video file was expected.")
    if not os.access(path, os.R_OK):
        raise DecodeError(path, "permission to read it is denied.")
    if not file.stat().st_size:
        raise DecodeError(path, "the file is empty (0 bytes).")


def _torchcodec() -> Any:
    return importlib.import_module("torchcodec")


class _Torchcodec:
    """The same frames through torchcodec: numbers and times come from the same index."""

    def __init__(self, reader: Reader, threads: int) -> None:
        self.info, self.timestamps, self.decoded = reader.info, reader.timestamps, reader.decoded
        self._path = path = reader.path
        try:
            decoders = importlib.import_module("torchcodec.decoders")
        except (ImportError, OSError, RuntimeError) as error:
            raise TubeletError(
                f"The decoder 'torchcodec' is {available_decoders()['torchcodec']}."
            ) from error
        try:
            self._decoder = decoders.VideoDecoder(
                path, dimension_order="NHWC", num_ffmpeg_threads=threads, seek_mode="exact"
            )
        except (RuntimeError, ValueError) as error:
            raise DecodeError(path, f"torchcodec says: {error}") from error
        if len(self._decoder) != self.info.frames:
            raise DecodeError(
                path,
                f"torchcodec counts {len(self._decoder)} frames where PyAV finds "
                f"{self.info.frames}: use decoder='pyav'.",
            )

    def read(self, wanted: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        try:
            out[:] = self._decoder.get_frames_at(wanted.tolist()).data.numpy()
        except (RuntimeError, IndexError) as error:
            raise DecodeError(self._path, f"torchcodec says: {error}") from error
        self.decoded += len(wanted)

    def close(self) -> None:
        del self._decoder
