"""Pictures of similarity: maps of all pairs of moments of a clip, and lines over distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tubelet.analysis.picture import INK, PAPER, SOFT
from tubelet.files import replace_file

ROWS = ("features as they are", "tokens' mean removed")
COLOURS = ("#2f5fd0", "#d55e00", "#00876c", "#a23b8f", "#8a6d00", "#5b6472")
MARKERS = "osD^vP"
MAP = "viridis"
WRITTEN = 10  # slots, up to which each cell has its number in it
THUMBNAILS = 8  # frames along an axis, at most


@dataclass(frozen=True)
class Maps:
    """The maps [t,t] of one model, mean kept and removed."""

    name: str
    kept: np.ndarray
    removed: np.ndarray
    frames_per_slot: int


@dataclass(frozen=True)
class Line:
    """One point of a line: the similarity at a distance, with its interval."""

    model: str
    mean_removed: bool
    frames: int
    value: float
    low: float | None
    high: float | None


def draw_maps(
    path: Path, maps: Sequence[Maps], frames: Tensor, seconds: Sequence[float], title: str
) -> None:
    """Models side by side; frames uint8 [C,T,H,W] of the clip along the axis below the maps."""
    slots = len(maps[0].kept)
    tall = 2.9 / min(THUMBNAILS, slots) * frames.shape[2] / frames.shape[3]  # inches
    size = (3.1 * len(maps) + 1.4, 7.3 + tall)
    figure = Figure(figsize=size, facecolor=PAPER, layout="constrained")
    about = f"{_cut(Path(title).name, 34 * len(maps))}\ncosine similarity between moments"
    figure.suptitle(about, y=1.01, va="bottom", color=INK, fontsize=11)  # above all of it
    grid: Any = figure.subplots(2, len(maps), squeeze=False)
    for row, key in enumerate(("kept", "removed")):
        all_maps = [getattr(one, key) for one in maps]
        low = min(float(one.min()) for one in all_maps)
        low = min(np.floor(low * 20) / 20, 0.95)  # a scale that ends at a round number
        shown = [_map(*pair, low) for pair in zip(grid[row], all_maps, strict=True)]
        grid[row, 0].set_ylabel(ROWS[row], fontsize=10, color=INK)
        bar = figure.colorbar(shown[0], ax=grid[row].tolist(), shrink=0.9, pad=0.015)
        bar.ax.tick_params(labelsize=8, colors=SOFT)
    for column, one in enumerate(maps):
        grid[0, column].set_title(_cut(one.name, 34), fontsize=11, color=INK)
        _thumbnails(grid[1, column], frames, one.frames_per_slot, seconds)
    _save(figure, path)


def draw_lines(path: Path, lines: Sequence[Line], *, clips: int) -> None:
    """Similarity over distance, with bands for the intervals: mean kept and mean removed."""
    figure = Figure(figsize=(9.6, 4.2), facecolor=PAPER, layout="constrained")
    panels: Any = figure.subplots(1, 2)
    names = list(dict.fromkeys(line.model for line in lines))
    for removed, axes in enumerate(panels):
        chosen = [line for line in lines if line.mean_removed == bool(removed)]
        for name, group in groupby(chosen, key=lambda line: line.model):
            _line(axes, name, list(group), names.index(name))
        axes.set_title(ROWS[removed], fontsize=11, color=INK)
        axes.set_xlabel("distance (frames of the clip)", fontsize=10, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=9, colors=SOFT)
        axes.grid(axis="y", color="#e5e5ea", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("cosine similarity", fontsize=10, color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    many = f"mean over {clips} clips, bands: 95 % intervals over clips"
    figure.suptitle(many if clips > 1 else "one clip", fontsize=10, color=SOFT)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(names)), frameon=False
    )
    _save(figure, path)


def _map(axes: Axes, values: np.ndarray, low: float) -> Any:
    shown = axes.imshow(values, vmin=low, vmax=1.0, cmap=MAP, interpolation="nearest")
    slots = len(values)
    if slots <= WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            red, green, blue, _ = colormaps[MAP]((value - low) / (1 - low))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = f"{value:.2f}".replace("0.", ".", 1)
            size = 9 - 0.3 * max(0, slots - 6)
            ink = "white" if dark else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return shown


def _thumbnails(
    map_axes: Axes, frames: Tensor, frames_per_slot: int, seconds: Sequence[float]
) -> None:
    """The first frame of each slot below its column; of many slots, of every second, third, ..."""
    slots = frames.shape[1] // frames_per_slot
    step = -(-slots // THUMBNAILS)
    tall = step * frames.shape[2] / frames.shape[3]
    axes = map_axes.inset_axes((0.0, -0.02 - tall / slots, 1.0, tall / slots))
    for slot in range(0, slots, step):
        image = frames[:, slot * frames_per_slot].permute(1, 2, 0).numpy()
        left, right = slot - 0.5 + 0.03 * step, slot - 0.5 + 0.97 * step
        axes.imshow(image, extent=(left, right, tall * 0.97, tall * 0.03), aspect="auto")
        moment = f"{seconds[slot * frames_per_slot]:.2f}s"
        axes.text(left, tall * 1.03, moment, fontsize=7, color=SOFT, va="top")
    axes.set_xlim(-0.5, slots - 0.5)
    axes.set_ylim(tall, 0)
    axes.axis("off")


def _line(axes: Axes, name: str, points: Sequence[Line], number: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    x = [point.frames for point in points]
    axes.plot(
        x,
        [point.value for point in points],
        color=colour,
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        linewidth=1.6,
        linestyle="-" if number < len(COLOURS) else "--",
        label=_cut(name, 40),
    )
    low, high = [p.low for p in points], [p.high for p in points]
    if None not in low:
        axes.fill_between(x, np.array(low, float), np.array(high, float), color=colour, alpha=0.2)


def _cut(name: str, most: int) -> str:
    """The end of a name that is too long for its place."""
    return name if len(name) <= most else "…" + name[1 - most :]


def _save(figure: Figure, path: Path) -> None:
    replace_file(
        path,
        lambda begun: figure.savefig(
            begun, dpi=120, format="png", bbox_inches="tight", pad_inches=0.12
        ),
    )
