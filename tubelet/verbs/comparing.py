"""Models side by side: similarity."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tubelet import stored
from tubelet.analysis import similarity as analysis
from tubelet.analysis.similarity import Similarity, SimilarityConfig
from tubelet.backbones.backbone import Backbone
from tubelet.errors import TubeletError
from tubelet.interop import huggingface_teacher as huggingface
from tubelet.interop.found import NOTHING, Told, Unsaid
from tubelet.shapes import ClipSpec
from tubelet.targets.features import Teacher
from tubelet.tasks.windows import paths_of
from tubelet.teachers import load_teacher
from tubelet.train import checkpoint


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
    paths = paths_of(videos)
    clip = clip or compared_clip(models)
    result = analysis.similarity(models, paths, clip, config, progress=progress)
    if out is not None:
        result.write(out)
    return result


def compared(models: Sequence[str | Path | Teacher], told: Told = NOTHING) -> dict[str, Teacher]:
    """Models to compare, loaded, by names that tell them apart: the ends of their paths.

    `told`: of those that are files of others; see `tubelet.load`.
    """
    loaded = _loaded(models, told)
    parts = [Path(teacher.name).parts for teacher in loaded]
    if len(set(parts)) < len(parts):
        same = next(teacher.name for teacher in loaded if parts.count(Path(teacher.name).parts) > 1)
        raise TubeletError(f"{same} was given twice: each model is compared with others once.")
    most = max((len(part) for part in parts), default=0)
    names = [["/".join(part[-length:]) for part in parts] for length in range(1, most + 1)]
    distinct = next((ends for ends in names if len(set(ends)) == len(ends)), [])
    return dict(zip(distinct, loaded, strict=True))


def _loaded(models: Sequence[str | Path | Teacher], told: Told) -> list[Teacher]:
    """What was told is of the one file of others; of several, each gets what it asks for."""
    foreign = [m for m in models if not isinstance(m, Teacher) and _asks(Path(m))]
    if len(foreign) == 1:
        said = {foreign[0]: told}
    else:
        said = {model: _asked(model, told) for model in foreign}
        idle = sorted(set(told.said()) - {n for some in said.values() for n in some.said()})
        if idle:
            raise TubeletError(
                f"None of the models asks for {' and '.join(idle)}: leave {'that' if len(idle) == 1 else 'them'} "
                "out. Where they are to overrule what is taken as published, compare files of tubelet: "
                "tubelet convert FILE NAME.safetensors --to tubelet."
            )
    return [
        m if isinstance(m, Teacher) else load_teacher(m, told=said.get(m, NOTHING)) for m in models
    ]


def _asks(path: Path) -> bool:
    """Whether it is a file of others that may not say all of itself; a Hugging Face model does."""
    there = path.exists() and not stored.is_ours(path)
    return there and not (path.is_dir() and huggingface.is_folder(path))


def _asked(model: str | Path, told: Told) -> Told:
    """Of what was told, what this file does not say."""
    said: dict[str, Any] = {}
    while True:  # an answer can lead to further questions
        try:
            stored.header_of(model, Told(encoder_only=True, **said))
        except Unsaid as unsaid:
            new = {question.name for question in unsaid.questions} & set(told.said()) - set(said)
            if not new:
                raise
            said |= {name: getattr(told, name) for name in new}
        else:
            return Told(**said)


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
    if isinstance(model.module, Backbone):
        with contextlib.suppress(TubeletError):  # weights of others name no clip
            return stored.card_of(checkpoint.read_header(model.name), model.name).clip
        frames, *size = model.module.trained
    frames = 1 if model.sees == "frames" else model.num_frames or frames
    return replace(usual, num_frames=frames, size=model.size or (size[0], size[1]))
