"""Bad inputs: what is given, how the page of errors shows it, and parts of what has to be said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import transformers as hf
from small import TINY, TINY_DECODER, TINY_MVIT, TINY_NET, write_video

from tubelet.cli import main

PRETRAIN = ["pretrain", "videomae:small_k400"]
SMALL = [
    *TINY,
    *TINY_NET,
    *TINY_DECODER,
    "--mask-ratio",
    "0.75",
    "--steps",
    "2",
    "--batch-size",
    "2",
]


@dataclass(frozen=True)
class Case:
    title: str
    shown: str  # the command as the page shows it
    args: list[str]
    says: tuple[str, ...]  # parts of the message
    prepare: Callable[[Path], object] = lambda folder: None
    code: int = 1


def pretrain(data: str, out: str = "runs/new", *more: str) -> list[str]:
    return [*PRETRAIN, "--data", data, "--out", out, *SMALL, *more]


MASKFEAT = "maskfeat:small_k400"


def maskfeat(*more: str) -> list[str]:
    given = ["pretrain", MASKFEAT, "--data", "videos", "--out", "runs/new", *TINY, *TINY_MVIT]
    return [*given, "--steps", "2", "--batch-size", "2", *more]


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


def truncated(folder: Path) -> None:
    """The first two thirds of a file whose index comes first, as a broken download."""
    whole = write_video(folder / "cut/whole.mkv", frames=60).read_bytes()
    (folder / "cut/broken.mkv").write_bytes(whole[: len(whole) * 2 // 3])


def text_as_video(folder: Path) -> None:
    write_video(folder / "mixed/good/0.mp4")
    write_video(folder / "mixed/bad/1.mp4")
    (folder / "mixed/bad/notes.mp4").write_text("this is no video\n")


def merge_labels(*lists: str) -> tuple[str, list[str]]:
    """What the page shows, and the arguments."""
    args = ["merge-labels", *lists, "--out", "merged"]
    return " ".join(["tubelet", *args]), args


def two_sets(folder: Path) -> None:
    """one.csv and two.csv, by name; numbers.csv; and tables of renamed classes."""
    rows = {
        "one.csv": "videos/0.mp4,jump\nvideos/1.mp4,run\nvideos/2.mp4,walk\n",
        "two.csv": "videos/3.mp4,jog\nvideos/4.mp4,walk\n",
        "numbers.csv": "videos/3.mp4 0\nvideos/4.mp4 1\n",
        "none.csv": "",
        "renames.csv": "jump,run\n",
        "nothing.csv": "jogging,run\n",
    }
    for name, text in rows.items():
        (folder / name).write_text(text)


def head_rows(*more: str) -> list[str]:
    given = ["finetune", "--weights", "runs/fine", "--data", "labelled", "--out", "runs/new"]
    return [*given, "--steps", "1", "--batch-size", "4", "--workers", "0", *more]


CASES = [
    Case(
        "an empty folder",
        "tubelet pretrain videomae:small_k400 --data empty --out runs/new",
        pretrain("empty"),
        ("empty", ".mp4"),
        lambda folder: (folder / "empty").mkdir(exist_ok=True),
    ),
    Case(
        "no such folder",
        "tubelet pretrain videomae:small_k400 --data vidoes --out runs/new",
        pretrain("vidoes"),
        ("vidoes", "videos"),
    ),
    Case(
        "only a text file named .mp4, in training",
        "tubelet pretrain videomae:small_k400 --data texts --out runs/new --batch-size 1",
        pretrain("texts", "runs/new", "--batch-size", "1"),
        ("could not be decoded", "notes.mp4", "tubelet check"),
        lambda folder: [
            (folder / "texts").mkdir(exist_ok=True),
            (folder / "texts/notes.mp4").write_text("this is no video\n"),
        ],
    ),
    Case(
        "a text file named .mp4, in evaluation",
        "tubelet evaluate runs/fine mixed.csv",
        ["evaluate", "runs/fine", "mixed.csv", "--workers", "0"],
        ("notes.mp4", "never replaced"),
        lambda folder: [
            text_as_video(folder),
            (folder / "mixed.csv").write_text("mixed/good/0.mp4 left\nmixed/bad/notes.mp4 right\n"),
        ],
    ),
    Case(
        "a truncated video",
        "tubelet check cut",
        ["check", "cut", "--workers", "0"],
        ("broken.mkv",),
        truncated,
    ),
    Case(
        "a truncated video, in prediction",
        "tubelet predict runs/fine cut/broken.mkv",
        ["predict", "runs/fine", "cut/broken.mkv"],
        ("broken.mkv", "cut off"),
        truncated,
    ),
    Case(
        "a video shorter than the clip",
        "tubelet check short --num-frames 16 --sampling-rate 4",
        ["check", "short", "--workers", "0"],
        ("brief.mp4", "Too short", "of 64"),
        lambda folder: write_video(folder / "short/brief.mp4", frames=9),
    ),
    Case(
        "a list with a missing file",
        "tubelet pretrain videomae:small_k400 --data missing.csv --out runs/new",
        pretrain("missing.csv"),
        ("missing.csv", "gone.mp4", "2"),
        lambda folder: (folder / "missing.csv").write_text("videos/0.mp4 0\nvideos/gone.mp4 1\n"),
    ),
    Case(
        "a bad line in a list",
        "tubelet pretrain videomae:small_k400 --data bad.csv --out runs/new",
        [*PRETRAIN, "--data", "bad.csv", "--out", "runs/new", *SMALL],
        ("bad.csv", "line 2", "no path"),
        lambda folder: (folder / "bad.csv").write_text("videos/0.mp4 0\nno video 1\n"),
    ),
    Case(
        "a label out of range",
        "tubelet evaluate runs/fine labels.csv",
        ["evaluate", "runs/fine", "labels.csv", "--workers", "0"],
        ("labels.csv", "7", "2"),
        lambda folder: (folder / "labels.csv").write_text("videos/0.mp4 0\nvideos/1.mp4 7\n"),
    ),
    Case(
        "a checkpoint of another shape",
        "tubelet finetune --weights runs/pre --data labelled --out runs/new --encoder.depth 5",
        [
            *("finetune", "--weights", "runs/pre", "--data", "labelled", "--out", "runs/new"),
            *("--encoder.depth", "5", "--steps", "2", "--batch-size", "4", "--workers", "0"),
        ],
        ("runs/pre", "depth 2 (the run says 5)"),
    ),
    Case(
        "a file that is no checkpoint",
        "tubelet predict videos/0.mp4 videos/1.mp4",
        ["predict", "videos/0.mp4", "videos/1.mp4"],
        ("videos/0.mp4",),
    ),
    Case(
        "a pretrained model where a classifier is needed",
        "tubelet predict runs/pre videos/1.mp4",
        ["predict", "runs/pre", "videos/1.mp4"],
        ("runs/pre", "tubelet finetune"),
    ),
    Case(
        "a video too short to compare moments of",
        "tubelet similarity runs/pre short/brief.mp4 --num-frames 16",
        ["similarity", "runs/pre", "short/brief.mp4", "--num-frames", "16", "--device", "cpu"],
        ("brief.mp4 is too short", "of the 16 frames", "--sampling-rate"),
        lambda folder: write_video(folder / "short/brief.mp4", frames=9),
    ),
    Case(
        "a clip that is one moment to the model",
        "tubelet similarity runs/pre videos/0.mp4 --num-frames 2",
        ["similarity", "runs/pre", "videos/0.mp4", "--num-frames", "2", "--device", "cpu"],
        ("pre sees a clip of 2 frames as one slot of time", "at least 4 frames"),
    ),
    Case(
        "no video that can be compared",
        "tubelet similarity runs/pre texts/a.mp4 texts/b.mp4",
        ["similarity", "runs/pre", "texts/a.mp4", "texts/b.mp4", "--device", "cpu"],
        ("None of the 2 videos has a clip to compare", "a.mp4"),
        lambda folder: [
            (folder / "texts").mkdir(exist_ok=True),
            (folder / "texts/a.mp4").write_text("this is no video\n"),
            (folder / "texts/b.mp4").write_text("this is no video\n"),
        ],
    ),
    Case(
        "a video taken for a model",
        "tubelet similarity runs/pre --with runs/fine videos/0.mp4",
        ["similarity", "runs/pre", "--with", "runs/fine", "videos/0.mp4"],
        ("No videos were given", "before --with"),
    ),
    Case(
        "a model compared with itself",
        "tubelet similarity runs/pre videos --with runs/pre",
        ["similarity", "runs/pre", "videos", "--with", "runs/pre"],
        ("runs/pre was given twice",),
    ),
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
    Case(
        "a folder without images",
        "tubelet pretrain mae:small_k400 --data papers --out runs/new",
        ["pretrain", "mae:small_k400", "--data", "papers", "--out", "runs/new"],
        ("papers", ".png", "found 1 .pdf"),
        lambda folder: [
            (folder / "papers").mkdir(exist_ok=True),
            (folder / "papers/mae.pdf").write_text("no image\n"),
        ],
    ),
    Case(
        "a mistyped option",
        "tubelet pretrain videomae:small_k400 --data videos --out runs/new --mask-ration 0.9",
        [*PRETRAIN, "--data", "videos", "--out", "runs/new", "--mask-ration", "0.9"],
        ("--mask-ration", "--mask-ratio"),
        code=2,
    ),
    Case(
        "a mistyped run",
        "tubelet pretrain videomae:smal_k400 --data videos --out runs/new",
        ["pretrain", "videomae:smal_k400", "--data", "videos", "--out", "runs/new"],
        ("smal_k400", "small_k400"),
    ),
    Case(
        "a mistyped command",
        "tubelet pretrian",
        ["pretrian"],
        ("pretrian", "pretrain"),
        code=2,
    ),
    Case(
        "a mask ratio that hides everything",
        "tubelet pretrain videomae:small_k400 --data videos --out runs/new --mask-ratio 1.0",
        pretrain("videos", "runs/new", "--mask-ratio", "1.0"),
        ("mask_ratio 1.0", "Choose mask_ratio from"),
    ),
    Case(
        "cubes that the grid cannot be cut into",
        f"tubelet pretrain {MASKFEAT} --data videos --out runs/new --mask-unit 1 3 3",
        maskfeat("--mask-unit", "1", "3", "3"),
        ("1x3x3", "2x4x4"),
    ),
    Case(
        "a ratio of cubes out of range",
        f"tubelet pretrain {MASKFEAT} --data videos --out runs/new --mask-ratio 1.2",
        maskfeat("--mask-ratio", "1.2"),
        ("mask_ratio 1.2",),
    ),
    Case(
        "cells of gradients that tokens cannot be cut into",
        f"tubelet pretrain {MASKFEAT} --data videos --out runs/new --hog.cell 6",
        maskfeat("--hog.cell", "6"),
        ("cells of 6x6", "cells of 1, 2, 4, 8 pixels"),
    ),
    Case(
        "a tokenizer's ids without a tokenizer",
        f"tubelet pretrain {MASKFEAT} --data videos --out runs/new --target ids",
        maskfeat("--target", "ids"),
        ("ids teacher is missing", "--teacher"),
    ),
    Case(
        "the histograms of a model that predicts pixels",
        "tubelet reconstruct runs/pre videos/0.mp4 --branch hog",
        ["reconstruct", "runs/pre", "videos/0.mp4", "--branch", "hog", "--device", "cpu"],
        ("hog", "pixels"),
    ),
    Case(
        "a hop of nothing between features",
        "tubelet embed runs/fine videos --out vectors --hop-frames 0",
        ["embed", "runs/fine", "videos", "--out", "vectors", "--hop-frames", "0"],
        ("hop_frames is 0", "at least 1"),
    ),
    Case(
        "features for which there is no video",
        "tubelet embed runs/fine --out vectors",
        ["embed", "runs/fine", "--out", "vectors"],
        ("No files were given", "a list"),
    ),
    Case(
        "features of another hop in a used folder",
        "tubelet embed runs/fine videos --out hops --hop-frames 16",
        ["embed", "runs/fine", "videos", "--out", "hops", "--hop-frames", "16"],
        ("hops", "hop.frames: 4 in the folder, 16 here", "another folder"),
        lambda folder: main(
            ["embed", "runs/fine", str(folder / "videos"), "--out", "hops", "--hop-frames", "4"]
        ),
    ),
    Case(
        "features into a file",
        "tubelet embed runs/fine videos --out notes.txt",
        ["embed", "runs/fine", "videos", "--out", "notes.txt"],
        ("notes.txt is a file",),
        lambda folder: (folder / "notes.txt").write_text("mine"),
    ),
    Case(
        "features of a run that is not there",
        "tubelet embed runs/fien videos --out vectors",
        ["embed", "runs/fien", "videos", "--out", "vectors"],
        ("runs/fien does not exist",),
    ),
    Case(
        "a truncated video, for features",
        "tubelet embed runs/fine cut --out vectors",
        ["embed", "runs/fine", "cut", "--out", "vectors"],
        ("unreadable", "broken.mkv", "cut off"),
        truncated,
    ),
    Case(
        "a rename that makes one class of two",
        *merge_labels("one=one.csv", "two=two.csv", "--rename", "renames.csv"),
        ("Two classes of one, 'jump' and 'run'", "'run'", "set,old,new"),
        two_sets,
    ),
    Case(
        "a rename of a class that there is not",
        *merge_labels("one=one.csv", "two=two.csv", "--rename", "nothing.csv"),
        ("'jogging' -> 'run'", "no set has", "'jog'"),
        two_sets,
    ),
    Case(
        "a validation list of a set that is not merged",
        *merge_labels("one=one.csv", "two=two.csv", "--val", "tow=one.csv"),
        ("--val names the set 'tow'", "'two'"),
        two_sets,
    ),
    Case(
        "a set to merge of which no video is left",
        *merge_labels("one=one.csv", "two=two.csv", "--val", "two=two.csv"),
        ("No training video of two is left", "2 are in a validation list"),
        two_sets,
    ),
    Case(
        "an empty list to merge",
        *merge_labels("one=one.csv", "two=none.csv"),
        ("none.csv has no lines",),
        two_sets,
    ),
    Case(
        "numbers as labels to merge by name",
        *merge_labels("one=one.csv", "two=numbers.csv"),
        ("numbers.csv are numbers", "--classes two=FILE"),
        two_sets,
    ),
    Case(
        "videos to merge that are called alike in each folder",
        *merge_labels("sides=labelled"),
        ("left/0.mp4 (left) and", "right/0.mp4 (right)", "--id path"),
    ),
    Case(
        "head rows of a model without a head",
        "tubelet finetune --weights runs/pre --data labelled --out runs/new --head rows",
        head_rows("--weights", "runs/pre", "--head", "rows"),
        ("runs/pre is a pretrained encoder", "--head new"),
    ),
    Case(
        "head rows for a class that the head has not",
        "tubelet finetune --weights runs/fine --data one.csv --out runs/new --head rows",
        head_rows("--data", "one.csv", "--batch-size", "2", "--head", "rows"),
        ("runs/fine has no row for 3 of 3 classes: 'jump'", "--head-map"),
        two_sets,
    ),
    Case(
        "a map of head rows that names one twice",
        "tubelet evaluate runs/fine labelled --head-map twice.json",
        ["evaluate", "runs/fine", "labelled", "--workers", "0", "--head-map", "twice.json"],
        ("twice.json has the row 1 more than once",),
        lambda folder: (folder / "twice.json").write_text("[1, 1]"),
    ),
    Case(
        "a map of head rows for a new head",
        "tubelet finetune --weights runs/fine --data labelled --out runs/new --head-map map.json",
        head_rows("--head-map", "map.json"),
        ("map.json", "add --head rows"),
    ),
    Case(
        "a size that the patch does not divide",
        "tubelet pretrain videomae:small_k400 --data videos --out runs/new --size 36 32",
        pretrain("videos", "runs/new", "--size", "36", "32"),
        ("height 36", "Nearest that fits"),
    ),
    Case(
        "a batch larger than the list",
        "tubelet pretrain videomae:small_k400 --data videos --out runs/new --batch-size 64",
        pretrain("videos", "runs/new", "--batch-size", "64"),
        ("6 videos", "--batch-size 6"),
    ),
    Case(
        "a plan for no processes",
        "tubelet plan videomae:small_k400 --processes 0",
        ["plan", "videomae:small_k400", "--processes", "0"],
        ("processes 0", "above 0"),
    ),
    Case(
        "a plan for processes that cannot share the batch",
        "tubelet plan videomae:small_k400 --processes 3",
        ["plan", "videomae:small_k400", "--processes", "3"],
        ("batch_size 1024", "3 processes", "--batch-size 1023"),
    ),
    Case(
        "a plan for no run",
        "tubelet plan --processes 8",
        ["plan", "--processes", "8"],
        ("Which run?", "tubelet list"),
    ),
    Case(
        "a second run in a used folder",
        "tubelet pretrain videomae:small_k400 --data videos --out runs/pre",
        pretrain("videos", "runs/pre"),
        ("runs/pre", "--resume"),
    ),
]


# Not in the list, for the disk has to fill up at the right moment.
FULL_DISK = Case(
    "a full disk while saving",
    "tubelet pretrain videomae:small_k400 --data videos --out runs/disk --save-every-steps 1",
    pretrain("videos", "runs/disk", "--save-every-steps", "1"),
    (),
)
