"""Views cut and resized as frames are stored: the same colours and places as of whole RGB frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tubelet.data.clips import YUV_PAYS_PIXELS, ClipDataset, Key
from tubelet.data.decode import Video
from tubelet.data.lists import Entry, VideoList
from tubelet.data.transforms import FINETUNE, PRETRAIN, Augment, Box, augment, resize
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec

EXACT, FAST = PRETRAIN, replace(PRETRAIN, pixels="fast")
SPEC = ClipSpec(num_frames=4, sampling_rate=2, size=(112, 112))
SIZE = (YUV_PAYS_PIXELS, 322)  # height, width
FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p")
# Grey levels: colour is resized from half the samples here, and from pixels that repeat them there.
APART, BIAS = 1.8, 0.6


def write(path: Path, frames: int = 12, size: tuple[int, int] = SIZE, **how: Any) -> Path:
    """Smooth moving colours; `space` and `range`: what their numbers mean."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as out:
        stream = out.add_stream(how.get("codec", "libx264"), rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = how.get("pixels", "yuv420p")
        stream.options = {"qp": "1"} | how.get("options", {})
        space, full = how.get("space", 2), how.get("range", 0)
        stream.codec_context.colorspace, stream.codec_context.color_range = space, full
        for i in range(frames):
            waves = (np.sin((x + 9 * i) / 31), np.cos((y - 5 * i) / 27), np.sin((x + y) / 40))
            image = np.stack([110 + 70 * wave for wave in waves], -1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=stream.pix_fmt)
            frame.colorspace, frame.color_range, frame.pts = space, full, i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("yuv") / "large.mp4")


def videos(path: Path) -> VideoList:
    return VideoList(entries=(Entry(str(path)),))


def dataset(path: Path, config: Augment = FAST, spec: ClipSpec = SPEC, **more: Any):
    return ClipDataset(videos(path), spec, config, seed=1, **more)


def apart(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """Mean absolute difference and difference of the means, in grey levels."""
    difference = one.double() - other.double()
    return difference.abs().mean().item(), abs(difference.mean().item())


@pytest.mark.parametrize("space", [1, 5])  # ITU-R BT.709, BT.601
@pytest.mark.parametrize("pixels", FORMATS)
def test_a_box_is_that_of_whole_frames_in_every_format(
    tmp_path: Path, pixels: str, space: int
) -> None:
    path = write(tmp_path / "one.mp4", 3, (96, 128), pixels=pixels, space=space)
    for box in (Box(0, 0, 96, 128), Box(4, 8, 64, 60), Box(3, 5, 51, 77), Box(15, 1, 81, 127)):
        for how in ("bilinear", "bicubic"):
            with Video(path) as video:
                clip = video.yuv([0, 2, 2])
                assert clip is not None
                assert clip.size == (96, 128)
                expected = resize(box.cut(video.frames([0, 2, 2])), (48, 45), how)
            view = clip.view(box, (48, 45), how)
            assert view.shape == expected.shape == (3, 3, 48, 45)
            mean, bias = apart(view, expected)
            assert mean < APART, (box, how)
            assert bias < BIAS, (box, how)


def test_frames_come_in_the_order_asked_for(large: Path) -> None:
    """Also repeated ones, and each as if it were alone."""
    order = [7, 2, 2, 9, 7, 0]
    with Video(large) as video:
        clip = video.yuv(range(12))
    assert clip is not None
    for box, size in ((Box(3, 5, 151, 177), (48, 45)), (Box(0, 0, *SIZE), (112, 112))):
        for asked in (order, [5, 1, 3]):
            view = clip.pick(np.array(asked)).view(box, size)
            alone = [clip.pick(np.array([one])).view(box, size) for one in asked]
            assert torch.equal(view, torch.cat(alone, 1))


def test_a_box_at_an_odd_edge_is_not_moved(tmp_path: Path) -> None:
    """Colour is stored for every second pixel: a cut at its grid would be half a sample away."""
    path = write(tmp_path / "one.mp4", 1, (96, 128), pixels="yuv420p")
    with Video(path) as video:
        clip, frames = video.yuv([0]), video.frames([0])
    assert clip is not None
    odd, even = Box(7, 9, 64, 64), Box(6, 8, 64, 64)
    view = clip.view(odd, (64, 64))
    assert apart(view, resize(odd.cut(frames), (64, 64)))[0] < 1
    assert apart(view, resize(even.cut(frames), (64, 64)))[0] > 2  # so a step can be told


@pytest.mark.parametrize("crop", ["multiscale", "random_resized"])
def test_the_fast_clip_shows_the_box_flip_and_erasure_of_the_exact_one(
    large: Path, crop: Any
) -> None:
    fast = Augment(crop=crop, flip=0.5, reprob=0.5, pixels="fast")
    exact = replace(fast, pixels="exact")
    views = {"small": (64, 64)}
    for epoch in range(6):
        (one,) = dataset(large, fast, views=views)[Key(epoch, 0)]
        (other,) = dataset(large, exact, views=views)[Key(epoch, 0)]
        assert one.seed == other.seed
        for name, view in one.views.items():
            mean, bias = apart(view, other.views[name])
            assert 0 < mean < APART, (epoch, name)
            assert bias < BIAS, (epoch, name)


def test_repeats_with_frames_of_their_own(large: Path) -> None:
    spec = replace(SPEC, sampling_rate=1)
    both = (dataset(large, how, spec, num_sample=3, repeats="clip") for how in (FAST, EXACT))
    for fast, exact in zip(*(samples[Key(0, 0)] for samples in both), strict=True):
        assert 0 < apart(fast.views["clip"], exact.views["clip"])[0] < APART


def test_exact_is_the_crop_of_whole_rgb_frames(large: Path) -> None:
    (sample,) = dataset(large, EXACT, ClipSpec(4, sampling_rate=3, size=(112, 112)))[Key(0, 0)]
    rng = np.random.Generator(np.random.PCG64(sample.seed))
    rng.integers(0, 1)  # the start: a clip of 12 frames has one
    with Video(large) as video:
        frames = video.frames([0, 3, 6, 9])
    assert torch.equal(
        sample.views["clip"], augment(frames, {"clip": (112, 112)}, EXACT, rng)["clip"]
    )


@pytest.mark.parametrize(
    "config",
    [
        replace(FINETUNE, flip=0.0, reprob=0.0),
        Augment(crop="centre"),
    ],
)
def test_what_needs_whole_rgb_frames_is_exact(large: Path, config: Augment) -> None:
    (one,), (other,) = (
        dataset(large, replace(config, pixels=pixels))[Key(0, 0)] for pixels in ("fast", "exact")
    )
    assert torch.equal(one.views["clip"], other.views["clip"])


def test_grey_and_small_clips_are_exact(large: Path, tmp_path: Path) -> None:
    small = write(tmp_path / "small.mp4", size=(YUV_PAYS_PIXELS - 2, 322))
    for path, spec in ((large, replace(SPEC, in_chans=1)), (small, SPEC)):
        (one,), (other,) = (dataset(path, how, spec)[Key(0, 0)] for how in (FAST, EXACT))
        assert torch.equal(one.views["clip"], other.views["clip"])


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("ten.mp4", {"pixels": "yuv420p10le"}),
        ("whole_colour.mp4", {"pixels": "yuv444p"}),
        ("rgb.mkv", {"codec": "ffv1", "pixels": "bgr0", "options": {}}),
    ],
)
def test_other_formats_have_rgb_frames_only(tmp_path: Path, name: str, how: Any) -> None:
    path = write(tmp_path / name, 12, **how)
    with Video(path) as video:
        assert video.yuv([0, 1]) is None
    (one,), (other,) = (dataset(path, config)[Key(0, 0)] for config in (FAST, EXACT))
    assert torch.equal(one.views["clip"], other.views["clip"])


def test_pixels_of_another_name_are_an_error() -> None:
    with pytest.raises(TubeletError, match="pixels is one of fast, exact, and not 'quick'"):
        Augment(pixels="quick")  # pyright: ignore[reportArgumentType]
