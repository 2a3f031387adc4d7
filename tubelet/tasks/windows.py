"""The clips of overlapping windows over files of any length, each frame decoded once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.decode import DecodeError, Video
from tubelet.data.frames import parse
from tubelet.data.listfiles import LIST_EXTENSIONS
from tubelet.data.lists import read_list, splits_of
from tubelet.data.transforms import to_channels, views_of
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec

Source = str | Path
RAW_FRAMES = 16  # decoded at a time, before they are made small


def paths_of(sources: Source | Sequence[Source]) -> list[str]:
    """Files, folders and lists -> paths of files, in order; of a folder of splits, all of them."""
    if isinstance(sources, (str, Path)):
        sources = [sources]
    paths: list[str] = []
    for source in sources:
        folder = Path(source).is_dir()
        if not folder and Path(source).suffix.lower() not in LIST_EXTENSIONS:
            paths.append(str(source))
            continue
        for split in (splits_of(source) if folder else ()) or (None,):
            videos = read_list(source, kind="unlabelled", split=split, must_exist=False)
            paths += [entry.path for entry in videos.entries]
    if not paths:
        raise TubeletError("No files were given: name a video, a folder, or a list.")
    return paths


def check_rates(paths: Iterable[str]) -> None:
    """TubeletError for folders of frames of which nobody said how many a second there are."""
    for path in paths:
        folder = parse(path)
        if folder is not None and folder.fps is None:
            raise TubeletError(
                f"{path} does not say how many frames a second it has, and a hop in seconds needs "
                f"that: write {path[:-1]}@25], or pass --hop-frames."
            )


class FrameStream:
    """The clips of windows in order of their start, with every frame decoded once.

    `small`: uint8 [n,H,W,C] -> [C,n,h,w], what a network sees of frames; None: the centre, as in
    evaluation. `most` is the largest number of frames that were held at a time.
    """

    def __init__(
        self, video: Video, spec: ClipSpec, small: Callable[[Tensor], Tensor] | None = None
    ):
        self.video = video
        self.spec = spec
        self.small = small or (lambda frames: views_of(frames, spec)[0])
        self.most = 0
        self._held: dict[int, Tensor] = {}  # frame number -> [C,h,w]

    def clips(
        self, windows: Iterable[tuple[float, float, NDArray[np.int64]]]
    ) -> Iterator[tuple[float, float, Tensor]]:
        """(start, end, int64 [T]) -> (start, end, [C,T,h,w])."""
        rest = iter(windows)
        ahead = deque(islice(rest, 1))
        decoded = -1
        while ahead:
            start, end, frames = ahead[0]
            until = int(frames.max())
            # Windows that begin before this one ends need their frames now: the decoder does not
            # go back.
            while ahead[-1][2][0] <= until and (following := next(rest, None)):
                ahead.append(following)
            first = int(frames[0])
            self._held = {at: frame for at, frame in self._held.items() if at >= first}
            needed = np.unique(np.concatenate([window[2] for window in ahead]))
            self._decode(needed[(needed > decoded) & (needed <= until)])
            decoded = max(decoded, until)
            yield start, end, torch.stack([self._held[int(at)] for at in frames], 1)
            ahead.popleft()
            if not ahead:
                ahead.extend(islice(rest, 1))

    def _decode(self, numbers: NDArray[np.int64]) -> None:
        for at in range(0, len(numbers), RAW_FRAMES):
            some = numbers[at : at + RAW_FRAMES]
            frames = to_channels(self.video.frames(some), self.spec.in_chans)
            small = self.small(frames)
            self._held |= {int(n): small[:, i].clone() for i, n in enumerate(some)}
        self.most = max(self.most, len(self._held))


def batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of up to `size`; what came before an item fails to come is still given out."""
    batch: list[Any] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except DecodeError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
