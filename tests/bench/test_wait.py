"""The benchmark of waiting for data: what it makes of a run's metrics, and that it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tubelet.bench import wait
from tubelet.cli import main


def test_the_first_row_is_left_out() -> None:
    rows = [
        {"step": 10, "clips_per_second": 0.1, "wait_ratio": 0.9, "worker_time": {"decode": 1.0}},
        {"step": 20, "clips_per_second": 2.0, "wait_ratio": 0.0, "worker_time": {"decode": 1.0}},
        {
            "step": 25,
            "clips_per_second": 0.5,
            "wait_ratio": 0.25,
            "worker_time": {"decode": 0.5, "augment": 0.5},
        },
    ]
    found = wait.waited(rows, clips=2)  # 10 seconds, and then 20
    assert found.share == pytest.approx(5 / 30)
    assert found.seconds == 2.0
    assert found.parts == pytest.approx({"decode": 2 / 3, "augment": 1 / 3})


def test_a_small_run(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    (record,) = wait.records(
        quick=True, progress=lambda done, of: told.append((done, of)), folder=tmp_path
    )
    assert (record.name, record.against) == ("wait-videomae-s", "no-wait")
    assert 0 <= record.ratio_time <= 1 and record.bar is record.met is None
    assert record.seconds_against == pytest.approx(record.ratio_time * (record.seconds or 0))
    assert "data wait" in record.note and "decode" in record.note
    assert told[-1] == (14, 14)


def test_files_are_copies_of_different_films_made_once(tmp_path: Path) -> None:
    films = wait._films(tmp_path / "films", 2, 20)
    assert films[0].read_bytes() != films[1].read_bytes()
    made = [film.stat().st_mtime_ns for film in films]
    assert wait._films(tmp_path / "films", 2, 20) == films
    assert [film.stat().st_mtime_ns for film in films] == made
    files = sorted(wait._copies(films, tmp_path / "files", 5).iterdir())
    found = [file.read_bytes() for file in files]
    assert found == [films[i % 2].read_bytes() for i in range(5)]
    assert len({file.stat().st_ino for file in files}) == 5  # no links


def test_a_run_of_which_nothing_would_count_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "wait", "--quick", "--steps", "10"]) == 1
    assert "--steps 10: expected more than 10" in capsys.readouterr().err
