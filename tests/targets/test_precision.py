"""Teachers in bf16, and that nothing computed for inference gets into training."""

from __future__ import annotations

from typing import Any

import distil
import pytest
import torch
from torch import Tensor

from tubelet.methods.mvd import Distilled
from tubelet.methods.run import changed
from tubelet.shapes import Grid, Patch
from tubelet.targets import features as features_module
from tubelet.targets.features import Features, Precision, Teacher

GIVEN = {"image": distil.image_teacher, "video": distil.video_teacher}


def features(teacher: Teacher, precision: Precision, **options: Any) -> Features:
    target = Features(48, patch=Patch(2, 4, 4), grid=Grid(2, 4, 4), precision=precision, **options)
    target.connect(teacher)
    return target


@pytest.mark.parametrize("name", GIVEN)
def test_bf16_features_are_close_to_float32_ones(name: str) -> None:
    clip = torch.rand(2, 3, 4, 16, 16)
    exact = features(GIVEN[name](), "float32")(clip)
    low = features(GIVEN[name](), "bf16")
    dtypes: list[torch.dtype] = []
    network = low.teacher.module if low.teacher else None
    assert network is not None
    network.blocks[0].mlp.fc1.register_forward_hook(
        lambda module, args, output: dtypes.append(output.dtype)
    )
    found = low(clip)
    assert dtypes == [torch.bfloat16]
    assert network.blocks[0].mlp.fc1.weight.dtype is torch.bfloat16  # made so once
    assert network.blocks[0].norm1.weight.dtype is torch.float32
    assert found.dtype is torch.float32 and not torch.equal(found, exact)
    # 8 bits of mantissa, two blocks: about 2^-8 of the features' size.
    assert (found - exact).abs().max() < 0.03 * exact.abs().max()
    assert torch.equal(features(GIVEN[name](), "auto")(clip), exact)  # on a CPU


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("asked", [None, torch.tensor([[3, 31], [0, 7]])])
@pytest.mark.parametrize("options", [{}, {"norm_feature": True}, {"size": (24, 24)}], ids=str)
def test_targets_are_ordinary_tensors(
    options: dict[str, Any], asked: Tensor | None, precision: Precision
) -> None:
    """A tensor of inference mode may not be saved for a backward pass."""
    target = features(distil.video_teacher(), precision, **options)
    with torch.no_grad():
        y = target(torch.rand(2, 3, 4, *options.get("size", (16, 16))), asked)
    assert not y.is_inference() and y.dtype is torch.float32 and not y.requires_grad
    weight = torch.randn(48, requires_grad=True)
    (weight * y).square().sum().backward()
    assert weight.grad is not None and weight.grad.isfinite().all()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("loss", ["smooth_l1", "cosine"])
def test_a_step_trains_with_teachers_of_both_precisions(loss: Any, autocast: bool) -> None:
    run = changed(
        distil.RUN,
        video_teacher="given",
        image=Distilled(width=48, loss=loss, precision="bf16"),
        video=Distilled(width=48, loss=loss, precision="float32", norm_feature=True),
    )
    model, batch = distil.model(run).train(), distil.batch([0, 1], run)
    assert batch.masks is not None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total, weight = model(batch.clip.float() / 255, batch.masks, batch.seeds)["loss"]
    assert total.dtype is torch.float32
    (total / weight).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype is torch.float32


def test_large_clips_go_through_the_teacher_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, target = torch.rand(5, 3, 4, 16, 16), features(distil.video_teacher(), "float32")
    assert target.teacher is not None
    seen: list[int] = []
    target.teacher.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    together = target(clip)
    for clips in (2, 0.5):  # of 32 tokens, 4 * 48 numbers of 4 bytes each
        monkeypatch.setattr(features_module, "BUFFER", int(clips * 32 * 4 * 48 * 4))
        torch.testing.assert_close(target(clip), together)
    assert seen == [5, 2, 2, 1, 1, 1, 1, 1, 1]
