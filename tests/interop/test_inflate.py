"""Models of images as models of clips: still clips are seen as the image was, moving ones are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from tubelet import stored, verbs
from tubelet.backbones.positions import PositionKind
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.interop.found import Inflation, Told
from tubelet.interop.inflate import inflated
from tubelet.masks import pack
from tubelet.methods.finetune import Finetune
from tubelet.methods.mae import ImageMAE, image
from tubelet.methods.run import to_dict
from tubelet.model import Card, Classifier, MaskedModel, VideoModel
from tubelet.shapes import ClipSpec

IMAGE = ClipSpec(num_frames=1, sampling_rate=1, size=(32, 24))
MEAN, STD = (0.5, 0.4, 0.6), (0.2, 0.3, 0.25)
SHAPE = image(ViTShape(48, 2, 3, patch=8))
TIGHT: dict[str, float] = {"rtol": 0, "atol": 1e-5}  # sums over t times as many keys


def randomised(model: Any) -> Any:
    """Away from the initialisation, so that each token and each bias matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def pretrained() -> MaskedModel:
    run = ImageMAE(clip=IMAGE, encoder=SHAPE, decoder=DecoderShape(32, 1, 2))
    model = randomised(run.model())
    model.card = Card(IMAGE, run=to_dict(run))
    return model


def classifier(position: PositionKind = "learned", *, class_token: bool = True) -> Classifier:
    shape = replace(SHAPE, position=position, class_token=class_token)
    encoder = shape.build(trained=(1, 32, 24), final_norm=False, masked=False)
    model = randomised(Classifier(encoder, 5))
    model.card = Card(IMAGE, tuple("abcde"), "single")
    return model


def saved(model: VideoModel, path: Path) -> Path:
    stored.save(model, path)
    return path


def still(x: Tensor, frames: int) -> Tensor:
    """An image [B,C,1,H,W] -> a clip of it."""
    return x.expand(-1, -1, frames, -1, -1)


def features(model: VideoModel, clip: Tensor) -> Tensor:
    """-> [B,t,h*w,D]."""
    with torch.no_grad():
        return model.forward_features(clip).unflatten(1, (model.grid_for(*clip.shape[2:]).t, -1))


@pytest.mark.parametrize("how", ["mean", "centre"])
@pytest.mark.parametrize("frames", [None, 4, 32])
def test_image_mae_sees_still_clips_of_any_length_as_its_image(
    tmp_path: Path, how: Inflation, frames: int | None
) -> None:
    one, x = pretrained(), torch.rand(2, 3, 1, 32, 24)
    path = saved(one, tmp_path / "image.safetensors")
    many = stored.load(path, inflate=how, num_frames=frames)
    clip = many.card.clip
    assert clip == ClipSpec(num_frames=frames or 16, size=(32, 24))
    wanted = features(one, x)
    found = features(many, still(x, clip.num_frames))
    torch.testing.assert_close(found, wanted.expand_as(found), **TIGHT)


def test_one_class_token_for_all_slots_would_not_do(tmp_path: Path) -> None:
    """So the comparison above can fail: the token's share matters."""
    one, x = pretrained(), torch.rand(2, 3, 1, 32, 24)
    found = inflated(stored.found_of(one), "mean")
    found.header["backbone"]["shape"]["class_token_of"] = "clip"
    stored.write(found, tmp_path / "wrong.safetensors")
    many = stored.load(tmp_path / "wrong.safetensors")
    assert (features(many, still(x, 16)) - features(one, x)).abs().max() > 1e-2


@pytest.mark.parametrize("how", ["mean", "centre"])
@pytest.mark.parametrize(
    ("position", "class_token"), [("learned", True), ("learned", False), ("sincos_2d", True)]
)
def test_a_classifier_of_images_answers_still_clips_as_images(
    tmp_path: Path, how: Inflation, position: PositionKind, class_token: bool
) -> None:
    one, x = classifier(position, class_token=class_token), torch.rand(2, 3, 1, 32, 24)
    path = saved(one, tmp_path / "image.safetensors")
    many = stored.load(path, inflate=how)
    assert isinstance(many, Classifier)
    with torch.no_grad():
        wanted = one(x)
        torch.testing.assert_close(many(still(x, 16)), wanted, **TIGHT)
        torch.testing.assert_close(many(still(x, 6)), wanted, **TIGHT)
    assert many.card.classes == tuple("abcde")
    again = stored.load(saved(many, tmp_path / "clips.safetensors"))
    moving = torch.rand(2, 3, 16, 32, 24)
    with torch.no_grad():
        assert torch.equal(again(moving), many(moving))


@pytest.mark.parametrize("how", ["mean", "centre"])
def test_a_vit_of_transformers_gives_the_same_numbers_on_a_still_clip(
    tmp_path: Path, how: Inflation
) -> None:
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=192,
        image_size=(32, 24),
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    theirs = randomised(ViTModel(config, add_pooling_layer=False))
    theirs.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path / "vit")
    many = stored.load(tmp_path / "vit", inflate=how, tubelet_size=4)
    x = torch.rand(2, 3, 1, 32, 24)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        wanted = theirs((x[:, :, 0] - mean) / std).last_hidden_state
        tokens = many.backbone(still(x, 32))
    found = tokens.x.unflatten(1, (8, 12))
    torch.testing.assert_close(found, wanted[:, None, 1:].expand_as(found), **TIGHT)
    torch.testing.assert_close(tokens.prefix, wanted[:, :1].expand(-1, 8, -1), **TIGHT)


def test_a_moving_clip_is_seen_by_each_variant_in_its_own_way(tmp_path: Path) -> None:
    one, clip = pretrained(), torch.rand(1, 3, 16, 32, 24)
    backbones: dict[str, ViT] = {}
    for how in ("mean", "centre"):
        path = saved(one, tmp_path / "image.safetensors")
        backbones[how] = stored.load(path, inflate=how).backbone
    with torch.no_grad():
        seen = {how: vit(clip).x for how, vit in backbones.items()}
        # Of a tubelet, "mean" sees the mean frame, "centre" the second of two.
        second = clip[:, :, 1::2].repeat_interleave(2, 2)
        middle = clip.unflatten(2, (8, 2)).mean(3).repeat_interleave(2, 2)
        assert (seen["mean"] - seen["centre"]).abs().max() > 1e-2
        torch.testing.assert_close(seen["centre"], backbones["centre"](second).x, **TIGHT)
        torch.testing.assert_close(seen["mean"], backbones["mean"](middle).x, **TIGHT)
        torch.testing.assert_close(seen["mean"], backbones["centre"](middle).x, **TIGHT)


@pytest.mark.parametrize(("size", "centre"), [(1, 0), (2, 1), (3, 1), (4, 2)])
def test_kernels(size: int, centre: int) -> None:
    found = stored.found_of(pretrained())
    name = "backbone.patch_embed.proj.weight"
    half = {**found.weights, name: found.weights[name].half()}  # as some files are
    kernel = half[name][:, :, 0].float()
    mean = inflated(replace(found, weights=half), "mean", tubelet_size=size).weights[name]
    middle = inflated(replace(found, weights=half), "centre", tubelet_size=size).weights[name]
    assert mean.shape == middle.shape == (48, 3, size, 8, 8)
    for at in range(size):
        assert torch.equal(mean[:, :, at], kernel / size)
        assert torch.equal(middle[:, :, at], kernel if at == centre else torch.zeros_like(kernel))


def test_the_report_says_what_was_made_and_left_out() -> None:
    found = inflated(stored.found_of(classifier()), "centre", tubelet_size=4, num_frames=12)
    assert [(one.name, one.before, one.after, one.how) for one in found.report.resized] == [
        (
            "backbone.patch_embed.proj.weight",
            "[48, 3, 1, 8, 8]",
            "[48, 3, 4, 8, 8]",
            "inflated (centre)",
        ),
        ("backbone.positions.table", "[13, 48]", "[37, 48]", "repeated in each time slot"),
    ]
    assert found.report.notes == ["the class token stands in front of each time slot"]
    assert found.header["backbone"]["trained"] == [12, 32, 24]
    assert found.origin is None


def test_decoders_and_the_token_of_hidden_patches_are_dropped_by_name(tmp_path: Path) -> None:
    path = saved(pretrained(), tmp_path / "image.safetensors")
    model = stored.load(path, inflate="mean")
    assert isinstance(model, MaskedModel)
    assert not model.branches
    gone = {one.name for one in model.report.dropped}
    assert gone == {n for n in pretrained().state_dict() if n.startswith("branches.")}
    assert not gone & set(model.report.matched)
    assert "they do not tell time" in model.report.notes[-1]
    shape = replace(SHAPE, hide="replace", position="learned")
    replacing = MaskedModel(ViT(shape, trained=(1, 32, 24)), [])
    replacing.card = Card(IMAGE)
    assert "backbone.mask_token" in replacing.state_dict()
    path = saved(replacing, tmp_path / "maskfeat.safetensors")
    assert stored.load(path, inflate="mean").backbone.mask_token is None


def test_published_files_are_inflated_as_they_are_read(tmp_path: Path) -> None:
    one, x = pretrained(), torch.rand(1, 3, 1, 32, 24)
    layouts.write(stored.found_of(one), "mae", tmp_path / "image.pth")
    told = Told(heads=3, decoder_heads=2, trained=(1, 32, 24), inflate="centre")
    many = stored.load(tmp_path / "image.pth", told=told)
    found = features(many, still(x, 16))
    torch.testing.assert_close(found, features(one, x).expand_as(found), **TIGHT)
    gone = {one.name for one in many.report.dropped}
    assert {"decoder_embed.weight", "decoder_pred.bias", "mask_token"} < gone  # names of the file


def test_visible_tokens_of_a_still_clip_are_those_of_the_image(tmp_path: Path) -> None:
    """With the same patches hidden in all slots, as tubes hide them."""
    one = pretrained()
    many = stored.load(saved(one, tmp_path / "image.safetensors"), inflate="mean")
    x, hidden = torch.rand(1, 3, 1, 32, 24), torch.rand(12) < 0.5
    with torch.no_grad():
        wanted = one.backbone(x, pack(hidden[None, None])).x
        seen = many.backbone(still(x, 16), pack(hidden.repeat(8)[None, None])).x
    found = seen.unflatten(1, (8, -1))
    torch.testing.assert_close(found, wanted[:, None].expand_as(found), **TIGHT)


def test_fine_tuning_begins_with_the_inflated_encoder(tmp_path: Path) -> None:
    one, x = pretrained(), torch.rand(1, 3, 1, 32, 24)
    path = saved(one, tmp_path / "image.safetensors")
    told = Told(inflate="centre", tubelet_size=4)
    run = verbs.finetune_from(path, told)
    assert run.clip == ClipSpec(num_frames=32, size=(32, 24))
    assert isinstance(run, Finetune)
    assert (run.encoder.tubelet_size, run.encoder.class_token_of) == (4, "slot")
    encoder, card = stored.encoder_of(path, told=told)
    assert card.clip == run.clip
    with torch.no_grad():
        wanted = one.backbone(x, norm=False).x
        seen = encoder(still(x, 32)).x.unflatten(1, (8, -1))
    torch.testing.assert_close(seen, wanted[:, None].expand_as(seen), **TIGHT)


def test_what_cannot_be_inflated_is_an_error(tmp_path: Path) -> None:
    path = saved(pretrained(), tmp_path / "image.safetensors")
    found = stored.opened(path)
    clips = inflated(found, "mean")
    with pytest.raises(TubeletError, match=r"image.safetensors is a model of clips already, of 16"):
        inflated(clips, "mean")
    with pytest.raises(TubeletError, match="16 is no multiple of 3"):
        inflated(found, "mean", tubelet_size=3, num_frames=16)
    assert stored.load(path, inflate="mean", tubelet_size=3).card.clip.num_frames == 24
    with pytest.raises(TubeletError, match=r"inflate is 'center'"):
        stored.load(path, inflate="center")
    with pytest.raises(TubeletError, match="tubelet_size is 0: numbers from 1"):
        stored.load(path, inflate="mean", tubelet_size=0)
    with pytest.raises(TubeletError, match=r"tubelet_size=4 is of a model .* say how, --inflate"):
        stored.load(path, tubelet_size=4)
    with pytest.raises(TubeletError, match=r"no place for this model: .*class_token_of 'slot'"):
        layouts.state_of(inflated(found, "mean", tubelet_size=1), "mae")
    numbered = stored.found_of(classifier("sinusoid_1d"))
    with pytest.raises(TubeletError, match="positions of the kind sinusoid_1d"):
        inflated(numbered, "mean")
