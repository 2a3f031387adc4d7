"""The built-in videos: files, lists, labels, and what single frames tell of the motion."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tubelet.data import toy
from tubelet.data.decode import Video
from tubelet.data.lists import read_list
from tubelet.errors import TubeletError

SMALL = {"train": 5, "val": 2, "test": 3}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.render(tmp_path_factory.mktemp("toy") / "videos", **SMALL, workers=0)


# --- labels and digits --------------------------------------------------------------------------


def test_labels_are_balanced_and_independent() -> None:
    pairs = [toy.labels(toy.Options(), "train", i) for i in range(160)]
    assert set(Counter(pairs).values()) == {2}
    assert len(Counter(pairs)) == len(toy.WHAT) * len(toy.HOW)
    assert pairs[:80] != pairs[80:]


def test_digits_of_the_splits_are_disjoint_and_all_used() -> None:
    images = {
        split: [image.tobytes() for of in toy.digits(split) for image in of] for split in toy.SPLITS
    }
    total = sum(map(len, images.values()))
    assert total == 1797
    for one in toy.SPLITS:
        for other in toy.SPLITS:
            if one < other:
                assert not set(images[one]) & set(images[other])
    assert [len(of) for of in toy.digits("train")] == [
        round(0.7 * n) for n in (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    ]


# --- motions ------------------------------------------------------------------------------------


def still(**changes: float) -> toy.Difficulty:
    """Bright digits on black, nothing else."""
    easy = {"contrast": 0.8, "texture": 0.0, "grain": 0.0, "drift": 0.0, "noise": 0.0}
    return toy.Difficulty(**(easy | changes))


def moments(frames: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 [T,H,W,3] -> of the digit: x, y to the right and down, size, and angle clockwise."""
    light = frames.astype(float).mean(-1)
    light = np.clip(light - np.median(light), 0, None)
    light *= light > 0.3 * light.max()
    mass = light.sum((1, 2))
    height, width = light.shape[1:]
    x = (light * np.arange(width)).sum((1, 2)) / mass
    y = (light * np.arange(height)[:, None]).sum((1, 2)) / mass
    dx = np.arange(width)[None, None] - x[:, None, None]
    dy = np.arange(height)[None, :, None] - y[:, None, None]
    xx, yy, xy = ((light * m).sum((1, 2)) / mass for m in (dx * dx, dy * dy, dx * dy))
    angle = np.unwrap(np.arctan2(2 * xy, xx - yy)) / 2
    return {"x": x, "y": y, "size": np.sqrt(xx + yy), "angle": angle}


@pytest.mark.parametrize("how", range(len(toy.HOW)))
def test_each_motion_is_what_its_name_says(how: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(toy.DIFFICULTIES, "easy", still())
    options = toy.Options(size=(64, 64), difficulty="easy")
    index = next(i for i in range(80) if toy.labels(options, "train", i) == (1, how))
    found = moments(toy.clip(options, "train", index))
    way = {name: values[-1] - values[0] for name, values in found.items()}
    axis, sign = {
        "left": ("x", -1),
        "right": ("x", 1),
        "up": ("y", -1),
        "down": ("y", 1),
        "clockwise": ("angle", 1),
        "counter-clockwise": ("angle", -1),
        "growing": ("size", 1),
        "shrinking": ("size", -1),
    }[toy.HOW[how]]
    expected = {
        "x": toy.PATH * 64,
        "y": toy.PATH * 64,
        "angle": np.deg2rad(toy.TURN),
        "size": found["size"].mean() * (toy.GROWTH - 1),
    }
    assert sign * way[axis] == pytest.approx(expected[axis], rel=0.25)
    for other in set(expected) - {axis}:
        assert abs(way[other]) < 0.2 * expected[other], other


@pytest.mark.parametrize("pair", range(4))
def test_the_second_of_a_pair_is_the_first_played_backwards(
    pair: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By construction: but for the order of frames, the label changes nothing in a clip."""
    options = toy.Options()
    as_first, as_second = [], []
    for index in range(4):
        monkeypatch.setattr(toy, "labels", lambda *_: (3, 2 * pair))
        as_first.append(toy.clip(options, "train", index))
        monkeypatch.setattr(toy, "labels", lambda *_: (3, 2 * pair + 1))
        as_second.append(toy.clip(options, "train", index))
    for first, second in zip(as_first, as_second, strict=True):
        assert (first[::-1] == second).all()
        assert (first != second).any()


def test_one_frame_of_unknown_number_tells_no_motion() -> None:
    """Place, angle and size take the same values equally often in every motion.

    What `paint` draws beside them does not depend on the motion, so this is the whole claim.
    """
    seen: dict[int, Counter[tuple[float, ...]]] = {}
    options = toy.Options(frames=4)
    for motion in range(4):
        rng, seen[motion] = np.random.default_rng(0), Counter()
        for _ in range(4000):
            steps = toy.courses(motion, options.frames, rng)
            at = rng.integers(options.frames)
            seen[motion][tuple(float(values[at]) for values in steps)] += 1
    states = set().union(*seen.values())
    assert len(states) == 4**4
    for motion in range(4):
        counts = np.array([seen[motion][state] for state in states])
        # Chi squared of 255 degrees of freedom: mean 255, deviation 22.6; five deviations.
        assert ((counts - 4000 / 256) ** 2 / (4000 / 256)).sum() < 255 + 5 * 22.6


shown = cache(toy.clip)  # the same small clips are looked at twice


def still_frames(options: toy.Options, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """One frame of each of `count` clips, as brightness [n, H*W], and the motions [n]."""
    frames, motions = [], []
    for index in range(count):
        rng = np.random.default_rng([1, toy.SPLITS.index(split), index])
        clip = shown(options, split, index)
        frames.append(clip[rng.integers(len(clip))].mean(-1).ravel())
        motions.append(toy.labels(options, split, index)[1])
    return np.array(frames) / 255, np.array(motions)


def read_motion(train: tuple[np.ndarray, ...], test: tuple[np.ndarray, ...]) -> float:
    """Accuracy on `test` of ridge regression on pixels and their squares."""
    (x, y), (x_test, y_test) = train, test
    mean, names = x.mean(0), np.unique(y)

    def features(pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([pixels - mean, (pixels - mean) ** 2, np.ones((len(pixels), 1))], 1)

    inputs, wanted = features(x), (y[:, None] == names).astype(float)
    weights = np.linalg.solve(inputs.T @ inputs + 5.0 * np.eye(inputs.shape[1]), inputs.T @ wanted)
    return float((names[(features(x_test) @ weights).argmax(1)] == y_test).mean())


def test_a_classifier_of_single_frames_is_at_chance() -> None:
    """Also where digits are easy to see; while the first frame beside the last one tells."""
    options = toy.Options(size=(16, 16), difficulty="easy")
    train, test = still_frames(options, "train", 1200), still_frames(options, "test", 640)
    assert read_motion(train, test) < 1 / 8 + 4 * np.sqrt(1 / 8 * 7 / 8 / 640)
    for pair in range(4):
        parts = [(x[y // 2 == pair], y[y // 2 == pair]) for x, y in (train, test)]
        assert len(parts[1][1]) == 160
        assert read_motion(parts[0], parts[1]) < 0.5 + 4 * np.sqrt(0.25 / 160)

    def ends(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        clips = [shown(options, split, i)[[0, -1]].mean(-1).ravel() for i in range(count)]
        motions = [toy.labels(options, split, i)[1] for i in range(count)]
        return np.array(clips) / 255, np.array(motions)

    assert read_motion(ends("train", 1200), ends("test", 640)) > 0.5  # so the test can fail


def test_difficulty_between_the_named_ones() -> None:
    easy, middle, hard = (toy.difficulty(level) for level in ("easy", "middle", "hard"))
    assert (easy, middle, hard) == tuple(toy.difficulty(level) for level in (0.0, 0.5, 1.0))
    between = toy.difficulty(0.25)
    assert between.noise == pytest.approx((easy.noise + middle.noise) / 2)
    assert between.contrast == pytest.approx((easy.contrast + middle.contrast) / 2)
    assert middle.contrast > hard.contrast == 0  # hard: a digit as bright as what it moves over


# --- files --------------------------------------------------------------------------------------


def test_files_are_h264_of_the_size_and_rate_asked_for(tmp_path: Path) -> None:
    options = toy.Options(size=(18, 34), frames=5, fps=12.5, difficulty=0.1)
    out = toy.render(tmp_path / "v", options, train=2, val=0, test=1, workers=0)
    with Video(out / "train" / "000001.mp4") as video:
        info = video.info
        frames = video.frames(range(5))
    assert (info.frames, info.height, info.width, info.codec) == (5, 18, 34, "h264")
    assert info.fps == pytest.approx(12.5)
    true = toy.clip(options, "train", 1).astype(float)
    assert np.abs(frames.numpy() - true).mean() < 4  # of 255


def test_compression_keeps_what_is_shown(tmp_path: Path) -> None:
    options = toy.Options()
    clip = toy.clip(options, "train", 0)
    toy.encode(clip, tmp_path / "a.mp4", 8)
    with Video(tmp_path / "a.mp4") as video:
        decoded = video.frames(range(8)).numpy()
    grey = np.array([0.299, 0.587, 0.114])
    error = (clip @ grey - decoded @ grey).std() / 255
    assert 0 < error < 0.1 * toy.difficulty("middle").noise


def test_lists_hold_every_clip_with_both_labels(rendered: Path) -> None:
    options = toy.Options()
    for split, count in SMALL.items():
        expected = [toy.labels(options, split, i) for i in range(count)]
        for column, (label, names) in enumerate((("what", toy.WHAT), ("how", toy.HOW))):
            for videos in (
                read_list(rendered / f"{split}_{label}.csv", labels_from=names),
                read_list(rendered / f"{split}.jsonl", column=label, labels_from=names),
            ):
                assert [entry.label for entry in videos.entries] == [p[column] for p in expected]
                assert all(Path(entry.path).is_file() for entry in videos.entries)
    assert len(read_list(rendered / "train", kind="unlabelled")) == SMALL["train"]


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_processes_writes_the_same_bytes(
    rendered: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "CHUNK", 2)
    seen: list[tuple[int, int]] = []
    out = toy.render(tmp_path / "v", **SMALL, workers=workers, progress=lambda *at: seen.append(at))
    assert hashes(out) == hashes(rendered)
    assert seen[-1] == (10, 10)


def test_a_clip_depends_on_seed_split_and_index_alone(rendered: Path, tmp_path: Path) -> None:
    more = toy.render(tmp_path / "more", train=7, val=0, test=1, workers=0)
    one, other = hashes(rendered), hashes(more)
    common = [name for name in one if name.endswith(".mp4") and name in other]
    assert len(common) == 6
    assert all(one[name] == other[name] for name in common)
    seeds = toy.render(tmp_path / "seed", toy.Options(seed=1), train=1, val=0, test=0, workers=0)
    assert hashes(seeds)["train/000000.mp4"] != one["train/000000.mp4"]
    assert len({one[name] for name in one if name.endswith(".mp4")}) == 10


def test_rendering_goes_on_where_it_stopped(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Path] = []
    encode = toy.encode

    def stopping(frames: np.ndarray, path: Path, fps: float) -> None:
        if len(done) == 4:
            raise KeyboardInterrupt
        encode(frames, path, fps)
        done.append(path)

    monkeypatch.setattr(toy, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        toy.render(tmp_path / "v", **SMALL, workers=0)
    assert not json.loads((tmp_path / "v" / "toy.json").read_text())["complete"]
    kept = {path: path.stat().st_mtime_ns for path in done}
    monkeypatch.setattr(toy, "encode", encode)
    out = toy.render(tmp_path / "v", **SMALL, workers=0)
    assert hashes(out) == hashes(rendered)
    assert {path: path.stat().st_mtime_ns for path in done} == kept
    monkeypatch.setattr(toy, "encode", None)  # a complete folder needs no rendering
    assert toy.render(tmp_path / "v", **SMALL, workers=0) == out


def test_a_clip_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        toy.encode(np.zeros((2, 16, 16, 3)), tmp_path / "a.mp4", 8)  # no pixels, but floats
    assert list(tmp_path.iterdir()) == []


# --- what is refused ----------------------------------------------------------------------------


def test_other_options_in_the_same_folder_are_refused(rendered: Path) -> None:
    before = hashes(rendered)
    with pytest.raises(TubeletError, match=r"seed was 0, now 3; test was 3, now 4.*another folder"):
        toy.render(rendered, toy.Options(seed=3), **(SMALL | {"test": 4}), workers=0)
    assert hashes(rendered) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(TubeletError, match="holds no built-in videos"):
        toy.render(tmp_path, **SMALL, workers=0)
    with pytest.raises(TubeletError, match="holds no built-in videos"):
        toy.render(tmp_path / "thesis.tex", **SMALL, workers=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (31, 32)}, "size 31x32: even numbers"),
        ({"size": (8, 8)}, "size 8x8"),
        ({"frames": 1}, "frames 1: at least 2"),
        ({"fps": 0.0}, "fps 0.0: above 0"),
        ({"seed": -1}, "seed -1"),
        ({"difficulty": "medium"}, "'medium': expected easy, middle, hard"),
        ({"difficulty": 1.5}, "difficulty is 1.5"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(TubeletError, match=message):
        toy.Options(**options)


def test_negative_numbers_of_clips(tmp_path: Path) -> None:
    with pytest.raises(TubeletError, match="0 or more"):
        toy.render(tmp_path / "v", train=-1)


def test_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    toy.digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(TubeletError, match=r"pip install 'tubelet\[demo\]'"):
        toy.render(tmp_path / "v", **SMALL)
    toy.digits.cache_clear()
