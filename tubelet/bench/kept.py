"""docs/performance.json: what each part found, where and when; read again by `--keep`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tubelet.bench import machine
from tubelet.bench.record import Record
from tubelet.errors import TubeletError
from tubelet.files import replace_file


def about(threads: int = 0) -> dict[str, Any]:
    """The machine, the date and the versions, and the threads of a row (0: as torch chooses)."""
    found = {**machine.about(), "versions": machine.versions()}
    return {**found, "threads": threads or found["threads"]}


@dataclass(frozen=True)
class Found:
    """What a part measured: comparisons, or rows of a table that compares with nobody."""

    records: list[Record] = field(default_factory=list[Record])
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


@dataclass(frozen=True)
class Done:
    """A part that was measured."""

    part: str  # "step videomae-b", "loader"
    kind: str  # "step", "loader", ...
    about: dict[str, Any]
    quick: bool
    seconds: float  # that it took
    found: Found

    def fits(self, here: dict[str, Any], quick: bool) -> bool:
        """Whether it was measured like this: on such a machine, with these versions."""
        dated = {**self.about, "date": here["date"]}
        return dated == here and self.quick == quick


def write(path: Path, done: Sequence[Done]) -> None:
    """All parts as JSON, in one move: `records` of all, and `parts` with all else."""
    records = [
        {
            **asdict(record),
            "met": record.met,
            "kind": part.kind,
            "part": part.part,
            "versions": part.about["versions"],
        }
        for part in done
        for record in part.found.records
    ]
    parts = [
        {
            "part": part.part,
            "kind": part.kind,
            "about": part.about,
            "quick": part.quick,
            "seconds": part.seconds,
            "rows": part.found.rows,
        }
        for part in done
    ]
    text = json.dumps({"records": records, "parts": parts}, indent=1, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda begun: begun.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise TubeletError(f"{path} cannot be written: {error.strerror or error}.") from error


def read(path: Path) -> list[Done]:
    """The parts of a file; TubeletError where it holds something else."""
    names = {each.name for each in fields(Record)}
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        records: dict[str, list[Record]] = {}
        for row in whole["records"]:
            values = {name: value for name, value in row.items() if name in names}
            values["spread"] = tuple(values["spread"]) if values.get("spread") else None
            records.setdefault(row["part"], []).append(Record(**values))
        return [
            Done(
                *(row["part"], row["kind"], row["about"], row["quick"], row["seconds"]),
                Found(records.get(row["part"], []), row["rows"]),
            )
            for row in whole["parts"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TubeletError(
            f"{path} holds no results of tubelet bench all ({type(error).__name__}: {error}). Move "
            "it away, or leave --keep out: it is then written anew."
        ) from error
