"""`tubelet check`: decodes every file of a data set before a run does, and says what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tubelet.data import frames
from tubelet.data.decode import DecodeError, Decoder, Video
from tubelet.data.isolate import cpu_cores, each
from tubelet.data.lists import Source, VideoList, read_list, splits_of
from tubelet.data.missing import missing_files
from tubelet.data.sampling import draw_frames, rng_for
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec

CHUNK_FRAMES = 32  # decoded at a time: bounded memory for long files
CLIPS_TIMED = 64  # files on which the speed of drawing one training clip is measured
TIMEOUT_SECONDS = 1800  # for one file
SHORT = (
    "In clips of a video that is too short the last frames repeat. Make the clip shorter "
    "(--num-frames, --sampling-rate), remove these videos, or let them pass (--allow-short)."
)
SHOWN = 20  # rows of each table; the JSON has all


@dataclass(frozen=True)
class File:
    """What decoding one file from end to end has shown."""

    path: str
    error: str = ""  # why it cannot be read; the fields below are then not set
    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    codec: str = ""
    sha256: str = ""
    decode_seconds: float = 0.0  # all frames
    clip_seconds: float | None = None  # one training clip, where it was timed


@dataclass(frozen=True)
class Split:
    """What the list of one split says."""

    videos: int
    kind: str
    classes: int
    histogram: dict[str, int]
    notes: tuple[str, ...]


@dataclass
class Report:
    """What `check` found. `ok` is False where a run would fail or a score would be wrong."""

    splits: dict[str, Split] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # lists that cannot be read, class gaps
    notes: list[str] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)  # split, path, reason
    too_short: list[dict[str, Any]] = field(default_factory=list)  # split, path, frames, needed
    across: list[list[dict[str, str]]] = field(default_factory=list)  # same content, two splits
    within: list[list[dict[str, str]]] = field(default_factory=list)  # same content, one split
    speed: dict[str, float] = field(default_factory=dict)
    videos: dict[str, Any] = field(default_factory=dict)  # sizes, frame rates, lengths, codecs
    allow_short: bool = False  # videos shorter than the clip are no fault

    @property
    def ok(self) -> bool:
        short = self.too_short and not self.allow_short
        return not (self.problems or self.unreadable or self.across or short)

    def to_json(self) -> str:
        """All of it, for a program."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2, ensure_ascii=False)

    def table(self) -> RenderableType:
        """What a person should see, for rich."""
        return Group(*_tables(self))


def check(
    sources: Source | Mapping[str, Source],
    *,
    root: str | os.PathLike[str] = "",
    spec: ClipSpec | None = None,
    workers: int | None = None,
    decoder: Decoder = "pyav",
    column: str | None = None,
    allow_short: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Decodes every frame of every file of a list or folder, or of several splits.

    Args:
        sources: as for `read_list`; a folder with train, val, test is taken as these splits; or
            {"train": ..., "val": ...}.
        root, column: as for `read_list`.
        spec: the clip, to find videos that are too short for it.
        workers: processes; default: one for each core. 0: this one.
        allow_short: videos shorter than the clip are named, but no reason not to be `ok`.
        progress: called as progress(done, of) after each file.

    Raises:
        TubeletError: where no list at all could be read.
    """
    report = Report(allow_short=allow_short)
    lists = _read(sources, root, column, report)
    labelled = {split: videos.classes for split, videos in lists.items() if videos.classes}
    for split, videos in lists.items():
        report.splits[split] = _describe(videos)
        report.notes += videos.notes
    _compare_classes(labelled, report)
    paths = list(dict.fromkeys(e.path for videos in lists.values() for e in videos.entries))
    gone = {paths[at] for at in missing_files(paths)}
    there = [path for path in paths if path not in gone]
    timed = set(there[:: max(1, len(there) // CLIPS_TIMED)])
    started = time.monotonic()
    found = each(
        partial(inspect_file, clip=spec or ClipSpec(), timed=timed, decoder=decoder),
        there,
        workers=cpu_cores() if workers is None else workers,
        lost=lambda path, why: File(path, error=f"{why}."),
        timeout_seconds=TIMEOUT_SECONDS,
        progress=progress,
    )
    seconds = time.monotonic() - started
    files = {file.path: file for file in found}
    files |= {path: File(path, error=_why_gone(path)) for path in gone}
    _find_faults(lists, files, spec, report)
    _measure([file for file in found if not file.error], seconds, report)
    return report


def inspect_file(path: str, clip: ClipSpec, timed: set[str], decoder: Decoder) -> File:
    """Decodes all of one file; times one training clip of it where it is in `timed`."""
    try:
        digest = _digest(path)
        started = time.perf_counter()
        with Video(path, decoder=decoder) as video:
            info = video.info
            for first in range(0, info.frames, CHUNK_FRAMES):
                video.frames(range(first, min(first + CHUNK_FRAMES, info.frames)))
        took = time.perf_counter() - started
    except DecodeError as error:
        return File(path, error=error.reason)
    except OSError as error:
        return File(path, error=f"{error.strerror or error}.")
    found = File(path, "", info.frames, info.fps, info.height, info.width, info.codec, digest, took)
    if path not in timed:
        return found
    started = time.perf_counter()
    with Video(path, decoder=decoder) as video:
        video.frames(draw_frames(clip, info.frames, info.fps, rng_for(0, 0, 0)))
    return replace(found, clip_seconds=time.perf_counter() - started)


def _why_gone(path: str) -> str:
    folder = frames.parse(path)
    return "there is no such file." if folder is None else f"{frames.gap(folder)}."


def _digest(path: str) -> str:
    """sha256 of a file; of a folder of frames that of theirs, one after the other."""
    folder = frames.parse(path)
    if folder is None:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for number in range(folder.first, folder.last + 1):
        with open(folder.file(number), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read(
    sources: Source | Mapping[str, Source],
    root: str | os.PathLike[str],
    column: str | None,
    report: Report,
) -> dict[str, VideoList]:
    """The list of each split; one that cannot be read is a problem, all of them an error."""
    named: dict[str, tuple[Any, str | None]] = {}
    if isinstance(sources, Mapping):
        named = {split: (source, None) for split, source in sources.items()}
    elif isinstance(sources, (str, os.PathLike)) and os.path.isdir(sources):
        named = {split: (sources, split) for split in splits_of(sources)}
    named = named or {"all": (sources, None)}
    lists: dict[str, VideoList] = {}
    errors: list[TubeletError] = []
    for split, (source, wanted) in named.items():
        train = lists.get("train")
        known = train if train is not None and train.classes else None
        read = partial(read_list, source, root=root, split=wanted, must_exist=False)
        try:
            lists[split] = read(column=column, labels_from=known)
        except TubeletError as error:
            errors.append(error)
            report.problems.append(f"{split}: {error}" if len(named) > 1 else str(error))
            with suppress(TubeletError):  # labels that do not fit: the videos can be checked
                lists[split] = read(kind="unlabelled")
    if not lists:
        raise errors[0]
    return lists


def _describe(videos: VideoList) -> Split:
    counts: Counter[int] = Counter()
    if videos.kind in ("single", "multi"):
        for entry in videos.entries:
            label = entry.label
            counts.update([label] if isinstance(label, int) else map(int, label or ()))
    histogram = {name: counts[at] for at, name in enumerate(videos.classes)}
    return Split(len(videos), videos.kind, len(videos.classes), histogram, videos.notes)


def _compare_classes(classes: Mapping[str, tuple[str, ...]], report: Report) -> None:
    """Classes without a training video, where there is a training split."""
    if "train" not in classes:
        return
    for split in classes:
        train, other = report.splits["train"].histogram, report.splits[split].histogram
        unseen = [name for name, count in other.items() if count and not train.get(name)]
        if split != "train" and unseen:
            report.problems.append(
                f"{split} has videos of {len(unseen)} classes that no training video shows: "
                f"{', '.join(unseen[:8])}{', ...' if len(unseen) > 8 else ''}"
            )


def _find_faults(
    lists: Mapping[str, VideoList],
    files: Mapping[str, File],
    spec: ClipSpec | None,
    report: Report,
) -> None:
    by_content: dict[str, list[dict[str, str]]] = {}
    for split, videos in lists.items():
        for path in dict.fromkeys(entry.path for entry in videos.entries):
            file = files[path]
            if file.error:
                report.unreadable.append({"split": split, "path": path, "reason": file.error})
                continue
            by_content.setdefault(file.sha256, []).append({"split": split, "path": path})
            needed = 0 if spec is None else frames_needed(spec, file.fps)
            if file.frames < needed:
                short = {"split": split, "path": path, "frames": file.frames, "needed": needed}
                report.too_short.append(short)
    for same in by_content.values():
        if len({one["split"] for one in same}) > 1:
            report.across.append(same)
        elif len(same) > 1:
            report.within.append(same)


def frames_needed(spec: ClipSpec, fps: float) -> int:
    """Frames below which a clip repeats some: its span, or for "uniform" one a segment."""
    if spec.sampling == "uniform" or spec.num_frames == 1:
        return spec.num_frames
    if spec.sampling == "seconds":
        return max(spec.num_frames, round(spec.seconds * fps))
    if spec.sampling == "dense_fps":
        span = spec.num_frames * spec.sampling_rate * fps / spec.target_fps
        return max(spec.num_frames, round(span))
    return spec.num_frames * spec.sampling_rate


def _measure(files: list[File], seconds: float, report: Report) -> None:
    if not files:
        return
    frames = sum(file.frames for file in files)
    clips = [file.clip_seconds for file in files if file.clip_seconds is not None]
    report.speed = {
        "frames_per_second_per_process": frames / max(1e-9, sum(f.decode_seconds for f in files)),
        "clips_per_second_per_process": len(clips) / max(1e-9, sum(clips)),
        "files_per_second": len(files) / max(1e-9, seconds),
        "seconds": seconds,
    }
    lengths = [file.frames / file.fps for file in files]
    report.videos = {
        "sizes": dict(Counter(f"{f.width}x{f.height}" for f in files).most_common()),
        "fps": dict(Counter(f"{f.fps:.3g}" for f in files).most_common()),
        "codecs": dict(Counter(f.codec for f in files).most_common()),
        "frames": _spread([float(file.frames) for file in files]),
        "seconds": _spread(lengths),
        "total_hours": sum(lengths) / 3600,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


# --- tables ----------------------------------------------------------------------------------


def _tables(report: Report) -> list[RenderableType]:
    parts: list[RenderableType] = [_overview(report)]
    parts += [Text(f"problem: {problem}", style="red") for problem in report.problems]
    parts += [Text(f"note: {note}", style="yellow") for note in report.notes]
    bad = [(r["split"], r["path"], r["reason"]) for r in report.unreadable]
    parts += _listing("Unreadable", ("split", "path", "why"), bad)
    short = [(s["split"], s["path"], f"{s['frames']} of {s['needed']}") for s in report.too_short]
    parts += _listing("Too short for the clip", ("split", "path", "frames"), short)
    if short:
        parts.append(Text(SHORT))
    across = [(", ".join(f"{o['split']}: {o['path']}" for o in same),) for same in report.across]
    parts += _listing("The same file in several splits", ("files",), across)
    within = [(", ".join(o["path"] for o in same),) for same in report.within]
    parts += _listing("The same file twice in a split", ("files",), within)
    for name, split in report.splits.items():
        ranked = sorted(split.histogram.items(), key=lambda item: item[1])
        rows = [(label, str(count)) for label, count in ranked]
        parts += _listing(f"Videos a class, fewest first: {name}", ("class", "videos"), rows)
    verdict = "Ready for training." if report.ok else "Not ready: see the problems above."
    parts.append(Text(verdict, style="green" if report.ok else "red"))
    return parts


def _overview(report: Report) -> Table:
    table = Table(title="Data", show_header=False, title_justify="left")
    for name, split in report.splits.items():
        classes = f", {split.classes} classes" if split.classes else ""
        table.add_row(name, f"{split.videos} videos, {split.kind}{classes}")
    table.add_row("unreadable", str(len(report.unreadable)))
    if report.videos:
        videos, speed = report.videos, report.speed
        for what in ("sizes", "fps", "codecs"):
            top = [f"{value} ({count})" for value, count in list(videos[what].items())[:4]]
            more = ", ..." if len(videos[what]) > 4 else ""
            table.add_row(what, ", ".join(top) + more)
        for what in ("frames", "seconds"):
            spread = videos[what]
            table.add_row(
                what, f"{spread['min']:.4g} to {spread['max']:.4g}, median {spread['median']:.4g}"
            )
        table.add_row(
            "decoding, a process",
            f"{speed['frames_per_second_per_process']:.0f} frames/s, "
            f"{speed['clips_per_second_per_process']:.1f} training clips/s",
        )
    return table


def _listing(
    title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]
) -> list[RenderableType]:
    if not rows:
        return []
    table = Table(title=f"{title} ({len(rows)})", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows[:SHOWN]:
        table.add_row(*(Text(cell) for cell in row))
    if len(rows) > SHOWN:
        table.add_row(f"... and {len(rows) - SHOWN} more", *[""] * (len(columns) - 1))
    return [table]
