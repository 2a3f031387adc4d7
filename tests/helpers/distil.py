"""MVD of a few thousand weights: a frozen image teacher, and the student's own average.

Also a script: `distil.py kill FOLDER` ends itself with SIGKILL after an update; `distil.py spread
FOLDER` trains in several processes (under torchrun's environment variables).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import masks
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.data.sampling import rng_for
from tubelet.decoders import DecoderShape
from tubelet.methods.mae import image
from tubelet.methods.mvd import EMA, MVD, Distilled
from tubelet.methods.run import changed, to_dict
from tubelet.model import Card, MaskedModel
from tubelet.shapes import Batch, ClipSpec
from tubelet.stored import describe
from tubelet.targets.features import Teacher
from tubelet.tasks.pretrain import Pretrain
from tubelet.teachers import connect, teacher_of
from tubelet.train import parallel
from tubelet.train.config import Derived, TrainConfig, derive
from tubelet.train.loop import fit

SIZE = 4  # videos per update
NET = ViTShape(32, 2, 2, patch=4, position="sincos_3d")
RUN = MVD(
    clip=ClipSpec(num_frames=4, size=(16, 16)),
    encoder=NET,
    decoder=DecoderShape(16, 2, 2),
    image=Distilled(width=48),
    video=Distilled(momentum=0.9, norm_feature=True),
    image_teacher="given",
    video_teacher=EMA,
    mask_ratio=0.75,
    masks_per_clip=2,
)


def image_teacher() -> Teacher:
    torch.manual_seed(5)
    shape = replace(image(NET), width=48)
    return teacher_of(ViT(shape, trained=(1, 16, 16)), name="image")


def video_teacher() -> Teacher:
    torch.manual_seed(6)
    shape = replace(NET, position="sinusoid_1d", width=48)
    return teacher_of(ViT(shape, trained=(4, 16, 16)), name="video")


def model(run: MVD = RUN) -> MaskedModel:
    """The run's model with its teachers, made alike each time."""
    torch.manual_seed(0)
    made = run.model()
    given = {"image": image_teacher, "video": video_teacher}
    connect(made, {name: given[name]() for name in run.teachers()})
    return made


def batch(indices: list[int], run: MVD = RUN) -> Batch:
    """Sample i is the same in whatever batch it comes."""
    clips, hidden, asked = [], [], []
    for i in indices:
        rng = rng_for(0, 0, i)
        generator = torch.Generator().manual_seed(i)
        clips.append(torch.randint(0, 256, (3, 4, 16, 16), generator=generator, dtype=torch.uint8))
        hidden.append(run.draw_hidden(rng))
        asked.append(run.draw_asked(rng, hidden[-1]))
    packed = masks.pack(torch.stack(hidden), torch.stack(asked), count_visible=run.count_visible)
    index = torch.tensor(indices)
    paths = [f"{i}.mp4" for i in indices]
    return Batch({"clip": torch.stack(clips)}, paths, index=index, seeds=index, masks=packed)


class Task(Pretrain):
    """With updates whose loss is not finite, and one after which the process dies."""

    def __init__(self, bad_steps: tuple[int, ...] = (), die_after: int = -1, run: MVD = RUN):
        super().__init__(model(run))
        self.bad_steps = bad_steps
        self.die_after = die_after
        self.moved: list[int] = []
        move = self.after_step
        self.after_step = lambda step: (move(step), self.after(step))

    def after(self, step: int) -> None:
        self.moved.append(step)
        if step == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
        terms = super().__call__(batch)
        loss, weight = terms["loss"]
        bad = int(batch.index[0]) // SIZE in self.bad_steps
        return terms | {"loss": (loss * float("nan") if bad else loss, weight)}


def batches(derived: Derived, rank: int = 0) -> Callable[[int], Iterator[Batch]]:
    """Sample s*SIZE + j in update s, whatever the processes and the accumulation."""

    def stream(start: int) -> Iterator[Batch]:
        share = SIZE // derived.world
        for step in range(start, derived.total_steps):
            first = step * SIZE + rank * share
            for at in range(first, first + share, derived.micro_batch):
                yield batch(list(range(at, at + derived.micro_batch)))

    return stream


def train(
    out: Path,
    task: Task | None = None,
    place: parallel.Place | None = None,
    *,
    resume: bool = False,
    **changes: Any,
) -> Task:
    """Six updates, unless `changes` say otherwise."""
    values: dict[str, Any] = {"steps": 6, "batch_size": SIZE, "micro_batch": 2, "lr": 0.1}
    values |= {"save_every_steps": 2, "log_every_steps": 1, "progress": False, "device": "cpu"}
    config = TrainConfig(**(values | changes))
    place = place or parallel.Place(torch.device("cpu"))
    derived = derive(config, 6 * SIZE, place.world)
    task = task or Task()
    assert isinstance(task.model, MaskedModel)
    header = describe(task.model, Card(RUN.clip, run=to_dict(changed(RUN, train=config))))
    fit(task, batches(derived, place.rank), config, derived, out, header, resume)
    return task


def spread(folder: Path) -> None:
    """Trains in several processes, by both ways of sharing the work."""
    told: dict[str, Any] = {}
    with parallel.processes("cpu") as place:
        for how in ("ddp", "fsdp"):
            task = Task(bad_steps=(1,))
            train(folder / how, task, place, parallel=how, micro_batch=1)
            assert isinstance(task.model, MaskedModel)
            teacher: Any = task.model.branches["image"]
            average: Any = task.model.branches["video"]
            told[how] = {
                "average is split": parallel.is_split(average.target.network),
                "teacher is split": parallel.is_split(teacher.target.teacher.module),
                "moved": task.moved,
            }
        (folder / f"told{place.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    logging.disable()
    torch.set_num_threads(1)
    if sys.argv[1] == "kill":
        train(Path(sys.argv[2]), Task(bad_steps=(1,), die_after=int(sys.argv[3])))
    else:
        spread(Path(sys.argv[2]))
