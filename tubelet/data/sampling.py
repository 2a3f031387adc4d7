"""Which frames of a video make a clip: training draws, validation, test views, long files.

Everything here is a function of numbers alone: no file is opened, and what is random comes from
the generator that is passed in, which `rng_for` makes from (seed, epoch, index, repeat).
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from math import ceil, floor
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec, Sampling

Frames = NDArray[np.int64]


def sample_seed(seed: int, epoch: int, index: int, repeat: int = 0) -> int:
    """The seed of one sample, in [0, 2**63): a hash of the four numbers, the same everywhere."""
    text = f"{int(seed)},{int(epoch)},{int(index)},{int(repeat)}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def rng_for(seed: int, epoch: int, index: int, repeat: int = 0) -> np.random.Generator:
    """The generator of one sample: a function of these four numbers and of nothing else."""
    return np.random.Generator(np.random.PCG64(sample_seed(seed, epoch, index, repeat)))


def draw_frames(spec: ClipSpec, frames: int, fps: float, rng: np.random.Generator) -> Frames:
    """The frames of a training clip: int64 [T], ascending, in a video of `frames` frames.

    "dense": a start uniform in [0, n - T*rate], then every `sampling_rate`-th frame. In a video
    no longer than T*rate the start is 0 and the pointer moves only while it stays inside, so
    the last frame that it reaches is repeated (as VideoMAE, arXiv 2203.12602, samples in
    pretraining). Its fine-tuning spreads T frames over both ends of the same span, a stride of
    64/15; we keep the stride of pretraining and testing.

    "dense_fps": a real start uniform in [0, n - span], where span = T*rate*fps/target_fps frames,
    and T frames evenly from start to start + span - 1, both included, rounded down (as MaskFeat,
    arXiv 2112.09133, samples: 16 frames, rate 4 at 30 frames a second, are 63/15 frames apart in
    a video of that rate). What lies behind the end of a shorter video is its last frame.

    "uniform": T segments of (n-1)/T frames with real bounds, and in each one frame uniform
    between its rounded bounds, both included (as MVD, arXiv 2212.04500). A video shorter than T
    so repeats frames evenly.

    "seconds": "dense" with the real stride seconds*fps/T.
    """
    n = _checked(spec, frames, fps)
    if spec.sampling == "uniform":
        bounds = np.rint(np.arange(spec.num_frames + 1) * ((n - 1) / spec.num_frames))
        return rng.integers(bounds[:-1].astype(np.int64), bounds[1:].astype(np.int64) + 1)
    stride = _stride(spec, fps)
    room = n - spec.num_frames * stride
    if spec.sampling == "dense":
        start = float(rng.integers(0, int(room) + 1)) if room > 0 else 0.0
    else:
        start = float(rng.uniform(0, room)) if room > 0 else 0.0
    return _run(spec, n, start, stride)


def centre_frames(spec: ClipSpec, frames: int, fps: float) -> Frames:
    """The one clip of validation: int64 [T], in the middle of the video, nothing random.

    The published validation draws at random; this one does not, so that two scores compare.
    "uniform" takes the middle of each segment. A start between two frames is rounded down for
    "dense"; "dense_fps" and "seconds" round the frames.
    """
    n = _checked(spec, frames, fps)
    if spec.sampling == "uniform":
        return _uniform(spec, n, 0.5)
    stride = _stride(spec, fps)
    start = _room(spec, n, stride) / 2
    return _run(spec, n, float(floor(start)) if spec.sampling == "dense" else start, stride)


def test_frames(spec: ClipSpec, frames: int, fps: float, segments: int) -> Frames:
    """The test views in time: int64 [segments, T]; one segment is `centre_frames`.

    "dense": of the M frames at 0, rate, 2*rate, ... view k starts at floor(k*(M-T)/(segments-1))
    (VideoMAE's test on Kinetics, 5 segments). "uniform": view k takes, of each of the T segments
    of n/T frames, the frame at k/segments of it (for 2 segments: the starts and the middles, as
    VideoMAE tests on Something-Something). "dense_fps": view k starts at
    k*floor((n-span)/(segments-1)) (MaskFeat's test on Kinetics, 10 segments). "seconds": from the
    first to the last frame, at real steps.
    """
    n = _checked(spec, frames, fps)
    if segments < 1:
        raise TubeletError(f"segments must be at least 1 (got {segments}): 1 is the centred clip.")
    if segments == 1:
        return centre_frames(spec, frames, fps)[None]
    if spec.sampling == "uniform":
        return np.stack([_uniform(spec, n, k / segments) for k in range(segments)])
    stride = _stride(spec, fps)
    if spec.sampling == "dense":
        room = max(0, ceil(n / stride) - spec.num_frames)
        starts = [floor(k * room / (segments - 1)) * stride for k in range(segments)]
    elif spec.sampling == "dense_fps":
        step = floor(_room(spec, n, stride) / (segments - 1))
        starts = [float(k * step) for k in range(segments)]
    else:
        starts = [k * _room(spec, n, stride) / (segments - 1) for k in range(segments)]
    return np.stack([_run(spec, n, start, stride) for start in starts])


def window_frames(
    spec: ClipSpec,
    frames: int,
    fps: float,
    *,
    hop_seconds: float | None = None,
    hop_frames: int | None = None,
    whole: bool = False,
) -> Iterator[tuple[float, float, Frames]]:
    """Windows that cover a file of any length: (start seconds, end seconds, int64 [T]), in order.

    A window is as long as a training clip (T*rate frames, its span, or `seconds`), and the next
    starts a hop later; without a hop they touch. The last is moved back to end with the file.
    With "uniform", where a clip has no length of its own, a window is one hop long, and without
    a hop the whole file is one window.

    `whole`: only windows that a multiple of the hop starts and that end within the file, as
    features are published for temporal action detection (arXiv 2303.16727):
    floor((n - span) / hop) + 1 of them. A file shorter than a window has one all the same.
    """
    n = _checked(spec, frames, fps)
    if hop_seconds is not None and hop_frames is not None:
        raise TubeletError("Give hop_seconds or hop_frames, not both.")
    hop = hop_seconds * _rate(fps, "hop_seconds") if hop_seconds is not None else hop_frames
    if hop is not None and not hop > 0:
        raise TubeletError(f"The hop between windows must be above 0 (got {hop} frames).")
    if spec.sampling == "uniform":
        span = min(float(n), max(1.0, hop)) if hop else float(n)
    else:
        span = spec.num_frames * _stride(spec, fps)
    hop = max(1.0, hop or span)
    # A hop in seconds may come out a rounding error longer than so many frames.
    count = max(1, (floor((n - span) / hop + 1e-6) if whole else ceil((n - span) / hop)) + 1)
    for k in range(count):
        start = max(0.0, min(k * hop, n - span))
        if spec.sampling == "uniform":
            first, last = floor(start), min(n, max(floor(start) + 1, floor(start + span)))
            picked = first + _uniform(spec, last - first, 0.5)
        else:
            start = float(floor(start)) if spec.sampling == "dense" else start
            picked = _run(spec, n, start, _stride(spec, fps))
        yield start / fps, min(start + span, n) / fps, picked


def _run(spec: ClipSpec, n: int, start: float, stride: float) -> Frames:
    """start, start+stride, ..., [T]: the pointer stops at the last step inside the video.

    "dense_fps": from start to the end of the span, at most the last frame.
    """
    if spec.sampling == "dense_fps":
        last = start + max(0.0, spec.num_frames * stride - 1)
        at = np.floor(np.linspace(start, last, spec.num_frames))
        return np.minimum(at, n - 1).astype(np.int64)
    last = floor((n - 1 - start) / stride)
    steps = np.minimum(np.arange(spec.num_frames), max(0, last))
    return np.floor(start + steps * stride).astype(np.int64)


def _uniform(spec: ClipSpec, n: int, at: float) -> Frames:
    """The frame at the fraction `at` of each of T segments of n/T frames."""
    tick = n / spec.num_frames
    return np.floor(tick * at + tick * np.arange(spec.num_frames)).astype(np.int64)


def _room(spec: ClipSpec, n: int, stride: float) -> float:
    """How far a clip can be moved in a video of n frames."""
    if spec.sampling == "dense_fps":
        return max(0.0, n - spec.num_frames * stride)
    return max(0.0, n - 1 - (spec.num_frames - 1) * stride)


def _stride(spec: ClipSpec, fps: float) -> float:
    """Frames of the video for each of a clip: its span is T times that."""
    if spec.sampling == "dense":
        return spec.sampling_rate
    if spec.sampling == "dense_fps":
        return spec.sampling_rate * _rate(fps, 'sampling="dense_fps"') / spec.target_fps
    return spec.seconds * _rate(fps, 'sampling="seconds"') / spec.num_frames


def _rate(fps: float, what: str) -> float:
    if not (fps > 0 and np.isfinite(fps)):
        raise TubeletError(f"{what} needs a frame rate above 0, and the video's is {fps}.")
    return fps


def _checked(spec: ClipSpec, frames: int, fps: float) -> int:
    """The number of frames, after a look at what the caller gave."""
    wrong = [
        f"{name} must be above 0 (got {value})"
        for name, value in (
            ("frames", frames),
            ("num_frames", spec.num_frames),
            ("sampling_rate", spec.sampling_rate),
            ("target_fps", spec.target_fps),
            ("seconds", spec.seconds),
        )
        if not value > 0
    ]
    kinds = get_args(Sampling)
    if spec.sampling not in kinds:
        wrong.append(f"sampling must be one of {', '.join(kinds)} (got {spec.sampling!r})")
    if wrong:
        raise TubeletError(f"No clip can be drawn: {'; '.join(wrong)}.")
    return int(frames)
