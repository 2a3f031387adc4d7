"""VideoMAE's files as teachers and models: names, wrappers, settings, and what no file may do."""

from pathlib import Path

import pytest
import torch
from foreign import (
    TOLD,
    classifier_model,
    features,
    mae_model,
    same_state,
    save,
    student_model,
    theirs,
    videomae_model,
)
from torch import Tensor, nn

from tubelet import stored
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.errors import TubeletError
from tubelet.interop import layouts, videomae
from tubelet.interop.names import renamed
from tubelet.interop.reading import read_raw
from tubelet.methods.videomae import base_k400
from tubelet.model import Card, MaskedModel
from tubelet.shapes import ClipSpec
from tubelet.teachers import load_teacher

DEEPSPEED = "mp_rank_00_model_states.pt"
Made = tuple[nn.Module, dict[str, Tensor]]


def prefixed() -> Made:
    model = videomae_model()
    return model, theirs(model, "videomae")


def encoder_only() -> Made:
    """As MVD's video teacher, and as the released ViT-H."""
    model, state = prefixed()
    return model, {name: v for name, v in state.items() if name.startswith("encoder.")}


def bare() -> Made:
    model, state = encoder_only()
    return model, {name.removeprefix("encoder."): v for name, v in state.items()}


def student() -> Made:
    model = student_model()
    return model, theirs(model, "mvd")


def mae_full() -> Made:
    model = mae_model()
    return model, theirs(model, "mae")


def mae_encoder() -> Made:
    model, state = mae_full()
    decoder = ("decoder_", "mask_token")
    return model, {name: v for name, v in state.items() if not name.startswith(decoder)}


def test_names_and_shapes_are_those_of_the_published_files() -> None:
    """The specification's counts, 2.1, at the published size."""
    with torch.device("meta"):
        model = base_k400.model()
    model.card = Card(clip=base_k400.clip)
    found = stored.found_of(model)
    names = {videomae.spell(found, name): v for name, v in videomae.write(found).items()}
    assert len(names) == 218
    assert names["encoder_to_decoder.weight"].shape == (384, 768)
    teacher = [name for name in names if name.startswith("encoder.")]
    assert len(teacher) == 160  # MVD's video teacher


@pytest.mark.parametrize("make", [prefixed, encoder_only, bare, student, mae_full, mae_encoder])
@pytest.mark.parametrize("file", ["a.pth", "a.safetensors"])
def test_the_teacher_of_each_layout(make, file: str, tmp_path: Path) -> None:
    model, state = make()
    path = save(tmp_path / file, state)
    images = make in (mae_full, mae_encoder)
    told = {"heads": 3} if images else dict(TOLD)
    if make is bare:  # its names are those of an MVD student's encoder too
        told["position"] = "sinusoid_1d"
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
    path = save(tmp_path / "checkpoint-799.pth", state, wrapper, num_frames=8, input_size=32)
    # The settings beside the weights say the clips' size; a bare state dict has none.
    trained = None if wrapper else (8, 32, 32)
    found = stored.load(path, heads=3, decoder_heads=2, trained=trained)
    assert found.backbone.trained == (8, 32, 32)
    clip = torch.rand(1, 3, 8, 32, 32)
    torch.testing.assert_close(features(found, clip), features(model, clip))
    layouts.write(stored.found_of(found), "videomae", tmp_path / "back.pth")
    again = read_raw(tmp_path / "back.pth")
    assert again.wrapper == wrapper
    same_state(again.state, state)


def test_a_folder_of_deepspeed_with_half_precision_weights(tmp_path: Path) -> None:
    model, state = encoder_only()
    folder = tmp_path / "checkpoint-49"
    folder.mkdir()
    half = {name: value.half() for name, value in state.items()}
    save(folder / DEEPSPEED, half, "module", num_frames=8, input_size=32)
    found = stored.load(folder, heads=3)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert any("float16: read as float32" in note for note in found.report.notes)
    clip = torch.rand(1, 3, 8, 32, 32)
    torch.testing.assert_close(features(found, clip), features(model, clip), rtol=0.05, atol=0.05)
    same_state(layouts.state_of(stored.found_of(found), "videomae"), half)


@pytest.mark.parametrize("position", ["sinusoid_1d", "sincos_3d"])
def test_fine_tuned_files_need_to_be_told_apart(position, tmp_path: Path) -> None:
    model = classifier_model(position)
    layout = "mvd" if position == "sincos_3d" else "videomae"
    state = theirs(model, layout)
    path = save(tmp_path / "fine.pth", state)
    with pytest.raises(TubeletError, match=r"--position .* sincos_3d for MVD"):
        load_teacher(path, heads=3)
    clip = torch.rand(1, 3, 8, 32, 32)
    found = load_teacher(path, position=position, **TOLD)(clip, 4)
    torch.testing.assert_close(found, features(model, clip))
    tuned = stored.load(path, position=position, **TOLD)
    assert torch.equal(tuned(clip), model(clip))
    same_state(layouts.state_of(stored.found_of(tuned), layout), state)


def test_known_widths_need_no_heads_and_others_do(tmp_path: Path) -> None:
    shape = ViTShape(384, 1, 6)
    model = MaskedModel(ViT(shape, final_norm=False), [])
    model.card = Card(clip=ClipSpec())
    path = save(tmp_path / "small.pth", theirs(model, "videomae"), "")
    found = stored.opened(path).header["backbone"]
    assert (found["shape"]["heads"], found["trained"], found["in_chans"]) == (6, [16, 224, 224], 3)
    _, state = encoder_only()
    with pytest.raises(TubeletError, match=r"how many heads its attention of width 48 has"):
        stored.load(save(tmp_path / "odd.pth", state), trained=(8, 32, 32))


def test_no_layer_is_ever_random(tmp_path: Path) -> None:
    """A name too many, one too few, one of another shape: each is named."""
    _, state = encoder_only()

    def refused(change: dict[str, Tensor], *, without: str = "") -> str:
        kept = {name: value for name, value in state.items() if name != without}
        with pytest.raises(TubeletError) as told:
            load_teacher(save(tmp_path / "a.pth", {**kept, **change}), **TOLD)
        return str(told.value)

    assert "blocks.0.gamma_1" in refused({"encoder.blocks.0.gamma_1": torch.ones(48)})
    said = refused({}, without="encoder.blocks.1.attn.v_bias")
    assert "blocks.1.attn.v_bias is missing" in said
    said = refused({"encoder.blocks.1.mlp.fc2.bias": torch.ones(47)})
    assert "blocks.1.mlp.fc2.bias is 47, the model's is 48" in said
    said = refused({"norm.weight": torch.ones(48)})
    assert "norm.weight twice, as encoder.norm.weight and as norm.weight" in said
    said = refused({}, without="encoder.patch_embed.proj.weight")
    assert "none of the layouts that are known" in said


def test_one_layout_becomes_another_where_it_can() -> None:
    """A classifier with a head of MVD is none of VideoMAE's; VideoMAE's becomes V2's."""
    model = videomae_model()
    assert list(theirs(model, "videomae")) == list(theirs(model, "videomae-v2"))
    with pytest.raises(TubeletError, match="no place for this model"):
        theirs(student_model(), "videomae")
    with pytest.raises(TubeletError, match="no name in the other layout"):
        renamed({"blobs.gamma": torch.zeros(1)}, videomae.PRETRAIN)


class Private:
    """Stands for any object that a pickle may hold."""


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"w": torch.ones(1)}, "args": Private()}, path)
    with pytest.raises(TubeletError, match=r"a\.pth"):
        stored.load(path)
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, path)
    with pytest.raises(TubeletError, match=r"it holds epoch \(int\), optimizer \(dict\)"):
        stored.load(path)
    path.write_text("no weights")
    with pytest.raises(TubeletError, match=r"a\.pth cannot be read as weights"):
        stored.load(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("head.weight", ()),
        ("blocks.0.mlp.fc1.weight", (4,)),
        ("blocks.1.attn.qkv.bias", (4,)),
        ("blocks.1.attn.qkv.bias", ()),
    ],
)
def test_a_tensor_of_an_odd_shape_is_one_clear_error(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    state = theirs(classifier_model(), "videomae") | {name: torch.ones(shape)}
    path = save(tmp_path / "a.pth", state)
    with pytest.raises(TubeletError, match=str(path)):
        stored.load(path, position="sinusoid_1d", **TOLD)


def test_clips_in_tubelets_of_one_frame_are_no_images(tmp_path: Path) -> None:
    model = classifier_model(tubelet_size=1)
    path = save(tmp_path / "a.pth", theirs(model, "videomae"), num_frames=8, input_size=32)
    found = stored.load(path, position="sinusoid_1d", heads=3)
    assert found.backbone.trained == (8, 32, 32)
    clip = torch.rand(1, 3, 8, 32, 32)
    assert torch.equal(found(clip), model(clip))


@pytest.mark.parametrize(("width", "hidden"), [(112, 488), (176, 240)])
def test_widths_whose_quotient_is_rounded(width: int, hidden: int, tmp_path: Path) -> None:
    """488 / 112 * 112 is less than 488."""
    assert int(width * (hidden / width)) == hidden - 1
    state = theirs(
        classifier_model(width=width, heads=4, mlp_ratio=(hidden + 0.5) / width), "videomae"
    )
    assert len(state["blocks.0.mlp.fc1.weight"]) == hidden
    path = save(tmp_path / "a.pth", state)
    found = stored.load(path, position="sinusoid_1d", **TOLD | {"heads": 4})
    same_state(theirs(found, "videomae"), state)


def test_a_prefix_alone_does_not_say_whose_a_fine_tuned_file_is(tmp_path: Path) -> None:
    """VideoMAE's pretrained encoders bear it alone."""
    state = {f"encoder.{n}": v for n, v in theirs(classifier_model(), "videomae").items()}
    with pytest.raises(TubeletError, match="does not say its positions"):
        stored.load(save(tmp_path / "a.pth", state), **TOLD)
    path = save(tmp_path / "a.pth", encoder_only()[1])
    assert "by the prefix encoder." in " ".join(stored.load(path, **TOLD).report.notes)
