"""Compare tubelet with reference numbers: `python tests/parity/check.py DIR [DIR ...]`.

DIR holds `config.json`, `weights.safetensors` (published names) and `io.safetensors` (inputs,
outputs, losses, `grad.<published name>`), as described in tests/golden/README.md. Every tensor of
`io.safetensors` is an input or is compared; one without a counterpart is a failure. The error of
a tensor is its largest absolute difference over the reference's largest absolute value.
Exit code 1 if any error is above the tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tubelet.backbones.vit import ViT, ViTShape
from tubelet.decoders import DecoderShape, Joint
from tubelet.interop import videomae
from tubelet.interop.names import Table, renamed
from tubelet.losses import mse
from tubelet.masks import pack
from tubelet.model import Branch, Classifier, MaskedModel
from tubelet.targets.pixels import Pixels
from tubelet.train.checkpoint import apply_weights

Case = Callable[[dict[str, Any], Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
KINDS = {"sinusoid-1d-flattened": "sinusoid_1d", "sincos-3d-separable": "sincos_3d"}


def vit(config: dict[str, Any], **options: Any) -> ViT:
    encoder = config["encoder"]
    shape = ViTShape(
        encoder["dim"],
        encoder["depth"],
        encoder["heads"],
        config["mlp_ratio"],
        config["patch_size"],
        config["tubelet_size"],
        position=KINDS[config["pos_embed"]],  # pyright: ignore[reportArgumentType]
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    return ViT(
        shape,
        trained=(config["num_frames"], config["img_size"], config["img_size"]),
        in_chans=config["in_chans"],
        **options,
    )


def unit_range(clip: Tensor, config: dict[str, Any]) -> Tensor:
    """The stored clip is normalised; our models take [0,1] and normalise themselves."""
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1, 1) for name in ("mean", "std"))
    return clip * std + mean


def gradients(model: torch.nn.Module, table: Table) -> dict[str, Tensor]:
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {f"grad.{name}": grad for name, grad in renamed(grads, table, back=True).items()}


def videomae_pretrain(
    config: dict[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    backbone = vit(config)
    size = config["decoder"]
    decoder = Joint(
        backbone.dim,
        config["in_chans"] * config["tubelet_size"] * config["patch_size"] ** 2,
        DecoderShape(size["dim"], size["depth"], size["heads"]),
        trained=backbone.grid,
        position=backbone.shape.position,
    )
    target = Pixels(backbone.patch, config["in_chans"])
    model = MaskedModel(backbone, [Branch("pixels", decoder, target, mse)])
    apply_weights(model, renamed(weights, videomae.PRETRAIN), "the case")
    clip, masks = unit_range(io["clip"], config), pack(io["mask"][:, None])
    total, weight = model(clip, masks)["loss"]
    loss = total / weight
    loss.backward()
    return {
        "pred": model.predict(clip, masks)["pixels"],
        "target": target(clip, masks.asked.flatten(1)),
        "loss": loss.reshape(1),
        **gradients(model, videomae.PRETRAIN),
    }


def classifier(
    config: dict[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    model = Classifier(vit(config, final_norm=False), config["num_classes"]).eval()
    apply_weights(model, renamed(weights, videomae.CLASSIFIER), "the case")
    clip = unit_range(io["clip"], config)
    tokens = model.forward_features(clip)
    logits = model(clip)
    logits.square().sum().backward()  # gradients of a case are those of this sum, where it has any
    return {
        "features": model.forward_head(tokens, pre_logits=True),
        "logits": logits,
        **gradients(model, videomae.CLASSIFIER),
    }


INPUTS = {"clip", "mask"}
CASES: dict[str, Case] = {"videomae": videomae_pretrain, "classifier": classifier}


def compare(folder: Path) -> dict[str, float]:
    """{tensor: largest relative error}; infinite for one without a counterpart or shape."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("method") not in CASES:
        raise SystemExit(f"{folder}: method {config.get('method')!r} is none of {sorted(CASES)}")
    io = load_file(folder / "io.safetensors")
    ours = CASES[config["method"]](config, load_file(folder / "weights.safetensors"), io)
    errors = {}
    for name in sorted(set(io) - INPUTS):
        mine = ours.get(name)
        if mine is None or mine.shape != io[name].shape:
            errors[name] = float("inf")
            continue
        scale = io[name].double().abs().max().clamp_min(1e-30)
        errors[name] = float((mine.detach().double() - io[name].double()).abs().max() / scale)
    return errors


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
