"""Lists of frame folders in the published formats; folders of them; gaps."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import write_frames

from tubelet.data.framelists import kind_of, read_frame_folders
from tubelet.errors import TubeletError

TEMPLATE = "img_{:05}.jpg"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        write_frames(tmp_path / f"{i}", frames=4 + i)
    (tmp_path / "video.mp4").touch()
    return tmp_path


def read(data: Path, **options: object) -> tuple[list[str], bool]:
    given = {"template": TEMPLATE, "start": 1, "fps": None, **options}
    videos, seen = read_frame_folders(str(data), **given)  # pyright: ignore[reportArgumentType]
    return [entry.path for entry in videos.entries], seen


def path(folder: Path, name: str, frames: str, template: str = TEMPLATE) -> str:
    return f"{folder}/{name}/{template}[{frames}]"


def test_lines_of_every_form(folder: Path) -> None:
    lines = [
        "0 1 4",  # folder, first, how many
        "1 2 3",
        "2,6",  # how many
        "2",  # counted
        "video.mp4 0 -1",  # as published, a video
        "video.mp4",
        f"{folder}/0/{TEMPLATE}[2:3]",
        "# a comment",
    ]
    (folder / "list.csv").write_text("\n".join(lines))
    paths, seen = read(folder / "list.csv")
    assert paths == [
        path(folder, "0", "1:4"),
        path(folder, "1", "2:4"),
        path(folder, "2", "1:6"),
        path(folder, "2", "1:6"),
        f"{folder}/video.mp4",
        f"{folder}/video.mp4",
        path(folder, "0", "2:3"),
    ]
    assert not seen
    (folder / "list.csv").write_text("0\n1\n")
    assert read(folder / "list.csv", fps=12.0) == (
        [path(folder, "0", "1:4@12"), path(folder, "1", "1:5@12")],
        True,
    )


def test_folders_at_any_depth_and_other_names(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a"):
        write_frames(tmp_path / name, frames=3, first=0, template="{:03}.jpg")
    (tmp_path / ".hidden").mkdir()
    names = {"template": "{:03}.jpg", "start": 0}
    found = [path(tmp_path, name, "0:2", "{:03}.jpg") for name in ("a", "b/1", "b/2")]
    assert read(tmp_path, **names) == (found, True)
    with pytest.raises(TubeletError, match=r"No folder in .* has frames named as img_\{:05\}"):
        read(tmp_path)
    with pytest.raises(TubeletError, match=r"begins with 000\.jpg, before start=1"):
        read(tmp_path, template="{:03}.jpg")


def test_gaps_of_counted_folders_are_errors(folder: Path) -> None:
    (folder / "1/img_00002.jpg").unlink()
    (folder / "2/img_00001.jpg").unlink()
    with pytest.raises(TubeletError, match=r"2 of 3 frame folders cannot be used") as error:
        read(folder)
    assert f"{folder}/1/img_00002.jpg does not exist" in str(error.value)
    (folder / "list.csv").write_text("0\n1\n")
    with pytest.raises(TubeletError, match=r"1 of 2 frame folders cannot be used"):
        read(folder / "list.csv")


def test_lines_that_cannot_be_used_are_numbered(folder: Path) -> None:
    (folder / "list.csv").write_text("0 1 4\n7 1 4\n1 1 0\nnone.mp4 0 -1\n")
    with pytest.raises(TubeletError, match="3 of 4 lines cannot be used") as error:
        read(folder / "list.csv")
    for part in ("line 2: '7 1 4': there is no folder", "line 3: '1 1 0'", "none.mp4 does not"):
        assert part in str(error.value)
    with pytest.raises(TubeletError, match="There is no file or folder"):
        read(folder / "nowhere.csv")
    (folder / "list.csv").write_text("0 1 4\n")
    with pytest.raises(TubeletError, match="line 1"):
        read(folder / "list.csv", root="/nowhere")


def test_what_a_list_or_folder_is_of(folder: Path) -> None:
    for text, kind in (
        ("0 1 4", "frames"),
        ("0", "frames"),
        ("a/b.mp4 0 -1", "video"),
        ("a/b 0 -1", "video"),
        ("a/b.webm", "video"),
        (f"a/{TEMPLATE}[1:4]", "video"),
        ("path,label\na/b.mp4,swim", "video"),
        ('"a, b.mp4",3', "video"),
        ('{"path": "a/b.mp4"}', "video"),
        ("my.movies/0 1 4", "frames"),
    ):
        (folder / "list.csv").write_text(text + "\n")
        assert kind_of(str(folder / "list.csv")) == kind
    assert kind_of(str(folder)) == "video"
    assert kind_of(str(folder / "0")) == "frames"
    assert kind_of(str(folder / "nowhere")) == "video"


def test_files_beside_videos_do_not_tell_what_a_folder_is_of(tmp_path: Path) -> None:
    for name in ("README.txt", "train.csv", "swim/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert kind_of(str(tmp_path)) == "video"
    (tmp_path / "swim/b.mp4").rename(tmp_path / "swim/img_00001.jpg")
    assert kind_of(str(tmp_path)) == "frames"
