"""Features over time: a vector for each window of each video, as temporal detection takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from tubelet.data.decode import DecodeError, Decoder, Video, available_decoders
from tubelet.data.sampling import window_frames
from tubelet.errors import TubeletError
from tubelet.model import VideoModel
from tubelet.shapes import ClipSpec
from tubelet.tasks.ahead import ahead
from tubelet.tasks.embedder import Embedder, Pool, published_clip, stretched
from tubelet.tasks.feature_files import Claim, FeatureFolder, Features, Format, arrow, names_of
from tubelet.tasks.scores import Precision, Scorer, weights_hash
from tubelet.tasks.windows import FrameStream, Source, check_rates, paths_of

DType = Literal["float32", "float16"]
State = Literal["made", "there", "elsewhere", "unreadable"]
Progress = Callable[[float, int, int], None]  # videos done, videos in all, windows so far


@dataclass(frozen=True)
class EmbedConfig:
    """Which windows, which features of them, in which files, and where the model runs."""

    hop_frames: int | None = None  # from one window to the next; None: windows touch
    hop_seconds: float | None = None  # the same in seconds
    published_preprocessing: bool = False  # VideoMAE V2's for detection: see docs/embedding.md
    pool: Pool = "mean"  # over all tokens: D numbers a window; time: over space; none
    format: Format = "npy"  # parquet is an extra
    dtype: DType = "float32"
    relative_to: str = ""  # files are named by paths from here; "": the folder all videos share
    batch_size: int = 8  # windows per forward, of one or several videos
    workers: int = 2  # threads that decode ahead, a video each
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: a GPU where there is one
    precision: Precision = "auto"  # auto: bf16 on a GPU that has it, float32 elsewhere
    decoder: Decoder = "pyav"  # torchcodec is an extra

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value}, and at least {low} is needed"
            for name, value, low in (
                ("batch_size", self.batch_size, 1),
                ("workers", self.workers, 1),
                ("hop_frames", 1 if self.hop_frames is None else self.hop_frames, 1),
            )
            if value < low
        ]
        if self.hop_seconds is not None and not self.hop_seconds > 0:
            wrong.append(f"hop_seconds is {self.hop_seconds}, and it must be above 0")
        if self.hop_frames is not None and self.hop_seconds is not None:
            wrong.append("hop_frames and hop_seconds are both given, and one says it all")
        for name, value, kinds in (
            ("pool", self.pool, get_args(Pool)),
            ("format", self.format, get_args(Format)),
            ("dtype", self.dtype, get_args(DType)),
            ("decoder", self.decoder, get_args(Decoder)),
        ):
            if value not in kinds:
                wrong.append(f"{name} is {value!r}; expected one of {', '.join(kinds)}")
        if wrong:
            raise TubeletError(f"Features cannot be made so: {'; '.join(wrong)}.")


@dataclass(frozen=True)
class Embedded:
    """What became of one video: features in memory, or a file; or an error.

    `state`: "made"; "there" before; "elsewhere": another process makes it now; "unreadable".
    """

    path: str
    state: State
    features: NDArray[Any] | None = None  # [windows, D] (by `pool`), where no files are written
    start_seconds: NDArray[np.float64] | None = None  # [windows]
    end_seconds: NDArray[np.float64] | None = None
    fps: float = 0.0
    file: Path | None = None
    windows: int = 0
    error: str = ""


@dataclass(frozen=True)
class Embeddings:
    """All videos asked for, in order."""

    files: tuple[Embedded, ...]

    def of(self, state: State) -> tuple[Embedded, ...]:
        """The videos of which this became."""
        return tuple(file for file in self.files if file.state == state)

    @property
    def exit_code(self) -> int:
        """0 where every video could be read to its end, else 1."""
        return 1 if self.of("unreadable") else 0

    def table(self) -> Table:
        """For the terminal: how many were made, and what could not be read and why."""
        table = Table(show_header=False)
        made = self.of("made")
        windows = sum(file.windows for file in made)
        table.add_row("made", f"{_count(len(made), 'video')}, {_count(windows, 'window')}")
        if there := self.of("there"):
            table.add_row("there before", _count(len(there), "video"))
        if elsewhere := self.of("elsewhere"):
            table.add_row("being made by another process", _count(len(elsewhere), "video"))
        for file in self.of("unreadable"):
            table.add_row("unreadable", file.error, style="red")
        return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


@dataclass
class _Job:
    """A video on its way. Its reading thread sets the first fields, before the last item."""

    at: int
    path: str
    name: str
    fps: float = 0.0
    frames: int = 0
    claim: Claim | None = None
    error: str = ""
    state: State = "made"
    read: int = 0  # windows that have come
    ended: bool = False  # and no more will
    progress: float = 0.0  # share of its duration
    times: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    rows: list[NDArray[Any]] = field(default_factory=list[NDArray[Any]])


@dataclass(frozen=True)
class _Item:
    """A window of a video; without a clip: its end."""

    job: _Job
    start_seconds: float = 0.0
    end_seconds: float = 0.0
    clip: Tensor | None = None


def embed(
    model: VideoModel,
    sources: Source | Sequence[Source],
    config: EmbedConfig | None = None,
    *,
    out: str | Path | None = None,
    clip: ClipSpec | None = None,
    name: str = "",
    part: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Embeddings:
    """A model and videos -> features [windows, D] of each, in memory or as files in `out`.

    Windows of T frames start a hop apart and end within the video: floor((n - span) / hop) + 1 of
    them, each frame decoded once. A video shorter than a window has one, its last frame repeated
    (the published script fails there). Features do not depend on which other videos are embedded.
    Files that are there are kept, so that a job goes on where it was stopped; several processes
    may share `out`.

    Args:
        sources: a video, a folder, a list, or several of these.
        clip: how windows are cut; None: as the model was trained.
        name: of the model, for `features.json`.
        part: (i, n): of the videos, number i and each n-th after it.

    Raises:
        TubeletError: no videos, frames without a rate and a hop in seconds, clips that the model
            cannot take, a folder made with other settings, features that are not finite or beyond
            float16.
    """
    config = config or EmbedConfig()
    spec = clip or model.card.clip
    spec = published_clip(spec) if config.published_preprocessing else spec
    _check_clip(model, spec)
    if config.format == "parquet" and out is not None:
        arrow()
    decoder = available_decoders()[config.decoder]
    if decoder.startswith("missing"):
        raise TubeletError(f"The decoder {config.decoder!r} is {decoder}.")
    paths = list(dict.fromkeys(paths_of(sources)))
    if config.hop_seconds is not None:
        check_rates(paths)
    embedder = Embedder(model, config.pool, unnormalised=config.published_preprocessing)
    with Scorer(
        embedder,
        "regression",
        per_forward=config.batch_size,
        device=config.device,
        precision=config.precision,
    ) as scorer:
        folder, names = None, paths
        if out is not None:
            folder = FeatureFolder(Path(out), config.format)
            names = names_of(paths, config.relative_to)
            folder.begin(_settings(embedder, spec, config, scorer, decoder, name))
        both = list(enumerate(zip(paths, names, strict=True)))[part[0] :: part[1]]
        jobs = [_Job(at, path, own) for at, (path, own) in both]
        found = _Run(scorer, folder, spec, config, progress).all(jobs)
    return Embeddings(tuple(found))


class _Run:
    """One call of `embed`."""

    def __init__(
        self,
        scorer: Scorer,
        folder: FeatureFolder | None,
        spec: ClipSpec,
        config: EmbedConfig,
        progress: Progress | None,
    ) -> None:
        self.scorer, self.folder, self.spec, self.config = scorer, folder, spec, config
        self.progress = progress
        self.found: dict[int, Embedded] = {}
        self.active: dict[int, _Job] = {}
        self.windows = 0

    def all(self, jobs: Sequence[_Job]) -> list[Embedded]:
        """Every job done, in their order."""
        todo = [job for job in jobs if not self._there(job)]
        batch: list[_Item] = []
        items = ahead(
            map(self._read, todo), threads=self.config.workers, waiting=2 * self.config.batch_size
        )
        try:
            with closing(items):
                for item in items:
                    self._take(item, batch, len(jobs))
            self._forward(batch)
            self._tell(len(jobs))
        finally:
            for job in todo:
                if job.claim is not None:
                    job.claim.release()
        return [self.found[job.at] for job in jobs]

    def _there(self, job: _Job) -> bool:
        if self.folder is None or not self.folder.there(job.name, job.path):
            return False
        self.found[job.at] = Embedded(job.path, "there", file=self.folder.file(job.name))
        return True

    def _read(self, job: _Job) -> Iterator[_Item]:
        """The windows of a video, then its end; runs in a thread."""
        if self.folder is not None:
            job.claim = self.folder.claim(job.name)
            if job.claim is None:
                job.state = "elsewhere"
            elif self._there(job):  # made by another process, since we looked
                job.state = "there"
        if job.state == "made":
            try:
                yield from self._windows(job)
            except (DecodeError, OSError) as problem:
                job.state, job.error = "unreadable", str(problem)
        yield _Item(job)

    def _windows(self, job: _Job) -> Iterator[_Item]:
        config, spec = self.config, self.spec
        published = config.published_preprocessing
        small = partial(stretched, size=spec.size) if published else None
        with Video(job.path, decoder=config.decoder) as video:
            job.fps, job.frames = video.info.fps, video.info.frames
            cuts = window_frames(
                spec,
                job.frames,
                job.fps,
                hop_seconds=config.hop_seconds,
                hop_frames=config.hop_frames,
                whole=True,
            )
            for start, end, clip in FrameStream(video, spec, small).clips(cuts):
                yield _Item(job, start, end, clip)

    def _take(self, item: _Item, batch: list[_Item], of: int) -> None:
        job = item.job
        self.active[job.at] = job
        if item.clip is None:
            job.ended = True
            self._finish(job)
            return
        job.read += 1
        batch.append(item)
        if len(batch) == self.config.batch_size:
            self._forward(batch)
            self._tell(of)
            batch.clear()

    def _forward(self, batch: Sequence[_Item]) -> None:
        clips = [item.clip for item in batch if item.clip is not None]
        if not clips:
            return
        values = self.scorer(self.scorer.padded(torch.stack(clips)))[: len(clips)].float()
        kept = values.to(getattr(torch, self.config.dtype))
        for item, row, own in zip(batch, values, kept, strict=True):
            _check_values(row, own, item.job.path)
            item.job.rows.append(own.numpy())
            item.job.times.append((item.start_seconds, item.end_seconds))
            item.job.progress = item.end_seconds * item.job.fps / item.job.frames
        self.windows += len(clips)
        for job in {item.job.at: item.job for item in batch}.values():
            self._finish(job)

    def _finish(self, job: _Job) -> None:
        """Writes or keeps what is complete."""
        if not job.ended or len(job.rows) < job.read:
            return
        del self.active[job.at]
        if job.at not in self.found:
            self.found[job.at] = self._kept(job)
        if job.claim is not None:
            job.claim.release()

    def _kept(self, job: _Job) -> Embedded:
        if job.state != "made":
            if job.state == "unreadable" and self.folder is not None:
                self.folder.failed(job.name, job.error)
            return Embedded(job.path, job.state, error=job.error)
        start, end = (np.array(times, np.float64) for times in zip(*job.times, strict=True))
        features = Features(np.stack(job.rows), start, end, job.fps, job.frames)
        if self.folder is None:
            return Embedded(
                job.path, "made", features.values, start, end, job.fps, windows=len(start)
            )
        file = self.folder.write(job.name, job.path, features)
        return Embedded(job.path, "made", fps=job.fps, file=file, windows=len(start))

    def _tell(self, of: int) -> None:
        if self.progress is not None:
            share = sum(min(1.0, job.progress) for job in self.active.values())
            self.progress(min(float(of), len(self.found) + share), of, self.windows)


def _check_clip(model: VideoModel, spec: ClipSpec) -> None:
    """TubeletError for clips that the model cannot take, before anything is read."""
    model.grid_for(spec.num_frames, *spec.size)
    if spec.in_chans != model.backbone.in_chans:
        raise TubeletError(
            f"in_chans is {spec.in_chans}, and the model takes clips of {model.backbone.in_chans} "
            "channels: leave it out."
        )


def _check_values(values: Tensor, kept: Tensor, path: str) -> None:
    if not bool(values.isfinite().all()):
        raise TubeletError(
            f"The model's features of {path} are not finite numbers. Expected finite weights: look at "
            "the training log for a loss that was not finite, and take an earlier checkpoint."
        )
    if not bool(kept.isfinite().all()):
        raise TubeletError(
            f"The features of {path} reach {float(values.abs().max()):g}, and float16 ends at 65504: "
            "pass --dtype float32."
        )


def _settings(
    embedder: Embedder,
    spec: ClipSpec,
    config: EmbedConfig,
    scorer: Scorer,
    decoder: str,
    name: str,
) -> dict[str, Any]:
    """All that decides what the files are, and where the model lay."""
    return {
        "library": version("tubelet"),
        "model": {"path": name, "digest": weights_hash(embedder)},
        "width": embedder.backbone.dim,
        "clip": asdict(spec),
        "preprocessing": "published" if config.published_preprocessing else "model",
        "hop": {"frames": config.hop_frames, "seconds": config.hop_seconds},
        "pool": config.pool,
        "precision": scorer.precision,
        "decoder": {"name": config.decoder, "version": decoder},
        "dtype": config.dtype,
        "files": config.format,
    }
