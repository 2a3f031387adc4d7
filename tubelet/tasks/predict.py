"""What happens when: the classes of a file of any length, window by window, in bounded memory."""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn

from tubelet.data.decode import DecodeError, Video
from tubelet.data.listfiles import LIST_EXTENSIONS
from tubelet.data.lists import read_list
from tubelet.data.sampling import window_frames
from tubelet.data.transforms import to_channels, views_of
from tubelet.errors import TubeletError
from tubelet.model import Classifier
from tubelet.shapes import ClipSpec
from tubelet.tasks.scores import Kind, Precision, Scorer, check_finite
from tubelet.train.parallel import unwrap

Source = str | Path
Progress = Callable[[str, float, float], None]  # path, seconds done, seconds in all
RAW_FRAMES = 16  # decoded at a time, before they are made small
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


def paths_of(sources: Source | Sequence[Source]) -> list[str]:
    """Files, folders and lists -> paths of files, in order."""
    if isinstance(sources, (str, Path)):
        sources = [sources]
    paths: list[str] = []
    for source in sources:
        if Path(source).is_dir() or Path(source).suffix.lower() in LIST_EXTENSIONS:
            videos = read_list(source, kind="unlabelled", must_exist=False)
            paths += [entry.path for entry in videos.entries]
        else:
            paths.append(str(source))
    if not paths:
        raise TubeletError("No files to predict: give a video, a folder, or a list.")
    return paths


class FrameStream:
    """The clips of windows in order of their start, with every frame decoded once.

    `most` is the largest number of frames that were held at a time.
    """

    def __init__(self, video: Video, spec: ClipSpec):
        self.video = video
        self.spec = spec
        self.most = 0
        self._held: dict[int, Tensor] = {}  # frame number -> uint8 [C,h,w]

    def clips(
        self, windows: Iterable[tuple[float, float, NDArray[np.int64]]]
    ) -> Iterator[tuple[float, float, Tensor]]:
        """(start, end, int64 [T]) -> (start, end, uint8 [C,T,h,w])."""
        rest = iter(windows)
        ahead = deque(islice(rest, 1))
        decoded = -1
        while ahead:
            start, end, frames = ahead[0]
            until = int(frames.max())
            # Windows that begin before this one ends need their frames now: the decoder does not
            # go back.
            while ahead[-1][2][0] <= until and (following := next(rest, None)):
                ahead.append(following)
            first = int(frames[0])
            self._held = {at: frame for at, frame in self._held.items() if at >= first}
            needed = np.unique(np.concatenate([window[2] for window in ahead]))
            self._decode(needed[(needed > decoded) & (needed <= until)])
            decoded = max(decoded, until)
            yield start, end, torch.stack([self._held[int(at)] for at in frames], 1)
            ahead.popleft()
            if not ahead:
                ahead.extend(islice(rest, 1))

    def _decode(self, numbers: NDArray[np.int64]) -> None:
        for at in range(0, len(numbers), RAW_FRAMES):
            some = numbers[at : at + RAW_FRAMES]
            frames = to_channels(self.video.frames(some), self.spec.in_chans)
            small = views_of(frames, self.spec)[0]
            self._held |= {int(n): small[:, i].clone() for i, n in enumerate(some)}
        self.most = max(self.most, len(self._held))


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
            for batch in _batched(FrameStream(video, spec).clips(cuts), config.batch_size):
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


def _batched(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of up to `size`; what came before an item fails to come is still given out."""
    batch: list[Any] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except DecodeError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


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
