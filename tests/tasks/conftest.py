"""Small videos and a small classifier for the tests of tasks."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tubelet.backbones.vit import ViT, ViTShape
from tubelet.data.lists import VideoList, read_list
from tubelet.model import Classifier
from tubelet.shapes import ClipSpec

WriteVideo = Callable[..., Path]


def _write(path: Path, *, frames: int = 24, height: int = 40, width: int = 56, seed: int = 0):
    """Drifting coloured texture, H.264 at 10 frames per second; returns the path."""
    rng = np.random.default_rng(seed)
    tile = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    texture = tile.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "18", "g": "12", "preset": "ultrafast"}
        for shift in range(frames):
            image = np.ascontiguousarray(np.roll(texture, 3 * shift, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def write_video() -> WriteVideo:
    """write_video(path, frames=24, height=40, width=56, seed=0) -> path."""
    return _write


@pytest.fixture(scope="session")
def five(tmp_path_factory: pytest.TempPathFactory) -> VideoList:
    """Five videos of three classes, of unequal length."""
    folder = tmp_path_factory.mktemp("five")
    names = "acbca"
    paths = [_write(folder / f"{i}.mp4", frames=20 + 7 * i, seed=i) for i in range(5)]
    return read_list([(str(p), n) for p, n in zip(paths, names, strict=True)])


@pytest.fixture
def spec() -> ClipSpec:
    return ClipSpec(num_frames=4, sampling_rate=2, size=(32, 32))


def make_classifier(outputs: int = 3) -> Classifier:
    torch.manual_seed(7)
    vit = ViT(ViTShape(width=32, depth=2, heads=2, patch=8), trained=(4, 32, 32), final_norm=False)
    return Classifier(vit, outputs, init_scale=20.0)  # answers that differ from video to video


@pytest.fixture
def classifier() -> Classifier:
    return make_classifier()


@pytest.fixture
def classifier_of() -> Callable[[int], Classifier]:
    return make_classifier
