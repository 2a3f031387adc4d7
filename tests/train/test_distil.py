"""Training with frozen teachers and with the student's own average as one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import distil
import pytest
import torch
from processes import run
from spread import in_two
from torch import nn

import tubelet
from tubelet.model import MaskedModel
from tubelet.stored import encoder_of
from tubelet.targets.ema import Bootstrap
from tubelet.targets.features import Features
from tubelet.train import checkpoint, parallel

AVERAGE = "branches.video.target.network."
SCRIPT = Path(distil.__file__)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL is of POSIX")
@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    step: int, tiny: ModuleType, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    task = distil.train(whole, distil.Task(bad_steps=(1,)), model_ema=0.0)
    assert task.moved == [1, 3, 4, 5, 6]  # not after the update that was skipped
    assert run(SCRIPT, "kill", parts, step) == -signal.SIGKILL
    newest = checkpoint.latest(parts)
    assert (newest and newest.name) == (None if step == 1 else "checkpoint-000002")
    distil.train(parts, distil.Task(bad_steps=(1,)), resume=True)
    assert tiny.same(tiny.contents(parts), tiny.contents(whole))
    assert any(AVERAGE in name for name in tiny.contents(whole))


def test_the_average_is_that_of_the_weights_after_applied_updates(tmp_path: Path) -> None:
    """Against the formula, from the weights that were saved after each update."""
    task = distil.train(
        tmp_path, distil.Task(bad_steps=(1, 4)), save_every_steps=1, keep_checkpoints=9
    )
    assert task.moved == [1, 3, 4, 6]
    start = distil.model().state_dict()
    expected = {n: t for n, t in start.items() if n.startswith("backbone.")}
    for step in range(1, 7):
        saved = checkpoint.load_weights(tmp_path / f"checkpoint-{step:06d}")
        if step in task.moved:
            expected = {n: 0.9 * t + 0.1 * saved[n] for n, t in expected.items()}
        for name, value in expected.items():
            own = saved[AVERAGE + name.removeprefix("backbone.")]
            torch.testing.assert_close(own, value, rtol=1e-5, atol=1e-6, msg=name)
    name = "backbone.blocks.0.attn.qkv.weight"
    assert (expected[name] - start[name]).abs().max() > 1e-3


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs that two processes trained."""
    return in_two(SCRIPT, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_end_where_one_does(
    how: str, two: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    distil.train(tmp_path, distil.Task(bad_steps=(1,)), micro_batch=4)
    expected, found = tiny.contents(tmp_path), tiny.contents(two / how)
    assert set(found) == set(expected) and expected["skipped"] == 1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for rank in (0, 1):
        told: dict[str, Any] = json.loads((two / f"told{rank}.json").read_text())[how]
        assert told["moved"] == [1, 3, 4, 5, 6]
        assert told["average is split"] is (how == "fsdp")
        assert told["teacher is split"] is False


def test_a_saved_run_loads_without_its_teachers(tmp_path: Path) -> None:
    task = distil.train(tmp_path, steps=2, model_ema=0.9)
    model = tubelet.load(tmp_path)
    assert isinstance(model, MaskedModel)
    targets: dict[str, Any] = {n: b.target for n, b in model.branches.items()}  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(targets["image"], Features) and targets["image"].teacher is None
    assert isinstance(targets["video"], Bootstrap)
    state = task.model.state_dict()
    assert not any("teacher" in name for name in state)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    vit, card = encoder_of(tmp_path)
    assert card.clip == distil.RUN.clip
    for name, value in vit.state_dict().items():
        assert torch.equal(value, state[f"backbone.{name}"])
    # The average that the loop keeps covers what is trained; what is frozen is saved as it is.
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    averaged = checkpoint.load_weights(newest / checkpoint.AVERAGE)
    assert averaged.keys() == state.keys()
    for name, value in averaged.items():
        assert torch.equal(value, state[name]) == name.startswith(AVERAGE), name


def test_wrapping_reaches_teachers_and_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    model: Any = distil.model()
    meta = parallel.Place(torch.device("meta"))
    parallel.wrap(model, meta, checkpoint_blocks=True, compile=True)
    teacher = model.branches["image"].target.teacher.module
    average = model.branches["video"].target.network
    student = [model.backbone, *(branch.decoder for branch in model.branches.values())]
    wanted = [block for part in (*student, average, teacher) for block in part.blocks]
    assert len(compiled) == len(wanted) == 10
    assert {id(block) for block in compiled} == {id(block) for block in wanted}
    assert all(p.is_meta for part in (*student, average, teacher) for p in part.parameters())
    assert [part.grad_checkpointing for part in student] == [True] * 3
    assert not average.grad_checkpointing and not teacher.grad_checkpointing


def test_recomputed_blocks_train_alike(tmp_path: Path, tiny: ModuleType) -> None:
    distil.train(tmp_path / "plain", steps=2)
    distil.train(tmp_path / "recomputed", steps=2, checkpoint_blocks=True)
    plain, again = tiny.contents(tmp_path / "plain"), tiny.contents(tmp_path / "recomputed")
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-7, msg=name)
