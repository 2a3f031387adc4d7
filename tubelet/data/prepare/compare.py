"""What making a video anew gives and takes: its size, the time to read it, and the loss of quality.

Measured as a run would meet it: through the data set of training, in clips per CPU second.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from tubelet.data.clips import ClipDataset, Key
from tubelet.data.decode import DecodeError, Video
from tubelet.data.lists import read_list
from tubelet.data.prepare.reencode import Settings, encode, scaled
from tubelet.data.reader import Reader
from tubelet.data.transforms import PRETRAIN
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec

PIECE_FRAMES = 300  # encoded of a sampled video: ten seconds of most
CLIPS = 4  # drawn of each sampled video, each with the file opened anew
# The first of a video, of which every fifth is compared: all kinds of frames, not key frames alone.
COMPARED_FRAMES, COMPARED_STEP = 61, 5


@dataclass(frozen=True)
class Sample:
    """What one video tells; sizes and the time to make it are those of all of it."""

    bytes_before: int = 0
    bytes_after: float = 0.0
    cpu_seconds: float = 0.0
    clip_seconds_before: float = 0.0  # CPU, for a clip
    clip_seconds_after: float = 0.0
    squared: float = 0.0  # mean difference of RGB values (0 to 255), squared
    absolute: float = 0.0


@dataclass(frozen=True)
class Figures:
    """What to make videos anew costs and brings."""

    videos: int
    sampled: int
    cpu_hours: float
    bytes_before: int
    bytes_after: int
    clips_per_cpu_second_before: float
    clips_per_cpu_second_after: float
    psnr_db: float | None  # of RGB, against the original scaled down; None: no difference
    mean_absolute_difference: float  # of RGB values, 0 to 255


def try_piece(source: str, settings: Settings) -> Sample | str:
    """Makes the beginning of a video in a folder of its own -> what it tells, or why it cannot."""
    with tempfile.TemporaryDirectory(prefix="tubelet-") as folder:
        piece = os.path.join(folder, "piece.mp4")
        try:
            started = time.process_time()
            with closing(Reader(source)) as reader:
                frames = reader.info.frames
                count = encode(reader, Path(piece), settings, PIECE_FRAMES)
            took = time.process_time() - started
            return compare((source, piece), settings, frames / count, took)
        except DecodeError as error:
            return error.reason
        except (OSError, ValueError) as error:
            return f"it cannot be encoded ({error})."


def compare(
    pair: tuple[str, str], settings: Settings, share: float = 1.0, cpu_seconds: float = 0.0
) -> Sample:
    """A video and what was made of it, or of 1/share of it."""
    source, made = pair
    squared, absolute = _difference(source, made, settings)
    return Sample(
        bytes_before=os.path.getsize(source),
        bytes_after=os.path.getsize(made) * share,
        cpu_seconds=cpu_seconds * share,
        clip_seconds_before=_clip_seconds(source),
        clip_seconds_after=_clip_seconds(made),
        squared=squared,
        absolute=absolute,
    )


def try_compare(pair: tuple[str, str], settings: Settings) -> Sample | str:
    """`compare`, or why it cannot."""
    try:
        return compare(pair, settings)
    except (TubeletError, OSError) as error:
        return str(error)


def summed(samples: Sequence[Sample], videos: int, bytes_before: int) -> Figures | None:
    """Samples -> figures for so many videos, in proportion to their size; None without samples."""
    size = sum(sample.bytes_before for sample in samples)
    if not size:
        return None
    scale = bytes_before / size
    mean = sum(sample.squared for sample in samples) / len(samples)
    return Figures(
        videos=videos,
        sampled=len(samples),
        cpu_hours=scale * sum(sample.cpu_seconds for sample in samples) / 3600,
        bytes_before=bytes_before,
        bytes_after=round(scale * sum(sample.bytes_after for sample in samples)),
        clips_per_cpu_second_before=_rate([s.clip_seconds_before for s in samples]),
        clips_per_cpu_second_after=_rate([s.clip_seconds_after for s in samples]),
        psnr_db=10 * math.log10(255**2 / mean) if mean else None,
        mean_absolute_difference=sum(sample.absolute for sample in samples) / len(samples),
    )


def _rate(seconds: Sequence[float]) -> float:
    return len(seconds) / max(1e-9, sum(seconds))


def _clip_seconds(path: str) -> float:
    """CPU seconds for one training clip of the published kind: 16 frames, every fourth, cut to 224."""
    clips = ClipDataset(read_list([path]), ClipSpec(), PRETRAIN, seed=0)
    clips[Key(0, 0)]  # what is done once is not counted
    started = time.process_time()
    for epoch in range(1, CLIPS + 1):
        clips[Key(epoch, 0)]
    return (time.process_time() - started) / CLIPS


def _difference(source: str, made: str, settings: Settings) -> tuple[float, float]:
    """Mean squared and absolute difference of RGB values, to the original at the new size."""
    reformatter = VideoReformatter()
    # H.264 keeps the range of values that the original has: what MPEG-2 loses by its own counts.
    whole = replace(settings, codec="h264")
    with closing(Reader(source)) as reader, Video(made) as video:
        end = min(video.info.frames, COMPARED_FRAMES)
        wanted = range(0, end, COMPARED_STEP)
        after = video.frames(wanted).numpy()
        apart: list[Any] = []
        for number, frame in zip(range(end), scaled(reader, whole), strict=False):
            if number in wanted:
                before: Any = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                apart.append(after[len(apart)].astype(np.float64) - before)
    difference = np.stack(apart)
    return float((difference**2).mean()), float(np.abs(difference).mean())
