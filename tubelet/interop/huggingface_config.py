"""What config.json and preprocessor_config.json say of Hugging Face's models, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tubelet.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, statistics
from tubelet.backbones.layers import NORM_EPS, hidden_of
from tubelet.backbones.vit import ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop.found import Found
from tubelet.interop.sizes import HEADS

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
# Of transformers, where a config leaves these out.
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 12,
    "decoder_num_attention_heads": 6,
    "image_size": 224,
    "num_frames": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "use_mean_pooling": True,
    "norm_pix_loss": True,
}
IMAGE_DEFAULTS = DEFAULTS | {
    "decoder_num_attention_heads": 16,
    "norm_pix_loss": False,
}
KINDS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def settled(config: Mapping[str, Any], defaults: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A config with its defaults; TubeletError for a field that is read here and is of another type."""
    found = {**defaults, **config}
    for name, usual in defaults.items():
        value = found[name]
        kinds = (int, float) if isinstance(usual, float) else (type(usual),)
        right = type(value) in kinds and (type(usual) is not int or 0 < value <= 1 << 16)
        if name != "image_size" and not right:
            expected = "a positive number" if type(usual) is int else f"one like {usual!r}"
            raise TubeletError(f"{path}: {name} is {value!r}, where {expected} is expected.")
    size_of(found["image_size"], path)
    return found


def size_of(said: Any, path: Path) -> tuple[int, int]:
    """image_size, a number or (height, width) -> height and width."""
    pair = [said, said] if isinstance(said, int) else said
    whole = isinstance(pair, list | tuple) and [type(n) for n in pair] == [int, int]
    if not whole or min(pair) < 1:
        raise TubeletError(
            f"{path}: image_size is {said!r}, where one or two numbers are expected."
        )
    return pair[0], pair[1]


def check(
    config: Mapping[str, Any],
    shape: ViTShape,
    in_chans: int,
    decoder: DecoderShape | None,
    path: Path,
) -> None:
    """TubeletError where the config says other sizes than the tensors have, or what ours cannot be."""
    act = config.get("hidden_act", "gelu")
    if act != "gelu":
        raise TubeletError(f"{path}: hidden_act is {act!r}, and the networks here have gelu alone.")
    held = _sizes(shape, in_chans)
    if decoder is not None:
        held |= _decoder_sizes(decoder)
    for heads in ("num_attention_heads", "decoder_num_attention_heads"):
        held.pop(heads, None)  # no tensor tells them
    wrong = [
        f"{name} {config[name]} in the config, {value} in the tensors"
        for name, value in held.items()
        if config.get(name, value) != value
    ]
    if wrong:
        raise TubeletError(
            f"The weights in {path} are not those of its {CONFIG}: {'; '.join(wrong)}. Put the two that "
            "belong together into one folder."
        )


def notes(config: Mapping[str, Any], heads: int, width: int) -> list[str]:
    """What a user should know of a config that is followed, or is not."""
    found: list[str] = []
    eps = config["layer_norm_eps"]
    if eps != NORM_EPS:
        found.append(
            f"layer_norm_eps is {eps:g} in {CONFIG}: read as {NORM_EPS:g}, what published models were "
            "trained with"
        )
    usual = HEADS.get(width)
    if usual not in (None, heads):
        found.append(
            f"{heads} heads for width {width}, as {CONFIG} says, where published models have {usual}: "
            f"some conversions are wrong in this (--heads {usual} says otherwise)"
        )
    return found


def classes_of(config: Mapping[str, Any], outputs: int, path: Path) -> tuple[str, ...]:
    """The names of the classes; () where the config has transformers' own, LABEL_0 and so on."""
    said: Mapping[str, str] = config.get("id2label") or {}
    try:
        names = {int(number): str(name) for number, name in said.items()}
    except (ValueError, AttributeError) as error:
        raise TubeletError(
            f"{path}: id2label is {said!r}, where names by number are expected."
        ) from error
    if names and sorted(names) != list(range(outputs)):
        raise TubeletError(
            f"The weights in {path} are not those of its {CONFIG}: id2label names {len(names)} classes, "
            f"and the head has {outputs}."
        )
    usual = all(name == f"LABEL_{number}" for number, name in names.items())
    return () if usual else tuple(names[number] for number in range(outputs))


def label_kind(config: Mapping[str, Any]) -> str:
    """single, multi or regression."""
    said = config.get("problem_type")
    return next((ours for ours, theirs in KINDS.items() if theirs == said), "single")


def pixels_of(stated: Mapping[str, Any], in_chans: int, path: Path) -> dict[str, Any]:
    """A preprocessor's config -> mean and std of pixels in [0,1], as fields of a shape; those of
    ImageNet are left out, as ours are."""
    factor = stated.get("rescale_factor", 1 / 255) if stated.get("do_rescale", True) else 1.0
    scale = 255 * _positive("rescale_factor", factor, path)
    plain = not stated.get("do_normalize", True)
    mean = [0.0] * in_chans if plain else stated.get("image_mean", IMAGENET_MEAN)
    std = [1.0] * in_chans if plain else stated.get("image_std", IMAGENET_STD)
    for name, values in (("image_mean", mean), ("image_std", std)):
        numbers = isinstance(values, list | tuple) and all(type(v) in (int, float) for v in values)
        if not numbers or len(values) != in_chans:
            raise TubeletError(
                f"{path / PREPROCESSOR}: {name} is {values!r}, where the network has {in_chans} channels."
            )
    for value in std:
        _positive("image_std", value, path)
    if abs(scale - 1) > 1e-6:
        mean, std = [m / scale for m in mean], [s / scale for s in std]
    if (tuple(mean), tuple(std)) == (IMAGENET_MEAN, IMAGENET_STD):
        return {}
    return {"mean": tuple(mean), "std": tuple(std)}


def _positive(name: str, value: Any, path: Path) -> float:
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise TubeletError(
            f"{path / PREPROCESSOR}: {name} is {value!r}, where a positive number is expected."
        )
    return value


def view_of(stated: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """A preprocessor's config -> how test crops are cut, as fields of a `ClipSpec`."""
    found: dict[str, Any] = {}
    said = stated.get("size")  # a number, in old ones
    edge = said.get("shortest_edge") if isinstance(said, Mapping) else said
    if stated.get("do_center_crop") and isinstance(edge, int) and edge > min(size):
        found["crop_pct"] = min(size) / edge
    if stated.get("resample") == RESAMPLE["bicubic"]:
        found["interpolation"] = "bicubic"
    return found


def config_of(
    found: Found, model_type: str, architecture: str, *, dtype: str, biases: bool
) -> dict[str, Any]:
    """A checkpoint in our terms -> config.json; `biases`: whether queries, keys and values have any."""
    backbone, run, clip = found.header["backbone"], found.header["run"], found.header["clip"]
    fields = dict(backbone["shape"])
    shape = ViTShape(
        **{
            name: fields[name]
            for name in ("width", "depth", "heads", "mlp_ratio", "patch", "tubelet_size")
        }
    )
    height, width = clip["size"]
    made: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        **_sizes(shape, backbone["in_chans"]),
        "image_size": height if height == width else [height, width],
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": NORM_EPS,
        "qkv_bias": biases,
        "torch_dtype": dtype,
    }
    if model_type == "videomae":
        made |= {"num_frames": clip["num_frames"], "use_mean_pooling": not backbone["final_norm"]}
    else:
        del made["tubelet_size"]
    if found.kind == "pretraining":
        decoder = DecoderShape(**run["decoder"])
        made |= {**_decoder_sizes(decoder), "norm_pix_loss": run.get("normalise_target", True)}
    if model_type == "vit_mae":
        made["mask_ratio"] = run.get("mask_ratio", 0.75)
    if found.kind == "classifier":
        made |= _labels(found.header)
    return made


def _sizes(shape: ViTShape, in_chans: int) -> dict[str, int]:
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": hidden_of(shape.width, shape.mlp_ratio),
        "patch_size": shape.patch,
        "tubelet_size": shape.tubelet_size,
        "num_channels": in_chans,
    }


def _decoder_sizes(decoder: DecoderShape) -> dict[str, int]:
    return {
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": hidden_of(decoder.width, decoder.mlp_ratio),
    }


def _labels(header: Mapping[str, Any]) -> dict[str, Any]:
    names = header["classes"] or [f"LABEL_{i}" for i in range(header["outputs"])]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": KINDS.get(header["label_kind"]),
    }


def preprocessor_of(found: Found, processor: str) -> dict[str, Any]:
    """A checkpoint in our terms -> preprocessor_config.json: how a test clip is cut and normalised."""
    backbone, clip = found.header["backbone"], found.header["clip"]
    shape = backbone["shape"]
    mean, std = statistics(backbone["in_chans"], tuple(shape["mean"]), tuple(shape["std"]))
    height, width = clip["size"]
    edge = round(min(height, width) / clip["crop_pct"])
    made: dict[str, Any] = {
        "image_processor_type": processor,
        "do_resize": True,
        "size": {"shortest_edge": edge},
        "resample": RESAMPLE[clip["interpolation"]],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if processor == "ViTImageProcessor":  # which cuts no crop
        del made["do_center_crop"], made["crop_size"]
        made["size"] = {"height": height, "width": width}
    return made
