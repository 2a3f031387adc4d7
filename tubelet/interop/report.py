"""What became of each tensor of a file that was loaded: as a line, a table and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table


class Renamed(NamedTuple):
    theirs: str
    ours: str


class Resized(NamedTuple):
    name: str
    before: str
    after: str
    how: str


class Dropped(NamedTuple):
    name: str
    why: str


@dataclass
class Report:
    """Of one load. Names of the file stand first; `missing` are ours, left at new values.

    Each tensor of the file is in one of `matched`, `renamed` and `dropped`; in `renamed` once for each
    of ours that it became a part of. `resized` are among the first two.
    """

    path: str = ""
    layout: str = ""  # videomae, mvd, mae, maskfeat, hf, tubelet, ...
    what: str = ""  # in words: "VideoMAE, pretrained: encoder and decoder"
    matched: list[str] = field(default_factory=list)  # the same name in both
    renamed: list[Renamed] = field(default_factory=list)
    resized: list[Resized] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """What happened, in a line: what the commands print when they load a file of others."""
        counts = {
            "matched": self.matched,
            "renamed": {one.theirs for one in self.renamed},  # of one, two may have become
            "resized": self.resized,
            "dropped": self.dropped,
            "missing": self.missing,
        }
        told = ", ".join(f"{len(found)} {word}" for word, found in counts.items() if found)
        return f"{self.path}: {self.what}; tensors: {told or 'none'}"

    def table(self) -> Table:
        """A row for each group of tensors of one fate; names of blocks are gathered."""
        table = Table("fate", "in the file", "here", "why", title=cell(self.line()))
        for fate, theirs, ours, why, count in _rows(self):
            theirs = f"{theirs}{f'  ({count})' if count > 1 else ''}"
            table.add_row(*map(cell, (fate, theirs, ours, why)))
        for note in self.notes:
            table.add_row("note", "", "", cell(note))
        return table

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        found = asdict(self)
        found["renamed"] = [one._asdict() for one in self.renamed]
        found["resized"] = [one._asdict() for one in self.resized]
        found["dropped"] = [one._asdict() for one in self.dropped]
        return found


def cell(text: str) -> str:
    """Text of a file for a table: as it is, whatever brackets it has, without what steers terminals."""
    return escape("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text))


def _rows(report: Report) -> list[tuple[str, str, str, str, int]]:
    """Fate, theirs, ours, why, how many; blocks that differ in their number alone are one row."""
    rows = [("matched", name, name, "") for name in report.matched]
    rows += [("renamed", one.theirs, one.ours, "") for one in report.renamed]
    rows += [
        ("resized", one.name, f"{one.before} to {one.after}", one.how) for one in report.resized
    ]
    rows += [("dropped", one.name, "", one.why) for one in report.dropped]
    rows += [("missing", "", name, "left at its new value") for name in report.missing]
    counted: dict[tuple[str, str, str, str], int] = {}
    for fate, theirs, ours, why in rows:
        row = (fate, _numberless(theirs), _numberless(ours), why)
        counted[row] = counted.get(row, 0) + 1
    return [(*row, count) for row, count in counted.items()]


def _numberless(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
