"""Bad teachers, and caches of what they say: see `bad_input.py`."""

from __future__ import annotations

import json
from pathlib import Path

import transformers as hf
from bad_input import PRETRAIN, SMALL, Case
from small import write_video

from tubelet.cli import main

TEACHERS = "--image-teacher runs/pre --video-teacher runs/pre"
MVD = "mvd:small_from_base_k400"


def distil(verb: str, data: str, out: str, teachers: str, *more: str) -> list[str]:
    """A run of MVD, with the width of the world's small teachers."""
    widths = ["--image.width", "0", "--video.width", "0"]
    given = [verb, MVD, "--data", data, "--out", out, *SMALL, *widths, *teachers.split()]
    return [*given, *more]


def taught(data: str, *more: str) -> list[str]:
    """A student of a fine-tuned teacher."""
    given = ["distil", "--weights", "runs/pre", "--data", data, "--out", "runs/new", *more]
    return [*given, "--steps", "2", "--batch-size", "2", "--workers", "0", "--device", "cpu"]


def cached(folder: Path) -> None:
    """A cache of the features of videos/ in features/."""
    if not (folder / "features").exists():
        assert main(distil("cache", "videos", "features", TEACHERS)) == 0


def dinov2(folder: Path, normalisation: bool) -> None:
    """A Hugging Face model with patches of 14 pixels, with or without its processor's config."""
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.Dinov2Config(patch_size=14, image_size=28, **size)
    hf.Dinov2Model(config).save_pretrained(folder)
    if normalisation:
        stated = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(stated))


TAUGHT = [
    Case(
        "no teacher for a run of MVD",
        f"tubelet pretrain {MVD} --data videos --out runs/new --video-teacher runs/pre",
        distil("pretrain", "videos", "runs/new", "--video-teacher runs/pre"),
        ("image teacher is missing", "--image-teacher", "--image.weight 0"),
    ),
    Case(
        "a teacher that is not there",
        f"tubelet pretrain {MVD} --data videos --out runs/new --image-teacher runs/img "
        "--video-teacher runs/pre",
        distil("pretrain", "videos", "runs/new", TEACHERS, "--image-teacher", "runs/img"),
        ("no teacher at runs/img", "a run's folder", "Hugging Face"),
    ),
    Case(
        "a teacher of another width than the run's",
        f"tubelet pretrain {MVD} --data videos --out runs/new {TEACHERS}",
        distil("pretrain", "videos", "runs/new", TEACHERS, "--image.width", "768"),
        ("runs/pre", "width 32", "768", "--image.width 0"),
    ),
    Case(
        "a teacher whose patches do not divide the clip",
        f"tubelet pretrain {MVD} --data videos --out runs/new --image-teacher dinov2 "
        "--video-teacher runs/pre --size 32 32",
        distil(
            *("pretrain", "videos", "runs/new"), "--image-teacher dinov2 --video-teacher runs/pre"
        ),
        ("dinov2", "height 32 is no multiple of 14", "--image.size"),
        lambda folder: dinov2(folder / "dinov2", normalisation=True),
    ),
    Case(
        "a Hugging Face model whose normalisation is not known",
        f"tubelet pretrain {MVD} --data videos --out runs/new --image-teacher dinov2-bare "
        "--video-teacher runs/pre",
        distil(
            *("pretrain", "videos", "runs/new"),
            "--image-teacher dinov2-bare --video-teacher runs/pre",
        ),
        ("dinov2-bare", "preprocessor_config.json"),
        lambda folder: dinov2(folder / "dinov2-bare", normalisation=False),
    ),
    Case(
        "a cache of features of other videos",
        f"tubelet pretrain {MVD} --data labelled/train --out runs/new --feature-cache features",
        distil("pretrain", "labelled/train", "runs/new", "--feature-cache features"),
        ("features, made from videos", "labelled/train", "tubelet cache"),
        cached,
    ),
    Case(
        "a cache of features of another teacher",
        f"tubelet pretrain {MVD} --data videos --out runs/new --feature-cache features "
        "--image-teacher runs/fine",
        distil(
            *("pretrain", "videos", "runs/new"),
            "--feature-cache features --image-teacher runs/fine",
        ),
        ("the image teacher: runs/pre", "runs/fine"),
        cached,
    ),
    Case(
        "a cache for a run without teachers",
        "tubelet cache videomae:small_k400 --data videos --out features",
        ["cache", *PRETRAIN[1:], "--data", "videos", "--out", "features", *SMALL],
        ("learns from no frozen network", "mvd:"),
    ),
    Case(
        "no teacher for distillation",
        "tubelet distil --weights runs/pre --data videos --out runs/new",
        taught("videos"),
        ("teacher is missing", "--teacher"),
    ),
    Case(
        "a pretrained model as the teacher of classes",
        "tubelet distil --teacher runs/pre --weights runs/pre --data videos --out runs/new",
        taught("videos", "--teacher", "runs/pre"),
        ("runs/pre was pretrained", "no classes to learn from", "tubelet finetune"),
    ),
    Case(
        "labels that are not the teacher's",
        "tubelet distil --teacher runs/fine --weights runs/pre --data others --out runs/new",
        taught("others", "--teacher", "runs/fine"),
        ("others are not those of the teacher runs/fine", "'up'", "--no-labels"),
        lambda folder: [write_video(folder / f"others/{name}/0.mp4") for name in ("up", "down")],
    ),
    Case(
        "a weight for labels that are not there",
        "tubelet distil --teacher runs/fine --weights runs/pre --data videos --out runs/new "
        "--label-weight 1",
        taught("videos", "--teacher", "runs/fine", "--label-weight", "1"),
        ("videos has no labels", "--label-weight 1"),
    ),
]
