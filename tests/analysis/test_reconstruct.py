"""Honest pictures: what is hidden does not show, except in what is called an oracle."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tubelet import masks
from tubelet.analysis import picture
from tubelet.analysis.fill import compose, psnr
from tubelet.analysis.reconstruct import ReconstructConfig, branch_of, reconstruct
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.decoders import DecoderShape, Joint
from tubelet.errors import TubeletError
from tubelet.losses import mse
from tubelet.model import Branch, Card, MaskedModel
from tubelet.shapes import ClipSpec, Grid, Patch, unpatchify
from tubelet.targets.pixels import Pixels
from tubelet.verbs import run_masks

SPEC = ClipSpec(num_frames=8, sampling_rate=2, size=(32, 48))
HERE = ReconstructConfig(mask_ratio=0.75, device="cpu")


def make_model(
    spec: ClipSpec = SPEC, *, normalise: bool = True, tubelet_size: int = 2, patch: int = 8
) -> MaskedModel:
    torch.manual_seed(1)
    shape = ViTShape(width=32, depth=2, heads=2, patch=patch, tubelet_size=tubelet_size)
    vit = ViT(shape, trained=(spec.num_frames, *spec.size), in_chans=spec.in_chans)
    target = Pixels(vit.patch, spec.in_chans, normalise=normalise)
    decoder = Joint(32, target.width, DecoderShape(16, 1, 2), trained=vit.grid)
    return MaskedModel(vit, [Branch("pixels", decoder, target, mse)])


def pixels_of(model: MaskedModel) -> Pixels:
    target = branch_of(model).target
    assert isinstance(target, Pixels)
    return target


def write(path: Path, pixels: np.ndarray) -> Path:
    """uint8 [T,H,W,3] -> a lossless file, so that a test can change single pixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(10))
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "bgr0"
        for image in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """16 frames of 32x48, so that the clip is the whole file, unscaled."""
    generator = np.random.default_rng(0)
    tile = generator.integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([np.roll(tile, shift, axis=1) for shift in range(16)])


@pytest.fixture
def video(tmp_path: Path, pixels: np.ndarray) -> Path:
    return write(tmp_path / "film.mkv", pixels)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("mask_type", ["tube", "random", "frame"])
def test_hidden_pixels_do_not_change_an_honest_reconstruction(
    tmp_path: Path, pixels: np.ndarray, video: Path, mask_type, normalise: bool
) -> None:
    model = make_model(normalise=normalise)
    config = replace(HERE, mask_type=mask_type, animation="none")
    first = reconstruct(model, SPEC, video, tmp_path / "a", config)
    hidden = first.hidden.view(1, -1, 1, 1, 1, 1).expand(1, -1, 1, 2, 8, 8)
    where = unpatchify(hidden, first.grid)[0, 0].numpy()  # [8,32,48]
    other = pixels.copy()
    noise = np.random.default_rng(5).integers(0, 256, other.shape, dtype=np.uint8)
    taken = np.rint(np.array(first.seconds) * 10).astype(int)
    assert len(set(taken)) == 8
    for slot, frame in enumerate(taken):
        other[frame][where[slot]] = noise[frame][where[slot]]
    changed = write(tmp_path / "other.mkv", other)
    second = reconstruct(model, SPEC, changed, tmp_path / "b", config)
    assert torch.equal(first.hidden, second.hidden)
    assert not torch.equal(first.clip, second.clip)
    assert torch.equal(first.filled, second.filled)
    assert torch.equal(first.masked, second.masked)


def test_the_oracle_does_look(tmp_path: Path, video: Path) -> None:
    model = make_model()
    honest = reconstruct(model, SPEC, video, tmp_path, HERE)
    oracle = reconstruct(model, SPEC, video, tmp_path, replace(HERE, oracle=True))
    assert oracle.score > honest.score + 1
    assert not torch.equal(honest.filled, oracle.filled)
    assert honest.strip != oracle.strip
    assert "oracle" in oracle.strip.name
    assert oracle.animation is not None
    assert "oracle" in oracle.animation.name
    alarm = tuple(bytes.fromhex(picture.ALARM.removeprefix("#")))

    def alarming(path: Path) -> int:
        return int((np.asarray(Image.open(path).convert("RGB")) == alarm).all(-1).sum())

    assert alarming(oracle.strip) > 500
    assert alarming(honest.strip) == 0


def test_a_perfect_prediction_gives_the_clip_back(pixels: np.ndarray) -> None:
    model = make_model()
    target = pixels_of(model)
    clip = torch.from_numpy(pixels[:8]).permute(3, 0, 1, 2)[None].float() / 255
    hidden = masks.random(Grid(4, 4, 6), np.random.default_rng(0), mask_ratio=0.5)
    chosen = masks.pack(hidden[None, None])
    truth = target.cubes(target(clip, chosen.asked[:, 0]))
    assert torch.allclose(compose(target, clip, chosen, truth, oracle=True), clip, atol=1e-5)
    raw = Pixels(target.patch, normalise=False)
    truth = raw.cubes(raw(clip, chosen.asked[:, 0]))
    assert torch.equal(compose(raw, clip, chosen, truth), clip)


@pytest.mark.parametrize("normalise", [True, False])
def test_standardised_targets_get_their_colours_back(pixels: np.ndarray, normalise: bool) -> None:
    """Image MAE's pixels are standardised by ImageNet's mean and std first."""
    target = Pixels(
        Patch(1, 8, 8),
        normalise=normalise,
        jointly=True,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    clip = torch.from_numpy(pixels[:1]).permute(3, 0, 1, 2)[None].float() / 255
    hidden = masks.random(Grid(1, 4, 6), np.random.default_rng(0), mask_ratio=0.5)
    chosen = masks.pack(hidden[None, None])
    truth = target.cubes(target(clip, chosen.asked[:, 0]))
    made = compose(target, clip, chosen, truth, oracle=normalise)
    assert torch.allclose(made, clip, atol=1e-5)


def test_colour_and_contrast_that_are_the_same_everywhere_are_found() -> None:
    target = pixels_of(make_model())
    board = (torch.arange(32)[:, None] + torch.arange(48)).remainder(2).float()
    clip = torch.stack([0.2 + 0.3 * board, 0.9 - 0.1 * board, 0.5 * board])
    clip = clip[None, :, None].expand(1, 3, 8, 32, 48)
    hidden = masks.tube(Grid(4, 4, 6), np.random.default_rng(0), mask_ratio=0.9)
    chosen = masks.pack(hidden[None, None])
    truth = target.cubes(target(clip, chosen.asked[:, 0]))
    assert torch.allclose(compose(target, clip, chosen, truth), clip, atol=1e-5)


def test_psnr_counts_only_where_asked() -> None:
    true, made = torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 4, 4)
    made[:, 0] = 0.1
    where = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    where[:, 0] = True
    assert psnr(made, true, where) == pytest.approx(20.0, abs=1e-4)
    assert psnr(true, true, where) == float("inf")


@pytest.mark.parametrize(
    ("spec", "tubelet_size", "patch"),
    [
        (ClipSpec(num_frames=4, size=(64, 32)), 1, 16),
        (ClipSpec(num_frames=6, sampling="uniform", size=(24, 40)), 3, 8),
        (
            ClipSpec(num_frames=4, sampling="seconds", seconds=1.0, size=(256, 128), in_chans=1),
            2,
            16,
        ),
    ],
)
def test_any_size_and_grid(
    tmp_path: Path, video: Path, spec: ClipSpec, tubelet_size: int, patch: int
) -> None:
    model = make_model(spec, tubelet_size=tubelet_size, patch=patch)
    made = reconstruct(model, spec, video, tmp_path / "new" / "out", HERE, name="tiny")
    assert made.filled.shape == (spec.in_chans, spec.num_frames, *spec.size)
    assert Image.open(made.strip).size[0] > 300
    assert made.animation is not None
    with Image.open(made.animation) as moving:
        assert getattr(moving, "n_frames", 1) == spec.num_frames
    visible = ~made.hidden
    assert 0 < int(visible.sum()) < made.grid.size


def test_the_animation_keeps_the_pace_of_the_video(tmp_path: Path, video: Path) -> None:
    made = reconstruct(make_model(), SPEC, video, tmp_path, HERE)
    assert made.animation is not None
    with Image.open(made.animation) as moving:
        assert moving.info["duration"] == 200  # every second frame of 10 a second


def test_the_seed_draws_the_mask_and_the_start_moves_the_clip(
    tmp_path: Path, pixels: np.ndarray
) -> None:
    video = write(tmp_path / "twice.mkv", np.concatenate([pixels, pixels]))
    model = make_model()
    first = reconstruct(model, SPEC, video, tmp_path, HERE)
    again = reconstruct(model, SPEC, video, tmp_path, HERE)
    assert torch.equal(first.filled, again.filled)
    other = reconstruct(model, SPEC, video, tmp_path, replace(HERE, seed=1))
    assert not torch.equal(first.hidden, other.hidden)
    late = reconstruct(model, SPEC, video, tmp_path, replace(HERE, start_seconds=1.2))
    assert late.seconds[0] == pytest.approx(1.2)
    with pytest.raises(TubeletError, match=r"lasts 3\.20 s"):
        reconstruct(model, SPEC, video, tmp_path, replace(HERE, start_seconds=9.0))


def test_a_run_s_own_mask_function_is_used(tmp_path: Path, video: Path) -> None:
    def checkered(grid: Grid, rng: np.random.Generator) -> torch.Tensor:
        return torch.arange(grid.size) % 2 == 0

    made = reconstruct(make_model(), SPEC, video, tmp_path, HERE, mask=checkered)
    assert made.hidden.tolist() == [n % 2 == 0 for n in range(made.grid.size)]


def test_what_cannot_be_is_said(tmp_path: Path, video: Path) -> None:
    raw = make_model(normalise=False)
    with pytest.raises(TubeletError, match="predicts raw pixels"):
        reconstruct(raw, SPEC, video, tmp_path, replace(HERE, oracle=True))
    with pytest.raises(TubeletError, match=r"no branch 'hog' to look at\. It has: pixels\."):
        reconstruct(raw, SPEC, video, tmp_path, replace(HERE, branch="hog"))
    with pytest.raises(TubeletError, match="comes without one"):
        reconstruct(raw, SPEC, video, tmp_path, replace(HERE, mask_type="run"))
    with pytest.raises(TubeletError, match=r"no\.mp4"):
        reconstruct(raw, SPEC, tmp_path / "no.mp4", tmp_path, HERE)
    (tmp_path / "file").write_text("")
    with pytest.raises(TubeletError, match="cannot be written"):
        reconstruct(raw, SPEC, video, tmp_path / "file", HERE)


def test_a_model_that_was_shown_whole_clips_has_no_masks_to_draw() -> None:
    config = run_masks(Card(run={"mask_type": "random", "mask_ratio": 0.5}))
    assert (config.mask_type, config.mask_ratio) == ("run", 0.5)
    assert run_masks(Card()) == ReconstructConfig()
    with pytest.raises(
        TubeletError, match=r"shown whole clips .*Expected one pretrained with masks"
    ):
        run_masks(Card(run={"mask_type": "none", "mask_ratio": 0.9}))


def test_the_model_stays_in_its_mode(tmp_path: Path, video: Path) -> None:
    model = make_model().train()
    reconstruct(model, SPEC, video, tmp_path, replace(HERE, animation="none"))
    assert model.training
