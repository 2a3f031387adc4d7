"""The one loop: resume, schedule, accumulate, update, log, evaluate, save."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tubelet import choices
from tubelet.errors import TubeletError
from tubelet.shapes import Batch
from tubelet.train import checkpoint, folder, parallel
from tubelet.train.ahead import Ahead
from tubelet.train.backward import Backward
from tubelet.train.config import Derived, TrainConfig
from tubelet.train.log import REPEATS, Log, Meter, Skipped
from tubelet.train.optim import Averaged, Updater
from tubelet.train.schedule import cosine

logger = logging.getLogger("tubelet")


class Task(Protocol):
    """All that the loop knows of what is trained.

    A task may also have `after_step(step: int)`. It is called after each update that was applied,
    and only then; to know that, the loop has to wait for the device once per update: leave the
    method out where nothing has to move.

    A task whose terms are sums over clips that know nothing of one another may say so by
    `together: int`, the number of consecutive clips that belong together (1: each is alone; those
    of `tasks` say so, and what inherits from them and compares clips sets it to 0). Then
    halves of a batch may be computed at once, on threads of their own (see `backward`).
    """

    model: nn.Module  # the loop puts the wrapped one here; call that one, as `self.model(...)`

    def weight(self, batch: Batch) -> float:
        """What the loss of this batch (on the CPU) is divided by: its clips, tokens, ..."""
        ...

    def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
        """batch on the device -> {"loss": (float32 sum [], weight), further terms for the log}.

        A sum over the batch, not a mean: the loop divides the gradient by the weight of the
        whole step, so that accumulation and processes change nothing.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Scores for the log, from all processes together; may be {}."""
        ...


def fit(
    task: Task,
    batches: Callable[[int], Iterable[Batch]],
    config: TrainConfig,
    derived: Derived,
    out: Path,
    header: dict[str, Any],
    resume: bool = False,
) -> None:
    """Trains `task.model`, in place, and fills the folder `out`.

    `batches(start_step)`: this process's micro-batches from that update on, `derived.accumulate`
    of them per update, until the run ends. `header`: what is needed to use the weights, as JSON.
    Raises TubeletError where the folder holds a run and not `resume`, where a file cannot be
    written, and after `REPEATS` updates in a row whose loss or gradient is not finite.
    """
    place = parallel.place(config.device)
    newest = parallel.on_main(place, lambda: folder.check(out, resume))
    run = _Run(task, config, derived, place, out, header)
    run.prepare(newest)
    log = Log(out, place, config, derived, run.step)
    parallel.on_main(place, lambda: folder.begin(out, config, derived, header, run.step))
    try:
        if run.step >= derived.total_steps:
            logger.warning("The run in %s has done its %d updates.", out, run.step)
            return
        with log, run.choosing():
            _loop(run, log, Ahead(batches(run.step), place.device))
    finally:
        run.close()


def _loop(run: _Run, log: Log, stream: Ahead) -> None:
    """The loop itself; nothing in it waits for the device but `meter.read`, when a row is due."""
    task, derived, place = run.task, run.derived, run.place
    after_step: Callable[[int], None] | None = getattr(task, "after_step", None)
    meter = Meter(place)
    task.model.train()
    for step in range(run.step, derived.total_steps):
        run.reseed(step)
        weight = 0.0
        for i in range(derived.accumulate):
            batch = log.next(stream)
            weight += task.weight(batch)
            batch = stream.copy
            with parallel.reducing(task.model, last=i + 1 == derived.accumulate):
                terms = run.backward(batch)
            meter.forward(batch, terms)

        lr = run.lr(step)
        skipped, norm = run.updater.apply(lr, meter.loss, weight)
        if run.average is not None:
            run.average.move(skipped)
        if after_step is not None and not bool(skipped):
            after_step(step + 1)
        meter.update(step + 1, skipped, norm)
        run.step = step + 1
        log.advance(run.step)

        due = run.due()
        if "log" in due:
            means, found, clips, sources = meter.read()
            run.count(found, log)
            log.progress(run.step, lr, means, clips, run.skipped, sources)
        if "evaluate" in due:
            log.evaluation(run.step, run.evaluate())
        if "save" in due:
            run.save()
        if due & {"evaluate", "save"}:
            log.restart_clock()


@dataclass
class _Run:
    """The state of a run: what a checkpoint holds, and how to make and take one."""

    task: Task
    config: TrainConfig
    derived: Derived
    place: parallel.Place
    out: Path
    header: dict[str, Any]
    step: int = 0  # updates done
    skipped: int = 0  # of them not applied
    last_skipped: int = -1
    in_a_row: int = 0  # skipped ones that end with `last_skipped`
    choices: dict[str, str] = field(default_factory=dict[str, str])  # see `tubelet.choices`

    def prepare(self, newest: Path | None) -> None:
        """Wraps the model, makes what is built on its parameters, and takes the checkpoint."""
        config, self.model = self.config, self.task.model
        if newest is not None:
            checkpoint.apply_weights(self.model, checkpoint.load_weights(newest), newest)
        self.task.model = parallel.wrap(
            self.model,
            self.place,
            checkpoint_blocks=config.checkpoint_blocks,
            compile=config.compile,
            parallel=config.parallel,
        )
        self.updater = Updater(
            self.model,
            self.place,
            weight_decay=config.weight_decay,
            betas=config.betas,
            layer_decay=config.layer_decay,
            clip_grad=config.clip_grad,
            split=config.parallel == "fsdp" and self.place.world > 1,
        )
        decay = config.model_ema
        self.average = Averaged(self.updater.named, decay) if decay else None
        self.backward = Backward(
            self.task,
            self.place,
            bf16=parallel.choose_precision(config.precision, self.place.device) == "bf16",
            whole=config.compile,
        )
        if newest is not None:
            self._take(newest)

    def close(self) -> None:
        """Unwraps the model, and ends what was begun."""
        self.task.model = self.model
        self.backward.close()

    def _take(self, newest: Path) -> None:
        state = checkpoint.load_state(newest)
        self.updater.load(state["optimizer"])
        if self.average is not None:
            if not (newest / checkpoint.AVERAGE).exists():
                raise TubeletError(
                    f"{newest} holds no average of the weights: its run had model_ema 0. "
                    "Resume with --model-ema 0."
                )
            self.average.load(checkpoint.load_weights(newest / checkpoint.AVERAGE))
        self.step = state["step"]
        self.skipped = state["skipped"]
        self.last_skipped, self.in_a_row = state["last_skipped"], state["in_a_row"]
        self.choices = state.get("choices", {})  # 0.1.0 made none

    def save(self) -> None:
        """Writes a checkpoint; all processes together."""
        weights = {n: parallel.whole(t, self.place) for n, t in self.model.state_dict().items()}
        average = self.average.state(self.place) if self.average is not None else None
        state = {
            "optimizer": self.updater.state(),
            "skipped": self.skipped,
            "last_skipped": self.last_skipped,
            "in_a_row": self.in_a_row,
            "choices": self.choices,
        }
        keep = self.config.keep_checkpoints
        parallel.on_main(
            self.place,
            lambda: checkpoint.save(
                self.out, self.step, self.header, weights, state, average, keep
            ),
        )

    def lr(self, step: int) -> float:
        d = self.derived
        return cosine(
            step,
            total_steps=d.total_steps,
            warmup_steps=d.warmup_steps,
            peak=d.lr,
            final=d.min_lr,
        )

    def choosing(self) -> AbstractContextManager[None]:
        """Ways are measured within; not by several processes, which might not choose the same."""
        return choices.kept(self.choices) if self.place.world == 1 else nullcontext()

    def reseed(self, step: int) -> None:
        """So that also a task that draws from torch's generator is the same after a resumption."""
        world, rank = self.place.world, self.place.rank
        torch.manual_seed(((self.config.seed * 1_000_003 + step) * world + rank) % 2**63)

    def due(self) -> set[str]:
        """What has to be done after this update."""
        d, last = self.derived, self.step == self.derived.total_steps
        save = last or self.step % d.save_every_steps == 0
        evaluate = last or self.step % d.eval_every_steps == 0
        # A row before each checkpoint: so a resumed run writes the same rows.
        log = save or self.step % self.config.log_every_steps == 0
        whether = {"save": save, "evaluate": evaluate, "log": log}
        return {name for name, now in whether.items() if now}

    def count(self, found: list[Skipped], log: Log) -> None:
        """Takes account of skipped updates; TubeletError where `REPEATS` came in a row."""
        if not found:
            return
        log.skipped(found)
        self.skipped += len(found)
        for each in found:
            following = each.step == self.last_skipped + 1
            self.in_a_row = self.in_a_row + 1 if following else 1
            self.last_skipped = each.step
            if self.in_a_row >= REPEATS:
                raise TubeletError(
                    f"The loss or its gradient was not finite in {REPEATS} updates in a row, up to "
                    f"step {each.step} of {self.derived.total_steps}. None of them was applied; "
                    f"{self.out / folder.NONFINITE} lists their videos. Try a lower --lr, "
                    "--clip-grad 1 or --precision float32."
                )

    def evaluate(self) -> dict[str, float]:
        """The task's scores, and those of the averaged weights where an average is kept."""
        scores = dict(self.task.evaluate())
        if scores and self.average is not None:
            with self.average.in_place():
                scores |= {f"ema_{name}": score for name, score in self.task.evaluate().items()}
        self.task.model.train()
        return scores
