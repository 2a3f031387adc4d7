"""Learning from a larger classifier: distil."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import torch

from tubelet.data.lists import Entry, VideoList, read_list
from tubelet.errors import TubeletError
from tubelet.interop.found import NOTHING, Told, Unsaid
from tubelet.methods.distil import Distil, distilling
from tubelet.methods.run import changed, to_dict
from tubelet.model import Card
from tubelet.targets.features import Teacher
from tubelet.tasks.distil import Distil as Task
from tubelet.tasks.scores import Kind
from tubelet.teachers import classifier
from tubelet.train import parallel
from tubelet.train.config import derive
from tubelet.train.loop import fit
from tubelet.verbs.begin import (
    as_run,
    clips_of,
    header_of,
    required,
    same_teachers,
    split_of,
    tell,
    train_batches,
)
from tubelet.verbs.finetuning import classifier_of, finetune_from, mixing_of, validation_of

log = logging.getLogger("tubelet")


def distil(
    run: Distil | str | None = None, *, out: str | Path, resume: bool = False, **changes: Any
) -> Path:
    """Train a student on what a fine-tuned teacher says of the same clips; returns the run's folder.

    `run` None: the recipe that all published fine-tuning shares, with the mixing of arXiv
    2106.05237, on the clips that `weights` were trained on, or else the teacher. The student has the teacher's classes.
    Other arguments and errors: see `pretrain`.
    """
    if run is None:
        names = ("weights", "teacher", "told", "teacher_told")
        run = distil_from(**{name: changes[name] for name in names if name in changes})
    run = as_run(run, Distil, changes)
    teacher, answers = _taught_by(run)
    kind: Kind = teacher.module.card.label_kind
    videos = _videos(run, answers)
    scored = bool(run.val) or videos.kind != "unlabelled"
    with parallel.processes(run.train.device) as place:
        derived = derive(run.train, len(videos), place.world)
        tell(run, videos, place)
        torch.manual_seed(run.train.seed)
        model = classifier_of(run, answers)
        header = header_of(model, Card(run.clip, answers.classes, kind, to_dict(run)), videos)
        header["teachers"] = {"logits": {"name": teacher.name, "digest": teacher.digest}}
        if resume:
            parallel.on_main(place, lambda: same_teachers(Path(out), header["teachers"]))
        task = Task(
            model,
            teacher,
            size=teacher.module.card.clip.size,
            kind=kind,
            temperature=run.temperature,
            label_weight=run.label_weight,
            mixing=mixing_of(run, derived),
            evaluate=validation_of(run, answers) if scored else None,
        )
        batches = functools.partial(train_batches, clips_of(run, videos), run, derived, place, None)
        fit(task, batches, run.train, derived, Path(out), header, resume)
    return Path(out)


def distil_from(
    weights: str | Path = "",
    teacher: str | Path = "",
    told: Told = NOTHING,
    teacher_told: Told = NOTHING,
) -> Distil:
    """The shared recipe, for the encoder and the clips of these weights of the student.

    A student without any gets the clips of its teacher. `told`, `teacher_told`: of files of others;
    see `tubelet.load`.
    """
    run = distilling(finetune_from(weights, told))
    if weights or not teacher:
        return run
    return changed(run, clip=_classifier(teacher, teacher_told).module.card.clip)


def _classifier(teacher: str | Path, told: Told) -> Teacher:
    try:
        return classifier(teacher, told)
    except Unsaid as unsaid:
        raise unsaid.of("teacher") from None


def _taught_by(run: Distil) -> tuple[Teacher, VideoList]:
    """The run's teacher, and its classes as those of a list; one that does not fit is an error."""
    if not run.teacher:
        raise TubeletError(
            "The teacher is missing: pass --teacher with a fine-tuned run's folder or a checkpoint."
        )
    teacher = _classifier(run.teacher, run.teacher_told)
    card: Card = teacher.module.card
    _sees_the_clips(teacher, card, run)
    numbers = card.label_kind == "regression"
    if numbers and run.temperature != 1:
        raise TubeletError(
            f"The teacher {teacher.name} gives numbers, and a temperature is for probabilities of "
            "classes: leave --temperature out."
        )
    if numbers and run.label_weight and run.mixing.mixes:
        raise TubeletError(
            f"The labels are numbers (as those of the teacher {teacher.name}), which nobody knows of a "
            "mixture of two clips: pass --mixup-prob 0 to learn from them, or leave --label-weight out."
        )
    if run.label_kind not in ("auto", card.label_kind):
        raise TubeletError(
            f"The teacher {teacher.name} has labels of the kind {card.label_kind!r}, and the run's are "
            f"{run.label_kind!r}: leave --label-kind out."
        )
    names = card.classes or tuple(map(str, range(teacher.width)))
    label = (0.0,) * teacher.width  # a list of numbers has no names: its entries say how many
    entries = (Entry(teacher.name, label),) if numbers else ()
    kind: Kind = teacher.module.card.label_kind
    return teacher, VideoList(entries, () if numbers else names, source=teacher.name, kind=kind)


def _sees_the_clips(teacher: Teacher, card: Card, run: Distil) -> None:
    """TubeletError where the teacher cannot take the student's clips, resized to its own size."""
    own, clip = card.clip, run.clip
    made_for = "x".join(map(str, (own.num_frames, *own.size)))
    shape = "x".join(map(str, (clip.num_frames, *clip.size)))
    problem = ""
    if own.in_chans != clip.in_chans:
        problem = f"it takes {own.in_chans} channels and they have {clip.in_chans} (--in-chans)."
    elif teacher.sees == "frames" and clip.num_frames > 1:
        problem = "it is of images: pass a teacher of clips, or --num-frames 1."
    try:
        teacher.grid_for(1, clip.num_frames, *own.size)
    except TubeletError as error:
        problem = problem or str(error)
    if problem:
        raise TubeletError(
            f"The teacher {teacher.name}, made for clips of {made_for}, cannot see the student's clips "
            f"of {shape}: {problem}"
        )
    if made_for != shape:
        log.info("the teacher was made for clips of %s; it sees the student's, resized", made_for)


def _videos(run: Distil, answers: VideoList) -> VideoList:
    """The videos to learn from; with labels where there are any, which must be the teacher's."""
    data = required(run.data, "--data")
    options: dict[str, Any] = {
        "root": run.root,
        "split": split_of(data, "train"),
        "column": run.label_column or None,
    }
    plain = not run.labels or read_list(data, **options, must_exist=False).kind == "unlabelled"
    if plain and run.label_weight:
        raise TubeletError(
            f"{data} has no labels for --label-weight {run.label_weight:g} to count: leave it out, and "
            "the teacher alone teaches."
        )
    if plain:
        return read_list(data, **options, kind="unlabelled")
    try:
        videos = read_list(data, **options, kind=answers.kind, labels_from=answers)
        if videos.targets != answers.targets:
            raise TubeletError(
                f"{data} has {videos.targets} numbers a video, and the teacher gives {answers.targets}."
            )
    except TubeletError as error:
        raise TubeletError(
            f"The labels of {data} are not those of the teacher {answers.source}: {error} Leave them "
            "unread (--no-labels), for the teacher says all that is learned; or pass a teacher of "
            "these classes."
        ) from error
    return videos
