"""docs/performance.md and .png: what was measured, for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tubelet.analysis.picture import ALARM, INK, PAPER, SOFT
from tubelet.bench.kept import Done
from tubelet.bench.record import Record
from tubelet.bench.words import ABOUT, HEADS, HOW
from tubelet.files import replace_file

Cell = Callable[[Record], str]


def write(out: Path, done: Sequence[Done]) -> None:
    """performance.md and performance.png in `out`, each in one move."""
    page = out / "performance.md"
    replace_file(page, lambda begun: begun.write_text(markdown(done), encoding="utf-8"))
    records = [record for part in done for record in part.found.records]
    if records:
        figure = plot(records)
        picture = out / "performance.png"
        replace_file(picture, lambda begun: figure.savefig(begun, dpi=110, format="png"))


def markdown(done: Sequence[Done]) -> str:
    """The page."""
    kinds = list(dict.fromkeys(part.kind for part in done))
    records = [record for part in done for record in part.found.records]
    lines = ["# How fast it is", "", ABOUT, "", *machines(done)]
    if any(part.quick for part in done):
        lines += ["", "**In small, to see that it runs: these numbers say nothing.**"]
    if records:
        lines += ["", "![ratios](performance.png)"]
    for kind in kinds:
        parts = [part for part in done if part.kind == kind]
        title, words = HEADS[kind]
        lines += ["", f"## {title}", "", words, ""]
        lines += table([record for part in parts for record in part.found.records])
        lines += rows_table([row for part in parts for row in part.found.rows])
    return "\n".join([*lines, "", HOW])


def summary(done: Sequence[Done]) -> str:
    """The tables alone, for a terminal."""
    lines = table([record for part in done for record in part.found.records])
    for part in done:
        lines += rows_table(part.found.rows)
    return "\n".join(lines)


def machines(done: Sequence[Done]) -> list[str]:
    """A line for each machine, date and set of versions that parts were measured with."""
    found: dict[str, list[str]] = {}
    for part in done:
        found.setdefault(_machine(part.about), []).append(part.kind)
    if len(found) == 1:
        return [f"Measured on {next(iter(found))}."]
    return [f"- {', '.join(dict.fromkeys(kinds))}: {text}" for text, kinds in found.items()]


def _machine(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    units = ", without units for bf16" if about.get("bf16_units") is False else ""
    return (
        f"{about['processor']} ({about['cores']} cores, {about['threads']} threads{units}), "
        f"{about['system']}, Python {about['python']}, {versions}, {about['date']}"
    )


def table(records: Sequence[Record]) -> list[str]:
    """Comparisons as a table of Markdown; columns that no record fills are left out."""
    filled = [
        (head, cells)
        for head, cell in COLUMNS.items()
        if any(cells := [cell(record) for record in records])
    ]
    if not filled:
        return []
    return _table([head for head, _ in filled], zip(*(cells for _, cells in filled), strict=True))


def rows_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of one form as a table of Markdown; the keys are the heads."""
    if not rows:
        return []
    heads = list(dict.fromkeys(key for row in rows for key in row))
    names = [head.replace("_", " ") for head in heads]
    return _table(names, ([_shown(row.get(head)) for head in heads] for row in rows))


def _table(heads: Sequence[str], rows: Any) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def verdict(record: Record) -> str:
    """Whether the bars are reached, of a bar that no step of ours could reach: that."""
    if record.met is None:
        return ""
    if record.met:
        return "met"
    return "floor" if record.small and beyond(record) else "MISSED"


def beyond(record: Record) -> bool:
    """Whether the bar of time is above what products alone allow at the machine's rate."""
    return bool(record.bar and record.mfu and record.bar > record.ratio_time / record.mfu)


def _times(record: Record) -> str:
    if record.spread is None:
        return f"{record.ratio_time:.2f}"
    return f"{record.ratio_time:.2f} ({record.spread[0]:.2f} to {record.spread[1]:.2f})"


def _pair(a: float | None, b: float | None) -> str:
    return "" if a is None or b is None else f"{a:.2f} / {b:.2f}"


def _giga(a: int | None, b: int | None) -> str:
    return "" if a is None or b is None else f"{a / 1e9:.0f} / {b / 1e9:.0f}"


COLUMNS: dict[str, Cell] = {
    "what": lambda r: r.name,
    "against": lambda r: r.against,
    "precision": lambda r: r.precision,
    "shape": lambda r: r.shape,
    "times as fast": _times,
    "bar": lambda r: f"{r.bar:.2f}" if r.bar else "",
    "memory": lambda r: f"{r.ratio_memory:.2f}" if r.ratio_memory else "",
    "its bar": lambda r: f"{r.bar_memory:.2f}" if r.bar_memory else "",
    "bars": verdict,
    "s, ours / theirs": lambda r: _pair(r.seconds, r.seconds_against),
    "GiB": lambda r: _pair(r.peak_gib, r.peak_gib_against),
    "GFLOP": lambda r: _giga(r.flops, r.flops_against),
    "share of rate": lambda r: _pair(r.mfu, r.mfu_against),
    "note": lambda r: r.note,
}


def plot(records: Sequence[Record]) -> Figure:
    """Ratios of time on a log axis, with their spread and their bars."""
    figure = Figure(figsize=(9, 1.1 + 0.3 * len(records)), facecolor=PAPER, layout="constrained")
    axes = figure.subplots()
    colours = {"MISSED": ALARM, "floor": SOFT, "met": "#0a7d4f", "": INK}
    for y, record in enumerate(records):
        colour = colours[verdict(record)]
        low, high = record.spread or (record.ratio_time, record.ratio_time)
        axes.plot([low, high], [y, y], color=colour, linewidth=1.5, alpha=0.6)
        axes.plot(record.ratio_time, y, "o", color=colour, markersize=6)
        if record.bar is not None:
            axes.plot([record.bar] * 2, [y - 0.35, y + 0.35], color=INK, linewidth=1.5)
    axes.axvline(1, color=SOFT, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    shown = [0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    values = [v for r in records for v in (r.ratio_time, r.bar, *(r.spread or ())) if v]
    axes.set_xlim(min(0.9, min(values) / 1.1), max(2.0, max(values) * 1.1))
    axes.set_yticks(range(len(records)), [f"{r.name} against {r.against}" for r in records])
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the other (line: range over turns; upright: bar)")
    axes.grid(axis="x", color="#e5e5ea", linewidth=0.6)
    axes.tick_params(labelsize=8, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure
