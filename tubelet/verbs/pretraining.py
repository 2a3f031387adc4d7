"""Learning without labels: pretrain, and cache, which keeps the features of its teachers."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from tubelet import feature_cache
from tubelet.data.lists import VideoList
from tubelet.data.order import check_drawn
from tubelet.data.sources import examine
from tubelet.errors import TubeletError
from tubelet.interop.found import Unsaid
from tubelet.methods.run import Pretraining, to_dict
from tubelet.model import Card
from tubelet.targets.features import Teacher
from tubelet.tasks.pretrain import Pretrain
from tubelet.teachers import connect, load_teacher
from tubelet.train import parallel
from tubelet.train.config import derive
from tubelet.train.loop import fit
from tubelet.verbs.begin import (
    as_run,
    clips_of,
    header_of,
    listed,
    same_teachers,
    tell,
    tell_notes,
    train_batches,
)

log = logging.getLogger("tubelet")


def pretrain(
    run: Pretraining | str,
    *,
    out: str | Path,
    resume: bool = False,
    teachers: Mapping[str, Teacher] | None = None,
    **changes: Any,
) -> Path:
    """Learn from videos without labels; returns the run's folder.

    Args:
        run: a run, or its name ("videomae:base_k400", "./mine.py:run3").
        out: folder for checkpoints, config.json and metrics.jsonl.
        resume: go on from the newest checkpoint in `out`.
        teachers: {branch: network}, in the place of those that the run names by where they are.
        changes: fields of the run, its clip and its training by name (`data=...`, `steps=...`).

    Raises:
        TubeletError: no videos, a used folder without `resume`, a loss that stays non-finite,
            a disk that is full, ...
    """
    run = as_run(run, Pretraining, changes)
    videos = listed(run)
    features = feature_cache.opened(run)
    if features is not None:
        _one_list(videos)
    cached = feature_cache.widths(features)
    taught = _teachers(run, teachers or {}, cached)
    run = run.fitted({name: teacher.width for name, teacher in taught.items()} | cached)
    narrows = run.narrows  # masks that cannot be say so now
    with parallel.processes(run.train.device) as place:
        derived = derive(run.train, len(videos), place.world)
        tell(run, videos, place)
        check_drawn(videos.parts, derived.steps_per_epoch * run.train.batch_size)
        parallel.on_main(place, lambda: examine(videos, run.video_decoder))
        if run.even and place.main:
            log.info(
                "masks: each hides %d of %d tokens, as encoder and decoder want rows of one length; for that %.1f of a "
                "mask's tokens are hidden or shown, on average",
                *(run.even, run.grid.size, run.moved()),
            )
        torch.manual_seed(run.train.seed)
        model = run.model()
        taught = feature_cache.attach(features, run, videos, model, taught)
        views = connect(model, taught)
        dataset = clips_of(
            run,
            videos,
            views=views,
            mask=run.draw_hidden,
            asked=run.draw_asked if narrows else None,
            features=features,
        )
        header = header_of(model, Card(clip=run.clip, run=to_dict(run)), videos)
        header["teachers"] = feature_cache.sources(features) | {
            name: {"name": teacher.name, "digest": teacher.digest}
            for name, teacher in taught.items()
        }
        if resume:
            parallel.on_main(place, lambda: same_teachers(Path(out), header["teachers"]))
        batches = functools.partial(train_batches, dataset, run, derived, place, run.pack)
        fit(Pretrain(model), batches, run.train, derived, Path(out), header, resume)
    return Path(out)


def cache(
    run: Pretraining | str,
    *,
    out: str | Path,
    crops: int = 1,
    shard_clips: int = 64,
    teachers: Mapping[str, Teacher] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **changes: Any,
) -> Path:
    """Computes the features of a run's teachers once, for `crops` fixed crops of each video.

    `pretrain(run, feature_cache=out)` then trains without teachers (docs/feature-cache.md). What is
    there already in `out` is not computed again. `shard_clips`: clips in a file. Other arguments:
    see `pretrain`.
    """
    run = as_run(run, Pretraining, changes)
    videos = listed(run)
    _one_list(videos)
    tell_notes(videos)
    taught = _teachers(run, teachers or {})
    run = run.fitted({name: teacher.width for name, teacher in taught.items()})
    feature_cache.make(
        run, videos, taught, Path(out), crops=crops, shard_clips=shard_clips, progress=progress
    )
    return Path(out)


def _one_list(videos: VideoList) -> None:
    """TubeletError for a mix: a cache keeps the features of one list, with one stride."""
    if videos.parts:
        raise TubeletError(
            "A feature cache is made of one list, and this run has "
            f"{', '.join(part.name for part in videos.parts)}: pass --data, or train with the "
            "teachers themselves."
        )


def _teachers(
    run: Pretraining, given: Mapping[str, Teacher], cached: Collection[str] = ()
) -> dict[str, Teacher]:
    """The teachers that the run's branches need, loaded; one that is missing is an error.

    `cached`: branches that need none; one that is given for them all the same is loaded too.
    """
    needed = run.teachers()
    unknown = sorted(set(given) - set(needed))
    if unknown:
        raise TubeletError(
            f"There is no branch {unknown[0]!r} that takes a teacher; this run has "
            f"{', '.join(needed) or 'none'}."
        )
    nowhere = {name for name, source in needed.items() if not source and name not in given}
    missing = [name for name in needed if name in nowhere and name not in cached]
    if missing:
        name = missing[0]
        give, leave = run.teacher_flags(name)
        raise TubeletError(
            f"The {name} teacher is missing, and a random one would teach nothing: {give} a run's "
            f"folder, a checkpoint or a Hugging Face model's folder, or {leave} to learn without it."
        )
    return {
        name: given[name] if name in given else _teacher(run, name, source)
        for name, source in needed.items()
        if name not in nowhere
    }


def _teacher(run: Pretraining, name: str, source: str) -> Teacher:
    try:
        return load_teacher(source, **run.teacher_options(name))
    except Unsaid as unsaid:
        raise unsaid.of(name) from None
