"""How long training waits for data: a run of ViT-S on 300 files, with 2 workers.

The run is that of `tubelet.pretrain`; its metrics.jsonl says what was waited. The first ten steps are
left out, in which workers start. The files are copies of six films that show different textures, in
turn: 0.1 GB, which the system has in memory, as it would the files of a small data set. What is waited
for is their decoding, and no disk.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tubelet.bench.films import make
from tubelet.bench.record import Record
from tubelet.bench.steps import Progress
from tubelet.bench.videomae import in_small
from tubelet.errors import TubeletError
from tubelet.methods import videomae
from tubelet.methods.run import changed
from tubelet.train.waiting import LET_PASS, SETTLED_STEPS, in_words
from tubelet.verbs import pretrain

SIZE, FRAMES, KEY = (340, 256), 300, 250
FILES, FILMS = 300, 6
STEPS = 200
CLIPS, WORKERS = 2, 2


@dataclass(frozen=True)
class Waited:
    """What a run's metrics say of the steps after the first."""

    share: float  # of the time
    seconds: float  # a step
    parts: dict[str, float]  # of the workers' time


def records(
    quick: bool = False,
    progress: Progress | None = None,
    *,
    steps: int | None = None,
    folder: Path | None = None,
) -> list[Record]:
    """One record: against a run that never waits, whose time is that of ours without the waiting.

    `quick`: a tiny network, 14 steps, no bar. `steps`: another number of them. `folder`: of the
    films, which are kept where they are there. Raises TubeletError where all steps would be left out.
    """
    if steps is None:
        steps = SETTLED_STEPS + 4 if quick else STEPS
    if steps <= SETTLED_STEPS:
        raise TubeletError(
            f"--steps {steps}: expected more than {SETTLED_STEPS}, as the first {SETTLED_STEPS} are left "
            f"out. The default is {STEPS}."
        )
    base = videomae.small_k400
    run = changed(
        in_small(base) if quick else base,
        device="cpu",
        precision="float32",
        batch_size=CLIPS,
        micro_batch=CLIPS,
        workers=WORKERS,
        steps=steps,
        log_every_steps=SETTLED_STEPS,
        save_every_steps=10**6,  # at the end alone
        progress=False,
    )
    with tempfile.TemporaryDirectory(prefix="wait") as name:
        work = Path(name)
        films = _films(folder or work, *((2, 90) if quick else (FILMS, FRAMES)))
        listed = _copies(films, work / "files", 12 if quick else FILES)
        with _watched(work / "run", steps, progress):
            pretrain(run, data=listed, out=work / "run")
        found = waited(_rows(work / "run"), CLIPS)
    spec = run.clip
    return [
        Record(
            name="wait-videomae-s",
            against="no-wait",
            ratio_time=1 - found.share,
            precision="float32",
            shape="x".join(map(str, (CLIPS, spec.in_chans, spec.num_frames, *spec.size))),
            bar=None if quick else 1 - LET_PASS,
            seconds=found.seconds,
            seconds_against=found.seconds * (1 - found.share),
            note=f"data wait {found.share:.1%} of the time; the {WORKERS} workers' time: "
            f"{in_words(found.parts)}",
        )
    ]


def waited(rows: list[dict[str, Any]], clips: int) -> Waited:
    """Rows of metrics.jsonl of a run with so many clips a step -> what they say after the first."""
    total, lost, parts = 0.0, 0.0, dict[str, float]()
    for before, row in pairwise(rows):
        seconds = (row["step"] - before["step"]) * clips / row["clips_per_second"]
        total += seconds
        lost += seconds * row["wait_ratio"]
        for part, share in row.get("worker_time", {}).items():
            parts[part] = parts.get(part, 0.0) + share * seconds
    done = rows[-1]["step"] - rows[0]["step"]
    return Waited(lost / total, total / done, {part: of / total for part, of in parts.items()})


def _films(home: Path, count: int, frames: int) -> list[Path]:
    """So many different films in `home`, made where they are not there."""
    home.mkdir(parents=True, exist_ok=True)
    films = [home / f"{SIZE[0]}x{SIZE[1]}_{KEY}_{frames}_{seed}.mp4" for seed in range(count)]
    for seed, film in enumerate(films):
        if not film.exists():
            make(film, *SIZE, KEY, frames, seed)
    return films


def _copies(films: list[Path], folder: Path, count: int) -> Path:
    """A folder of `count` files, copies of the films in turn."""
    folder.mkdir(parents=True)
    for i in range(count):
        shutil.copyfile(films[i % len(films)], folder / f"{i:03}.mp4")
    return folder


def _rows(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    read = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in read if "wait_ratio" in row]


@contextmanager
def _watched(out: Path, steps: int, progress: Progress | None) -> Generator[None, None, None]:
    """Tells how far the run in `out` is, every second, by its metrics."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            rows = _rows(out)
            progress(rows[-1]["step"] if rows else 0, steps)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    progress(steps, steps)
