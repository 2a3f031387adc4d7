"""The sources of a mixed run as text: `NAME=LIST,kind=frames,weight=0.5`, or tables of a TOML file."""

from __future__ import annotations

import os
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from tubelet.data.sources import DataSource
from tubelet.errors import TubeletError
from tubelet.methods.records import record

DEFAULTS = {f.name: f.default for f in fields(DataSource)}
HINTS = typing.get_type_hints(DataSource)


def from_words(words: Sequence[str]) -> tuple[DataSource, ...]:
    """What follows --sources: descriptions of one source each, and TOML files with several."""
    sources: list[DataSource] = []
    for word in words:
        if "=" not in word and word.endswith(".toml"):
            sources += from_toml(word)
        else:
            sources.append(from_text(word))
    return tuple(sources)


def from_text(text: str) -> DataSource:
    """`NAME=LIST[,FIELD=VALUE]...` -> the source; the fields are those of `DataSource`."""
    first, *rest = text.split(",")
    name, _, data = first.partition("=")
    values: dict[str, Any] = {"name": name, "data": data}
    for part in rest:
        field, equals, value = part.partition("=")
        if not equals:
            raise TubeletError(
                f"--sources {text}: {part!r} is no FIELD=VALUE. Expected NAME=LIST,kind=frames,"
                "weight=0.5 and so on; a path with a comma in it goes into a TOML file."
            )
        if field in values:
            raise TubeletError(f"--sources {text}: {field} is given twice.")
        values[field] = value
    return _source(values, f"--sources {name}")


def from_toml(file: str) -> list[DataSource]:
    """The `[[source]]` tables of a TOML file; relative paths are joined to its folder."""
    try:
        tables = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TubeletError(f"{file} cannot be read as TOML: {error}.") from error
    listed = tables.get("source")
    whole = isinstance(listed, list) and all(isinstance(values, dict) for values in listed)
    if set(tables) != {"source"} or not whole:
        names = ", ".join(sorted(set(tables) - {"source"})) or "nothing"
        raise TubeletError(
            f"{file} has {names}: expected [[source]] tables alone, each with name, data and what "
            "else a source has."
        )
    folder = os.path.dirname(file)
    sources: list[DataSource] = []
    for number, values in enumerate(typing.cast(list[dict[str, Any]], listed), 1):
        paths = {
            key: os.path.join(folder, values[key])
            for key in ("data", "root")
            if isinstance(values.get(key), str) and values[key]
        }
        sources.append(_source(values | paths, f"{file}, source {values.get('name', number)}"))
    return sources


def _source(values: dict[str, Any], where: str) -> DataSource:
    for field in ("name", "data"):
        if not values.get(field):
            raise TubeletError(f"{where} has no {field}: expected NAME=LIST, both of them.")
    typed = {field: _typed(field, value, where) for field, value in values.items()}
    return record(DataSource, typed, where)


def _typed(field: str, value: Any, where: str) -> Any:
    """A value as its field's type; of unknown fields as it is."""
    options = typing.get_args(HINTS.get(field)) or (HINTS.get(field),)
    kind = next((k for k in (int, float) if k in options), None)
    if kind is None:
        if field in HINTS and not isinstance(value, str):
            raise TubeletError(f"{where}: {field} is {value!r}, expected a text.")
        return value
    try:
        return kind(value) if kind is float or not isinstance(value, float) else int(str(value))
    except (TypeError, ValueError):
        what = "a whole number" if kind is int else "a number"
        raise TubeletError(f"{where}: {field} is {value!r}, expected {what}.") from None


def to_words(sources: Sequence[DataSource]) -> list[str]:
    """The inverse of `from_words`."""
    return [
        ",".join(
            [
                f"{source.name}={source.data}",
                *(
                    f"{field}={value}"
                    for field, value in asdict(source).items()
                    if field not in ("name", "data") and value != DEFAULTS[field]
                ),
            ]
        )
        for source in sources
    ]


Sources = Annotated[
    tuple[DataSource, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=LIST[,FIELD=VALUE...]|FILE.toml",
        instance_from_str=from_words,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=to_words,
    ),
]
