"""One label set out of several, on disk: merge_labels."""

from __future__ import annotations

import csv
import difflib
import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.data.labels import numbered
from tubelet.data.lists import Source, VideoList, read_list
from tubelet.data.merge import CLASHES, Clip, Identity, Merged, merge
from tubelet.data.renames import read_renames
from tubelet.errors import TubeletError
from tubelet.verbs.begin import split_of

log = logging.getLogger("tubelet")

REPORT = "report.json"
WRITTEN = ("train.csv", "val.csv", "classes.txt", "maps", REPORT)
Names = str | Path | Sequence[str]


@dataclass(frozen=True)
class MergeConfig:
    """How sets are merged."""

    rename: str = ""
    """Table of classes with another name in the merged set: csv, tsv or json of old,new or set,old,new."""
    id: Identity = "stem"
    """What makes two files one video: the name without its ending, YouTube's eleven letters at its
    beginning, or the path."""
    label_column: str = ""
    """Of a csv or jsonl, where it is not called label."""
    overwrite: bool = False
    """Replace what was merged into the folder from other inputs."""


def merge_labels(
    train: Mapping[str, Source],
    *,
    out: str | Path,
    val: Mapping[str, Source] | None = None,
    classes: Mapping[str, Names] | None = None,
    root: Mapping[str, str] | None = None,
    config: MergeConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Merges the labelled lists of several sets, and writes `out`; see `tubelet.data.merge`.

    `out` gets train.csv, val.csv (absolute paths, class names), classes.txt (a line for each row of
    a head trained on train.csv), maps/<set>.json (what `head_map` takes) and report.json.

    Args:
        train, val: set -> what `read_list` takes. Of a folder of splits, its val is taken too.
        classes: set -> names in the order of their numbers, or a file with one in a line; needed
            where labels are numbers.
        root: set -> what is joined to relative paths.

    Raises:
        TubeletError: numbers without names, sets that `train` lacks, what `merge` refuses, and a
            folder that was made of other inputs, unless `overwrite`.
    """
    out, config, val = Path(out), config or MergeConfig(), dict(val or {})
    _check_sets(train, {"--val": val, "--classes": classes or {}, "--root": root or {}})
    val |= {of: source for of, source in train.items() if of not in val and split_of(source, "val")}
    read = functools.partial(_read, roots=root or {}, column=config.label_column or None)
    lists: dict[str, dict[str, VideoList]] = {"train": {}, "val": {}}
    for split, sources in (("train", train), ("val", val)):
        for of, source in sources.items():
            known = _names(of, (classes or {}).get(of)) if split == "train" else lists["train"][of]
            lists[split][of] = read(of, source, split, known)
            if progress is not None:
                progress(sum(map(len, lists.values())), len(train) + len(val))
    renames = read_renames(config.rename) if config.rename else ()
    merged = merge(lists["train"], lists["val"], renames, config.id)
    made_of = {
        split: {of: {"source": v.source, "fingerprint": v.fingerprint()} for of, v in sets.items()}
        for split, sets in lists.items()
    }
    chosen = {"renames": [list(row) for row in renames], "id": config.id}
    _write(merged, out, made_of | chosen, config.overwrite)
    if config.id != "path":
        _doubt(merged, out)
    return merged


def _doubt(merged: Merged, out: Path) -> None:
    """Says where names may not tell videos apart: a video left out for its name has another label."""
    for split, sets in merged.counts.items():
        for of, count in sets.items():
            if count.conflicts > CLASHES * count.listed:
                log.warning(
                    "%s %s: %d of %d videos were left out for the names of others with another label "
                    "(%s has them). If these are other videos, pass --id path.",
                    *(of, split, count.conflicts, count.listed, out / REPORT),
                )


def _check_sets(train: Mapping[str, Source], others: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a set that has no training list, and a name that cannot be a file's."""
    if not train:
        raise TubeletError("No lists were given. Expected at least one: SET=LIST.")
    for of in train:
        if not re.fullmatch(r"\w[\w.-]*", of):
            raise TubeletError(
                f"A set is called {of!r}: expected letters, digits, '-', '_' and '.', for a file of "
                "that name is written."
            )
    for flag, given in others.items():
        for of in given:
            if of not in train:
                near = difflib.get_close_matches(of, train, 1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise TubeletError(
                    f"{flag} names the set {of!r}, of which there is no training list.{hint} The sets: "
                    f"{', '.join(train)}."
                )


def _names(of: str, given: Names | None) -> Sequence[str] | None:
    """Class names in their order; of a file, one a line."""
    if not isinstance(given, (str, Path)):
        return given
    try:
        lines = [line.strip() for line in Path(given).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise TubeletError(f"{given} cannot be read: {error}.") from error
    names = lines[: len(lines) - next((i for i, x in enumerate(reversed(lines)) if x), len(lines))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or "" in names or twice:
        what = f"the name {twice[0]!r} more than once" if twice else "an empty line, or nothing"
        raise TubeletError(
            f"{given} has {what}. Expected the classes of {of}, one name in each line: the first is "
            "that of label 0."
        )
    return names


def _read(
    of: str,
    source: Source,
    split: str,
    known: VideoList | Sequence[str] | None,
    *,
    roots: Mapping[str, str],
    column: str | None,
) -> VideoList:
    """The list of a set, with a class for each video; `known`: the classes in their order."""
    videos = read_list(
        source,
        root=roots.get(of, ""),
        kind="single",
        labels_from=known,
        split=split_of(source, split),
        column=column,
    )
    if known is None:
        _check_named(of, videos)
    return videos


def _check_named(of: str, videos: VideoList) -> None:
    """Refuses classes that are numbers: those of two sets would be taken for the same."""
    if numbered(videos.classes):
        raise TubeletError(
            f"{of}: the labels in {videos.source} are numbers, and sets are merged by the names of "
            f"their classes. Give a file with a name in each line, that of label 0 first: --classes "
            f"{of}=FILE."
        )


def _write(merged: Merged, out: Path, made_of: dict[str, Any], overwrite: bool) -> None:
    """The folder, which appears whole or not at all."""
    record = json.loads(json.dumps({"made_of": made_of}))
    _claim(out, record, overwrite)
    begun, gone = (out.with_name(f".{out.name}.{state}") for state in ("begun", "gone"))
    try:
        for path in (begun, gone):
            shutil.rmtree(path, ignore_errors=True)
        (begun / "maps").mkdir(parents=True)
        for split, clips in (("train", merged.train), ("val", merged.val)):
            if clips:
                _write_list(begun / f"{split}.csv", clips)
        names = "".join(f"{name}\n" for name in merged.classes)
        (begun / "classes.txt").write_text(names, encoding="utf-8")
        for of, head_map in merged.maps().items():
            (begun / "maps" / f"{of}.json").write_text(json.dumps(head_map, indent=1) + "\n")
        (begun / REPORT).write_text(json.dumps(merged.report() | record, indent=1) + "\n")
        if out.exists():
            os.rename(out, gone)
        os.rename(begun, out)
        shutil.rmtree(gone, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(begun, ignore_errors=True)
        raise TubeletError(
            f"The merged set cannot be written to {out}: {error.strerror or error}."
        ) from error


def _write_list(path: Path, clips: Iterable[Clip]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label"))
        writer.writerows((os.path.abspath(clip.path), clip.label) for clip in clips)


def _claim(out: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Refuses a folder of something else, or with something else in it, and one made of other inputs
    unless `overwrite`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        made_of = json.loads((out / REPORT).read_text())["made_of"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TubeletError(
            f"{out} exists and holds no merged labels: pass another folder; nothing was changed."
        ) from error
    others = sorted(p.name for p in out.iterdir() if p.name not in WRITTEN and p.name[0] != ".")
    if others:
        raise TubeletError(
            f"{out} holds more than merged labels ({', '.join(others[:5])}), and it is replaced as a "
            "whole: move that elsewhere, or pass another folder; nothing was changed."
        )
    if made_of != record["made_of"] and not overwrite:
        raise TubeletError(
            f"{out} holds labels that were merged from other inputs ({REPORT} has them). Pass another "
            "folder, or --overwrite; nothing was changed."
        )
