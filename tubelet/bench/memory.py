"""The memory of a training step on a CPU: measured in a process of its own, beside what `tubelet plan` says.

A process holds more than its plan: Python and its libraries (the row "nothing"), and while a block is
computed what it makes on the way. Where freed memory is kept (`train.allocator`, as the loop does), it
also holds what an earlier part of the step has left. It holds less where a batch is computed in halves,
of which one may be behind the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tubelet import verbs
from tubelet.bench.steps import batch_of, our_step
from tubelet.bench.turns import Row, Step, in_turns
from tubelet.bench.videomae import in_small
from tubelet.choices import is_watched
from tubelet.methods import videomae
from tubelet.methods.videomae import VideoMAE
from tubelet.plan.counting import Ledger
from tubelet.tasks.pretrain import Pretrain
from tubelet.train import parallel

GIB = 2**30
ROOM = 16.0  # GiB, in which a ViT-L learns from two clips at a time
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Setting:
    """A step that is measured."""

    name: str
    run: VideoMAE
    clips: int
    recompute: bool  # blocks, in the backward pass: activation checkpointing
    keep_freed: bool = True
    bar_gib: float | None = None


def settings(quick: bool = False) -> list[Setting]:
    """ViT-B at 4 clips and ViT-L at 2; `quick`: the first of them in small, without bars."""
    base, large = videomae.base_k400, videomae.large_k400
    if quick:
        return [
            Setting("videomae-b", in_small(base), 4, *flags)
            for flags in ((False, True), (True, False))
        ]
    return [
        *(Setting("videomae-b", base, 4, again) for again in (False, True)),
        *(Setting("videomae-b", base, 4, again, keep_freed=False) for again in (False, True)),
        *(Setting("videomae-l", large, 2, again, bar_gib=ROOM) for again in (False, True)),
    ]


def rows(
    *, quick: bool = False, threads: int = 0, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """The table: what each setting takes, float32; the first row is a process that trains nothing.

    Raises TubeletError where a process ends, as for want of memory.
    """
    every = settings(quick)
    [empty] = in_turns([Row("nothing", _nothing)], turns=1, threads=threads).values()
    found: list[dict[str, Any]] = [{"name": "nothing", "peak_gib": empty.peak_gib}]
    for one in every:
        if progress is not None:
            progress(len(found), 1 + len(every))
        found.append(_measured(one, threads))
    if progress is not None:
        progress(len(found), len(found))
    return found


def _measured(one: Setting, threads: int) -> dict[str, Any]:
    step = partial(training, one.run, one.clips, one.recompute, keep_freed=one.keep_freed)
    [took] = in_turns([Row(one.name, step)], turns=1, threads=threads).values()
    planned = verbs.plan(
        one.run,
        batch_size=one.clips,
        micro_batch=one.clips,
        checkpoint_blocks=one.recompute,
        precision="float32",
    )
    bar = one.bar_gib
    return {
        "name": one.name,
        "clips": one.clips,
        "checkpointing": one.recompute,
        "keep_freed": one.keep_freed,
        "peak_gib": took.peak_gib,
        "planned_gib": planned.memory().total / GIB,
        "forward_gib": took.counted,
        "seconds": took.seconds[0],
        "bar_gib": bar,
        "met": took.peak_gib <= bar if bar and took.peak_gib else None,
    }


def _nothing() -> Step:
    return lambda: 0.0


def training(run: VideoMAE, clips: int, recompute: bool, *, keep_freed: bool = True) -> Step:
    """Updates as the loop makes them -> their loss; of one whose operations are counted, the GiB that
    its forward keeps for its backward pass, weights aside.

    In that one alone: the ledger of what is kept holds it on, which would be measured too.
    """
    torch.manual_seed(0)
    place = parallel.Place(torch.device("cpu"))
    task = Pretrain(parallel.wrap(run.model(), place, checkpoint_blocks=recompute))
    update = our_step(task, batch_of(run, clips), bf16=False, keep_freed=keep_freed)

    def step() -> float:
        if not is_watched():
            return update()
        ledger = Ledger(task.model)
        with ledger.keeping():
            update()
        return sum(ledger.bytes.values()) / GIB

    return step
