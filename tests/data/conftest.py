"""Small videos for the tests of lists, samples, batches and checks."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import small

WriteVideo = Callable[..., Path]
_write = functools.partial(small.write_video, frames=20, height=32, cell=1)


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
