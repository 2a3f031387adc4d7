"""Samples are a function of (seed, epoch, index, repeat); collate and test views."""

import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tubelet import masks
from tubelet.data import sampling
from tubelet.data.clips import ClipDataset, EvalDataset, Key, Table, collate
from tubelet.data.decode import Video
from tubelet.data.lists import Entry, VideoList, read_list
from tubelet.data.sampling import draw_frames, rng_for, sample_seed
from tubelet.data.transforms import EVALUATE, FINETUNE, PRETRAIN, augment, resize, spatial_views
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec, Grid

SPEC = ClipSpec(num_frames=4, sampling_rate=2, size=(16, 16))
GRID = Grid(2, 2, 2)


def hide(rng: np.random.Generator) -> torch.Tensor:
    """hidden bool [1,8]."""
    return masks.tube(GRID, rng, mask_ratio=0.5)[None]


def ask_first(rng: np.random.Generator, hidden: torch.Tensor) -> torch.Tensor:
    """asked bool [1,8]: two of the hidden ones."""
    at = rng.permutation(hidden.nonzero()[:, 1].numpy())[:2]
    asked = torch.zeros_like(hidden)
    asked[0, torch.from_numpy(at)] = True
    return asked


@pytest.fixture(scope="module")
def videos(ten_videos) -> VideoList:
    return read_list(ten_videos)


@pytest.fixture
def dataset(videos):
    return partial(ClipDataset, videos, SPEC, PRETRAIN, seed=3)


def same(a, b) -> bool:
    """Two samples, equal in every field."""
    return (
        torch.equal(a.views["clip"], b.views["clip"])
        and (a.path, a.index, a.seed, a.unreadable) == (b.path, b.index, b.seed, b.unreadable)
        and (a.hidden is None) == (b.hidden is None)
        and (a.hidden is None or torch.equal(a.hidden, b.hidden))
        and (a.asked is None or torch.equal(a.asked, b.asked))
    )


# --- one sample ------------------------------------------------------------------------------


def test_a_sample_is_what_the_parts_make_of_its_generator(dataset, videos):
    (sample,) = dataset(mask=hide)[Key(2, 5)]
    rng = rng_for(3, 2, 5)
    with Video(videos.entries[5].path) as video:
        frames = video.frames(draw_frames(SPEC, video.info.frames, video.info.fps, rng))
    assert torch.equal(
        sample.views["clip"], augment(frames, {"clip": (16, 16)}, PRETRAIN, rng)["clip"]
    )
    assert torch.equal(sample.hidden, hide(rng))
    assert sample.views["clip"].shape == (3, 4, 16, 16)
    assert sample.views["clip"].dtype == torch.uint8
    assert (sample.path, sample.index) == (videos.entries[5].path, 5)
    assert sample.seed == sample_seed(3, 2, 5)


def test_a_sample_depends_on_its_key_and_on_no_history(dataset):
    one, other = dataset(mask=hide), dataset(mask=hide)
    keys = [Key(epoch, index) for epoch in range(2) for index in range(10)]
    forward = {key: one[key][0] for key in keys}
    for key in reversed(keys):
        assert same(forward[key], other[key][0])
    distinct = {s.views["clip"].numpy().tobytes() for s in forward.values()}
    assert len(distinct) > 15  # both the epoch and the index matter
    assert not same(forward[keys[0]], dataset(mask=hide, seed=4)[keys[0]][0])


def test_repeats_share_their_frames_and_nothing_else(dataset, videos, monkeypatch):
    opened = []
    original = Video.__init__
    monkeypatch.setattr(
        Video,
        "__init__",
        lambda self, path, **kw: (opened.append(path), original(self, path, **kw))[1],
    )
    samples = dataset(num_sample=3, mask=hide)[Key(0, 1)]
    assert len(samples) == 3 and len(opened) == 1
    assert [s.seed for s in samples] == [sample_seed(3, 0, 1, repeat) for repeat in range(3)]
    assert len({s.views["clip"].numpy().tobytes() for s in samples}) == 3
    with Video(videos.entries[1].path) as video:
        at = draw_frames(SPEC, video.info.frames, video.info.fps, rng_for(3, 0, 1))
        frames = video.frames(at)
    for repeat in (1, 2):
        rng = rng_for(3, 0, 1, repeat)
        expected = augment(frames, {"clip": (16, 16)}, PRETRAIN, rng)["clip"]
        assert torch.equal(samples[repeat].views["clip"], expected)
        assert torch.equal(samples[repeat].hidden, hide(rng))
    assert same(samples[0], dataset(mask=hide)[Key(0, 1)][0])  # more repeats change no other


def test_repeats_with_frames_of_their_own_come_from_one_opened_file(dataset, videos, monkeypatch):
    spec = replace(SPEC, sampling_rate=1)  # so that starts differ
    read = []
    original = Video.frames
    monkeypatch.setattr(
        Video, "frames", lambda self, at: (read.append(list(at)), original(self, at))[1]
    )
    whole = ClipDataset(videos, spec, PRETRAIN, seed=3, num_sample=4, repeats="clip", mask=hide)
    samples = whole[Key(0, 1)]
    (asked,) = read
    assert asked == sorted(set(asked))  # each needed frame once
    starts = []
    for repeat, sample in enumerate(samples):
        rng = rng_for(3, 0, 1, repeat)
        with Video(videos.entries[1].path) as video:
            at = draw_frames(spec, video.info.frames, video.info.fps, rng)
            frames = original(video, at)
        starts.append(int(at[0]))
        expected = augment(frames, {"clip": (16, 16)}, PRETRAIN, rng)["clip"]
        assert torch.equal(sample.views["clip"], expected)
        assert torch.equal(sample.hidden, hide(rng))
    assert len(set(starts)) > 1


def test_repeats_of_another_name_are_an_error(dataset):
    with pytest.raises(TubeletError, match="repeats is 'clips': expected one of crop, clip"):
        dataset(repeats="clips")


def test_augmentations_are_repeatable(videos):
    one, again = (ClipDataset(videos, SPEC, FINETUNE, seed=0)[Key(1, 2)][0] for _ in range(2))
    assert same(one, again)


@pytest.mark.parametrize("config", [PRETRAIN, FINETUNE, EVALUATE])
def test_grey_and_rectangular(videos, config):
    spec = ClipSpec(num_frames=2, sampling_rate=1, size=(16, 24), in_chans=1)
    (sample,) = ClipDataset(videos, spec, config, seed=0)[Key(0, 0)]
    assert sample.views["clip"].shape == (1, 2, 16, 24)
    assert EvalDataset(videos, spec, segments=2, crops=3)[0].clips.shape == (6, 1, 2, 16, 24)


def test_num_sample_is_checked(dataset):
    with pytest.raises(TubeletError, match="num_sample is 0"):
        dataset(num_sample=0)


def test_a_decoder_that_is_not_there_is_no_unreadable_video(dataset, videos):
    with pytest.raises(TubeletError, match="'decord' is none of pyav"):
        dataset(decoder="decord")
    with pytest.raises(TubeletError, match="'decord' is none of pyav"):
        EvalDataset(videos, SPEC, decoder="decord")


# --- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "classes", "labels"),
    [
        ("single", ("a", "b"), (1, 0, 1)),
        ("multi", ("a", "b", "c"), ((0, 2), (), (1,))),
        ("regression", (), ((0.5,), (1.0,), (-2.25,))),
        ("unlabelled", (), (None, None, None)),
    ],
)
def test_the_packed_table_keeps_the_list(kind, classes, labels):
    paths = ["a.mp4", "with space/ü.mp4", "bad\udcff.mp4"]
    entries = tuple(Entry(path, label) for path, label in zip(paths, labels, strict=True))
    videos = VideoList(entries, classes, "test", kind)
    table = pickle.loads(pickle.dumps(Table(videos)))
    assert len(table) == 3 and [table.path(i) for i in range(3)] == paths
    for i in range(3):
        expected, got = videos.target(i), table.target(i)
        if kind == "unlabelled":
            assert expected is None and got is None
        else:
            assert torch.equal(expected, got) and expected.dtype == got.dtype


def test_the_table_is_small():
    entries = tuple(Entry(f"/data/videos/{i:08d}.mp4", i % 400) for i in range(10_000))
    videos = VideoList(entries, tuple(map(str, range(400))), "test", "single")
    assert len(pickle.dumps(Table(videos))) < 10_000 * (25 + 8 + 8 + 2)


# --- unreadable videos -----------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path, ten_videos):
    """Ten videos, of which number 3 is a text and number 7 is cut off in the middle."""
    for path in ten_videos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "3.mp4").write_text("this is no video")
    data = (tmp_path / "7.mp4").read_bytes()
    (tmp_path / "7.mp4").write_bytes(data[: len(data) // 2])
    return read_list(tmp_path)


def test_an_unreadable_video_is_replaced_the_same_way_every_time(damaged):
    one, again = (ClipDataset(damaged, SPEC, PRETRAIN, seed=0, mask=hide) for _ in range(2))
    replacements = set()
    for epoch in range(5):
        (sample,) = one[Key(epoch, 3)]
        assert sample.unreadable[0].endswith("3.mp4")
        assert sample.index != 3 and sample.path == damaged.entries[sample.index].path
        assert sample.path not in sample.unreadable
        assert sample.seed == sample_seed(0, epoch, 3)
        assert same(sample, again[Key(epoch, 3)][0])
        replacements.add(sample.index)
    assert len(replacements) > 1  # not always the same neighbour
    assert one[Key(0, 4)][0].unreadable == ()


def test_nothing_readable_ends_with_an_error_not_a_hang(tmp_path):
    for at in range(30):
        (tmp_path / f"{at}.mp4").write_text("no video")
    with pytest.raises(TubeletError) as error:
        ClipDataset(read_list(tmp_path), SPEC, PRETRAIN, seed=0)[Key(0, 0)]
    assert "10 in a row of 30 videos" in str(error.value)
    assert "tubelet check" in str(error.value) and ".mp4" in str(error.value)
    with pytest.raises(TubeletError, match="All 1 videos"):
        ClipDataset(read_list(tmp_path / "0.mp4"), SPEC, PRETRAIN, seed=0)[Key(0, 0)]


def test_a_file_that_vanished_is_unreadable(videos, tmp_path):
    entries = (*videos.entries, Entry(str(tmp_path / "gone.mp4")))
    (sample,) = ClipDataset(VideoList(entries), SPEC, PRETRAIN, seed=0)[Key(0, 10)]
    assert sample.unreadable == (str(tmp_path / "gone.mp4"),)


# --- collate ---------------------------------------------------------------------------------


def test_collate_stacks_and_packs(ten_videos):
    videos = read_list([(str(ten_videos / f"{i}.mp4"), i % 3) for i in range(4)])
    dataset = ClipDataset(videos, SPEC, PRETRAIN, seed=0, num_sample=2, mask=hide, asked=ask_first)
    groups = [dataset[Key(0, i)] for i in range(4)]
    batch = collate(groups, pack=masks.pack)
    samples = [sample for group in groups for sample in group]
    assert batch.clip.shape == (8, 3, 4, 16, 16) and batch.clip.dtype == torch.uint8
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2, 0, 0]
    assert batch.index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.seeds.tolist() == [s.seed for s in samples] and batch.seeds.dtype == torch.int64
    assert batch.paths == [s.path for s in samples]
    assert batch.masks.keep.shape == (8, 1, 4) and batch.masks.asked.shape == (8, 1, 2)
    for row, sample in enumerate(samples):
        assert torch.equal(batch.clip[row], sample.views["clip"])
        assert torch.equal(batch.masks.hidden[row], sample.hidden)
        assert batch.masks.asked[row, 0].tolist() == sample.asked[0].nonzero()[:, 0].tolist()


def test_collate_without_masks_and_labels(dataset):
    batch = collate([dataset()[Key(0, 0)]])
    assert batch.masks is None and batch.labels is None
    with pytest.raises(TubeletError, match=r"pass pack=tubelet\.masks\.pack"):
        collate([dataset(mask=hide)[Key(0, 0)]])


def test_collate_counts_a_replaced_video_once(damaged):
    dataset = ClipDataset(damaged, SPEC, PRETRAIN, seed=0, num_sample=2)
    batch = collate([dataset[Key(0, 3)], dataset[Key(0, 4)]])
    assert len(batch.paths) == 4 and len(batch.unreadable) == 1


# --- test views ------------------------------------------------------------------------------


@pytest.mark.parametrize(("segments", "crops"), [(1, 1), (2, 3), (5, 3)])
def test_views_are_those_of_the_protocol(videos, segments, crops):
    views = EvalDataset(videos, SPEC, segments=segments, crops=crops)[2]
    assert views.clips.shape == (segments * crops, 3, 4, 16, 16)
    with Video(videos.entries[2].path) as video:
        at = sampling.test_frames(SPEC, video.info.frames, video.info.fps, segments)
        for segment in range(segments):
            expected = spatial_views(video.frames(at[segment]), SPEC.size, crops)
            assert torch.equal(views.clips[segment * crops : (segment + 1) * crops], expected)
    assert (views.index, views.path, views.error) == (2, videos.entries[2].path, "")


def test_views_have_the_crop_and_interpolation_of_the_spec(videos):
    spec = replace(SPEC, crop_pct=16 / 24, interpolation="bicubic")
    views = EvalDataset(videos, spec, segments=2, crops=1)[2]
    with Video(videos.entries[2].path) as video:
        at = sampling.test_frames(SPEC, video.info.frames, video.info.fps, 2)
        long = 24 * video.info.width // video.info.height
        for view, frames in zip(views.clips, at, strict=True):
            whole = resize(video.frames(frames), (24, long), "bicubic")
            assert torch.equal(view, whole[..., 4:20, (long - 16) // 2 :][..., :16])


def test_all_views_come_from_one_decode(videos, monkeypatch):
    calls, asked = [], []
    opened, frames = Video.__init__, Video.frames
    monkeypatch.setattr(
        Video,
        "__init__",
        lambda self, path, **kw: (calls.append(path), opened(self, path, **kw))[1],
    )
    monkeypatch.setattr(
        Video, "frames", lambda self, at: (asked.append(list(at)), frames(self, at))[1]
    )
    EvalDataset(videos, SPEC, segments=5, crops=3)[0]
    assert len(calls) == 1 and len(asked) == 1
    assert asked[0] == sorted(set(asked[0]))  # overlapping segments ask for a frame once


def test_evaluation_never_replaces(damaged):
    dataset = EvalDataset(damaged, SPEC)
    views = dataset[3]
    assert views.clips is None and views.path.endswith("3.mp4") and "3.mp4" in views.error
    assert [dataset[i].clips is None for i in range(10)] == [i in (3, 7) for i in range(10)]


@pytest.mark.parametrize(("segments", "crops"), [(0, 1), (1, 0)])
def test_views_are_checked(videos, segments, crops):
    with pytest.raises(TubeletError, match="expected at least 1 of each"):
        EvalDataset(videos, SPEC, segments=segments, crops=crops)
