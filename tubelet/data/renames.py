"""Tables of classes that have another name in a merged label set."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tubelet.errors import TubeletError

HEADERS = (("old", "new"), ("set", "old", "new"))


class Rename(NamedTuple):
    """A class called `old` is called `new`, in the set `of`; in every set that has it where ""."""

    old: str
    new: str
    of: str = ""


def read_renames(path: str | Path) -> tuple[Rename, ...]:
    """A csv or tsv of `old,new` or `set,old,new`, or a json of {old: new} or such rows.

    An empty set stands for all.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        found: Any = json.loads(text) if path.suffix == ".json" else _cells(text, path.suffix)
    except (OSError, ValueError) as error:
        raise TubeletError(
            f"{path} cannot be read as a table of renamed classes: {error}."
        ) from error
    rows: Any = [list(pair) for pair in found.items()] if isinstance(found, dict) else found
    if not isinstance(rows, list):
        raise TubeletError(f"{path} holds a {type(rows).__name__}; expected rows of old,new.")
    for at, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) not in (2, 3) or not _names(row):
            raise TubeletError(
                f"{path}, row {at} is {row!r}: expected old,new or set,old,new. A name with a comma in "
                "it is put in quotes."
            )
    return tuple(Rename(row[-2], row[-1], row[0] if len(row) == 3 else "") for row in rows)


def renamed(
    classes: Mapping[str, Sequence[str]], renames: Sequence[Rename]
) -> dict[str, tuple[str, ...]]:
    """The class names of each set -> their names in the merged set, in the same order.

    Each name is looked up once: what a class is renamed to is not renamed again. A row for one set
    goes before one for all. TubeletError for a row that renames nothing, for two rows that
    contradict each other, and for two classes of one set that would have one name.
    """
    _check(classes, renames)
    found: dict[str, tuple[str, ...]] = {}
    for of, names in classes.items():
        new = {row.old: row.new for row in renames if not row.of}
        new |= {row.old: row.new for row in renames if row.of == of}
        found[of] = tuple(new.get(name, name) for name in names)
        first: dict[str, str] = {}
        for old, name in zip(names, found[of], strict=True):
            if first.setdefault(name, old) != old:
                raise TubeletError(
                    f"Two classes of {of}, {first[name]!r} and {old!r}, would both be called {name!r} "
                    "in the merged set. Leave one of them as it is: a row 'set,old,new' renames a "
                    "class in one set alone."
                )
    return found


def _check(classes: Mapping[str, Sequence[str]], renames: Sequence[Rename]) -> None:
    given: dict[tuple[str, str], str] = {}
    for old, new, of in renames:
        if of and of not in classes:
            raise TubeletError(
                f"The rename table names the set {of!r}, and the sets are {', '.join(classes)}."
            )
        known = {name for part in ([of] if of else classes) for name in classes[part]}
        if old not in known:
            near = difflib.get_close_matches(old, sorted(known), 1)
            hint = f" Nearest: {near[0]!r}." if near else ""
            raise TubeletError(
                f"The rename table has {old!r} -> {new!r}, and {of or 'no set'} has "
                f"{'no such class' if of else 'a class of that name'}.{hint} Correct the row, or leave it out."
            )
        if given.setdefault((of, old), new) != new:
            raise TubeletError(
                f"The rename table renames {old!r} twice, to {given[of, old]!r} and to {new!r}: leave "
                "one out."
            )


def _cells(text: str, suffix: str) -> list[list[str]]:
    reader = csv.reader(text.splitlines(), delimiter="\t" if suffix == ".tsv" else ",")
    rows = [[cell.strip() for cell in row] for row in reader if any(row)]
    headed = bool(rows) and tuple(cell.lower() for cell in rows[0]) in HEADERS
    return rows[headed:]


def _names(row: list[Any]) -> bool:
    """Whether a row has texts, and those of the classes are not empty."""
    return all(isinstance(cell, str) for cell in row) and all(row[-2:])
