"""Compare tubelet with reference numbers: `python tests/parity/check.py DIR [DIR ...]`.

DIR holds `config.json`, `weights.safetensors` (published names) and `io.safetensors` (inputs,
outputs, losses, `grad.<published name>`), as described in tests/golden/README.md; for MVD also
`image_teacher.safetensors` and `video_teacher.safetensors`. Every tensor of `io.safetensors` is an
input or is compared; one without a counterpart is a failure. The error of a tensor is its largest
absolute difference over the reference's largest absolute value. Position tables among the weights
are fixed: one that is not equal to ours stops the check. Of histograms of gradients 0.1 % of the cells
may differ, whose gradients lie on the edge of a bin.

Weights are read by `tubelet.load`, which is told what they do not say: heads, sizes, positions. Then
they are written back in their own layout, directly and by way of a file of ours, and must be the file's,
bit by bit. Exit code 1 if they are not, or if any error is above the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tubelet import stored
from tubelet.errors import TubeletError
from tubelet.interop import layouts, mae, maskfeat, mvd, videomae
from tubelet.interop.names import Table, renamed
from tubelet.masks import pack
from tubelet.model import VideoModel
from tubelet.teachers import connect, load_teacher


@dataclass(frozen=True)
class Given:
    """What a folder holds; `trips`: what became of each file on its way back."""

    folder: Path
    config: dict[str, Any]
    weights: Mapping[str, Tensor]
    io: Mapping[str, Tensor]
    trips: dict[str, str] = field(default_factory=dict)


Case = Callable[[Given], dict[str, Tensor]]
KINDS = {"sinusoid-1d-flattened": "sinusoid_1d", "sincos-3d-separable": "sincos_3d"}


def loaded(given: Given, file: str = "weights", **told: Any) -> Any:
    """The model of a file of the folder, by `tubelet.load`, once the way back was tried."""
    path = given.folder / f"{file}.safetensors"
    model = stored.load(path, **told)
    given.trips[file] = round_trip(path, model)
    as_normalised(model, given.config)
    return model


def round_trip(path: Path, model: VideoModel) -> str:
    """ "" where the model gives the file back bit by bit, names, their order and precision included:
    directly, and through a file of ours; else what differs."""
    with safe_open(path, framework="pt") as file:
        before = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layout = model.origin.layout
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours.safetensors"), Path(folder, "theirs.safetensors")
        stored.save(model, ours)
        again = stored.load(ours)
        layouts.write(stored.found_of(again), layout, theirs)
        ways = {
            "directly": layouts.state_of(stored.found_of(model), layout),
            "through a file of ours": layouts.state_of(stored.found_of(again), layout),
            "in the file written": load_file(theirs),
        }
        for way, after in ways.items():
            names = set(before) ^ set(after)
            names |= {n for n in set(before) & set(after) if not same(before[n], after[n])}
            if names:
                return f"{way}, {len(names)} tensors differ: {', '.join(sorted(names)[:4])}"
            if list(after) != list(before) and way != "in the file written":  # it has its own order
                return f"{way}, the order of the names differs"
    return ""


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(-1), b.view(-1))


def as_normalised(model: torch.nn.Module, config: dict[str, Any]) -> None:
    """Pixels are normalised as the config says: no file of weights does."""
    for module in model.modules():
        for name, values in module.named_buffers(recurse=False):
            if name in ("mean", "std") and values.numel() == len(config[name]):
                values.copy_(torch.tensor(config[name]).view_as(values))


def told_of(config: dict[str, Any], *, decoder: bool = False) -> dict[str, Any]:
    """What the weights do not say of themselves."""
    told = {"heads": config["encoder"]["heads"], "trained": clips_of(config)}
    return told | ({"decoder_heads": config["decoder"]["heads"]} if decoder else {})


def unit_range(clip: Tensor, config: dict[str, Any]) -> Tensor:
    """The stored clip is normalised; our models take [0,1] and normalise themselves."""
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    return clip * std + mean


def clips_of(config: dict[str, Any]) -> tuple[int, int, int]:
    """Frames, height, width."""
    size = config["img_size"]
    height, width = size if isinstance(size, list) else (size, size)
    return config["num_frames"], height, width


def gradients(
    model: torch.nn.Module, names_back: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Of every parameter that has one, under the names in its file."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    origin: Any = model.origin
    theirs = {} if origin is None else {plain: name for name, plain in origin.names.items()}
    return {f"grad.{theirs.get(n, n)}": grad for n, grad in names_back(grads).items()}


def backwards(table: Table) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    return lambda state: renamed(state, table, back=True)


def videomae_pretrain(given: Given) -> dict[str, Tensor]:
    config, io = given.config, given.io
    model = loaded(given, position=KINDS[config["pos_embed"]], **told_of(config, decoder=True))
    asked = ~io["decoder_mask"][:, None] if "decoder_mask" in io else None  # VideoMAE V2
    clip, masks = unit_range(io["clip"], config), pack(io["mask"][:, None], asked)
    total, weight = model(clip, masks)["loss"]
    loss = total / weight
    loss.backward()
    return {
        "pred": model.predict(clip, masks)["pixels"],
        "target": model.branches["pixels"].target(clip, masks.asked.flatten(1)),
        "loss": loss.reshape(1),
        **gradients(model, backwards(videomae.PRETRAIN)),
    }


def mvd_pretrain(given: Given) -> dict[str, Tensor]:
    config, io = given.config, given.io
    model = loaded(given, position=KINDS[config["pos_embed"]], **told_of(config, decoder=True))
    kinds = {"image": "sincos_2d", "video": "sinusoid_1d"}
    teachers = {}
    for name in model.branches:
        told = {"heads": config[f"{name}_teacher"]["heads"], "position": kinds[name]}
        # The image teacher's file tells its size, by its table, of a square; the video teacher's not.
        frames, *size = clips_of(config)
        if name == "video" or size[0] != size[1]:
            told["trained"] = (frames if name == "video" else 1, *size)
        loaded(given, f"{name}_teacher", **told)
        teachers[name] = load_teacher(given.folder / f"{name}_teacher.safetensors", **told)
        as_normalised(teachers[name].module, config)
    connect(model, teachers)
    clip, masks = unit_range(io["clip"], config), pack(io["mask"][:, None])
    terms = model(clip, masks)
    (terms["loss"][0] / terms["loss"][1]).backward()
    found = gradients(model, backwards(mvd.PRETRAIN))
    for name, pred in model.predict(clip, masks).items():
        total, weight = terms[name]
        found[f"pred_{name}"] = pred
        found[f"loss_{name}"] = (total / weight).reshape(1)
        found[f"teacher_{name}"] = model.branches[name].target(clip)
    return found


def image_mae_pretrain(given: Given) -> dict[str, Tensor]:
    config, io = given.config, given.io
    model = loaded(given, position="sincos_2d", **told_of(config, decoder=True))
    model.branches["pixels"].target.normalise = config["norm_pix_loss"]
    clip = unit_range(io["image"].unsqueeze(2), config)
    hidden = io["mask"][:, None].bool()
    masks = pack(hidden, torch.ones_like(hidden))  # all are predicted, the hidden ones count
    total, _ = model(clip, masks)["loss"]
    loss = total / hidden.sum()
    loss.backward()
    return {
        "pred": model.predict(clip, masks)["pixels"],
        "loss": loss.reshape(1),
        **gradients(model, mae.names_back),
    }


def told_of_mvit(config: dict[str, Any]) -> dict[str, Any]:
    """What the weights of a multiscale network do not say of themselves."""
    pooled = tuple(block for block, *stride in config["pool_q_stride"] if max(stride) > 1)
    pool_kv = config["pool_kv_stride_adaptive"][1]
    return {"pooled": pooled, "pool_kv": pool_kv, "trained": clips_of(config)}


def maskfeat_pretrain(given: Given) -> dict[str, Tensor]:
    config, io = given.config, given.io
    model = loaded(given, **told_of_mvit(config))
    hidden = io["mask"].bool()
    for axis, size in enumerate(model.backbone.grid):
        hidden = hidden.repeat_interleave(size // hidden.shape[axis + 1], axis + 1)
    clip, masks = unit_range(io["clip"], config), pack(hidden.flatten(1)[:, None], replace=True)
    total, weight = model(clip, masks)["loss"]
    loss = total / weight
    loss.backward()
    counts = masks.weight[:, 0] > 0  # theirs are gathered over the batch, without padding
    target: Any = model.branches["hog"].target
    return {
        "pred": model.predict(clip, masks)["hog"][counts],
        "hog_map": target.histograms(clip),
        "target": target(clip, masks.asked.flatten(1))[counts],
        "loss": loss.reshape(1),
        **gradients(model, lambda grads: maskfeat.names_back(grads, "pretraining")),
    }


def mvit_classifier(given: Given) -> dict[str, Tensor]:
    model = loaded(given, **told_of_mvit(given.config))
    return {"logits": model(unit_range(given.io["clip"], given.config))}


def classifier(given: Given) -> dict[str, Tensor]:
    config = given.config
    if "dim_mul" in config:
        return mvit_classifier(given)
    model = loaded(given, position=KINDS[config["pos_embed"]], **told_of(config))
    clip = unit_range(given.io["clip"], config)
    tokens = model.forward_features(clip)
    logits = model(clip)
    logits.square().sum().backward()  # gradients of a case are those of this sum, where it has any
    return {
        "features": model.forward_head(tokens, pre_logits=True),
        "logits": logits,
        **gradients(model, backwards(videomae.CLASSIFIER)),
    }


NEEDED = ("config.json", "weights.safetensors", "io.safetensors")
INPUTS = {"clip", "image", "mask", "decoder_mask"}
HISTOGRAMS = ("hog_map", "target")
CASES: dict[str, Case] = {
    "videomae": videomae_pretrain,
    "videomae_v2": videomae_pretrain,
    "mvd": mvd_pretrain,
    "image_mae": image_mae_pretrain,
    "maskfeat": maskfeat_pretrain,
    "classifier": classifier,
}


def compare(folder: Path) -> tuple[dict[str, float], dict[str, str]]:
    """{tensor: largest relative error}; infinite for one without a counterpart or shape. And what
    became of each file on its way back, by a line: "" for one that is as it was."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise SystemExit(f"{folder} is no case with weights: it has no {' and no '.join(missing)}")
    config = json.loads((folder / "config.json").read_text())
    if config.get("method") not in CASES:
        raise SystemExit(f"{folder}: method {config.get('method')!r} is none of {sorted(CASES)}")
    io = load_file(folder / "io.safetensors")
    weights = load_file(folder / "weights.safetensors")
    given = Given(folder, config, weights, io)
    ours = CASES[config["method"]](given)
    errors = {}
    for name in sorted(set(io) - INPUTS):
        mine = ours.get(name)
        if mine is None or mine.shape != io[name].shape:
            errors[name] = float("inf")
            continue
        scale = io[name].double().abs().max().clamp_min(1e-30)
        error = (mine.detach().double() - io[name].double()).abs() / scale
        if config["method"] == "maskfeat" and name in HISTOGRAMS:
            error = _apart_from_edges(error, name)
        errors[name] = float(error.max())
    return errors, given.trips


def _apart_from_edges(error: Tensor, name: str) -> Tensor:
    """The errors of cells, less the 0.1 % that a gradient on the edge of a bin may change."""
    bins = 3 if name == "hog_map" else error.dim() - 1
    cells = error.amax(bins).flatten().sort().values
    return cells[: len(cells) - int(len(cells) / 1000)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    args = parser.parse_args()
    failed = False
    for folder in args.folder:
        print(folder.name)
        try:
            errors, trips = compare(folder)
        except TubeletError as error:
            print(f"  FAIL {error}", file=sys.stderr)
            failed = True
            continue
        for name, error in errors.items():
            bad = not error <= args.tolerance
            failed |= bad
            print(f"  {'FAIL' if bad else 'ok  '} {error:9.2e}  {name}")
        for file, wrong in trips.items():
            failed |= bool(wrong)
            count = len(load_file(folder / f"{file}.safetensors"))
            told = wrong or f"{count:3} tensors bit-identical"
            print(f"  {'FAIL' if wrong else 'ok  '} round trip  {told}  {file}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
