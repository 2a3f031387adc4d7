"""Records of comparisons, and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tubelet.bench import machine
from tubelet.bench.turns import Took
from tubelet.files import replace_file


@dataclass(frozen=True)
class Record:
    """One of ours against one of others, in one run. Ratios above 1 in time and below 1 in memory
    are in our favour."""

    name: str  # "videomae-b-f32"
    against: str  # "hf", "plain", "plain-bf16", ...
    ratio_time: float  # their time through ours: the median over pairs of turns
    precision: str
    shape: str  # "4x3x16x224x224"
    ratio_memory: float | None = None  # our peak through theirs
    mfu: float | None = None  # share of the machine's rate of products in the same run
    mfu_against: float | None = None
    bar: float | None = None  # of ratio_time
    bar_memory: float | None = None  # of ratio_memory
    spread: tuple[float, float] | None = None  # of ratio_time: the least and the greatest
    seconds: float | None = None  # ours, a turn: the median
    seconds_against: float | None = None
    peak_gib: float | None = None
    peak_gib_against: float | None = None
    flops: int | None = None
    flops_against: int | None = None
    loss: float | None = None
    loss_against: float | None = None
    note: str = ""
    versions: dict[str, str] = field(default_factory=machine.versions)

    @property
    def met(self) -> bool | None:
        """Whether the bars are reached; None without any."""
        if self.bar is None and self.bar_memory is None:
            return None
        quick = self.bar is None or self.ratio_time >= self.bar
        small = self.bar_memory is None or (self.ratio_memory or 0) <= self.bar_memory
        return quick and small


def compared(
    name: str,
    ours: Took,
    against: str,
    theirs: Took,
    *,
    precision: str,
    shape: str,
    bar: float | None = None,
    bar_memory: float | None = None,
    views: tuple[int, int] = (1, 1),
    note: str = "",
) -> Record:
    """The record of two rows of one run. `views` (ours, theirs): what a step of each is divided by,
    where one step learns from several views of a clip."""
    own, other = views
    ratios = [b / other / (a / own) for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    return Record(
        name=name,
        against=against,
        ratio_time=median(ratios),
        precision=precision,
        shape=shape,
        ratio_memory=ours.peak_gib / theirs.peak_gib,
        mfu=median(ours.shares),
        mfu_against=median(theirs.shares),
        bar=bar,
        bar_memory=bar_memory,
        spread=(min(ratios), max(ratios)),
        seconds=median(ours.seconds) / own,
        seconds_against=median(theirs.seconds) / other,
        peak_gib=ours.peak_gib,
        peak_gib_against=theirs.peak_gib,
        flops=ours.flops,
        flops_against=theirs.flops,
        loss=ours.value,
        loss_against=theirs.value,
        note=note,
    )


def write(path: Path, records: Sequence[Record], more: dict[str, Any] | None = None) -> None:
    """All records with the machine and the date, as JSON. `more`: further parts of the file."""
    rows = [{**asdict(record), "met": record.met} for record in records]
    text = json.dumps({"about": machine.about(), "records": rows, **(more or {})}, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda begun: begun.write_text(text, encoding="utf-8"))
