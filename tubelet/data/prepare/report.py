"""What `prepare` tells: an estimate, the work that was done, and the files that cannot be read."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tubelet.data.prepare.compare import Figures
from tubelet.data.prepare.reencode import Settings

SHOWN = 20  # unreadable files on a terminal; the JSON has all


@dataclass(frozen=True)
class Fault:
    """A file that was not made, and why."""

    path: str
    reason: str


@dataclass
class Report:
    """What was done. `ok` is False where a video could not be made."""

    out: str
    settings: Settings
    videos: int
    there: int  # made by an earlier call
    made: int = 0
    copied: int = 0  # as wanted already
    seconds: float = 0.0  # of this call
    cpu_seconds: float = 0.0
    unreadable: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    estimate: Figures | None = None
    result: Figures | None = None  # of all files that are there now

    @property
    def ok(self) -> bool:
        return not self.unreadable

    def to_json(self) -> str:
        """All of it, for a program."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2, ensure_ascii=False)

    def table(self) -> RenderableType:
        """What a person should see, for rich."""
        parts: list[RenderableType] = []
        figures = self.result or self.estimate
        if figures is not None:
            parts.append(_figures(self, figures))
        elif self.there:
            parts.append(Text(f"{self.there} of {self.videos} videos were there already."))
        parts += [Text(f"note: {note}", style="yellow") for note in self.notes]
        if self.unreadable:
            parts.append(_faults(self.unreadable))
        return Group(*parts)


def sentence(figures: Figures, workers: int) -> str:
    """An estimate in one line."""
    return (
        f"{figures.cpu_hours:.2g} CPU hours ({figures.cpu_hours / workers:.2g} with {workers} "
        f"processes), {say_size(figures.bytes_before)} -> {say_size(figures.bytes_after)}, "
        f"{figures.clips_per_cpu_second_before:.1f} -> {figures.clips_per_cpu_second_after:.1f} "
        "clips per CPU second"
    )


def say_size(number: float) -> str:
    """Bytes for people: 4.81 MB."""
    power = next((p for p in (4, 3, 2, 1) if abs(number) >= 1000**p), 0)
    return f"{number / 1000**power:.{2 if power else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _figures(report: Report, figures: Figures) -> Table:
    true = report.result is not None
    title = "Prepared" if true else f"Estimate, from {figures.sampled} of {figures.videos} videos"
    table = Table("", "before", "after", title=title, title_justify="left")
    before, after = figures.bytes_before, figures.bytes_after
    table.add_row("size", say_size(before), f"{say_size(after)} ({after / max(1, before):.2f}x)")
    table.add_row(
        "training clips per CPU second",
        f"{figures.clips_per_cpu_second_before:.1f}",
        f"{figures.clips_per_cpu_second_after:.1f}",
    )
    table.add_row("CPU hours", "", f"{figures.cpu_hours:.2g}")
    psnr = "no difference" if figures.psnr_db is None else f"{figures.psnr_db:.1f} dB"
    apart = f"{psnr}, {figures.mean_absolute_difference:.1f} of 255"
    table.add_row("PSNR, mean difference", "", apart)
    done = f"{report.made} made, {report.copied} copied, {report.there} there already"
    table.add_row("videos", str(report.videos), done if true else f"{figures.videos} to make")
    return table


def _faults(faults: list[Fault]) -> Table:
    table = Table(title=f"Not made ({len(faults)})", title_justify="left")
    table.add_column("path", overflow="fold")
    table.add_column("why", overflow="fold")
    for fault in faults[:SHOWN]:
        near = os.path.relpath(fault.path)
        table.add_row(Text(fault.path if near.startswith("..") else near), Text(fault.reason))
    if len(faults) > SHOWN:
        table.add_row(f"... and {len(faults) - SHOWN} more", "")
    return table
