"""The folder of features: names, claims, what it refuses."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tubelet.errors import TubeletError
from tubelet.tasks.feature_files import FeatureFolder, Features, claim, names_of

ONE = Features(np.ones((2, 3), np.float32), np.array([0.0, 1]), np.array([1.0, 2]), 25.0, 50)


def test_names_keep_subfolders_and_tell_all_videos_apart() -> None:
    assert names_of(["a/b/x.mp4"]) == ["x"]
    assert names_of(["a/b/x.mp4", "a/c/x.mp4", "a/y.v2.mp4"]) == ["b/x", "c/x", "y.v2"]
    assert names_of(["a/x.mp4", "a/x.avi", "a/z.avi"]) == ["x.mp4", "x.avi", "z"]
    assert names_of(["a/b/x.mp4"], "a") == ["b/x"]
    frames = "ssv2/a.b/img_{:05}.jpg"
    assert names_of(["ssv2/c.mp4", f"{frames}[1:45]"]) == ["c", "a.b"]
    parts = [f"{frames}[1:45]", f"{frames}[46:90@12]"]
    assert names_of(parts) == ["a.b[1-45]", "a.b[46-90]"]
    with pytest.raises(TubeletError, match=r"c/x\.mp4 does not lie in a"):
        names_of(["a/y.mp4", "c/x.mp4"], "a")
    for twice in (
        ["a/x.mp4", str(Path("a/x.mp4").absolute())],
        ["a/x.mp4", "a/x.avi", "a/x.mp4.mkv"],
        [f"{frames}[1:45]", "ssv2/a.b/flow_{:05}.jpg[1:45]"],
    ):
        with pytest.raises(TubeletError, match=r"would be one file, .*each video once"):
            names_of(twice)


@pytest.mark.parametrize("form", ["npy", "npz", "parquet"])
def test_files_are_known_again_and_other_videos_are_not(tmp_path: Path, form) -> None:
    video = tmp_path / "x.mp4"
    video.write_bytes(b"12345")
    folder = FeatureFolder(tmp_path / "out", form)
    folder.begin({"a": 1})
    assert not folder.there("sub/x", str(video))
    first = folder.claim("sub/x")
    assert first is not None
    file = folder.write("sub/x", str(video), ONE)
    first.release()
    before = file.read_bytes()
    assert folder.there("sub/x", str(video))
    folder.write("sub/x", str(video), ONE)
    assert file.read_bytes() == before  # no date within
    video.write_bytes(b"123456")
    with pytest.raises(TubeletError, match="of 5 bytes, and this one has 6"):
        folder.there("sub/x", str(video))
    file.write_bytes(b"")
    if form == "npy":
        file.with_name("x.times.json").write_text("")
    with pytest.raises(TubeletError, match="is damaged"):
        folder.there("sub/x", str(video))


def test_a_file_has_one_claim_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    first = claim(file)
    assert first is not None and claim(file) is None
    other = claim(tmp_path / "y.npy")
    assert other is not None
    other.release()
    first.release()
    first.release()  # as often as one likes
    again = claim(file)
    assert again is not None
    again.release()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_does_not_hinder(tmp_path: Path) -> None:
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        held = claim(tmp_path / "x.npy")
        os._exit(held is None)
    assert [p.name for p in tmp_path.iterdir()] == [".x.npy.lock"]
    mine = claim(tmp_path / "x.npy")
    assert mine is not None
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TubeletError, match="file is a file"):
        FeatureFolder(tmp_path / "file", "npy").begin({})
    for text, said in (("{", "describes no features"), ('{"format": 9}', "Upgrade")):
        (tmp_path / "features.json").write_text(text)
        with pytest.raises(TubeletError, match=said):
            FeatureFolder(tmp_path, "npy").begin({})
    (tmp_path / "features.json").write_text(json.dumps({"format": 1, "hop": {"frames": 4}}))
    with pytest.raises(TubeletError, match=r"hop\.frames: 4 in the folder, 16 here"):
        FeatureFolder(tmp_path, "npy").begin({"hop": {"frames": 16}})


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = FeatureFolder(tmp_path, "npz")
    (tmp_path / "x.mp4").write_bytes(b"1")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(TubeletError, match="No space left on device"):
        folder.write("x", str(tmp_path / "x.mp4"), ONE)
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"]


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "x.mp4").write_bytes(b"1")
    with pytest.raises(TubeletError, match=r"pip install 'tubelet\[tables\]'"):
        FeatureFolder(tmp_path, "parquet").write("x", str(tmp_path / "x.mp4"), ONE)
