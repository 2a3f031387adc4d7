"""The benchmark of a step: all that it compares compute the same loss."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tubelet.backbones.vit import ViTShape
from tubelet.decoders import DecoderShape
from tubelet.methods.run import changed
from tubelet.methods.videomae import base_k400

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("step")


def test_all_rows_take_the_same_steps(bench: Any) -> None:
    """Three updates: the losses before each are equal, so the gradients and AdamW are too."""
    torch.manual_seed(0)
    run = changed(
        base_k400,
        clip=replace(base_k400.clip, num_frames=8, size=(32, 32)),
        encoder=ViTShape(48, 2, 3, patch=8),
        decoder=DecoderShape(32, 2, 2),
    )
    losses = {}
    for row in bench.ROWS:
        step = bench.made(row, run, 2, False)
        losses[row] = [step() for _ in range(3)]
    assert losses["ours"][2] < losses["ours"][0]
    for row in ("hf", "plain"):
        assert losses[row] == pytest.approx(losses["ours"], rel=1e-5)
