"""Weights of others in every command that takes weights, as files of others lie on a disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import CLASSES, classifier, mae, mvd, videomae, write
from small import TINY, TINY_DECODER, TINY_NET

import tubelet as library
from tubelet import stored
from tubelet.backbones.vit import ViT
from tubelet.interop import layouts
from tubelet.model import Classifier
from tubelet.train import checkpoint

# What files of these widths do not say.
ENCODER = ["--heads", "3", "--trained", "4", "32", "32"]
FINE = ["--position", "sinusoid_1d", *ENCODER]
WHOLE = [*ENCODER, "--decoder-heads", "2"]
CPU = ["--workers", "0", "--device", "cpu"]
STEPS = ["--steps", "1", "--batch-size", "4", *CPU]


@pytest.fixture(scope="module")
def files(copied: Path) -> Path:
    """In the working folder: fine.pth, pre.pth, mvd.pth, mae.pth; hf/, hf-pre/ (Hugging Face's)."""
    write(classifier(), "videomae", copied / "fine.pth")
    write(videomae(), "videomae", copied / "pre.pth", mask_ratio=0.75)
    write(mvd(), "mvd", copied / "mvd.pth")
    write(mae(), "mae", copied / "mae.pth")
    layouts.write(stored.found_of(classifier(classes=CLASSES)), "hf", copied / "hf")
    layouts.write(stored.found_of(videomae()), "hf", copied / "hf-pre")
    return copied


def test_evaluate_a_fine_tuned_file(tubelet, files: Path) -> None:
    code, _, err = tubelet("evaluate", "fine.pth", "labelled", *FINE, *CPU)
    assert code == 1
    assert "tubelet convert WEIGHTS NAMED.safetensors --to tubelet --classes" in err
    Path("numbers.csv").write_text(
        "".join(
            f"labelled/val/{label}/{i}.mp4 {at}\n"
            for at, label in enumerate(CLASSES)
            for i in (0, 1)
        )
    )
    code, out, err = tubelet("evaluate", "fine.pth", "numbers.csv", *FINE, *CPU, "--out", "scored")
    assert code == 0, err
    assert "fine.pth: VideoMAE, fine-tuned: 2 classes" in err
    report = json.loads(Path("scored/evaluation.json").read_text())
    assert report["videos"] == 4
    code, out, err = tubelet("evaluate", "hf", "labelled", *CPU)
    assert code == 0, err
    assert "top-1 (video)" in out


def test_a_file_of_ours_scores_as_that_of_others(tubelet, files: Path) -> None:
    Path("names.txt").write_text("\n".join(CLASSES))
    convert = ["convert", "fine.pth", "ours.safetensors", "--to", "tubelet", "--overwrite"]
    code, _, err = tubelet(*convert, "--classes", "names.txt", *FINE)
    assert code == 0, err
    scores = [
        library.evaluate(weights, "labelled").scores for weights in ("ours.safetensors", "hf")
    ]
    assert torch.equal(*scores)


def test_predict_with_a_fine_tuned_file(tubelet, files: Path) -> None:
    code, out, err = tubelet("predict", "fine.pth", "videos/0.mp4", *FINE, "--device", "cpu")
    assert code == 0, err
    code, out, err = tubelet("predict", "hf", "videos/0.mp4", "--device", "cpu")
    assert code == 0, err
    assert "left" in out or "right" in out


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("pre.pth", [*ENCODER, "--encoder-only"]),
        ("mvd.pth", WHOLE),
        ("hf-pre", []),
        ("fine.pth", FINE),
    ],
)
def test_embed(tubelet, files: Path, weights: str, said: list[str]) -> None:
    shutil.rmtree("features", ignore_errors=True)
    given = ["embed", weights, "videos/0.mp4", "--out", "features", *said, "--device", "cpu"]
    code, _, err = tubelet(*given)
    assert code == 0, err
    (file,) = Path("features").glob("**/0.np*")
    vectors = np.load(file)
    vectors = vectors if isinstance(vectors, np.ndarray) else next(iter(vectors.values()))
    assert vectors.shape[-1] == 48


@pytest.mark.parametrize(
    ("weights", "said"),
    [("pre.pth", ENCODER), ("mvd.pth", ENCODER), ("hf-pre", []), ("fine.pth", FINE)],
)
def test_finetune(tubelet, files: Path, weights: str, said: list[str]) -> None:
    shutil.rmtree("runs/tuned", ignore_errors=True)
    still = ["--lr", "0", "--min-lr", "0"]
    given = ["finetune", "--weights", weights, "--data", "labelled", "--out", "runs/tuned"]
    code, _, err = tubelet(*given, *said, *STEPS, *still)
    assert code == 0, err
    model = library.load("runs/tuned")
    assert isinstance(model, Classifier)
    assert model.card.classes == CLASSES
    made = {"pre.pth": videomae, "mvd.pth": mvd, "hf-pre": videomae, "fine.pth": classifier}
    before, after = made[weights]().backbone, model.backbone
    assert isinstance(after, ViT)
    assert before.shape == after.shape
    own = {n: v for n, v in before.state_dict().items() if not n.startswith("norm.")}
    assert own.keys() == after.state_dict().keys()
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in own.items())


def test_finetune_an_image_model_as_one_of_clips(tubelet, files: Path) -> None:
    given = ["finetune", "--weights", "mae.pth", "--inflate", "centre", "--heads", "3"]
    clip = ["--num-frames", "4", "--size", "32", "32"]
    code, _, err = tubelet(*given, "--data", "labelled", "--out", "runs/image", *clip, *STEPS)
    assert code == 0, err
    assert library.load("runs/image").card.clip.num_frames == 4


def test_the_rows_of_a_head(tubelet, files: Path) -> None:
    Path("rows.json").write_text(json.dumps({"rows": [1, 0], "classes": CLASSES}))
    rows = ["--head", "rows", "--head-map", "rows.json", "--lr", "0", "--min-lr", "0"]
    given = ["finetune", "--weights", "fine.pth", "--data", "labelled", "--out", "runs/rows"]
    code, _, err = tubelet(*given, *rows, *FINE, *STEPS)
    assert code == 0, err
    weight = checkpoint.load_weights("runs/rows")["head.weight"]
    assert torch.equal(weight, classifier().head.weight[[1, 0]])


def test_distil_from_a_file(tubelet, files: Path) -> None:
    said = ["--teacher.position", "sinusoid_1d", "--teacher.heads", "3"]
    said += ["--teacher.trained", "4", "32", "32"]
    given = ["distil", "--teacher", "fine.pth", "--weights", "pre.pth", *ENCODER, *STEPS]
    code, _, err = tubelet(*given, *said, "--data", "videos", "--out", "runs/taught")
    assert code == 0, err
    assert library.load("runs/taught").card.classes == ("0", "1")
    code, _, err = tubelet(*given, "--data", "videos", "--out", "runs/untold")
    assert code == 1
    for flag in ("--teacher.position", "--teacher.heads", "--teacher.trained"):
        assert flag in err
    code, _, err = tubelet(
        *("distil", "--teacher", "hf", "--weights", "hf-pre", *STEPS),
        *("--data", "videos", "--out", "runs/hf"),
    )
    assert code == 0, err
    assert library.load("runs/hf").card.classes == CLASSES


@pytest.mark.parametrize(("weights", "said"), [("pre.pth", WHOLE), ("hf-pre", [])])
def test_reconstruct(tubelet, files: Path, weights: str, said: list[str]) -> None:
    given = ["reconstruct", weights, "videos/0.mp4", "--out", "drawn", "--device", "cpu"]
    code, out, err = tubelet(*given, *said)
    assert code == 0, err
    assert Path(out.splitlines()[0]).stat().st_size > 1000


def test_similarity_of_files(tubelet, files: Path) -> None:
    given = ["similarity", "pre.pth", "videos/0.mp4", "--with", "mvd.pth", "runs/pre", "hf-pre"]
    code, out, err = tubelet(*given, *ENCODER, "--out", "alike", "--device", "cpu")
    assert code == 0, err
    assert "mvd.pth" in out
    for said in (["--position", "sincos_3d"], ["--heads", "3", "--wrapper", "model"]):
        code, _, err = tubelet(*given, *said, "--trained", "4", "32", "32", "--out", "alike")
        assert code == 1
    assert "None of the models asks for wrapper" in err


def test_teachers_of_mvd_from_files(tubelet, files: Path) -> None:
    given = ["pretrain", "mvd:small_from_base_k400", "--data", "videos", "--out", "runs/student"]
    teachers = ["--image-teacher", "mae.pth", "--video-teacher", "fine.pth"]
    small = [*TINY, *TINY_NET, *TINY_DECODER, "--mask-ratio", "0.75", "--batch-size", "2"]
    small += ["--steps", "1", "--image.width", "0", "--video.width", "0"]
    code, _, err = tubelet(*given, *teachers, *small)
    assert code == 1
    assert "--image.heads" in err
    said = ["--image.heads", "3", "--video.heads", "3", "--video.position", "sinusoid_1d"]
    said += ["--video.trained", "4", "32", "32"]
    code, _, err = tubelet(*given, *teachers, *small, *said)
    assert code == 0, err
    header = checkpoint.read_header("runs/student")
    assert header["teachers"]["video"]["name"] == "fine.pth"
