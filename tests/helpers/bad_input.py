"""Bad inputs: what is given, how the page of errors shows it, and parts of what has to be said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from small import TINY, TINY_DECODER, TINY_MVIT, TINY_NET, write_video

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


def truncated(folder: Path) -> None:
    """The first two thirds of a file whose index comes first, as a broken download."""
    whole = write_video(folder / "cut/whole.mkv", frames=60).read_bytes()
    (folder / "cut/broken.mkv").write_bytes(whole[: len(whole) * 2 // 3])


def text_as_video(folder: Path) -> None:
    write_video(folder / "mixed/good/0.mp4")
    write_video(folder / "mixed/bad/1.mp4")
    (folder / "mixed/bad/notes.mp4").write_text("this is no video\n")


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
