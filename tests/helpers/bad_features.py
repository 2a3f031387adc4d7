"""Features that cannot be made: see `bad_input.py`."""

from __future__ import annotations

from bad_input import Case, truncated

from tubelet.cli import main

EMBEDDED = [
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
]
