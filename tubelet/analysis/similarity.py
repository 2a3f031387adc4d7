"""How alike a network's features of different moments are: cosine similarity between feature maps.

The analysis of MVD (arXiv 2212.04500, its figure on the features of image and video teachers): a
network that sees single frames gives features that change little from frame to frame, one that
sees the clip gives features that change more, for they tell motion too.

Features are those of a block, before any last norm. Of two moments, each position is compared
with the same position, and the cosines are averaged. All features of a network share a large
common part, which makes any two of them alike; so every number is given twice, as it is and with
the mean over all tokens of the clip taken away first.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from tubelet.analysis import similarity_picture as picture
from tubelet.analysis.clip import read_clip
from tubelet.data.transforms import to_channels
from tubelet.errors import TubeletError
from tubelet.probes.interval import STUDENT, bootstrap, student
from tubelet.shapes import ClipSpec, Grid
from tubelet.targets.features import Teacher
from tubelet.train.parallel import choose_device

MEAN = {False: "kept", True: "removed"}  # what is said of the tokens' mean


@dataclass(frozen=True)
class SimilarityConfig:
    """Which features are compared, and of which clip of a video."""

    layer: int = -1  # the block whose output is compared: 0 is the first, -1 the last
    norm: bool = False  # put a LayerNorm without weights over each token first
    every_frame: bool = False  # image models see every frame, not the first of each tubelet
    start_seconds: float | None = None  # where the clip begins; None: the middle of the video
    batch_size: int = 8  # clips per forward
    decoder: Literal["pyav", "torchcodec"] = "pyav"  # torchcodec is an extra
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: a GPU where there is one


class Distance(NamedTuple):
    """The similarity of moments so far apart: mean over positions, pairs and clips."""

    model: str
    mean_removed: bool
    slots: int
    frames: int  # of the clip
    value: float
    low: float | None  # 95 % interval over clips; None for one clip
    high: float | None


@dataclass(frozen=True)
class Compared:
    """What one model makes of the n clips, in t slots of time."""

    name: str
    grid: Grid
    frames_per_slot: int
    kept: Tensor  # float32 [n,t,t]: features as they are
    removed: Tensor  # float32 [n,t,t]: without the mean of the clip's tokens

    def matrices(self, mean_removed: bool) -> Tensor:
        """float32 [n,t,t]."""
        return self.removed if mean_removed else self.kept

    def by_distance(self, mean_removed: bool) -> Tensor:
        """float32 [n,t-1]: the mean over the pairs of slots that are 1, 2, ... apart."""
        return over_distance(self.matrices(mean_removed))


@dataclass(frozen=True)
class Similarity:
    """Models side by side on the same clips."""

    models: tuple[Compared, ...]
    paths: tuple[str, ...]  # of the n clips
    left_out: tuple[tuple[str, str], ...]  # paths of videos without a clip, and why
    seconds: Tensor  # float64 [n,T]: when each frame is shown in its video
    frames: Tensor  # uint8 [3,T,H,W]: the first clip
    clip: ClipSpec
    config: SimilarityConfig

    @property
    def single(self) -> bool:
        """One video was asked for, so its pairs of moments are what is shown."""
        return len(self.paths) + len(self.left_out) == 1

    def distances(self) -> list[Distance]:
        """By model, mean kept and removed, and distance.

        Intervals are over clips: Student's t for up to 10 of them, the bootstrap for more.
        """
        rows: list[Distance] = []
        for model in self.models:
            for removed in (False, True):
                for d, values in enumerate(model.by_distance(removed).double().numpy().T, 1):
                    low, high = _interval(values)
                    frames = d * model.frames_per_slot
                    mean = float(values.mean())
                    rows.append(Distance(model.name, removed, d, frames, mean, low, high))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values: the distances, and the matrices as means over clips."""
        return {
            "clip": {**asdict(self.clip), "size": list(self.clip.size)},
            "config": asdict(self.config),
            "models": [
                {
                    "name": model.name,
                    "grid": list(model.grid),
                    "frames_per_slot": model.frames_per_slot,
                    "matrix": {
                        f"mean_{MEAN[removed]}": model.matrices(removed).double().mean(0).tolist()
                        for removed in (False, True)
                    },
                }
                for model in self.models
            ],
            "distances": [row._asdict() for row in self.distances()],
            "videos": list(self.paths),
            "left_out": [{"path": path, "reason": reason} for path, reason in self.left_out],
        }

    def table(self) -> Table:
        """For the terminal: a line for each distance, two columns for each model."""
        rows = self.distances()
        clips = f"{len(self.paths)} clip" + "s" * (len(self.paths) > 1)
        table = Table(title=f"cosine similarity between moments, {clips}", title_justify="left")
        table.add_column("frames apart", justify="right")
        columns = [(m.name, removed) for m in self.models for removed in (False, True)]
        for name, removed in columns:
            table.add_column(f"{name}\nmean {MEAN[removed]}", justify="right")
        found = {(row.model, row.mean_removed, row.frames): row for row in rows}
        for frames in sorted({row.frames for row in rows}):
            cells = [found.get((*column, frames)) for column in columns]
            table.add_row(str(frames), *("" if cell is None else _say(cell) for cell in cells))
        return table

    def write(self, out: str | Path) -> list[Path]:
        """Writes a picture (.png), everything (.json) and the numbers (.csv); -> their paths.

        For one video they are called as it is, for several `similarity`.
        """
        out = Path(out)
        stem = Path(self.paths[0]).stem if self.single else "similarity"
        png, plain, lines = (out / f"{stem}{suffix}" for suffix in (".png", ".json", ".csv"))
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._draw(png)
            plain.write_text(
                json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            with lines.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self._pairs() if self.single else self._lines())
        except OSError as error:
            raise TubeletError(
                f"The results cannot be written to {out}: {error.strerror or error}. Choose "
                "another folder, or make room."
            ) from error
        return [png, plain, lines]

    def _draw(self, path: Path) -> None:
        if not self.single:
            lines = [
                picture.Line(row.model, row.mean_removed, row.frames, row.value, row.low, row.high)
                for row in self.distances()
            ]
            picture.draw_lines(path, lines, clips=len(self.paths))
            return
        maps = [
            picture.Maps(m.name, m.kept[0].numpy(), m.removed[0].numpy(), m.frames_per_slot)
            for m in self.models
        ]
        picture.draw_maps(path, maps, self.frames, self.seconds[0].tolist(), self.paths[0])

    def _lines(self) -> list[tuple[Any, ...]]:
        rows = self.distances()
        return [(*Distance._fields, "clips"), *((*row, len(self.paths)) for row in rows)]

    def _pairs(self) -> list[tuple[Any, ...]]:
        names = ("model", "mean_removed", "slot_a", "slot_b", "frame_a", "frame_b")
        lines: list[tuple[Any, ...]] = [(*names, "seconds_a", "seconds_b", "similarity")]
        for model in self.models:
            for removed in (False, True):
                matrix = model.matrices(removed)[0]
                for a, b in torch.combinations(torch.arange(model.grid.t)).tolist():
                    frames = (a * model.frames_per_slot, b * model.frames_per_slot)
                    when = (f"{float(self.seconds[0, frame]):.3f}" for frame in frames)
                    value = float(matrix[a, b])
                    lines.append((model.name, removed, a, b, *frames, *when, value))
        return lines


def similarity(
    models: Mapping[str, Teacher],
    paths: Sequence[str | Path],
    clip: ClipSpec,
    config: SimilarityConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Similarity:
    """Networks by name, videos -> how alike their features of different moments are.

    One clip of each video. All models get the same frames; those of images get the first frame of
    each tubelet that the first model of clips has (all frames where there is none). Videos that
    cannot be read, or are too short for a clip of distinct frames, are left out and named.

    Raises:
        TubeletError: no video is left, a model that cannot take the clip or has one slot only,
            features that are not finite.
    """
    config = config or SimilarityConfig()
    if config.batch_size < 1:
        raise TubeletError(f"batch_size must be at least 1 (got {config.batch_size}).")
    grids = _grids(models, clip, config)
    device = choose_device(config.device)
    for model in models.values():
        model.to(device)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in models}
    read: list[_Read] = []
    left_out: list[tuple[str, str]] = []
    for some in _batches(paths, clip, config, left_out, progress):
        for name, model in models.items():
            found[name].append(_compare(name, model, grids[name], some, config, device))
        # Of all but the first clip, the pixels are not kept.
        read += [
            one if not (read or i) else one._replace(pixels=None) for i, one in enumerate(some)
        ]
    if not read or read[0].pixels is None:
        raise _none_left(left_out)
    compared: list[Compared] = []
    for name, grid in grids.items():
        kept, removed = (torch.cat(parts) for parts in zip(*found[name], strict=True))
        compared.append(Compared(name, grid, clip.num_frames // grid.t, kept, removed))
    return Similarity(
        models=tuple(compared),
        paths=tuple(one.path for one in read),
        left_out=tuple(left_out),
        seconds=torch.tensor([one.seconds for one in read], dtype=torch.float64),
        frames=read[0].pixels,
        clip=clip,
        config=config,
    )


def matrix(features: Tensor) -> Tensor:
    """features [B,t,h,w,D] -> float32 [B,t,t]: cosine at each position, averaged over positions."""
    unit = F.normalize(features.float().flatten(2, 3), dim=-1)
    return torch.einsum("bipd,bjpd->bij", unit, unit) / unit.shape[2]


def without_mean(features: Tensor) -> Tensor:
    """features [B,t,h,w,D] -> the same less the mean over all t*h*w tokens of each clip."""
    features = features.float()
    return features - features.mean((1, 2, 3), keepdim=True)


def over_distance(matrices: Tensor) -> Tensor:
    """[n,t,t] -> [n,t-1]: the mean of the diagonals 1, 2, ..., t-1."""
    t = matrices.shape[-1]
    return torch.stack([matrices.diagonal(d, 1, 2).mean(-1) for d in range(1, t)], 1)


def _grids(
    models: Mapping[str, Teacher], clip: ClipSpec, config: SimilarityConfig
) -> dict[str, Grid]:
    """The grid of each model, after a look at whether it can take the clip."""
    leads = next((name for name, model in models.items() if model.sees == "clip"), None)
    slots = clip.num_frames
    if leads is not None and not config.every_frame:
        slots = _grid(leads, models[leads], slots, clip).t
    return {name: _grid(name, model, slots, clip) for name, model in models.items()}


def _grid(name: str, model: Teacher, slots: int, clip: ClipSpec) -> Grid:
    try:
        grid = model.grid_for(slots, clip.num_frames, *(model.size or clip.size))
    except TubeletError as error:
        raise TubeletError(
            f"The model {name} cannot take this clip: {error} Choose --num-frames and --size so that "
            "they fit all models."
        ) from error
    if grid.t < 2:
        raise TubeletError(
            f"{name} sees a clip of {clip.num_frames} frames as one slot of time, so there are no two "
            f"to compare. Expected at least {2 * model.patch.t} frames: pass --num-frames."
        )
    return grid


class _Read(NamedTuple):
    """A clip: its pixels uint8 [3,T,H,W], and the moment of each frame."""

    path: str
    pixels: Tensor | None
    seconds: tuple[float, ...]


def _batches(
    paths: Sequence[str | Path],
    clip: ClipSpec,
    config: SimilarityConfig,
    left_out: list[tuple[str, str]],
    progress: Callable[[int, int], None] | None,
) -> Iterator[list[_Read]]:
    """Clips in lists of up to `batch_size`; videos without one are added to `left_out`."""
    waiting: list[_Read] = []
    for number, path in enumerate(map(str, paths), 1):
        try:
            waiting.append(_read(path, clip, config))
        except TubeletError as error:
            left_out.append((path, str(error)))
        if waiting and (len(waiting) == config.batch_size or number == len(paths)):
            yield waiting
            waiting = []
        if progress is not None:
            progress(number, len(paths))


def _read(path: str, clip: ClipSpec, config: SimilarityConfig) -> _Read:
    """The clip of a video; TubeletError also where frames would have to be repeated."""
    rgb = replace(clip, in_chans=3)
    pixels, seconds = read_clip(path, rgb, config.start_seconds, config.decoder)
    distinct = len(set(seconds))
    if distinct < clip.num_frames:
        raise TubeletError(
            f"{path} is too short: it has {distinct} of the {clip.num_frames} frames of a clip, and "
            "repeated ones would pass for alike. Pass a smaller --num-frames or --sampling-rate."
        )
    return _Read(path, pixels, seconds)


@torch.no_grad()
def _compare(
    name: str,
    model: Teacher,
    grid: Grid,
    read: Sequence[_Read],
    config: SimilarityConfig,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Clips -> float32 [B,t,t] twice: mean kept, mean removed; on the CPU."""
    clips = torch.stack([one.pixels for one in read if one.pixels is not None]).to(device)
    pixels = to_channels(clips.movedim(1, -1), len(model.mean)).movedim(-1, 1).float() / 255
    features = model(pixels, grid.t, config.layer).float()
    if features.shape[1:] != (grid.size, model.width):
        raise TubeletError(
            f"The model {name} returned features {list(features.shape)}, where its grid "
            f"{'x'.join(map(str, grid))} and width {model.width} make "
            f"[{len(read)}, {grid.size}, {model.width}]: state its patch, size and prefix as they are."
        )
    wrong = [
        one.path for one, x in zip(read, features, strict=True) if not bool(x.isfinite().all())
    ]
    if wrong:
        raise TubeletError(
            f"The features that {name} makes of {wrong[0]} are not finite numbers. Expected finite "
            "weights: look at the training log, and take an earlier checkpoint."
        )
    if config.norm:
        features = F.layer_norm(features, features.shape[-1:], eps=1e-6)
    features = features.unflatten(1, tuple(grid))
    return matrix(features).cpu(), matrix(without_mean(features)).cpu()


def _none_left(left_out: Sequence[tuple[str, str]]) -> TubeletError:
    if not left_out:
        return TubeletError("No videos were given: pass a video, a folder, or a list.")
    path, reason = left_out[0]
    if len(left_out) == 1:
        return TubeletError(reason)
    return TubeletError(
        f"None of the {len(left_out)} videos has a clip to compare. The first, {path}: {reason}"
    )


def _interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """[n] -> 95 % interval of the mean over clips. Of few clips, the bootstrap's is too narrow."""
    if len(values) == 1:
        return None, None
    return student(values.tolist()) if len(values) - 2 < len(STUDENT) else bootstrap(values, seed=0)


def _say(row: Distance) -> str:
    if row.low is None or row.high is None:
        return f"{row.value:.3f}"
    return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
