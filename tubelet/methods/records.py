"""Dataclasses from JSON values, each of the kind that its field has."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import types
import typing
from dataclasses import fields
from typing import Any, TypeVar

from tubelet.errors import TubeletError

Record = TypeVar("Record")


def record(cls: type[Record], values: Any, where: str = "") -> Record:
    """A dataclass from JSON values, with the records and tuples in it.

    TubeletError for names that it has not, and for values of another kind than their field's.
    """
    where = where or cls.__name__
    if not isinstance(values, dict):
        raise TubeletError(f"{where} is {_shown(values)}, where its fields are expected by name.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(typing.cast(Any, cls))]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TubeletError(f"{where} has no field {name!r}.{hint} It has: {', '.join(names)}.")
    needed = [f.name for f in fields(typing.cast(Any, cls)) if _has_no_default(f)]
    missing = [name for name in needed if name not in values]
    if missing:
        raise TubeletError(f"{where} lacks {', '.join(missing)}.")
    return cls(
        **{name: value_of(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    )


def value_of(hint: Any, value: Any, where: str) -> Any:
    """A JSON value as the field's type: records and tuples are made again."""
    options = _options(hint)
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
            value = tuple(value)
    if not any(_fits(option, value) for option in options):
        expected = " or ".join(dict.fromkeys(map(_named, options)))
        raise TubeletError(f"{where} is {_shown(value)}, where {expected} is expected.")
    return value


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    none = dataclasses.MISSING
    return field.init and field.default is none and field.default_factory is none


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


KINDS = {
    int: numbers.Integral,
    float: numbers.Real,
    str: str,
    bool: bool,
    types.NoneType: types.NoneType,
}
NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is of a kind; what is neither plain, nor a tuple or a record, always is."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        of = args[:1] * len(value) if args[1:] == (...,) else args
        return len(of) == len(value) and all(map(_fits_any, of, value))
    if origin is dict:
        return isinstance(value, dict) and all(_fits_any(args[1], one) for one in value.values())
    if hint in KINDS:
        return isinstance(value, KINDS[hint]) and (hint is bool or not isinstance(value, bool))
    return not dataclasses.is_dataclass(hint) or isinstance(value, typing.cast(type, hint))


def _fits_any(hint: Any, value: Any) -> bool:
    return any(_fits(option, value) for option in _options(hint))


def _named(hint: Any) -> str:
    """A kind in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(map(repr, args))
    if origin is tuple:
        each = " or ".join(map(_named, _options(args[0])))
        return f"a list, each {each}" if args[1:] == (...,) else f"{len(args)} values, each {each}"
    if origin is dict:
        return f"an object of {_named(args[1])}"
    return "nothing" if hint is types.NoneType else NAMES.get(hint, "a record")


def _shown(value: Any) -> str:
    shown = ascii(value) if isinstance(value, str) else str(value)
    return shown if len(shown) < 60 else f"{shown[:57]}..."
