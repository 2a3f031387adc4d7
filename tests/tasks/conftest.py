"""Small videos and a small classifier for the tests of tasks."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import small
import torch

from tubelet.backbones.vit import ViT, ViTShape
from tubelet.data.lists import VideoList, read_list
from tubelet.model import Classifier
from tubelet.shapes import ClipSpec

WriteVideo = Callable[..., Path]


_write = functools.partial(small.write_video, width=56)


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
    vit = ViT(
        ViTShape(width=32, depth=2, heads=2, patch=8),
        trained=(4, 32, 32),
        final_norm=False,
        init="normal",
    )
    return Classifier(vit, outputs, init_scale=20.0)  # answers that differ from video to video


@pytest.fixture
def classifier() -> Classifier:
    return make_classifier()


@pytest.fixture
def classifier_of() -> Callable[[int], Classifier]:
    return make_classifier
