"""What is to be predicted, for a clip: pixels, HOG and teachers' features, beside the plain formulation.

Ours makes a target for the tokens that are asked for; the plain formulations (`bench.plain`) make it for
all, and choose the hidden ones by a boolean mask. One clip of 16x224x224 with the published masks, float
on both sides. Numbers made are compared before any is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tubelet.backbones.vit import BASE
from tubelet.bench import maskfeat, mvd, videomae
from tubelet.bench.plain import maskfeat as plain_maskfeat
from tubelet.bench.plain import mvd as plain_mvd
from tubelet.bench.plain import videomae as plain_videomae
from tubelet.bench.record import Record, compared
from tubelet.bench.steps import Progress, batch_of
from tubelet.bench.turns import Row, Step, Took, in_turns
from tubelet.errors import TubeletError
from tubelet.methods.maskfeat import small_k400 as maskfeat_run
from tubelet.methods.videomae import small_k400 as videomae_run
from tubelet.model import MaskedModel
from tubelet.shapes import Batch

EQUAL = 1e-4  # relative difference of two fingerprints; HOG has a few gradients on edges of bins


@dataclass(frozen=True)
class Kind:
    """A target, and what it is compared with: other rows with their bars."""

    name: str
    bars: Mapping[str, float | None]
    turns: int


KINDS = (
    Kind("pixels", {"plain": None}, 15),
    Kind("hog", {"plain": 2.0, "plain-into-cells": 2.0}, 15),
    Kind("features", {"plain": None}, 3),  # of two ViT-B: seconds
)


def records(
    *, quick: bool = False, threads: int = 0, progress: Progress | None = None
) -> list[Record]:
    """A record for each target and plain formulation. `quick`: in small, without bars."""
    found: list[Record] = []
    for at, kind in enumerate(KINDS):
        rows = [
            Row(name, partial(step_of, kind.name, name, quick)) for name in ("ours", *kind.bars)
        ]
        moved = None if progress is None else partial(_moved, progress, at)
        took = in_turns(rows, turns=2 if quick else kind.turns, threads=threads, progress=moved)
        found += records_of(kind, took, quick)
    return found


def records_of(kind: Kind, took: Mapping[str, Took], quick: bool) -> list[Record]:
    """What a run found -> its records; TubeletError where two made other numbers."""
    found: list[Record] = []
    ours = took["ours"]
    for against, bar in kind.bars.items():
        theirs = took[against]
        if not abs(ours.value - theirs.value) <= EQUAL * abs(ours.value):
            raise TubeletError(
                f"The target {kind.name} against {against!r}: fingerprints of what was made are "
                f"{ours.value:.7g} and {theirs.value:.7g}. They do not make the same, so their times "
                "say nothing."
            )
        record = compared(
            *(f"target-{kind.name}", ours, against, theirs),
            precision="float32",
            shape="1x3x8x64x64" if quick else "1x3x16x224x224",
            bar=None if quick else bar,
        )
        # Products count where there are any: the teachers'.
        record = record if ours.flops else replace(record, mfu=None, mfu_against=None)
        found.append(replace(record, loss=None, loss_against=None))
    return found


def step_of(kind: str, name: str, quick: bool) -> Step:
    """A row: makes the target of a clip; gives a fingerprint of it, computed once, before."""
    make = {"pixels": pixels, "hog": hog, "features": features}[kind](name, quick)
    value = fingerprint(make())

    def step() -> float:
        make()
        return value

    return step


def fingerprint(y: Tensor) -> float:
    """[...,P] -> a number that depends on values and their order."""
    flat = y.detach().double().flatten()
    return float(flat @ torch.arange(1.0, len(flat) + 1).double().sqrt().sin() + flat.abs().sum())


def pixels(name: str, quick: bool) -> Callable[[], Tensor]:
    """VideoMAE's pixels of the hidden tokens."""
    run = videomae.in_small(videomae_run) if quick else videomae_run
    torch.manual_seed(0)
    model, batch = run.model(), batch_of(run, 1)
    if name == "ours":
        return _ours(model, batch)
    plain = plain_videomae.Plain(model, run)
    return partial(plain.targets, _normalised(model, batch), _hidden(batch))


def hog(name: str, quick: bool) -> Callable[[], Tensor]:
    """MaskFeat's histograms of the hidden tokens."""
    run = maskfeat.in_small(maskfeat_run) if quick else maskfeat_run
    torch.manual_seed(0)
    model, batch = run.model(), maskfeat.batch_of(run, 1)
    if name == "ours":
        return _ours(model, batch)
    into = plain_maskfeat.Hog() if name == "plain" else plain_maskfeat.HogIntoCells()
    clip, hidden, side = _normalised(model, batch), _hidden(batch), model.backbone.patch.h
    return lambda: plain_maskfeat.hog_of_tokens(clip, into, side)[hidden]


def features(name: str, quick: bool) -> Callable[[], Tensor]:
    """MVD's features of an image teacher and a video teacher, at the hidden tokens."""
    run = replace(mvd.STUDENTS["b"], drop_path=0.0)
    run, teacher = (mvd.in_small(run), mvd.SMALL) if quick else (run, BASE)
    model, batch = mvd.model_of(run, teacher, "float32"), batch_of(run, 1)
    if name == "ours":
        return _ours(model, batch)
    plain = plain_mvd.Plain(model, run).train()
    clip, hidden = _normalised(model, batch), _hidden(batch)
    return lambda: torch.cat(list(plain.targets(clip, hidden).values()))


def _ours(model: MaskedModel, batch: Batch) -> Callable[[], Tensor]:
    """All branches' targets of one clip at its asked tokens."""
    masks, view = batch.masks, batch.clip / 255
    assert masks is not None
    counted = masks.weight[0] > 0  # not the padding

    def make() -> Tensor:
        return torch.cat([y[counted] for y in model.targets({"clip": view}, masks).values()])

    return make


def _normalised(model: MaskedModel, batch: Batch) -> Tensor:
    return (batch.clip / 255 - model.backbone.mean) / model.backbone.std


def _hidden(batch: Batch) -> Tensor:
    assert batch.masks is not None
    return batch.masks.hidden[:, 0]


def _moved(progress: Progress, part: int, done: int, of: int) -> None:
    """Progress of one target as that of all: a hundred steps each."""
    progress(100 * part + 100 * done // of, 100 * len(KINDS))
