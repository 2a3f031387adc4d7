"""What several tests make: a small video, and the options that make a run small."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

TINY = [
    *("--num-frames", "4", "--sampling-rate", "2", "--size", "32", "32", "--workers", "0"),
    *("--device", "cpu"),
]
TINY_NET = [
    *("--encoder.width", "32", "--encoder.depth", "2", "--encoder.heads", "2"),
    *("--encoder.patch", "8"),
]
TINY_MVIT = [  # tokens of 8x8 pixels, as those of TINY_NET
    *("--encoder.depths", "1", "1", "1", "--encoder.widths", "8", "16", "16"),
    *("--encoder.heads", "1", "2", "2", "--mask-unit", "1", "1", "1"),
]
TINY_DECODER = ["--decoder.width", "16", "--decoder.depth", "1", "--decoder.heads", "2"]


def write_video(
    path: Path, *, frames: int = 24, height: int = 40, width: int = 48, seed: int = 0, cell: int = 8
) -> Path:
    """A drifting texture of cells of `cell` pixels, H.264, 10 frames per second; -> the path."""
    rng = np.random.default_rng(seed)
    tile = rng.integers(0, 256, (height // cell, width // cell, 3), dtype=np.uint8)
    texture = tile.repeat(cell, 0).repeat(cell, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "20", "g": "12", "preset": "ultrafast"}
        for shift in range(frames):
            image = np.ascontiguousarray(np.roll(texture, 3 * shift, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_frames(
    folder: Path,
    *,
    frames: int = 12,
    first: int = 1,
    template: str = "img_{:05}.jpg",
    seed: int = 0,
) -> Path:
    """A folder of frames of 48x40 pixels, each of one colour that tells folder and frame; -> it."""
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(frames):
        colour = (40 * seed % 256, 8 * at % 256, 100)
        Image.new("RGB", (48, 40), colour).save(folder / template.format(first + at), quality=95)
    return folder
