"""What the commands do, as functions: pretrain, finetune, evaluate, predict, ..."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from tubelet import feature_cache, masks, zoo
from tubelet.analysis import reconstruct as reconstruction
from tubelet.analysis import similarity as analysis
from tubelet.analysis.reconstruct import ReconstructConfig, Reconstruction
from tubelet.analysis.similarity import Similarity, SimilarityConfig
from tubelet.backbones.vit import ViT
from tubelet.data.clips import ClipDataset, Pack
from tubelet.data.lists import Source, VideoList, read_list, splits_of
from tubelet.data.loader import TrainLoader, train_loader
from tubelet.data.mix import Mixing
from tubelet.data.sampling import rng_for
from tubelet.errors import TubeletError
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import Pretraining, Run, changed, find, to_dict
from tubelet.model import Card, Classifier, MaskedModel, VideoModel
from tubelet.shapes import ClipSpec
from tubelet.targets.features import Teacher
from tubelet.tasks import evaluate as evaluation
from tubelet.tasks import predict as prediction
from tubelet.tasks.classify import Classify
from tubelet.tasks.evaluate import EvaluateConfig
from tubelet.tasks.predict import PredictConfig, Predictions
from tubelet.tasks.pretrain import Pretrain
from tubelet.tasks.report import Evaluation
from tubelet.teachers import connect, load_teacher
from tubelet.train import checkpoint, parallel
from tubelet.train.config import Derived, derive
from tubelet.train.loop import fit

log = logging.getLogger("tubelet")

R = TypeVar("R", bound=Run)


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
    run = _run(run, Pretraining, changes)
    videos = read_list(_given(run.data, "--data"), root=run.root, kind="unlabelled")
    features = feature_cache.opened(run)
    cached = feature_cache.widths(features)
    taught = _teachers(run, teachers or {}, cached)
    run = run.fitted({name: teacher.width for name, teacher in taught.items()} | cached)
    hidden = run.draw_hidden(rng_for(run.train.seed, 0, 0))  # a mask that cannot be says so now
    narrows = run.asked(run.grid, hidden[0], rng_for(0, 0, 0)) is not None
    with parallel.processes(run.train.device) as place:
        derived = derive(run.train, len(videos), place.world)
        _tell(run, videos, place)
        torch.manual_seed(run.train.seed)
        model = run.model()
        taught = feature_cache.attach(features, run, videos, model, taught)
        views = connect(model, taught)
        dataset = _clips(
            run,
            videos,
            views=views,
            mask=run.draw_hidden,
            asked=run.draw_asked if narrows else None,
            features=features,
        )
        header = _header(model, Card(clip=run.clip, run=to_dict(run)), videos)
        header["teachers"] = feature_cache.sources(features) | {
            name: {"name": teacher.name, "digest": teacher.digest}
            for name, teacher in taught.items()
        }
        pack = functools.partial(masks.pack, count_visible=run.count_visible)
        batches = functools.partial(_batches, dataset, run, derived, place, pack)
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
    run = _run(run, Pretraining, changes)
    videos = read_list(_given(run.data, "--data"), root=run.root, kind="unlabelled")
    _notes(videos)
    taught = _teachers(run, teachers or {})
    run = run.fitted({name: teacher.width for name, teacher in taught.items()})
    feature_cache.make(
        run, videos, taught, Path(out), crops=crops, shard_clips=shard_clips, progress=progress
    )
    return Path(out)


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
        raise TubeletError(
            f"The {name} teacher is missing, and a random one would teach nothing: pass "
            f"--{name}-teacher with a run folder or a checkpoint, or --{name}.weight 0 to learn "
            "without it."
        )
    return {
        name: given[name] if name in given else load_teacher(source, **run.teacher_options(name))
        for name, source in needed.items()
        if name not in nowhere
    }


def finetune(
    run: Finetune | str | None = None, *, out: str | Path, resume: bool = False, **changes: Any
) -> Path:
    """Train an encoder and a head on labels; returns the run's folder.

    `run` None: the recipe that all published fine-tuning shares, on the clips that `weights` were
    trained on. Other arguments and errors: see `pretrain`.
    """
    weights = changes.get("weights", "")
    run = _run(finetune_from(weights) if run is None else run, Finetune, changes)
    kind = None if run.label_kind == "auto" else run.label_kind
    data = _given(run.data, "--data")
    column = run.label_column or None
    split = _split_of(data, "train")
    videos = read_list(data, root=run.root, kind=kind, split=split, column=column)
    if videos.kind == "unlabelled":
        raise TubeletError(
            f"{run.data} has no labels. Give folders of classes (data/<class>/*.mp4) or a list "
            "with a label in each line."
        )
    validate = _validation(run, videos)
    with parallel.processes(run.train.device) as place:
        derived = derive(run.train, len(videos), place.world)
        _tell(run, videos, place)
        torch.manual_seed(run.train.seed)
        model = run.model(_encoder(run), videos.targets)
        card = Card(run.clip, videos.classes, videos.kind, to_dict(run))
        mixing = _mixing(run, derived)
        task = Classify(model, kind=videos.kind, mixing=mixing, evaluate=validate)
        batches = functools.partial(_batches, _clips(run, videos), run, derived, place, None)
        header = _header(model, card, videos)
        fit(task, batches, run.train, derived, Path(out), header, resume)
    return Path(out)


def _validation(run: Finetune, videos: VideoList) -> Callable[[Any], dict[str, float]] | None:
    """What scores the model between epochs: on `val`, or on the val split of a folder of splits."""
    split = _split_of(run.val or run.data, "val")
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


def finetune_from(weights: str | Path) -> Finetune:
    """The shared fine-tuning recipe, for the encoder and the clips of these weights."""
    if not weights:
        return Finetune()
    vit, card = zoo.encoder_of(weights)
    return Finetune(weights=os.fspath(weights), clip=card.clip, encoder=vit.shape)


def evaluate(
    weights: str | Path | Classifier,
    data: Source | VideoList,
    config: EvaluateConfig | None = None,
    *,
    root: str = "",
    split: str | None = None,
    label_column: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores a fine-tuned model on labelled videos by the published protocol.

    `weights`: a run's folder, a checkpoint, or a model. `config` None: the views that the run was
    made for (5x3, on Something-Something 2x3). `split` None: of a folder with splits, test or val.
    Under torchrun each process scores a part, and all get the whole result.
    """
    model = _classifier(weights)
    card = model.card
    config = config or test_views(card)
    if not isinstance(data, VideoList):
        kind = card.label_kind if card.label_kind in ("single", "multi", "regression") else None
        data = read_list(
            data,
            root=root,
            labels_from=card.classes or None,
            kind=kind,
            split=split or _scored_split(data),
            column=label_column or None,
        )
        _notes(data)
    with parallel.processes(config.device):
        return evaluation.evaluate(model, data, card.clip, config, progress=progress)


def predict(
    weights: str | Path | Classifier,
    sources: Any,
    config: PredictConfig | None = None,
    *,
    progress: Any = None,
) -> Predictions:
    """The best classes over time of video files of any length; see `tubelet.tasks.predict`."""
    model = _classifier(weights)
    card = model.card
    kind = card.label_kind if card.label_kind in ("multi", "regression") else "single"
    return prediction.predict(
        model, card.classes, card.clip, sources, config, kind=kind, progress=progress
    )


def reconstruct(
    weights: str | Path | MaskedModel,
    video: str | Path,
    *,
    out: str | Path,
    config: ReconstructConfig | None = None,
    name: str = "",
) -> Reconstruction:
    """What a pretrained model makes of hidden parts; see `tubelet.analysis.reconstruct`.

    `config` None: masks as in the run. `name`: of the model in the picture; default: its folder's.
    """
    model = masked_model(weights)
    name = name or ("" if isinstance(weights, MaskedModel) else Path(weights).name)
    config = config or run_masks(model.card)
    return reconstruction.reconstruct(model, model.card.clip, video, out, config, name=name)


def masked_model(weights: str | Path | MaskedModel) -> MaskedModel:
    """A pretrained model, from its run where it is not there yet."""
    model = weights if isinstance(weights, MaskedModel) else zoo.load(weights)
    if not isinstance(model, MaskedModel):
        raise TubeletError(
            f"{weights} is a fine-tuned classifier, which has no decoder to reconstruct with: "
            "pass the pretraining run."
        )
    return model


def similarity(
    models: str | Path | Teacher | Sequence[str | Path | Teacher] | Mapping[str, Teacher],
    videos: Any,
    *,
    out: str | Path | None = None,
    clip: ClipSpec | None = None,
    config: SimilarityConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Similarity:
    """How alike features of different moments are; see `tubelet.analysis.similarity`.

    Args:
        models: one or several to compare on the same clips: whatever `load_teacher` takes, or
            `Teacher`s; {name: teacher} names them.
        videos: a video, a folder, a list, or several of these.
        out: folder for the picture and the numbers; None: nothing is written.
        clip: which frames; None: as the first model of clips was trained.
        progress: called with (videos done, videos in all).
    """
    if not isinstance(models, Mapping):
        several = [models] if isinstance(models, (str, Path, Teacher)) else list(models)
        models = compared(several)
    paths = prediction.paths_of(videos)
    clip = clip or compared_clip(models)
    result = analysis.similarity(models, paths, clip, config, progress=progress)
    if out is not None:
        result.write(out)
    return result


def compared(models: Sequence[str | Path | Teacher]) -> dict[str, Teacher]:
    """Models to compare, loaded, by names that tell them apart: the ends of their paths."""
    loaded = [m if isinstance(m, Teacher) else load_teacher(m) for m in models]
    parts = [Path(teacher.name).parts for teacher in loaded]
    if len(set(parts)) < len(parts):
        same = next(teacher.name for teacher in loaded if parts.count(Path(teacher.name).parts) > 1)
        raise TubeletError(f"{same} was given twice: each model is compared with others once.")
    most = max((len(part) for part in parts), default=0)
    names = [["/".join(part[-length:]) for part in parts] for length in range(1, most + 1)]
    distinct = next((ends for ends in names if len(set(ends)) == len(ends)), [])
    return dict(zip(distinct, loaded, strict=True))


def compared_clip(models: Mapping[str, Teacher]) -> ClipSpec:
    """The clips that the first model of clips was trained on; without one, 16x4 of the images' size."""
    specs = [_trained_on(model) for model in models.values()]
    if not specs:
        raise TubeletError("No models were given: pass a run's folder or a checkpoint.")
    first = next((spec for spec in specs if spec.num_frames > 1), None)
    return first or replace(ClipSpec(), size=specs[0].size)


def _trained_on(model: Teacher) -> ClipSpec:
    """As its run says; of a network without a run only frames and size are known."""
    usual = ClipSpec()
    frames, *size = usual.num_frames, *usual.size
    if isinstance(model.module, ViT):
        with contextlib.suppress(TubeletError):  # weights of others name no clip
            return zoo.card_of(checkpoint.read_header(model.name), model.name).clip
        frames, *size = model.module.trained
    frames = 1 if model.sees == "frames" else model.num_frames or frames
    return replace(usual, num_frames=frames, size=model.size or (size[0], size[1]))


def test_views(card: Card) -> EvaluateConfig:
    """The test protocol that a fine-tuned model's run names."""
    run = card.run
    return EvaluateConfig(
        segments=run.get("test_num_segment", 5), crops=run.get("test_num_crop", 3)
    )


def run_masks(card: Card) -> ReconstructConfig:
    """Masks as the pretraining run drew them."""
    known = {name: card.run[name] for name in ("mask_type", "mask_ratio") if name in card.run}
    return ReconstructConfig(**known)


def _classifier(weights: str | Path | Classifier) -> Classifier:
    model = weights if isinstance(weights, Classifier) else zoo.load(weights)
    if not isinstance(model, Classifier):
        raise TubeletError(
            f"{weights} is a pretrained model without classes: fine-tune it first, with "
            f"`tubelet finetune --weights {weights} --data LABELLED --out runs/NAME`."
        )
    return model


def _run(run: Run | str, kind: type[R], changes: dict[str, Any]) -> R:
    found = find(run) if isinstance(run, str) else run
    if not isinstance(found, kind):
        verb = "finetune" if isinstance(found, Finetune) else "pretrain"
        name = run if isinstance(run, str) else f"This {type(found).__name__}"
        raise TubeletError(f"{name} is a run for `tubelet {verb}`.")
    return changed(found, **changes)


def _header(model: VideoModel, card: Card, videos: VideoList) -> dict[str, Any]:
    """What the checkpoint says; the list too, so that resuming on another one is noticed."""
    listed = {"videos": len(videos), "fingerprint": videos.fingerprint()}
    return {**zoo.describe(model, card), "list": listed}


def _mixing(run: Finetune, derived: Derived) -> Mixing:
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


def _given(data: str, flag: str) -> str:
    if not data:
        raise TubeletError(f"No videos were given: pass {flag} with a folder or a list of videos.")
    return data


def _split_of(data: Source, *wanted: str) -> str | None:
    """The first of the wanted splits that a folder of splits has; None for anything else."""
    if not isinstance(data, (str, os.PathLike)) or not os.path.isdir(data):
        return None
    found = splits_of(data)
    return next((split for split in wanted if split in found), None)


def _scored_split(data: Source) -> str | None:
    """test, or else val, of a folder of splits; one that has neither is refused."""
    split = _split_of(data, "test", "val")
    if split is None and _split_of(data, "train"):
        raise TubeletError(
            f"{data} has no test or val split to score, only train. Pass the folder of the videos to "
            "score, or --split train."
        )
    return split


def _tell(run: Run, videos: VideoList, place: parallel.Place) -> None:
    """Says what will be learned from; the loop says how."""
    if not place.main:
        return
    labels = f", {len(videos.classes)} classes" if videos.classes else ""
    clip = run.clip
    shape = "x".join(map(str, (clip.num_frames, *clip.size)))
    log.info("%d videos%s from %s; clips of %s", len(videos), labels, videos.source, shape)
    _notes(videos)


def _notes(videos: VideoList) -> None:
    for note in videos.notes:
        log.info("%s", note)


def _clips(run: Run, videos: VideoList, **draws: Any) -> ClipDataset:
    return ClipDataset(
        videos,
        run.clip,
        run.augment,
        seed=run.train.seed,
        num_sample=run.num_sample,
        decoder=run.video_decoder,
        max_unreadable=run.max_unreadable,
        **draws,
    )


def _batches(
    dataset: ClipDataset,
    run: Run,
    derived: Derived,
    place: parallel.Place,
    pack: Pack | None,
    start_step: int,
) -> TrainLoader:
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


def _encoder(run: Finetune) -> ViT:
    """The encoder to fine-tune: that of the weights, or a new one."""
    clip = run.clip
    if not run.weights:
        return zoo.new_encoder(run.encoder, clip, drop_path=run.drop_path)
    vit, _ = zoo.encoder_of(run.weights, drop_path=run.drop_path)
    wrong = [
        f"{name} {getattr(vit.shape, name)} (the run says {getattr(run.encoder, name)})"
        for name in ("width", "depth", "heads", "mlp_ratio", "patch", "tubelet_size")
        if getattr(vit.shape, name) != getattr(run.encoder, name)
    ]
    if wrong:
        raise TubeletError(
            f"The encoder in {run.weights} is another one than the run's: {', '.join(wrong)}. Choose "
            "the recipe for its size, or leave out the recipe's name and the --encoder options: "
            "then the weights say it."
        )
    if clip.in_chans != vit.in_chans:
        raise TubeletError(
            f"The encoder in {run.weights} takes {vit.in_chans} channels: pass --in-chans "
            f"{vit.in_chans} instead of {clip.in_chans}."
        )
    vit.grid_for(clip.num_frames, *clip.size)
    return vit
