"""Merged label sets against a slow version, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tubelet.data.lists import Entry, VideoList
from tubelet.data.merge import Clip, Count, Merged, id_of, merge
from tubelet.data.renames import Rename, read_renames, renamed
from tubelet.errors import TubeletError

OWN = {
    "k400": ("yoga", "hugging", "bowling"),  # in the order of their numbers, not sorted
    "k600": ("bowling", "diving", "hugging (not baby)"),
    "k700": ("archery", "yoga"),
}
RENAMES = (Rename("hugging", "hugging (not baby)"), Rename("yoga", "stretching", "k700"))
CLASSES = ("archery", "bowling", "diving", "hugging (not baby)", "stretching", "yoga")


def drawn(seed: int, count: int, split: str) -> dict[str, VideoList]:
    """Lists of the three sets, of videos that partly are the same; each class has one of its own."""
    rng = np.random.default_rng(seed)
    lists: dict[str, VideoList] = {}
    for of, classes in OWN.items():
        entries = [Entry(f"{of}-{name}-{split}.mp4", at) for at, name in enumerate(classes)]
        entries += [
            Entry(f"{of}/v{rng.integers(60)}.mp4", int(rng.integers(len(classes))))
            for _ in range(count)
        ]
        order = rng.permutation(len(entries))
        lists[of] = VideoList(tuple(entries[i] for i in order), classes, f"{of}.csv", "single")
    return lists


def slow(lists: dict[str, VideoList], tested: list[Clip]) -> tuple[list[Clip], dict[str, Count]]:
    """Pair by pair: what is kept, and the counts."""
    new = {
        "k400": {"hugging": "hugging (not baby)"},
        "k600": {},
        "k700": {"yoga": "stretching"},
    }
    kept: list[Clip] = []
    counts: dict[str, Count] = {}
    for of, videos in lists.items():
        tally = {"in_validation": 0, "duplicates": 0, "conflicts": 0, "kept": 0}
        for entry in videos.entries:
            assert isinstance(entry.label, int)
            name = OWN[of][entry.label]
            clip = Clip(of, entry.path, new[of].get(name, name))
            stem = Path(clip.path).stem
            before, there = (
                [other for other in others if Path(other.path).stem == stem]
                for others in (kept, tested)
            )
            tally["in_validation"] += bool(there)
            tally["duplicates"] += bool(before) and not there
            tally["conflicts"] += any(x.label != clip.label for x in (there or before)[:1])
            if not before and not there:
                tally["kept"] += 1
                kept.append(clip)
        counts[of] = Count(listed=len(videos), **tally)
    return kept, counts


@pytest.mark.parametrize("seed", range(4))
def test_merging_is_what_a_look_at_every_pair_gives(seed: int) -> None:
    train, val = drawn(seed, 30, "train"), drawn(seed + 100, 8, "val")
    merged = merge(train, val, RENAMES)
    test_clips, test_counts = slow(val, [])
    clips, counts = slow(train, test_clips)
    assert (list(merged.train), list(merged.val)) == (clips, test_clips)
    assert merged.counts == {"train": counts, "val": test_counts}
    assert sum(count.duplicates for count in counts.values()) > 3, "nothing was tried"
    both = [*counts.values(), *test_counts.values()]
    assert len(merged.conflicts) == sum(count.conflicts for count in both) > 3
    for kept, left in merged.conflicts:
        assert Path(kept.path).stem == Path(left.path).stem
        assert kept.label != left.label
    assert merged.classes == CLASSES


def test_maps_name_the_rows_of_each_set_in_its_own_order() -> None:
    merged = merge(drawn(0, 0, "train"), {}, RENAMES)
    assert merged.maps() == {
        "k400": {
            "classes": OWN["k400"],
            "rows": [5, 3, 1],
            "merged": ("yoga", "hugging (not baby)", "bowling"),
        },
        "k600": {"classes": OWN["k600"], "rows": [1, 2, 3], "merged": OWN["k600"]},
        "k700": {"classes": OWN["k700"], "rows": [0, 4], "merged": ("archery", "stretching")},
    }
    report = merged.report()
    assert (report["classes"], report["videos"]) == (6, {"train": 8, "val": 0})
    assert report["counts"]["train"]["k600"]["kept"] == 3


def alone(*entries: Entry, classes: tuple[str, ...] = ("a", "b")) -> dict[str, VideoList]:
    return {"set": VideoList(entries, classes, "set.csv", "single")}


A, B = Entry("x/a0.mp4", 0), Entry("x/b0.mp4", 1)


def test_what_makes_two_files_one_video() -> None:
    clips = ("k400/abcdefghijk_000001_000011.mp4", "k600/abcdefghijk_000005_000015.mp4")
    assert id_of(clips[0], "youtube") == id_of(clips[1], "youtube") == "abcdefghijk"
    assert id_of(clips[0], "stem") == "abcdefghijk_000001_000011"
    assert id_of("ssv2/78.v/img_{:05}.jpg[1:45@12]", "stem") == "78.v"
    assert id_of("x/../x/a.mp4", "path") == str(Path("x/a.mp4").absolute())
    assert id_of("x/a.mp4", "path") != id_of("y/a.mp4", "path")
    with pytest.raises(TubeletError, match=r"v 1\.mp4 is not called by a YouTube id"):
        id_of("x/v 1.mp4", "youtube")


def test_names_that_are_used_again_for_other_videos_are_no_ids() -> None:
    """class folders with the same names in each would lose all but the first class."""
    same = alone(Entry("x/a/0.mp4", 0), Entry("x/b/0.mp4", 1), Entry("x/b/1.mp4", 1))
    with pytest.raises(TubeletError, match=r"x/a/0.mp4 \(a\) and x/b/0.mp4 \(b\).*--id path"):
        merge(same, {})
    assert len(merge(same, {}, identity="path").train) == 3
    val = alone(Entry("val/a/0.mp4", 0), Entry("val/b/1.mp4", 1))
    with pytest.raises(TubeletError, match=r"val/a/0.mp4 \(a\) and x/b/0.mp4 \(b\)"):
        merge(alone(*same["set"].entries[1:]), val)
    few = alone(*same["set"].entries[:2], *(Entry(f"x/a/{i}.mp4", 1) for i in range(2, 41)))
    assert merge(few, {}).counts["train"]["set"].conflicts == 1


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (alone(A, B), alone(A, B), "No training video of set is left: of 2, 2 are in a validation"),
        (alone(A), {}, r"1 of 2 classes of set have no training video.*'b'"),
        (alone(A, B), alone(B), r"1 of 2 classes of set have no training video.*'b'"),
        (alone(A, B, classes=("a", "7")), {}, "called '7'"),
        (alone(A, B, classes=("a", "b; c")), {}, "called 'b; c'"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(train: Any, val: Any, message: str) -> None:
    with pytest.raises(TubeletError, match=message):
        merge(train, val)


def test_a_set_of_nothing_new_is_refused() -> None:
    twice = {"k400": alone(A, B)["set"], "k600": alone(A, B)["set"]}
    with pytest.raises(
        TubeletError, match=r"No training video of k600 is left.*2 were listed before"
    ):
        merge(twice, {})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", 'old,new\n"tying, tie",tying necktie\n\nyoga,stretching\n'),
        ("r.tsv", "set\told\tnew\n\ttying, tie\ttying necktie\n\tyoga\tstretching\n"),
        ("r.json", json.dumps({"tying, tie": "tying necktie", "yoga": "stretching"})),
    ],
)
def test_rename_tables_in_each_form(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    wanted = (Rename("tying, tie", "tying necktie"), Rename("yoga", "stretching"))
    assert read_renames(tmp_path / name) == wanted


def test_a_row_for_one_set_goes_first_and_nothing_is_renamed_twice() -> None:
    rows = (Rename("a", "b"), Rename("b", "c"), Rename("a", "d", "two"))
    found = renamed({"one": ("a", "x"), "two": ("b", "a")}, rows)
    assert found == {"one": ("b", "x"), "two": ("c", "d")}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [("hugging", "bowling")],
            "Two classes of k400, 'hugging' and 'bowling', .* called 'bowling'",
        ),
        ([("huging", "hugs")], "no set has a class of that name. Nearest: 'hugging'"),
        ([("archery", "bows", "k400")], "k400 has no such class"),
        ([("yoga", "x", "k500")], "the set 'k500', and the sets are k400, k600, k700"),
        ([("yoga", "x"), ("yoga", "y")], "'yoga' twice, to 'x' and to 'y'"),
    ],
)
def test_rename_tables_that_cannot_be_are_refused(
    rows: list[tuple[str, ...]], message: str
) -> None:
    with pytest.raises(TubeletError, match=message):
        renamed(OWN, [Rename(*row) for row in rows])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "tying tie\n", r"row 1 is \['tying tie'\]: expected old,new"),
        ("r.csv", "a,b\nold,\n", r"row 2 is \['old', ''\]"),
        ("r.json", '[["a", 3]]', "row 1"),
        ("r.json", '"a"', "holds a str"),
        ("r.json", "{", "cannot be read as a table of renamed classes"),
        ("none.csv", None, "cannot be read as a table"),
    ],
)
def test_files_that_are_no_rename_tables(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TubeletError, match=message):
        read_renames(tmp_path / name)


def test_a_merged_set_is_told_as_a_table() -> None:
    merged: Merged = merge(drawn(0, 30, "train"), drawn(100, 8, "val"), RENAMES)
    console = Console(width=120)
    with console.capture() as shown:
        console.print(merged.table())
    text = " ".join(shown.get().split())
    count = merged.counts["train"]["k600"]
    assert f"{count.listed} │ {count.in_validation} │ {count.duplicates} │" in text
    assert str(len(merged.train)) in text
