"""`check` finds every fault that was planted, in any number of processes, and survives crashes."""

import json
import os
import shutil
import sys
import time
import types
from pathlib import Path

import pytest
from rich.console import Console

from tubelet.data import isolate
from tubelet.data.check import Report, check, frames_needed
from tubelet.data.isolate import each
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec

SPEC = ClipSpec(num_frames=4, sampling_rate=4, size=(16, 16))


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Processes import this file by its name, so the folder of `tests` has to be on their path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2])
        yield


@pytest.fixture(scope="module")
def faulty(ten_videos, write_video, tmp_path_factory) -> Path:
    """train/{run,jump}, val/{run,swim}: a text, a cut file, a short one, and copies."""
    folder = tmp_path_factory.mktemp("faulty")
    plan = {"train/run": (0, 1, 2), "train/jump": (3, 4), "val/run": (5,), "val/jump": (6,)}
    for place, numbers in plan.items():
        (folder / place).mkdir(parents=True)
        for number in numbers:
            shutil.copy(ten_videos / f"{number}.mp4", folder / place)
    (folder / "train/run/text.mp4").write_text("this is no video")
    data = (ten_videos / "7.mp4").read_bytes()
    (folder / "train/jump/cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "train/jump/empty.mp4").write_bytes(b"")
    write_video(folder / "val/run/short.mp4", frames=5, seed=20)
    shutil.copy(ten_videos / "0.mp4", folder / "val/jump/copy of 0.mp4")
    shutil.copy(ten_videos / "3.mp4", folder / "train/run/twice.mp4")
    return folder


def text(report: Report) -> str:
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.table())
    return console.export_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_planted_fault_is_found(faulty, workers):
    calls = []
    report = check(faulty, spec=SPEC, workers=workers, progress=lambda *a: calls.append(a))
    names = {Path(bad["path"]).name: bad for bad in report.unreadable}
    assert set(names) == {"text.mp4", "cut.mp4", "empty.mp4"}
    assert all(bad["split"] == "train" and bad["reason"] for bad in names.values())
    assert "0 bytes" in names["empty.mp4"]["reason"]
    (short,) = report.too_short
    assert Path(short["path"]).name == "short.mp4"
    assert (short["frames"], short["needed"], short["split"]) == (5, 16, "val")
    (across,) = report.across
    assert {(one["split"], Path(one["path"]).name) for one in across} == {
        ("train", "0.mp4"),
        ("val", "copy of 0.mp4"),
    }
    (within,) = report.within
    assert {Path(one["path"]).name for one in within} == {"3.mp4", "twice.mp4"}
    assert report.splits["train"].histogram == {"jump": 4, "run": 5}
    assert report.splits["val"].histogram == {"jump": 2, "run": 2}
    assert calls == [(done, 13) for done in range(1, 14)]
    assert not report.ok


def test_table_and_json_say_it_all(faulty):
    report = check(faulty, spec=SPEC, workers=0)
    shown = text(report)
    for word in (
        "text.mp4",
        "cut.mp4",
        "short.mp4",
        "5 of 16",
        "copy of 0.mp4",
        "run",
        "Not ready",
    ):
        assert word in shown
    found = json.loads(report.to_json())
    assert found["ok"] is False and len(found["unreadable"]) == 3
    assert found["videos"]["sizes"] == {"48x32": 10} and found["videos"]["fps"] == {"10": 10}
    assert found["videos"]["frames"] == {"min": 5, "median": 20, "max": 20}
    assert found["speed"]["frames_per_second_per_process"] > 0
    assert found["speed"]["clips_per_second_per_process"] > 0


def test_a_sound_data_set_is_ready(ten_videos):
    report = check(ten_videos, workers=0)
    assert report.ok and "Ready for training" in text(report)
    assert (report.unreadable, report.too_short, report.across, report.within) == ([], [], [], [])
    assert report.splits["all"].videos == 10


def test_lists_with_missing_files_and_labels_that_do_not_fit(ten_videos, tmp_path):
    train, val = tmp_path / "a.csv", tmp_path / "b.csv"
    train.write_text(f"{ten_videos}/0.mp4 0\n{ten_videos}/1.mp4 1\n{ten_videos}/gone.mp4 1\n")
    val.write_text(f"{ten_videos}/2.mp4 7\n")
    report = check({"train": train, "val": val}, workers=0)
    (gone,) = report.unreadable
    assert gone["path"].endswith("gone.mp4") and gone["reason"] == "there is no such file."
    (problem,) = report.problems
    assert problem.startswith("val: ") and "label 7, and the highest is 1" in problem
    assert report.splits["val"].kind == "unlabelled"  # its videos were looked at all the same
    assert report.videos["frames"]["min"] == 20
    assert "label 7" in text(report)


def test_label_gaps_and_unseen_classes(ten_videos, tmp_path):
    train, val = tmp_path / "train.csv", tmp_path / "val.csv"
    train.write_text(f"{ten_videos}/0.mp4 0\n{ten_videos}/1.mp4 2\n")
    val.write_text(f"{ten_videos}/2.mp4 1\n")
    report = check(tmp_path, workers=0)
    assert any("1 of 3 classes have no video: 1" in note for note in report.notes)
    assert report.problems == ["val has videos of 1 classes that no training video shows: 1"]


def test_nothing_to_check(tmp_path):
    with pytest.raises(TubeletError, match="No videos in"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("sampling", "needed"), [("dense", 64), ("dense_fps", 53), ("uniform", 16), ("seconds", 75)]
)
def test_frames_that_a_clip_needs(sampling, needed):
    spec = ClipSpec(num_frames=16, sampling=sampling, sampling_rate=4, seconds=3.0)
    assert frames_needed(spec, fps=25.0) == needed


# --- processes that crash or hang ------------------------------------------------------------


def task(item: int) -> int:
    if item == 3:
        os.abort()  # as a decoder's segmentation fault
    if item == 5:
        time.sleep(60)
    if item == 7:
        raise TubeletError("seven")
    return item * item


def test_a_crash_and_a_hang_cost_only_their_item():
    got = each(
        task,
        [0, 1, 2, 3, 4, 5, 6],
        workers=2,
        lost=lambda item, why: (item, why),
        timeout_seconds=3,
    )
    assert [got[i] for i in (0, 1, 2, 4, 6)] == [0, 1, 4, 16, 36]
    assert got[3][0] == 3 and "crashed the decoder (exit code -6)" in got[3][1]
    assert got[5][0] == 5 and "did not end within 3 s" in got[5][1]


def test_an_error_of_the_task_comes_through():
    for workers in (0, 1):
        with pytest.raises(TubeletError, match="seven"):
            each(task, [1, 7], workers=workers, lost=lambda *_: 0, timeout_seconds=60)


def test_processes_that_cannot_start_are_explained(monkeypatch):
    module = types.ModuleType("only_in_this_process")
    module.task = task
    monkeypatch.setitem(sys.modules, "only_in_this_process", module)
    monkeypatch.setattr(task, "__module__", "only_in_this_process")
    with pytest.raises(TubeletError, match=r"could not start.*workers=0"):
        each(task, [1], workers=1, lost=lambda *_: 0, timeout_seconds=60)


def test_cores():
    assert 1 <= isolate.cpu_cores() <= (os.cpu_count() or 1)
