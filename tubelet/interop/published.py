"""Encoders out of published weight files: VideoMAE, MVD and image MAE, in all their wrappers.

Nothing in such a file says what network it is for, so sizes are read from the shapes, the layout
from the names, and what neither tells (heads, trained clips, positions) from what is known of
the published files, or from the caller. Every name is accounted for.
"""

from __future__ import annotations

import argparse
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tubelet.backbones.positions import PositionKind, Positions
from tubelet.backbones.vit import ViTShape
from tubelet.errors import TubeletError
from tubelet.interop.mae import to_frames
from tubelet.interop.names import some
from tubelet.interop.tables import check_table
from tubelet.shapes import Patch

PATCHES = "patch_embed.proj.weight"
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}  # of the published widths
TRAINED = (16, 224, 224)  # frames, height, width of the clips, where a file says nothing else
DEEPSPEED = "mp_rank_00_model_states.pt"  # in a folder checkpoint-<epoch>
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")

# Beside the encoder's, by layout; what is no part of a teacher: decoders, heads, the last norm.
VIDEOMAE_REST = ("decoder.", "encoder_to_decoder.", "mask_token", "head.", "fc_norm.", "norm.")
MVD_REST = (
    *("norm.", "down_img.", "down_vid.", "decoder_img.", "decoder_vid.", "mask_token_img"),
    *("mask_token_vid", "pos_embed_img", "pos_embed_vid", "head.", "fc_norm."),
)
MAE_REST = ("norm.", "mask_token", "decoder_", "head.", "fc_norm.")


@dataclass(frozen=True)
class Encoder:
    """What a file holds: enough to build `ViT(shape, trained=..., final_norm=False)`."""

    weights: dict[str, Tensor]  # float32, under our names
    shape: ViTShape
    trained: tuple[int, int, int]
    in_chans: int


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A weights file, or DeepSpeed's folder -> its state dict and the settings saved with it.

    Wrappers are taken off: `model` (PyTorch), or `module` (DeepSpeed). Of the file only tensors,
    plain values and an `argparse.Namespace` are read: it can run no code.
    """
    path = path / DEEPSPEED if path.is_dir() else path
    try:
        if path.suffix == ".safetensors":
            return load_file(path), {}
        with torch.serialization.safe_globals([argparse.Namespace]):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise TubeletError(
            f"{path} cannot be read as weights: {str(error).splitlines()[0]}. Expected a file of "
            "tensors, written by torch.save or safetensors."
        ) from error
    settings = vars(found["args"]) if isinstance(found, dict) and "args" in found else {}
    for wrapper in ("model", "module"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
            break
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise TubeletError(
            f"{path} holds no state dict: expected tensors by name, or a dict with them under "
            f"'model' or 'module'; it holds {_held(found)}."
        )
    return found, settings


def read_encoder(
    path: Path,
    *,
    heads: int | None = None,
    trained: tuple[int, int, int] | None = None,
    position: PositionKind | None = None,
) -> Encoder:
    """A published file -> its encoder. TubeletError for a name that its layout does not have.

    Args:
        heads: of attention; default: of the published width.
        trained: frames, height and width of the clips; default: as the file's position table
            and settings say, else 16x224x224.
        position: kind of positions; needed for fine-tuned files alone, which do not tell it.
    """
    state, settings = read_file(path)
    state = _unprefixed(state, path)
    if PATCHES not in state:
        raise TubeletError(
            f"{path} is in none of the layouts that are known (VideoMAE, MVD, image MAE; with or "
            f"without 'encoder.' in front): it has no {PATCHES}. It holds "
            f"{some(sorted(state)) or 'nothing'}."
        )
    kind, rest = _layout(state, position, path)
    kept = to_frames({n: v for n, v in state.items() if not n.startswith(rest)})
    table = kept.pop("pos_embed", None)
    named = {"class_token" if n == "cls_token" else n: v.float() for n, v in kept.items()}
    shape, in_chans = _shape(named, kind, heads, path)
    size = trained or _trained(table, shape, settings, path)
    if table is not None:
        patch = Patch(shape.tubelet_size, shape.patch, shape.patch)
        check_table(
            "pos_embed", table[0], Positions(kind, shape.width, patch.grid_for(*size)).table
        )
    return Encoder(named, shape, size, in_chans)


def _unprefixed(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without `encoder.` in front, which VideoMAE's pretraining has and some of its files lack."""
    found = {name.removeprefix("encoder."): value for name, value in state.items()}
    if len(found) < len(state):
        twice = sorted(n for n in state if n.startswith("encoder.") and n[8:] in state)
        raise TubeletError(f"{path} holds tensors with and without 'encoder.': {some(twice)}.")
    return found


def _layout(
    state: Mapping[str, Tensor], position: PositionKind | None, path: Path
) -> tuple[PositionKind, tuple[str, ...]]:
    """-> the kind of positions, and what a file of this layout holds beside its encoder."""
    if state[PATCHES].dim() == 4:
        return position or "sincos_2d", MAE_REST
    if "pos_embed" in state:
        return position or "sincos_3d", MVD_REST
    labelled = any(name.startswith(("head.", "fc_norm.")) for name in state)
    if labelled and position is None:
        raise TubeletError(
            f"{path} is fine-tuned, and VideoMAE's and MVD's fine-tuned files differ in nothing but "
            "their positions, which are not in them. Say which it is: --image.position or "
            "--video.position (load_teacher(path, position=...)) sinusoid_1d for VideoMAE, "
            "sincos_3d for MVD."
        )
    return position or "sinusoid_1d", VIDEOMAE_REST


def _shape(
    weights: Mapping[str, Tensor], kind: PositionKind, heads: int | None, path: Path
) -> tuple[ViTShape, int]:
    """-> the encoder's sizes and channels, from the shapes of its tensors under our names."""
    width, in_chans, tubelet, patch, across = weights[PATCHES].shape
    hidden = weights.get("blocks.0.mlp.fc1.weight")
    if hidden is None or patch != across:
        raise TubeletError(
            f"{path} is no vision transformer that is known: expected blocks with mlp.fc1, and square "
            f"patches; its patches are {patch}x{across} and it holds {some(sorted(weights))}."
        )
    if heads is None and width not in HEADS:
        raise TubeletError(
            f"{path} has width {width}, and does not say how many heads its attention has. It is "
            f"known for the widths {', '.join(map(str, HEADS))}; for others give "
            "load_teacher(path, heads=...)."
        )
    shape = ViTShape(
        width=width,
        depth=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        heads=heads or HEADS[width],
        mlp_ratio=hidden.shape[0] / width,
        patch=patch,
        tubelet_size=tubelet,
        position=kind,
        class_token="class_token" in weights,
    )
    return shape, in_chans


def _trained(
    table: Tensor | None, shape: ViTShape, settings: Mapping[str, Any], path: Path
) -> tuple[int, int, int]:
    """Frames, height and width of the clips: by the position table, else by the settings."""
    frames = 1 if shape.tubelet_size == 1 else int(settings.get("num_frames", TRAINED[0]))
    side = int(settings.get("input_size", TRAINED[1]))
    if table is None:
        return frames, side, side
    cells = table.shape[1] - (1 if shape.position == "sincos_2d" and shape.class_token else 0)
    slots = frames // shape.tubelet_size
    side = math.isqrt(cells // slots)
    if slots * side**2 != cells:
        raise TubeletError(
            f"{path} has {cells} positions, which are no square for each of {slots} time slots "
            f"({frames} frames): give load_teacher(path, trained=(frames, height, width))."
        )
    return frames, side * shape.patch, side * shape.patch


def _held(found: Any) -> str:
    if isinstance(found, dict):
        return some([f"{k} ({type(v).__name__})" for k, v in found.items()]) or "an empty dict"
    return f"a {type(found).__name__}"
