"""Renaming of parameters between layouts, by explicit tables, both ways and strict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

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
    if unknown:
        raise TubeletError(
            f"{len(unknown)} parameters have no name in the other layout: {some(unknown)}. "
            f"Known prefixes: {', '.join(repr(row[0]) for row in rows)}."
        )
    return renamed


def renamed(state: Mapping[str, Tensor], table: Table, *, back: bool = False) -> dict[str, Tensor]:
    """A state dict under the names of the other layout, in the same order."""
    return {new: state[old] for old, new in rename(state, table, back=back).items()}


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str = "the file") -> None:
    """Copy `state` into `module`: each name and shape must match, on both sides."""
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    wrong = [
        f"{name} ({list(state[name].shape)} in {source}, {list(own[name].shape)} in the model)"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or extra or wrong:
        told = [
            f"{len(names)} {what}: {some(names)}"
            for what, names in (
                ("missing there", missing),
                ("unknown to the model", extra),
                ("of another shape", wrong),
            )
            if names
        ]
        raise TubeletError(f"The weights of {source} do not fit this model. {'; '.join(told)}.")
    module.load_state_dict(dict(state))


def some(names: Sequence[str], most: int = 4) -> str:
    """The first names of a list, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
