"""Videos that benchmarks of loading and decoding make themselves: H.264 as x264 makes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

FPS = 30
SIZES, KEYS, FRAMES = ((340, 256), (1280, 720)), (250, 12), 300  # width, height
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Film:
    """A file, and how it was made."""

    path: Path
    name: str  # "340x256-key250"
    key: int  # frames from one key frame to the next
    large: bool


def films(home: Path, quick: bool = False) -> list[Film]:
    """The files of every size and interval of key frames, made in `home` where they are not there.
    `quick`: short ones, of the small size."""
    sizes, frames = (SIZES[:1], 80) if quick else (SIZES, FRAMES)
    found: list[Film] = []
    for width, height in sizes:
        for key in KEYS:
            path = home / f"{width}x{height}_{key}_{frames}.mp4"
            if not path.exists():
                make(path, width, height, key, frames)
            large = (width, height) != SIZES[0]
            found.append(Film(path, f"{width}x{height}-key{key}", key, large))
    return found


def texture(height: int, width: int, rng: np.random.Generator) -> Pixels:
    """uint8 [H,W,3]: blocks of 4 to 64 pixels, the larger the stronger."""
    total = np.zeros((height, width, 3), np.float32)
    for side in (4, 8, 16, 32, 64):
        cells = rng.standard_normal((height // side + 1, width // side + 1, 3), np.float32)
        blocks = np.repeat(np.repeat(cells, side, 0), side, 1)
        total += blocks[:height, :width] * np.float32(side**0.5)
    low, high = total.min(), total.max()
    return ((total - low) * (255 / (high - low))).astype(np.uint8)


def moving(width: int, height: int, frames: int, seed: int = 0) -> Iterator[Pixels]:
    """uint8 [H,W,3] each: a camera that wanders, a square that moves otherwise, and noise."""
    rng = np.random.default_rng(seed)
    far, near = texture(2 * height, 2 * width, rng), texture(height // 2, width // 2, rng)
    for i in range(frames):
        top, left = height * (1 + np.sin(i / 40)) / 2, width * (1 + np.cos(i / 55)) / 2
        image = far[int(top) :, int(left) :][:height, :width].copy()
        y, x = height * (1 + np.sin(i / 11)) / 4, width * (1 + np.cos(i / 17)) / 4
        image[int(y) :, int(x) :][: near.shape[0], : near.shape[1]] = near
        noise = rng.integers(-4, 5, image.shape, np.int16)
        yield np.clip(image + noise, 0, 255).astype(np.uint8)


def make(path: Path, width: int, height: int, key: int, frames: int, seed: int = 0) -> None:
    """Encodes a file as x264 does by default, but for its key frames. `seed`: of what it shows."""
    begun = path.with_suffix(".part")
    with av.open(str(begun), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"g": str(key), "keyint_min": str(min(key, 25)), "threads": "1"}
        for image in moving(width, height, frames, seed):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(stream.encode(None))
    begun.replace(path)
