"""RandAugment on clips: each operation against Pillow's, and the draw against its description."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from tubelet.data import randaugment
from tubelet.data.randaugment import OPERATIONS, RandAugment, rand_augment, warp
from tubelet.data.sampling import rng_for
from tubelet.errors import TubeletError

RECIPE = RandAugment.parse("rand-m7-n4-mstd0.5-inc1")
Picture = Image.Image


def clip_of(channels: int = 3, height: int = 45, width: int = 61) -> Tensor:
    """uint8 [2,H,W,C]: low-pass noise over a ramp; the frames differ."""
    rng = np.random.default_rng(0)
    small = rng.integers(20, 200, (2, 9, 12, channels), dtype=np.uint8)
    big = [
        Image.fromarray(np.squeeze(f)).resize((width, height), Image.Resampling.BICUBIC)
        for f in small
    ]
    frames = np.stack([np.asarray(f).reshape(height, width, channels) for f in big])
    return torch.from_numpy(frames + np.arange(2, dtype=np.uint8)[:, None, None, None] * 30)


def affine(picture: Picture, matrix: tuple[float, ...]) -> Picture:
    grey = 128 if picture.mode == "L" else (128,) * 3
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=grey
    )


def turned(picture: Picture, degrees: float) -> Picture:
    grey = 128 if picture.mode == "L" else (128,) * 3
    return picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=grey)


def solarize_add(picture: Picture, amount: int) -> Picture:
    table = [min(255, i + amount) if i < 128 else i for i in range(256)]
    return picture.point(table * len(picture.getbands()))


# What Pillow does at strength s of 0 to 1 with a sign: the "increasing" strengths.
PILLOW: dict[str, Callable[[Picture, float, float], Picture]] = {
    "AutoContrast": lambda p, s, sign: ImageOps.autocontrast(p),
    "Equalize": lambda p, s, sign: ImageOps.equalize(p),
    "Invert": lambda p, s, sign: ImageOps.invert(p),
    "Rotate": lambda p, s, sign: turned(p, 30 * s * sign),
    "Posterize": lambda p, s, sign: ImageOps.posterize(p, max(1, 4 - int(s * 4))),
    "Solarize": lambda p, s, sign: ImageOps.solarize(p, 256 - int(s * 256)),
    "SolarizeAdd": lambda p, s, sign: solarize_add(p, int(s * 110)),
    "Color": lambda p, s, sign: ImageEnhance.Color(p).enhance(max(0.1, 1 + 0.9 * s * sign)),
    "Contrast": lambda p, s, sign: ImageEnhance.Contrast(p).enhance(max(0.1, 1 + 0.9 * s * sign)),
    "Brightness": lambda p, s, sign: ImageEnhance.Brightness(p).enhance(
        max(0.1, 1 + 0.9 * s * sign)
    ),
    "Sharpness": lambda p, s, sign: ImageEnhance.Sharpness(p).enhance(max(0.1, 1 + 0.9 * s * sign)),
    "ShearX": lambda p, s, sign: affine(p, (1, 0.3 * s * sign, 0, 0, 1, 0)),
    "ShearY": lambda p, s, sign: affine(p, (1, 0, 0, 0.3 * s * sign, 1, 0)),
    "TranslateX": lambda p, s, sign: affine(p, (1, 0, 0.45 * s * sign * p.width, 0, 1, 0)),
    "TranslateY": lambda p, s, sign: affine(p, (1, 0, 0, 0, 1, 0.45 * s * sign * p.height)),
}


def by_pillow(clip: Tensor, change: Callable[[Picture], Picture]) -> np.ndarray:
    frames = [Image.fromarray(np.squeeze(frame)) for frame in clip.numpy()]
    return np.stack([np.asarray(change(frame)) for frame in frames]).reshape(clip.shape)


def test_the_fifteen_published_operations() -> None:
    assert set(OPERATIONS) == set(PILLOW)
    assert len(OPERATIONS) == 15


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(("strength", "sign"), [(0.0, 1.0), (0.7, 1.0), (0.7, -1.0), (1.0, -1.0)])
def test_an_operation_is_pillows(name: str, channels: int, strength: float, sign: float) -> None:
    clip = clip_of(channels)
    before = clip.clone()
    ours = OPERATIONS[name](clip, strength, sign)
    theirs = by_pillow(clip, lambda picture: PILLOW[name](picture, strength, sign))
    assert torch.equal(clip, before)
    assert ours.dtype == torch.uint8
    off = np.abs(ours.numpy().astype(int) - theirs)
    # Warps add up the same 16 products in another order before they cut off the fraction.
    warps = name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
    assert off.max() <= (1 if warps else 0)
    assert (off > 0).mean() < 0.03


def test_operations_grow_with_the_strength() -> None:
    clip = clip_of()
    fixed = {"AutoContrast", "Equalize", "Invert"}
    for name, operation in OPERATIONS.items():
        if name.startswith("Translate"):  # what comes from further away need not differ more
            continue
        changes = [(operation(clip, s, 1.0).float() - clip).abs().mean() for s in (0.2, 0.6, 1.0)]
        assert (changes[0] == changes[2]) == (name in fixed), name
        assert changes[0] <= changes[1] <= changes[2], name


def test_a_warp_in_small_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, matrix = clip_of(), (0.9, 0.2, -3.3, -0.1, 1.1, 2.0)
    whole = warp(clip, matrix)
    monkeypatch.setattr(randaugment, "_CHUNK", 45 * 61 * 2)
    assert torch.equal(warp(clip, matrix), whole)
    theirs = by_pillow(clip, lambda picture: affine(picture, matrix))
    assert np.abs(whole.numpy().astype(int) - theirs).max() <= 1


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """Replaces the operations by ones that note how they were called."""
    calls: list[tuple[str, float, float]] = []

    def note(name: str) -> Any:
        def operation(clip: Tensor, strength: float, sign: float) -> Tensor:
            calls.append((name, strength, sign))
            return clip

        return operation

    for name in list(OPERATIONS):
        monkeypatch.setitem(OPERATIONS, name, note(name))
    return calls


def test_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four operations of fifteen with replacement, each with probability a half; N(7, 0.5)."""
    calls, clip = recorded(monkeypatch), clip_of()
    counts = []
    for i in range(2000):
        before = len(calls)
        rand_augment(clip, RECIPE, rng_for(0, 0, i))
        counts.append(len(calls) - before)
    assert np.bincount(counts, minlength=5) / 2000 == pytest.approx(
        np.array([1, 4, 6, 4, 1]) / 16, abs=0.04
    )
    names, strengths, signs = zip(*calls, strict=True)
    shares = [names.count(name) / len(names) for name in OPERATIONS]
    assert max(abs(share - 1 / 15) for share in shares) < 0.02
    assert np.mean(strengths) == pytest.approx(0.7, abs=0.01)
    assert np.std(strengths) == pytest.approx(0.05, abs=0.005)
    assert np.mean(signs) == pytest.approx(0, abs=0.06)


def test_the_magnitude_stays_within_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    for i in range(200):
        rand_augment(clip_of(), RandAugment(9.5, 4, 5.0), rng_for(0, 0, i))
    strengths = [strength for _, strength, _ in calls]
    assert min(strengths) >= 0
    assert max(strengths) == 1


def test_all_frames_get_the_same() -> None:
    clip = clip_of()[:1].expand(3, -1, -1, -1)
    changed = 0
    for i in range(30):
        out = rand_augment(clip, RECIPE, rng_for(0, 0, i))
        assert out.shape == clip.shape
        assert torch.equal(out[0], out[1])
        assert torch.equal(out[0], out[2])
        changed += not torch.equal(out, clip)
    assert changed > 15


def test_the_notation_of_recipes() -> None:
    assert RandAugment(7.0, 4, 0.5) == RECIPE
    assert RandAugment.parse("rand-m9-n2-inc1") == RandAugment(9.0, 2, 0.0)


@pytest.mark.parametrize("text", ["rand", "rand-m7-n4-mstd0.5", "rand-m7..5-n4-inc1", "augmix-m3"])
def test_another_notation_is_refused(text: str) -> None:
    with pytest.raises(TubeletError, match=r"expected is the form 'rand-m7-n4-mstd0\.5-inc1'"):
        RandAugment.parse(text)
