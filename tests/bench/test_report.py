"""What was measured, written and read again, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tubelet.bench import kept, report
from tubelet.bench.kept import Done, Found
from tubelet.bench.record import Record, compared
from tubelet.bench.turns import Took
from tubelet.errors import TubeletError

OURS = Took((1.0, 2.0, 1.0), (1e9,) * 3, 8 * 10**8, 1.0, 0.5)
THEIRS = Took((3.0, 4.0, 2.0), (1e9,) * 3, 16 * 10**8, 2.0, 0.5)


def record(bar: float | None, bar_memory: float | None = None) -> Record:
    return compared(
        *("videomae-b-f32", OURS, "hf", THEIRS),
        precision="float32",
        shape="4x3x16x224x224",
        bar=bar,
        bar_memory=bar_memory,
    )


def done(*records: Record, kind: str = "step", quick: bool = False) -> Done:
    return Done(kind, kind, kept.about(2), quick, 9.0, Found(list(records)))


def test_a_record_is_the_median_over_pairs_of_turns() -> None:
    found = record(None)
    assert (found.ratio_time, found.spread) == (2.0, (2.0, 3.0))
    assert (found.ratio_memory, found.mfu, found.mfu_against) == (0.5, 0.8, 0.8 * 2 / 3)
    assert found.met is None
    half = compared(*("x", OURS, "y", THEIRS), precision="float32", shape="", views=(4, 1), bar=7.9)
    assert half.ratio_time == 8.0 and half.seconds == 0.25 and half.met


@pytest.mark.parametrize(
    ("bar", "bar_memory", "said"),
    [
        (2.0, 0.5, "met"),
        (2.1, 0.5, "MISSED"),
        (2.0, 0.4, "MISSED"),
        (2.6, None, "floor"),  # products alone allow 2.5
        (2.6, 0.4, "MISSED"),
        (None, None, ""),
    ],
)
def test_verdicts(bar: float | None, bar_memory: float | None, said: str) -> None:
    assert report.verdict(record(bar, bar_memory)) == said


def test_where_memory_is_not_known_its_bar_is_not_missed() -> None:
    unknown = compared(
        *("x", replace(OURS, peak_gib=None), "y", THEIRS),
        precision="float32",
        shape="",
        bar=1.0,
        bar_memory=0.1,
    )
    assert unknown.ratio_memory is None and unknown.met


def test_the_files_hold_all_and_are_read_again(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"name": "videomae-b", "peak_gib": 3.14159, "met": None}]
    parts = [done(record(2.0), record(2.1)), replace(done(kind="memory"), found=Found(rows=rows))]
    kept.write(tmp_path / "performance.json", parts)
    assert kept.read(tmp_path / "performance.json") == parts
    written = json.loads((tmp_path / "performance.json").read_text())["records"]
    assert [row["met"] for row in written] == [True, False]
    assert {
        "name",
        "against",
        "ratio_time",
        "ratio_memory",
        "mfu",
        "precision",
        "shape",
        "versions",
    } <= set(written[0])
    report.write(tmp_path, parts)
    page = (tmp_path / "performance.md").read_text()
    assert "| videomae-b-f32 | hf | float32 | 4x3x16x224x224 | 2.00 (2.00 to 3.00) |" in page
    assert " met " in page and " MISSED " in page and "3.14" in page
    assert "| its bar |" not in page  # a column that nothing fills
    with Image.open(tmp_path / "performance.png") as picture:
        assert picture.width > 500


def test_a_part_of_other_versions_is_not_kept() -> None:
    part, here = done(), kept.about(2)
    assert part.fits({**here, "date": "2001-01-01"}, quick=False)
    assert not part.fits(here, quick=True)
    assert not part.fits({**here, "threads": 1}, quick=False)
    assert not part.fits({**here, "versions": {"torch": "1.0"}}, quick=False)


def test_a_file_that_is_something_else_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "performance.json"
    for text in ("", "[]", '{"records": [{}]}'):
        path.write_text(text)
        with pytest.raises(TubeletError, match="no results of tubelet bench all"):
            kept.read(path)
