"""What cannot be taken from Hugging Face's folders, or written as one, is one error that says why."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from theirs import (
    CLIP,
    SHAPE,
    change,
    classifier,
    folder_of,
    theirs_classifier,
    theirs_pretrained,
    vit,
    written,
)

import tubelet
from tubelet import stored
from tubelet.backbones.vit import ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.methods.mvd import MVD
from tubelet.model import Card
from tubelet.shapes import ClipSpec


def test_biases_that_a_config_has_and_the_weights_lack_are_an_error(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path / "theirs")
    weights = load_file(path / "model.safetensors")
    gone = ("q_bias", "v_bias", "query.bias", "value.bias")
    save_file(
        {n: v for n, v in weights.items() if not n.endswith(gone)}, path / "model.safetensors"
    )
    with pytest.raises(TubeletError, match=r"attn\.q_bias is missing"):
        tubelet.load(path)


def test_contradictions_are_errors(tmp_path: Path) -> None:
    path = folder_of(theirs_pretrained(), tmp_path)
    change(path, hidden_size=96, decoder_num_hidden_layers=3)
    with pytest.raises(
        TubeletError,
        match="hidden_size 96 in the config, 48 in the tensors; decoder_num_hidden_layers 3 in the config, 2",
    ):
        tubelet.load(path)
    path = folder_of(theirs_classifier(), tmp_path / "b")
    change(path, id2label={"0": "jump", "1": "run"})
    with pytest.raises(TubeletError, match="id2label names 2 classes, and the head has 3"):
        tubelet.load(path)
    path = folder_of(vit(), tmp_path / "c")
    change(path, image_size=64)
    with pytest.raises(TubeletError, match="has 16 positions, and an image_size of 64 64 tokens"):
        tubelet.load(path)


def test_what_ours_cannot_be_is_refused(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(use_mean_pooling=False), tmp_path / "token")
    with pytest.raises(
        TubeletError, match=r"use_mean_pooling False\) reads one token.*encoder_only=True"
    ):
        tubelet.load(path)
    assert tubelet.load(path, encoder_only=True).backbone.norm.weight.shape == (48,)
    path = folder_of(theirs_pretrained(use_mean_pooling=True), tmp_path / "unnormed")
    with pytest.raises(TubeletError, match="has no norm after its encoder"):
        tubelet.load(path)
    path = folder_of(theirs_classifier(hidden_act="relu"), tmp_path / "relu")
    with pytest.raises(TubeletError, match="hidden_act is 'relu'"):
        tubelet.load(path)
    path = folder_of(theirs_classifier(), tmp_path / "said")
    with pytest.raises(TubeletError, match=r"says its positions itself \(sinusoid_1d\)"):
        tubelet.load(path, position="sincos_3d")
    change(path, model_type="bert")
    with pytest.raises(TubeletError, match="type 'bert': known are videomae, vit, vit_mae"):
        tubelet.load(path)
    vit().save_pretrained(tmp_path / "vit")
    with pytest.raises(TubeletError, match=r"has no preprocessor_config\.json"):
        tubelet.load(tmp_path / "vit")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_attention_heads", "4"),
        ("num_frames", 0),
        ("image_size", [32, 32, 32]),
        ("image_size", 0),
        ("layer_norm_eps", None),
        ("use_mean_pooling", "yes"),
        ("id2label", ["jump", "run", "sit"]),
        ("model_type", ["videomae"]),
    ],
)
def test_a_config_of_wrong_types_is_one_error(name: str, value: Any, tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path)
    change(path, **{name: value})
    with pytest.raises(TubeletError, match=name if name != "model_type" else "known are videomae"):
        tubelet.load(path)


@pytest.mark.parametrize(
    "stated",
    [
        {"image_std": [0.0] * 3},
        {"image_mean": 0.5},
        {"image_mean": ["a", "b", "c"]},
        {"rescale_factor": "1/255"},
        {"rescale_factor": 0},
    ],
)
def test_a_preprocessor_of_wrong_values_is_one_error(stated: Any, tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path, **stated)
    with pytest.raises(TubeletError, match=next(iter(stated))):
        tubelet.load(path)
    folder_of(theirs_classifier(), tmp_path, size=40, do_center_crop=True)  # as in old ones
    assert tubelet.load(path).card.clip.crop_pct == 0.8


def test_tensors_of_wrong_shapes_are_one_error(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path)
    file = path / "model.safetensors"
    weights = load_file(file)
    block = "videomae.encoder.layer.1."
    shapes = {
        "videomae.embeddings.patch_embeddings.projection.weight": (48,),
        f"{block}attention.attention.key.weight": (48, 40),
        f"{block}output.dense.weight": (40, 192),
    }
    for name, shape in shapes.items():
        save_file({**weights, name: torch.zeros(shape)}, file, {"format": "pt"})
        with pytest.raises(TubeletError):
            tubelet.load(path)
    path = folder_of(vit(), tmp_path / "vit")
    file, name = path / "model.safetensors", "embeddings.position_embeddings"
    save_file({**load_file(file), name: torch.zeros(17)}, file, {"format": "pt"})
    with pytest.raises(TubeletError, match=r"position_embeddings is \[17\]: expected \[1,N,48\]"):
        tubelet.load(path)


def test_missing_and_further_tensors_are_errors(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path)
    file = path / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "extra.weight": torch.ones(1)}, file, {"format": "pt"})
    with pytest.raises(TubeletError, match=r"no place for: extra\.weight"):
        tubelet.load(path)
    gone = "videomae.encoder.layer.1.attention.attention.key.weight"
    save_file({k: v for k, v in weights.items() if k != gone}, file, {"format": "pt"})
    with pytest.raises(TubeletError, match="attention"):
        tubelet.load(path)
    file.unlink()
    with pytest.raises(TubeletError, match="holds no weights"):
        tubelet.load(path)


def test_what_theirs_cannot_be_is_refused(tmp_path: Path) -> None:
    shape = ViTShape(48, 2, 4, patch=8, position="sincos_3d")
    with pytest.raises(TubeletError, match="no place for this model: position 'sincos_3d'"):
        written(classifier(shape), tmp_path)
    student = MVD(clip=CLIP, encoder=SHAPE, decoder=DecoderShape(32, 1, 2)).model()
    student.card = Card(clip=CLIP)
    with pytest.raises(TubeletError, match=r"one branch `pixels`.*It has branches\.image"):
        written(student, tmp_path)
    stored.save(classifier(), tmp_path / "ours.safetensors")
    longer = tubelet.load(tmp_path / "ours.safetensors", num_frames=16)
    with pytest.raises(TubeletError, match="resized from those of clips of 8x32x32 to 16x32x32"):
        written(longer, tmp_path)
    images = ViTShape(48, 2, 4, patch=8, tubelet_size=1, class_token=True)
    with pytest.raises(TubeletError, match="its head reads the mean"):
        written(classifier(images, clip=ClipSpec(num_frames=1, size=(32, 32))), tmp_path)
    assert not (tmp_path / "config.json").exists()
