"""The demo's picture: what the encoder saw, what the decoder made of it, and what probes read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tubelet.analysis.picture import INK, PAPER, SOFT
from tubelet.analysis.reconstruct import ReconstructConfig, reconstruct
from tubelet.files import replace_file
from tubelet.model import MaskedModel

# Random; teachers, then students, light to deep.
COLOURS = ("#c3c7d1", "#e8c07d", "#d98f3d", "#9dbcf0", "#5f8fe0", "#2450b0")
Bars = Mapping[str, Mapping[str, Sequence[float]]]  # encoder: label: accuracies by seed


def draw(
    path: Path,
    model: MaskedModel,
    clips: Sequence[Path],
    titles: Sequence[str],
    bars: Bars,
    chance: dict[str, float],
) -> None:
    """Writes the picture to `path`, and the strips it is made of into a folder beside it.

    `chance`: the accuracy of guessing, by label. Bars are means over seeds; dots are the seeds.
    """
    config = ReconstructConfig(
        mask_type=model.card.run["mask_type"],
        mask_ratio=model.card.run["mask_ratio"],
        animation="none",
    )
    out = path.parent / "reconstructions"
    made = [reconstruct(model, model.card.clip, clip, out, config) for clip in clips]
    figure = Figure(figsize=(13, 1.75 * len(clips) + 0.4), facecolor=PAPER, layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=[2, 1])
    left, right = halves
    grid = left.subplots(len(clips), 1, squeeze=False)[:, 0]
    for axes, one, title in zip(grid, made, titles, strict=True):
        _sheet(axes, (one.clip, one.masked, one.filled), title)
    left.suptitle(
        f"video teacher: input, what it sees, what its decoder makes of it ({_hidden(config)})",
        fontsize=10,
        color=INK,
    )
    _bars(right.subplots(), bars, chance)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda begun: figure.savefig(begun, dpi=110, format="png"))


def _hidden(config: ReconstructConfig) -> str:
    return f"{config.mask_type} masks, {config.mask_ratio:.0%} hidden, raw pixels as predicted"


def _sheet(axes: Axes, rows: Sequence[Tensor], title: str) -> None:
    """Clips [C,T,H,W] of equal shape, one above the other, frame beside frame."""
    gap = 2
    lines = []
    for clip in rows:
        frames = clip.permute(1, 2, 3, 0).numpy()
        frames = np.pad(frames, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=1.0)
        lines.append(np.concatenate(list(frames), 1))
    picture = np.concatenate(lines, 0)
    picture = picture.repeat(3, -1) if picture.shape[-1] == 1 else picture
    axes.imshow(picture, interpolation="nearest")
    height = rows[0].shape[2]
    axes.set_yticks([height * (i + 0.5) + gap * i for i in range(3)])
    axes.set_yticklabels(["input", "seen", "made"], fontsize=8, color=SOFT)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, fontsize=9, color=INK, loc="left", pad=3)


def _bars(axes: Axes, bars: Bars, chance: dict[str, float]) -> None:
    width = 0.84 / len(bars)
    for i, ((encoder, scores), colour) in enumerate(zip(bars.items(), COLOURS, strict=True)):
        for at, label in enumerate(chance):
            mean, x = float(np.mean(scores[label])), at - 0.42 + (i + 0.5) * width
            axes.bar(x, mean, width=0.92 * width, color=colour, label=encoder if at == 0 else None)
            top = max(scores[label])  # above the dots
            axes.text(x, top + 0.015, f"{100 * mean:.0f}", ha="center", fontsize=9, color=INK)
            if len(scores[label]) > 1:
                axes.plot([x] * len(scores[label]), scores[label], ".", color=INK, markersize=3)
    for at, value in enumerate(chance.values()):
        axes.plot([at - 0.45, at + 0.45], [value] * 2, "--", color=SOFT, linewidth=1)
    axes.plot([], [], "--", color=SOFT, linewidth=1, label="chance")
    axes.set_xticks(range(len(chance)), list(chance), fontsize=11, color=INK)
    axes.set_ylim(0, 1.3)
    axes.set_yticks([])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    axes.set_title("what a probe reads from frozen features, %", fontsize=10, color=INK)
