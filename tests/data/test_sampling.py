"""Frames of clips: against the published numbers and formulas written out with loops."""

from __future__ import annotations

import itertools
from dataclasses import replace
from math import floor
from typing import Literal

import numpy as np
import pytest

from tubelet.data import sampling
from tubelet.data.sampling import centre_frames, draw_frames, rng_for, sample_seed, window_frames
from tubelet.errors import TubeletError
from tubelet.methods.records import record
from tubelet.shapes import ClipSpec

DENSE = ClipSpec(num_frames=16, sampling="dense", sampling_rate=4)
UNIFORM = ClipSpec(num_frames=16, sampling="uniform")
SECONDS = ClipSpec(num_frames=16, sampling="seconds", seconds=2.0)
DENSE_FPS = ClipSpec(num_frames=16, sampling="dense_fps", sampling_rate=4, target_fps=30.0)
ALL = [DENSE, DENSE_FPS, UNIFORM, SECONDS]
LENGTHS = [1, 2, 5, 15, 16, 17, 40, 61, 63, 64, 65, 100, 300]


def draws(spec: ClipSpec, frames: int, count: int = 400, fps: float = 30.0) -> np.ndarray:
    return np.stack([draw_frames(spec, frames, fps, rng_for(0, 0, i)) for i in range(count)])


def test_a_generator_is_a_function_of_its_four_numbers() -> None:
    first = rng_for(1, 2, 3, 4).random(5)
    assert np.array_equal(first, rng_for(1, 2, 3, 4).random(5))
    assert np.array_equal(first, rng_for(*np.array([1, 2, 3, 4])).random(5))


def test_seeds_differ_and_fit() -> None:
    numbers = list(itertools.product([0, 1, 2, 11], [0, 1, 21], [0, 1, 12, 2**40], [0, 1]))
    seeds = [sample_seed(*four) for four in numbers]
    assert len(set(seeds)) == len(numbers)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(0, 0, 0) == sample_seed(0, 0, 0, 0) == 2235979303852607087  # for good


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.sampling)
@pytest.mark.parametrize("frames", LENGTHS)
def test_every_choice_is_inside_and_ascends(spec: ClipSpec, frames: int) -> None:
    chosen = [
        *draws(spec, frames, 20),
        centre_frames(spec, frames, 30.0),
        *(view for k in (1, 2, 3, 5) for view in sampling.test_frames(spec, frames, 30.0, k)),
        *(window[2] for window in window_frames(spec, frames, 30.0)),
    ]
    for clip in chosen:
        assert clip.shape == (16,)
        assert clip.dtype == np.int64
        assert clip.min() >= 0
        assert clip.max() < frames
        assert (np.diff(clip) >= 0).all()


# Training


def test_dense_draws_every_start_and_keeps_the_stride() -> None:
    drawn = draws(DENSE, 70)
    assert (np.diff(drawn, axis=1) == 4).all()
    assert set(drawn[:, 0]) == set(range(70 - 64 + 1))


def test_dense_in_a_short_video_repeats_the_last_frame_reached() -> None:
    published = [0, 4, 8, 12, 16, 20, 24, 28, 32, *[36] * 7]
    assert (draws(DENSE, 40, 5) == published).all()
    assert (draws(DENSE, 1, 5) == 0).all()
    assert (draws(DENSE, 64, 5) == np.arange(16) * 4).all()


@pytest.mark.parametrize("frames", [5, 16, 17, 100])
def test_uniform_draws_every_frame_between_rounded_bounds(frames: int) -> None:
    drawn = draws(UNIFORM, frames, 1500)
    tick = (frames - 1) / 16
    for segment in range(16):
        low, high = round(tick * segment), round(tick * (segment + 1))
        assert set(drawn[:, segment]) == set(range(low, high + 1))


def test_seconds_spread_the_frames_whatever_the_rate() -> None:
    for fps in (10.0, 29.97, 60.0):
        drawn = draws(SECONDS, 1000, 300, fps)
        times = drawn / fps
        steps = np.diff(times, axis=1)
        assert np.abs(steps.mean(1) - 2 / 16).max() < 1 / fps
        assert steps.max() <= 2 / 16 + 1 / fps
        assert drawn[:, 0].max() > 900 - 2 * fps


def spread(start: float, span: float, frames: int) -> list[int]:
    """16 frames from start to start + span - 1, rounded down; behind the end, the last."""
    return [min(frames - 1, floor(start + i * (span - 1) / 15)) for i in range(16)]


def test_dense_fps_at_the_target_rate_by_hand() -> None:
    by_hand = [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]
    assert centre_frames(DENSE_FPS, 64, 30.0).tolist() == by_hand
    twice = replace(DENSE_FPS, target_fps=60.0, sampling_rate=8)
    assert centre_frames(twice, 64, 30.0).tolist() == by_hand


@pytest.mark.parametrize("fps", [12.5, 25.0, 30.0, 50.0])
def test_dense_fps_draws_real_starts_and_spans_as_long_whatever_the_rate(fps: float) -> None:
    span = 64 * fps / 30
    for i in range(100):
        start = rng_for(0, 0, i).uniform(0, 300 - span)
        assert draw_frames(DENSE_FPS, 300, fps, rng_for(0, 0, i)).tolist() == spread(
            start, span, 300
        )
    drawn = draws(DENSE_FPS, 300, fps=fps)
    assert drawn[:, 0].min() <= 3
    assert drawn[:, -1].max() >= 296


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("fps", [15.0, 25.0, 30.0, 60.0])
def test_dense_fps_at_the_ends_of_short_videos(frames: int, fps: float) -> None:
    span = 64 * fps / 30
    room = max(0.0, frames - span)
    assert centre_frames(DENSE_FPS, frames, fps).tolist() == spread(room / 2, span, frames)
    if not room:
        assert (draws(DENSE_FPS, frames, 5, fps) == spread(0, span, frames)).all()


def test_dense_fps_of_one_frame() -> None:
    """A picture is a video of one frame at 1 frame a second, a span of less than a frame."""
    one = replace(DENSE_FPS, num_frames=1)
    assert (draws(one, 1, 20, fps=1.0) == 0).all()
    assert set(draws(one, 10, fps=30.0)[:, 0]) == set(range(6))  # the frames before 10 - 4
    assert (draws(DENSE_FPS, 1, 5, fps=1.0) == 0).all()
    assert sampling.test_frames(one, 1, 1.0, 3).tolist() == [[0], [0], [0]]


def test_a_draw_follows_its_generator() -> None:
    for spec in ALL:
        one, same, other = (draw_frames(spec, 300, 30.0, rng_for(0, 0, i)) for i in (1, 1, 2))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)


# Validation and tests


@pytest.mark.parametrize("frames", [61, 64, 100, 301])
def test_the_centred_clip_leaves_as_much_before_as_after(frames: int) -> None:
    clip = centre_frames(DENSE, frames, 30.0)
    assert (np.diff(clip) == 4).all()
    assert 0 <= (frames - 1 - clip[-1]) - clip[0] <= 1
    clip = centre_frames(SECONDS, frames, 30.0)
    assert abs((frames - 1 - clip[-1]) - clip[0]) <= 1


def test_dense_test_views_are_the_published_ones() -> None:
    views = sampling.test_frames(DENSE, 300, 30.0, 5)
    assert (views[:, 0] // 4).tolist() == [0, 14, 29, 44, 59]
    assert (np.diff(views, axis=1) == 4).all()


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("segments", [2, 3, 5])
def test_dense_test_views_by_the_formula(frames: int, segments: int) -> None:
    """Of every 4th frame, padded with the last to 16, view k starts at floor(k*(M-16)/(s-1))."""
    kept = list(range(0, frames, 4))
    kept += [kept[-1]] * (16 - len(kept))
    starts = [floor(k * (len(kept) - 16) / (segments - 1)) for k in range(segments)]
    expected = [kept[start : start + 16] for start in starts]
    assert sampling.test_frames(DENSE, frames, 30.0, segments).tolist() == expected


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("segments", [2, 3, 10])
@pytest.mark.parametrize("fps", [25.0, 30.0, 60.0])
def test_dense_fps_test_views_by_the_formula(frames: int, segments: int, fps: float) -> None:
    span = 64 * fps / 30
    step = floor(max(0.0, frames - span) / (segments - 1))
    expected = [spread(k * step, span, frames) for k in range(segments)]
    assert sampling.test_frames(DENSE_FPS, frames, fps, segments).tolist() == expected


@pytest.mark.parametrize("frames", LENGTHS)
def test_uniform_test_views_of_two_are_starts_and_middles(frames: int) -> None:
    tick = frames / 16
    starts = [floor(tick * i) for i in range(16)]
    middles = [floor(tick / 2 + tick * i) for i in range(16)]
    assert sampling.test_frames(UNIFORM, frames, 30.0, 2).tolist() == [starts, middles]


def test_seconds_test_views_reach_from_the_first_to_the_last_frame() -> None:
    views = sampling.test_frames(SECONDS, 300, 30.0, 5)
    assert views[0, 0] == 0
    assert views[-1, -1] == 299
    assert np.abs(np.diff(views[:, 0]) - np.diff(views[:, 0]).mean()).max() <= 1


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.sampling)
def test_one_segment_is_the_centred_clip(spec: ClipSpec) -> None:
    views = sampling.test_frames(spec, 200, 30.0, 1)
    assert views.tolist() == [centre_frames(spec, 200, 30.0).tolist()]


# Long files


@pytest.mark.parametrize("spec", [DENSE, DENSE_FPS, SECONDS], ids=lambda s: s.sampling)
@pytest.mark.parametrize("frames", [10, 64, 65, 1000])
def test_windows_cover_the_file(spec: ClipSpec, frames: int) -> None:
    windows = list(window_frames(spec, frames, 30.0))
    assert windows[0][0] == 0
    assert windows[-1][1] == pytest.approx(frames / 30)
    for (_, end, _), (start, _, _) in itertools.pairwise(windows):
        assert start <= end + 1e-9
    for start, end, clip in windows:
        assert start * 30 - 1 <= clip[0] <= clip[-1] < end * 30


def test_windows_with_a_hop() -> None:
    by_time = list(window_frames(DENSE, 200, 25.0, hop_seconds=1.0))
    by_frames = list(window_frames(DENSE, 200, 25.0, hop_frames=25))
    assert [w[2].tolist() for w in by_time] == [w[2].tolist() for w in by_frames]
    assert [w[0] for w in by_time] == [0, 1, 2, 3, 4, 5, (200 - 64) / 25]


def test_dense_fps_windows_are_a_span_long() -> None:
    windows = list(window_frames(DENSE_FPS, 120, 15.0))  # spans of 32 frames
    assert [(start * 15, end * 15) for start, end, _ in windows] == [
        (0, 32),
        (32, 64),
        (64, 96),
        (88, 120),
    ]
    assert [clip.tolist() for _, _, clip in windows] == [
        spread(at, 32, 120) for at in (0, 32, 64, 88)
    ]


def test_uniform_windows_are_one_hop_or_the_file() -> None:
    ((start, end, clip),) = window_frames(UNIFORM, 320, 32.0)
    assert (start, end) == (0, 10)
    assert clip.tolist() == list(range(10, 320, 20))
    windows = list(window_frames(UNIFORM, 320, 32.0, hop_seconds=5))
    assert [w[:2] for w in windows] == [(0, 5), (5, 10)]
    assert windows[1][2].tolist() == list(range(165, 320, 10))


@pytest.mark.parametrize("hop", [1, 4, 16, 23])
@pytest.mark.parametrize("frames", [16, 17, 31, 32, 100])
def test_whole_windows_are_those_of_published_features(frames: int, hop: int) -> None:
    spec = ClipSpec(num_frames=16, sampling_rate=1)
    windows = list(window_frames(spec, frames, 25.0, hop_frames=hop, whole=True))
    expected = [list(range(start, start + 16)) for start in range(0, frames - 15, hop)]
    assert [clip.tolist() for _, _, clip in windows] == expected
    assert [start for start, _, _ in windows] == [clip[0] / 25 for clip in expected]
    assert [end for _, end, _ in windows] == [(clip[-1] + 1) / 25 for clip in expected]


def test_whole_windows_of_short_files_and_of_hops_in_seconds() -> None:
    spec = ClipSpec(num_frames=4, sampling_rate=1)
    ((start, end, clip),) = window_frames(spec, 3, 10.0, hop_frames=2, whole=True)
    assert (start, end, clip.tolist()) == (0, 0.3, [0, 1, 2, 2])
    for fps, frames in ((30.0, 3), (29.97, 7), (10.0, 1)):
        windows = list(window_frames(spec, 1000, fps, hop_seconds=frames / fps, whole=True))
        assert len(windows) == (1000 - 4) // frames + 1


def test_windows_are_made_one_by_one() -> None:
    windows = window_frames(DENSE, 10**12, 30.0)
    assert next(windows)[0] == 0
    assert next(windows)[0] == pytest.approx(64 / 30)


# Descriptions


def test_a_clip_described_before_it_had_all_fields_is_as_it_was() -> None:
    before = {"num_frames": 8, "sampling": "dense", "sampling_rate": 2, "seconds": 2.0}
    read = record(ClipSpec, {**before, "size": [32, 48], "in_chans": 1})
    assert read == ClipSpec(8, sampling_rate=2, size=(32, 48), in_chans=1)
    assert (read.crop_pct, read.interpolation) == (1.0, "bilinear")


# Errors


@pytest.mark.parametrize(
    ("spec", "frames", "fps", "message"),
    [
        (DENSE, 0, 30.0, r"frames must be above 0 \(got 0\)"),
        (ClipSpec(num_frames=0), 9, 30.0, r"num_frames must be above 0 \(got 0\)"),
        (ClipSpec(sampling_rate=-1), 9, 30.0, r"sampling_rate must be above 0 \(got -1\)"),
        (SECONDS, 9, 0.0, r"needs a frame rate above 0, and the video's is 0\.0"),
        (SECONDS, 9, float("nan"), "needs a frame rate above 0"),
        (DENSE_FPS, 9, 0.0, 'sampling="dense_fps" needs a frame rate above 0'),
        (replace(DENSE_FPS, target_fps=0.0), 9, 30.0, r"target_fps must be above 0 \(got 0\.0\)"),
    ],
)
def test_what_cannot_be_drawn(spec: ClipSpec, frames: int, fps: float, message: str) -> None:
    with pytest.raises(TubeletError, match=message):
        draw_frames(spec, frames, fps, rng_for(0, 0, 0))
    with pytest.raises(TubeletError, match=message):
        centre_frames(spec, frames, fps)


def test_an_unknown_sampling() -> None:
    kind: Literal["dense"] = "sparse"  # pyright: ignore[reportAssignmentType]
    with pytest.raises(TubeletError, match=r"dense, dense_fps, uniform, seconds \(got 'sparse'\)"):
        centre_frames(ClipSpec(sampling=kind), 9, 30.0)


def test_segments_and_hops_out_of_range() -> None:
    with pytest.raises(TubeletError, match="segments must be at least 1"):
        sampling.test_frames(DENSE, 9, 30.0, 0)
    with pytest.raises(TubeletError, match="hop between windows must be above 0"):
        next(window_frames(DENSE, 9, 30.0, hop_seconds=0))
    with pytest.raises(TubeletError, match="not both"):
        next(window_frames(DENSE, 9, 30.0, hop_seconds=1, hop_frames=1))


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_test_crop_is_a_share_of_the_frame(share: float) -> None:
    with pytest.raises(TubeletError, match=f"crop_pct is {share:g}"):
        ClipSpec(crop_pct=share)
