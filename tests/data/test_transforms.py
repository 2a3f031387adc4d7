"""Views of clips: against Pillow and against formulas written out."""

from __future__ import annotations

from math import floor
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tubelet.data.sampling import rng_for
from tubelet.data.transforms import (
    EVALUATE,
    FINETUNE,
    PRETRAIN,
    Augment,
    augment,
    erase_box,
    multiscale_box,
    random_resized_box,
    resize,
    spatial_views,
    to_channels,
    views_of,
)
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec

SIZES = [(224, 224), (32, 32), (48, 96), (300, 260)]


def noise(frames: int = 3, height: int = 90, width: int = 120, channels: int = 3) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (frames, height, width, channels), dtype=np.uint8))


def places(frames: int = 2, height: int = 90, width: int = 120) -> Tensor:
    """uint8 [T,H,W,3]: channel 0 is the column, channel 1 the row, channel 2 the frame."""
    clip = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    clip[..., 0] = torch.arange(width)
    clip[..., 1] = torch.arange(height)[:, None]
    clip[..., 2] = torch.arange(frames)[:, None, None]
    return clip


def pillow(frame: Tensor, size: tuple[int, int], kind: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(frame.numpy()).resize((size[1], size[0]), kind)).astype(int)


# Resizing


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "levels"), [("bilinear", 1), ("bicubic", 2)])
def test_resizing_is_pillows(size: tuple[int, int], kind: str, levels: int) -> None:
    clip = noise()
    ours = resize(clip, size, kind)  # pyright: ignore[reportArgumentType]
    assert ours.shape == (3, 3, *size)
    assert ours.dtype == torch.uint8
    assert ours.is_contiguous()
    for t in range(3):
        theirs = pillow(clip[t], size, Image.Resampling[kind.upper()])
        assert np.abs(ours[:, t].permute(1, 2, 0).numpy() - theirs).max() <= levels


def test_resizing_to_the_same_size_changes_nothing() -> None:
    clip = noise()
    assert torch.equal(resize(clip, (90, 120)), clip.permute(3, 0, 1, 2))


# The published pretraining crop


def test_multiscale_draws_all_published_boxes_and_no_other() -> None:
    frame, size = (256, 340), (224, 224)
    sides = [256, 224, 192, 168]  # 256 x (1, 0.875, 0.75, 0.66); 224 is the output's own
    shapes = {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) < 2}
    quarters = {(y, x) for y in (0, 2, 4) for x in (0, 2, 4)} | {(1, 1), (1, 3), (3, 1), (3, 3)}
    expected = {
        ((256 - h) // 4 * y, (340 - w) // 4 * x, h, w) for h, w in shapes for y, x in quarters
    }
    drawn = [tuple(multiscale_box(frame, size, PRETRAIN, rng_for(0, 0, i))) for i in range(4000)]
    assert set(drawn) == expected
    shares = [sum(box[2:] == shape for box in drawn) / 4000 for shape in shapes]
    assert len(shares) == 10
    assert max(abs(share - 0.1) for share in shares) < 0.03


@pytest.mark.parametrize(("out", "side"), [(222, 222), (226, 226), (221, 224), (227, 224)])
def test_a_side_within_two_pixels_of_the_output_snaps(out: int, side: int) -> None:
    boxes = [multiscale_box((256, 340), (out, out), PRETRAIN, rng_for(0, 0, i)) for i in range(200)]
    assert {box.width for box in boxes} == {box.height for box in boxes} == {256, side, 192, 168}


def test_a_box_never_leaves_a_small_frame() -> None:
    for size in ((224, 224), (112, 224), (224, 112)):
        for frame in ((223, 223), (223, 300), (7, 9), (1, 1)):
            for i in range(50):
                box = multiscale_box(frame, size, PRETRAIN, rng_for(0, 0, i))
                assert box.top >= 0
                assert box.left >= 0
                assert 0 < box.height <= frame[0] - box.top
                assert 0 < box.width <= frame[1] - box.left


def test_a_rectangular_output_gets_a_rectangular_box() -> None:
    one = Augment(scales=(1.0,))
    assert multiscale_box((100, 300), (32, 64), one, rng_for(0, 0, 0))[2:] == (100, 200)
    assert multiscale_box((300, 100), (32, 64), one, rng_for(0, 0, 0))[2:] == (50, 100)


# The published fine-tuning crop


def test_random_resized_boxes_have_the_areas_and_aspects() -> None:
    boxes = [
        random_resized_box((240, 320), (224, 224), FINETUNE, rng_for(0, 0, i)) for i in range(2000)
    ]
    area = np.array([box.height * box.width / (240 * 320) for box in boxes])
    aspect = np.array([box.width / box.height for box in boxes])
    assert 0.075 < area.min() < 0.1
    assert 0.9 < area.max() <= 1
    assert 0.74 < aspect.min() < 0.78
    assert 1.28 < aspect.max() < 1.35
    assert all(box.top + box.height <= 240 and box.left + box.width <= 320 for box in boxes)
    assert {box.top for box in boxes} >= set(range(100))


def test_a_frame_too_narrow_for_any_box_gives_its_centre() -> None:
    box = random_resized_box((20, 400), (32, 32), Augment(area=(0.9, 1.0)), rng_for(0, 0, 0))
    assert box == (0, 186, 20, 27)
    box = random_resized_box((400, 20), (32, 32), Augment(area=(0.9, 1.0)), rng_for(0, 0, 0))
    assert box == (186, 0, 27, 20)


# Whole views


@pytest.mark.parametrize("config", [PRETRAIN, FINETUNE, EVALUATE], ids=lambda c: c.crop)
@pytest.mark.parametrize("channels", [3, 1])
def test_a_view_is_a_function_of_its_generator(config: Augment, channels: int) -> None:
    clip = noise(channels=channels)
    before = clip.clone()
    views = [augment(clip, {"clip": (32, 48)}, config, rng_for(0, 0, i))["clip"] for i in (1, 1, 2)]
    assert torch.equal(clip, before)
    assert views[0].shape == (channels, 3, 32, 48)
    assert views[0].dtype == torch.uint8
    assert views[0].is_contiguous()
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2]) == (config is EVALUATE)


def test_frames_and_views_share_one_crop() -> None:
    for i in range(20):
        sizes = {"clip": (64, 64), "teacher": (32, 32)}
        views = augment(places(), sizes, Augment(flip=0.5), rng_for(0, 0, i))
        one, two = views["clip"].float(), views["teacher"].float()
        assert torch.equal(one[:2, 0], one[:2, 1])
        assert one[2, 1].unique().tolist() == [1]
        halved = torch.nn.functional.avg_pool2d(one[:2, 0], 2)
        assert (halved - two[:2, 0]).abs().max() < 3


def test_the_default_never_flips_and_a_flip_is_a_mirror() -> None:
    flips = 0
    for i in range(60):
        plain = augment(places(), {"clip": (32, 32)}, PRETRAIN, rng_for(0, 0, i))["clip"]
        columns = plain[0, 0].float().mean(0)
        assert columns[0] < columns[-1]
        view = augment(places(), {"clip": (32, 32)}, Augment(flip=0.5), rng_for(0, 0, i))["clip"]
        flipped = bool(view[0, 0, 0, 0] > view[0, 0, 0, -1])
        flips += flipped
        assert torch.equal(view.flip(-1) if flipped else view, plain)
    assert 15 < flips < 45


def test_pretraining_crops_and_nothing_else() -> None:
    """The view is the box cut out and resized: no colour changes, no erasing."""
    clip = noise()
    for i in range(10):
        box = multiscale_box((90, 120), (32, 32), PRETRAIN, rng_for(0, 0, i))
        view = augment(clip, {"clip": (32, 32)}, PRETRAIN, rng_for(0, 0, i))["clip"]
        cut = clip[0, box.top : box.top + box.height, box.left : box.left + box.width]
        theirs = pillow(cut.contiguous(), (32, 32), Image.Resampling.BILINEAR)
        assert np.abs(view[:, 0].permute(1, 2, 0).numpy() - theirs).max() <= 1


# Erasing


def test_erased_boxes_have_the_areas_and_aspects() -> None:
    boxes = [box for i in range(1500) if (box := erase_box((200, 200), rng_for(0, 0, i)))]
    area = np.array([box.height * box.width / 40000 for box in boxes])
    aspect = np.array([box.height / box.width for box in boxes])
    assert len(boxes) == 1500
    assert 0.018 < area.min() < 0.025
    assert 0.32 < area.max() < 0.345
    assert 0.28 < aspect.min() < 0.33
    assert 3.0 < aspect.max() < 3.6


def test_erasing_fills_one_box_of_all_frames_with_normal_noise() -> None:
    clip = torch.full((8, 100, 100, 3), 7, dtype=torch.uint8)
    config = Augment(crop="centre", reprob=1.0)
    values = []
    for i in range(8):
        view = augment(clip, {"clip": (100, 100)}, config, rng_for(0, 0, i))["clip"]
        changed = (view != 7).any(0).any(0)
        rows, columns = changed.any(1), changed.any(0)
        assert torch.equal(changed, rows[:, None] & columns[None, :])
        inside = view[:, :, rows][:, :, :, columns].float() / 255
        assert not torch.equal(inside[:, 0], inside[:, 1])  # fresh in each frame
        values.append(inside.flatten(1))
    values = torch.cat(values, 1)
    # 0.485 + 0.229 z and so on, cut at 0 and 1.
    assert values.median(1).values == pytest.approx(torch.tensor([0.485, 0.456, 0.406]), abs=0.01)
    low, high = values.quantile(0.25, 1), values.quantile(0.75, 1)
    assert (high - low) / 1.349 == pytest.approx(torch.tensor([0.229, 0.224, 0.225]), abs=0.01)


def test_erasing_follows_its_probability() -> None:
    clip = torch.full((2, 40, 40, 3), 7, dtype=torch.uint8)
    config = Augment(crop="centre", reprob=0.25)
    erased = [
        bool((augment(clip, {"clip": (40, 40)}, config, rng_for(0, 0, i))["clip"] != 7).any())
        for i in range(400)
    ]
    assert 60 < sum(erased) < 140


# Test crops


@pytest.mark.parametrize(("height", "width"), [(90, 120), (120, 90), (100, 100), (64, 333)])
@pytest.mark.parametrize("crops", [1, 2, 3, 5])
def test_test_crops_by_the_formula(height: int, width: int, crops: int) -> None:
    clip = noise(2, height, width)
    views = spatial_views(clip, (48, 48), crops)
    assert views.shape == (crops, 3, 2, 48, 48)
    short = min(height, width)
    long = 48 * max(height, width) // short
    whole = resize(clip, (48, long) if width > height else (long, 48))
    for j in range(crops):
        start = (long - 48) // 2 if crops == 1 else floor(j * (long - 48) / (crops - 1))
        expected = (
            whole[..., start : start + 48] if width > height else whole[:, :, start:][:, :, :48]
        )
        assert torch.equal(views[j], expected)


def test_test_crops_of_a_rectangular_size() -> None:
    wide = spatial_views(places(1, 100, 200), (20, 30), 3)
    assert wide.shape == (3, 3, 1, 20, 30)
    assert [view[0, 0, 0, 0].item() // 10 for view in wide] == [0, 2, 5]  # 40 wide: from 0, 5, 10
    tall = spatial_views(places(1, 100, 100), (20, 40), 3)  # 40 x 40: the crops move down
    assert [view[1, 0, 0, 0].item() // 10 for view in tall] == [0, 2, 5]


@pytest.mark.parametrize(("height", "width"), [(90, 120), (120, 90), (100, 100), (64, 333)])
@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_test_crops_of_a_larger_short_side(
    height: int, width: int, crops: int, interpolation: Literal["bilinear", "bicubic"]
) -> None:
    """The whole is 56 pixels at its short side; crops of 48 stay in the middle of that."""
    clip = noise(2, height, width)
    spec = ClipSpec(size=(48, 48), crop_pct=48 / 56, interpolation=interpolation)
    views = views_of(clip, spec, crops)
    long = 56 * max(height, width) // min(height, width)
    wide = width >= height
    whole = resize(clip, (56, long) if wide else (long, 56), interpolation)
    for j in range(crops):
        at = (long - 48) // 2 if crops == 1 else floor(j * (long - 48) / (crops - 1))
        top, left = (4, at) if wide else (at, 4)
        assert torch.equal(views[j], whole[..., top : top + 48, left : left + 48])


def test_a_share_is_of_both_sides() -> None:
    assert views_of(noise(), ClipSpec(size=(48, 32), crop_pct=0.5)).shape == (1, 3, 3, 48, 32)


def test_the_centre_crop_is_the_only_one_of_one() -> None:
    view = augment(places(), {"clip": (45, 45)}, EVALUATE, rng_for(0, 0, 0))["clip"]
    assert torch.equal(view, spatial_views(places(), (45, 45), 1)[0])
    assert torch.equal(view, spatial_views(places(), (45, 45), 3)[1])


# Channels


def test_grey_is_pillows() -> None:
    clip = noise()
    grey = to_channels(clip, 1)
    assert grey.shape == (3, 90, 120, 1)
    for t in range(3):
        theirs = np.asarray(Image.fromarray(clip[t].numpy()).convert("L"))
        assert np.array_equal(grey[t, ..., 0].numpy(), theirs)


def test_channels_that_fit_stay() -> None:
    clip = noise()
    assert to_channels(clip, 3) is clip
    assert to_channels(clip[..., :1], 3).shape == (3, 90, 120, 3)


# Errors


def test_a_wrong_number_of_channels() -> None:
    with pytest.raises(TubeletError, match="in_chans is 4: use 3 or 1"):
        to_channels(noise(), 4)


@pytest.mark.parametrize("clip", [noise().float(), noise()[0], noise(channels=2)])
def test_what_is_no_clip(clip: Tensor) -> None:
    with pytest.raises(TubeletError, match=r"A clip is uint8 \[T,H,W,C\] with 3 channels or 1"):
        augment(clip, {"clip": (32, 32)}, PRETRAIN, rng_for(0, 0, 0))
    with pytest.raises(TubeletError, match="A clip is uint8"):
        spatial_views(clip, (32, 32), 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flip": 2.0}, "flip is a probability, and 2.0 is not within 0 to 1"),
        ({"reprob": -0.1}, "reprob is a probability"),
        ({"area": (0.0, 1.0)}, r"area is \(lowest, highest\) above 0, and \(0.0, 1.0\) is not"),
        ({"aspect": (2.0, 1.0)}, "aspect is"),
        ({"scales": ()}, "scales are above 0 and at most 1"),
        ({"scales": (1.5,)}, "scales are above 0 and at most 1"),
        ({"auto_augment": "rand-m7"}, "auto_augment is 'rand-m7', and expected is the form"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(TubeletError, match=message):
        Augment(**wrong)  # pyright: ignore[reportArgumentType]


def test_no_crops() -> None:
    with pytest.raises(TubeletError, match="crops must be at least 1"):
        spatial_views(noise(), (32, 32), 0)
