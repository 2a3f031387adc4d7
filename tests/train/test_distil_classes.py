"""Training by a classifier's answers: in several processes, and gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import classes
import pytest
import torch
from spread import in_two

import tubelet
from tubelet.model import Classifier
from tubelet.train import checkpoint


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs that two processes trained."""
    return in_two(classes.__file__, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_end_where_one_does(
    how: str, two: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    classes.train(tmp_path)
    expected, found = tiny.contents(tmp_path), tiny.contents(two / how)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_a_run_goes_on_to_the_same_end_and_loads_without_its_teacher(
    tiny: ModuleType, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    task = classes.train(whole)
    classes.train(parts)
    newest = checkpoint.latest(parts)
    assert newest is not None and newest.name == "checkpoint-000004"
    shutil.rmtree(newest)
    classes.train(parts, resume=True)
    assert tiny.same(tiny.contents(parts), tiny.contents(whole))
    model = tubelet.load(whole)
    assert isinstance(model, Classifier)
    assert model.card.classes == ("a", "b", "c")
    assert not any("teacher" in name for name in tiny.contents(whole))
    start = classes.task().model.state_dict()
    for name, value in task.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
        assert not torch.equal(start[name], value), name
