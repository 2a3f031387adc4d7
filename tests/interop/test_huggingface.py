"""Hugging Face's networks and ours compute the same: transformers (a dev extra) does the other side."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from theirs import (
    CLIP,
    NAMES,
    classifier,
    compare_losses,
    folder_of,
    hidden_of,
    normal,
    pretrained,
    same,
    their_load,
    theirs_classifier,
    theirs_encoder,
    theirs_pretrained,
    vit,
    vit_classifier,
    vit_mae,
    written,
)

import tubelet
from tubelet import stored
from tubelet.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from tubelet.backbones.vit import BASE, SMALL
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.interop.found import Found
from tubelet.masks import pack
from tubelet.model import MaskedModel
from tubelet.shapes import ClipSpec

REAL = {"S": (SMALL, DecoderShape(192, 4, 3)), "B": (BASE, DecoderShape(384, 4, 6))}


@pytest.mark.parametrize("normalised", [True, False])
def test_pretraining_has_the_same_loss_in_both_directions(normalised: bool, tmp_path: Path) -> None:
    theirs = theirs_pretrained(norm_pix_loss=normalised)
    ours = tubelet.load(folder_of(theirs, tmp_path / "theirs"))
    assert ours.card.clip == CLIP
    assert ours.card.run["normalise_target"] is normalised
    clip = torch.rand(2, 3, 8, 32, 32)
    assert max(compare_losses(ours, theirs, clip)) < 1e-5
    again = their_load(hf.AutoModelForPreTraining, written(ours, tmp_path / "again"))
    assert again.config.norm_pix_loss is normalised
    assert max(compare_losses(ours, again, clip)) < 1e-5
    new = pretrained()
    theirs = their_load(hf.VideoMAEForPreTraining, written(new, tmp_path / "new"))
    assert max(compare_losses(new, theirs, clip)) < 1e-5


def test_gradients_are_the_same(tmp_path: Path) -> None:
    """Nearly cancelling over many tokens, they are compared where rounding does not matter."""
    ours = pretrained().train()
    theirs = their_load(hf.VideoMAEForPreTraining, written(ours, tmp_path)).train().double()
    theirs.decoder.norm.eps = 1e-6  # torch's 1e-5 there, whatever the configuration says
    ours = ours.double()
    ours.backbone.mean, ours.backbone.std = ours.backbone.mean.double(), ours.backbone.std.double()
    of = [
        torch.tensor(v, dtype=torch.float64).view(-1, 1, 1, 1)
        for v in (IMAGENET_MEAN, IMAGENET_STD)
    ]
    ours.backbone.mean, ours.backbone.std = of
    clip, hidden = torch.rand(2, 3, 8, 32, 32, dtype=torch.float64), hidden_of(ours, 2)
    total, weight = ours(clip, pack(hidden[:, None]))["loss"]
    (total / weight).backward()
    theirs(normal(clip), bool_masked_pos=hidden).loss.backward()
    header = stored.describe(ours, ours.card)
    found = Found(header, {n: p.grad for n, p in ours.named_parameters()})
    mapped = {
        n.replace("q_bias", "query.bias").replace("v_bias", "value.bias"): grad
        for n, grad in layouts.state_of(found, "hf").items()
    }
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            scale = float(parameter.grad.abs().max())
            assert float((parameter.grad - mapped.pop(name)).abs().max()) <= 1e-10 * scale, name
    assert not mapped


def test_classification_has_the_same_logits_in_both_directions(tmp_path: Path) -> None:
    theirs = theirs_classifier()
    ours = tubelet.load(folder_of(theirs, tmp_path / "theirs"))
    assert ours.card.classes == NAMES
    clip = torch.rand(2, 3, 8, 32, 32)
    torch.testing.assert_close(ours(clip), theirs(normal(clip)).logits, rtol=1e-5, atol=1e-5)
    new = classifier()
    path = written(new, tmp_path / "new")
    theirs = their_load(hf.AutoModelForVideoClassification, path)
    assert theirs.config.id2label == {0: "jump", 1: "run", 2: "sit"}
    assert theirs.config.label2id == {"jump": 0, "run": 1, "sit": 2}
    assert theirs.config.layer_norm_eps == 1e-6
    torch.testing.assert_close(new(clip), theirs(normal(clip)).logits, rtol=1e-5, atol=1e-5)
    assert tubelet.load(path).card == new.card


@pytest.mark.slow
@pytest.mark.parametrize("size", ["S", "B"])
def test_real_sizes_agree_in_both_directions(size: str, tmp_path: Path) -> None:
    """16 frames of 224 pixels, heads as published: 6 and 12."""
    shape, decoder = REAL[size]
    spec, clip = ClipSpec(), torch.rand(1, 3, 16, 224, 224)
    ours = pretrained(shape, decoder, spec)
    theirs = their_load(hf.VideoMAEForPreTraining, written(ours, tmp_path / "a"))
    assert theirs.config.num_attention_heads == shape.heads
    back = tubelet.load(folder_of(theirs, tmp_path / "b"))
    figures = [compare_losses(one, theirs, clip) for one in (ours, back)]
    ours = classifier(shape, tuple(map(str, range(400))), spec)
    theirs = their_load(hf.VideoMAEForVideoClassification, written(ours, tmp_path / "c"))
    back = tubelet.load(folder_of(theirs, tmp_path / "d"))
    with torch.no_grad():
        logits = theirs(normal(clip)).logits
        apart = [float((one(clip) - logits).abs().max()) for one in (ours, back)]
    print(size, "predictions and losses", figures, "logits", apart)
    assert max(max(pair) for pair in figures) < 1e-5
    assert max(apart) < 1e-5 * max(1.0, float(logits.abs().max()))


@pytest.mark.parametrize("pooled", [True, False])
def test_an_encoder_alone(pooled: bool, tmp_path: Path) -> None:
    theirs = theirs_encoder(use_mean_pooling=pooled)
    ours = tubelet.load(folder_of(theirs, tmp_path / "theirs"))
    assert isinstance(ours, MaskedModel) and not ours.branches
    clip = torch.rand(1, 3, 8, 32, 32)
    expected = theirs(normal(clip)).last_hidden_state
    torch.testing.assert_close(ours.forward_features(clip), expected, rtol=1e-4, atol=1e-5)
    again = their_load(hf.AutoModel, written(ours, tmp_path / "again"))
    assert torch.equal(again(normal(clip)).last_hidden_state, expected)


@pytest.mark.parametrize("make", [vit, vit_classifier, vit_mae])
def test_images_give_an_encoder_with_the_same_features(make, tmp_path: Path) -> None:
    model = make()
    ours = tubelet.load(folder_of(model, tmp_path, image_mean=[0.5] * 3, image_std=[0.25] * 3))
    shape = ours.backbone.shape
    assert (shape.tubelet_size, shape.class_token) == (1, True)
    assert shape.position == ("sincos_2d" if make is vit_mae else "learned")
    image = torch.rand(2, 3, 1, 32, 32)
    pixels = normal(image, [0.5] * 3, [0.25] * 3)[:, 0]
    tower = getattr(model, "vit", model)
    if make is vit_mae:
        hidden = torch.zeros(2, 16, dtype=torch.bool)
        hidden[:, [1, 4, 5, 9, 10, 12]] = True
        noise = hidden.float() + torch.arange(16) / 100  # sorted: what stays keeps its order
        model.config.mask_ratio = 6 / 16
        theirs = model(pixels, noise=noise)
        got = ours.predict(image, pack(hidden[:, None]))["pixels"]
        torch.testing.assert_close(got, theirs.logits[hidden].view_as(got), rtol=1e-4, atol=2e-5)
        return
    tokens = ours.backbone(image)
    expected = tower(pixels).last_hidden_state
    torch.testing.assert_close(
        torch.cat([tokens.prefix, tokens.x], 1), expected, rtol=1e-4, atol=1e-5
    )
    dropped = {one.name: one.why for one in ours.report.dropped}
    assert any("changes no softmax" in why for why in dropped.values())
    assert any(
        n.startswith(("pooler", "classifier")) and "class token" in dropped[n] for n in dropped
    )


def test_without_biases_of_queries_and_values(tmp_path: Path) -> None:
    theirs = theirs_classifier(qkv_bias=False)
    path = folder_of(theirs, tmp_path / "theirs")
    ours = tubelet.load(path)
    assert not ours.backbone.blocks[0].attn.q_bias.any()
    clip = torch.rand(1, 3, 8, 32, 32)
    torch.testing.assert_close(ours(clip), theirs(normal(clip)).logits, rtol=1e-5, atol=1e-5)
    again = written(ours, tmp_path / "again")
    assert (
        load_file(again / "model.safetensors").keys()
        == load_file(path / "model.safetensors").keys()
    )
    their_load(hf.VideoMAEForVideoClassification, again)
    ours.backbone.blocks[0].attn.q_bias.data.fill_(0.1)  # as training does
    learned = their_load(hf.VideoMAEForVideoClassification, written(ours, tmp_path / "learned"))
    torch.testing.assert_close(ours(clip), learned(normal(clip)).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("stated", "mean", "std"),
    [
        ({"do_normalize": False}, 0.0, 1.0),
        ({"image_mean": [1.0] * 3, "image_std": [2.0] * 3, "rescale_factor": 1 / 127.5}, 0.5, 1.0),
        ({"image_mean": [51.0] * 3, "image_std": [255.0] * 3, "do_rescale": False}, 0.2, 1.0),
    ],
)
def test_other_scales_of_pixels(
    stated: dict[str, Any], mean: float, std: float, tmp_path: Path
) -> None:
    ours = tubelet.load(folder_of(theirs_encoder(), tmp_path, **stated))
    assert ours.backbone.mean.flatten().tolist() == pytest.approx([mean] * 3)
    assert ours.backbone.std.flatten().tolist() == pytest.approx([std] * 3)


def test_an_image_mae_with_learned_positions_gives_its_encoder(tmp_path: Path) -> None:
    model = vit_mae()
    model.vit.embeddings.position_embeddings.data.add_(0.1)
    path = folder_of(model, tmp_path / "learned")
    with pytest.raises(TubeletError, match="encoder_only=True"):
        tubelet.load(path)
    assert tubelet.load(path, encoder_only=True).backbone.shape.position == "learned"
    model = vit_mae()
    model.decoder.decoder_pos_embed.data.add_(0.1)
    with pytest.raises(TubeletError, match=r"decoder_pos_embed is not the fixed one"):
        tubelet.load(folder_of(model, tmp_path / "decoder"))


@pytest.mark.parametrize("mode", ["interpolate", "rebuild"])
def test_another_size_is_resized_and_said_so(mode: Any, tmp_path: Path) -> None:
    path = folder_of(theirs_pretrained(), tmp_path)
    plain = tubelet.load(path)
    same(plain.state_dict(), tubelet.load(path, positions=mode).state_dict())
    clip = torch.rand(1, 3, 8, 32, 32)
    alike = tubelet.load(path, positions=mode).forward_features(clip)
    assert torch.equal(alike, plain.forward_features(clip))
    larger = tubelet.load(path, num_frames=16, img_size=(32, 48), positions=mode)
    assert any(one.before == "4x4x4" and one.after == "8x4x6" for one in larger.report.resized)
    features = larger.forward_features(torch.rand(1, 3, 16, 32, 48))
    assert features.shape == (1, 192, 48)


def test_rebuilt_positions_and_oblong_clips_are_theirs_too(tmp_path: Path) -> None:
    stored.save(classifier(), tmp_path / "ours.safetensors")
    ours = tubelet.load(
        *[tmp_path / "ours.safetensors"], num_frames=16, img_size=(32, 48), positions="rebuild"
    )
    theirs = their_load(hf.AutoModelForVideoClassification, written(ours, tmp_path / "hf"))
    clip = torch.rand(1, 3, 16, 32, 48)
    torch.testing.assert_close(ours(clip), theirs(normal(clip)).logits, rtol=1e-5, atol=1e-5)
    assert tubelet.load(tmp_path / "hf").card.clip.size == (32, 48)
