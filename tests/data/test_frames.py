"""Folders of frames as paths: read as videos are, in lists, in checks, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import write_frames

from tubelet.data import frames
from tubelet.data.check import check
from tubelet.data.decode import DecodeError, Video
from tubelet.data.frames import FrameFolder
from tubelet.data.lists import read_list
from tubelet.errors import TubeletError


@pytest.mark.parametrize(
    "path",
    [
        "a/img_{:05}.jpg[1:45]",
        "/a/b c/image_{:06}.jpg[9601:9900@30]",
        "{:05}.png[0:0@29.97]",
        "a{x}/img_{}.jpg[1:2]",
    ],
)
def test_a_path_says_a_folder_and_back(path: str) -> None:
    folder = frames.parse(path)
    assert folder is not None
    assert str(folder) == path
    assert frames.parse(str(folder)) == folder


def test_what_a_path_says() -> None:
    assert frames.parse("/a/image_{:06}.jpg[9601:9900@30]") == FrameFolder(
        *("/a", "image_{:06}.jpg", 9601, 9900, 30.0)
    )
    folder = FrameFolder("a{x}", "img_{:05}.jpg", 1, 2)
    assert folder.file(2) == "a{x}/img_00002.jpg"
    for other in ("a.mp4", "a[1:3].mp4", "a/b.jpg[1:3]", "a/img_{:05}.jpg", "a/img_{:05}.jpg[x:3]"):
        assert frames.parse(other) is None
    with pytest.raises(DecodeError, match="it has no frames"):
        frames.parse("a/img_{:05}.jpg[3:2]")
    for template in ("img.jpg", "img_{:05}_{}.jpg", "{x}.jpg", "img_%05d.jpg"):
        with pytest.raises(TubeletError, match="cannot name the frames"):
            frames.checked(template)


def test_numbers_are_those_that_the_template_would_make() -> None:
    names = ["img_00003.jpg", "img_4.jpg", "img_00001.jpg", "img_00001.png", "xmg_00002.jpg", "a"]
    assert frames.numbers_of(names, "img_{:05}.jpg") == [1, 3]
    assert frames.numbers_of(names, "img_{}.jpg") == [4]


def test_frames_are_the_pictures(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", frames=5, first=7)
    with Video(f"{folder}/img_{{:05}}.jpg[8:11@12]") as video:
        info = video.info
        assert (info.frames, info.fps, info.height, info.width) == (4, 12.0, 40, 48)
        assert info.duration_seconds == pytest.approx(4 / 12)
        np.testing.assert_allclose(video.timestamps, np.arange(4) / 12)
        shown = video.frames([3, 0, 0])
        assert video.decoded == 2
    for at, number in enumerate((11, 8, 8)):
        pixels = np.asarray(Image.open(folder / f"img_{number:05}.jpg"))
        assert torch.equal(shown[at], torch.from_numpy(pixels.copy()))
    with pytest.raises(DecodeError, match="frame 4 was asked for, but it has 4 frames"):
        Video(f"{folder}/img_{{:05}}.jpg[8:11]").frames([4])


def test_a_frame_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    picture = Image.new("RGB", (24, 16), (9, 9, 9))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "1.jpg", exif=exif)
    with Video(tmp_path / "{}.jpg[1:1]") as video:
        assert video.frames([0]).shape == (1, 24, 16, 3)


def test_frames_of_other_sizes_and_damaged_ones_are_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", frames=4)
    Image.new("RGB", (20, 30)).save(folder / "img_00003.jpg")
    (folder / "img_00004.jpg").write_text("no picture")
    path = f"{folder}/img_{{:05}}.jpg[1:5]"
    with Video(path) as video:
        with pytest.raises(DecodeError, match="frame 3 has 20x30 pixels, and the first one 48x40"):
            video.frames([0, 2])
        with pytest.raises(DecodeError, match="frame 4: it cannot be read as a picture"):
            video.frames([3])
        with pytest.raises(DecodeError, match="frame 5: there is no such file"):
            video.frames([4])
    with pytest.raises(DecodeError, match="frame 6: there is no such file"):
        Video(f"{folder}/img_{{:05}}.jpg[6:7]")


def test_gaps_are_found_by_a_listing(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip", frames=6)
    whole, longer = (f"{folder}/img_{{:05}}.jpg[{r}]" for r in ("1:6", "1:8"))
    assert frames.gaps([whole, "a.mp4"]) == {}
    (folder / "img_00004.jpg").unlink()
    nowhere = f"{tmp_path}/none/img_{{:05}}.jpg[1:6]"
    found = frames.gaps(["a.mp4", whole, longer, nowhere])
    assert found == {
        1: f"{folder}/img_00004.jpg does not exist",
        2: f"{folder}/img_00004.jpg does not exist, the first of 3 missing",
        3: f"{tmp_path}/none cannot be listed (No such file or directory)",
    }


def test_a_folder_of_many_clips_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As AVA's are: clips of 300 frames of a film of 27,000."""
    films = [write_frames(tmp_path / name, frames=6) for name in ("a", "b")]
    paths = [f"{film}/img_{{:05}}.jpg[{n}:{n + 1}]" for n in range(1, 7) for film in films]
    listed: list[str] = []
    monkeypatch.setattr(frames.os, "listdir", lambda at: listed.append(at) or ["img_00001.jpg"])
    assert sorted(frames.gaps(paths)) == list(range(12))
    assert sorted(listed) == [str(film) for film in films]


def test_lists_take_them_with_labels(tmp_path: Path) -> None:
    for i in range(2):
        write_frames(tmp_path / f"frames/{i} x", seed=i)
    lines = [f"frames/{i} x/img_{{:05}}.jpg[1:12{rate}] {i}" for i, rate in enumerate(("", "@12"))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    videos = read_list(tmp_path / "list.csv")
    assert [e.label for e in videos.entries] == [0, 1]
    assert [e.path for e in videos.entries] == [f"{tmp_path}/{ln[:-2]}" for ln in lines]
    report = check(tmp_path / "list.csv", workers=0)
    assert report.ok and report.videos["fps"] == {"1": 1, "12": 1}
    (tmp_path / "frames/1 x/img_00002.jpg").unlink()
    with pytest.raises(TubeletError, match=r"line 2: .*img_00002\.jpg does not exist"):
        read_list(tmp_path / "list.csv")
    (found,) = check(tmp_path / "list.csv", workers=0).unreadable
    assert found["reason"] == f"{tmp_path}/frames/1 x/img_00002.jpg does not exist."


def test_check_tells_folders_apart_by_their_frames(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        write_frames(tmp_path / name, frames=3, seed=seed)
    paths = [f"{tmp_path}/{name}/img_{{:05}}.jpg[1:3]" for name in "abc"]
    (same,) = check(paths, workers=0).within
    assert [one["path"] for one in same] == [paths[0], paths[2]]
