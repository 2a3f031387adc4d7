"""Reading list files: text and csv in the published formats, and jsonl, into raw rows.

What the formats in circulation have in common is a path that ends in a video extension; so a line
is cut at that extension, and paths with spaces or commas need no quotes. A header is recognised
by the names of its columns.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tubelet.data import frames
from tubelet.data.pictures import IMAGES
from tubelet.errors import TubeletError

VIDEO_EXTENSIONS = (
    ".mp4",
    ".avi",
    ".mkv",
    ".webm",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".ts",
    ".3gp",
    ".ogv",
    ".mts",
    ".m2ts",
    ".gif",
)
IMAGE_EXTENSIONS = tuple(sorted(IMAGES))
EXTENSIONS = (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS)
LIST_EXTENSIONS = (".csv", ".txt", ".tsv", ".jsonl")

PATH_COLUMNS = (
    "path",
    "video",
    "video_path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "clip",
)
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "class_name",
    "category",
    "target",
    "targets",
    "action",
    "label_id",
)
SPLIT_COLUMNS = ("split", "subset", "partition")

_ANCHOR = re.compile(
    rf"(?P<path>.+(?:{'|'.join(re.escape(e) for e in EXTENSIONS)})(?:{frames.RANGE})?)"
    r"(?P<rest>$|\s.*|[,;].*|::.*)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
SHOWN = 5  # bad lines shown in one message

Value = int | float | str


class Row(NamedTuple):
    """One line of a list, before its label is understood."""

    path: str
    label: tuple[Value, ...] | None  # None: the line has no label
    line: int  # 1-based; the position for Python lists
    text: str  # as written


class Bad(NamedTuple):
    """A line that cannot be used, and why."""

    line: int
    text: str
    why: str


def refuse(source: str, bad: Sequence[Bad], total: int, advice: str, unit: str = "line") -> None:
    """Raises a TubeletError that shows the first bad lines with their numbers; none: returns."""
    if not bad:
        return
    shown = [f"  {unit} {b.line}: {_shorten(b.text)!r}: {b.why}" for b in bad[:SHOWN]]
    if len(bad) > SHOWN:
        shown.append(f"  ... and {len(bad) - SHOWN} more")
    raise TubeletError(
        "\n".join([f"{source}: {len(bad)} of {total} {unit}s cannot be used.", *shown, advice])
    )


def read_rows(file: Path, *, column: str | None, exists: Callable[[str], bool]) -> Table:
    """The rows of a csv, tsv, txt or jsonl file. `exists` says whether a listed path is there."""
    lines = lines_of(file)
    if file.suffix.lower() == ".jsonl":
        return _read_jsonl(file, lines, column)
    head = header_of(lines[0][1], column)
    if head is not None:
        return _read_columns(file, lines, head, column)
    if column is not None:
        raise TubeletError(
            f"{file}: column {column!r} was asked for, but the file has no header line. Its first "
            f"line is {_shorten(lines[0][1])!r}. Give it a header such as 'path,{column}'."
        )
    return _read_plain(file, lines, exists)


class Table(NamedTuple):
    """The rows of a list file, and the split each row names (None where there is no such column)."""

    rows: list[Row]
    splits: list[str] | None = None
    ignored: tuple[str, ...] = ()  # columns that were not used


def lines_of(file: Path) -> list[tuple[int, str]]:
    """The lines of a list with their numbers, without empty ones and comments."""
    data = file.read_bytes()
    if b"\0" in data[:4096]:
        raise TubeletError(
            f"{file} is not a text file, so it cannot be read as a list of videos. Expected one "
            "video per line: a path, and a label where there is one."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TubeletError(
            f"{file}, line {line}: not UTF-8 ({error.reason}). Save the list as UTF-8."
        ) from None
    lines = [
        (number, line.strip())
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not line.startswith("#")
    ]
    if not lines:
        raise TubeletError(f"{file} has no lines. Expected one video per line: 'path label'.")
    return lines


# --- columns named by a header ---------------------------------------------------------------


class Header(NamedTuple):
    delimiter: str
    columns: list[str]
    path: int
    label: int | None
    split: int | None


def header_of(line: str, column: str | None) -> Header | None:
    """The columns of a first line that names a path column and holds no path and no number."""
    for delimiter in "\t,; ":
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
        lower = [name.lower() for name in names]
        path = _find(lower, PATH_COLUMNS)
        if path is None or _ANCHOR.fullmatch(line) or any(_NUMBER.fullmatch(n) for n in names):
            continue
        if column is None:
            label = _find(lower, LABEL_COLUMNS)
        elif column in names:
            label = names.index(column)
        else:
            raise TubeletError(
                f"There is no column {column!r} in the list. Its columns: {', '.join(names)}."
            )
        return Header(delimiter, names, path, label, _find(lower, SPLIT_COLUMNS))
    return None


def _find(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _read_columns(
    file: Path, lines: list[tuple[int, str]], head: Header, column: str | None
) -> Table:
    rows: list[Row] = []
    splits: list[str] = []
    bad: list[Bad] = []
    for number, text in lines[1:]:
        cells = [cell.strip() for cell in next(csv.reader([text], delimiter=head.delimiter))]
        if head.delimiter == " " and len(head.columns) == 2 and (match := _ANCHOR.fullmatch(text)):
            cells = [match["path"].strip("\"'"), match["rest"].strip()]
        if len(cells) != len(head.columns):
            why = f"{len(cells)} fields, and the header names {len(head.columns)}"
            bad.append(Bad(number, text, why))
            continue
        label = None if head.label is None else _cell(cells[head.label])
        rows.append(Row(cells[head.path], label, number, text))
        splits.append("" if head.split is None else cells[head.split])
    advice = f"The header is {lines[0][1]!r}. Put a path with a {head.delimiter!r} in it in quotes."
    refuse(str(file), bad, len(lines) - 1, advice)
    used = {head.path, head.label, head.split}
    ignored = tuple(name for at, name in enumerate(head.columns) if at not in used)
    return Table(rows, None if head.split is None else splits, ignored)


def _cell(text: str) -> tuple[Value, ...] | None:
    """A label cell: a number, several numbers or names split by ; or |, or one name."""
    if not text:
        return None
    parts = [part.strip() for part in re.split(r"[;|]", text)]
    if len(parts) == 1 and all(_NUMBER.fullmatch(p) for p in re.split(r"[\s,]+", text)):
        parts = re.split(r"[\s,]+", text)
    return tuple(number(part) for part in parts)


# --- no header -------------------------------------------------------------------------------


def _read_plain(file: Path, lines: list[tuple[int, str]], exists: Callable[[str], bool]) -> Table:
    rows: list[Row] = []
    bad: list[Bad] = []
    for line, text in lines:
        cut = _cut(text) or _cut_without_extension(text, exists)
        if cut is None:
            bad.append(Bad(line, text, _why_no_path(text, exists)))
            continue
        path, label = cut
        if label is not None and len(label) > 1 and any(isinstance(x, str) for x in label):
            bad.append(Bad(line, text, f"{len(label)} fields after the path: which is the label?"))
            continue
        rows.append(Row(path, label, line, text))
    advice = (
        "Expected 'path label' or 'path,label' on every line (a path with a video extension, such "
        "as .mp4; the label a number or a name; no label at all for pretraining), or a header line "
        "that names the columns, such as 'path,label'."
    )
    refuse(str(file), bad, len(lines), advice)
    return Table(rows)


def _cut(text: str) -> tuple[str, tuple[Value, ...] | None] | None:
    """A line cut behind the extension of its path; None where there is no extension."""
    if text[0] == '"':
        fields = next(csv.reader([text]))
        if _ANCHOR.fullmatch(fields[0]):
            return fields[0], _label(",".join(fields[1:]), ",")
    match = _ANCHOR.fullmatch(text)
    if match is None:
        return None
    rest = match["rest"]
    delimiter = "::" if rest.startswith("::") else rest[:1]
    return match["path"], _label(rest.removeprefix(delimiter), delimiter)


def of_files(line: str) -> bool:
    """Whether a list that begins with this line is of files with extensions, or has a header."""
    return line[0] == "{" or _cut(line) is not None or header_of(line, None) is not None


def _cut_without_extension(
    text: str, exists: Callable[[str], bool]
) -> tuple[str, tuple[Value, ...] | None] | None:
    """A line whose path has no extension: taken only where that file exists (also with .mp4)."""
    if exists(text):
        return text, None
    for delimiter in ("\t", "::", ",", ";", None):
        path, *rest = text.rsplit(delimiter, 1)
        if rest and exists(path):
            return path.strip(), _label(rest[0], delimiter or " ")
    return None


def _why_no_path(text: str, exists: Callable[[str], bool]) -> str:
    first = re.split(r"[\s,;]", text)[0]
    if exists(os.path.join(first, ".")):
        return (
            "a folder: a list of frame folders is read for pretraining, as "
            "--sources NAME=LIST,kind=frames; elsewhere write folder/img_{:05}.jpg[1:45] for its "
            "frames 1 to 45"
        )
    return "no path with a video extension, and no such file"


def _label(text: str, delimiter: str) -> tuple[Value, ...] | None:
    """What stands behind the path: numbers, or one name (which may hold spaces)."""
    text = text.strip()
    if not text:
        return None
    parts = [part.strip() for part in re.split(r"[\s,;]+", text)]
    if all(_NUMBER.fullmatch(part) for part in parts):
        return tuple(number(part) for part in parts)
    if delimiter in (",", ";", "\t"):
        return tuple(number(part.strip()) for part in next(csv.reader([text], delimiter=delimiter)))
    return (text.strip("\"'"),)


def number(text: str) -> Value:
    """The number that a text stands for (3 and 3.0 are the integer 3), or the text itself."""
    if not _NUMBER.fullmatch(text):
        return text
    value = float(text)
    return int(value) if value.is_integer() and "e" not in text.lower() else value


# --- jsonl -----------------------------------------------------------------------------------


def _read_jsonl(file: Path, lines: list[tuple[int, str]], column: str | None) -> Table:
    rows: list[Row] = []
    splits: list[str] = []
    bad: list[Bad] = []
    for line, text in lines:
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            bad.append(Bad(line, text, f"not JSON ({error.msg} at column {error.colno})"))
            continue
        row = from_record(record, line, text, column)
        if isinstance(row, Bad):
            bad.append(row)
            continue
        rows.append(row)
        split = _first(record, SPLIT_COLUMNS) if isinstance(record, dict) else None
        splits.append("" if split is None else str(split))
    refuse(str(file), bad, len(lines), 'Expected on every line: {"path": "a.mp4", "label": 3}.')
    return Table(rows, splits if any(splits) else None)


def from_record(record: Any, line: int, text: str, column: str | None) -> Row | Bad:
    """A row from {"path": ..., "label": ...}, (path, label), or a path alone."""
    label: Any = None
    if isinstance(record, dict):
        path = _first(record, PATH_COLUMNS)
        label = record.get(column) if column else _first(record, LABEL_COLUMNS)
        if path is None:
            names = ", ".join(map(str, record)) or "nothing"
            return Bad(line, text, f'no "path" in it; it has {names}')
        if column and column not in record:
            return Bad(line, text, f"no {column!r} in it; it has {', '.join(map(str, record))}")
    elif isinstance(record, (tuple, list)) and len(record) == 2:
        path, label = record
    else:
        path = record
    if not isinstance(path, (str, os.PathLike)):
        return Bad(line, text, f"the path is a {type(path).__name__}, not a text")
    if label is None:
        return Row(os.fspath(path), None, line, text)
    many = label if isinstance(label, (list, tuple)) else (label,)
    values = tuple(x.item() if hasattr(x, "item") else x for x in many)
    wrong = [x for x in values if not isinstance(x, (int, float, str)) or isinstance(x, bool)]
    if wrong:
        return Bad(line, text, f"the label is a {type(wrong[0]).__name__}, not a number or a text")
    return Row(os.fspath(path), values, line, text)


def _first(record: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((record[key] for key in keys if key in record), None)


def _shorten(text: str, width: int = 100) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
