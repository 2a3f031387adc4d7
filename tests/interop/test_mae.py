"""Image MAE and timm's vision transformer: both ways, by content, and what is refused."""

from pathlib import Path

import pytest
import torch
from foreign import (
    FRAME,
    classifier_model,
    encoder_model,
    features,
    mae_model,
    same_state,
    save,
    theirs,
    videomae_model,
)
from torch import Tensor, nn

from tubelet import stored
from tubelet.backbones.vit import ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.interop.tables import join_biases, key_bias
from tubelet.methods.mae import ImageMAE, image
from tubelet.model import Card, Classifier
from tubelet.shapes import ClipSpec

TOLD = {"heads": 3, "decoder_heads": 2}
IMAGES = {"class_token": True, "tubelet_size": 1}
DECODER = ("decoder_", "mask_token")


def back(model) -> dict[str, Tensor]:
    return layouts.state_of(stored.found_of(model), "mae")


def test_the_keys_of_image_mae() -> None:
    """The specification's counts, 2.5."""
    run = ImageMAE(encoder=image(ViTShape(48, 12, 3)), decoder=DecoderShape(32, 8, 2))
    model = run.model()
    model.card = Card(clip=run.clip)
    full = theirs(model, "mae")
    assert full["pos_embed"].shape == (1, 197, 48)
    assert not full["pos_embed"][:, 0].any()  # the class token has no position
    assert full["decoder_pos_embed"].shape == (1, 197, 32)
    assert full["patch_embed.proj.weight"].shape == (48, 3, 16, 16)
    assert full["decoder_pred.weight"].shape == (768, 32)
    assert full["blocks.0.attn.qkv.bias"].shape == (3 * 48,)
    decoder = [name for name in full if name.startswith(DECODER)]
    assert len(full) - len(decoder) == 150
    assert len(decoder) == 1 + 2 + 1 + 8 * 12 + 2 + 2


def test_the_published_decoder_has_16_heads(tmp_path: Path) -> None:
    run = ImageMAE(
        clip=FRAME, encoder=image(ViTShape(48, 1, 3, patch=8)), decoder=DecoderShape(512, 1, 16)
    )
    model = run.model()
    model.card = Card(clip=FRAME)
    path = save(tmp_path / "a.pth", theirs(model, "mae"), norm_pix_loss=False, mask_ratio=0.5)
    found = stored.load(path, heads=3)
    assert found.card.run["decoder"]["heads"] == 16
    assert found.card.run["mask_ratio"] == 0.5
    assert not found.branches["pixels"].target.normalise


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("file", ["a.pth", "a.safetensors"])
def test_pretrained_with_and_without_its_decoder(full: bool, file: str, tmp_path: Path) -> None:
    model = mae_model()
    state = theirs(model, "mae")
    state = {n: v for n, v in state.items() if full or not n.startswith(DECODER)}
    state["blocks.1.attn.qkv.bias"][48:96] = torch.randn(48)  # of keys: kept for the way back
    path = save(tmp_path / file, state)
    found = stored.load(path, **(TOLD if full else {"heads": 3}))
    assert stored.describe(found, found.card)["kind"] == ("pretraining" if full else "encoder")
    pixels = torch.rand(1, 3, 1, 32, 32)
    torch.testing.assert_close(features(found, pixels), features(model, pixels))
    assert found.card.clip.num_frames == found.card.clip.sampling_rate == 1
    same_state(back(found), layouts.read_raw(path).state)
    stored.save(found, tmp_path / "ours.safetensors")
    same_state(back(stored.load(tmp_path / "ours.safetensors")), layouts.read_raw(path).state)


@pytest.mark.parametrize("position", ["sincos_2d", "learned"])
def test_fine_tuned_on_images(position, tmp_path: Path) -> None:
    model = classifier_model(position, FRAME, **IMAGES)
    state = theirs(model, "mae")
    assert state["pos_embed"].shape == (1, 17, 48)
    found = stored.load(save(tmp_path / "a.pth", state), heads=3)
    assert isinstance(found, Classifier)
    assert found.backbone.shape.position == position
    pixels = torch.rand(2, 3, 1, 32, 32)
    assert torch.equal(found(pixels), model(pixels))
    same_state(back(found), state)


def test_half_precision_keeps_the_kind_of_positions(tmp_path: Path) -> None:
    half = {name: v.half() for name, v in theirs(mae_model(), "mae").items()}
    found = stored.load(save(tmp_path / "a.pth", half), **TOLD)
    assert found.backbone.shape.position == "sincos_2d"
    same_state(back(found), half)
    learned = {name: v.half() for name, v in theirs(encoder_model(), "mae").items()}
    found = stored.load(save(tmp_path / "b.pth", learned), heads=3)
    assert found.backbone.shape.position == "learned"
    same_state(back(found), learned)
    stored.save(found, tmp_path / "ours.safetensors")
    same_state(back(stored.load(tmp_path / "ours.safetensors")), learned)


def timm_features(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """image [B,3,H,W] in [0,1] -> normed tokens [B,1+N,D], by formula, in timm's names."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = torch.nn.functional.conv2d(x, kernel, bias, stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for i in range(2):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, 3, 16)).unbind(2)
        scores = torch.einsum("blhd,bmhd->bhlm", q, k) / 4
        mixed = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v).flatten(2)
        x = x + linear(mixed, f"blocks.{i}.attn.proj")
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        x = x + linear(torch.nn.functional.gelu(hidden), f"blocks.{i}.mlp.fc2")
    return norm(x, "norm")


def timm_state() -> dict[str, Tensor]:
    """A vision transformer as timm saves it: learned positions, biases of keys, a head on the class
    token."""
    state = theirs(encoder_model(), "mae")
    for name in state:
        state[name] = torch.randn_like(state[name]) * 0.2
    return {**state, "head.weight": torch.randn(5, 48), "head.bias": torch.randn(5)}


def test_timms_vision_transformer_by_a_formula(tmp_path: Path) -> None:
    state = timm_state()
    path = save(tmp_path / "a.pth", state, "")
    with pytest.raises(TubeletError, match=r"head that reads one token .*--encoder-only"):
        stored.load(path, heads=3)
    found = stored.load(path, heads=3, encoder_only=True)
    assert found.backbone.shape.position == "learned"
    assert found.backbone.positions.table.shape == (17, 48)
    pixels = torch.rand(2, 3, 32, 32)
    expected = timm_features(state, pixels)
    tokens = found.backbone(pixels.unsqueeze(2))
    torch.testing.assert_close(tokens.x, expected[:, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.prefix, expected[:, :1], rtol=1e-5, atol=1e-5)
    assert any("mean and std" in note for note in found.report.notes)
    same_state(back(found), {n: v for n, v in state.items() if not n.startswith("head.")})


def test_no_class_token(tmp_path: Path) -> None:
    model = encoder_model("learned", class_token=False)
    state = theirs(model, "mae")
    assert state["pos_embed"].shape == (1, 16, 48)
    found = stored.load(save(tmp_path / "a.pth", state), heads=3)
    pixels = torch.rand(1, 3, 1, 32, 32)
    assert torch.equal(found.backbone(pixels).x, model.backbone(pixels).x)
    same_state(back(found), state)
    state["cls_token"] = torch.zeros(1, 1, 48)
    with pytest.raises(TubeletError, match="16 positions in all: none for the class token"):
        stored.load(save(tmp_path / "b.pth", state), heads=3)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("reg_token", "register tokens"),
        ("dist_token", "a distillation token"),
        ("norm_pre.weight", "a norm before its blocks"),
        ("blocks.1.ls1.gamma", "layer scale"),
        ("blocks.0.attn.q_norm.weight", "norms of queries and keys"),
    ],
)
def test_options_of_timm_that_are_refused_by_name(extra: str, said: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {**timm_state(), extra: torch.ones(48)})
    with pytest.raises(TubeletError, match=rf"has {said} \({extra}\)"):
        stored.load(path, heads=3, encoder_only=True)


def test_a_decoder_and_learned_positions(tmp_path: Path) -> None:
    state = theirs(mae_model(), "mae")
    state["pos_embed"] = torch.randn_like(state["pos_embed"])
    path = save(tmp_path / "a.pth", state)
    with pytest.raises(TubeletError, match=r"learned positions.*--encoder-only"):
        stored.load(path, **TOLD)
    assert not len(stored.load(path, heads=3, encoder_only=True).branches)
    state = theirs(mae_model(), "mae")
    state["decoder_pos_embed"][0, 3, 5] += 1e-3
    with pytest.raises(TubeletError, match="decoder_pos_embed is not the fixed one"):
        stored.load(save(tmp_path / "b.pth", state), **TOLD)


def test_a_file_without_its_table(tmp_path: Path) -> None:
    state = theirs(encoder_model("sincos_2d"), "mae")
    del state["pos_embed"]
    path = save(tmp_path / "a.pth", state, input_size=32)
    with pytest.raises(TubeletError, match="--position sincos_2d"):
        stored.load(path, heads=3)
    found = stored.load(path, heads=3, position="sincos_2d")
    assert found.backbone.trained == (1, 32, 32)
    same_state(back(found), state)


def test_images_that_are_no_square(tmp_path: Path) -> None:
    model = mae_model(ClipSpec(num_frames=1, sampling_rate=1, size=(32, 48)))
    state = theirs(model, "mae")
    path = save(tmp_path / "a.pth", state)
    with pytest.raises(TubeletError, match=r"25 positions in all.*no squares.*--trained"):
        stored.load(path, **TOLD)
    found = stored.load(path, trained=(1, 32, 48), **TOLD)
    assert found.backbone.grid == (1, 4, 6)
    same_state(back(found), state)


def test_models_of_clips_are_no_images() -> None:
    with pytest.raises(TubeletError, match=r"no place.*tubelet_size 2 \(it has 1\)"):
        theirs(videomae_model(), "mae")


def test_a_bias_of_keys_changes_nothing() -> None:
    """A block with one bias for all three, by its own formula, against ours without the keys'."""
    block = videomae_model().backbone.blocks[0].attn
    x, bias = torch.randn(2, 7, 48), torch.randn(3 * 48)
    q, k, v = bias.chunk(3)
    block.load_state_dict({"q_bias": q, "v_bias": v}, strict=False)
    queries, keys, values = (x @ block.qkv.weight.T + bias).view(2, 7, 3, 3, 16).unbind(2)
    scores = torch.einsum("blhd,bmhd->bhlm", queries, keys) / 16**0.5
    mixed = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), values).flatten(2)
    torch.testing.assert_close(block(x, nn.Identity()), block.proj(mixed), rtol=1e-5, atol=1e-5)
    split = {"attn.q_bias": q, "attn.v_bias": v}
    assert torch.equal(join_biases(split, {key_bias("attn.qkv.bias"): k})["attn.qkv.bias"], bias)
    zeros = join_biases(split, {}, always=True)["attn.qkv.bias"]
    assert torch.equal(zeros, torch.cat([q, torch.zeros(48), v]))
    assert join_biases(split, {}) == split
