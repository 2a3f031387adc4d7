"""Teachers by where they are, and whole runs that learn from them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from small import write_video
from torch import Tensor, nn

import tubelet
from tubelet import stored
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop import videomae as layout
from tubelet.interop.names import renamed
from tubelet.methods.mae import ImageMAE, image
from tubelet.methods.mvd import MVD, Distilled, Further
from tubelet.methods.run import changed
from tubelet.methods.videomae import VideoMAE
from tubelet.shapes import ClipSpec, Patch
from tubelet.targets.features import Teacher
from tubelet.teachers import connect, load_teacher, teacher_of

SHAPE = ViTShape(32, 2, 2, patch=8)
CLIP = ClipSpec(num_frames=4, sampling_rate=2, size=(32, 32))
DECODER = DecoderShape(16, 1, 2)
STUDENT = MVD(clip=CLIP, encoder=dataclasses.replace(SHAPE, position="sincos_3d"), decoder=DECODER)
QUICK: dict[str, Any] = {
    "batch_size": 4,
    "workers": 0,
    "device": "cpu",
    "progress": False,
    "log_every_steps": 1,
    "lr": 0.3,
    "min_lr": 0.1,
    "warmup_epochs": 0,
}
MINE = """
from __future__ import annotations
import dataclasses
import torch
from torch import nn
from tubelet.shapes import Patch
from tubelet.targets.features import Teacher

@dataclasses.dataclass
class Settings:
    width: int = 24

class Corners(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv3d(3, 24, (2, 8, 8), (2, 8, 8))

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)

def corners():
    torch.manual_seed(3)
    stated = dict(mean=(0.5,) * 3, std=(0.25,) * 3)
    return Teacher(Corners(), width=24, patch=Patch(2, 8, 8), sees="clip", **stated)

def nothing():
    return 7

def broken():
    return 1 / 0
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/ (4), and teachers: runs of ours, a published file, a Hugging Face model, mine.py."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teachers")
    for i in range(4):
        write_video(folder / f"videos/{i}.mp4", seed=i)
    frame = ClipSpec(num_frames=1, sampling_rate=1, size=(32, 32))
    runs = {
        "image": ImageMAE(clip=frame, encoder=image(SHAPE), decoder=DECODER),
        "video": VideoMAE(clip=CLIP, encoder=SHAPE, decoder=DECODER, mask_ratio=0.75),
    }
    for name, run in runs.items():
        data = folder / "videos"
        tubelet.pretrain(run, data=data, out=folder / name, steps=2, **QUICK)
    pixels = VideoMAE(clip=CLIP, encoder=SHAPE, decoder=DECODER).model()
    state = renamed(pixels.state_dict(), layout.PRETRAIN, back=True)
    torch.save({"model": state}, folder / "published.pth")
    config = hf.Dinov2Config(
        patch_size=8,
        image_size=32,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        layerscale_value=0.5,
    )
    hf.Dinov2Model(config).save_pretrained(folder / "dinov2")
    stated = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    (folder / "dinov2/preprocessor_config.json").write_text(json.dumps(stated))
    (folder / "mine.py").write_text(MINE)
    return folder


# By where they are.


def test_a_run_of_ours_is_read_without_its_last_norm(world: Path) -> None:
    teacher = load_teacher(world / "video")
    model = stored.load(world / "video")
    clip = torch.rand(2, 3, 4, 32, 32)
    expected = model.backbone(clip, layers=[1], norm=False).layers[0]
    torch.testing.assert_close(teacher(clip, 2), expected)
    assert teacher.name == str(world / "video")
    assert (teacher.width, teacher.patch, teacher.sees) == (32, Patch(2, 8, 8), "clip")


def test_a_run_of_images_sees_single_frames(world: Path) -> None:
    teacher = load_teacher(world / "image")
    model = stored.load(world / "image")
    clip = torch.rand(1, 3, 4, 32, 32)
    each = [
        model.backbone(clip[:, :, i : i + 1], layers=[-1], norm=False).layers[0] for i in (0, 2)
    ]
    torch.testing.assert_close(teacher(clip, 2), torch.cat(each, 1))


def test_positions_of_another_size_are_interpolated_or_rebuilt(world: Path, tmp_path: Path) -> None:
    clip = torch.rand(1, 3, 4, 48, 48)
    found = {
        mode: load_teacher(world / "video", positions=mode)(clip, 2)
        for mode in ("interpolate", "rebuild")
    }
    assert found["rebuild"].shape == (1, 72, 32)
    assert not torch.allclose(found["rebuild"], found["interpolate"])
    # A teacher that was trained to rebuild them goes on to, unless it is told otherwise.
    torch.testing.assert_close(load_teacher(world / "video")(clip, 2), found["interpolate"])
    shape = dataclasses.replace(SHAPE, positions="rebuild")
    run = VideoMAE(clip=CLIP, encoder=shape, decoder=DECODER, mask_ratio=0.75)
    out = tmp_path / "rebuilds"
    tubelet.pretrain(run, data=world / "videos", out=out, steps=1, **QUICK)
    assert load_teacher(out).module.positions.mode == "rebuild"
    assert load_teacher(out, positions="interpolate").module.positions.mode == "interpolate"


def test_a_safetensors_file_of_ours_and_of_others(world: Path, tmp_path: Path) -> None:
    ours = next((world / "video").glob("checkpoint-*")) / "model.safetensors"
    assert load_teacher(ours).digest == load_teacher(world / "video").digest
    foreign = tmp_path / "foreign.safetensors"
    save_file(torch.load(world / "published.pth")["model"], foreign)
    told = {"heads": 2, "trained": (4, 32, 32)}
    assert (
        load_teacher(foreign, **told).digest == load_teacher(world / "published.pth", **told).digest
    )


def test_a_function_of_ones_own(world: Path) -> None:
    teacher = load_teacher(f"{world}/mine.py:corners")
    assert (teacher.name, teacher.width) == ("Corners", 24)
    assert teacher(torch.rand(1, 3, 4, 32, 32), 2).shape == (1, 32, 24)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "nowhere",
            r"There is no teacher at .*nowhere\. Expected a run's folder.*\./mine\.py:func",
        ),
        ("facebook/dinov2-base", r"no teacher at .*dinov2-base.*local folder of a Hugging Face"),
        ("videos", "holds no checkpoint"),
        ("videos/0.mp4", "cannot be read"),
        ("other.py:corners", "There is no file .*other.py to take a teacher from"),
        (
            "mine.py:cornres",
            r"no function 'cornres'\. It has: Settings, Corners, corners, nothing, broken",
        ),
        ("mine.py:broken", r"teacher of .*mine\.py:broken was not made: ZeroDivisionError"),
        ("mine.py:nothing", r"mine\.py:nothing returned int: expected a .*Teacher"),
    ],
)
def test_where_there_is_none(world: Path, source: str, said: str) -> None:
    with pytest.raises(TubeletError, match=said):
        load_teacher(f"{world}/{source}")


@pytest.mark.parametrize("source", ["video", "dinov2", "mine.py:corners"])
def test_what_a_teacher_says_itself_is_not_told_again(world: Path, source: str) -> None:
    with pytest.raises(TubeletError, match="says its heads and trained itself: leave them out"):
        load_teacher(f"{world}/{source}", heads=2, trained=(4, 32, 32))
    with pytest.raises(TubeletError, match="says its position itself: leave that out"):
        load_teacher(f"{world}/{source}", position="sincos_3d")


# What is said of a teacher is tried before the first step.


def connected(teacher: Teacher, **changes: Any) -> dict[str, tuple[int, int]]:
    run = dataclasses.replace(STUDENT, video=Distilled(width=teacher.width), **changes)
    return connect(run.model(), {"video": teacher})


class Patches(nn.Module):
    """Tokens of 8x8 pixels and 2 frames, `more` too many of them."""

    def __init__(self, more: int = 0, fails: bool = False):
        super().__init__()
        self.proj = nn.Conv3d(3, 24, (2, 8, 8), (2, 8, 8))
        self.more = more
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("channels come last")
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, : self.more], tokens], 1)


def own(network: nn.Module, **stated: Any) -> Teacher:
    stated = {"width": 24, "mean": (0.5,) * 3, "std": (0.25,) * 3, **stated}
    return Teacher(network, patch=Patch(2, 8, 8), sees="clip", name="mine", **stated)


def test_a_network_of_ones_own_is_tried_on_one_clip() -> None:
    assert connected(own(Patches())) == {}
    assert connected(own(Patches(more=1), prefix=1)) == {}
    with pytest.raises(TubeletError, match=r"mine returned features \[1, 33, 24\].*\[1, 32, 24\]"):
        connected(own(Patches(more=1)))
    with pytest.raises(TubeletError, match=r"mine returned features .*make \[1, 32, 7\]"):
        connected(own(Patches(), width=7))
    with pytest.raises(
        TubeletError, match=r"mine \(Patches\) failed on a clip of 4x32x32.*come last"
    ):
        connected(own(Patches(fails=True)))


def test_channels_have_to_agree() -> None:
    grey = ViT(dataclasses.replace(SHAPE, mean=(0.5,), std=(0.2,)), trained=(4, 32, 32), in_chans=1)
    with pytest.raises(TubeletError, match="takes 1 channels, and the student's clips have 3"):
        connected(teacher_of(grey, name="grey"))


def test_views_of_the_teachers_own_size() -> None:
    assert connected(own(Patches(), size=(16, 24))) == {"clip_16x24": (16, 24)}


def test_a_branch_that_takes_no_teacher() -> None:
    model = dataclasses.replace(STUDENT, pixel_weight=1.0).model()
    with pytest.raises(TubeletError, match="branch pixels learns from Pixels, no teacher"):
        connect(model, {"pixels": own(Patches())})


# Whole runs: three branches, and a Hugging Face model among the teachers.


def learned(run: MVD, world: Path, out: Path, **teachers: Teacher) -> list[dict[str, Any]]:
    """20 updates -> the rows of metrics.jsonl with a loss."""
    data = world / "videos"
    tubelet.pretrain(run, data=data, out=out, steps=20, teachers=teachers or None, **QUICK)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def falls(rows: list[dict[str, Any]], *names: str) -> None:
    """Each term is finite at every step, and lower at the end than at the start."""
    assert len(rows) == 20
    for name in names:
        values = [row[name] for row in rows]
        assert all(map(math.isfinite, values)), name
        assert sum(values[-5:]) < 0.97 * sum(values[:5]), (name, values)


def test_image_video_and_pixels(world: Path, tmp_path: Path) -> None:
    run = changed(
        STUDENT,
        image_teacher=world / "image",
        video_teacher=world / "video",
        pixel_weight=0.5,
        mask_ratio=0.75,
        drop_path=0.0,
    )
    rows = learned(run, world, tmp_path / "out")
    falls(rows, "loss", "image", "video", "pixels")
    last = rows[-1]
    total = last["image"] + last["video"] + 0.5 * last["pixels"]
    assert last["loss"] == pytest.approx(total, rel=1e-4)
    # The run is told by its folder: sizes, and what taught it.
    header = json.loads((tmp_path / "out/config.json").read_text())["header"]
    assert header["teachers"]["image"]["name"] == str(world / "image")
    assert header["teachers"]["video"]["digest"] == load_teacher(world / "video").digest
    model = stored.load(tmp_path / "out")
    assert list(model.branches) == ["image", "video", "pixels"]
    assert not any("teacher" in name for name in model.state_dict())


def test_image_video_and_histograms_of_gradients(world: Path, tmp_path: Path) -> None:
    run = changed(
        STUDENT,
        image_teacher=world / "image",
        video_teacher=world / "video",
        hog_weight=0.5,
        mask_ratio=0.75,
        drop_path=0.0,
    )
    rows = learned(run, world, tmp_path / "out")
    falls(rows, "loss", "image", "video", "hog")
    total = rows[-1]["image"] + rows[-1]["video"] + 0.5 * rows[-1]["hog"]
    assert rows[-1]["loss"] == pytest.approx(total, rel=1e-4)
    assert list(stored.load(tmp_path / "out").branches) == ["image", "video", "hog"]


def test_a_hugging_face_model_as_the_image_teacher(world: Path, tmp_path: Path) -> None:
    told = {"heads": 2, "trained": (4, 32, 32)}
    run = changed(STUDENT, image_teacher=world / "dinov2", mask_ratio=0.75, drop_path=0.0)
    video = load_teacher(world / "published.pth", **told)
    rows = learned(run, world, tmp_path / "out", video=video)
    falls(rows, "loss", "image", "video")
    model = stored.load(tmp_path / "out")
    assert [model.branches[name].target.width for name in ("image", "video")] == [48, 32]


def test_further_teachers(world: Path, tmp_path: Path) -> None:
    run = changed(
        STUDENT,
        image_teacher=world / "dinov2",
        image=Distilled(loss="cosine", size=(48, 48)),
        video_teacher=world / "video",
        video=Distilled(norm_feature=True, loss="l1", layer=0),
        further=(Further(name="corners", teacher=f"{world}/mine.py:corners", weight=2.0),),
        mask_ratio=0.75,
        drop_path=0.0,
    )
    rows = learned(run, world, tmp_path / "out")
    falls(rows, "loss", "image", "video", "corners")
    header = json.loads((tmp_path / "out/config.json").read_text())["header"]
    assert sorted(header["teachers"]) == ["corners", "image", "video"]


def test_a_missing_teacher_stops_the_run(world: Path, tmp_path: Path) -> None:
    run = changed(STUDENT, image_teacher=world / "image", mask_ratio=0.75)
    with pytest.raises(TubeletError, match=r"video teacher is missing.* --video\.weight 0"):
        learned(run, world, tmp_path / "out")
    further = (Further(name="third"),)
    with pytest.raises(TubeletError, match=r"third teacher is missing.* Further\(name='third'"):
        learned(
            changed(run, video_teacher=world / "video", further=further), world, tmp_path / "out"
        )
    with pytest.raises(TubeletError, match=r"There is no teacher at .*gone"):
        learned(changed(run, video_teacher="gone"), world, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_with_the_teachers_that_it_began_with(world: Path, tmp_path: Path) -> None:
    run = changed(
        STUDENT, video_teacher=world / "video", mask_ratio=0.75, image=Distilled(weight=0)
    )
    settings = {"data": world / "videos", "out": tmp_path / "out", **QUICK}
    tubelet.pretrain(run, steps=2, **settings)
    other = tmp_path / "other"
    tubelet.pretrain(
        VideoMAE(clip=CLIP, encoder=SHAPE, decoder=DECODER, mask_ratio=0.75),
        **(settings | {"out": other, "steps": 1, "seed": 5}),
    )
    before = (tmp_path / "out/metrics.jsonl").read_text()
    with pytest.raises(
        TubeletError, match=rf"learned from the video teacher {world}/video .*{other}"
    ):
        tubelet.pretrain(changed(run, video_teacher=other), steps=4, resume=True, **settings)
    assert (tmp_path / "out/metrics.jsonl").read_text() == before
    # Where it lies now does not matter.
    (tmp_path / "moved").symlink_to(world / "video")
    moved = changed(run, video_teacher=tmp_path / "moved")
    tubelet.pretrain(moved, steps=4, resume=True, **settings)
    assert json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])["step"] == 4


def test_a_teacher_on_a_device_of_its_own_is_fed_there() -> None:
    network = nn.Conv3d(3, 8, (2, 8, 8), (2, 8, 8)).to("meta")
    teacher = Teacher(
        network,
        width=8,
        patch=Patch(2, 8, 8),
        sees="clip",
        mean=[0.5] * 3,
        std=[0.2] * 3,
        digest="x",
    )
    assert teacher.mean.device.type == teacher.std.device.type == "meta"
