"""Models of ours as folders that Hugging Face's `from_pretrained` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.files import save_tensors
from tubelet.interop import huggingface_config as configs
from tubelet.interop import videomae
from tubelet.interop.found import Found
from tubelet.interop.huggingface import (
    BRANCH,
    DECODER_TABLE,
    FAMILIES,
    HEAD,
    NAME,
    SPLIT,
    TABLE,
    TRUNK,
    WEIGHTS,
    swap,
)
from tubelet.interop.names import renamed, some
from tubelet.interop.tables import POSITIONS, fixed_table


def model_type(found: Found) -> str:
    """Which of their families holds this model."""
    shape = found.header["backbone"]["shape"]
    if not (shape.get("tubelet_size") == 1 and shape.get("class_token")):
        return "videomae"
    return "vit" if found.kind == "encoder" else "vit_mae"


def write(found: Found) -> dict[str, Tensor]:
    """A model of ours -> its tensors under plain names; TubeletError for what has no place."""
    family = model_type(found)
    _require(found, family)
    table = (*TRUNK, *FAMILIES[family].decoder, *(HEAD if family == "videomae" else ()))
    split: dict[str, Tensor] = {}
    for name, value in found.weights.items():
        block, _, part = name.partition("attn.")
        if part == "qkv.weight":
            for key, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                split[f"{block}{SPLIT}{key}.weight"] = rows
        elif part in ("q_bias", "v_bias"):
            split[f"{block}{SPLIT}{'query' if part == 'q_bias' else 'value'}.bias"] = value
        elif name != POSITIONS:
            split[swap(name, 1, 0)] = value
    plain = renamed(split, table, back=True)
    if family != "videomae":
        plain |= _of_images(found, plain)
    return plain if _has_biases(found) else {n: v for n, v in plain.items() if not _is_bias(n)}


def _require(found: Found, family: str) -> None:
    """TubeletError for a model that this family cannot hold."""
    whose = f"Hugging Face's {family}"
    if family == "videomae":
        videomae.require(found, whose, position="sinusoid_1d", class_token=False)
    else:
        videomae.require(found, whose, tubelet_size=1, class_token=True)
        if found.kind == "classifier":
            raise TubeletError(
                f"{whose} has no place for this model: its head reads the mean of all tokens, where "
                "theirs reads the class token. Convert its encoder."
            )
    _require_size(found, whose, rebuilt=family == "videomae")
    if found.kind != "pretraining":
        return
    others = [name for name in found.weights if not name.startswith(("backbone.", BRANCH))]
    biased = f"{BRANCH}project.bias" in found.weights
    if others or "decoder" not in found.header["run"] or biased != (family == "vit_mae"):
        raise TubeletError(
            f"{whose} has no place for this model: expected one branch `pixels` with a decoder, and the "
            f"recipe that made it, as {FAMILIES[family].architectures['pretraining']} has."
            + (f" It has {some(others)}." if others else "")
        )


def _require_size(found: Found, whose: str, *, rebuilt: bool) -> None:
    """TubeletError for positions that are interpolated; `rebuilt`: theirs are made anew for any size."""
    clip, backbone = found.header["clip"], found.header["backbone"]
    size = [clip["num_frames"], *clip["size"]]
    made_anew = rebuilt and backbone["shape"]["positions"] == "rebuild"
    if size != list(backbone["trained"]) and not made_anew:
        raise TubeletError(
            f"{whose} has no place for this model: its positions are resized from those of clips of "
            f"{'x'.join(map(str, backbone['trained']))} to {'x'.join(map(str, size))}. Load it at its own "
            "size" + (", or with positions='rebuild'." if rebuilt else ".")
        )


def _of_images(found: Found, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What theirs of images hold beside the weights: tables, biases of keys, kernels of images."""
    kept = {} if found.origin is None else found.origin.kept
    learned = found.weights.get(POSITIONS)
    width: int = found.header["backbone"]["shape"]["width"]
    kernel = "embeddings.patch_embeddings.projection.weight"
    made = {
        kernel: plain[kernel].squeeze(2),
        TABLE: fixed_table(found.header, width, 1) if learned is None else learned[None],
    }
    if found.kind == "pretraining":
        width = found.header["run"]["decoder"]["width"]
        made[DECODER_TABLE] = fixed_table(found.header, width, 1)
    for name in [name for name in plain if name.endswith("query.bias")]:
        made[name.replace("query.", "key.")] = torch.zeros_like(plain[name])
    return {name: kept.get(name, value) for name, value in made.items()}


def _is_bias(name: str) -> bool:
    return SPLIT in name and name.endswith(".bias")


def _has_biases(found: Found) -> bool:
    """Whether queries and values have biases: not where the file had none and they are zero."""
    origin = found.origin
    if origin is None or origin.layout != NAME or any(map(_is_bias, origin.names.values())):
        return True
    ends = ("attn.q_bias", "attn.v_bias")
    return any(bool(value.any()) for name, value in found.weights.items() if name.endswith(ends))


def spell(found: Found, name: str) -> str:
    """The name in a new folder: as all versions of transformers read it."""
    family = model_type(found)
    trunk = name.startswith((*tuple(theirs for theirs, _ in TRUNK), TABLE))
    if family == "videomae":
        name = name.replace("query.bias", "q_bias").replace("value.bias", "v_bias")
    bare = found.kind == "encoder" and not _kept_classifier(found)
    return f"{FAMILIES[family].front}{name}" if trunk and not bare else name


def _kept_classifier(found: Found) -> bool:
    return found.origin is not None and "classifier.weight" in found.origin.kept


def write_folder(found: Found, state: Mapping[str, Tensor], folder: Path) -> None:
    """Config, weights and the preprocessor's config -> a folder that `from_pretrained` loads."""
    family = model_type(found)
    architecture = FAMILIES[family].architectures[found.kind]
    if family == "vit" and _kept_classifier(found):
        architecture = "ViTForImageClassification"
    kinds = [str(value.dtype).removeprefix("torch.") for value in state.values()]
    config = configs.config_of(
        *(found, family, architecture),
        dtype=max(set(kinds), key=kinds.count),
        biases=_has_biases(found),
    )
    if "classifier.weight" in state and "id2label" not in config:
        names = [f"LABEL_{number}" for number in range(len(state["classifier.weight"]))]
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(state, folder / WEIGHTS[0], {"format": "pt"})
    stated = configs.preprocessor_of(found, FAMILIES[family].processor)
    for name, said in ((configs.CONFIG, config), (configs.PREPROCESSOR, stated)):
        (folder / name).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")
