"""Small videos for the tests of lists, samples, batches and checks."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

WriteVideo = Callable[..., Path]


def _write(path: Path, *, frames: int = 20, height: int = 32, width: int = 48, seed: int = 0):
    """A moving texture, H.264 at 10 frames per second; returns the path."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "20", "g": "5", "preset": "ultrafast"}
        for shift in range(frames):
            image = np.ascontiguousarray(np.roll(texture, shift, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def write_video() -> WriteVideo:
    """write_video(path, frames=20, height=32, width=48, seed=0) -> path."""
    return _write


@pytest.fixture(scope="session")
def ten_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten readable videos: 0.mp4 to 9.mp4."""
    folder = tmp_path_factory.mktemp("ten")
    for at in range(10):
        _write(folder / f"{at}.mp4", seed=at)
    return folder
