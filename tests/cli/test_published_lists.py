"""The published layout of lists: train.csv, val.csv and test.csv in a folder, 'path label' a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small import TINY, TINY_DECODER, TINY_NET

import tubelet as library
from tubelet.model import Classifier

Said = Callable[..., tuple[int, str, str]]
HERE = ["--workers", "0", "--device", "cpu"]
FEW = ["--steps", "2", "--batch-size", "2", "--no-progress"]
LABELS = {"train": [0, 1, 0, 1], "val": [1, 0], "test": [0]}


@pytest.fixture(params=["absolute", "beside the lists", "with --root"])
def lists(request: pytest.FixtureRequest, inside: Path, tmp_path: Path) -> tuple[str, ...]:
    """-> the folder of lists, and the options that go with it."""
    folder = tmp_path / "lists"
    folder.mkdir()
    kind = request.param
    videos = folder / "clips" if kind == "beside the lists" else tmp_path / "clips"
    shutil.copytree(inside / "videos", videos)
    names = iter(sorted(video.name for video in videos.iterdir()) * 2)
    prefix = {"absolute": f"{videos}/", "beside the lists": "clips/", "with --root": ""}[kind]
    for split, labels in LABELS.items():
        lines = [f"{prefix}{next(names)} {label}\n" for label in labels]
        (folder / f"{split}.csv").write_text("".join(lines))
    return str(folder), *(["--root", str(videos)] if kind == "with --root" else [])


def test_the_folder_is_read_as_it_is(tubelet: Said, lists: tuple[str, ...], tmp_path: Path) -> None:
    folder, *root = lists
    size = [*TINY, *TINY_NET, *TINY_DECODER, "--mask-ratio", "0.75"]
    pre = ["pretrain", "videomae:small_k400", "--data", folder, *root, "--out"]
    code, _, err = tubelet(*pre, str(tmp_path / "pre"), *size, *FEW)
    assert code == 0, err
    assert listed(tmp_path / "pre") == len(LABELS["train"])

    fine = ["finetune", "--weights", str(tmp_path / "pre"), "--data", folder, *root, "--out"]
    code, _, err = tubelet(*fine, str(tmp_path / "fine"), *HERE, *FEW)
    assert code == 0, err
    assert listed(tmp_path / "fine") == len(LABELS["train"])
    model = library.load(tmp_path / "fine")
    assert isinstance(model, Classifier)
    assert model.num_classes == 2
    assert "top1" in (tmp_path / "fine/metrics.jsonl").read_text(), "val.csv was not scored"

    evaluate = ["evaluate", str(tmp_path / "fine"), folder, *root, "--segments", "10"]
    for expected in ("test", "val"):
        out = tmp_path / expected
        code, _, err = tubelet(*evaluate, "--crops", "1", *HERE, "--out", str(out))
        assert code == 0, err
        said = json.loads((out / "evaluation.json").read_text())
        assert (said["protocol"]["segments"], said["protocol"]["crops"]) == (10, 1)
        assert len((out / "scores.csv").read_text().splitlines()) == 1 + len(LABELS[expected])
        Path(folder, "test.csv").unlink(missing_ok=True)


def listed(run: Path) -> int:
    return json.loads((run / "config.json").read_text())["header"]["list"]["videos"]


def test_a_missing_video_says_its_line_and_what_to_do(
    tubelet: Said, inside: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.csv").write_text(f"{inside}/videos/0.mp4 0\ngone/1.mp4 1\n")
    pre = ["pretrain", "videomae:small_k400", "--data", str(tmp_path), "--out", str(tmp_path / "x")]
    code, _, err = tubelet(*pre)
    assert code == 1
    said = " ".join(err.split())
    assert "train.csv: 1 of 2 lines cannot be used" in said
    assert "line 2: 'gone/1.mp4 1'" in said
    assert f"{tmp_path}/gone/1.mp4 does not exist" in said
    assert "say where the videos are (--root" in said
