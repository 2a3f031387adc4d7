"""tubelet distil on small videos: what the student is, what it may learn from, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import TINY_NET

import tubelet as library
from tubelet.errors import TubeletError
from tubelet.methods.distil import Distil
from tubelet.model import Classifier
from tubelet.train import checkpoint

SMALL: dict[str, Any] = {"steps": 2, "batch_size": 4, "workers": 0, "device": "cpu"}
SMALL |= {"progress": False, "lr": 0.1}


def distil(**changes: Any) -> Classifier:
    given = {"teacher": "runs/fine", "weights": "runs/pre", "data": "videos", "out": "runs/taught"}
    given |= SMALL | changes
    shutil.rmtree(given["out"], ignore_errors=True)
    model = library.load(library.distil(**given))
    assert isinstance(model, Classifier)
    return model


def rows(out: str = "runs/taught") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def test_the_student_of_unlabelled_videos_has_the_teachers_classes(inside: Path) -> None:
    model = distil()
    assert model.card.classes == ("left", "right")
    assert model.card.label_kind == "single"
    assert model.card.run["teacher"] == "runs/fine"
    header = checkpoint.read_header("runs/taught")["teachers"]["logits"]
    assert header["name"] == "runs/fine"
    assert len(header["digest"]) == 16
    own = library.load("runs/fine").state_dict()
    assert own.keys() == model.state_dict().keys()
    (row,) = rows()
    assert {"loss", "agreement"} <= row.keys()
    assert "accuracy" not in row
    assert library.evaluate(model, "labelled").classes == ("left", "right")


def test_a_student_without_weights_sees_the_clips_of_its_teacher(tubelet, inside: Path) -> None:
    given = ["distil", "--teacher", "runs/fine", "--data", "videos", "--out", "runs/scratch"]
    small = ["--steps", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu"]
    code, _, err = tubelet(*given, *small, *TINY_NET)
    assert code == 0, err
    assert library.load("runs/scratch").card.clip == library.load("runs/fine").card.clip


def test_labels_are_shown_and_scored_where_there_are_any(inside: Path) -> None:
    distil(data="labelled")
    assert any("top1" in row.get("evaluation", {}) for row in rows())
    assert any("accuracy" in row for row in rows())
    without = distil(data="labelled", out="runs/unread", labels=False)
    assert not any("evaluation" in row or "accuracy" in row for row in rows("runs/unread"))
    taught = library.load("runs/taught").state_dict()
    assert all(torch.equal(value, taught[name]) for name, value in without.state_dict().items())
    weighed = distil(data="labelled", out="runs/weighed", label_weight=1.0)
    assert not torch.equal(weighed.head.weight, taught["head.weight"])  # pyright: ignore
    distil(data="videos", val="labelled", out="runs/scored")
    assert any("top1" in row.get("evaluation", {}) for row in rows("runs/scored"))


def test_a_student_may_begin_with_its_own_head(inside: Path) -> None:
    own = library.load("runs/fine").state_dict()
    still = distil(weights="runs/fine", head="rows", lr=0.0, min_lr=0.0)
    assert all(torch.equal(value, own[name]) for name, value in still.state_dict().items())
    assert rows()[-1]["loss"] == pytest.approx(0, abs=1e-4)


def test_a_run_goes_on_bit_for_bit_but_with_no_other_teacher(inside: Path) -> None:
    whole = distil(out="runs/whole", steps=4)
    distil(out="runs/parts", steps=4, save_every_steps=2)
    newest = checkpoint.latest(inside / "runs/parts")
    assert newest is not None and newest.name == "checkpoint-000004"
    shutil.rmtree(newest)
    again: dict[str, Any] = {"weights": "runs/pre", "data": "videos", "out": "runs/parts"}
    again |= SMALL | {"steps": 4, "save_every_steps": 2, "resume": True}
    with pytest.raises(
        TubeletError, match=r"from the logits teacher runs/fine .* cannot go on with"
    ):
        library.distil(teacher="runs/whole", **again)
    parts = library.load(library.distil(teacher="runs/fine", **again)).state_dict()
    assert all(torch.equal(value, parts[name]) for name, value in whole.state_dict().items())


def test_another_size_than_the_teachers(inside: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "tubelet"):
        model = distil(size=(40, 48))
    assert model.card.clip.size == (40, 48)
    assert "made for clips of 4x32x32; it sees the student's, resized" in caplog.text


@pytest.mark.parametrize(
    ("lines", "kind", "outputs"), [("{} 0 2", "multi", 3), ("{} 0.25 1.5", "regression", 2)]
)
def test_teachers_of_several_labels_and_of_numbers(
    inside: Path, lines: str, kind: str, outputs: int
) -> None:
    listed = [lines.format(f"videos/{i}.mp4") for i in range(4)]
    Path("taught.csv").write_text("\n".join(listed))
    teacher = f"runs/teacher-{kind}"
    library.finetune(weights="runs/pre", data="taught.csv", out=teacher, **SMALL)
    for data in ("videos", "taught.csv"):
        model = distil(teacher=teacher, data=data)
        assert (model.card.label_kind, model.num_classes) == (kind, outputs)
    if kind == "regression":
        wrong = {"temperature": 2.0}, {"label_weight": 1.0, "data": "taught.csv"}
        for changes, says in zip(wrong, ("leave --temperature out", "--mixup-prob 0"), strict=True):
            with pytest.raises(TubeletError, match=says):
                distil(teacher=teacher, **changes)
        Path("one.csv").write_text("".join(f"videos/{i}.mp4 0.5\n" for i in range(4)))
        with pytest.raises(TubeletError, match="1 numbers a video, and the teacher gives 2"):
            distil(teacher=teacher, data="one.csv")


def test_a_teacher_of_other_clips_is_refused_before_training(inside: Path) -> None:
    with pytest.raises(TubeletError, match=r"runs/fine, made for .* channels and they have 1"):
        distil(in_chans=1)
    with pytest.raises(TubeletError, match=r"4x32x32, cannot see .* 3x32x32: .*num_frames 3"):
        distil(num_frames=3)
    shape = replace(library.load("runs/pre").backbone.shape, tubelet_size=1)
    still = {"num_frames": 1, "size": (32, 32), "encoder": shape, "data": "labelled"}
    library.finetune(out="runs/single-frame", **(SMALL | still))
    with pytest.raises(TubeletError, match="it is of images"):
        distil(teacher="runs/single-frame")
    given: dict[str, Any] = still | {
        "data": "videos",
        "weights": "",
        "teacher": "runs/single-frame",
    }
    assert distil(run=Distil(), **given).num_classes == 2
    with pytest.raises(TubeletError, match="labels of the kind 'single'"):
        distil(label_kind="multi")


def test_a_run_of_distillation_is_for_its_own_command(tubelet, inside: Path) -> None:
    for verb, name, says in (
        ("finetune", "videomae_v2:base_k710_distil", "is a run for `tubelet distil`"),
        ("distil", "videomae_v2:base_k710_finetune", "is a run for `tubelet finetune`"),
    ):
        code, _, err = tubelet(verb, name, "--data", "videos", "--out", "runs/new")
        assert code == 1
        assert says in err
        with pytest.raises(TubeletError, match=says):
            getattr(library, verb)(name, data="videos", out="runs/new")
