"""Teachers by where they are: runs of ours, checkpoints of others, networks of your own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import stored
from tubelet.backbones.backbone import Backbone
from tubelet.backbones.positions import PositionKind, PositionMode
from tubelet.backbones.vit import ViT
from tubelet.errors import TubeletError
from tubelet.interop import huggingface_teacher as huggingface
from tubelet.interop.found import NOTHING, Told
from tubelet.model import Classifier, MaskedModel
from tubelet.targets.features import Features, Sees, Teacher
from tubelet.targets.ids import Ids, PseudoLabels


def load_teacher(
    source: str | Path,
    *,
    positions: PositionMode | None = None,
    position: PositionKind | None = None,
    heads: int | None = None,
    trained: tuple[int, int, int] | None = None,
    logits: bool = False,
    told: Told = NOTHING,
) -> Teacher:
    """A network by where it is -> a teacher; whatever does not fit is an error.

    Args:
        source: a run folder or checkpoint of ours; a published file (see `tubelet.load`); the local
            folder of a Hugging Face model; or `./mine.py:function`, which returns a `Teacher`.
        positions: how an encoder of ours or a published one takes another size than the one
            that it was trained at; None: as it was trained, or by interpolation.
        position: kind of a published file's positions, where the file does not tell it.
        heads: of a published file's attention, where its width is none of the published.
        trained: frames, height and width of a published file's clips, where not 16x224x224.
        logits: what a fine-tuned run of ours says of its classes, not its encoder's features.
        told: further things that a file does not say; see `tubelet.load`.
    """
    module, _, function = str(source).rpartition(":")
    given = {"position": position, "heads": heads, "trained": trained}
    told = replace(told, **{name: value for name, value in given.items() if value is not None})
    if is_code(source):
        _unasked(source, told.said())
        return _of_function(Path(module), function)
    path = Path(source)
    if not path.exists():
        raise TubeletError(
            f"There is no teacher at {source}. Expected a run's folder, a checkpoint, a file of "
            "published weights, the local folder of a Hugging Face model, or ./mine.py:function."
        )
    if path.is_dir() and huggingface.is_folder(path):
        _unasked(source, told.said())
        return huggingface.load_folder(path)
    if logits:
        return _of_classes(path, told)
    encoder, _ = stored.encoder_of(path, told=told)
    if isinstance(encoder, ViT):
        encoder.positions.mode = positions or encoder.positions.mode
    elif positions is not None:
        _unasked(source, {"positions": positions})
    return teacher_of(encoder, name=str(source))


def is_code(source: str | Path) -> bool:
    """Whether this names a function in a Python file, which is run to make the teacher."""
    module, colon, _ = str(source).rpartition(":")
    return bool(colon) and module.endswith(".py")


def _unasked(source: str | Path, said: Mapping[str, Any]) -> None:
    if said:
        raise TubeletError(
            f"{source} says its {' and '.join(said)} itself: leave {'that' if len(said) == 1 else 'them'} "
            "out. They are for published files, which do not."
        )


def _of_classes(path: Path, told: Told) -> Teacher:
    """A run that was fine-tuned on single labels -> a teacher that gives its logits."""
    found = classifier(path, told)
    kind = found.module.card.label_kind
    if kind != "single":
        raise TubeletError(
            f"{path} was fine-tuned on labels of the kind {kind!r}, which have no probabilities that "
            "add up to 1: pass a run that was fine-tuned on single labels, or ./mine.py:function."
        )
    return found


def classifier(source: str | Path, told: Told = NOTHING) -> Teacher:
    """A fine-tuned model -> a teacher that gives its outputs before softmax or sigmoid,
    [B,outputs] a clip or frame; its `module` is the `Classifier`, with its card."""
    path = Path(source)
    model = stored.load(path, told=told)
    if not isinstance(model, Classifier):
        raise TubeletError(
            f"{path} was pretrained and has no classes to learn from: pass a run that was fine-tuned, "
            f"as by `tubelet finetune --weights {path} --data LABELLED --out runs/NAME`."
        )
    channels = model.backbone.in_chans
    return Teacher(
        model,
        width=model.num_classes,
        patch=model.backbone.patch,
        sees=_sees(model.backbone),
        mean=(0.0,) * channels,  # it normalises by itself
        std=(1.0,) * channels,
        name=str(source),
    )


def teacher_of(encoder: Backbone, *, name: str = "") -> Teacher:
    """An encoder of ours as a teacher: of single frames if it is one of images, else of clips."""
    return Teacher(
        encoder,
        width=encoder.dim,
        patch=encoder.patch,
        sees=_sees(encoder),
        read=_block,
        mean=(0.0,) * encoder.in_chans,  # it normalises by itself
        std=(1.0,) * encoder.in_chans,
        name=name,
        in_threads=True,
    )


def _sees(encoder: Backbone) -> Sees:
    return "frames" if encoder.trained[0] == 1 else "clip"


def _block(encoder: Backbone, x: Tensor, layer: int) -> Tensor:
    return encoder(x, layers=[layer], norm=False).layers[0]


def _of_function(file: Path, function: str) -> Teacher:
    """`file`:`function` -> the teacher that it returns."""
    spec = importlib.util.spec_from_file_location(f"tubelet_teacher_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise TubeletError(f"There is no file {file} to take a teacher from.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    with _of_user(file):
        spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == spec.name]
        raise TubeletError(
            f"{file} has no function {function!r}. It has: {', '.join(own) or 'none'}."
        )
    with _of_user(f"{file}:{function}"):
        made = make()
    if not isinstance(made, Teacher):
        raise TubeletError(
            f"{file}:{function} returned {type(made).__name__}: expected a "
            "tubelet.targets.features.Teacher."
        )
    return made


@contextmanager
def _of_user(what: Any) -> Generator[None, None, None]:
    """What fails within is no fault of ours."""
    try:
        yield
    except TubeletError:
        raise
    except Exception as error:
        raise TubeletError(
            f"The teacher of {what} was not made: {type(error).__name__}: {error}."
        ) from error


def connect(model: MaskedModel, teachers: Mapping[str, Teacher]) -> dict[str, tuple[int, int]]:
    """Gives the branches their teachers -> the views that these want beside the student's clip.

    A teacher that is no encoder of ours is tried on one black clip: what it says of its tokens
    has to be true before the first step.
    """
    views: dict[str, tuple[int, int]] = {}
    for name, teacher in teachers.items():
        target: Any = getattr(model.branches[name], "target", None)
        if not isinstance(target, Features):
            raise TubeletError(
                f"The branch {name} learns from {type(target).__name__}, no teacher."
            )
        channels = model.backbone.in_chans
        if len(teacher.mean) != channels:
            raise TubeletError(
                f"The teacher {teacher.name} takes {len(teacher.mean)} channels, and the student's "
                f"clips have {channels} (--in-chans): both must see the same pixels."
            )
        target.connect(teacher)
        if not isinstance(teacher.module, Backbone):
            _try(target, teacher, channels)
        elif isinstance(target, (Ids, PseudoLabels)):
            raise TubeletError(
                f"The teacher {teacher.name} is an encoder, whose features are neither ids nor scores of "
                "classes: pass a fine-tuned run for pseudo_labels, or ./mine.py:function."
            )
        else:
            teacher.module.check_layer(target.layer)
        if target.view_size is not None:
            views[target.view] = target.view_size
    return views


def _try(target: Features, teacher: Teacher, channels: int) -> None:
    frames, *size = target.clip_shape
    black = torch.zeros(1, channels, frames, *(target.view_size or size))
    try:
        target(black.to(teacher.mean.device))
    except TubeletError:
        raise
    except Exception as error:
        shape = "x".join(map(str, black.shape[2:]))
        raise TubeletError(
            f"The teacher {teacher.name} ({type(teacher.module).__name__}) failed on a clip of "
            f"{shape} in layout {teacher.layout}: {type(error).__name__}: {error}. State its layout, "
            "size and num_frames as they are."
        ) from error
