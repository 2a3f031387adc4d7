"""Bad sources of a mixed run: see `bad_input.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bad_input import PRETRAIN, SMALL, Case
from small import write_frames


def case(
    title: str,
    sources: str,
    says: tuple[str, ...],
    prepare: Callable[[Path], object] = lambda folder: None,
) -> Case:
    shown = f"tubelet pretrain videomae:small_k400 --sources {sources} --out runs/new"
    args = [*PRETRAIN, "--sources", *sources.split(), "--out", "runs/new", *SMALL]
    return Case(title, shown, args, says, prepare)


def gaps(folder: Path) -> None:
    """frames.csv counts 12 frames in frames/0 and frames/1, of which two are missing."""
    for i in range(2):
        write_frames(folder / f"frames/{i}")
    (folder / "frames.csv").write_text("frames/0 1 12\nframes/1 1 12\n")
    for number in (5, 9):
        (folder / f"frames/1/img_{number:05}.jpg").unlink()


def texts(folder: Path) -> None:
    """Two text files called videos."""
    (folder / "unread").mkdir(exist_ok=True)
    for i in range(2):
        (folder / f"unread/{i}.mp4").write_text("this is no video\n")


MIXED = [
    case(
        "a source that is empty",
        "k400=videos own=nothing",
        ("Source 'own'", "No videos in nothing"),
        lambda folder: (folder / "nothing").mkdir(exist_ok=True),
    ),
    case(
        "a source of which nothing can be read",
        "k400=videos own=unread",
        ("All 2 videos of source own could not be decoded",),
        texts,
    ),
    case(
        "a negative weight",
        "k400=videos,weight=-0.5 own=labelled,weight=1",
        ("Source 'k400': weight is -0.5: expected 0 or more",),
    ),
    case(
        "weights of nothing",
        "k400=videos,weight=0 own=labelled,weight=0",
        ("The weights of all sources are 0",),
    ),
    case(
        "a weight for some sources",
        "k400=videos,weight=0.5 own=labelled",
        ("own none: give every source one, or none",),
    ),
    case(
        "a weight so small that its source is never drawn",
        "k400=videos,weight=1 own=labelled,weight=0.001",
        ("Source 'own': its weight is 0.001 of all", "would never be drawn", "weight=0"),
    ),
    case("two sources of one name", "a=videos a=labelled", ("Two sources are called 'a'",)),
    case(
        "folders of frames with gaps",
        "k400=videos ssv2=frames.csv,kind=frames",
        ("Source 'ssv2': 1 of 2 frame folders", "img_00005.jpg does not exist, the first of 2"),
        gaps,
    ),
    case(
        "a source of another kind",
        "k400=videos,kind=images",
        ("Source 'k400'", "0.mp4 is no image", "kind=video"),
    ),
    case(
        "a field that sources do not have",
        "k400=videos,wieght=1",
        ("has no field 'wieght'. Did you mean 'weight'?",),
    ),
]
