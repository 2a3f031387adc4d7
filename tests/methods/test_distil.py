"""The run of distillation: what it changes of fine-tuning, and which values it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from tubelet.backbones.vit import BASE, SMALL
from tubelet.data.mix import Mixing
from tubelet.errors import TubeletError
from tubelet.methods import videomae_v2
from tubelet.methods.distil import MATCHING, Distil, distilling
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import Pretraining, from_dict, to_dict
from tubelet.train.config import derive


def test_mixing_is_mixup_with_an_even_share() -> None:
    assert Distil().mixing == Mixing(mixup=1.0, cutmix=0.0, mixup_prob=1.0, smoothing=0.0)
    shares = np.random.default_rng(0).beta(MATCHING.mixup, MATCHING.mixup, 20_000)
    counts, _ = np.histogram(shares, bins=10, range=(0, 1))
    assert np.abs(counts / 2000 - 1).max() < 0.1


def test_a_fine_tuning_run_keeps_its_values() -> None:
    run = Finetune(weights="runs/s", drop_path=0.3, mixing=Mixing(mixup=0.2))
    made = distilling(run, teacher="runs/g", epochs=7)
    assert (made.weights, made.drop_path, made.teacher) == ("runs/s", 0.3, "runs/g")
    assert (made.train.epochs, made.train.lr) == (7, run.train.lr)
    assert made.mixing == MATCHING
    assert from_dict(to_dict(made)) == made


@pytest.mark.parametrize(("name", "shape"), [("small", SMALL), ("base", BASE)])
def test_the_recipes_of_the_paper(name: str, shape: object) -> None:
    run = getattr(videomae_v2, f"{name}_k710_distil")
    assert run.encoder == videomae_v2.encoder(shape)  # pyright: ignore[reportArgumentType]
    assert (run.train.epochs, run.head, run.temperature, run.label_weight) == (100, "rows", 1.0, 0)
    assert "no published script" in run.source and "unverified" in run.source
    assert derive(run.train, 658_340).lr == pytest.approx(1.4e-3)


def test_each_run_says_its_command() -> None:
    assert (Pretraining.verb, Finetune.verb, Distil.verb) == ("pretrain", "finetune", "distil")
    assert "verb" not in to_dict(Distil())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": 0.0}, "temperature is 0: expected above 0"),
        ({"label_weight": -1.0}, "label_weight is -1: expected 0 or more"),
        ({"label_weight": 0.5, "labels": False}, "leave out --no-labels"),
        ({"head_map": "maps/k400.json"}, "add --head rows"),
    ],
)
def test_wrong_values(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(TubeletError, match=says):
        Distil(**wrong)  # pyright: ignore[reportArgumentType]
