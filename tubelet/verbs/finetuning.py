"""Learning from labels: finetune."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tubelet import heads, stored, zoo
from tubelet.backbones.backbone import Backbone
from tubelet.backbones.mvit import MViTShape
from tubelet.backbones.vit import ViTShape
from tubelet.data.lists import VideoList, read_list
from tubelet.data.mix import Mixing
from tubelet.errors import TubeletError
from tubelet.interop.found import NOTHING, Told
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import to_dict
from tubelet.model import Card, Classifier
from tubelet.tasks import evaluate as evaluation
from tubelet.tasks.classify import Classify
from tubelet.tasks.evaluate import EvaluateConfig
from tubelet.train import parallel
from tubelet.train.config import Derived, derive
from tubelet.train.loop import fit
from tubelet.verbs.begin import as_run, clips_of, header_of, required, split_of, tell, train_batches

log = logging.getLogger("tubelet")


def finetune(
    run: Finetune | str | None = None, *, out: str | Path, resume: bool = False, **changes: Any
) -> Path:
    """Train an encoder and a head on labels; returns the run's folder.

    `run` None: the recipe that all published fine-tuning shares, on the clips that `weights` were
    trained on. Other arguments and errors: see `pretrain`.
    """
    if run is None:
        run = finetune_from(changes.get("weights", ""), changes.get("told", NOTHING))
    run = as_run(run, Finetune, changes)
    kind = None if run.label_kind == "auto" else run.label_kind
    data = required(run.data, "--data")
    column = run.label_column or None
    split = split_of(data, "train")
    videos = read_list(
        data, root=run.root, kind=kind, split=split, column=column, labels_from=_mapped(run)
    )
    if videos.kind == "unlabelled":
        raise TubeletError(
            f"{run.data} has no labels. Give folders of classes (data/<class>/*.mp4) or a list "
            "with a label in each line."
        )
    validate = validation_of(run, videos)
    with parallel.processes(run.train.device) as place:
        derived = derive(run.train, len(videos), place.world)
        tell(run, videos, place)
        torch.manual_seed(run.train.seed)
        model = classifier_of(run, videos)
        card = Card(run.clip, videos.classes, videos.kind, to_dict(run))
        mixing = mixing_of(run, derived)
        task = Classify(model, kind=videos.kind, mixing=mixing, evaluate=validate)
        batches = functools.partial(train_batches, clips_of(run, videos), run, derived, place, None)
        header = header_of(model, card, videos)
        fit(task, batches, run.train, derived, Path(out), header, resume)
    return Path(out)


def classifier_of(run: Finetune, videos: VideoList) -> Classifier:
    """The classifier that the run begins with: the encoder of its weights, or a new one, and a head
    for the classes of these videos."""
    rows = _rows(run, videos) if run.head == "rows" else ()
    model = run.model(_encoder(run), videos.targets)
    if rows:
        heads.carry(model, run.weights, rows, run.told)
    return model


def _mapped(run: Finetune) -> tuple[str, ...] | None:
    """The classes that the run's map of head rows names, in their order."""
    return heads.target_classes(_weights(run), run.head_map, run.told) if run.head_map else None


def _rows(run: Finetune, videos: VideoList) -> tuple[int, ...]:
    """The rows of the weights' head for the classes of these videos."""
    if videos.kind == "regression":
        raise TubeletError(
            f"{videos.source} has numbers to be regressed, and head rows are of classes: leave out "
            "--head rows."
        )
    return heads.rows_for(_weights(run), videos.classes, run.head_map, run.told)


def _weights(run: Finetune) -> str:
    """The classifier whose head is carried over; a run without one is an error."""
    if not run.weights:
        raise TubeletError(
            "This run begins with the rows of a trained head, and no weights were given: pass "
            "--weights with a run that was fine-tuned on the merged classes, or --head new."
        )
    return run.weights


def validation_of(run: Finetune, videos: VideoList) -> Callable[[Any], dict[str, float]] | None:
    """What scores the model between epochs: on `val`, or on the val split of a folder of splits."""
    split = split_of(run.val or run.data, "val")
    if not run.val and split is None:
        return None
    source = run.val or run.data
    val = read_list(
        source,
        root=run.root,
        labels_from=videos,
        kind=videos.kind,
        split=split,
        column=run.label_column or None,
    )
    settings = EvaluateConfig(workers=run.train.workers, decoder=run.video_decoder)
    return evaluation.validation(val, run.clip, settings)


def finetune_from(weights: str | Path, told: Told = NOTHING) -> Finetune:
    """The shared fine-tuning recipe, for the encoder and the clips of these weights."""
    if not weights:
        return Finetune()
    encoder, card = stored.encoder_of(weights, told=told)
    shape = encoder.shape.finetuned()
    return Finetune(weights=os.fspath(weights), told=told, clip=card.clip, encoder=shape)


def mixing_of(run: Finetune, derived: Derived) -> Mixing:
    """The run's mixing, with groups that fit into the clips of one forward."""
    mixing, clips = run.mixing, derived.micro_batch * run.num_sample
    if not mixing.mixes or clips % mixing.mix_group == 0:
        return mixing
    # Two crops of one video must not be all of a group: mixing them would mix nothing.
    least = 2 if run.num_sample == 1 else 2 * run.num_sample
    most = min(clips, mixing.mix_group)
    fits = [n for n in range(2, most + 1, 2) if clips % n == 0 and n >= least]
    if not fits:
        raise TubeletError(
            f"Mixup and cutmix pair clips of different videos, and a forward has {clips} clips of "
            f"{derived.micro_batch} videos: pass an even --batch-size and --micro-batch, or "
            "--mixup-prob 0 to train without mixing."
        )
    log.info(
        "mixing in groups of %d instead of %d: a forward has %d clips",
        fits[-1],
        mixing.mix_group,
        clips,
    )
    return replace(mixing, mix_group=fits[-1])


def _encoder(run: Finetune) -> Backbone:
    """The encoder to fine-tune: that of the weights, or a new one."""
    clip, wanted = run.clip, run.encoder
    if not run.weights:
        return zoo.new_encoder(wanted, clip, drop_path=run.drop_path)
    found, in_chans = stored.encoder_shape(run.weights, run.told)
    kind = type(wanted)
    wrong = [
        f"{name} {getattr(found, name)} (the run says {getattr(wanted, name)})"
        for name in kind.TIED
        if isinstance(found, kind) and getattr(found, name) != getattr(wanted, name)
    ]
    if not isinstance(found, kind):
        wrong = [f"{type(found).__name__} (the run says {kind.__name__})"]
    if wrong:
        raise TubeletError(
            f"The encoder in {run.weights} is another one than the run's: {', '.join(wrong)}. Choose "
            "the recipe for its size, or leave out the recipe's name and the --encoder options: "
            "then the weights say it."
        )
    if clip.in_chans != in_chans:
        raise TubeletError(
            f"The encoder in {run.weights} takes {in_chans} channels: pass --in-chans {in_chans} "
            f"instead of {clip.in_chans}."
        )
    trained = None
    if isinstance(found, MViTShape) and isinstance(wanted, MViTShape):
        # Its last pooling and the size of its tables are those of this run.
        found = replace(found, pool_last=wanted.pool_last)
        trained = (clip.num_frames, *clip.size)
    elif isinstance(found, ViTShape) and isinstance(wanted, ViTShape):
        found = replace(found, positions=wanted.positions)
    encoder, _ = stored.encoder_of(
        run.weights, drop_path=run.drop_path, shape=found, trained=trained, told=run.told
    )
    encoder.grid_for(clip.num_frames, *clip.size)
    return encoder
