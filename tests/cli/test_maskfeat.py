"""MaskFeat from videos to a recogniser: resumed to the bit, tuned with more pooling, on larger clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tubelet
from tubelet.backbones.mvit import MViT, MViTShape
from tubelet.errors import TubeletError
from tubelet.methods.maskfeat import MaskFeat
from tubelet.methods.run import changed
from tubelet.model import Classifier, MaskedModel
from tubelet.shapes import ClipSpec
from tubelet.train import checkpoint

TINY = MaskFeat(
    clip=ClipSpec(num_frames=4, sampling_rate=2, size=(32, 32)),
    encoder=MViTShape((1, 1, 2), (8, 16, 32), (1, 2, 4), pool_kv=4, pool_last=False),
)
QUICK = {"workers": 0, "device": "cpu", "progress": False, "batch_size": 2, "micro_batch": 2}


def test_pretraining_resumes_bit_exactly_and_is_tuned_with_more_pooling(
    world: Path, tmp_path: Path
) -> None:
    run = changed(TINY, data=world / "videos", save_every_steps=2, keep_checkpoints=9, **QUICK)
    whole = tubelet.pretrain(run, out=tmp_path / "whole", steps=4)
    halfway = tmp_path / "resumed"
    halfway.mkdir()
    for path in (whole / "config.json", whole / "metrics.jsonl"):
        (halfway / path.name).write_bytes(path.read_bytes())
    first = checkpoint.checkpoints(whole)[0]
    (halfway / first.name).mkdir()
    for path in first.iterdir():
        (halfway / first.name / path.name).write_bytes(path.read_bytes())
    tubelet.pretrain(run, out=halfway, steps=4, resume=True)
    ours, theirs = (checkpoint.load_weights(path) for path in (whole, halfway))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())

    fine = tubelet.finetune(
        weights=str(whole), data=str(world / "labelled"), out=tmp_path / "fine", steps=2, **QUICK
    )
    model = tubelet.load(fine)
    assert isinstance(model, Classifier)
    assert isinstance(model.backbone, MViT)
    assert model.backbone.grid == (2, 2, 2)  # of the pretrained one: 2x4x4
    assert "mask_token" not in dict(model.backbone.named_parameters())
    assert model(torch.rand(1, 3, 4, 32, 32)).shape == (1, 2)


def test_larger_and_longer_clips_at_fine_tuning_resize_the_tables(
    world: Path, tmp_path: Path
) -> None:
    run = changed(TINY, data=world / "videos", **QUICK)
    pretrained = tubelet.pretrain(run, out=tmp_path / "pre", steps=1)
    fine = tubelet.finetune(
        weights=str(pretrained),
        data=str(world / "labelled"),
        out=tmp_path / "fine",
        steps=1,
        size=(48, 48),
        num_frames=8,
        **QUICK,
    )
    model = tubelet.load(fine)
    assert model.backbone.trained == (8, 48, 48)
    assert dict(model.backbone.named_parameters())["blocks.0.attn.rel_pos_t"].shape[0] == 7


def test_pseudo_labels_are_what_a_fine_tuned_run_says(world: Path, tmp_path: Path) -> None:
    run = changed(TINY, data=world / "videos", target="pseudo_labels", **QUICK)
    out = tubelet.pretrain(run, out=tmp_path / "a", teacher=world / "runs/fine", steps=1)
    model = tubelet.load(out)
    assert isinstance(model, MaskedModel)
    assert model.branches["pseudo_labels"].target.width == 2  # its classes
    with pytest.raises(TubeletError, match="no classes to learn from"):
        tubelet.pretrain(run, out=tmp_path / "b", teacher=world / "runs/pre", steps=1)


def test_features_of_an_earlier_run_are_a_target(world: Path, tmp_path: Path) -> None:
    run = changed(TINY, data=world / "videos", target="features", **QUICK)
    out = tubelet.pretrain(run, out=tmp_path / "a", teacher=world / "runs/pre", steps=1)
    model = tubelet.load(out)
    assert isinstance(model, MaskedModel)
    assert model.branches["features"].target.width == 32
