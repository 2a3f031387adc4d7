"""The built-in videos: handwritten digits that move over drifting backgrounds, as H.264 files.

Every clip has two labels: *what*, the digit, seen in any one frame; and *how*, the motion. Motions
come in pairs of which one is the other played backwards, and a clip of the second is made by doing
just that to a draw of the first: so the frames of both have the same distribution, and only their
order tells them apart.

    render("toy")                                       # toy/{train,val,test}/*.mp4 and lists
    read_list("toy/train_how.csv"); read_list("toy/train.jsonl", column="what")

A clip is a function of (seed, split, index) and of the picture's options; neither the number of
clips nor that of processes changes it. Digits: scikit-learn's `load_digits`, 8x8 pixels, 1797 of
them by 43 writers, cut into disjoint sets for train, val and test.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.data.isolate import cpu_cores, each
from tubelet.errors import TubeletError
from tubelet.files import replace_file

WHAT = tuple("0123456789")
HOW = (
    "left",
    "right",
    "up",
    "down",
    "clockwise",
    "counter-clockwise",
    "growing",
    "shrinking",
)
SPLITS = ("train", "val", "test")
SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}  # of each digit's images
Level = Literal["easy", "middle", "hard"]

DIGIT = 0.6  # side of the digit's 8x8 image, as a share of the frame's shorter side
PATH = 0.16  # way of a digit that goes left, right, up or down, as a share of the same
STRAY = 0.125  # a clip's centre lies at most so far from the frame's, as a share
TURN = 45.0  # degrees of a turn: little enough for a 6 not to become a 9
GROWTH = 1.35  # last size of a growing digit by its first
CELL = 0.25  # side of a cell of the background's texture, as a share
TINT = 0.06  # at most so far a colour is from grey, as a share of the range
CRF, PRESET = "10", "veryfast"  # of x264: low enough for the noise to survive
CHUNK = 32  # clips that a process renders between two reports
FORMAT = 1  # of the recorded options; clips of another one are not the same


@dataclass(frozen=True)
class Difficulty:
    """How well a digit stands out. Shares are of the range of pixel values."""

    contrast: float  # by so much the digit's mean is above the background's
    texture: float  # standard deviation of the background's texture
    grain: float  # standard deviation of the digit's own texture
    drift: float  # way of the background over a clip, in a random direction, by the shorter side
    noise: float  # standard deviation of what is drawn anew for each pixel of each frame


# Found by trial; docs/toy.md has the numbers.
DIFFICULTIES: dict[str, Difficulty] = {
    "easy": Difficulty(contrast=0.5, texture=0.06, grain=0.03, drift=0.0, noise=0.0),
    "middle": Difficulty(contrast=0.35, texture=0.12, grain=0.06, drift=0.44, noise=0.18),
    "hard": Difficulty(contrast=0.0, texture=0.16, grain=0.16, drift=0.8, noise=0.18),
}


@dataclass(frozen=True)
class Options:
    """All that a clip follows from, beside its split and index."""

    size: tuple[int, int] = (32, 32)  # height, width in pixels
    frames: int = 8
    fps: float = 8.0
    difficulty: Level | float = "middle"  # 0 easy, 0.5 middle, 1 hard, and all between
    seed: int = 0

    def __post_init__(self) -> None:
        height, width = self.size
        wrong = []
        if min(self.size) < 16 or height % 2 or width % 2:
            wrong.append(f"size {height}x{width}: even numbers from 16 on (H.264 halves colour)")
        if self.frames < 2:
            wrong.append(f"frames {self.frames}: at least 2, or nothing moves")
        if not 0 < self.fps <= 240:
            wrong.append(f"fps {self.fps}: above 0, at most 240")
        if self.seed < 0:
            wrong.append(f"seed {self.seed}: 0 or more")
        if wrong:
            raise TubeletError("No videos can be rendered so. " + "; ".join(wrong) + ".")
        difficulty(self.difficulty)


def difficulty(level: Level | float) -> Difficulty:
    """The named one, or for a number from 0 to 1 one between: 0 easy, 0.5 middle, 1 hard."""
    if isinstance(level, str):
        if level not in DIFFICULTIES:
            raise TubeletError(
                f"difficulty is {level!r}: expected {', '.join(DIFFICULTIES)}, or a number from 0 "
                "to 1."
            )
        return DIFFICULTIES[level]
    if not 0 <= level <= 1:
        raise TubeletError(f"difficulty is {level}: expected 0 (easy) to 1 (hard).")
    anchors = [list(asdict(one).values()) for one in DIFFICULTIES.values()]
    return Difficulty(
        *(float(np.interp(level, [0.0, 0.5, 1.0], values)) for values in zip(*anchors, strict=True))
    )


# --- what a clip shows --------------------------------------------------------------------------


@functools.cache
def digits(split: str) -> tuple[np.ndarray, ...]:
    """The images of a split by digit: for each, float32 [n,8,8] in [0,1]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TubeletError(
            "The built-in videos show scikit-learn's handwritten digits, and scikit-learn is not "
            "installed. Install it with: pip install 'tubelet[demo]'"
        ) from error
    data: Any = load_digits()
    images = data.images.astype(np.float32) / 16
    low, high = SHARES[split]
    found = []
    for digit in range(len(WHAT)):
        of = images[data.target == digit]
        of = of[np.random.default_rng(digit).permutation(len(of))]
        found.append(of[round(low * len(of)) : round(high * len(of))])
    return tuple(found)


def _rng(options: Options, split: str, *stream: int) -> np.random.Generator:
    return np.random.default_rng([0x70E, options.seed, SPLITS.index(split), *stream])


def labels(options: Options, split: str, index: int) -> tuple[int, int]:
    """-> (what, how) of a clip. Each run of 80 clips has every pair of labels once."""
    pairs = len(WHAT) * len(HOW)
    block, place = divmod(index, pairs)
    pair = _rng(options, split, 0, block).permutation(pairs)[place]
    return int(pair) // len(HOW), int(pair) % len(HOW)


def clip(options: Options, split: str, index: int) -> np.ndarray:
    """The frames of a clip before compression: uint8 [T,H,W,3]."""
    what, how = labels(options, split, index)
    rng = _rng(options, split, 1, index)
    images = digits(split)[what]
    frames = paint(images[rng.integers(len(images))], how // 2, options, rng)
    return frames[::-1] if how % 2 else frames


def courses(motion: int, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """-> place to the right, place down, angle and growth in each frame: four of float32 [T].

    They have the same distribution over a clip's frames for all motions: the one that moves goes
    through its whole range from -0.5 to 0.5 (or back) in equal steps, and the others stay at a
    random one of these steps. So one frame, its number unknown, tells nothing about the motion.
    """
    steps = np.linspace(-0.5, 0.5, frames, dtype=np.float32)
    found = tuple(np.full_like(steps, steps[i]) for i in rng.integers(frames, size=4))
    found[motion][:] = -steps if motion < 2 else steps
    return found


def paint(digit: np.ndarray, motion: int, options: Options, rng: np.random.Generator) -> np.ndarray:
    """digit float32 [8,8] -> uint8 [T,H,W,3]. `motion` 0: left, 1: up, 2: clockwise, 3: growing."""
    how, (height, width) = difficulty(options.difficulty), options.size
    side = min(options.size)
    x, y, turn, growth = courses(motion, options.frames, rng)
    stray_x, stray_y = rng.uniform(-STRAY, STRAY, 2).astype(np.float32)
    grid = _into_digit(
        options,
        x=(x * PATH + stray_x) * side,
        y=(y * PATH + stray_y) * side,
        angle=np.deg2rad(turn * TURN),
        span=DIGIT * side * GROWTH**growth,
    )
    frames = options.frames
    shape = torch.from_numpy(digit)[None, None].expand(frames, 1, -1, -1)
    cover = F.grid_sample(shape, grid, align_corners=False).mul(1.6).sub(0.1).clamp(0, 1)
    grain = torch.from_numpy(_normal(rng, 1, 1, 4, 4)).mul(how.grain).expand(frames, -1, -1, -1)
    grain = F.grid_sample(grain, grid, padding_mode="reflection", align_corners=False)
    mean = rng.uniform(0.4, 0.6)
    back = mean - how.contrast / 2 + _background(options, how, rng) + _tint(rng)
    front = mean + how.contrast / 2 + grain + _tint(rng)
    picture = back + (front - back) * cover
    if how.noise:
        picture = picture + torch.from_numpy(_normal(rng, frames, 1, height, width)) * how.noise
    return picture.mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _into_digit(
    options: Options, *, x: np.ndarray, y: np.ndarray, angle: np.ndarray, span: np.ndarray
) -> Tensor:
    """Centre in pixels from the frame's, angle and span, [T] each -> [T,H,W,2] in the digit.

    The digit reaches from -1 to 1, as `grid_sample` counts; angles grow clockwise.
    """
    height, width = options.size
    dx = torch.arange(width)[None, None] + 0.5 - width / 2 - _column(x)
    dy = torch.arange(height)[None, :, None] + 0.5 - height / 2 - _column(y)
    cos, sin = _column(np.cos(angle)), _column(np.sin(angle))
    return torch.stack([cos * dx + sin * dy, cos * dy - sin * dx], -1) / (
        _column(span)[..., None] / 2
    )


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None]


def _background(options: Options, how: Difficulty, rng: np.random.Generator) -> Tensor:
    """A smooth texture without seams, from a random place in a random direction: [T,1,H,W]."""
    height, width = options.size
    cell = max(2.0, CELL * min(options.size))
    rows, columns = (max(2, round(n / cell)) for n in options.size)
    noise = torch.from_numpy(_normal(rng, 1, 1, rows, columns))
    noise = (noise - noise.mean()) / noise.std() * how.texture
    noise = F.pad(noise, (0, 1, 0, 1), mode="circular")  # for what lies behind the last cell
    direction = rng.uniform(0, 2 * math.pi)
    way = np.arange(options.frames) / (options.frames - 1) * how.drift * min(options.size) / cell
    down = torch.arange(height) * (rows / height) + _column(way * math.sin(direction))
    right = torch.arange(width) * (columns / width) + _column(way * math.cos(direction))
    at_y = torch.remainder(down[:, 0], rows) / rows * 2 - 1
    at_x = torch.remainder(right[:, 0], columns) / columns * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(at_x[:, None, :], at_y[:, :, None]), -1)
    noise = noise.expand(options.frames, -1, -1, -1)
    return F.grid_sample(noise, grid, align_corners=True)


def _tint(rng: np.random.Generator) -> Tensor:
    """A colour's distance from the grey of the same brightness: [3,1,1]."""
    red, green, blue = rng.uniform(-TINT, TINT, 3)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return torch.tensor([red - grey, green - grey, blue - grey]).float()[:, None, None]


# --- files --------------------------------------------------------------------------------------


def encode(frames: np.ndarray, path: Path, fps: float) -> None:
    """uint8 [T,H,W,3] -> an H.264 mp4 file, which appears whole or not at all."""
    begun = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with av.open(str(begun), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            # One thread, as more of them make other bytes. And without mbtree, which in frames as
            # small as these reads what nobody wrote: one file in twenty came out different.
            stream.options = {"crf": CRF, "preset": PRESET, "threads": "1"}
            stream.options |= {"x264-params": "mbtree=0"}
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        os.replace(begun, path)
    finally:
        begun.unlink(missing_ok=True)


def _file(split: str, index: int) -> str:
    return f"{split}/{index:06d}.mp4"


@dataclass(frozen=True)
class _Chunk:
    out: Path
    options: Options
    split: str
    indices: tuple[int, ...]


def _render(chunk: _Chunk) -> int:
    """Renders the clips of a chunk that are not there -> how many clips it has."""
    torch.set_num_threads(1)
    for index in chunk.indices:
        path = chunk.out / _file(chunk.split, index)
        if not path.exists():
            encode(clip(chunk.options, chunk.split, index), path, chunk.options.fps)
    return len(chunk.indices)


def _lost(chunk: _Chunk, why: str) -> int:
    raise TubeletError(f"Rendering {chunk.split} clips {chunk.indices[0]} and on failed: {why}.")


def render(
    out: str | Path,
    options: Options | None = None,
    *,
    train: int = 4000,
    val: int = 400,
    test: int = 1000,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes `out`/{train,val,test}/*.mp4 and their lists; what is there already is kept.

    Lists, for each split: `train_what.csv` and `train_how.csv` (path and label, as published), and
    `train.jsonl` with both labels. Labels are balanced and independent where the number of clips
    is a multiple of 80. `workers`: processes, None for one a core, 0 for none;
    `progress(done, of)` counts clips.

    Raises:
        TubeletError: `out` holds other videos or was rendered with other options; options that
            cannot be; no scikit-learn; a disk that is full.
    """
    out, options = Path(out), options or Options()
    counts: dict[str, int] = {"train": train, "val": val, "test": test}
    if min(counts.values()) < 0:
        raise TubeletError(f"Numbers of clips are 0 or more; got {counts}.")
    record = {"format": FORMAT, **asdict(options), **counts}
    digits("train")
    try:
        if _claim(out, record):
            return out
        _render_all(out, options, counts, cpu_cores() if workers is None else workers, progress)
        for split, count in counts.items():
            _write_lists(out, options, split, count)
        _write(out / "toy.json", json.dumps(record | {"complete": True}, indent=1) + "\n")
    except OSError as error:
        raise TubeletError(
            f"The built-in videos cannot be written to {out}: {error.strerror or error}. What is "
            "there is whole: the same command goes on with it."
        ) from error
    return out


def _claim(out: Path, record: dict[str, Any]) -> bool:
    """Whether all is there already; TubeletError where `out` is something else's."""
    path = out / "toy.json"
    record = json.loads(json.dumps(record))
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise TubeletError(
                f"{out} exists and holds no built-in videos: choose another folder for them."
            )
        for split in SPLITS:
            (out / split).mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(record | {"complete": False}, indent=1) + "\n")
        return False
    try:
        found = json.loads(path.read_text())
        complete = bool(found.pop("complete"))
    except (ValueError, AttributeError, KeyError) as error:
        raise TubeletError(f"{path} cannot be read ({error}): choose another folder.") from error
    if found != record:
        other = [
            f"{name} was {found.get(name)}, now {record.get(name)}"
            for name in sorted(found.keys() | record.keys())
            if found.get(name) != record.get(name)
        ]
        raise TubeletError(
            f"The videos in {out} were rendered with other options: {'; '.join(other)}. Choose "
            "another folder, or remove this one."
        )
    return complete


def _render_all(
    out: Path,
    options: Options,
    counts: dict[str, int],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    chunks = [
        _Chunk(out, options, split, tuple(range(at, min(at + CHUNK, count))))
        for split, count in counts.items()
        for at in range(0, count, CHUNK)
    ]
    total = sum(counts.values())

    def clips(done: int, _: int) -> None:
        if progress is not None:
            progress(min(done * CHUNK, total), total)

    each(_render, chunks, workers=workers, lost=_lost, timeout_seconds=600, progress=clips)


def _write_lists(out: Path, options: Options, split: str, count: int) -> None:
    pairs = [labels(options, split, index) for index in range(count)]
    names: Sequence[tuple[str, Sequence[str]]] = [
        ("what", [WHAT[what] for what, _ in pairs]),
        ("how", [HOW[how] for _, how in pairs]),
    ]
    for name, values in names:
        rows = [f"{_file(split, i)} {value}\n" for i, value in enumerate(values)]
        _write(out / f"{split}_{name}.csv", "".join(rows))
    records = [
        {"path": _file(split, i), "what": what, "how": how}
        for i, (what, how) in enumerate(zip(names[0][1], names[1][1], strict=True))
    ]
    _write(out / f"{split}.jsonl", "".join(json.dumps(one) + "\n" for one in records))


def _write(path: Path, text: str) -> None:
    replace_file(path, lambda begun: begun.write_text(text))
