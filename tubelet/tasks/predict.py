"""What happens when: the classes of a file of any length, window by window, in bounded memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn

from tubelet.data.decode import DecodeError, Video
from tubelet.data.sampling import window_frames
from tubelet.errors import TubeletError
from tubelet.model import Classifier
from tubelet.shapes import ClipSpec
from tubelet.tasks.scores import Kind, Precision, Scorer, check_finite
from tubelet.tasks.windows import FrameStream, Source, batched, paths_of
from tubelet.train.parallel import unwrap

Progress = Callable[[str, float, float], None]  # path, seconds done, seconds in all
LINES_SHOWN = 40  # of a file's timeline in a table


@dataclass(frozen=True)
class PredictConfig:
    """How files are cut into windows, and where the model runs."""

    hop_seconds: float | None = None  # from one window to the next; None: windows touch
    hop_frames: int | None = None  # the same in frames
    top: int = 5  # classes kept for each window
    batch_size: int = 8  # windows per forward
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: a GPU where there is one
    precision: Precision = "auto"  # auto: bf16 on a GPU that has it, float32 elsewhere
    decoder: Literal["pyav", "torchcodec"] = "pyav"  # torchcodec is an extra


class Answer(NamedTuple):
    """A class and its probability; for regression the number of a value, and the value."""

    name: str
    score: float


@dataclass(frozen=True)
class Window:
    """The best classes of one clip, best first."""

    start_seconds: float
    end_seconds: float
    top: tuple[Answer, ...]


@dataclass(frozen=True)
class Prediction:
    """One file. Where `error` is set it could not be read (to its end); what was read is kept."""

    path: str
    duration_seconds: float
    windows: tuple[Window, ...]
    top: tuple[Answer, ...]  # of the mean over windows
    error: str = ""

    def timeline(self) -> list[Window]:
        """Windows in a row with the same best class as one, with the mean of its score."""
        runs = [list(run) for _, run in groupby(self.windows, key=lambda w: w.top[0].name)]
        return [
            Window(
                run[0].start_seconds,
                run[-1].end_seconds,
                (Answer(run[0].top[0].name, sum(w.top[0].score for w in run) / len(run)),),
            )
            for run in runs
        ]


@dataclass(frozen=True)
class Predictions:
    """All files asked for, in order."""

    files: tuple[Prediction, ...]
    spec: ClipSpec
    kind: Kind = "single"

    @property
    def unreadable(self) -> tuple[Prediction, ...]:
        """Files that could not be read, or not to the end."""
        return tuple(file for file in self.files if file.error)

    @property
    def exit_code(self) -> int:
        """0 where every file was read to its end, else 1."""
        return 1 if self.unreadable else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in seconds, scores as probabilities."""
        clip = {**asdict(self.spec), "size": list(self.spec.size)}
        return {"kind": self.kind, "clip": clip, "files": [_plain(f) for f in self.files]}

    def write(self, path: str | Path) -> None:
        """A .json with everything, or a .csv with a line for each answer."""
        path = Path(path)
        if path.suffix not in (".json", ".csv"):
            raise TubeletError(
                f"Predictions are written as .json or .csv, not {path.suffix!r} ({path})."
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                if path.suffix == ".json":
                    json.dump(self.to_json(), file, indent=2, ensure_ascii=False)
                    file.write("\n")
                else:
                    writer = csv.writer(file)
                    writer.writerow(COLUMNS)
                    writer.writerows(row for one in self.files for row in _lines(one))
        except OSError as error:
            raise TubeletError(f"{path} cannot be written: {error.strerror or error}.") from error

    def table(self) -> Table:
        """For the terminal: the best classes of each file; of a single file also when."""
        table = Table()
        for heading in ("file", "when", "best"):
            table.add_column(heading, overflow="fold")
        for file in self.files:
            name = Path(file.path).name
            if file.windows:
                table.add_row(name, f"whole ({_clock(file.duration_seconds)})", _say(file.top))
            if file.error:
                table.add_row(name, "unreadable", file.error, style="red")
        if len(self.files) == 1 and self.kind == "single":
            table.add_section()
            runs = self.files[0].timeline()
            for run in runs[:LINES_SHOWN]:
                when = f"{_clock(run.start_seconds)} - {_clock(run.end_seconds)}"
                table.add_row("", when, _say(run.top))
            if len(runs) > LINES_SHOWN:
                table.add_row("", "...", f"{len(runs) - LINES_SHOWN} more: write a .json or .csv")
        return table


def predict(
    model: nn.Module,
    classes: Sequence[str],
    spec: ClipSpec,
    sources: Source | Sequence[Source],
    config: PredictConfig | None = None,
    *,
    kind: Kind = "single",
    progress: Progress | None = None,
) -> Predictions:
    """A classifier and files -> the best classes over time, and of each file as a whole.

    `sources`: a video or picture, a folder, a list (csv, txt, jsonl; labels are not read), or
    several of these. Each file is decoded once, from its start to its end, and no more frames are
    held than the overlapping windows of one moment need. Softmax for each window, then the mean.
    A file that cannot be read is reported in its `Prediction`; the others go on.

    Raises:
        TubeletError: no files, class names that do not fit the model, scores that are not finite.
    """
    config = config or PredictConfig()
    core = unwrap(model)
    assert isinstance(core, Classifier)
    names = _names(core, classes, kind)
    if config.top < 1 or config.batch_size < 1:
        raise TubeletError(
            f"top {config.top} and batch_size {config.batch_size} must both be at least 1."
        )
    scorer = Scorer(
        core,
        kind,
        per_forward=config.batch_size,
        device=config.device,
        precision=config.precision,
    )
    with scorer:
        files = [_file(scorer, path, spec, names, config, progress) for path in paths_of(sources)]
    return Predictions(tuple(files), spec, kind)


def _file(
    scorer: Scorer,
    path: str,
    spec: ClipSpec,
    names: Sequence[str],
    config: PredictConfig,
    progress: Progress | None,
) -> Prediction:
    windows: list[Window] = []
    total = torch.zeros(len(names), dtype=torch.float64)
    duration, error = 0.0, ""
    try:
        with Video(path, decoder=config.decoder) as video:
            info = video.info
            duration = info.duration_seconds
            cuts = window_frames(
                spec,
                info.frames,
                info.fps,
                hop_seconds=config.hop_seconds,
                hop_frames=config.hop_frames,
            )
            for batch in batched(FrameStream(video, spec).clips(cuts), config.batch_size):
                clips = torch.stack([clip for _, _, clip in batch])
                scores = scorer(scorer.padded(clips))[: len(clips)]
                check_finite(scores, path)
                total += scores.sum(0)
                windows += [
                    Window(start, end, _best(own, names, config.top, scorer.kind))
                    for (start, end, _), own in zip(batch, scores, strict=True)
                ]
                if progress is not None:
                    progress(path, windows[-1].end_seconds, duration)
    except (DecodeError, OSError) as problem:
        error = str(problem)
    top = _best(total / len(windows), names, config.top, scorer.kind) if windows else ()
    return Prediction(path, duration, tuple(windows), top, error)


def _best(scores: Tensor, names: Sequence[str], top: int, kind: Kind) -> tuple[Answer, ...]:
    if kind == "regression":
        return tuple(Answer(name, float(v)) for name, v in zip(names, scores, strict=True))
    order = scores.argsort(descending=True, stable=True)[:top].tolist()
    return tuple(Answer(names[int(i)], float(scores[i])) for i in order)


def _names(model: Classifier, classes: Sequence[str], kind: Kind) -> Sequence[str]:
    outputs = model.num_classes
    if not outputs:
        raise TubeletError("This model has no head (num_classes 0), so it predicts no classes.")
    if not classes:
        what = "value" if kind == "regression" else "class"
        return [f"{what} {i}" for i in range(outputs)]
    if len(classes) != outputs:
        raise TubeletError(
            f"{len(classes)} class names for a model of {outputs} outputs: give one for each, in "
            "the order of training."
        )
    return classes


COLUMNS = ("path", "part", "start_seconds", "end_seconds", "rank", "class", "score", "error")


def _lines(file: Prediction) -> Iterator[tuple[Any, ...]]:
    """The lines of a csv: the whole file, then its windows, then what went wrong."""
    whole = Window(0.0, file.duration_seconds, file.top)
    parts = [("file", whole), *(("window", window) for window in file.windows)]
    for part, window in parts:
        for rank, answer in enumerate(window.top, 1):
            span = (f"{window.start_seconds:.3f}", f"{window.end_seconds:.3f}")
            yield file.path, part, *span, rank, answer.name, f"{answer.score:.6f}", ""
    if file.error:
        yield file.path, "error", "", "", "", "", "", file.error


def _plain(file: Prediction) -> dict[str, Any]:
    def answers(top: Iterable[Answer]) -> list[dict[str, Any]]:
        return [{"class": answer.name, "score": answer.score} for answer in top]

    return {
        "path": file.path,
        "duration_seconds": file.duration_seconds,
        "top": answers(file.top),
        "windows": [
            {
                "start_seconds": window.start_seconds,
                "end_seconds": window.end_seconds,
                "top": answers(window.top),
            }
            for window in file.windows
        ],
        "error": file.error or None,
    }


def _say(top: Iterable[Answer]) -> str:
    return ", ".join(f"{answer.name} {answer.score:.2f}" for answer in top)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"
