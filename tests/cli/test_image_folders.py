"""Images in class folders: pretrained on, fine-tuned, evaluated and predicted, with the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import TINY_DECODER, TINY_NET

import tubelet as library
from tubelet.model import Classifier

Said = Callable[..., tuple[int, str, str]]
HERE = ["--workers", "0", "--device", "cpu"]
FEW = [*HERE, "--steps", "2", "--batch-size", "4", "--no-progress"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """{train,val}/{dark,light}/0..3.png of several sizes; dark below 100, light above 150."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, low in (("dark", 0), ("light", 150)):
            for i in range(4):
                pixels = rng.integers(low, low + 100, (40 + 8 * i, 56, 3), np.uint8)
                path = folder / split / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    """Pretrained on train/ without labels, fine-tuned on the folder of splits."""
    from tubelet.cli import main

    pre, fine = photos.parent / "pre", photos.parent / "fine"
    size = ["--size", "32", "32", *TINY_NET, *TINY_DECODER]
    made = ["pretrain", "mae:base_in1k", "--data", str(photos), "--out", str(pre), *size]
    assert main([*made, *FEW]) == 0
    made = ["finetune", "--weights", str(pre), "--data", str(photos), "--out", str(fine), *FEW]
    views = ["--test-num-segment", "1", "--test-num-crop", "1"]
    test = ["--crop-pct", "0.8", "--interpolation", "bicubic", *views]
    assert main([*made, *test]) == 0
    return fine


def test_a_folder_of_classes_is_trained_on_and_validated(run: Path) -> None:
    model = library.load(run)
    assert isinstance(model, Classifier)
    assert model.card.classes == ("dark", "light")
    clip = model.card.clip
    assert (clip.num_frames, clip.crop_pct, clip.interpolation) == (1, 0.8, "bicubic")
    assert model.backbone.grid == (1, 4, 4)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "top1" in json.dumps(rows[-1]), "val/ was not scored"


def test_scores_are_those_of_the_resized_centre(
    tubelet: Said, run: Path, photos: Path, tmp_path: Path
) -> None:
    """Each image once: short side 40, bicubic, the centre of 32 x 32, softmax."""
    code, _, err = tubelet("evaluate", str(run), str(photos), "--out", str(tmp_path), *HERE)
    assert code == 0, err
    said = json.loads((tmp_path / "evaluation.json").read_text())
    assert (said["protocol"]["segments"], said["protocol"]["crops"]) == (1, 1)
    assert said["protocol"]["clip"]["crop_pct"] == 0.8
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 8
    model = library.load(run)
    for line in lines[1:]:
        path = next(cell for cell in line.split(",") if cell.endswith(".png"))
        image = Image.open(path)
        width, height = image.size
        shape = (40 * width // height, 40) if width > height else (40, 40 * height // width)
        whole = np.asarray(image.resize(shape, Image.Resampling.BICUBIC))
        top, left = (shape[1] - 32) // 2, (shape[0] - 32) // 2
        crop = torch.from_numpy(whole[top : top + 32, left : left + 32].copy())
        with torch.no_grad():
            scores = model(crop.permute(2, 0, 1)[None, :, None].float() / 255)[0].softmax(-1)
        found = [float(cell) for cell in line.split(",")[-2:]]
        assert found == pytest.approx(scores.tolist(), abs=1e-3)  # a grey level of resizing


def test_ten_views_in_time_of_an_image_are_the_same_one(
    tubelet: Said, run: Path, photos: Path, tmp_path: Path
) -> None:
    for name, segments in (("one", "1"), ("ten", "10")):
        views = ["--segments", segments, "--crops", "1", "--out", str(tmp_path / name)]
        assert tubelet("evaluate", str(run), str(photos), *views, *HERE)[0] == 0
    one, ten = (library_scores(tmp_path / name) for name in ("one", "ten"))
    assert ten == pytest.approx(one, abs=1e-6)


def library_scores(folder: Path) -> list[float]:
    lines = (folder / "scores.csv").read_text().splitlines()[1:]
    return [float(cell) for line in lines for cell in line.split(",")[-2:]]


def test_predictions_of_an_image_and_of_a_folder(
    tubelet: Said, run: Path, photos: Path, tmp_path: Path
) -> None:
    given = [str(photos / "val/dark/0.png"), str(photos / "val/light")]
    out = tmp_path / "predictions.json"
    code, shown, err = tubelet("predict", str(run), *given, "--out", str(out), "--device", "cpu")
    assert code == 0, err
    assert "0.png" in shown
    files = json.loads(out.read_text())["files"]
    assert [Path(file["path"]).name for file in files] == ["0.png", *(f"{i}.png" for i in range(4))]
    assert all(len(file["windows"]) == 1 and file["error"] is None for file in files)
