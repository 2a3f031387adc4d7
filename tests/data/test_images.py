"""Folders and lists of pictures as data: every mode and format, damage, check, clips of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import write_video

import tubelet
from tubelet.backbones.vit import ViTShape
from tubelet.data.check import check, frames_needed
from tubelet.data.clips import ClipDataset, Key
from tubelet.data.decode import DecodeError, Video
from tubelet.data.lists import read_list
from tubelet.data.transforms import PRETRAIN
from tubelet.decoders import DecoderShape
from tubelet.methods import mae
from tubelet.methods.run import changed
from tubelet.shapes import ClipSpec

ONE = ClipSpec(num_frames=1, sampling_rate=1, size=(16, 16))


def picture(path: Path, seed: int = 0, height: int = 24, width: int = 32) -> Path:
    """Coarse random colours: what survives JPEG."""
    cells = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(cells.repeat(8, 0).repeat(8, 1)).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Video(path) as video:
        assert video.info.frames == 1
        return video.frames([0])[0].numpy()


# --- modes -----------------------------------------------------------------------------------

GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def test_grey_palette_and_one_bit_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(GRADIENT)
    for mode, expected in (
        ("L", GRADIENT),
        ("P", GRADIENT),
        ("1", np.where(GRADIENT > 127, 255, 0)),
    ):
        made = grey.convert(mode, dither=Image.Dither.NONE) if mode != "L" else grey
        made.save(tmp_path / f"{mode}.png")
        assert np.array_equal(pixels(tmp_path / f"{mode}.png"), np.stack([expected] * 3, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(tmp_path: Path, mode: str) -> None:
    colours = np.zeros((2, 2, 4), np.uint8)
    colours[..., 3] = [[255, 255], [0, 0]]  # black, the lower row transparent
    image = Image.fromarray(colours)
    if mode == "P":
        image = Image.fromarray(np.array([[0, 0], [1, 1]], np.uint8), "P")
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.save(tmp_path / "p.png", transparency=1)
    else:
        image.convert(mode).save(tmp_path / "p.png")
    assert pixels(tmp_path / "p.png")[..., 0].tolist() == [[0, 0], [255, 255]]


def test_half_transparent_is_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 100, 200, 51)).save(tmp_path / "p.png")  # a fifth
    assert pixels(tmp_path / "p.png")[0, 0] == pytest.approx([204, 224, 244], abs=1)


def test_four_inks_of_a_jpeg(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    image.save(tmp_path / "p.jpg", quality=95)
    red, green, blue = pixels(tmp_path / "p.jpg").reshape(-1, 3).mean(0)
    assert red > 200 and green < 60 and blue < 60


def test_16_bits_in_32_and_what_has_no_white(tmp_path: Path) -> None:
    deep = np.array([[0, 256], [65280, 65535]], np.int32)
    Image.fromarray(deep).save(tmp_path / "p.tif")
    assert pixels(tmp_path / "p.tif")[..., 0].tolist() == [[0, 1], [255, 255]]
    Image.fromarray(deep * 16).save(tmp_path / "deep.tif")
    with pytest.raises(DecodeError, match=r"deep\.tif.*beyond 16 bits"):
        Video(tmp_path / "deep.tif")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DecodeError, match=r"float\.tif.*fractions"):
        Video(tmp_path / "float.tif")


def test_the_first_picture_of_a_cameras_mpo(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "p.jpg", format="MPO", save_all=True, append_images=[second])
    red, _, blue = pixels(tmp_path / "p.jpg").reshape(-1, 3).mean(0)
    assert red > 200 and blue < 60


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "bmp"])
def test_a_truncated_picture_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = picture(tmp_path / f"whole.{suffix}", height=256, width=256)
    assert pixels(path).shape == (256, 256, 3)
    data = path.read_bytes()
    for share in (0.1, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DecodeError, match="cannot be read as a picture"):
            Video(path)


def test_damage_in_the_middle_is_read_or_said_but_crashes_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for suffix in ("jpg", "png", "webp", "bmp"):
        data = picture(tmp_path / f"whole.{suffix}", height=64, width=64).read_bytes()
        for _ in range(40):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), 8):
                broken[at] = rng.integers(256)
            path = tmp_path / f"broken.{suffix}"
            path.write_bytes(broken)
            try:
                Video(path).close()
            except DecodeError:
                refused += 1
    assert refused > 20


def test_a_picture_beyond_all_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="exceeds limit"):
        Video(path)


# --- lists, check, clips ---------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """images/: five files of five kinds, at two depths."""
    names = ("a.jpg", "b.jpeg", "c.PNG", "more/d.webp", "more/e.bmp")
    for seed, name in enumerate(names):
        picture(tmp_path / "images" / name, seed)
    return tmp_path / "images"


def test_folders_and_lists_of_pictures(images: Path, tmp_path: Path) -> None:
    names = [Path(entry.path).name for entry in read_list(images).entries]
    assert names == ["a.jpg", "b.jpeg", "c.PNG", "d.webp", "e.bmp"]
    listed = tmp_path / "list.csv"
    listed.write_text("path,label\nimages/a.jpg,cat\nimages/more/d.webp,dog\n")
    videos = read_list(listed)
    assert [videos.classes[entry.label] for entry in videos.entries] == ["cat", "dog"]
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            picture(tmp_path / f"split/{split}/{label}/0.jpg")
    val = read_list(tmp_path / "split", split="val")
    assert (len(val), val.classes) == (2, ("cat", "dog"))


def test_a_clip_of_more_frames_repeats_the_picture(images: Path) -> None:
    spec = ClipSpec(num_frames=4, sampling_rate=2, size=(16, 16))
    (sample,) = ClipDataset(read_list(images), spec, PRETRAIN, seed=0)[Key(0, 0)]
    clip = sample.views["clip"]
    assert clip.shape == (3, 4, 16, 16)
    assert torch.equal(clip, clip[:, :1].expand(3, 4, 16, 16))


def test_check_of_pictures(images: Path) -> None:
    report = check(images, spec=ONE, workers=0)
    assert report.ok, report.to_json()
    assert report.videos["frames"] == {"min": 1, "median": 1, "max": 1}
    (images / "f.jpg").write_bytes((images / "a.jpg").read_bytes()[:200])
    report = check(images, spec=ONE, workers=0)
    assert [Path(bad["path"]).name for bad in report.unreadable] == ["f.jpg"]
    long = check(images, spec=ClipSpec(num_frames=4, sampling_rate=2), workers=0)
    assert len(long.too_short) == 5


@pytest.mark.parametrize("sampling", ["dense", "dense_fps", "uniform", "seconds"])
def test_a_clip_of_one_frame_needs_one_frame(sampling) -> None:
    assert frames_needed(ClipSpec(num_frames=1, sampling=sampling), fps=1.0) == 1


# --- image MAE on them -----------------------------------------------------------------------


@pytest.mark.parametrize("data", ["images", "videos", "both"])
def test_image_mae_trains_on_pictures_and_on_frames_of_videos(images, tmp_path, data) -> None:
    for seed in range(4):
        write_video(tmp_path / f"videos/{seed}.mp4", seed=seed)
    if data == "both":
        given = [*(str(p) for p in images.rglob("*.*")), str(tmp_path / "videos/0.mp4")]
        (tmp_path / "both.txt").write_text("\n".join(given))
    run = changed(
        mae.base_in1k,
        encoder=mae.image(ViTShape(16, 2, 2, patch=8)),
        decoder=DecoderShape(16, 1, 2),
        size=(32, 32),
        batch_size=4,
        micro_batch=2,
        steps=3,
        workers=0,
        device="cpu",
        progress=False,
        checkpoint_blocks=False,
    )
    place = tmp_path / ("both.txt" if data == "both" else data)
    out = tubelet.pretrain(run, data=place, out=tmp_path / "run")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    model = tubelet.load(out)
    assert model.backbone.grid == (1, 4, 4) and model.card.clip.num_frames == 1
    assert np.isfinite(rows[-1]["loss"])
