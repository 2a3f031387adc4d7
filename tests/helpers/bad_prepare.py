"""What cannot be prepared: see `bad_input.py`."""

from __future__ import annotations

from pathlib import Path

from bad_input import Case


def prepare(source: str, out: str, *more: str) -> tuple[str, list[str]]:
    """What the page shows, and the arguments."""
    args = ["prepare", source, out, *more]
    return " ".join(["tubelet", *args]), [*args, "--workers", "0"]


def other_work(folder: Path) -> None:
    (folder / "work").mkdir(exist_ok=True)
    (folder / "work/thesis.txt").write_text("mine\n")


def prepared(folder: Path) -> None:
    """What a run with other settings left: the head of its notes."""
    (folder / "small").mkdir(exist_ok=True)
    head = '{"format": 2, "short_side": 256, "keyframe_every": 24, "crf": 18, "codec": "mpeg2"}\n'
    (folder / "small/prepared.ndjson").write_text(head)


def pictures(folder: Path) -> None:
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures/a.jpg").write_bytes(b"")


def one_unreadable(folder: Path) -> None:
    (folder / "broken").mkdir(exist_ok=True)
    (folder / "broken/notes.mp4").write_text("this is no video\n")


PREPARED = [
    Case(
        "a text file named .mp4, to prepare",
        *prepare("broken", "broken_256"),
        ("Not made (1)", "notes.mp4", "no video that FFmpeg knows"),
        one_unreadable,
    ),
    Case(
        "an output folder within the source",
        *prepare("videos", "videos/small"),
        ("the same, or one lies in the other", "elsewhere"),
    ),
    Case(
        "an output folder with something else in it",
        *prepare("videos", "work"),
        ("work exists and holds no prepared videos",),
        other_work,
    ),
    Case(
        "other settings than those of the videos that are there",
        *prepare("videos", "small"),
        ("--crf was 18, now 23", "Choose another folder"),
        prepared,
    ),
    Case(
        "an odd size",
        *prepare("videos", "new_small", "--short-side", "255"),
        ("--short-side is 255: expected an even number from 16",),
    ),
    Case(
        "pictures to prepare",
        *prepare("pictures", "pictures_256"),
        ("only video files are prepared", "a.jpg"),
        pictures,
    ),
]
