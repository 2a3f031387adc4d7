"""Teachers' features computed once for fixed crops, and training from them without teachers.

Epoch e of a run that trains from a cache uses crop e % crops of each video: the frames and the crop
that an ordinary run draws in that epoch. Masks go on to follow the true epoch. With as many crops
as epochs the run is the one with live teachers, up to the rounding to float16.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tubelet.data.cache import (
    FILE,
    FORMAT,
    INDEX,
    VIEW,
    FeatureCache,
    Layout,
    differences,
    layout_of,
    one_sample_a_video,
    open_cache,
    read_header,
    write_shard,
)
from tubelet.data.clips import ClipDataset, Key, collate
from tubelet.data.lists import VideoList
from tubelet.data.loader import Unreadable
from tubelet.data.workers import batches_of
from tubelet.errors import TubeletError
from tubelet.files import replace_file
from tubelet.methods.run import Pretraining
from tubelet.model import MaskedModel
from tubelet.shapes import Batch
from tubelet.targets.features import Features, Teacher, in_bf16
from tubelet.teachers import connect
from tubelet.train import parallel

log = logging.getLogger("tubelet")

LARGEST = 65504.0  # of float16


def make(
    run: Pretraining,
    videos: VideoList,
    teachers: Mapping[str, Teacher],
    out: Path,
    *,
    crops: int,
    shard_clips: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes what is missing of the cache in `out`; under torchrun each process a part of it.

    Raises TubeletError: nothing to compute, another cache in `out`, a disk that is too small or
    full, features beyond float16.
    """
    _check(run, teachers, crops, shard_clips)
    with parallel.processes(run.train.device) as place:
        model = run.model()
        views = connect(model, teachers)
        header: dict[str, Any] = _described(run, videos, model, list(teachers)) | {
            "format": FORMAT,
            "dtype": "float16",
            "source": videos.source,
            "branches": list(teachers),
            "crops": crops,
            "shard_clips": shard_clips,
        }
        for name, teacher in teachers.items():
            low = in_bf16(_target(model, name).precision, place.device)
            header["teachers"][name] |= {
                "name": teacher.name,
                "digest": teacher.digest,
                "precision": "bf16" if low else "float32",
            }
        layout = layout_of(header)
        todo = _begin(out, header, layout, place.main)
        mine = [shard for shard in todo if shard % place.world == place.rank]
        dataset = ClipDataset(
            videos,
            run.clip,
            run.augment,
            seed=run.train.seed,
            views=views,
            decoder=run.video_decoder,
            max_unreadable=run.max_unreadable,
        )
        targets = {name: _target(model, name).to(place.device) for name in teachers}
        for target in targets.values():
            target.norm_feature = False  # kept raw: the run that reads them normalises
        chunks = _computed(dataset, layout, mine, targets, run, place, progress)
        for shard, of_shard in zip(mine, chunks, strict=True):
            write_shard(out, layout, shard, of_shard)


def _check(run: Pretraining, teachers: Mapping[str, Teacher], crops: int, shard_clips: int) -> None:
    if not teachers or not hasattr(run, "feature_cache"):
        raise TubeletError(
            f"This {type(run).__name__} learns from no frozen network whose features can be kept: "
            "choose a run of MVD with teachers, such as mvd:base_from_base_k400."
        )
    if crops < 1 or shard_clips < 1:
        raise TubeletError(
            f"{crops} crops in shards of {shard_clips} clips: expected at least 1 of each."
        )
    one_sample_a_video(run.num_sample)


def _begin(out: Path, header: dict[str, Any], layout: Layout, main: bool) -> list[int]:
    """Claims the folder -> the shards to be made, for which there is room."""
    if out.exists() and not out.is_dir():
        raise TubeletError(f"The output folder {out} is a file. Pass another folder.")
    before = read_header(out)
    wrong = [] if before is None else [*differences(_that_counts(before), _that_counts(header))]
    if wrong:
        raise TubeletError(
            f"{out} holds a feature cache for something else: {'; '.join(wrong)}. Pass another "
            "folder, or remove that one."
        )
    todo = layout.missing(out)
    if main:
        _tell(out, layout, todo)
    _room(out, layout.size_bytes(todo))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if before is None and main:
            replace_file(out / FILE, lambda path: path.write_text(json.dumps(header, indent=1)))
    except OSError as error:
        raise TubeletError(
            f"The feature cache cannot be begun in {out}: {error.strerror or error}. Make the folder "
            "writable, or pass another one."
        ) from error
    return todo


def _that_counts(header: Mapping[str, Any]) -> dict[str, Any]:
    """Without where videos and teachers lay: fingerprint and digests say which they are."""
    teachers = {
        name: {key: value for key, value in one.items() if key != "name"}
        for name, one in header["teachers"].items()
    }
    rest = {key: value for key, value in header.items() if key != "source"}
    return rest | {"teachers": teachers}


def _tell(out: Path, layout: Layout, todo: Sequence[int]) -> None:
    widths = " + ".join(f"{width} ({name})" for name, width in layout.widths.items())
    log.info(
        "%s: %d crops of %d videos, %d tokens x %s as float16: %s in %d shards",
        out,
        layout.crops,
        layout.videos,
        layout.tokens,
        widths,
        _size(layout.size_bytes(range(layout.shards))),
        layout.shards,
    )
    if len(todo) < layout.shards:
        log.info(
            "%d of %d shards are there already: going on with the other %d",
            layout.shards - len(todo),
            layout.shards,
            len(todo),
        )


def _room(out: Path, needed: int) -> None:
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise TubeletError(
            f"The feature cache needs {_size(needed)} on the disk of {out}, and {_size(free)} are "
            "free; nothing was written. Take fewer --crops, a shorter list or another disk, or train "
            "with live teachers."
        )


def _size(number: int) -> str:
    """Bytes for people: 4.81 MB."""
    power = next((p for p in (4, 3, 2, 1) if number >= 1000**p), 0)
    return f"{number / 1000**power:.{2 if power else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _computed(
    dataset: ClipDataset,
    layout: Layout,
    shards: Sequence[int],
    targets: Mapping[str, Features],
    run: Pretraining,
    place: parallel.Place,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Iterator[dict[str, np.ndarray[Any, Any]]]]:
    """For each shard its chunks of at most `micro_batch` clips, as `write_shard` takes them."""
    keys = [_keys(layout, shard, run.train.micro_batch) for shard in shards]
    flat = [chunk for of_shard in keys for chunk in of_shard]
    pin = place.device.type == "cuda"
    batches = batches_of(dataset, flat, collate, run.train.workers, pin)
    unreadable = Unreadable(len(dataset), dataset.max_unreadable)
    done, of = 0, sum(map(len, flat))

    def chunks(number: int) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        nonlocal done
        for _ in range(number):
            batch = next(batches)
            unreadable.note(batch.unreadable, len(batch.paths))
            yield _features(batch, targets, place.device)
            done += len(batch.paths)
            if progress is not None:
                progress(done, of)

    for of_shard in keys:
        yield chunks(len(of_shard))


def _keys(layout: Layout, shard: int, at_once: int) -> list[list[Key]]:
    entries = layout.entries(shard)
    keys = [Key(*divmod(entry, layout.videos)) for entry in entries]
    return [keys[at : at + at_once] for at in range(0, len(keys), at_once)]


@torch.inference_mode()
def _features(
    batch: Batch, targets: Mapping[str, Features], device: torch.device
) -> dict[str, np.ndarray[Any, Any]]:
    """A batch -> {"index": int64 [B], "features_<teacher>": float16 [B,N,P]}."""
    arrays: dict[str, np.ndarray[Any, Any]] = {INDEX: batch.index.numpy()}
    views = batch.to(device, non_blocking=True).views
    for name, target in targets.items():
        features = target(views[target.view].float() / 255)
        largest = features.abs().amax((1, 2))
        beyond = (~(largest <= LARGEST)).nonzero().flatten().tolist()  # also what is not a number
        if beyond:
            raise TubeletError(
                f"The {name} teacher's features of {batch.paths[beyond[0]]} reach "
                f"{largest[beyond[0]]:g}, and float16 ends at {LARGEST:g}: this teacher cannot be "
                f"kept in a cache. Choose another block (--{name}.layer), or train with it live."
            )
        arrays[VIEW + name] = features.half().cpu().numpy()
    return arrays


# --- training from it ------------------------------------------------------------------------


def opened(run: Pretraining) -> FeatureCache | None:
    """The cache that the run names, of the teachers that it learns from; None where it names none."""
    if not run.cached_features:
        return None
    cache = open_cache(run.cached_features)
    names = [name for name in run.teachers() if name in cache.teachers]
    if not names:
        raise TubeletError(
            f"The feature cache {cache.folder} holds features of {', '.join(cache.teachers)}, and "
            f"this run learns from {', '.join(run.teachers()) or 'no frozen network'}."
        )
    return cache.of(names)


def widths(cache: FeatureCache | None) -> dict[str, int]:
    """Of the cached teachers' features."""
    return {} if cache is None else {name: cache.layout.widths[name] for name in cache.teachers}


def sources(cache: FeatureCache | None) -> dict[str, dict[str, str]]:
    """{branch: name and digest of the teacher}, for the header of the run."""
    if cache is None:
        return {}
    known = cache.header["teachers"]
    return {name: {key: known[name][key] for key in ("name", "digest")} for name in cache.teachers}


def attach(
    cache: FeatureCache | None,
    run: Pretraining,
    videos: VideoList,
    model: MaskedModel,
    teachers: Mapping[str, Teacher],
) -> dict[str, Teacher]:
    """Lets branches learn from the cache -> the teachers of the others.

    TubeletError where the cache was made for something else. A teacher given for a cached branch
    is compared with the one of the cache, and not used.
    """
    if cache is None:
        return dict(teachers)
    wrong = list(differences(cache.header, _described(run, videos, model, cache.teachers)))
    for name, known in sources(cache).items():
        given = teachers.get(name)
        if given is not None and given.digest != known["digest"]:
            wrong.append(
                f"the {name} teacher: {known['name']} (weights {known['digest']}) in the cache, "
                f"{given.name} (weights {given.digest}) here"
            )
    if wrong:
        raise TubeletError(
            f"The feature cache {cache.folder}, made from {cache.header['source']}, is not for this "
            f"run on {videos.source}: {'; '.join(wrong)}. Give the run what the cache was made with, "
            "or make another cache with `tubelet cache`."
        )
    for name in cache.teachers:
        _target(model, name).view = VIEW + name
    return {name: teacher for name, teacher in teachers.items() if name not in cache.teachers}


def _described(
    run: Pretraining, videos: VideoList, model: MaskedModel, teachers: Sequence[str]
) -> dict[str, Any]:
    """All that decides what the features are, beside the teachers' weights."""
    branches: dict[str, dict[str, Any]] = {}
    for name in teachers:
        target = _target(model, name)
        of_target = {"width": target.width, "layer": target.layer, "size": target.size}
        branches[name] = of_target | run.teacher_options(name)
    clip = asdict(run.clip)
    for evaluations in ("crop_pct", "interpolation"):  # training crops have the augmentation's
        del clip[evaluations]
    if run.clip.sampling != "dense_fps":
        del clip["target_fps"]
    augment = asdict(run.augment)
    if run.augment.pixels == "exact":  # as all were before there was another way
        del augment["pixels"]
    return {
        "list": {"videos": len(videos), "fingerprint": videos.fingerprint()[:16]},
        "seed": run.train.seed,
        "clip": clip,
        "augment": augment,
        "grid": list(run.grid),
        "teachers": branches,
    }


def _target(model: MaskedModel, name: str) -> Features:
    target: Any = model.branches[name].target
    assert isinstance(target, Features), name  # `run.teachers` names no other branches
    return target
