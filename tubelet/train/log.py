"""What a run says: sums kept on the device, metrics.jsonl, TensorBoard, the progress bar."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.shapes import Batch, Terms
from tubelet.train import checkpoint, folder
from tubelet.train.config import Derived, TrainConfig
from tubelet.train.parallel import Place, from_all, sum_over_processes
from tubelet.train.waiting import Waiting, in_words

logger = logging.getLogger("tubelet")

REPEATS = 5  # skipped updates in a row that stop a run
QUIET_SECONDS = 10.0  # between lines where there is no bar


@dataclass
class Skipped:
    """An update that was not applied, as its loss or gradient was not finite."""

    step: int  # from 1
    paths: list[str]  # of the forwards whose own loss was not finite; of all where none was


class Meter:
    """Sums of what the log shows. They stay on the device until `read`: nothing waits for them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._clips = 0
        self._sources: Counter[str] = Counter()
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}  # of applied updates
        self._step: Terms = {}  # of this one so far
        self._forwards: list[tuple[Tensor, list[str]]] = []  # loss, paths
        self._flags: list[tuple[int, Tensor, list[list[str]]]] = []

    def forward(self, batch: Batch, terms: Terms) -> None:
        """Adds what a task returned for a micro-batch."""
        if terms["loss"][0].dtype.itemsize < 4:
            raise TubeletError(
                f"The task's loss is {terms['loss'][0].dtype}: compare and sum in float32, with "
                "`prediction.float()`; only what comes before computes in bf16."
            )
        self._clips += len(batch.paths)
        for name, clips in batch.sources.items():
            self._sources[name] += clips
        self._forwards.append((terms["loss"][0].detach(), batch.paths))
        for name, (total, weight) in terms.items():
            before = self._step.get(name, (0.0, 0.0))
            weight = weight.detach() if isinstance(weight, Tensor) else weight
            self._step[name] = (before[0] + total.detach().to(self.place.exact), before[1] + weight)

    @property
    def loss(self) -> Tensor:
        """[]: this process's sum of the losses of the update at hand."""
        return self._step["loss"][0]

    def update(self, step: int, skipped: Tensor, norm: Tensor) -> None:
        """Closes the update that leads to `step`; a skipped one enters no sum."""
        applied = (~skipped).to(self.place.exact)
        for name, (total, weight) in {**self._step, "grad_norm": (norm, 1.0)}.items():
            zero = torch.zeros_like(applied)
            before = self._sums.get(name, (zero, zero))
            total = torch.where(skipped, zero, total.to(applied.dtype))
            self._sums[name] = (before[0] + total, before[1] + applied * weight)
        wrong = [~torch.isfinite(loss) for loss, _ in self._forwards]
        self._flags.append((step, torch.stack([skipped, *wrong]), [p for _, p in self._forwards]))
        self._step, self._forwards = {}, []

    def read(self) -> tuple[dict[str, float], list[Skipped], int, dict[str, int]]:
        """-> means over the updates since the last call, all processes together; the updates
        among them that were skipped; how many clips there were; of them, how many of each source
        (skipped updates included). The one place that waits."""
        names, clips = list(self._sums), self._clips * self.place.world
        pairs = torch.stack([torch.stack(self._sums[name]) for name in names])
        counts = pairs.new_tensor([[clips, 0] for clips in self._sources.values()])
        pairs = sum_over_processes(torch.cat([pairs, counts.view(-1, 2)])).tolist()
        sources = {
            name: int(n) for name, (n, _) in zip(self._sources, pairs[len(names) :], strict=True)
        }
        means = [total / weight if weight else math.nan for total, weight in pairs[: len(names)]]
        skipped = []
        rows = torch.stack([flags for _, flags, _ in self._flags]).tolist()
        for (step, _, paths), (bad, *wrong) in zip(self._flags, rows, strict=True):
            if bad:
                mine = [paths for paths, flag in zip(paths, wrong, strict=True) if flag]
                told = from_all((mine, paths))
                lists = [p for found, _ in told for p in found] or [p for _, a in told for p in a]
                skipped.append(Skipped(step, sorted({path for paths in lists for path in paths})))
        self._sums, self._flags, self._clips, self._sources = {}, [], 0, Counter()
        return dict(zip(names, means, strict=True)), skipped, clips, sources


class Log:
    """The screen and the files of a run; only the main process writes."""

    def __init__(
        self,
        out: Path,
        place: Place,
        config: TrainConfig,
        derived: Derived,
        start: int,
        console: Console | None = None,
    ) -> None:
        self.out, self.place, self.config, self.derived = out, place, config, derived
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.shown = place.main and config.progress
        self.waiting = Waiting(config.workers, start)
        self._began = self._read_at = time.perf_counter()
        self._start = start
        self._said_at = -math.inf
        self._writer = _tensorboard() if config.tensorboard else None
        self._board: Any = None
        self._bar: Progress | None = None
        if self.shown and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}"),
                TimeRemainingColumn(),
                console=self.console,
                speed_estimate_period=600,
            )
            self._bar.add_task("training", total=derived.total_steps, completed=start, said="")

    def __enter__(self) -> Log:
        if self.shown:
            for rule in self.derived.rules:
                self.console.print(rule, style="dim")
        if self._bar is not None:
            self._bar.start()
        if self._writer is not None and self.place.main:
            self._board = self._writer(str(self.out / "tensorboard"), purge_step=self._start + 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()

    def next(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch; the time spent waiting for it is counted."""
        began = time.perf_counter()
        batch = next(batches, None)
        waited = time.perf_counter() - began
        if batch is None:
            raise TubeletError(
                f"The data ended before the {self.derived.total_steps} updates of the run: "
                "an iterator of batches must go on over the epochs until the run ends."
            )
        self.waiting.add(waited, batch.spent)
        return batch

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def progress(
        self,
        step: int,
        lr: float,
        means: dict[str, float],
        clips: int,
        skipped: int,
        sources: Mapping[str, int],
    ) -> None:
        """A row of metrics.jsonl, and the screen: means over the `clips` since the last row.

        `sources`: how many of them each source gave, where there are several.
        """
        now = time.perf_counter()
        seconds, self._read_at = now - self._read_at, now
        wait, parts = self.waiting.read(step, seconds)
        row = {
            **means,
            "lr": lr,
            "clips_per_second": clips / seconds,
            "wait_ratio": wait,
            "memory_gib": _memory_gib(self.place.device),
            "skipped": skipped,
        }
        groups = {"sources": dict(sources), "worker_time": parts}
        scalars = {f"{g}/{n}": float(v) for g, of in groups.items() for n, v in of.items()}
        self._write(step, row | {g: of for g, of in groups.items() if of}, row | scalars)
        cause = f" ({in_words(parts)})" if parts and wait >= 0.005 else ""
        said = (
            f"loss {means['loss']:.4f}  lr {lr:.2e}  {row['clips_per_second']:.1f} clips/s  "
            f"data wait {wait:.0%}{cause}  {row['memory_gib']:.1f} GiB"
        )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, said=said)
        elif self.shown:
            self._say(step, said)
        if self.shown and (advice := self.waiting.advice(parts)):
            logger.warning("%s", advice)

    def evaluation(self, step: int, scores: dict[str, float]) -> None:
        """A row of metrics.jsonl, and a line, for what `evaluate` returned."""
        if not scores:
            return
        self._write(step, {"evaluation": scores}, {f"eval/{k}": v for k, v in scores.items()})
        if self.shown:
            told = "  ".join(f"{name} {score:.4g}" for name, score in scores.items())
            self.console.print(f"step {step}  evaluation: {told}")

    def skipped(self, skipped: list[Skipped]) -> None:
        """Rows of nonfinite.jsonl."""
        if self.place.main:
            rows = [{"step": each.step, "paths": each.paths} for each in skipped]
            self._append(folder.NONFINITE, rows)

    def restart_clock(self) -> None:
        """Leaves the time since the last row (saving, evaluating) out of the next row's."""
        self._read_at = time.perf_counter()
        self.waiting.forget()

    def _say(self, step: int, said: str) -> None:
        now, last = time.perf_counter(), step == self.derived.total_steps
        if now - self._said_at < QUIET_SECONDS and not last:
            return
        self._said_at = now
        rest = (now - self._began) / (step - self._start) * (self.derived.total_steps - step)
        left = f"{rest // 3600:.0f}:{rest % 3600 // 60:02.0f}:{rest % 60:02.0f} left"
        self.console.print(f"step {step}/{self.derived.total_steps}  {said}  {left}")

    def _write(self, step: int, row: dict[str, Any], scalars: dict[str, float]) -> None:
        if not self.place.main:
            return
        epoch = round(step / self.derived.steps_per_epoch, 4)
        self._append(folder.METRICS, [{"step": step, "epoch": epoch, **row}])
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(_finite(row)) + "\n" for row in rows)
        with checkpoint.writing(name, self.out), open(self.out / name, "a") as file:
            file.write(lines)


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _memory_gib(device: torch.device) -> float:
    """The most memory so far: of the GPU, or of this process without its workers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _tensorboard() -> Any:
    """The class that writes for TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TubeletError(
            "tensorboard was asked for, but is not installed: pip install 'tubelet[tensorboard]'."
        ) from error
    return SummaryWriter
