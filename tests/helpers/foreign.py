"""Files of others, made by the tests: small networks with random weights, under their names."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tubelet import stored
from tubelet.backbones.positions import PositionKind
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.decoders import DecoderShape
from tubelet.interop import layouts
from tubelet.methods.mae import ImageMAE, image
from tubelet.methods.mvd import MVD, Distilled
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Card, Classifier, MaskedModel, VideoModel
from tubelet.shapes import ClipSpec

CLIP = ClipSpec(num_frames=8, size=(32, 32))
FRAME = ClipSpec(num_frames=1, sampling_rate=1, size=(32, 32))
SHAPE = ViTShape(48, 2, 3, patch=8)
DECODER = DecoderShape(32, 1, 2)
TOLD: dict[str, Any] = {"heads": 3, "trained": (8, 32, 32)}
DECODED: dict[str, Any] = {**TOLD, "decoder_heads": 2}


def randomised(model: Any) -> Any:
    """Away from the initialisation, where biases are zero and norms are one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def carded(model: Any, clip: ClipSpec) -> Any:
    model.card = Card(clip=clip)
    return randomised(model)


def videomae_model(clip: ClipSpec = CLIP, shape: ViTShape = SHAPE) -> MaskedModel:
    return carded(VideoMAE(clip=clip, encoder=shape, decoder=DECODER).model(), clip)


def student_model(clip: ClipSpec = CLIP, shape: ViTShape = SHAPE, **run: Any) -> MaskedModel:
    taught: dict[str, Any] = {"image": Distilled(width=32), "video": Distilled(width=40), **run}
    shape = replace(shape, position="sincos_3d")
    return carded(MVD(clip=clip, encoder=shape, decoder=DECODER, **taught).model(), clip)


def mae_model(clip: ClipSpec = FRAME, shape: ViTShape = SHAPE) -> MaskedModel:
    return carded(ImageMAE(clip=clip, encoder=image(shape), decoder=DECODER).model(), clip)


def classifier_model(
    position: PositionKind = "sinusoid_1d", clip: ClipSpec = CLIP, **shape: Any
) -> Classifier:
    shape_ = replace(SHAPE, position=position, **shape)
    trained = (clip.num_frames, *clip.size)
    return carded(Classifier(ViT(shape_, trained=trained, final_norm=False), 5), clip)


def encoder_model(
    position: PositionKind = "learned", clip: ClipSpec = FRAME, **shape: Any
) -> MaskedModel:
    """With its last norm."""
    shape = {"class_token": True, "tubelet_size": 1, **shape}
    shape_ = replace(SHAPE, position=position, **shape)
    return carded(MaskedModel(ViT(shape_, trained=(clip.num_frames, *clip.size)), []), clip)


def theirs(model: VideoModel, layout: str) -> dict[str, Tensor]:
    """A model of ours under the names of a layout's files."""
    return {n: v.clone() for n, v in layouts.state_of(stored.found_of(model), layout).items()}


def save(path: Path, state: dict[str, Tensor], wrapper: str = "model", **settings: Any) -> Path:
    """A file as training scripts write it, settings beside the weights; or safetensors."""
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
        return path
    told = argparse.Namespace(opt_betas=[0.9, 0.95], mask="tube", **settings)
    wrapped = {wrapper: state, "epoch": "best", "args": told} if wrapper else state
    torch.save(wrapped, path)
    return path


def features(model: nn.Module, clip: Tensor) -> Tensor:
    """Un-normed outputs of the last block: what a teacher is read for."""
    backbone: Any = model.backbone
    return backbone(clip, layers=[-1], norm=False).layers[0]


def same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Names, their order, precision and every bit."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
