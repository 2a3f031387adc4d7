"""Compare tubelet with reference numbers: `python tests/parity/check.py DIR [DIR ...]`.

DIR holds `config.json`, `weights.safetensors` (published names) and `io.safetensors` (inputs,
outputs, losses, `grad.<published name>`), as described in tests/golden/README.md; for MVD also
`image_teacher.safetensors` and `video_teacher.safetensors`. Every tensor of `io.safetensors` is an
input or is compared; one without a counterpart is a failure. The error of a tensor is its largest
absolute difference over the reference's largest absolute value. Position tables among the weights
are fixed: they are named as not loaded, and one that is not equal to ours stops the check.
Of histograms of gradients 0.1 % of the cells may
differ, whose gradients lie on the edge of a bin. Exit code 1 if any error is above the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tubelet.backbones.mvit import MViT, MViTShape
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.decoders import DecoderShape, Joint
from tubelet.interop import mae, maskfeat, mvd, videomae
from tubelet.interop.names import Table, renamed
from tubelet.losses import mse
from tubelet.masks import pack
from tubelet.methods.mae import ImageMAE
from tubelet.methods.maskfeat import MaskFeat
from tubelet.methods.mvd import MVD, Distilled
from tubelet.model import Branch, Classifier, MaskedModel
from tubelet.shapes import ClipSpec
from tubelet.targets.pixels import Pixels
from tubelet.teachers import connect, load_teacher
from tubelet.train.checkpoint import apply_weights


@dataclass(frozen=True)
class Given:
    """What a folder holds."""

    folder: Path
    config: dict[str, Any]
    weights: Mapping[str, Tensor]
    io: Mapping[str, Tensor]


Case = Callable[[Given], dict[str, Tensor]]
KINDS = {"sinusoid-1d-flattened": "sinusoid_1d", "sincos-3d-separable": "sincos_3d"}


def shape_of(config: dict[str, Any], **options: Any) -> ViTShape:
    encoder = config["encoder"]
    return ViTShape(
        encoder["dim"],
        encoder["depth"],
        encoder["heads"],
        config["mlp_ratio"],
        config["patch_size"],
        config["tubelet_size"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        **options,
    )


def vit(config: dict[str, Any], **options: Any) -> ViT:
    return ViT(
        shape_of(config, position=KINDS[config["pos_embed"]]),
        trained=(config["num_frames"], config["img_size"], config["img_size"]),
        in_chans=config["in_chans"],
        **options,
    )


def unit_range(clip: Tensor, config: dict[str, Any]) -> Tensor:
    """The stored clip is normalised; our models take [0,1] and normalise themselves."""
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    return clip * std + mean


def clips_of(config: dict[str, Any]) -> ClipSpec:
    return ClipSpec(num_frames=config["num_frames"], size=(config["img_size"],) * 2)


def decoder_of(config: dict[str, Any]) -> DecoderShape:
    size = config["decoder"]
    return DecoderShape(size["dim"], size["depth"], size["heads"])


def gradients(
    model: torch.nn.Module, names_back: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {f"grad.{name}": grad for name, grad in names_back(grads).items()}


def backwards(table: Table) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    return lambda state: renamed(state, table, back=True)


def videomae_pretrain(given: Given) -> dict[str, Tensor]:
    config, io = given.config, given.io
    backbone = vit(config)
    decoder = Joint(
        backbone.dim,
        config["in_chans"] * config["tubelet_size"] * config["patch_size"] ** 2,
        decoder_of(config),
        trained=backbone.grid,
        position=backbone.shape.position,
    )
    target = Pixels(backbone.patch, config["in_chans"])
    model = MaskedModel(backbone, [Branch("pixels", decoder, target, mse)])
    apply_weights(model, renamed(given.weights, videomae.PRETRAIN), "the case")
    asked = ~io["decoder_mask"][:, None] if "decoder_mask" in io else None  # VideoMAE V2
    clip, masks = unit_range(io["clip"], config), pack(io["mask"][:, None], asked)
    total, weight = model(clip, masks)["loss"]
    loss = total / weight
    loss.backward()
    return {
        "pred": model.predict(clip, masks)["pixels"],
        "target": target(clip, masks.asked.flatten(1)),
        "loss": loss.reshape(1),
        **gradients(model, backwards(videomae.PRETRAIN)),
    }


def mvd_pretrain(given: Given) -> dict[str, Tensor]:
    config, io = given.config, given.io
    frames, side = config["num_frames"], config["img_size"]
    run = MVD(
        clip=clips_of(config),
        encoder=shape_of(config, position=KINDS[config["pos_embed"]]),
        decoder=decoder_of(config),
        drop_path=0.0,
        image=Distilled(width=config["image_teacher"]["dim"]),
        video=Distilled(width=config["video_teacher"]["dim"]),
    )
    model = run.model()
    apply_weights(model, mvd.from_published(given.weights, model), "the case")
    # The image teacher's file tells its size, by its table; the video teacher's does not.
    trained = {"image": None, "video": (frames, side, side)}
    teachers = {
        name: load_teacher(
            given.folder / f"{name}_teacher.safetensors",
            heads=config[f"{name}_teacher"]["heads"],
            trained=size,
        )
        for name, size in trained.items()
    }
    connect(model, teachers)
    print(f"  not loaded, equal to ours: {', '.join(mvd.TABLES)}, image_teacher's pos_embed")
    clip, masks = unit_range(io["clip"], config), pack(io["mask"][:, None])
    terms = model(clip, masks)
    (terms["loss"][0] / terms["loss"][1]).backward()
    found = gradients(model, backwards(mvd.PRETRAIN))
    for name, pred in model.predict(clip, masks).items():
        total, weight = terms[name]
        found[f"pred_{name}"] = pred
        found[f"loss_{name}"] = (total / weight).reshape(1)
        found[f"teacher_{name}"] = model.branches[name].target(clip)  # pyright: ignore
    return found


def image_mae_pretrain(given: Given) -> dict[str, Tensor]:
    config, io = given.config, given.io
    run = ImageMAE(
        clip=clips_of(config),
        encoder=shape_of(config, position="sincos_2d", class_token=True),
        decoder=decoder_of(config),
        normalise_target=config["norm_pix_loss"],
    )
    model = run.model()
    apply_weights(model, mae.from_published(given.weights, model), "the case")
    print(f"  not loaded, equal to ours: {', '.join(mae.TABLES)}")
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


def mvit_of(config: dict[str, Any]) -> MViTShape:
    """A stage begins where the width grows or the queries are pooled."""
    pooled = {block for block, *stride in config["pool_q_stride"] if max(stride) > 1}
    grows = {block: int(factor) for block, factor in config["dim_mul"]}
    heads = {block: int(factor) for block, factor in config["head_mul"]}
    starts = sorted({0} | pooled | set(grows))
    widths, counts = [config["embed_dim"]], [config["num_heads"]]
    for block in starts[1:]:
        widths.append(widths[-1] * grows.get(block, 1))
        counts.append(counts[-1] * heads.get(block, 1))
    ends = [*starts[1:], config["depth"]]
    return MViTShape(
        depths=tuple(end - start for start, end in zip(starts, ends, strict=True)),
        widths=tuple(widths),
        heads=tuple(counts),
        pool_kv=config["pool_kv_stride_adaptive"][1],
        mlp_ratio=config["mlp_ratio"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def maskfeat_pretrain(given: Given) -> dict[str, Tensor]:
    config, io = given.config, given.io
    model = MaskFeat(clip=clips_of(config), encoder=mvit_of(config)).model()
    ours = maskfeat.from_published(given.weights, maskfeat.PRETRAIN)
    apply_weights(model, ours, "the case")
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
        **gradients(model, lambda grads: maskfeat.names_back(grads, maskfeat.PRETRAIN)),
    }


def mvit_classifier(given: Given) -> dict[str, Tensor]:
    config = given.config
    frames, side = config["num_frames"], config["img_size"]
    backbone = MViT(mvit_of(config), trained=(frames, side, side), final_norm=False, masked=False)
    model = Classifier(backbone, config["num_classes"]).eval()
    ours = maskfeat.from_published(given.weights, maskfeat.CLASSIFIER)
    apply_weights(model, ours, "the case")
    return {"logits": model(unit_range(given.io["clip"], config))}


def classifier(given: Given) -> dict[str, Tensor]:
    config = given.config
    if "dim_mul" in config:
        return mvit_classifier(given)
    model = Classifier(vit(config, final_norm=False), config["num_classes"]).eval()
    apply_weights(model, renamed(given.weights, videomae.CLASSIFIER), "the case")
    clip = unit_range(given.io["clip"], config)
    tokens = model.forward_features(clip)
    logits = model(clip)
    logits.square().sum().backward()  # gradients of a case are those of this sum, where it has any
    return {
        "features": model.forward_head(tokens, pre_logits=True),
        "logits": logits,
        **gradients(model, backwards(videomae.CLASSIFIER)),
    }


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


def compare(folder: Path) -> dict[str, float]:
    """{tensor: largest relative error}; infinite for one without a counterpart or shape."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("method") not in CASES:
        raise SystemExit(f"{folder}: method {config.get('method')!r} is none of {sorted(CASES)}")
    io = load_file(folder / "io.safetensors")
    weights = load_file(folder / "weights.safetensors")
    ours = CASES[config["method"]](Given(folder, config, weights, io))
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
    return errors


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
        for name, error in compare(folder).items():
            bad = not error <= args.tolerance
            failed |= bad
            print(f"  {'FAIL' if bad else 'ok  '} {error:9.2e}  {name}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
