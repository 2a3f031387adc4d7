"""Each Hugging Face family as a teacher, against the model called by hand (tiny, random weights)."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tubelet
from tubelet.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from tubelet.errors import TubeletError
from tubelet.interop.huggingface_teacher import huggingface_teacher
from tubelet.shapes import Grid, Patch
from tubelet.targets.features import Features
from tubelet.teachers import load_teacher

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def dinov2() -> nn.Module:
    return made(hf.Dinov2Model, hf.Dinov2Config(patch_size=8, image_size=64, **SIZE))


def registers() -> nn.Module:
    config = hf.Dinov2WithRegistersConfig(
        patch_size=8, image_size=32, num_register_tokens=4, **SIZE
    )
    return made(hf.Dinov2WithRegistersModel, config)


def clip_vision() -> nn.Module:
    config = hf.CLIPVisionConfig(patch_size=8, image_size=32, intermediate_size=64, **SIZE)
    return made(hf.CLIPVisionModel, config)


def clip_both() -> nn.Module:
    vision = {"patch_size": 8, "image_size": 32, "intermediate_size": 64, **SIZE}
    text = {"intermediate_size": 64, "vocab_size": 99, **SIZE}
    return made(hf.CLIPModel, hf.CLIPConfig(vision_config=vision, text_config=text))


def video_mae() -> nn.Module:
    config = hf.VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=8,
        intermediate_size=192,
        decoder_num_attention_heads=2,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_intermediate_size=128,
        layer_norm_eps=1e-6,
        use_mean_pooling=False,
        **{**SIZE, "hidden_size": 48},
    )
    return made(hf.VideoMAEForPreTraining, config)


def vjepa2() -> nn.Module:
    config = hf.VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=16,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        **{**SIZE, "hidden_size": 48},
    )
    return made(hf.VJEPA2Model, config)


def made(kind: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():  # away from the initialisation, where biases are zero and norms are one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def blocks(model: nn.Module) -> nn.ModuleList:
    """The encoder's blocks, wherever the model keeps them."""
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == 3
        and not {"predictor", "text_model", "decoder"} & set(name.split("."))
    ]
    assert len(found) == 1
    return found[0]


def by_hand(model: nn.Module, layer: int, **inputs: Tensor) -> Tensor:
    """What one of its blocks puts out, caught by a hook in a plain call of the model."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, given: Any, out: Any) -> None:
        caught.append(out if isinstance(out, Tensor) else out[0])

    hook = blocks(model)[layer].register_forward_hook(catch)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return caught[0]


def normal(clip: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).view(-1, 1, 1, 1) for x in (MEAN, STD))
    return (clip - mean) / std


@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize(
    ("make", "prefix", "size"),
    [(dinov2, 1, (32, 48)), (registers, 5, (32, 48)), (clip_vision, 1, (32, 32))],
)
def test_models_of_images_see_the_first_frame_of_each_tubelet(make, prefix, size, layer) -> None:
    model = make()
    teacher = huggingface_teacher(model, MEAN, STD)
    clip = torch.rand(2, 3, 8, *size)
    found = teacher(clip, 4, layer)
    for b in range(2):
        for slot, frame in enumerate((0, 2, 4, 6)):
            image = normal(clip)[b, :, frame][None]
            expected = by_hand(model, layer, pixel_values=image)[0, prefix:]
            n = len(expected)
            torch.testing.assert_close(found[b, slot * n : (slot + 1) * n], expected)
    assert found.shape[1] == teacher.grid_for(4, 8, *size).size


@pytest.mark.parametrize("layer", [-1, 1])
def test_videomae_sees_the_clip_in_its_layout(layer: int) -> None:
    model = video_mae()
    teacher = huggingface_teacher(model, MEAN, STD)
    assert teacher.module is model.videomae  # its decoder is left out
    clip = torch.rand(2, 3, 8, 32, 32)
    expected = by_hand(model.videomae, layer, pixel_values=normal(clip).transpose(1, 2))
    torch.testing.assert_close(teacher(clip, 4, layer), expected)
    assert (teacher.num_frames, teacher.size, teacher.width) == (8, (32, 32), 48)
    assert teacher.patch == Patch(2, 8, 8)


@pytest.mark.parametrize("frames", [4, 8])
def test_vjepa_takes_clips_of_other_lengths(frames: int) -> None:
    model = vjepa2()
    teacher = huggingface_teacher(model, MEAN, STD)
    clip = torch.rand(2, 3, frames, 32, 32)
    expected = by_hand(model, -1, pixel_values_videos=normal(clip).transpose(1, 2))
    torch.testing.assert_close(teacher(clip, frames // 2), expected)


def test_clips_tower_of_images_is_taken_from_the_whole_model() -> None:
    model = clip_both()
    teacher = huggingface_teacher(model, MEAN, STD)
    clip = torch.rand(1, 3, 2, 32, 32)
    expected = by_hand(model.vision_model, -1, pixel_values=normal(clip)[:, :, 0])[:, 1:]
    torch.testing.assert_close(teacher(clip, 1), expected)


def test_a_clip_of_another_size_is_resized_where_the_model_takes_one_alone() -> None:
    model = clip_vision()
    teacher = huggingface_teacher(model, MEAN, STD)
    clip = torch.rand(1, 3, 2, 48, 64)
    small = F.interpolate(clip[:, :, 0], (32, 32), mode="bilinear", antialias=True)
    image = normal(small.unsqueeze(2))[:, :, 0]
    expected = by_hand(model, -1, pixel_values=image)[:, 1:]
    torch.testing.assert_close(teacher(clip, 1), expected)


def test_hugging_faces_videomae_and_ours_teach_the_same(tmp_path: Path) -> None:
    """Two independent networks with the same weights: un-normed outputs of every block."""
    theirs = video_mae()
    stated = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    ours = tubelet.load(folder_of(theirs, tmp_path, **stated)).backbone
    teacher = huggingface_teacher(theirs, IMAGENET_MEAN, IMAGENET_STD)
    clip = torch.rand(2, 3, 8, 32, 32)
    each = ours(clip, layers=[0, 1, 2], norm=False).layers
    for layer, expected in enumerate(each):
        torch.testing.assert_close(teacher(clip, 4, layer), expected, rtol=1e-4, atol=1e-5)


def folder_of(model: nn.Module, path: Path, **preprocessor: Any) -> Path:
    model.save_pretrained(path)
    stated = {"image_mean": MEAN, "image_std": STD, **preprocessor}
    (path / "preprocessor_config.json").write_text(json.dumps(stated))
    return path


@pytest.mark.parametrize("make", [dinov2, clip_vision, clip_both, video_mae, vjepa2])
def test_a_local_folder(make, tmp_path: Path) -> None:
    model = make()
    teacher = load_teacher(folder_of(model, tmp_path / "model"))
    assert teacher.name == str(tmp_path / "model")
    clip = torch.rand(1, 3, 8, 32, 32)
    expected = huggingface_teacher(model, MEAN, STD)
    assert torch.equal(teacher(clip, 4), expected(clip, 4))
    assert teacher.digest == expected.digest
    assert len(teacher.digest) == 16


def test_a_folder_of_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    teacher = load_teacher(folder_of(dinov2().half(), tmp_path / "model"))
    assert teacher(torch.rand(1, 3, 2, 32, 32), 1).dtype == torch.float32


def test_the_normalisation_of_a_video_processor(tmp_path: Path) -> None:
    folder = folder_of(vjepa2(), tmp_path / "model")
    (folder / "preprocessor_config.json").rename(folder / "video_preprocessor_config.json")
    assert load_teacher(folder).mean.flatten().tolist() == pytest.approx(MEAN)


def test_an_unknown_normalisation_is_an_error(tmp_path: Path) -> None:
    folder = folder_of(dinov2(), tmp_path / "model")
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(TubeletError, match=r"normalisation of the model in .*model is not known"):
        load_teacher(folder)
    with pytest.raises(TubeletError, match="normalisation of the teacher Dinov2Model is not known"):
        huggingface_teacher(dinov2())


def test_weights_that_a_folder_lacks_are_never_random(tmp_path: Path) -> None:
    folder = folder_of(dinov2(), tmp_path / "model")
    file = folder / "model.safetensors"
    weights = load_file(file)
    gone = "encoder.layer.1.mlp.fc1.weight"
    save_file({k: v for k, v in weights.items() if k != gone}, file, {"format": "pt"})
    with pytest.raises(TubeletError, match=r"missing encoder\.layer\.1\.mlp\.fc1\.weight"):
        load_teacher(folder)
    save_file({**weights, "extra.weight": torch.ones(1)}, file, {"format": "pt"})
    with pytest.raises(TubeletError, match=r"without a place extra\.weight"):
        load_teacher(folder)
    file.unlink()
    with pytest.raises(TubeletError, match="cannot be loaded"):
        load_teacher(folder)


def test_another_family_is_refused_with_the_known_ones() -> None:
    model = hf.ViTModel(hf.ViTConfig(intermediate_size=64, **SIZE))
    with pytest.raises(TubeletError, match=r"type 'vit' are not known.*dinov2.*vjepa2 are"):
        huggingface_teacher(model, MEAN, STD)
    with pytest.raises(TubeletError, match="type 'none' are not known"):
        huggingface_teacher(nn.Linear(2, 2), MEAN, STD)


def test_errors_of_what_cannot_be_mapped_name_both_sides() -> None:
    student = Features(48, patch=Patch(2, 8, 8), grid=Grid(2, 4, 4))
    with pytest.raises(TubeletError, match=r"takes clips of 8 frames, and the student's have 4"):
        student.connect(huggingface_teacher(video_mae(), MEAN, STD, name="A"))
    student = Features(32, patch=Patch(2, 8, 8), grid=Grid(2, 4, 4), size=(64, 64))
    with pytest.raises(TubeletError, match=r"The teacher A takes 32x32 pixels and no others"):
        student.connect(huggingface_teacher(clip_vision(), MEAN, STD, name="A"))
    student = Features(32, patch=Patch(2, 10, 10), grid=Grid(2, 3, 3))
    with pytest.raises(TubeletError, match=r"teacher A cannot be mapped onto .* 2x3x3 tokens"):
        student.connect(huggingface_teacher(dinov2(), MEAN, STD, name="A"))
    with pytest.raises(TubeletError, match="Layer 3 does not exist: A has blocks 0 to 2"):
        huggingface_teacher(dinov2(), MEAN, STD, name="A")(torch.rand(1, 3, 2, 32, 32), 1, 3)


def test_without_transformers_it_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    folder = folder_of(dinov2(), tmp_path / "model")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TubeletError, match=r"needs transformers: pip install 'tubelet\[hf\]'"):
        load_teacher(folder)


@pytest.mark.parametrize("make", [dinov2, registers, clip_vision, video_mae, vjepa2])
def test_each_runs_in_bf16_as_on_a_gpu(make) -> None:
    clip = torch.rand(1, 3, 8, 32, 32)
    found = []
    for precision in ("float32", "bf16"):
        teacher = huggingface_teacher(make(), MEAN, STD)
        student = Features(
            teacher.width, patch=Patch(2, 8, 8), grid=Grid(4, 4, 4), precision=precision
        )
        student.connect(teacher)
        found.append(student(clip))
    exact, low = found
    assert low.dtype == torch.float32
    assert 0 < (low - exact).norm() / exact.norm() < 0.05  # bf16 has 8 bits of precision
