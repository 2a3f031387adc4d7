"""Training steps side by side: what a case is, how one is run, and our side of it.

A module of cases (`videomae`, `mvd`, `maskfeat`) has `cases(quick=False) -> list[Case]`; `quick` means
tiny networks on tiny clips, without bars: whether it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from statistics import median

import torch
from torch import Tensor

from tubelet import choices
from tubelet.bench.record import Record, compared
from tubelet.bench.turns import Row, Step, Took, in_turns
from tubelet.data.sampling import rng_for
from tubelet.errors import TubeletError
from tubelet.methods.run import Pretraining
from tubelet.model import MaskedModel
from tubelet.shapes import Batch
from tubelet.tasks.pretrain import Pretrain
from tubelet.train import allocator
from tubelet.train.backward import Backward
from tubelet.train.optim import Updater
from tubelet.train.parallel import Place

RATE, DECAY, BETAS = 1e-4, 0.05, (0.9, 0.95)
ROWS = 4  # of a run: each holds a model, its moments and what a step keeps, all at once
EQUAL = {"float32": 1e-5, "bf16": 2e-2}  # relative difference of two losses that are one
AIMED = {"float32": 0.9, "bf16": 0.65}  # share of the machine's rate at ViT-B
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Peer:
    """What ours is compared with. Of several rows (precisions of one formulation) the quickest
    counts, as for ours."""

    rows: tuple[Row, ...]
    bar: float | None = None  # of their time through ours
    bar_memory: float | None = None  # of our memory through theirs
    views: int = 1  # student views that a step learns from: times are divided by it
    same_loss: bool = True  # as ours computes; False where masks or teachers differ
    needs: str = ""  # a library that is not ours: "transformers"


@dataclass(frozen=True)
class Case:
    """One of ours, and all that it is compared with in one run; names of rows are unique."""

    name: str  # "videomae-b-f32"
    ours: tuple[Row, ...]
    against: Mapping[str, Peer]
    shape: str  # "4x3x16x224x224"
    views: int = 1
    together: str = ""  # cases that share rows, by name, have one such name, and follow each other
    turns: int = 7


def without_bars(case: Case) -> Case:
    """The case as it is run in small, where nothing is to be reached."""
    against = {
        name: replace(peer, bar=None, bar_memory=None) for name, peer in case.against.items()
    }
    return replace(case, against=against)


def runs_of(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases by the run that they are measured in: those that go together, as long as their rows
    are at most `ROWS`."""
    found: list[list[Case]] = []
    for case in cases:
        last = found[-1] if found else []
        near = last and case.together and last[-1].together == case.together
        if near and len(rows_of([*last, case])) <= ROWS:
            last.append(case)
        else:
            found.append([case])
    return found


def rows_of(cases: Sequence[Case]) -> list[Row]:
    """The rows of a run; those of one name are one."""
    every = [row for case in cases for row in case.ours]
    every += [row for case in cases for peer in case.against.values() for row in peer.rows]
    return list({row.name: row for row in every}.values())


def run_cases(
    cases: Sequence[Case],
    *,
    turns: int | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> list[Record]:
    """The records of cases that are measured in one run: rows of one name are one row.

    `turns`: as the cases say unless given. Raises TubeletError where a row fails, where a library is
    missing, and where two losses differ that have to be one.
    """
    for case in cases:
        for against, peer in case.against.items():
            if peer.needs and find_spec(peer.needs) is None:
                raise TubeletError(
                    f"{case.name} is compared with {against!r}, which needs {peer.needs}: "
                    "pip install 'tubelet[hf]'."
                )
    turns = turns or max(case.turns for case in cases)
    took = in_turns(rows_of(cases), turns=turns, threads=threads, progress=progress)
    return [record for case in cases for record in records_of(case, took)]


def records_of(case: Case, took: Mapping[str, Took]) -> list[Record]:
    """What a run found -> the records of a case, one for each peer."""
    check_losses(case, took)
    own = quickest(case.ours, took)
    records: list[Record] = []
    for against, peer in case.against.items():
        other = quickest(peer.rows, took)
        records.append(
            compared(
                *(case.name, took[own.name], against, took[other.name]),
                precision=own.precision,
                shape=case.shape,
                bar=peer.bar,
                bar_memory=peer.bar_memory,
                views=(case.views, peer.views),
            )
        )
    return [replace(record, note=floor(record)) for record in records]


def quickest(rows: tuple[Row, ...], took: Mapping[str, Took]) -> Row:
    """The row whose median turn is the shortest."""
    return min(rows, key=lambda row: median(took[row.name].seconds))


def check_losses(case: Case, took: Mapping[str, Took]) -> None:
    """TubeletError where a peer that computes the same loss did not, in its first step."""
    own = case.ours[0]
    for against, peer in case.against.items():
        for row in peer.rows if peer.same_loss else ():
            both = (own.precision, row.precision)
            room = EQUAL["bf16" if "bf16" in both else "float32"]
            a, b = took[own.name].value, took[row.name].value
            if not abs(a - b) <= room * abs(a):
                raise TubeletError(
                    f"{case.name} against {against!r}: the losses of the first step are {a:.7g} "
                    f"({own.name}) and {b:.7g} ({row.name}); expected a difference of at most "
                    f"{room:g} of them. They do not compute the same, so their times say nothing."
                )


def floor(record: Record) -> str:
    """Of a bar that is above what the machine's products allow: what they allow, in words, and the
    share of it that was reached; at ViT-B beside the one that is aimed at."""
    if record.bar is None or not record.mfu or record.seconds is None:
        return ""
    most = record.ratio_time / record.mfu
    if most >= record.bar:
        return ""
    aim = f", {AIMED[record.precision]:.2f} aimed at" if "-b-" in record.name else ""
    return (
        f"the products alone take {record.seconds * record.mfu:.2f} s at this machine's rate, so "
        f"{most:.2f}x is the most; reached: {record.mfu:.2f} of the rate{aim}"
    )


def batch_of(run: Pretraining, clips: int) -> Batch:
    """Random clips uint8 [B,C,T,H,W] with the run's masks; the same for all rows."""
    shape = (clips, run.clip.in_chans, run.clip.num_frames, *run.clip.size)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    hidden, asked = [], []
    for i in range(clips):
        rng = rng_for(0, 0, i)
        hidden.append(run.draw_hidden(rng))
        asked.append(run.draw_asked(rng, hidden[-1]))
    return Batch(
        views={"clip": pixels.to(torch.uint8)},
        paths=[""] * clips,
        index=torch.arange(clips),
        seeds=torch.arange(clips),
        masks=run.pack(torch.stack(hidden), torch.stack(asked)),
    )


def as_published(model: MaskedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The batch as the published formulations take it: clips normalised as the model does, float32
    [B,C,T,H,W], and the first mask of each, hidden bool [B,N]."""
    assert batch.masks is not None
    clip = (batch.clip / 255 - model.backbone.mean) / model.backbone.std
    return clip, batch.masks.hidden[:, 0]


def our_step(task: Pretrain, batch: Batch, *, bf16: bool, keep_freed: bool = True) -> Step:
    """An update as the loop makes it: from uint8, fused AdamW, freed memory kept -> mean loss."""
    if keep_freed:
        allocator.keep_freed()
    task.model.train()
    place = Place(torch.device("cpu"))
    updater = Updater(task.model, place, weight_decay=DECAY, betas=BETAS)
    backward = Backward(task, place, bf16=bf16)
    weight = task.weight(batch)

    chosen: dict[str, str] = {}

    def step() -> float:
        with choices.kept(chosen):
            loss, _ = backward(batch)["loss"]
        updater.apply(RATE, loss, weight)
        return float(loss) / weight

    return step


def their_step(
    model: torch.nn.Module, loss_of: Callable[[], Tensor], *, bf16: bool, fused: bool = False
) -> Step:
    """An update of another formulation: `loss_of()` is the mean loss; torch's AdamW, by default or
    `fused` (as transformers' trainer has it)."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, weight_decay=DECAY, betas=BETAS, fused=fused or None
    )

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step
