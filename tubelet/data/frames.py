"""Folders of frames as paths, so that every list, message and reader takes them as it takes videos:

ssv2/123/img_{:05}.jpg[1:45]       frames 1 to 45, both included
ssv2/123/img_{:05}.jpg[1:45@12]    which were saved at 12 frames a second
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tubelet.data.info import DecodeError, VideoInfo
from tubelet.data.pictures import picture_size, read_picture
from tubelet.errors import TubeletError

RANGE = r"\[\d+:\d+(?:@\d+(?:\.\d+)?)?\]"
_PATH = re.compile(r"(?P<file>.*)\[(?P<first>\d+):(?P<last>\d+)(?:@(?P<fps>\d+(?:\.\d+)?))?\]")
_NUMBER = re.compile(r"\{:?(?P<width>\d*)d?\}")
THREADS = 16  # folders listed at a time: most of the time is spent waiting for a disk or a network


@dataclass(frozen=True, slots=True)
class FrameFolder:
    """Frames `first` to `last`, both included, of a folder, named by a template."""

    folder: str
    template: str  # of a file's name, such as img_{:05}.jpg
    first: int
    last: int
    fps: float | None = None

    def __str__(self) -> str:
        rate = "" if self.fps is None else f"@{self.fps:g}"
        return os.path.join(self.folder, self.template) + f"[{self.first}:{self.last}{rate}]"

    def file(self, number: int) -> str:
        """The file of a frame."""
        return os.path.join(self.folder, self.template.format(number))


def parse(path: str) -> FrameFolder | None:
    """The folder that a path in the form above means; None for any other path."""
    match = _PATH.fullmatch(path) if path.endswith("]") else None
    if match is None:
        return None
    folder, name = os.path.split(match["file"])
    if _NUMBER.search(name) is None:
        return None
    first, last = int(match["first"]), int(match["last"])
    if last < first:
        raise DecodeError(path, f"it has no frames: they would end ({last}) before they begin.")
    fps = None if match["fps"] is None else float(match["fps"])
    return FrameFolder(folder, checked(name), first, last, fps)


@lru_cache
def checked(template: str) -> str:
    """A template of names, if it can be one: TubeletError otherwise."""
    if len(_NUMBER.findall(template)) != 1 or re.search(r"[{}/]", _NUMBER.sub("", template)):
        raise TubeletError(
            f"{template!r} cannot name the frames of a folder: expected a name with one number in "
            "it, such as img_{:05}.jpg for img_00001.jpg."
        )
    return template


@lru_cache
def _pattern(template: str) -> re.Pattern[str]:
    """What names made by a template look like, their number as group 1."""
    before, after = _NUMBER.sub("\0", checked(template)).split("\0")
    return re.compile(rf"{re.escape(before)}(\d+){re.escape(after)}")


def numbers_of(names: Iterable[str], template: str) -> list[int]:
    """The numbers of the frames among the names of files, ascending."""
    found = map(_pattern(template).fullmatch, names)
    # img_1.jpg has a number too, but is not what img_{:05}.jpg asks for.
    return sorted(n for m in found if m and template.format(n := int(m[1])) == m[0])


def gap(folder: FrameFolder) -> str:
    """Why the folder cannot be read, by a look at the names in it; "" where no frame is missing."""
    return _look([folder])[0]


def gaps(paths: Sequence[str]) -> dict[int, str]:
    """{position of frames: why they cannot be read}, by threads.

    A folder is listed once, however many paths are parts of it (AVA's clips are, of a film).
    """
    films: dict[str, dict[int, FrameFolder]] = {}
    for at, path in enumerate(paths):
        if folder := parse(path):
            films.setdefault(folder.folder, {})[at] = folder
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda film: _look([*film.values()]), films.values())
        pairs = zip(films.values(), found, strict=True)
        return {at: why for film, said in pairs for at, why in zip(film, said, strict=True) if why}


def _look(parts: Sequence[FrameFolder]) -> list[str]:
    """What `gap` says of each of some parts of one folder, from one listing."""
    folder = parts[0].folder
    try:
        names = set(os.listdir(folder or "."))
    except OSError as error:
        return [f"{folder} cannot be listed ({error.strerror or error})"] * len(parts)
    return [_gap(part, names) for part in parts]


def _gap(part: FrameFolder, names: Collection[str]) -> str:
    wanted = range(part.first, part.last + 1)
    lacking = [n for n in wanted if part.template.format(n) not in names]
    if not lacking:
        return ""
    count = f", the first of {len(lacking)} missing" if len(lacking) > 1 else ""
    return f"{part.file(lacking[0])} does not exist{count}"


class Frames:
    """Reads a folder of frames: what `Video` needs of it. Without a stated rate it is 1 a second."""

    def __init__(self, path: str, folder: FrameFolder) -> None:
        self.path, self.folder, self.decoded = path, folder, 0
        try:
            height, width, kind, mode = picture_size(folder.file(folder.first))
        except DecodeError as error:
            raise DecodeError(path, f"frame {folder.first}: {error.reason}") from error
        count, fps = folder.last - folder.first + 1, folder.fps or 1.0
        self.info = VideoInfo(count, fps, count / fps, height, width, kind, mode, 0)
        self.timestamps = np.arange(count) / fps

    def read(self, wanted: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """wanted [n], 0-based -> out [n,H,W,3]; DecodeError for a frame of another size."""
        for row, at in enumerate(wanted.tolist()):
            number = self.folder.first + at
            try:
                pixels, _, _ = read_picture(self.folder.file(number))
            except DecodeError as error:
                raise DecodeError(self.path, f"frame {number}: {error.reason}") from error
            self.decoded += 1
            if pixels.shape != out[row].shape:
                got, first = (f"{w}x{h}" for h, w, _ in (pixels.shape, out[row].shape))
                raise DecodeError(
                    self.path,
                    f"frame {number} has {got} pixels, and the first one {first}: the frames of a "
                    "folder must have one size.",
                )
            out[row] = pixels

    def close(self) -> None:
        pass
