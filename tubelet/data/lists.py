"""What to read: a list of videos with labels, from a folder, a file or Python.

    read_list("data/")                       # data/<class>/*.mp4, or videos without labels
    read_list("data/", split="val")          # data/val/<class>/*.mp4, or data/val.csv
    read_list("train.csv", root="videos/")   # 'path label' or 'path,label', header or none
    read_list([("a.mp4", "run"), ("b.mp4", "jump")])

Order is that of the file; folders are read in sorted order. Class names that are texts are sorted,
and kept; numbered classes are named by their numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tubelet.data import frames
from tubelet.data.labels import Labels, understand
from tubelet.data.listfiles import (
    EXTENSIONS,
    IMAGE_EXTENSIONS,
    LIST_EXTENSIONS,
    VIDEO_EXTENSIONS,
    Bad,
    Row,
    from_record,
    read_rows,
    refuse,
)
from tubelet.data.missing import complete, exists, missing_files
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec

Kind = Literal["unlabelled", "single", "multi", "regression"]
Source = str | os.PathLike[str] | Sequence[Any]

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One video. `label`: a class; classes (multi-label); numbers (regression); or None."""

    path: str
    label: int | tuple[int, ...] | tuple[float, ...] | None = None


@dataclass(frozen=True)
class Part:
    """The videos `first` to `first + videos - 1` of a list: one of several sources of a run."""

    name: str
    first: int
    videos: int
    weight: float | None  # share of the draws, relative to others; None: its number of videos
    clip: ClipSpec  # how clips of these videos are taken
    fingerprint: str  # of its own list
    complete: bool = True  # False: frames that the list counts have not been looked for


@dataclass(frozen=True)
class VideoList:
    """Videos and what their labels mean."""

    entries: tuple[Entry, ...]
    classes: tuple[str, ...] = ()  # names, by label; () without classes
    source: str = ""
    kind: Kind = "unlabelled"
    root: str = ""  # what relative paths were joined to
    notes: tuple[str, ...] = ()  # what a person should hear about this list
    parts: tuple[Part, ...] = ()  # of a mixed list (see `sources.py`)

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def targets(self) -> int:
        """Numbers that a head gives for one video: the classes, or the values regressed."""
        if self.kind != "regression":
            return len(self.classes)
        label = self.entries[0].label
        return len(label) if isinstance(label, tuple) else 0

    def target(self, index: int) -> Tensor | None:
        """The label of one video: int64 [], float32 [classes] of 0 and 1, float32 [values]."""
        return as_target(self.entries[index].label, self.kind, len(self.classes))

    def fingerprint(self) -> str:
        """sha256 over relative paths, labels and class names: equal lists on any machine."""
        digest = hashlib.sha256(repr((self.kind, self.classes)).encode())
        if self.parts:  # each has a root of its own
            digest.update(repr([part.fingerprint for part in self.parts]).encode())
            return digest.hexdigest()
        for entry in self.entries:
            path = os.path.relpath(entry.path, self.root) if self.root else entry.path
            digest.update(repr((Path(path).as_posix(), entry.label)).encode())
        return digest.hexdigest()


def as_target(label: Any, kind: Kind, classes: int) -> Tensor | None:
    """A label -> int64 [] (single), float32 [classes] (multi), float32 [values] (regression)."""
    if label is None:
        return None
    if kind == "single":
        return torch.tensor(label, dtype=torch.int64)
    if kind == "regression":
        return torch.tensor(label, dtype=torch.float32)
    target = torch.zeros(classes)
    target[list(label)] = 1.0
    return target


def read_list(
    source: Source,
    *,
    root: str | os.PathLike[str] = "",
    labels_from: VideoList | Sequence[str] | None = None,
    kind: Kind | None = None,
    split: str | None = None,
    column: str | None = None,
    must_exist: bool = True,
) -> VideoList:
    """A folder, a csv/txt/tsv/jsonl file, one video, or a Python list -> the list.

    Args:
        root: joined to relative paths of a file or a Python list. Default: the folder of the
            file, or the working directory where more of its videos lie.
        labels_from: the training list (or class names in order): labels get its numbers, and one
            outside of it is an error.
        kind: what labels mean; inferred where None ("multi" from several integers, "regression"
            from fractions). "unlabelled" leaves labels unread.
        split: "train", "val" or "test": a subfolder, a list file in the folder, or the rows whose
            split column says so. None with such subfolders or files takes "train" and notes it.
        column: the label's column in a csv with a header or a jsonl, where it is not called label.
        must_exist: every file is looked for, and missing ones are an error.

    Raises:
        TubeletError: nothing found, lines that cannot be used (named by number), missing files,
            labels that do not fit.
    """
    if kind is not None and kind not in get_args(Kind):
        raise TubeletError(f"kind is {kind!r}; expected one of {', '.join(get_args(Kind))}.")
    known = labels_from.classes if isinstance(labels_from, VideoList) else labels_from
    if kind is None and isinstance(labels_from, VideoList):
        kind = labels_from.kind
    if not isinstance(source, (str, os.PathLike)):
        found = _from_python(source, os.fspath(root))
    else:
        path = Path(source)
        _must_be_there(path)
        if path.is_dir():
            wanted = kind or ("single" if known else None)
            found = _from_folder(path, os.fspath(root), split, wanted, column)
        elif path.suffix.lower() in EXTENSIONS:
            found = _Found([Row(str(path), None, 1, str(path))], str(path), "", "item")
        else:
            found = _from_file(path, os.fspath(root), split, column)
    if must_exist:
        _all_exist(found)
    labels = understand(
        found.rows, kind, known, found.source, found.unit, found.classes, found.unused
    )
    return _assemble(found, labels)


def splits_of(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The splits of a folder: its subfolders or list files called train, val, test (or a synonym)."""
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        files = [Path(folder, name + suffix) for name in names for suffix in LIST_EXTENSIONS]
        folders = [Path(folder, name) for name in names]
        there = [p for p in files if p.is_file()] + [p for p in folders if p.is_dir()]
        if there:
            found[split] = there[0]
    return found


# --- sources ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    rows: list[Row]
    source: str
    root: str
    unit: str = "line"
    classes: tuple[str, ...] | None = None  # of class folders, empty ones included
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()  # columns


def _must_be_there(path: Path) -> None:
    if path.exists():
        return
    near = path.parent
    while not near.exists():
        near = near.parent
    inside = sorted(p.name for p in near.iterdir() if not p.name.startswith("."))[:8]
    raise TubeletError(
        f"There is no file or folder {str(path)!r}. Expected a folder of videos, a list "
        f"({', '.join(LIST_EXTENSIONS)}) or a video. {str(near.resolve())!r} has: "
        f"{', '.join(inside) or 'nothing'}."
    )


def _from_python(items: Sequence[Any], root: str) -> _Found:
    rows: list[Row] = []
    bad: list[Bad] = []
    for at, item in enumerate(items):
        row = from_record(item, at, repr(item), None)
        if isinstance(row, Row):
            rows.append(row)
        else:
            bad.append(row)
    source = "the Python list"
    refuse(source, bad, len(items), "Expected paths, or (path, label) pairs.", unit="item")
    if not rows:
        raise TubeletError("The Python list of videos is empty.")
    return _Found([r._replace(path=_join(root, r.path)) for r in rows], source, root, "item")


def _from_file(file: Path, root: str, split: str | None, column: str | None) -> _Found:
    candidates = [root] if root else [str(file.parent), ""]
    table = read_rows(
        file,
        column=column,
        exists=lambda p: any(exists(_join(base, p)) for base in candidates),
    )
    rows, notes = table.rows, []
    if split is not None and table.splits is not None:
        rows = [r for r, s in zip(rows, table.splits, strict=True) if _is_split(s, split)]
        if not rows:
            names = ", ".join(sorted(set(table.splits)))
            raise TubeletError(f"{file}: no row of split {split!r}. Its splits: {names}.")
    if table.ignored:
        notes.append(f"{file}: columns not used: {', '.join(table.ignored)}")
    some = rows[:: max(1, len(rows) // 50)]
    base = max(  # the first of the best
        candidates, key=lambda b: sum(exists(_join(b, r.path)) for r in some)
    )
    full = [r._replace(path=complete(_join(base, r.path))) for r in rows]
    return _Found(full, str(file), base, notes=tuple(notes), unused=table.ignored)


def _is_split(value: str, split: str) -> bool:
    return value.lower() in SPLITS.get(split, (split.lower(),)) or value.lower() == split.lower()


def _join(root: str, path: str) -> str:
    return os.path.join(root, path) if root else path


def _from_folder(
    folder: Path, root: str, split: str | None, kind: Kind | None, column: str | None
) -> _Found:
    splits = splits_of(folder)
    if split is None and splits:
        taken = "train" if "train" in splits else next(iter(splits))
        found = _open_split(splits[taken], folder, root, kind, column)
        note = f"{folder} has the splits {', '.join(splits)}: {taken} was taken"
        return found if len(splits) == 1 else replace(found, notes=(note, *found.notes))
    if split is not None:
        place = next((p for name, p in splits.items() if split in (name, p.stem)), None)
        place = place or next((p for p in [folder / split] if p.is_dir()), None)
        if place is None:
            has = f"It has: {', '.join(splits)}." if splits else "It has no splits."
            raise TubeletError(
                f"{folder} has no split {split!r}: expected a subfolder {split}/ or a list "
                f"{split}.csv. {has}"
            )
        return _open_split(place, folder, root, kind, column)
    return _from_videos(folder, kind)


def _open_split(place: Path, folder: Path, root: str, kind: Kind | None, column: str | None):
    if place.is_dir():
        return _from_videos(place, kind)
    return _from_file(place, root, None, column)


def _from_videos(folder: Path, kind: Kind | None) -> _Found:
    """Class folders where all videos lie in two or more subfolders; else videos without labels."""
    names, notes = walk(folder)
    tops = [name.split(os.sep)[0] if os.sep in name else "" for name in names]
    classes = sorted(set(tops))
    labelled = kind != "unlabelled" and "" not in classes and (len(classes) > 1 or kind == "single")
    if kind not in (None, "unlabelled") and not labelled:
        raise TubeletError(
            f"{folder} holds no class folders, so its videos have no labels. Expected "
            f"{folder}/<class>/video.mp4, or a list file with a label on every line."
        )
    if labelled and kind not in (None, "single"):
        raise TubeletError(
            f"Class folders give one label a video, and {kind!r} labels were asked for: put them in "
            "a list file (.csv or .jsonl)."
        )
    rows = [
        Row(os.path.join(folder, name), (top,) if labelled else None, at, name)
        for at, (name, top) in enumerate(zip(names, tops, strict=True), 1)
    ]
    if not labelled and kind is None and any(tops):
        notes.append(f"{folder}: subfolders are not read as classes, the videos have no labels")
    if labelled:
        classes = sorted({*classes, *(d.name for d in _subfolders(folder))})
    return _Found(
        rows, str(folder), str(folder), "video", tuple(classes) if labelled else None, tuple(notes)
    )


def _subfolders(folder: Path) -> list[Path]:
    return [d for d in folder.iterdir() if d.is_dir() and not d.name.startswith(".")]


def walk(folder: Path) -> tuple[list[str], list[str]]:
    """Relative paths of the videos below (of the images, where there is no video), sorted."""
    names: dict[str, list[str]] = {"video": [], "image": []}
    others: Counter[str] = Counter()
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(d for d in folders if not d.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                continue
            if suffix in EXTENSIONS:
                what = "video" if suffix in VIDEO_EXTENSIONS else "image"
                names[what].append(os.path.relpath(os.path.join(here, file), folder))
            else:
                others[suffix or "no extension"] += 1
    if not names["video"] and not names["image"]:
        has = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        raise TubeletError(
            f"No videos in {folder} or below. Looked for {' '.join(VIDEO_EXTENSIONS)} and for images "
            f"({' '.join(IMAGE_EXTENSIONS)}); found {has or 'no files'}."
        )
    notes = []
    if names["video"] and names["image"]:
        notes.append(f"{folder}: {len(names['image'])} images beside the videos are not used")
    return sorted(names["video"] or names["image"]), notes


# --- checks ----------------------------------------------------------------------------------


def _all_exist(found: _Found) -> None:
    missing = missing_files([row.path for row in found.rows])
    bad = [
        Bad(row.line, row.text, f"{row.path!r} is a folder, not a video")
        for row in found.rows
        if not os.path.splitext(row.path)[1] and os.path.isdir(row.path)
    ]
    for at in missing:
        row = found.rows[at]
        folder = frames.parse(row.path)
        if folder is not None:
            bad.append(Bad(row.line, row.text, frames.gap(folder)))
            continue
        stem = os.path.splitext(row.path)[0]
        other = next((stem + e for e in VIDEO_EXTENSIONS if os.path.exists(stem + e)), None)
        hint = f" ({os.path.basename(other)} does)" if other and len(bad) < 10 else ""
        bad.append(Bad(row.line, row.text, f"{row.path} does not exist{hint}"))
    base = f"Relative paths were joined to {found.root or os.getcwd()!r}"
    advice = f"{base}: correct the list, or say where the videos are (--root, or root=...)."
    refuse(found.source, bad, len(found.rows), advice, found.unit)


def _assemble(found: _Found, labels: Labels) -> VideoList:
    entries = tuple(
        Entry(row.path, label) for row, label in zip(found.rows, labels.labels, strict=True)
    )
    notes = [*found.notes, *labels.notes]
    by_path: dict[str, Any] = {}
    repeated = conflicting = 0
    for entry in entries:
        if by_path.setdefault(entry.path, entry.label) != entry.label:
            conflicting += 1
    repeated = len(entries) - len(by_path)
    if repeated:
        note = f"{found.source}: {repeated} lines repeat a video listed before"
        notes.append(f"{note}, {conflicting} with another label" if conflicting else note)
    return VideoList(entries, labels.classes, found.source, labels.kind, found.root, tuple(notes))
