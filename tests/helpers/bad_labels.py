"""Bad label sets, and heads that do not fit them: see `bad_input.py`."""

from __future__ import annotations

from pathlib import Path

from bad_input import Case


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


LABELLED = [
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
]
