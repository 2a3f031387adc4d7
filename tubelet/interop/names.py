"""Renaming of parameters between layouts, by explicit tables, both ways and strict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from tubelet.errors import TubeletError

Table = Sequence[tuple[str, str]]  # (their prefix, our prefix); the first that matches is taken


def rename(names: Iterable[str], table: Table, *, back: bool = False) -> dict[str, str]:
    """names -> {old: new}; `back` reads the table from right to left. A name outside is an error."""
    rows = [(ours, theirs) for theirs, ours in table] if back else list(table)
    renamed, unknown = {}, []
    for name in names:
        row = next((row for row in rows if name.startswith(row[0])), None)
        if row is None:
            unknown.append(name)
        else:
            renamed[name] = row[1] + name.removeprefix(row[0])
    if unknown and back:
        raise TubeletError(
            f"{len(unknown)} tensors have no name in the other layout: {some(unknown)}."
        )
    if unknown:
        raise TubeletError(
            f"{len(unknown)} parameters have no name in the other layout: {some(unknown)}. "
            f"Known prefixes: {', '.join(repr(row[0]) for row in rows)}."
        )
    return renamed


def renamed(state: Mapping[str, Tensor], table: Table, *, back: bool = False) -> dict[str, Tensor]:
    """A state dict under the names of the other layout, in the same order."""
    return {new: state[old] for old, new in rename(state, table, back=back).items()}


def some(names: Sequence[str], most: int = 4) -> str:
    """The first names of a list, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
