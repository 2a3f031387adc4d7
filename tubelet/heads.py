"""A classifier's head for other classes: the rows that it has for them (arXiv 2303.16727, K710).

A head trained on a merged label set has a row, weight and bias, for each of its classes. A set
that was merged has its classes among them; which row is whose is said by the names of the classes
or, where those were renamed or are numbers, by the map that `tubelet merge-labels` writes.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tubelet import stored
from tubelet.data.labels import numbered
from tubelet.errors import TubeletError
from tubelet.interop.found import NOTHING, Found, Told
from tubelet.interop.report import Resized
from tubelet.model import Classifier
from tubelet.train import checkpoint

PARTS = ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
SHOWN = 5


class HeadMap(NamedTuple):
    """For each class of a target set, in its order: its name, and its row in the merged head."""

    rows: tuple[int, ...]
    classes: tuple[str, ...] = ()  # (): the map does not say
    merged: tuple[
        str, ...
    ] = ()  # what the rows' classes are called in the merged set; (): not said


def read_head_map(path: str | Path) -> HeadMap:
    """A map of `merge-labels`; or as published, a list of row numbers: json, or one in a line.

    TubeletError for a file that is none of these, and for a row that is named twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        numbers = text.split()
        listed = bool(numbers) and all(map(str.isdecimal, numbers))
        found: Any = [*map(int, numbers)] if listed else _parsed(text)
        record = found if isinstance(found, dict) else {"rows": found}
        head_map = HeadMap(*(tuple(record.get(name, ())) for name in HeadMap._fields))
    except (OSError, ValueError, TypeError) as error:
        raise TubeletError(
            f"{path} cannot be read as a map of head rows: {error}. Expected what `tubelet "
            "merge-labels` writes into maps/, or row numbers: a json list, or one in a line."
        ) from error
    rows, classes, merged = head_map
    whole = {*map(type, rows)} == {int} and min(rows) >= 0  # a file may hold anything
    if not rows or not whole or any(names and len(names) != len(rows) for names in head_map[1:]):
        raise TubeletError(
            f"{path} holds {len(rows)} rows, {len(classes)} classes and {len(merged)} merged names: "
            'expected "rows", numbers from 0 on, and as many names where there are any.'
        )
    for what, values in (("row", rows), ("class", classes)):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise TubeletError(
                f"{path} has the {what} {twice[0]!r} more than once ({len(twice)} such): each class of "
                "the target set needs a row of its own."
            )
    return head_map


def target_classes(
    weights: str | Path, head_map: str | Path, told: Told = NOTHING
) -> tuple[str, ...]:
    """The target set's class names in its order, as the map and the head of the weights say them.

    They are numbers where neither names them.
    """
    return _resolved(_classes(weights, told), weights, head_map).classes


def rows_for(
    weights: str | Path, classes: Sequence[str], head_map: str | Path = "", told: Told = NOTHING
) -> tuple[int, ...]:
    """The rows of the head in these weights for these classes: by the map, or else by their names.

    TubeletError for weights without a head, for a class without a row, and for numbered classes
    where only names could tell.
    """
    have = _classes(weights, told)
    if head_map:
        found = _resolved(have, weights, head_map)
        source, known = str(head_map), dict(zip(found.classes, found.rows, strict=True))
    else:
        source, known = str(weights), {name: row for row, name in enumerate(have)}
        if tuple(classes) != have and (numbered(classes) or numbered(have)):
            raise TubeletError(
                f"Classes of the {'videos' if numbered(classes) else 'head'} are known by number alone "
                f"({len(classes)} classes, {len(have)} rows), and numbers do not tell which "
                "row is whose. Give a map (--head-map), or lists with names as labels."
            )
    missing = [name for name in classes if name not in known]
    if missing:
        near = difflib.get_close_matches(missing[0], known, 1, 0.5)
        hint = f" Nearest to {missing[0]!r}: {near[0]!r}." if near else ""
        raise TubeletError(
            f"{source} has no row for {len(missing)} of {len(classes)} classes: "
            f"{', '.join(map(repr, missing[:SHOWN]))}.{hint} Give the map that merge-labels wrote "
            "for this set (--head-map maps/SET.json), or start with a new head (--head new)."
        )
    return tuple(known[name] for name in classes)


def carry(
    model: Classifier, weights: str | Path, rows: Sequence[int], told: Told = NOTHING
) -> None:
    """Gives the model the norm before the head of these weights, and these rows of the head."""
    found = stored.opened(weights, told).weights
    kept = torch.tensor(rows)
    parts = {name: found[name] for name in PARTS}
    parts |= {name: parts[name][kept] for name in ("head.weight", "head.bias")}
    own = nn.ModuleDict({"fc_norm": model.fc_norm, "head": model.head})
    checkpoint.apply_weights(own, parts, weights)


def gathered(model: Classifier, head_map: str | Path) -> Classifier:
    """The model for a target set alone: see `Classifier.gather_head`; its card has the set's names."""
    names = model.card.classes or tuple(map(str, range(model.num_classes)))
    found = _resolved(names, "the model", head_map)
    part = model.gather_head(found.rows)
    part.card = replace(part.card, classes=found.classes)
    return part


def part(found: Found, head_map: str | Path) -> Found:
    """A classifier's header and tensors -> those for a target set alone: the rows of its head that the
    map names, in its order. Written in the layout that they came from, all else is as it was."""
    source = found.report.path or "the model"
    kept = _resolved(_classes_in(found.header, source), source, head_map)
    weights, report = dict(found.weights), deepcopy(found.report)
    for name in ("head.weight", "head.bias"):
        if name in weights:  # what is missing is said when a model is filled
            before, weights[name] = weights[name], weights[name][list(kept.rows)]
            rows = Resized(name, f"{len(before)} rows", f"{len(kept.rows)} rows", f"by {head_map}")
            report.resized.append(rows)
    header = found.header | {"outputs": len(kept.rows), "classes": list(kept.classes)}
    return replace(found, header=header, weights=weights, report=report)


def _parsed(text: str) -> Any:
    found = json.loads(text)
    if not isinstance(found, (dict, list)):
        raise ValueError(f"it holds a {type(found).__name__}")
    return found


def _classes(weights: str | Path, told: Told) -> tuple[str, ...]:
    """The classes of the classifier in these weights."""
    return _classes_in(stored.header_of(weights, told), weights)


def _classes_in(header: Mapping[str, Any], weights: str | Path) -> tuple[str, ...]:
    """The classes of a classifier, by its header; a model without any is refused."""
    classes = stored.card_of(header, weights).classes
    if header["kind"] != "classifier" or not classes:
        what = (
            "a model without classes" if header["kind"] == "classifier" else "a pretrained encoder"
        )
        raise TubeletError(
            f"{weights} is {what}: it has no head to take rows from. Pass a run that was fine-tuned "
            "on the merged classes. Fine-tuning can begin with a new head instead (--head new)."
        )
    return classes


def _resolved(have: Sequence[str], weights: str | Path, path: str | Path) -> HeadMap:
    """The map with names for all of its classes, after a look whether it is for this head."""
    found = read_head_map(path)
    named = () if numbered(have) else have
    if max(found.rows) >= len(have):
        raise TubeletError(
            f"{path} names row {max(found.rows)}, and the head in {weights} has {len(have)}: the map is "
            "for another merged set than the one that was trained on."
        )
    for row, name in zip(found.rows, found.merged, strict=False):
        if named and named[row] != name:
            raise TubeletError(
                f"{path} says that row {row} is {name!r}, and in {weights} it is {named[row]!r}: the map "
                "is for another merged set than the one that was trained on."
            )
    if found.classes:
        return found
    names = (named[row] for row in found.rows) if named else map(str, range(len(found.rows)))
    return found._replace(classes=tuple(names))
