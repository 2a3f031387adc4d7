"""What `prepare` makes of a source: which file goes where, and the lists of the new places."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tubelet.data.listfiles import (
    IMAGE_EXTENSIONS,
    LIST_EXTENSIONS,
    PATH_COLUMNS,
    header_of,
    lines_of,
    read_rows,
)
from tubelet.data.lists import read_list, splits_of, walk
from tubelet.data.missing import exists
from tubelet.errors import TubeletError


@dataclass(frozen=True)
class ListFile:
    """A list, and where its videos are: a path for each row, as the loader would open it."""

    file: Path
    root: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is to be made of a source."""

    places: dict[str, str]  # absolute path of a video -> its place in the new folder
    lists: tuple[ListFile, ...] = ()  # to be written there, with new paths
    folders: tuple[str, ...] = ()  # class folders, which may have no video
    notes: tuple[str, ...] = ()


def plan(source: str | os.PathLike[str], root: str | os.PathLike[str] = "") -> Plan:
    """A folder (also of splits), a list or one video -> what goes where.

    The tree below the folder stays; for a list that below its root, or below the folder that all
    of its videos share. Lists directly in a folder are taken along.

    Raises:
        TubeletError: what `read_list` refuses, but for missing files; images and folders of frames;
            files that cannot keep apart in the new folder.
    """
    path = Path(source)
    if not path.is_dir():
        videos = read_list(path, root=root, kind="unlabelled", must_exist=False)
        paths = tuple(entry.path for entry in videos.entries)
        is_list = path.suffix.lower() in LIST_EXTENSIONS
        lists = (ListFile(path, videos.root, paths),) if is_list else ()
        base = videos.root if is_list else str(path.parent)
        return _planned(str(source), paths, base, lists)
    lists, notes = _lists_in(path, root)
    try:
        names, seen = walk(path)
    except TubeletError:
        if not lists:
            raise
        names, seen = [], []
    paths = [os.path.join(path, name) for name in names]
    paths += [one for found in lists for one in found.paths]
    return _planned(str(source), paths, str(path), lists, _class_folders(path), [*notes, *seen])


def _lists_in(folder: Path, root: str | os.PathLike[str]) -> tuple[tuple[ListFile, ...], list[str]]:
    """The lists in a folder of which a video is there; notes on files that only look like lists."""
    found: list[ListFile] = []
    notes: list[str] = []
    splits = {place for place in splits_of(folder).values() if place.is_file()}
    for file in sorted(p for p in folder.iterdir() if p.suffix.lower() in LIST_EXTENSIONS):
        try:
            videos = read_list(file, root=root, kind="unlabelled", must_exist=False)
        except TubeletError:
            if file in splits:
                raise
            notes.append(f"{file} is no list of videos: it is not taken along")
            continue
        paths = tuple(entry.path for entry in videos.entries)
        if file in splits or any(map(os.path.isfile, paths)):
            found.append(ListFile(file, videos.root, paths))
        else:  # also names of classes, which are folders here
            notes.append(f"{file}: none of its videos is there: it is not taken along")
    return tuple(found), notes


def _class_folders(folder: Path) -> tuple[str, ...]:
    """Subfolders that the loader would take for classes, with videos or without, relative."""
    splits = [place for place in splits_of(folder).values() if place.is_dir()]
    below = [d for top in (folder, *splits) for d in top.iterdir() if d.is_dir()]
    return tuple(os.path.relpath(d, folder) for d in below if not d.name.startswith("."))


def _planned(
    source: str,
    paths: Iterable[str],
    base: str,
    lists: tuple[ListFile, ...],
    folders: tuple[str, ...] = (),
    notes: Sequence[str] = (),
) -> Plan:
    given = list(dict.fromkeys(paths))
    others = [path for path in given if path.lower().endswith((*IMAGE_EXTENSIONS, "]"))]
    if others:
        raise TubeletError(
            f"{source}: {len(others)} of {len(given)} entries are images or folders of frames, such as "
            f"{others[0]}, and only video files are prepared. Give a list without them."
        )
    full = [os.path.abspath(path) for path in given]
    whole = os.path.abspath(base)
    if not all(path.startswith(os.path.join(whole, "")) for path in full):
        whole = os.path.commonpath([os.path.dirname(path) for path in full])
    return Plan(_places(full, whole), lists, folders, tuple(notes))


def _places(paths: Sequence[str], base: str) -> dict[str, str]:
    """a/b.avi -> a/b.mp4, or a/b.avi.mp4 where that is the place of another one."""
    names = {path: Path(os.path.relpath(path, base)) for path in paths}
    taken: dict[str, str] = {}
    places: dict[str, str] = {}
    # Those that are called .mp4 already come first: they keep their name.
    for path in sorted(paths, key=lambda path: names[path].suffix != ".mp4"):
        name = names[path]
        place = name.with_suffix(".mp4").as_posix()
        if place in taken:
            place = f"{name.as_posix()}.mp4"
        if place in taken:
            raise TubeletError(
                f"{path} and {taken[place]} would both become {place}: rename one of them."
            )
        taken[place] = path
        places[path] = place
    return {path: places[path] for path in paths}


def relisted(found: ListFile, new: Callable[[str], str]) -> str:
    """The text of a list with `new(path)` for each path; labels and all else are as they were.

    `new` is given absolute paths. Comments and empty lines are left out.
    """
    rows = read_rows(
        found.file, column=None, exists=lambda p: exists(os.path.join(found.root, p))
    ).rows
    lines = lines_of(found.file)
    written = {
        row.line: (row.path, new(os.path.abspath(path)))
        for row, path in zip(rows, found.paths, strict=True)
    }
    if found.file.suffix.lower() == ".jsonl":
        out = [_in_json(text, written[line][1]) for line, text in lines]
    elif (head := header_of(lines[0][1], None)) is not None:
        out = [lines[0][1]]
        for line, text in lines[1:]:
            cells = next(csv.reader([text], delimiter=head.delimiter))
            if len(cells) != len(head.columns):  # a path with spaces, between spaces
                out.append(_replaced(text, *written[line]))
                continue
            cells[head.path] = written[line][1]
            out.append(_joined(cells, head.delimiter))
    else:
        out = [_replaced(text, *written[line]) for line, text in lines]
    return "".join(f"{line}\n" for line in out)


def _in_json(text: str, new: str) -> str:
    record = json.loads(text)
    if isinstance(record, dict):
        record[next(key for key in PATH_COLUMNS if key in record)] = new
    elif isinstance(record, list):
        record[0] = new
    else:
        record = new
    return json.dumps(record, ensure_ascii=False)


def _joined(cells: Sequence[str], delimiter: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="").writerow(cells)
    return text.getvalue()


def _replaced(text: str, old: str, new: str) -> str:
    """A line that begins with a path, in quotes or without."""
    at = text.index(old)
    return text[:at] + new + text[at + len(old) :]
