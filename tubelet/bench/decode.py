"""Frames of clips per CPU second: our reader beside full decodes, as stored and as RGB.

4 clips of 16 frames, stride 4, of each opened file; opening counts. Everybody gives the same frames.
One thread, by turns; CPU time of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from tubelet.bench.films import FPS, films
from tubelet.bench.loader import cpu_seconds, home_of, one_thread, wanted
from tubelet.bench.plain import loading
from tubelet.bench.record import Record
from tubelet.data.decode import Decoder, Video, available_decoders
from tubelet.data.reader import Reader

Frames = NDArray[np.int64]
CLIPS, ROUNDS = 4, 9


def records(
    quick: bool = False,
    progress: Callable[[int, int], None] | None = None,
    *,
    folder: Path | None = None,
) -> list[Record]:
    """Ours against PyAV decoding everything, and against torchcodec where it is installed."""
    rounds = 2 if quick else ROUNDS
    found: list[Record] = []
    with one_thread(), home_of(folder) as home:
        every = films(home, quick)
        for done, film in enumerate(every):
            turns = max(2, rounds // 3) if film.large else rounds
            found += of_file(film.path, f"decode-{film.name}", turns)
            if progress is not None:
                progress(done + 1, len(every))
    return found


def of_file(path: Path, name: str, rounds: int) -> list[Record]:
    """The records of one file."""
    sides: dict[str, Callable[[Frames], Any]] = {
        "raw": partial(raw, path),
        "rgb": partial(rgb, path),
        "pyav-raw": partial(full, path, as_rgb=False),
        "pyav": partial(full, path, as_rgb=True),
    }
    if not available_decoders()["torchcodec"].startswith("missing"):
        sides["torchcodec"] = partial(rgb, path, decoder="torchcodec")
    took: dict[str, list[float]] = {side: [] for side in sides}
    counts: list[int] = []
    for turn in range(rounds + 1):
        at = np.unique(np.concatenate([draw.at for draw in wanted(path, turn, CLIPS)]))
        for side, job in sides.items():
            seconds, _ = cpu_seconds(partial(job, at))
            if turn:  # the first turn warms up
                took[side].append(seconds)
        counts += [len(at)] if turn else []
    pairs = [("raw", "pyav-raw"), *(("rgb", side) for side in ("pyav", "torchcodec"))]
    return [
        _record(f"{name}-{ours}", took[ours], against, took[against], counts)
        for ours, against in pairs
        if against in took
    ]


def _record(
    name: str, ours: list[float], against: str, theirs: list[float], counts: list[int]
) -> Record:
    """Of one side beside another; seconds are those of an opened file."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    rates = [sum(counts) / sum(of) for of in (ours, theirs)]
    return Record(
        name=name,
        against=against,
        ratio_time=median(ratios),
        precision="uint8",
        shape=f"{CLIPS}x16 frames",
        spread=(min(ratios), max(ratios)),
        seconds=median(ours),
        seconds_against=median(theirs),
        note=f"{rates[0]:.0f} frames wanted a CPU second, against {rates[1]:.0f}",
    )


def raw(path: Path, at: Frames) -> list[NDArray[np.uint8]]:
    """Frames as they are stored, by our reader."""
    reader = Reader(str(path))
    try:
        return [_planes(frame) for frame in reader.raw(at)]
    finally:
        reader.close()


def rgb(path: Path, at: Frames, *, decoder: Decoder = "pyav") -> NDArray[np.uint8]:
    """uint8 [n,H,W,3], by `Video`."""
    with Video(path, decoder=decoder) as video:
        return video.frames(at).numpy()


def full(path: Path, at: Frames, *, as_rgb: bool) -> list[NDArray[np.uint8]]:
    """The same frames, of all that PyAV decodes from the key frame before the first on."""
    found: list[NDArray[np.uint8]] = []
    reformatter = VideoReformatter()

    def take(_: int, frame: VideoFrame) -> None:
        found.append(loading.rgb(frame, reformatter) if as_rgb else _planes(frame))

    loading.decode(path, set(at.tolist()), FPS, take)
    return found


def _planes(frame: VideoFrame) -> NDArray[np.uint8]:
    return cast(NDArray[np.uint8], frame.to_ndarray())
