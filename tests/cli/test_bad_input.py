"""Each bad input gets one clear message, an exit code, and no traceback; docs/errors.md shows them.

`UPDATE_DOCS=1 pytest tests/cli/test_bad_input.py` writes the page anew.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small import TINY, TINY_DECODER, TINY_NET, write_video

from tubelet.train import checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
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
        "a second run in a used folder",
        "tubelet pretrain videomae:small_k400 --data videos --out runs/pre",
        pretrain("videos", "runs/pre"),
        ("runs/pre", "--resume"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title.replace(" ", "-"))
def test_bad_input_gets_one_clear_message(case: Case, tubelet, inside: Path) -> None:
    case.prepare(inside)
    before = files(inside / "runs")
    code, out, err = tubelet(*case.args)
    said = out + err
    assert code == case.code, said
    assert "Traceback" not in said
    flat = re.sub(r"[\s│]+", " ", said)
    for part in case.says:
        assert part in flat, said
    assert before.items() <= files(inside / "runs").items(), "something of an earlier run was lost"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "new" not in p.parts
    }


# With its own test below, for the disk has to fill up at the right moment.
FULL_DISK = Case(
    "a full disk while saving",
    "tubelet pretrain videomae:small_k400 --data videos --out runs/disk --save-every-steps 1",
    pretrain("videos", "runs/disk", "--save-every-steps", "1"),
    (),
)


@contextmanager
def full_disk_at_save(number: int) -> Iterator[None]:
    """The disk is full in the middle of that save."""
    real, calls = checkpoint.save_file, []

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        calls.append(path)
        if len(calls) == number:
            Path(path).write_bytes(b"the first part")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path, metadata=metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_file)
        yield


def test_a_full_disk_while_saving_keeps_the_checkpoint_before(tubelet, inside: Path) -> None:
    with full_disk_at_save(2):
        code, out, err = tubelet(*pretrain("videos", "runs/full", "--save-every-steps", "1"))
    assert code == 1
    assert "No space left on device" in err
    assert "checkpoint-000001, is whole" in err
    assert "--resume" in err
    assert "Traceback" not in out + err
    folders = [path.name for path in (inside / "runs/full").iterdir() if path.is_dir()]
    assert folders == ["checkpoint-000001"]
    code, out, err = tubelet(*pretrain("videos", "runs/full", "--resume"))
    assert code == 0, err


def test_debug_shows_the_traceback(tubelet) -> None:
    from tubelet.errors import TubeletError

    with pytest.raises(TubeletError):
        tubelet("pretrain", "videomae:smal_k400", "--debug")


def test_the_page_of_errors_is_true(
    tubelet, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_world = tmp_path / "world"  # without what other tests left in it
    for part in ("videos", "labelled", "runs/pre", "runs/fine"):
        shutil.copytree(inside / part, clean_world / part)
    monkeypatch.chdir(clean_world)
    page = ["# What goes wrong, and what is said about it", "", INTRODUCTION]
    for case in [*CASES, FULL_DISK]:
        case.prepare(clean_world)
        with full_disk_at_save(2) if "disk" in case.title else nullcontext():
            code, out, err = tubelet(*case.args)
        text = out + err
        wanted = [line.rstrip() for line in clean(text).splitlines() if line.strip()]
        page += [f"## {case.title[0].upper()}{case.title[1:]}", "", "```console", f"$ {case.shown}"]
        page += [*wanted[-14:], "```", "", f"Exit code {code}.", ""]
    text = "\n".join(page)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text


INTRODUCTION = textwrap.dedent(
    """\
    Made by `tests/cli/test_bad_input.py`, which runs each command and compares this page. Every
    error is one message with what is wrong, where, and what to do; the exit code is 1 (2 for
    options that do not exist), and nothing that an earlier run wrote is lost. `--debug` shows the
    traceback. Options that make the runs small are left out below.
    """
)


def clean(text: str) -> str:
    """Without what changes from machine to machine: absolute folders, sizes of free space."""
    text = re.sub(r"[\d.]+ GB free", "N GB free", text)
    text = re.sub(r"(?m)^step \d+/.*\n", "", text)  # the progress of training
    text = re.sub(r"'?/[^\s:']*/(?=world\d*)world\d*'?", "the working folder", text)
    return re.sub(r"[\d.]+ (frames/s|training clips/s)", r"N \1", text)
