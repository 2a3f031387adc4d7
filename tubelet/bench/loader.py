"""Clips per CPU second: the loader of training beside the plain path, on files made here.

16 frames, stride 4, 224 pixels, VideoMAE's crop; 4 clips of each opened file, and 1. All sides draw
the same frames and boxes, in one process and one thread, by turns; CPU time of the process counts, and
a record's ratio is the median over turns. Ours gives uint8, as the device normalises.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import av
import numpy as np
import torch
from torch import Tensor

from tubelet import masks
from tubelet.bench.films import FPS, Film, films
from tubelet.bench.plain.loading import Clip, Draw, clips
from tubelet.bench.record import Record
from tubelet.data.clips import ClipDataset, Key, collate
from tubelet.data.lists import Entry, VideoList
from tubelet.data.prepare.job import prepare
from tubelet.data.sampling import draw_frames, rng_for
from tubelet.data.transforms import PRETRAIN, Pixels, multiscale_box
from tubelet.shapes import ClipSpec, Grid, Sample

SPEC = ClipSpec(num_frames=16, sampling_rate=4, size=(224, 224))
GRID = Grid(8, 14, 14)
BARS = {250: 2.0, 12: 2.5}  # at 340x256 with 4 clips of an opened file
BARS_PREPARED = {250: 10.0, 12: 6.0}
BAR_MASKS = 0.02  # of a worker's time
ROUNDS = 12
T = TypeVar("T")


@dataclass
class Turns:
    """CPU seconds of each side in each turn, and grey levels from the plain pixels."""

    clips: int
    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    levels: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def record(self, name: str, ours: str, against: str, bar: float | None, note: str) -> Record:
        """One side beside another; seconds are those of a clip."""
        own, other = self.seconds[ours], self.seconds[against]
        ratios = [b / a for a, b in zip(own, other, strict=True)]
        rates = [self.clips * len(of) / sum(of) for of in (own, other)]
        words = f"{rates[0]:.1f} clips a CPU second, against {rates[1]:.1f}"
        if ours in self.levels:
            words += f"; {median(self.levels[ours]):.2f} grey levels from its pixels on average"
        return Record(
            name=name,
            against=against,
            ratio_time=median(ratios),
            precision="uint8",
            shape=f"{self.clips}x3x16x224x224",
            bar=bar,
            spread=(min(ratios), max(ratios)),
            seconds=median(own) / self.clips,
            seconds_against=median(other) / self.clips,
            note=f"{words}{note}",
        )


def records(
    quick: bool = False,
    progress: Callable[[int, int], None] | None = None,
    *,
    folder: Path | None = None,
) -> list[Record | dict[str, Any]]:
    """The records of all files and sides, and the share of masks.

    `quick`: short files of the small size, two turns, no bars. `folder`: of the files, kept there.
    """
    found: list[Record | dict[str, Any]] = []
    shares: list[float] = []
    with one_thread(), home_of(folder) as home:
        every = films(home, quick)
        for done, film in enumerate(every):
            again = None if film.large else prepared(film.path)
            found += _of(film, again, quick)
            if again is not None:
                shares.append(share_of_masks(again))
            if progress is not None:
                progress(done + 1, len(every))
    found.append(_row_of_masks(max(shares), quick))
    return found


def _row_of_masks(share: float, quick: bool) -> dict[str, Any]:
    """Beside its bar, the largest part of a worker's time that masks and packing took."""
    row: dict[str, Any] = {"name": "masks and packing", "share_of_a_worker": round(share, 4)}
    return row if quick else {**row, "bar": BAR_MASKS, "met": share <= BAR_MASKS}


def _of(film: Film, again: Path | None, quick: bool) -> list[Record]:
    """The records of one file, and `again`: as `prepare` made it, if it did."""
    path, name, large = film.path, f"loader-{film.name}", film.large
    # As few turns of large frames as give the same ratio: they are slow.
    rounds = 2 if quick else ROUNDS // 3 if large else ROUNDS
    several = measure(path, 4, rounds, again)
    one = measure(path, 1, rounds)
    barred = not (quick or large)
    bar, bar_prepared = (BARS[film.key], BARS_PREPARED[film.key]) if barred else (None, None)
    alone = "; theirs opens the file for each clip, as published"
    found = [
        several.record(name, "fast", "plain", bar, ""),
        several.record(f"{name}-exact", "exact", "plain", None, ""),
        one.record(f"{name}-1", "fast", "plain", None, ""),
        one.record(f"{name}-1-exact", "exact", "plain", None, ""),
    ]
    if again is not None:
        found += [
            several.record(f"{name}-prepared", "prepared", "plain", bar_prepared, ""),
            several.record(f"{name}-prepared", "prepared", "plain-1", bar_prepared, alone),
        ]
    return found


def wanted(path: Path, epoch: int, clips: int) -> list[Draw]:
    """What `ClipDataset` draws for an epoch."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        count, size = stream.frames, (stream.height, stream.width)
    found: list[Draw] = []
    for repeat in range(clips):
        rng = rng_for(0, epoch, 0, repeat)
        at = draw_frames(SPEC, count, FPS, rng)
        found.append(Draw(at, multiscale_box(size, SPEC.size, PRETRAIN, rng)))
    return found


def hide(rng: np.random.Generator) -> Tensor:
    """VideoMAE's mask of a clip."""
    return masks.tube(GRID, rng, mask_ratio=0.9)[None]


def dataset(path: Path, clips: int, pixels: Pixels) -> ClipDataset:
    """One file as training reads it."""
    videos = VideoList(entries=(Entry(str(path)),))
    config = replace(PRETRAIN, pixels=pixels)
    return ClipDataset(videos, SPEC, config, seed=0, num_sample=clips, repeats="clip", mask=hide)


def prepared(path: Path) -> Path:
    """The file as `tubelet prepare` makes it again, beside it."""
    out = path.with_suffix("")
    report = prepare(path, out, workers=0)
    assert report.ok
    return out / path.name


def apart(samples: Sequence[Sample], expected: Sequence[Clip]) -> float:
    """Mean absolute difference of our views to the plain pixels, in grey levels."""
    pairs = zip(samples, expected, strict=True)
    levels = [
        (s.views["clip"].float() - torch.from_numpy(clip.pixels).permute(3, 0, 1, 2)).abs().mean()
        for s, clip in pairs
    ]
    return float(torch.stack(levels).mean())


def measure(path: Path, count: int, rounds: int, again: Path | None = None) -> Turns:
    """All sides by turns, `count` clips of an opened file. `again`: the prepared file, and then also
    the plain path with the file opened for each clip ("plain-1")."""
    ours = {"fast": dataset(path, count, "fast"), "exact": dataset(path, count, "exact")}
    if again is not None:
        ours["prepared"] = dataset(again, count, "fast")
    turns = Turns(count)
    for turn in range(rounds + 1):
        draws = wanted(path, turn, count)
        took, expected = cpu_seconds(lambda draws=draws: clips(path, draws, SPEC.size, FPS))
        times = {"plain": took}
        if again is not None:
            times["plain-1"], _ = cpu_seconds(
                lambda draws=draws: [clips(path, [draw], SPEC.size, FPS) for draw in draws]
            )
        for name, data in ours.items():
            times[name], samples = cpu_seconds(lambda data=data, turn=turn: data[Key(turn, 0)])
            if turn:
                turns.levels.setdefault(name, []).append(apart(samples, expected))
        for name, seconds in times.items() if turn else ():  # the first turn warms up
            turns.seconds.setdefault(name, []).append(seconds)
    return turns


def share_of_masks(path: Path, opened: int = 6) -> float:
    """The part of a worker's CPU time that drawing and packing masks is, in a batch of VideoMAE.

    Of a prepared file that is opened for four clips each time, it is the largest: all else is quick.
    """
    ours = dataset(path, 4, "fast")
    collate([ours[Key(0, 0)]], pack=masks.pack)
    whole, groups = cpu_seconds(lambda: [ours[Key(epoch, 0)] for epoch in range(opened)])
    samples = [sample for group in groups for sample in group]
    rngs = [rng_for(0, at, 0) for at in range(len(samples))]
    draw, _ = cpu_seconds(lambda: [hide(rng) for rng in rngs])
    packing: list[float] = []

    def pack(*args: Any) -> Any:
        took, packed = cpu_seconds(lambda: masks.pack(*args))
        packing.append(took)
        return packed

    both, _ = cpu_seconds(lambda: collate([samples], pack=pack))
    return (draw + sum(packing)) / (whole + both)


def cpu_seconds(job: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of a job, and what it returns."""
    begun = time.process_time()
    result = job()
    return time.process_time() - begun, result


@contextmanager
def home_of(folder: Path | None) -> Generator[Path]:
    """Where files are made: a folder that stays, or one that goes."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tubelet-bench") as name:
        yield Path(name)


@contextmanager
def one_thread() -> Generator[None]:
    """As a worker has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
