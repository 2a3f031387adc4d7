"""The pretraining task: sums and weights that add up, and nothing but the visible goes in."""

from dataclasses import replace

import distil
import numpy as np
import pytest
import torch

from tubelet import masks
from tubelet.errors import TubeletError
from tubelet.methods.mvd import Distilled
from tubelet.methods.run import changed
from tubelet.model import MaskedModel
from tubelet.shapes import Batch, Grid
from tubelet.tasks.pretrain import Pretrain


def make_batch(size: int = 4) -> Batch:
    rng = np.random.default_rng(0)
    hidden = [masks.tube(Grid(4, 4, 4), rng, mask_ratio=0.75)[None] for _ in range(size)]
    return Batch(
        views={"clip": torch.randint(0, 256, (size, 3, 8, 32, 32), dtype=torch.uint8)},
        paths=[f"{i}.mp4" for i in range(size)],
        index=torch.arange(size),
        seeds=torch.arange(size) + 100,
        masks=masks.pack(torch.stack(hidden)),
    )


def part(batch: Batch, rows: slice) -> Batch:
    assert batch.masks is not None
    return Batch(
        views={"clip": batch.clip[rows]},
        paths=batch.paths[rows],
        index=batch.index[rows],
        seeds=batch.seeds[rows],
        masks=masks.pack(batch.masks.hidden[rows]),
    )


def test_loss_is_that_of_a_slow_formula(tiny_model: MaskedModel) -> None:
    task, batch = Pretrain(tiny_model.eval()), make_batch()
    assert batch.masks is not None
    total, weight = task(batch)["loss"]
    clip = batch.clip.float() / 255
    predicted = tiny_model.predict(clip, batch.masks)["pixels"].detach()
    expected = 0.0
    for b in range(4):
        for m, at in enumerate(batch.masks.asked[b, 0].tolist()):
            t, h, w = at // 16, at // 4 % 4, at % 4
            cube = clip[b, :, 2 * t : 2 * t + 2, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
            flat = cube.permute(1, 2, 3, 0).reshape(-1, 3)  # the channel fastest
            y = (flat - flat.mean(0)) / (flat.var(0).sqrt() + 1e-6)
            expected += float((predicted[b, m] - y.flatten()).square().mean())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
    assert task.weight(batch) == float(weight) == 4 * 48


def test_sums_of_micro_batches_are_those_of_the_batch(tiny_model: MaskedModel) -> None:
    task, batch = Pretrain(tiny_model.eval()), make_batch()
    whole = task(batch)
    halves = [task(part(batch, rows)) for rows in (slice(0, 1), slice(1, 4))]
    for name, (total, weight) in whole.items():
        assert torch.allclose(total, halves[0][name][0] + halves[1][name][0], rtol=1e-5)
        assert float(weight) == float(halves[0][name][1]) + float(halves[1][name][1])


def test_without_masks_the_error_says_what_to_do(tiny_model: MaskedModel) -> None:
    task, batch = Pretrain(tiny_model), replace(make_batch(), masks=None)
    with pytest.raises(TubeletError, match="give ClipDataset a mask function"):
        task.weight(batch)


def test_it_has_no_after_step_that_would_make_the_loop_wait(tiny_model: MaskedModel) -> None:
    task = Pretrain(tiny_model)
    assert not hasattr(task, "after_step")
    assert task.evaluate() == {}


def test_averages_of_the_student_move_when_the_loop_says_so() -> None:
    task = Pretrain(distil.model())
    average = dict(task.model.branches["video"].target.network.named_parameters())
    weight = task.model.backbone.patch_embed.proj.bias
    before = average["patch_embed.proj.bias"].clone()
    with torch.no_grad():
        weight.add_(1)
    total, count = task(distil.batch([0, 1]))["loss"]
    assert torch.equal(average["patch_embed.proj.bias"], before)  # no forward moves it
    assert float(count) == task.weight(distil.batch([0, 1])) == 2 * 2 * 24 and total > 0
    task.after_step(1)
    torch.testing.assert_close(average["patch_embed.proj.bias"], before + 0.1)


def test_views_of_pixels_become_floats_and_features_stay() -> None:
    """A target that was computed before comes as the view that the teacher's target names."""
    run = changed(distil.RUN, video_teacher="given", video=Distilled(width=48))
    task, batch = Pretrain(distil.model(run).eval()), distil.batch([0, 1], run)
    computed = task(batch)
    clip = batch.clip.float() / 255
    for name, branch in task.model.branches.items():
        branch.target.view = f"features of {name}"
        batch.views[branch.target.view] = branch.target(clip)
        branch.target.teacher = None
    cached = task(batch)
    for name, (total, weight) in computed.items():
        assert torch.equal(cached[name][0], total) and torch.equal(cached[name][1], weight)
