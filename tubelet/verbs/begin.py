"""What the verbs begin with: the run, its list of videos, its batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tubelet import stored
from tubelet.data.clips import ClipDataset, Pack
from tubelet.data.lists import Source, VideoList, read_list, splits_of
from tubelet.data.loader import TrainLoader, train_loader
from tubelet.data.sources import read_sources, table
from tubelet.errors import TubeletError
from tubelet.methods.run import Pretraining, Run, changed, find
from tubelet.model import Card, VideoModel
from tubelet.train import checkpoint, parallel
from tubelet.train.config import Derived

log = logging.getLogger("tubelet")

R = TypeVar("R", bound=Run)


def as_run(run: Run | str, kind: type[R], changes: dict[str, Any]) -> R:
    """A run, or its name -> the run with these changes; one for another verb is refused."""
    found = find(run) if isinstance(run, str) else run
    if not isinstance(found, kind) or found.verb != kind.verb:
        name = run if isinstance(run, str) else f"This {type(found).__name__}"
        raise TubeletError(f"{name} is a run for `tubelet {found.verb}`.")
    return changed(found, **changes)


def required(data: str, flag: str) -> str:
    """What was given as videos; nothing is an error."""
    if not data:
        raise TubeletError(f"No videos were given: pass {flag} with a folder or a list of videos.")
    return data


def listed(run: Pretraining) -> VideoList:
    """The videos of a run without labels: of its list, or of all of its sources."""
    sources = run.mixed()
    if not sources:
        return read_list(required(run.data, run.needs), root=run.root, kind="unlabelled")
    if run.data:
        raise TubeletError(
            f"Both --data {run.data} and sources ({', '.join(s.name for s in sources)}) were given: "
            "make the list a source too, or leave one out."
        )
    videos = read_sources(sources, run.clip)
    if not run.lacking:
        return videos
    note = f"of the sources of the published recipe, {' and '.join(run.lacking)} are missing"
    return replace(videos, notes=(note, *videos.notes))


def split_of(data: Source, *wanted: str) -> str | None:
    """The first of the wanted splits that a folder of splits has; None for anything else."""
    if not isinstance(data, (str, os.PathLike)) or not os.path.isdir(data):
        return None
    found = splits_of(data)
    return next((split for split in wanted if split in found), None)


def header_of(model: VideoModel, card: Card, videos: VideoList) -> dict[str, Any]:
    """What the checkpoint says; the list too, so that resuming on another one is noticed."""
    listed = {"videos": len(videos), "fingerprint": videos.fingerprint()}
    return {**stored.describe(model, card), "list": listed}


def same_teachers(out: Path, teachers: Mapping[str, Mapping[str, str]]) -> None:
    """TubeletError where the run in `out` learned from other teachers than these."""
    newest = checkpoint.latest(out)
    before = {} if newest is None else checkpoint.read_header(newest).get("teachers", {})
    for name, was in before.items():
        now = teachers.get(name)
        if now is not None and now["digest"] != was["digest"]:
            raise TubeletError(
                f"The run in {out} has learned from the {name} teacher {was['name']} (weights "
                f"{was['digest']}), and it cannot go on with {now['name']} (weights "
                f"{now['digest']}): give the same one, or train into another folder."
            )


def tell(run: Run, videos: VideoList, place: parallel.Place) -> None:
    """Says what will be learned from; the loop says how."""
    if not place.main:
        return
    labels = f", {len(videos.classes)} classes" if videos.classes else ""
    clip = run.clip
    shape = "x".join(map(str, (clip.num_frames, *clip.size)))
    log.info("%d videos%s from %s; clips of %s", len(videos), labels, videos.source, shape)
    for line in table(videos) if videos.parts else ():
        log.info("  %s", line)
    tell_notes(videos)


def tell_notes(videos: VideoList) -> None:
    """Says what reading the list found worth a word."""
    for note in videos.notes:
        log.info("%s", note)


def clips_of(run: Run, videos: VideoList, **draws: Any) -> ClipDataset:
    """The run's training clips; `draws`: masks and views that pretraining adds."""
    return ClipDataset(
        videos,
        run.clip,
        run.augment,
        seed=run.train.seed,
        num_sample=run.num_sample,
        repeats=run.repeats,
        decoder=run.video_decoder,
        max_unreadable=run.max_unreadable,
        **draws,
    )


def train_batches(
    dataset: ClipDataset,
    run: Run,
    derived: Derived,
    place: parallel.Place,
    pack: Pack | None,
    start_step: int,
) -> TrainLoader:
    """The part of this process of all batches from `start_step` on."""
    return train_loader(
        dataset,
        batch_size=run.train.batch_size,
        micro_batch=derived.micro_batch,
        seed=run.train.seed,
        total_steps=derived.total_steps,
        start_step=start_step,
        rank=place.rank,
        world=place.world,
        workers=run.train.workers,
        pack=pack,
        pin=place.device.type == "cuda",
    )
