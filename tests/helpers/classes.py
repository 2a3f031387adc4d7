"""A classifier of a few thousand weights that learns from another one: for tests of distillation.

Also a script: `classes.py spread FOLDER` trains in several processes (under torchrun's environment
variables).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tubelet.backbones.vit import ViT, ViTShape
from tubelet.methods.distil import MATCHING
from tubelet.model import Card, Classifier
from tubelet.shapes import Batch, ClipSpec
from tubelet.stored import describe
from tubelet.targets.features import Teacher
from tubelet.tasks.distil import Distil
from tubelet.train import parallel
from tubelet.train.config import Derived, TrainConfig, derive
from tubelet.train.loop import fit

SIZE, OUTPUTS, FRAMES, SIDE = 8, 3, 4, 16
SPEC = ClipSpec(num_frames=FRAMES, size=(SIDE, SIDE))


def classifier(seed: int, width: int, outputs: int = OUTPUTS, **options: Any) -> Classifier:
    """Made alike each time; it answers differently from clip to clip."""
    torch.manual_seed(seed)
    shape = ViTShape(width=width, depth=2, heads=2, patch=8)
    vit = ViT(shape, trained=(FRAMES, SIDE, SIDE), final_norm=False, init="normal", **options)
    return Classifier(vit, outputs, init_scale=20.0)


def teacher(outputs: int = OUTPUTS) -> Teacher:
    model = classifier(5, 24, outputs)
    given: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "name": "large"}
    return Teacher(model, width=outputs, patch=model.backbone.patch, sees="clip", **given)


def task(**options: Any) -> Distil:
    """A student of width 16, with drop path."""
    given: dict[str, Any] = {"size": SPEC.size, "mixing": MATCHING}
    return Distil(classifier(6, 16, drop_path=0.2), teacher(), **(given | options))


def batch(indices: list[int], labels: bool = False) -> Batch:
    """Sample i is the same in whatever batch it comes."""
    clips = []
    for i in indices:
        generator = torch.Generator().manual_seed(i)
        shape = (3, FRAMES, SIDE, SIDE)
        clips.append(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
    index = torch.tensor(indices)
    paths = [f"{i}.mp4" for i in indices]
    known = index % OUTPUTS if labels else None
    return Batch({"clip": torch.stack(clips)}, paths, index=index, seeds=index, labels=known)


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
    out: Path, place: parallel.Place | None = None, *, resume: bool = False, **changes: Any
) -> Distil:
    """Four updates, unless `changes` say otherwise; clips are mixed in groups of 2."""
    values: dict[str, Any] = {"steps": 4, "batch_size": SIZE, "micro_batch": SIZE, "lr": 0.3}
    values |= {"save_every_steps": 2, "log_every_steps": 1, "progress": False, "device": "cpu"}
    config = TrainConfig(**(values | changes))
    place = place or parallel.Place(torch.device("cpu"))
    derived = derive(config, 4 * SIZE, place.world)
    made = task(mixing=replace(MATCHING, mix_group=2))
    assert isinstance(made.model, Classifier)
    header = describe(made.model, Card(SPEC, ("a", "b", "c"), "single"))
    fit(made, batches(derived, place.rank), config, derived, out, header, resume)
    return made


def spread(folder: Path) -> None:
    """Trains in several processes, by both ways of sharing the work."""
    with parallel.processes("cpu") as place:
        for how in ("ddp", "fsdp"):
            train(folder / how, place, parallel=how, micro_batch=2)


if __name__ == "__main__":
    logging.disable()
    torch.set_num_threads(1)
    spread(Path(sys.argv[2]))
