"""MaskFeat's named runs have the published values, its targets train, and its encoder is tuned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tubelet.backbones.mvit import MVIT_LARGE, MVIT_SMALL, MViTShape
from tubelet.backbones.vit import BASE, LARGE, ViT, ViTShape
from tubelet.data.sampling import rng_for
from tubelet.decoders import DecoderShape, Joint, Linear
from tubelet.errors import TubeletError
from tubelet.methods import maskfeat
from tubelet.methods.maskfeat import HogOptions, MaskFeat, image
from tubelet.methods.run import Run, from_dict, to_dict
from tubelet.model import Classifier
from tubelet.shapes import ClipSpec, Patch
from tubelet.targets.features import Teacher
from tubelet.teachers import connect
from tubelet.train.config import derive

SHAPE = MViTShape((1, 1, 2), (8, 16, 32), (1, 2, 4), pool_kv=4, pool_last=False)
SPEC = ClipSpec(num_frames=4, sampling_rate=2, size=(32, 32))
TINY = MaskFeat(clip=SPEC, encoder=SHAPE)

# The specification, 10.1: encoder, epochs, warm-up, (videos, base lr, end lr) of the configuration,
# gradient clipping, mask, crop area.
PRETRAINING = {
    "small_k400": (replace(MVIT_SMALL, pool_last=False), 300, 10, (32, 1e-4, 1e-6), "cube"),
    "large_k400": (replace(MVIT_LARGE, pool_last=False), 800, 10, (32, 1e-4, 1e-6), "cube"),
    "base_in1k": (image(BASE), 1600, 30, (256, 2e-4, 1e-6), "tube"),
    "large_in1k": (image(LARGE), 1600, 30, (256, 2e-4, 1e-6), "tube"),
}
# Encoder, epochs, warm-up, rates, clipping, drop path, layer decay, RandAugment, repeats, views.
FINETUNING = {
    "small_k400_finetune": (
        *(MVIT_SMALL, 100, 20, (16, 6e-4, 1e-6), 5.0, 0.1, 0.75, "rand-m7-n2-mstd0.5-inc1"),
        *(2, (10, 1)),
    ),
    "large_k400_finetune": (
        *(MVIT_LARGE, 75, 5, (16, 6e-4, 1e-5), 5.0, 0.2, 0.875, "rand-m7-n2-mstd0.5-inc1"),
        *(1, (10, 1)),
    ),
    "base_in1k_finetune": (
        *(image(BASE), 100, 20, (512, 2e-3, 1e-6), None, 0.1, 0.65, "rand-m9-n2-mstd0.5-inc1"),
        *(1, (1, 1)),
    ),
    "large_in1k_finetune": (
        *(image(LARGE), 50, 5, (256, 1e-3, 1e-6), None, 0.1, 0.75, "rand-m9-n2-mstd0.5-inc1"),
        *(1, (1, 1)),
    ),
}


def rates(run: MaskFeat | object, videos: int) -> tuple[float, float]:
    """lr and min_lr for a batch of so many videos."""
    train = run.train  # pyright: ignore[reportAttributeAccessIssue]
    derived = derive(replace(train, batch_size=videos), 10**6)
    return derived.lr, derived.min_lr


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_recipes_have_the_published_values(name: str) -> None:
    run = getattr(maskfeat, name)
    encoder, epochs, warmup, (videos, lr, end), mask = PRETRAINING[name]
    assert run.encoder == encoder
    assert (run.train.epochs, run.train.warmup_epochs) == (epochs, warmup)
    assert rates(run, videos) == pytest.approx((lr, end))
    assert (run.train.betas, run.train.weight_decay) == ((0.9, 0.999), 0.05)
    assert (run.train.clip_grad, run.drop_path) == (0.02, 0.0)
    assert (run.mask_type, run.mask_ratio) == (mask, 0.4)
    assert (run.augment.crop, run.augment.area) == ("random_resized", (0.5, 1.0))
    assert (run.augment.aspect, run.augment.flip) == ((3 / 4, 4 / 3), 0.5)
    assert (run.target, run.hog) == ("hog", HogOptions())
    video = name.endswith("k400")
    assert run.clip.num_frames == (16 if video else 1)
    assert run.augment.interpolation == ("bilinear" if video else "bicubic")
    if video:
        assert (run.clip.sampling, run.clip.sampling_rate) == ("dense_fps", 4)


@pytest.mark.parametrize("name", FINETUNING)
def test_fine_tuning_recipes_have_the_published_values(name: str) -> None:
    run = getattr(maskfeat, name)
    encoder, epochs, warmup, (videos, lr, end), clip, path, decay, auto, repeats, views = (
        FINETUNING[name]
    )
    assert run.encoder == encoder
    assert (run.train.epochs, run.train.warmup_epochs) == (epochs, warmup)
    assert rates(run, videos) == pytest.approx((lr, end))
    assert (run.train.clip_grad, run.drop_path, run.train.layer_decay) == (clip, path, decay)
    assert (run.augment.auto_augment, run.num_sample) == (auto, repeats)
    assert (run.augment.area, run.augment.reprob) == ((0.08, 1.0), 0.25)
    assert (run.mixing.mixup, run.mixing.cutmix, run.mixing.smoothing) == (0.8, 1.0, 0.1)
    assert (run.test_num_segment, run.test_num_crop) == views
    assert (run.clip.crop_pct, run.clip.size) == (224 / 256, (224, 224))
    assert (run.head_dropout, run.init_scale) == (0.0, 0.001)


def test_what_is_not_published_says_so() -> None:
    for name in ("large_k600", "large_k700", "large_k400_312_finetune", "large_k400_352_finetune"):
        assert "our values" in getattr(maskfeat, name).source
    runs = [run for run in vars(maskfeat).values() if isinstance(run, Run)]
    sizes = {run.clip.size: run.clip.num_frames for run in runs}
    assert sizes[(312, 312)] == 32
    assert sizes[(352, 352)] == 40


@pytest.mark.parametrize(
    ("size", "published", "tuned", "width", "depth"),
    [("base", 85_882_476, 86_567_656, 768, 12), ("large", 303_413_356, None, 1024, 24)],
)
def test_parameters_of_the_image_networks(
    size: str, published: int, tuned: int | None, width: int, depth: int
) -> None:
    """Published ones have biases of keys, which change nothing: `depth * width` more."""
    run = getattr(maskfeat, f"{size}_in1k")
    with torch.device("meta"):
        model = run.model()
        backbone = run.encoder.build(trained=(1, 224, 224), final_norm=False, masked=False)
        classifier = Classifier(backbone, 1000)
    assert sum(p.numel() for p in model.parameters()) == published - depth * width
    if tuned:
        assert sum(p.numel() for p in classifier.parameters()) == tuned - depth * width


# --- training ------------------------------------------------------------------------------------


def step(run: MaskFeat, teacher: Teacher | None = None) -> dict[str, Tensor]:
    """Gradients of a step on two noisy clips with their masks."""
    torch.manual_seed(0)
    model = run.model()
    if teacher is not None:
        connect(model, {run.target: teacher})
    hidden = torch.stack([run.draw_hidden(rng_for(0, 0, i)) for i in range(2)])
    total, weight = model(torch.rand(2, 3, run.clip.num_frames, 32, 32), run.pack(hidden))["loss"]
    assert weight == hidden.sum()
    (total / weight).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class PerToken(nn.Module):
    """Scores of 5 classes for each token of 2x8x8 pixels, or the best one's id."""

    def __init__(self, ids: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 5, (2, 8, 8), stride=(2, 8, 8))
        self.ids = ids

    def forward(self, x: Tensor) -> Tensor:
        scores = self.conv(x).flatten(2).transpose(1, 2)
        return scores.argmax(-1) if self.ids else scores


def teacher(ids: bool = False) -> Teacher:
    unit = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    return Teacher(PerToken(ids), width=5, patch=Patch(2, 8, 8), sees="clip", **unit)


@pytest.mark.parametrize("target", ["hog", "pixels", "features", "ids", "pseudo_labels"])
def test_every_target_reaches_the_encoder(target: str) -> None:
    taught = None if target in ("hog", "pixels") else teacher(target == "ids")
    run = replace(TINY, target=target, teacher_width=5)
    found = step(run, taught)
    assert found["backbone.mask_token"].any()
    assert found["backbone.blocks.0.attn.qkv.weight"].any()
    assert found[f"branches.{target}.decoder.head.weight"].any()


def test_a_target_of_a_teacher_needs_its_width() -> None:
    with pytest.raises(TubeletError, match="--teacher-width"):
        replace(TINY, target="ids").model()


@pytest.mark.parametrize("mask", ["cube", "tube", "frame", "random"])
@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6, 0.8])
def test_masks_of_every_kind_and_ratio(mask: str, ratio: float) -> None:
    run = replace(TINY, clip=maskfeat.CLIP, mask_type=mask, mask_ratio=ratio)
    counts = [run.draw_hidden(rng_for(0, 0, i)).float().mean().item() for i in range(20)]
    assert np.mean(counts) == pytest.approx(ratio, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_unit": (1, 3, 3)}, "3"),
        ({"mask_ratio": 1.5}, "mask_ratio 1.5"),
        ({"hog": HogOptions(cell=3)}, "cells of 1, 2, 4, 8"),
        ({"clip": replace(SPEC, size=(36, 36))}, "Nearest that fits: 4x32x32"),
    ],
)
def test_what_does_not_fit_is_an_error_at_the_start(
    changes: dict[str, object], message: str
) -> None:
    run = replace(TINY, **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TubeletError, match=message):
        run.model()
        run.narrows  # noqa: B018


def test_an_encoder_that_drops_gets_masks_of_one_size_and_a_decoder() -> None:
    run = replace(
        TINY,
        encoder=ViTShape(32, 2, 2, patch=8),
        decoder=DecoderShape(16, 1, 2),
        mask_unit=(1, 2, 2),
        mask_ratio=0.6,
    )
    counts = {int(run.draw_hidden(rng_for(0, 0, i)).sum()) for i in range(20)}
    assert counts == {round(0.6 * 32)} == {run.even}
    assert 0 < run.moved() < 8
    assert TINY.even == 0
    ragged = {int(run.mask(run.grid, rng_for(0, 0, i)).sum()) for i in range(20)}
    assert len(ragged) > 1
    assert step(run)["backbone.patch_embed.proj.weight"].any()
    with pytest.raises(TubeletError, match=r"--encoder\.hide replace"):
        replace(run, decoder=None)


def test_a_teacher_without_a_target_of_it_is_an_error() -> None:
    with pytest.raises(TubeletError, match="leave out --teacher"):
        replace(TINY, teacher="runs/fine")


def test_a_plain_transformer_replaces_hidden_tokens() -> None:
    run = replace(TINY, encoder=ViTShape(32, 2, 2, patch=8, hide="replace", class_token=True))
    model = run.model()
    assert isinstance(model.branches["hog"].decoder, Linear)
    clip = torch.rand(1, 3, 4, 32, 32)
    hidden = torch.zeros(1, 1, 32, dtype=torch.bool)
    hidden[..., :5] = True
    masks = run.pack(hidden)
    changed_clip = clip.clone()
    changed_clip[:, :, :2, :8, :40] = 0  # rows of the first hidden tokens
    tokens, other = (model.backbone(x, masks) for x in (clip, changed_clip))
    assert torch.equal(tokens.x, other.x)
    assert tokens.x.shape == (1, 32, 32)
    assert not torch.equal(model.backbone(clip).x, model.backbone(changed_clip).x)
    assert model.no_weight_decay() == set()  # as published: tokens and positions are decayed
    joint = replace(run, decoder=DecoderShape(16, 1, 2)).model()
    assert isinstance(joint.branches["hog"].decoder, Joint)


def test_learned_positions_train_and_are_resized() -> None:
    shape = image(ViTShape(32, 2, 2, patch=8))
    vit = ViT(shape, trained=(1, 32, 32))
    table = dict(vit.named_parameters())["positions.table"]
    assert table.shape == (17, 32)
    vit(torch.rand(2, 3, 1, 32, 32)).prefix.sum().backward()
    assert table.grad is not None
    assert (table.grad.abs().sum(1) > 0).all()
    assert vit(torch.rand(2, 3, 1, 48, 48)).x.shape == (2, 36, 32)
    with pytest.raises(TubeletError, match="cannot be rebuilt"):
        ViT(replace(shape, positions="rebuild"), trained=(1, 32, 32))


def test_the_whole_model_traces_to_one_graph() -> None:
    torch.manual_seed(0)
    model = TINY.model()
    masks = TINY.pack(torch.stack([TINY.draw_hidden(rng_for(0, 0, i)) for i in range(2)]))
    clip = torch.rand(2, 3, 4, 32, 32)
    expected = model(clip, masks)["loss"][0]
    torch._dynamo.reset()  # pyright: ignore[reportPrivateImportUsage]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(clip, masks)["loss"][0], expected)


def test_runs_travel_as_plain_values() -> None:
    for run in (maskfeat.small_k400, maskfeat.base_in1k, maskfeat.small_k400_finetune, TINY):
        assert from_dict(to_dict(run)) == run
