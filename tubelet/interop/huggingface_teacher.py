"""Hugging Face's vision models (transformers 5) as teachers.

What a model sees, its tokens and its size are read from its config; the features are what its
blocks put out, before any last norm.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.interop.names import some
from tubelet.shapes import Patch
from tubelet.targets.features import Sees, Teacher


@dataclass(frozen=True)
class Family:
    """How the models of one type are fed, in words of their config."""

    network: str  # class of transformers that holds the encoder
    sees: Sees
    layout: Literal["BCHW", "BTCHW"]
    argument: str = "pixel_values"
    tower: str = ""  # where a larger model (with a decoder, or text) keeps the encoder
    image_size: str = "image_size"
    num_frames: str = ""  # where it takes clips of this many alone
    class_token: bool = True
    any_size: bool = False  # it resizes its positions itself
    options: tuple[tuple[str, Any], ...] = ()  # of its forward
    rest: tuple[str, ...] = ()  # names of weights that are no part of the encoder


FAMILIES = {
    "dinov2": Family(
        "Dinov2Model", "frames", "BCHW", tower="dinov2", any_size=True, rest=("classifier.",)
    ),
    "dinov2_with_registers": Family(
        *("Dinov2WithRegistersModel", "frames", "BCHW"),
        tower="dinov2_with_registers",
        any_size=True,
        rest=("classifier.",),
    ),
    "clip_vision_model": Family(
        *("CLIPVisionModel", "frames", "BCHW"),
        tower="vision_model",
        rest=("text_model.", "visual_projection.", "text_projection.", "logit_scale"),
    ),
    "videomae": Family(
        *("VideoMAEModel", "clip", "BTCHW"),
        tower="videomae",
        num_frames="num_frames",
        class_token=False,
        rest=("decoder.", "encoder_to_decoder.", "mask_token", "classifier.", "fc_norm."),
    ),
    "vjepa2": Family(
        *("VJEPA2Model", "clip", "BTCHW", "pixel_values_videos"),
        tower="vjepa2",
        image_size="crop_size",
        class_token=False,
        options=(("skip_predictor", True),),
        rest=("pooler.", "classifier."),
    ),
}
PREPROCESSORS = (
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
)


def huggingface_teacher(
    model: nn.Module,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str = "",
) -> Teacher:
    """A DINOv2, CLIP, VideoMAE or V-JEPA 2 model -> a teacher.

    `mean`, `std`: of each channel in [0,1], as its processor normalises; a model alone does not
    know them. Models for images see the first frame of each of the student's tubelets. DINOv2
    takes any size that its patch divides; the others only their own, and the clip is resized.
    A model that holds more than the encoder (CLIP's text tower, VideoMAE's decoder) is taken apart.
    """
    family = _family(getattr(model, "config", None))
    tower: Any = getattr(model, family.tower, model)
    config: Any = tower.config
    side, tubelet = getattr(config, family.image_size), getattr(config, "tubelet_size", 1)
    depth: int = config.num_hidden_layers

    def read(network: Any, x: Tensor, layer: int) -> Tensor:
        if not -depth <= layer < depth:
            raise TubeletError(f"Layer {layer} does not exist: {name} has blocks 0 to {depth - 1}.")
        given = {family.argument: x, "output_hidden_states": True, **dict(family.options)}
        states = network(**given).hidden_states  # the embedding, then each block's
        return states[1 + layer % depth]

    name = name or config.name_or_path or type(model).__name__
    return Teacher(
        tower,
        width=config.hidden_size,
        patch=Patch(tubelet, config.patch_size, config.patch_size),
        sees=family.sees,
        read=read,
        mean=tuple(mean or ()),
        std=tuple(std or ()),
        layout=family.layout,
        size=None if family.any_size else (side, side),
        num_frames=getattr(config, family.num_frames) if family.num_frames else None,
        prefix=int(family.class_token) + getattr(config, "num_register_tokens", 0),
        name=name,
    )


def is_folder(path: Path) -> bool:
    """Whether a folder holds a Hugging Face model: its config.json names a type of model."""
    config = path / "config.json"
    return config.is_file() and "model_type" in _json(config)


def load_folder(path: Path) -> Teacher:
    """A local folder of a model (config.json, weights, preprocessor_config.json) -> a teacher."""
    try:
        import transformers
    except ImportError as error:
        raise TubeletError(
            f"{path} is a Hugging Face model, and reading it needs transformers: "
            "pip install 'tubelet[hf]'."
        ) from error
    library: Any = transformers
    mean, std = statistics(path)
    family = _family(library.AutoConfig.from_pretrained(path, local_files_only=True))
    try:
        model, told = getattr(library, family.network).from_pretrained(
            path, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise TubeletError(f"The model in {path} cannot be loaded: {error}") from error
    # transformers gives what is missing random values, and leaves out what it has no place for.
    missing = sorted(told["missing_keys"])
    unknown = sorted(k for k in told["unexpected_keys"] if not k.startswith(family.rest))
    if missing or unknown:
        raise TubeletError(
            f"The weights in {path} do not fit its config.json ({family.network}): missing "
            f"{some(missing) or 'none'}; without a place {some(unknown) or 'none'}."
        )
    return huggingface_teacher(model, mean, std, name=str(path))


def statistics(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std of pixels in [0,1] that a model's folder states."""
    for file in PREPROCESSORS:
        if not (path / file).is_file():
            continue
        stated = _json(path / file)
        stated = stated.get("image_processor") or stated.get("video_processor") or stated
        if "image_mean" in stated and "image_std" in stated:
            return tuple(stated["image_mean"]), tuple(stated["image_std"])
    raise TubeletError(
        f"The normalisation of the model in {path} is not known: no {' or '.join(PREPROCESSORS)} there "
        "states image_mean and image_std. Put the one that came with the model there, or make the "
        "teacher in a function of your own: huggingface_teacher(model, mean=..., std=...)."
    )


def _family(config: Any) -> Family:
    kind = {"clip": "clip_vision_model"}.get(
        getattr(config, "model_type", ""), getattr(config, "model_type", "")
    )
    if kind not in FAMILIES:
        raise TubeletError(
            f"Hugging Face models of type {kind or 'none'!r} are not known as teachers: "
            f"{', '.join(FAMILIES)} are. Give another network as Teacher(module, width=..., "
            "patch=..., sees=..., mean=..., std=..., read=...)."
        )
    return FAMILIES[kind]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TubeletError(f"{path} cannot be read as JSON: {error}") from error
    return found if isinstance(found, dict) else {}
