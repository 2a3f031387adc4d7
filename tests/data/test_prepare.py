"""`prepare` of a data set: the same videos and labels in smaller files, whatever stops it on the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numbered import X264, numbered, write
from prepared import LOSSLESS, SETTINGS, contents
from processes import run

from tubelet.data.decode import Video
from tubelet.data.lists import read_list
from tubelet.data.prepare import reencode
from tubelet.data.prepare.job import prepare
from tubelet.data.prepare.reencode import Settings
from tubelet.errors import TubeletError


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos, also of one name and two endings, and with spaces."""
    folder = tmp_path_factory.mktemp("films")
    names = ("run/a.mp4", "run/a.avi", "run/b c.mp4", "jump/0.mkv", "jump/1.MP4")
    for at, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / name, np.roll(numbered(8 + at), at, 2), options={"g": "4"})
    return folder


@pytest.fixture
def data(films: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(films, tmp_path / "data"))


def labels_of(source: Path) -> dict[str, str]:
    videos = read_list(source)
    names = {str(Path(e.path).with_suffix("").name): e.label for e in videos.entries}
    return {name: videos.classes[label] for name, label in names.items() if isinstance(label, int)}


def test_class_folders_stay_class_folders(data: Path, tmp_path: Path) -> None:
    (data / "swim").mkdir()
    out = tmp_path / "out"
    report = prepare(data, out, SETTINGS, workers=0)
    assert report.ok
    assert (report.videos, report.made, report.there) == (5, 5, 0)
    videos = read_list(out)
    assert videos.classes == read_list(data).classes == ("jump", "run", "swim")
    places = [os.path.relpath(entry.path, out) for entry in videos.entries]
    assert places == ["jump/0.mp4", "jump/1.mp4", "run/a.avi.mp4", "run/a.mp4", "run/b c.mp4"]
    assert [entry.label for entry in videos.entries] == [0, 0, 1, 1, 1]
    lengths = {}
    for entry in videos.entries:
        with Video(entry.path) as video:
            lengths[os.path.relpath(entry.path, out)] = video.info.frames
    assert lengths == dict(zip(places, (11, 12, 9, 8, 10), strict=True))
    result = report.result
    assert result is not None
    sizes = [path.stat().st_size for path in out.rglob("*.mp4")]
    assert result.bytes_after == sum(sizes)
    assert result.bytes_before == sum(p.stat().st_size for p in data.rglob("*.*") if p.is_file())
    assert result.psnr_db is not None and result.psnr_db > 25
    assert min(result.clips_per_cpu_second_before, result.clips_per_cpu_second_after) > 0


def test_processes_make_the_same_files(data: Path, tmp_path: Path) -> None:
    prepare(data, tmp_path / "one", SETTINGS, workers=0)
    seen: list[tuple[int, int, str]] = []
    prepare(data, tmp_path / "two", SETTINGS, workers=2, progress=lambda *step: seen.append(step))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [step[:2] for step in seen] == [(i + 1, 5) for i in range(5)]
    assert "videos/s" in seen[-1][2] and "saved" in seen[-1][2]


def test_a_second_run_makes_only_what_changed(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(data, out, SETTINGS, workers=0)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    again = prepare(data, out, SETTINGS, workers=0)
    assert (again.made, again.there, again.ok) == (0, 5, True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == before
    write(data / "run/a.mp4", numbered(20), options=X264)
    (out / "jump/0.mp4").unlink()
    assert prepare(data, out, SETTINGS, workers=0).made == 2
    with Video(out / "run/a.mp4") as video:
        assert video.info.frames == 20


def test_what_cannot_be_read_is_named_each_time(data: Path, tmp_path: Path) -> None:
    (data / "run/text.mp4").write_text("this is no video")
    for _ in range(2):
        report = prepare(data, tmp_path / "out", SETTINGS, workers=0)
        assert [fault.path for fault in report.unreadable] == [str(data / "run/text.mp4")]
        assert not report.ok and not json.loads(report.to_json())["ok"]
        assert "no video" in report.unreadable[0].reason
    assert len(read_list(tmp_path / "out")) == 5


LISTS = {
    "plain.csv": "run/a.mp4,3\nrun/b c.mp4,0\njump/1.MP4,3\n",
    "spaces.txt": "run/b c.mp4 1\njump/0.mkv 0\n",
    "quoted.csv": '"run/b c.mp4",run\n"jump/0.mkv",high jump\n',
    "header.csv": 'id,path,label,who\nrun/a.mp4,run/a.avi,x,me\nb,"run/b c.mp4",y,"you, too"\n',
    "spaced.txt": "path label\nrun/b c.mp4 1\nrun/a.mp4 0\n",
    "many.csv": "run/a.mp4 0 2 4\nrun/b c.mp4 1\n",
    "lines.jsonl": '{"video": "run/a.mp4", "label": "ü", "other": [1]}\n["jump/0.mkv", "y"]\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_keeps_its_labels(name: str, data: Path, tmp_path: Path) -> None:
    (data / name).write_text(LISTS[name])
    out = tmp_path / "out"
    assert prepare(data / name, out, SETTINGS, workers=0).ok
    before, after = read_list(data / name), read_list(out / name)
    assert [entry.label for entry in after.entries] == [entry.label for entry in before.entries]
    assert (after.classes, after.kind) == (before.classes, before.kind)
    for old, new in zip(before.entries, after.entries, strict=True):
        assert Path(new.path).is_relative_to(out)
        with Video(old.path) as one, Video(new.path) as other:
            assert one.info.frames == other.info.frames
    text = (out / name).read_text()
    assert ("other" in text, "you, too" in text) == (name == "lines.jsonl", name == "header.csv")


def test_other_columns_and_lists_of_a_folder_come_along(data: Path, tmp_path: Path) -> None:
    (data / "train.csv").write_text("run/a.mp4 0\njump/0.mkv 1\n")
    (data / "val.csv").write_text(f"{data / 'run/b c.mp4'},1\n")
    (data / "names.txt").write_text("run\njump\n")
    out = tmp_path / "out"
    report = prepare(data, out, SETTINGS, workers=0)
    assert report.videos == 5
    assert any("names.txt: none of its videos" in note for note in report.notes)
    for split, count in (("train", 2), ("val", 1)):
        before, after = (read_list(folder, split=split) for folder in (data, out))
        assert [e.label for e in after.entries] == [e.label for e in before.entries]
        assert len(after) == count
        assert all(Path(entry.path).is_relative_to(out) for entry in after.entries)


def test_rows_of_unreadable_videos_keep_the_path_of_the_original(
    data: Path, tmp_path: Path
) -> None:
    (data / "run/text.mp4").write_text("this is no video")
    (data / "all.csv").write_text("run/a.mp4 1\nrun/text.mp4 0\nrun/gone.mp4 2\n")
    report = prepare(data / "all.csv", tmp_path / "out", SETTINGS, workers=0)
    reasons = {Path(fault.path).name: fault.reason for fault in report.unreadable}
    assert reasons.keys() == {"text.mp4", "gone.mp4"}
    lines = (tmp_path / "out/all.csv").read_text().splitlines()
    gone, text = (data / "run" / name for name in ("gone.mp4", "text.mp4"))
    assert lines == ["run/a.mp4 1", f"{text} 0", f"{gone} 2"]


def test_a_list_of_absolute_paths_has_the_tree_below_what_they_share(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "lists").mkdir()
    source = tmp_path / "lists/train.csv"
    source.write_text(f"{data}/run/a.mp4 1\n{data}/jump/0.mkv 0\n")
    prepare(source, tmp_path / "out", SETTINGS, workers=0)
    assert (tmp_path / "out/train.csv").read_text() == "run/a.mp4 1\njump/0.mp4 0\n"


def test_a_dry_run_measures_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    (data / "run/text.mp4").write_text("this is no video")
    report = prepare(data, tmp_path / "out", SETTINGS, workers=0, dry_run=True)
    assert not (tmp_path / "out").exists()
    assert report.estimate is not None and report.result is None
    assert report.estimate.videos == 6
    assert 0 < report.estimate.bytes_after < 10 * report.estimate.bytes_before
    assert report.estimate.cpu_hours > 0
    true = prepare(data, tmp_path / "out", SETTINGS, workers=0).result
    assert true is not None
    assert report.estimate.bytes_after == pytest.approx(true.bytes_after, rel=0.5)


# What is refused


def test_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(data / "run", out, SETTINGS, workers=0)
    before = contents(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("mine")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_bytes(b"")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/prepared.ndjson").write_text('{"format": 1, "crf": 18}\n')
    shutil.copytree(data / "run", tmp_path / "elsewhere/run")
    write(tmp_path / "elsewhere/run/a.mp4", numbered(30), options=X264)
    cases = [
        (
            data,
            out,
            LOSSLESS,
            "--codec was mpeg2, now h264; --crf was 18, now 0; --keyframe-every was 6",
        ),
        (data, tmp_path / "other", SETTINGS, "holds no prepared videos"),
        (data, tmp_path / "old", SETTINGS, "by another version of tubelet"),
        (data, data / "small", SETTINGS, "one lies in the other"),
        (data / "run/a.mp4", data / "run", SETTINGS, "are the same"),
        (tmp_path / "pictures", tmp_path / "new", SETTINGS, "only video files are prepared"),
        (tmp_path / "elsewhere/run", out, SETTINGS, "would take its place"),
    ]
    for source, folder, settings, says in cases:
        with pytest.raises(TubeletError, match=says):
            prepare(source, folder, settings, workers=0)
    assert contents(out) == before
    for comment in ("", SETTINGS.tag().replace("=6", "=six"), SETTINGS.tag() + " more=1"):
        assert not SETTINGS.met_by(comment)
    assert SETTINGS.met_by(SETTINGS.tag())
    for wrong in ({"short_side": 255}, {"keyframe_every": 0}, {"crf": 60}, {"codec": "h265"}):
        with pytest.raises(TubeletError, match="expected"):
            Settings(**wrong)


# What stops it


@contextmanager
def full_at(number: int):
    """The disk is full in the middle of that file."""
    real, calls = reencode.encode, []

    def encode(reader, out, settings, frames=None):
        calls.append(out)
        if len(calls) == number:
            out.write_bytes(b"the first part")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(reader, out, settings, frames)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reencode, "encode", encode)
        yield


def test_a_full_disk_keeps_what_was_made(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with full_at(3), pytest.raises(TubeletError, match="No space left on device"):
        prepare(data, out, SETTINGS, workers=0)
    assert len(contents(out)) == 2
    assert prepare(data, out, SETTINGS, workers=0).there == 2
    prepare(data, tmp_path / "whole", SETTINGS, workers=0)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them")
def test_killed_at_any_moment_it_goes_on(data: Path, tmp_path: Path) -> None:
    for name in ("run/a.avi", "run/b c.mp4", "jump/1.MP4"):
        (data / name).unlink()
    (data / "train.csv").write_text("run/a.mp4 0\njump/0.mkv 1\n")
    script = Path(__file__).parents[1] / "helpers/killed_preparing.py"
    assert run(script, data, tmp_path) == 0
    kills = json.loads((tmp_path / "result.json").read_text())
    # Notes, two videos and a list are renamed: before and after each, and amid two of the lines.
    assert len(kills) == 10
    assert all(kill["killed"] and kill["equal"] for kill in kills)
    assert {kill["there"] for kill in kills} == {0, 1, 2}
