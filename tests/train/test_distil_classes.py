"""Training by a classifier's answers: in several processes, and gone on with."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import classes
import pytest
import torch

import tubelet
from tubelet.model import Classifier
from tubelet.train import checkpoint


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs that two processes trained."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, classes.__file__, "spread", folder],
            env=os.environ | world | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    return folder


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
