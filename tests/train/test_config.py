"""Values that follow from others, and the settings that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tubelet.errors import TubeletError
from tubelet.train.config import TrainConfig, derive


def test_published_recipe() -> None:
    # VideoMAE-B on Kinetics-400 (240 436 videos): 800 epochs at 2048 on 64 GPUs of 32.
    derived = derive(TrainConfig(batch_size=2048, micro_batch=32), videos=240_436, world=64)
    assert derived.steps_per_epoch == 117
    assert (derived.total_steps, derived.warmup_steps) == (93_600, 4_680)
    assert derived.lr == pytest.approx(1.2e-3) and derived.min_lr == pytest.approx(8e-5)
    assert (derived.micro_batch, derived.accumulate, derived.world) == (32, 1, 64)
    assert derived.save_every_steps == 20 * 117
    assert derived.eval_every_steps == derived.total_steps
    assert "lr 0.0012 = 0.00015 x 2048 / 256" in derived.rules
    assert "total_steps 93600 = 800 epochs x 117" in derived.rules


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "world", "micro", "accumulate"),
    [(256, 8, 1, 8, 32), (48, 32, 1, 24, 2), (14, 8, 2, 7, 1), (13, 8, 1, 1, 13), (4, 8, 1, 4, 1)],
)
def test_micro_batches_divide_the_batch(
    batch_size: int, micro_batch: int, world: int, micro: int, accumulate: int
) -> None:
    config = TrainConfig(batch_size=batch_size, micro_batch=micro_batch)
    derived = derive(config, 1000, world)
    assert (derived.micro_batch, derived.accumulate) == (micro, accumulate)
    assert micro * accumulate * world == batch_size
    assert any(f"{micro} videos per forward" in rule for rule in derived.rules)


def test_steps_override_epochs_and_shorten_the_warm_up() -> None:
    config = TrainConfig(steps=200, batch_size=6, save_every_steps=7, eval_every_epochs=0.5)
    derived = derive(config, 25)
    assert (derived.total_steps, derived.warmup_steps) == (200, 10)  # 200 * 40 / 800
    assert (derived.save_every_steps, derived.eval_every_steps) == (7, 2)
    assert any("as given" in rule for rule in derived.rules)


@pytest.mark.parametrize(
    ("changes", "videos", "world", "said"),
    [
        ({"batch_size": 2048}, 6, 1, "6 videos, fewer than one batch of 2048: pass --batch-size 6"),
        ({}, 0, 1, "no videos"),
        ({"batch_size": 10}, 100, 4, "--batch-size 8"),
        ({"batch_size": 2}, 100, 4, "--batch-size 4"),
        ({"epochs": 30}, 1000, 1, "warmup_epochs 40: at most epochs 30"),
        ({"steps": 0}, 1000, 1, "steps 0"),
        ({"micro_batch": 0}, 1000, 1, "micro_batch 0"),
        ({"lr": -1.0}, 1000, 1, "lr -1.0"),
        ({"lr": float("nan")}, 1000, 1, "lr nan"),
        ({"layer_decay": 1.5}, 1000, 1, "layer_decay 1.5"),
        ({"model_ema": 1.0}, 1000, 1, "model_ema 1.0"),
        ({"betas": (0.9, 1.0)}, 1000, 1, "betas"),
        ({"clip_grad": 0.0}, 1000, 1, "clip_grad 0.0"),
        ({"save_every_epochs": 0}, 1000, 1, "save_every_epochs 0"),
        ({"eval_every_epochs": 0}, 1000, 1, "eval_every_epochs 0"),
    ],
)
def test_refused(changes: dict[str, Any], videos: int, world: int, said: str) -> None:
    with pytest.raises(TubeletError) as error:
        derive(TrainConfig(**changes), videos, world)
    assert said in str(error.value)
