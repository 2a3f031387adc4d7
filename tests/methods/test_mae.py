"""Image MAE's runs, and what it does differently from VideoMAE."""

import dataclasses

import numpy as np
import pytest
import torch

from tubelet.backbones.vit import BASE, HUGE, LARGE, SMALL, ViT, ViTShape
from tubelet.decoders import DecoderShape
from tubelet.masks import pack
from tubelet.methods import mae
from tubelet.methods.mae import ImageMAE, image
from tubelet.shapes import ClipSpec
from tubelet.train.config import derive

TINY = ImageMAE(
    clip=ClipSpec(num_frames=1, sampling_rate=1, size=(32, 32)),
    encoder=image(ViTShape(32, 2, 2, patch=8)),
    decoder=DecoderShape(16, 1, 2),
)
SIZES = {"small": SMALL, "base": BASE, "large": LARGE, "huge": HUGE}


@pytest.mark.parametrize("name", ["base_in1k", "large_in1k", "huge_in1k"])
def test_recipes_have_the_published_values(name: str) -> None:
    """arXiv 2111.06377, Table 8 and section 4.1: lr = blr x batch / 256."""
    run = getattr(mae, name)
    derived = derive(run.train, 1_281_167)
    size = name.split("_")[0]
    assert run.encoder == dataclasses.replace(
        image(SIZES[size]), patch=14 if size == "huge" else 16
    )
    assert (run.encoder.tubelet_size, run.encoder.class_token) == (1, True)
    assert run.encoder.position == "sincos_2d"
    assert run.decoder == DecoderShape(512, 8, 16)
    assert (run.train.batch_size, run.train.warmup_epochs, run.train.epochs) == (4096, 40, 1600)
    assert (derived.lr, derived.min_lr) == pytest.approx((2.4e-3, 0.0))
    assert (run.train.betas, run.train.weight_decay) == ((0.9, 0.95), 0.05)
    assert (run.mask_ratio, run.normalise_target, run.drop_path) == (0.75, True, 0.0)
    assert (run.clip.num_frames, run.clip.size) == (1, (224, 224))
    assert (run.augment.crop, run.augment.area, run.augment.flip) == (
        *("random_resized", (0.2, 1.0), 0.5),
    )
    assert run.augment.interpolation == "bicubic"


@pytest.mark.parametrize("name", ["small_k400", "base_k400", "large_k400"])
def test_runs_on_frames_of_videos_are_said_to_be_ours(name: str) -> None:
    run = getattr(mae, name)
    assert "no published script" in run.source
    assert run.published == "none"
    assert run.encoder == image(SIZES[name.split("_")[0]])


@pytest.mark.parametrize(
    ("shape", "patch", "millions"),
    [(BASE, 16, "85.799"), (LARGE, 16, "303.302"), (HUGE, 14, "630.688")],
)
def test_parameters_of_mvds_image_teachers(shape: ViTShape, patch: int, millions: str) -> None:
    """The specification's 1.1, in millions: with the biases of keys and the table of positions.

    H sees 196 pixels, so all have a table of 14x14 rows and one for the class token.
    """
    with torch.device("meta"):
        vit = ViT(dataclasses.replace(image(shape), patch=patch), trained=(1, 224, 224))
    count = sum(p.numel() for p in vit.parameters())
    count += (shape.depth + 14 * 14 + 1) * shape.width
    assert f"{count / 1e6:.3f}" == millions


def test_a_frame_is_a_clip_of_one() -> None:
    hidden = torch.stack([TINY.draw_hidden(np.random.default_rng(i)) for i in range(2)])
    assert hidden.shape == (2, 1, 16)
    assert (hidden.sum(-1) == 12).all()
    model = TINY.model()
    terms = model(torch.rand(2, 3, 1, 32, 32), pack(hidden))
    terms["loss"][0].backward()
    assert model.backbone.class_token.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.parameters())


def test_the_decoder_predicts_every_patch_with_its_own_output() -> None:
    """A visible patch's prediction comes from its own token, not from a mask token beside it."""
    model = TINY.model().eval()
    clip = torch.rand(1, 3, 1, 32, 32)
    hidden = TINY.draw_hidden(np.random.default_rng(0))[None]
    few = pack(hidden)
    every = pack(hidden, torch.ones_like(hidden))
    full = model.predict(clip, every)["pixels"]
    at = few.asked[0, 0]
    torch.testing.assert_close(full[:, at], model.predict(clip, few)["pixels"])
    # The loss counts hidden patches alone, whichever are predicted.
    one, other = model(clip, few)["loss"], model(clip, every)["loss"]
    torch.testing.assert_close(one[0] / one[1], other[0] / other[1])
    assert float(other[1]) == 12


def test_the_target_is_normalised_over_the_patch_and_its_channels() -> None:
    target = TINY.model().branches["pixels"].target
    clip = torch.rand(1, 3, 1, 32, 32)
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    frame = (clip[0, :, 0] - mean) / std
    patch = frame[:, 8:16, 16:24].permute(1, 2, 0).flatten()  # row 1, column 2: token 6
    expected = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
    torch.testing.assert_close(target(clip)[0, 6], expected, rtol=1e-5, atol=1e-5)
    raw = dataclasses.replace(TINY, normalise_target=False).model().branches["pixels"].target
    torch.testing.assert_close(raw(clip)[0, 6], patch)


def test_the_patch_embedding_is_initialised_as_the_matrix_that_it_is() -> None:
    """Xavier's bound sqrt(6 / (in + out)), where Conv3d's own is 1 / sqrt(in)."""
    weight = TINY.model().backbone.patch_embed.proj.weight
    bound = (6 / (32 + 3 * 64)) ** 0.5
    assert 0.95 * bound < float(weight.detach().abs().max()) <= bound
