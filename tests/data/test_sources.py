"""Several sources as one list: kinds, strides, replacement, counts, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small import write_frames, write_video

from tubelet.data.clips import ClipDataset, Key
from tubelet.data.decode import Video
from tubelet.data.loader import train_loader
from tubelet.data.sampling import draw_frames, rng_for
from tubelet.data.sources import DataSource, examine, read_sources, table
from tubelet.data.transforms import PRETRAIN, augment
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec

SPEC = ClipSpec(num_frames=4, sampling_rate=3, size=(16, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/ (4), frames/ (3 folders, 12 frames each, and a list), images/ (2)."""
    folder = tmp_path_factory.mktemp("sources")
    for i in range(4):
        write_video(folder / f"videos/{i}.mp4", seed=i)
    for i in range(3):
        write_frames(folder / f"frames/{i}", seed=i)
    (folder / "frames.csv").write_text("".join(f"{i} 1 12\n" for i in range(3)))
    (folder / "images").mkdir()
    for i in range(2):
        Image.new("RGB", (48, 40), (100 * i, 0, 0)).save(folder / f"images/{i}.png")
    return folder


def three(folder: Path, *weights: float | None) -> tuple[DataSource, ...]:
    k, s, i = weights or (None, None, None)
    return (
        DataSource("k", f"{folder}/videos", weight=k),
        DataSource(
            *("s", f"{folder}/frames.csv", f"{folder}/frames", "frames"), sampling_rate=2, weight=s
        ),
        DataSource("i", f"{folder}/images", kind="images", weight=i),
    )


def test_one_list_with_parts(folder: Path) -> None:
    videos = read_sources(three(folder), SPEC)
    assert [(p.name, p.first, p.videos) for p in videos.parts] == [
        *(("k", 0, 4), ("s", 4, 3), ("i", 7, 2)),
    ]
    assert [p.clip.sampling_rate for p in videos.parts] == [3, 2, 3]
    assert videos.entries[5].path == f"{folder}/frames/1/img_{{:05}}.jpg[1:12]"
    assert [line.split() for line in table(videos)[1:]] == [
        ["k", "4", "44.4%", "4", "frames,", "every", "3"],
        ["s", "3", "33.3%", "4", "frames,", "every", "2"],
        ["i", "2", "22.2%", "4", "frames,", "every", "3"],
    ]
    other = read_sources(three(folder)[::-1], SPEC)
    assert videos.fingerprint() == read_sources(three(folder, 1, 2, 3), SPEC).fingerprint()
    assert videos.fingerprint() != other.fingerprint()


def test_strides_in_frames_and_in_time() -> None:
    clip = ClipSpec(sampling="uniform")
    source = DataSource("a", "a", "", "frames", fps=12.0)
    assert source.clip(clip) == clip
    dense = replace(source, sampling_rate=2).clip(clip)
    assert (dense.sampling, dense.sampling_rate) == ("dense", 2)
    timed = replace(source, sampling_rate=2, target_fps=12.5).clip(clip)
    assert (timed.sampling, timed.sampling_rate, timed.target_fps) == ("dense_fps", 2, 12.5)
    with pytest.raises(TubeletError, match="say fps=12, or sampling_rate=2"):
        replace(source, fps=None).clip(replace(clip, sampling="seconds"))


def test_samples_are_drawn_with_the_spec_of_their_source(folder: Path) -> None:
    videos = read_sources(three(folder), SPEC)
    dataset = ClipDataset(videos, SPEC, PRETRAIN, seed=5)
    for index, rate in ((1, 3), (5, 2)):
        (sample,) = dataset[Key(2, index)]
        rng = rng_for(5, 2, index)
        with Video(videos.entries[index].path) as video:
            at = draw_frames(replace(SPEC, sampling_rate=rate), video.info.frames, 10.0, rng)
            assert at[1] - at[0] == rate
            clip = augment(video.frames(at), {"clip": (16, 16)}, PRETRAIN, rng)["clip"]
        assert torch.equal(sample.views["clip"], clip)
    (still,) = dataset[Key(2, 8)]
    assert (still.views["clip"] == still.views["clip"][:, :1]).all()


def test_an_unreadable_video_is_replaced_by_one_of_its_source(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for i in range(3):
        (tmp_path / f"videos/{i}.mp4").write_text("no video")
    (tmp_path / "videos/3.mp4").symlink_to(folder / "videos/3.mp4")
    sources = (replace(three(folder)[0], data=f"{tmp_path}/videos"), *three(folder)[1:])
    videos = read_sources(sources, SPEC)
    examine(videos, "pyav")  # one can be read
    dataset = ClipDataset(videos, SPEC, PRETRAIN, seed=0)
    for epoch in range(5):
        (sample,) = dataset[Key(epoch, 0)]
        assert (sample.index, sample.unreadable[0]) == (3, f"{tmp_path}/videos/0.mp4")
    (tmp_path / "videos/3.mp4").unlink()
    (tmp_path / "videos/3.mp4").write_text("no video")
    message = "All 4 videos of source k could not be decoded"
    with pytest.raises(TubeletError, match=message):
        dataset[Key(0, 0)]
    with pytest.raises(TubeletError, match=message):
        examine(videos, "pyav")


@pytest.mark.parametrize("world", [1, 2])
def test_batches_say_how_many_clips_each_source_gave(folder: Path, world: int) -> None:
    videos = read_sources(three(folder, 0.5, 0.25, 0.25), SPEC)
    dataset = ClipDataset(videos, SPEC, PRETRAIN, seed=0, num_sample=2)
    total: Counter[str] = Counter()
    for rank in range(world):
        loader = train_loader(
            dataset,
            batch_size=4,
            micro_batch=2,
            seed=0,
            total_steps=4,
            rank=rank,
            world=world,
            workers=0,
        )
        for batch in loader:
            assert sum(batch.sources.values()) == 4
            seen = Counter({"k": 0, "s": 0, "i": 0})
            seen.update("ksi"[int((i >= 4) + (i >= 7))] for i in batch.index.tolist())
            assert batch.sources == seen
            total.update(batch.sources)
    assert total == {"k": 16, "s": 8, "i": 8}  # two epochs of 8 draws, each twice


def test_frames_that_a_list_counts_are_looked_for(folder: Path, tmp_path: Path) -> None:
    for i in range(3):
        write_frames(tmp_path / f"{i}", frames=5)
    (tmp_path / "2/img_00004.jpg").unlink()
    (tmp_path / "list.csv").write_text("0 1 5\n1 1 7\n2 1 5\n")
    source = DataSource("t", f"{tmp_path}/list.csv", kind="frames")
    with pytest.raises(TubeletError, match="Source 't': 2 of 3 frame folders") as error:
        examine(read_sources((*three(folder), source), SPEC), "pyav")
    assert "1/img_00006.jpg does not exist, the first of 2 missing" in str(error.value)
    assert "2/img_00004.jpg does not exist" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -0.5}, r"weight is -0\.5: expected 0 or more"),
        ({"weight": float("nan")}, "weight is nan"),
        ({"sampling_rate": 0}, "sampling_rate is 0: expected above 0"),
        ({"kind": "movie"}, "kind is 'movie': expected one of video, frames, images"),
        ({"fps": 12.0}, "fps are of kind=frames, and this is video"),
        ({"kind": "images", "sampling_rate": 2}, "images have no frame rate"),
        ({"name": ""}, "a source has a name"),
        ({"kind": "frames", "start": -1}, "start is -1"),
        ({"kind": "frames", "template": "img.jpg"}, "cannot name the frames"),
    ],
)
def test_values_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TubeletError, match=message):
        DataSource(**{"name": "a", "data": "b", **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": 1.0}, "Some sources have a weight, and s, i none"),
        ({"name": "s"}, "Two sources are called 's'"),
        ({"data": "frames"}, r"Source 'k': .*img_00001\.jpg is no video, .*kind=frames"),
        ({"kind": "images"}, r"Source 'k': .*0\.mp4 is no image"),
        ({"kind": "frames"}, "Source 'k': No folder in .* has frames named as"),
        ({"data": "nowhere"}, "Source 'k': There is no file or folder"),
        ({"data": "empty"}, "Source 'k': No videos in"),
        ({"data": "empty.csv"}, "Source 'k': .*has no lines"),
    ],
)
def test_sources_that_cannot_be(folder: Path, change: dict[str, Any], message: str) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "empty.csv").touch()
    if "data" in change:
        change = {"data": f"{folder}/{change['data']}"}
    first, *rest = three(folder)
    with pytest.raises(TubeletError, match=message):
        read_sources((replace(first, **change), *rest), SPEC)


def test_weights_of_nothing_are_an_error(folder: Path) -> None:
    with pytest.raises(TubeletError, match="weights of all sources are 0"):
        read_sources(three(folder, 0, 0, 0), SPEC)
    assert read_sources(three(folder, 0, 1, 0), SPEC).parts[1].weight == 1
