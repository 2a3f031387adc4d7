"""What the labels of a list mean: classes by number or name, several classes, or numbers."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from tubelet.data.listfiles import Bad, Row, Value, refuse
from tubelet.errors import TubeletError

Kind = Literal["unlabelled", "single", "multi", "regression"]


class Labels(NamedTuple):
    """The labels of all rows, as numbers."""

    kind: Kind
    classes: tuple[str, ...]
    labels: list[int | tuple[int, ...] | tuple[float, ...] | None]
    notes: tuple[str, ...] = ()


def understand(
    rows: Sequence[Row],
    kind: Kind | None,
    known: Sequence[str] | None,
    source: str,
    unit: str = "line",
    folders: Sequence[str] | None = None,
    unused: Sequence[str] = (),
) -> Labels:
    """Rows -> labels as numbers, the class names, the kind, and notes.

    Args:
        known: class names in their order, where another list has set them.
        folders: the class folders, empty ones included.
        unused: columns of the list that nothing has read.
    """
    notes: list[str] = []
    if kind is None:
        kind, note = _infer(rows)
        notes += [note] if note else []
    if kind == "unlabelled":
        return Labels(kind, (), [None] * len(rows), tuple(notes))
    _check_present(rows, kind, source, unit, unused)
    if kind == "regression":
        return Labels(kind, (), _numbers(rows, source, unit), tuple(notes))
    if kind == "single":
        _check_one(rows, source, unit)
    classes = tuple(known) if known else _classes(rows, folders, source, unit)
    numbers = _lookup(rows, classes, known is not None and len(known) > 0, source, unit)
    notes += _gaps(numbers, classes, source)
    if kind == "single":
        return Labels(kind, classes, [one[0] for one in numbers], tuple(notes))
    return Labels(kind, classes, [*numbers], tuple(notes))


def numbered(classes: Sequence[str]) -> bool:
    """Whether classes are named by their numbers alone: "0", "1", ..."""
    return all(name == str(at) for at, name in enumerate(classes))


def _infer(rows: Sequence[Row]) -> tuple[Kind, str]:
    labels = [row.label for row in rows]
    given = [label for label in labels if label is not None]
    if not given:
        return "unlabelled", ""
    if len(given) == len(rows):
        if all(label == (-1,) for label in given):
            return "unlabelled", "all labels are -1: read as videos without labels"
        if all(len(label) == 2 and label[1] == -1 for label in given):
            return "unlabelled", "'path start -1' (a published pretraining list): no labels"
    if any(isinstance(x, float) for label in given for x in label):
        return "regression", ""
    return ("multi" if any(len(label) > 1 for label in given) else "single"), ""


def _check_present(
    rows: Sequence[Row], kind: Kind, source: str, unit: str, unused: Sequence[str]
) -> None:
    without = [Bad(r.line, r.text, "no label") for r in rows if r.label is None]
    if len(without) == len(rows):
        columns = f" Its unused columns: {', '.join(unused)} (column=...)." if unused else ""
        raise TubeletError(
            f"{source} has no labels, and {kind!r} labels are needed. Expected 'path label' on "
            'every line, a column called label, {"path": ..., "label": ...}, (path, label) pairs, '
            f"or one folder per class.{columns}"
        )
    if kind != "multi":  # a video may show none of the classes
        advice = f"Other {unit}s have one: give every video a label, or leave it out."
        refuse(source, without, len(rows), advice, unit)


def _check_one(rows: Sequence[Row], source: str, unit: str) -> None:
    bad = [
        Bad(r.line, r.text, f"{len(r.label)} labels, where one is expected")
        for r in rows
        if r.label is not None and len(r.label) != 1
    ]
    advice = "Several classes a video are multi-label: kind='multi'."
    refuse(source, bad, len(rows), advice, unit)


def _numbers(rows: Sequence[Row], source: str, unit: str) -> list[Any]:
    width = len(rows[0].label or ())
    bad = []
    for row in rows:
        label = row.label or ()
        texts = [x for x in label if isinstance(x, str)]
        if texts:
            bad.append(Bad(row.line, row.text, f"{texts[0]!r} is not a number"))
        elif len(label) != width:
            bad.append(Bad(row.line, row.text, f"{len(label)} numbers, the first has {width}"))
        elif any(x != x or abs(x) == float("inf") for x in label if isinstance(x, float)):
            bad.append(Bad(row.line, row.text, "not a finite number"))
    refuse(source, bad, len(rows), "Regression expects as many numbers for every video.", unit)
    return [tuple(float(x) for x in row.label or ()) for row in rows]


def _values(rows: Sequence[Row]) -> list[tuple[Row, Value]]:
    return [(row, value) for row in rows for value in row.label or ()]


def _classes(
    rows: Sequence[Row], folders: Sequence[str] | None, source: str, unit: str
) -> tuple[str, ...]:
    """Folder names; else sorted names; else the numbers from 0 to the highest label."""
    if folders is not None:
        return tuple(folders)
    values = _values(rows)
    names = {value for _, value in values if isinstance(value, str)}
    if not names:
        _check_whole(values, None, source, unit, len(rows))
        return tuple(str(i) for i in range(max((int(v) for _, v in values), default=-1) + 1))
    mixed = [
        Bad(row.line, row.text, f"the number {value}, where other {unit}s have names")
        for row, value in values
        if not isinstance(value, str)
    ]
    few = [
        Bad(row.line, row.text, f"the name {value!r}, where other {unit}s have numbers")
        for row, value in values
        if isinstance(value, str)
    ]
    if mixed:
        advice = "Labels are either class numbers or class names, throughout."
        refuse(source, min(mixed, few, key=len), len(rows), advice, unit)
    return tuple(sorted(names))


def _check_whole(
    values: Sequence[tuple[Row, Value]],
    classes: Sequence[str] | None,
    source: str,
    unit: str,
    total: int,
) -> None:
    bad = []
    for row, value in values:
        if isinstance(value, float):
            bad.append(Bad(row.line, row.text, f"{value} is not a class number"))
        elif isinstance(value, int) and value < 0:
            bad.append(Bad(row.line, row.text, f"label {value} is negative"))
        elif isinstance(value, int) and classes is not None and value >= len(classes):
            bad.append(
                Bad(row.line, row.text, f"label {value}, and the highest is {len(classes) - 1}")
            )
    advice = "Class numbers count from 0; fractions are for kind='regression'."
    if classes is not None:
        advice = f"There are {len(classes)} classes, numbered from 0: {_names(classes)}."
    refuse(source, bad, total, advice, unit)


def _lookup(
    rows: Sequence[Row], classes: Sequence[str], fixed: bool, source: str, unit: str
) -> list[tuple[int, ...]]:
    """The class numbers of every row; a name or number outside of the classes is an error."""
    number = {name: at for at, name in enumerate(classes)}
    values = _values(rows)
    # A number that is also the name of a class ("007", "10") is that name.
    whole = [(row, value) for row, value in values if str(value) not in number]
    whole = [(row, value) for row, value in whole if not isinstance(value, str)]
    _check_whole(whole, classes, source, unit, len(rows))
    bad = []
    for row, value in values:
        if isinstance(value, str) and value not in number:
            near = difflib.get_close_matches(value, classes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            bad.append(Bad(row.line, row.text, f"no class is called {value!r}{hint}"))
    origin = "set by the training list or checkpoint" if fixed else "of this list"
    advice = f"The {len(classes)} classes ({origin}): {_names(classes)}."
    if fixed and numbered(classes):
        advice += (
            " They have numbers alone: give lists with numbers, or the head its names by `tubelet convert "
            "WEIGHTS NAMED.safetensors --to tubelet --classes NAMES.txt`."
        )
    refuse(source, bad, len(rows), advice, unit)
    index = {str(at): at for at in range(len(classes))} | number
    return [tuple(index[str(value)] for value in row.label or ()) for row in rows]


def _names(classes: Sequence[str]) -> str:
    return ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")


def _gaps(labels: Sequence[tuple[int, ...]], classes: Sequence[str], source: str) -> list[str]:
    used = {value for label in labels for value in label}
    unused = [name for at, name in enumerate(classes) if at not in used]
    if not unused:
        return []
    note = f"{source}: {len(unused)} of {len(classes)} classes have no video: {_names(unused)}"
    if unused == ["0"] and 0 not in used and classes[0] == "0":
        note += " (labels seem to count from 1; tubelet counts from 0)"
    return [note]
