"""Dataclasses from JSON values."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import fields
from typing import Any, TypeVar

from tubelet.errors import TubeletError

Record = TypeVar("Record")


def record(cls: type[Record], values: dict[str, Any], where: str = "") -> Record:
    """A dataclass from JSON values, with the records and tuples in it; unknown names are errors."""
    where = where or cls.__name__
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(typing.cast(Any, cls))]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TubeletError(f"{where} has no field {name!r}.{hint} It has: {', '.join(names)}.")
    return cls(
        **{name: value_of(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    )


def value_of(hint: Any, value: Any, where: str) -> Any:
    """A JSON value as the field's type: records and tuples are made again."""
    options = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )
    if isinstance(value, dict):
        records = [option for option in options if dataclasses.is_dataclass(option)]
        # Of several kinds (encoders), the one that has all these fields.
        fit = [kind for kind in records if set(value) <= {f.name for f in fields(kind)}]
        if records:
            return record(typing.cast(type, [*fit, *records][0]), value, where)
    for option in options:
        if typing.get_origin(option) is tuple and isinstance(value, list):
            of = typing.get_args(option)[0]
            if dataclasses.is_dataclass(of):
                return tuple(record(typing.cast(type, of), each, where) for each in value)
            return tuple(value)
    return value
