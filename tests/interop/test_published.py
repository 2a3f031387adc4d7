"""Published layouts of MVD, image MAE and VideoMAE: names, both ways, and their encoders."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tubelet.backbones.vit import ViT, ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop import mae, mvd, videomae
from tubelet.interop.names import renamed
from tubelet.interop.published import DEEPSPEED, read_encoder
from tubelet.interop.tables import join_bias, split_bias
from tubelet.methods.mae import ImageMAE, image
from tubelet.methods.mvd import MVD, Distilled, base_from_base_k400
from tubelet.methods.videomae import VideoMAE
from tubelet.methods.videomae import base_k400 as videomae_base
from tubelet.model import Classifier, MaskedModel
from tubelet.shapes import ClipSpec
from tubelet.teachers import load_teacher

CLIP = ClipSpec(num_frames=8, size=(32, 32))
SHAPE = ViTShape(48, 2, 3, patch=8)
DECODER = DecoderShape(32, 1, 2)
TOLD = {"heads": 3, "trained": (8, 32, 32)}


def randomised(model: MaskedModel | Classifier) -> MaskedModel | Classifier:
    """Away from the initialisation, where biases are zero and norms are one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def mvd_model() -> nn.Module:
    shape = ViTShape(48, 2, 3, patch=8, position="sincos_3d")
    taught = {"image": Distilled(width=32), "video": Distilled(width=40)}
    return randomised(MVD(clip=CLIP, encoder=shape, decoder=DECODER, **taught).model())


def mae_model() -> nn.Module:
    frame = ClipSpec(num_frames=1, size=(32, 32))
    return randomised(ImageMAE(clip=frame, encoder=image(SHAPE), decoder=DECODER).model())


def videomae_model() -> nn.Module:
    return randomised(VideoMAE(clip=CLIP, encoder=SHAPE, decoder=DECODER).model())


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def test_names_and_shapes_are_those_of_the_published_files() -> None:
    """The specification's counts, 2.1, 2.3 and 2.5, at the published sizes."""
    student = mvd.to_published(on_meta(base_from_base_k400.model))
    assert len(student) == 229
    assert student["pos_embed"].shape == student["pos_embed_img"].shape == (1, 1568, 768)
    assert student["mask_token_vid"].shape == (1, 1, 768)
    assert student["decoder_img.blocks.1.attn.qkv.weight"].shape == (2304, 768)
    pixels = renamed(on_meta(videomae_base.model).state_dict(), videomae.PRETRAIN, back=True)
    assert len(pixels) == 218
    assert pixels["encoder_to_decoder.weight"].shape == (384, 768)
    teacher = [name for name in pixels if name.startswith("encoder.")]
    assert len(teacher) == 160  # MVD's video teacher


def test_the_keys_of_image_mae() -> None:
    run = ImageMAE(encoder=image(ViTShape(48, 12, 3)), decoder=DecoderShape(32, 8, 2))
    full = mae.to_published(run.model())
    assert full["pos_embed"].shape == (1, 197, 48)
    assert not full["pos_embed"][:, 0].any()  # the class token has no position
    assert full["decoder_pos_embed"].shape == (1, 197, 32)
    assert full["patch_embed.proj.weight"].shape == (48, 3, 16, 16)
    assert full["decoder_pred.weight"].shape == (768, 32)
    assert full["blocks.0.attn.qkv.bias"].shape == (3 * 48,)
    decoder = [name for name in full if name.startswith(("decoder_", "mask_token"))]
    assert len(full) - len(decoder) == 150
    assert len(decoder) == 1 + 2 + 1 + 8 * 12 + 2 + 2


@pytest.mark.parametrize(("layout", "make"), [(mvd, mvd_model), (mae, mae_model)])
def test_there_and_back_is_identical(layout, make) -> None:
    model = make()
    theirs = layout.to_published(model)
    state = model.state_dict()
    back = layout.from_published(theirs, model)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize(("layout", "make"), [(mvd, mvd_model), (mae, mae_model)])
def test_what_does_not_fit_is_named(layout, make) -> None:
    model = make()
    theirs = layout.to_published(model)
    with pytest.raises(TubeletError, match=r"no name in the other layout: blobs\.gamma"):
        layout.from_published({**theirs, "blobs.gamma": torch.zeros(1)}, model)
    with pytest.raises(TubeletError, match="lack the position table pos_embed"):
        layout.from_published({k: v for k, v in theirs.items() if k != "pos_embed"}, model)
    learned = theirs["pos_embed"] + 0.01
    with pytest.raises(TubeletError, match=r"pos_embed is not the fixed one.* differs by 0\.01"):
        layout.from_published({**theirs, "pos_embed": learned}, model)
    with pytest.raises(TubeletError, match=r"pos_embed is \[\d+, 48\], where this network has"):
        layout.from_published({**theirs, "pos_embed": theirs["pos_embed"][:, :-3]}, model)


def test_a_bias_of_keys_changes_nothing() -> None:
    """A block with one bias for all three, by its own formula, against ours without the keys'."""
    torch.manual_seed(0)
    block = videomae_model().backbone.blocks[0].attn
    x, bias = torch.randn(2, 7, 48), torch.randn(3 * 48)
    split = split_bias({"attn.qkv.bias": bias})
    block.load_state_dict(
        {"q_bias": split["attn.q_bias"], "v_bias": split["attn.v_bias"]}, strict=False
    )
    q, k, v = (x @ block.qkv.weight.T + bias).view(2, 7, 3, 3, 16).unbind(2)
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) / 16**0.5
    mixed = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v).flatten(2)
    torch.testing.assert_close(block(x), block.proj(mixed), rtol=1e-5, atol=1e-5)
    joined = join_bias(split)["attn.qkv.bias"]
    assert torch.equal(joined[:48], bias[:48])
    assert not joined[48:96].any()
    assert torch.equal(joined[96:], bias[96:])


def save(path: Path, state: dict[str, Tensor], wrapper: str = "model") -> Path:
    settings = argparse.Namespace(num_frames=8, input_size=32, opt_betas=[0.9, 0.95], mask="tube")
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        wrapped = {wrapper: state, "epoch": "best", "args": settings} if wrapper else state
        torch.save(wrapped, path)
    return path


def features(model: nn.Module, clip: Tensor) -> Tensor:
    """Un-normed outputs of the last block: what a teacher is read for."""
    return model.backbone(clip, layers=[-1], norm=False).layers[0]


def prefixed() -> tuple[nn.Module, dict[str, Tensor]]:
    model = videomae_model()
    return model, renamed(model.state_dict(), videomae.PRETRAIN, back=True)


def encoder_only() -> tuple[nn.Module, dict[str, Tensor]]:
    """As MVD's video teacher, and as the released ViT-H."""
    model, state = prefixed()
    return model, {name: v for name, v in state.items() if name.startswith("encoder.")}


def bare() -> tuple[nn.Module, dict[str, Tensor]]:
    model, state = encoder_only()
    return model, {name.removeprefix("encoder."): v for name, v in state.items()}


def student() -> tuple[nn.Module, dict[str, Tensor]]:
    model = mvd_model()
    return model, mvd.to_published(model)


def mae_full() -> tuple[nn.Module, dict[str, Tensor]]:
    model = mae_model()
    return model, mae.to_published(model)


def mae_encoder() -> tuple[nn.Module, dict[str, Tensor]]:
    model, state = mae_full()
    decoder = ("decoder_", "mask_token")
    return model, {name: v for name, v in state.items() if not name.startswith(decoder)}


@pytest.mark.parametrize("make", [prefixed, encoder_only, bare, student, mae_full, mae_encoder])
@pytest.mark.parametrize("file", ["a.pth", "a.safetensors"])
def test_the_encoder_of_each_layout(make, file: str, tmp_path: Path) -> None:
    model, state = make()
    path = save(tmp_path / file, state)
    images = make in (mae_full, mae_encoder)
    told = {"heads": 3} if images else TOLD
    teacher = load_teacher(path, **told)
    assert teacher.sees == ("frames" if images else "clip")
    clip = torch.rand(2, 3, 8, 32, 32)
    found = teacher(clip, slots=4)
    if images:
        each = [features(model, clip[:, :, i : i + 1]) for i in (0, 2, 4, 6)]
        torch.testing.assert_close(found, torch.cat(each, 1))
    else:
        torch.testing.assert_close(found, features(model, clip))


@pytest.mark.parametrize("wrapper", ["model", "module", ""])
def test_wrappers_and_settings(wrapper: str, tmp_path: Path) -> None:
    model, state = prefixed()
    path = save(tmp_path / "checkpoint-799.pth", state, wrapper)
    # The settings beside the weights say the clips' size; a bare state dict has none.
    teacher = load_teacher(path, heads=3, trained=None if wrapper else (8, 32, 32))
    assert teacher.module.trained == (8, 32, 32)
    clip = torch.rand(1, 3, 8, 32, 32)
    torch.testing.assert_close(teacher(clip, 4), features(model, clip))


def test_a_folder_of_deepspeed_with_half_precision_weights(tmp_path: Path) -> None:
    model, state = bare()
    folder = tmp_path / "checkpoint-49"
    folder.mkdir()
    save(folder / DEEPSPEED, {name: value.half() for name, value in state.items()}, "module")
    teacher = load_teacher(folder, heads=3)
    assert {p.dtype for p in teacher.module.parameters()} == {torch.float32}
    clip = torch.rand(1, 3, 8, 32, 32)
    torch.testing.assert_close(teacher(clip, 4), features(model, clip), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("position", ["sinusoid_1d", "sincos_3d"])
def test_fine_tuned_files_need_to_be_told_apart(position, tmp_path: Path) -> None:
    vit = ViT(ViTShape(48, 2, 3, patch=8, position=position), trained=(8, 32, 32), final_norm=False)
    model = randomised(Classifier(vit, 5))
    state = renamed(model.state_dict(), videomae.CLASSIFIER, back=True)
    path = save(tmp_path / "fine.pth", state)
    with pytest.raises(TubeletError, match=r"--video\.position .* sincos_3d for MVD"):
        load_teacher(path, heads=3)
    clip = torch.rand(1, 3, 8, 32, 32)
    found = load_teacher(path, heads=3, position=position)(clip, 4)
    torch.testing.assert_close(found, features(model, clip))


def test_known_widths_need_no_heads_and_others_do(tmp_path: Path) -> None:
    shape = ViTShape(384, 1, 6)
    vit = ViT(shape, final_norm=False)
    path = save(tmp_path / "small.pth", vit.state_dict(), "")
    found = read_encoder(path)
    assert (found.shape, found.trained, found.in_chans) == (shape, (16, 224, 224), 3)
    _, state = bare()
    with pytest.raises(TubeletError, match=r"width 48, and does not say how many heads"):
        load_teacher(save(tmp_path / "odd.pth", state))


def test_no_teacher_is_ever_random(tmp_path: Path) -> None:
    """A name too many, one too few, one of another shape: each is named."""
    _, state = bare()

    def refused(change: dict[str, Tensor], *, without: str = "") -> str:
        kept = {name: value for name, value in state.items() if name != without}
        with pytest.raises(TubeletError) as told:
            load_teacher(save(tmp_path / "a.pth", {**kept, **change}), **TOLD)
        return str(told.value)

    assert "blocks.0.gamma_1 is not in the model" in refused({"blocks.0.gamma_1": torch.ones(48)})
    said = refused({}, without="blocks.1.attn.v_bias")
    assert "blocks.1.attn.v_bias is missing" in said
    said = refused({"blocks.1.mlp.fc2.bias": torch.ones(47)})
    assert "blocks.1.mlp.fc2.bias is 47, the model's is 48" in said
    said = refused({"encoder.norm.weight": torch.ones(48)})
    assert "with and without 'encoder.': encoder.norm.weight" in said
    said = refused({}, without="patch_embed.proj.weight")
    assert "none of the layouts that are known" in said
    assert "blocks.0.attn.proj.bias" in said


def test_image_tables_that_were_learned_are_refused(tmp_path: Path) -> None:
    _, state = mae_encoder()
    state["pos_embed"] = torch.randn_like(state["pos_embed"])
    with pytest.raises(TubeletError, match="pos_embed is not the fixed one"):
        load_teacher(save(tmp_path / "a.pth", state), heads=3)


def test_positions_that_are_no_square(tmp_path: Path) -> None:
    _, state = student()
    state["pos_embed"] = state["pos_embed"][:, :-4]
    path = save(tmp_path / "a.pth", state)
    with pytest.raises(TubeletError, match=r"60 positions, which are no square for each of 4 time"):
        load_teacher(path, heads=3)


class Private:
    """Stands for any object that a pickle may hold."""


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"w": torch.ones(1)}, "args": Private()}, path)
    with pytest.raises(TubeletError, match=r"a\.pth cannot be read as weights"):
        load_teacher(path)
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, path)
    with pytest.raises(TubeletError, match=r"it holds epoch \(int\), optimizer \(dict\)"):
        load_teacher(path)
    path.write_text("no weights")
    with pytest.raises(TubeletError, match=r"a\.pth cannot be read as weights"):
        load_teacher(path)
