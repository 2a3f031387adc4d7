"""`tubelet prepare`: a data set made again, small and quick to decode, file by file.

    prepare("k400/", "k400_256/")       # then --data k400_256/
    prepare("train.csv", "k400_256/")   # then --data k400_256/train.csv

What is made is noted file by file, so that a job that was stopped goes on, at any moment.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tubelet.data.isolate import cpu_cores, each
from tubelet.data.prepare.compare import Figures, Sample, summed, try_compare, try_piece
from tubelet.data.prepare.ledger import Ledger, claim
from tubelet.data.prepare.reencode import BEGUN, Made, Settings, make
from tubelet.data.prepare.relist import Plan, plan, relisted
from tubelet.data.prepare.report import Fault, Report, say_size, sentence
from tubelet.errors import TubeletError

log = logging.getLogger("tubelet")

SAMPLES = 4  # videos that the estimate, and the figures at the end, are measured on
ESTIMATE_FROM = 32  # videos: for fewer, an estimate takes as long as the work
TIMEOUT_SECONDS = 6 * 3600  # for one video
Progress = Callable[[int, int, str], None]


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    root: str | os.PathLike[str] = "",
    workers: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Makes every video of a folder or list again in `out`, and the lists with it.

    Frames, their times, labels and the tree of files stay; sizes, codec and sound do not. What is
    there already, made of the same file with the same settings, stays. A file that cannot be read
    is named in the report, and lists keep the path of the original.

    Args:
        source, root: a folder, a list or a video; see `relist.plan`.
        workers: processes; default: one for each core. 0: this one.
        dry_run: measures a few videos and estimates the rest; `out` is not touched.
        progress: called as progress(done, of, note) after each file.

    Raises:
        TubeletError: a source that cannot be read; an `out` that holds something else or was made
            with other settings; a disk that is full.
    """
    settings = settings or Settings()
    workers = cpu_cores() if workers is None else workers
    planned = plan(source, root)
    folder = Path(out)
    _apart(Path(source), folder)
    ledger = claim(folder, settings)
    ledger.refuse_others(planned.places)
    todo = [path for path, place in planned.places.items() if not ledger.has(path, place)]
    report = Report(str(folder), settings, len(planned.places), len(planned.places) - len(todo))
    report.notes += planned.notes
    if dry_run or len(todo) >= ESTIMATE_FROM:
        report.estimate = _estimate(todo, settings, workers, report, dry_run)
    if dry_run:
        return report
    try:
        _begin(folder, planned, ledger)
        _make_all(todo, planned, ledger, workers, report, progress)
        _write_lists(planned, ledger)
    except OSError as error:
        raise TubeletError(
            f"{folder} cannot be written: {error.strerror or error}. What was made before is whole: "
            "make room (or the folder writable), and the same command goes on from there."
        ) from error
    if report.made or report.copied:
        report.result = _result(planned, ledger, workers)
    return report


def _apart(source: Path, out: Path) -> None:
    """Refuses folders one in the other: what is made would be taken for the source."""
    there = source if source.is_dir() else source.parent
    a, b = there.resolve(), out.resolve()
    if a == b or (source.is_dir() and (a in b.parents or b in a.parents)):
        raise TubeletError(
            f"The output folder {out} and {there} are the same, or one lies in the other: pass a "
            "folder elsewhere. Originals are never replaced."
        )


def _estimate(
    todo: Sequence[str], settings: Settings, workers: int, report: Report, dry_run: bool
) -> Figures | None:
    """Measures some videos, says what all will take; unreadable ones among them only if `dry_run`."""
    there = [path for path in todo if os.path.isfile(path)]
    some = _spread(there, SAMPLES)
    found = each(
        partial(try_piece, settings=settings),
        some,
        workers=workers,
        lost=lambda _, why: why,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    samples = [one for one in found if isinstance(one, Sample)]
    if dry_run:
        gone = [path for path in todo if not os.path.isfile(path)]
        report.unreadable += [Fault(path, "there is no such file.") for path in gone]
        bad = zip(some, found, strict=True)
        report.unreadable += [Fault(path, why) for path, why in bad if isinstance(why, str)]
    figures = summed(samples, len(todo), sum(os.path.getsize(path) for path in there))
    if figures is not None and not dry_run:
        _room(Path(report.out), figures.bytes_after)
        log.info("about %s", sentence(figures, max(1, workers)))
    return figures


def _room(out: Path, needed: int) -> None:
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise TubeletError(
            f"The videos will take about {say_size(needed)} on the disk of {out}, and "
            f"{say_size(free)} are free; nothing was written. Take --codec h264, a smaller "
            "--short-side, a higher --crf, or another disk."
        )


def _spread(items: Sequence[str], count: int) -> list[str]:
    step = max(1, len(items) // count)
    return list(items[step // 2 :: step][:count])


def _begin(folder: Path, planned: Plan, ledger: Ledger) -> None:
    """The folders, without what a process that was killed has left in them."""
    ledger.begin()
    for name in planned.folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in {os.path.dirname(place) for place in planned.places.values()}:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for left in os.listdir(folder / name):
            if left.startswith(".") and left.endswith(BEGUN):
                (folder / name / left).unlink(missing_ok=True)


def _make_all(
    todo: Sequence[str],
    planned: Plan,
    ledger: Ledger,
    workers: int,
    report: Report,
    progress: Progress | None,
) -> None:
    started, done, saved = time.monotonic(), 0, 0

    def arrived(made: Made) -> None:
        nonlocal done, saved
        done += 1
        saved += made.bytes_before - made.bytes_after
        if made.error:
            report.unreadable.append(Fault(made.source, made.error))
        else:
            report.copied += made.copied
            report.made += not made.copied
            report.cpu_seconds += made.cpu_seconds
            ledger.note(planned.places[made.source], made)

    def shown(_: int, of: int) -> None:
        if progress is not None:
            rate = done / max(1e-9, time.monotonic() - started)
            progress(done, of, f"{rate:.1f} videos/s, {say_size(saved)} saved")

    jobs = [(path, str(ledger.folder / planned.places[path])) for path in todo]
    each(
        partial(make, settings=ledger.settings),
        jobs,
        workers=workers,
        lost=lambda job, why: Made(*job, error=f"{why}."),
        timeout_seconds=TIMEOUT_SECONDS,
        progress=shown,
        arrived=arrived,
    )
    report.unreadable.sort(key=lambda fault: fault.path)
    report.seconds = time.monotonic() - started


def _write_lists(planned: Plan, ledger: Ledger) -> None:
    def new(path: str) -> str:
        place = planned.places[path]
        return place if ledger.has(path, place) else path

    for found in planned.lists:
        ledger.write_list(found.file, relisted(found, new))


def _result(planned: Plan, ledger: Ledger, workers: int) -> Figures | None:
    """What was made, now or before: true sizes and times; speed and quality of some of it."""
    places = planned.places
    kept = {path: ledger.notes[at] for path, at in places.items() if ledger.has(path, at)}
    some = _spread(list(kept), SAMPLES)
    found = each(
        partial(try_compare, settings=ledger.settings),
        [(path, str(ledger.folder / places[path])) for path in some],
        workers=workers,
        lost=lambda _, why: why,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    samples = [one for one in found if isinstance(one, Sample)]
    sampled = summed(samples, len(kept), sum(note.size for note in kept.values()))
    if sampled is None:
        return None
    return replace(
        sampled,
        bytes_after=sum(note.bytes for note in kept.values()),
        cpu_hours=sum(note.cpu_seconds for note in kept.values()) / 3600,
    )
