"""Every odd, damaged or hostile file gives the right model with its report, or one clear error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hostile
import pytest
import torch
from hostile import CASES, Hostile, loaded, said
from hostile_files import World

from tubelet.errors import TubeletError

RIGHT = [case for case in CASES if case.right]
WRONG = [case for case in CASES if not case.right]


def names(cases: list[Hostile]) -> list[str]:
    return [case.name for case in cases]


def test_the_list_is_long_and_names_differ() -> None:
    assert len(RIGHT) >= 20
    assert len(WRONG) >= 40
    assert len(set(names(CASES))) == len(CASES)


@pytest.mark.parametrize("case", RIGHT, ids=names(RIGHT))
def test_right_model_with_its_report(case: Hostile, tmp_path: Path) -> None:
    world, model = loaded(case, tmp_path)
    assert not isinstance(model, Exception), model
    assert re.search(case.says, said(model)), said(model)
    assert not model.report.missing
    source = {n: case.stored(v) for n, v in world.model.state_dict().items()}
    found = model.state_dict()
    assert list(found) == list(source)
    for name, value in found.items():  # none was left as it was made
        assert torch.equal(value, source[name]), name
    world.model.load_state_dict(source)
    clip = torch.rand(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.forward_features(clip)
        assert torch.equal(features, world.model.eval().forward_features(clip))


@pytest.mark.parametrize("case", WRONG, ids=names(WRONG))
def test_one_clear_error_and_nothing_is_run(case: Hostile, tmp_path: Path) -> None:
    world, error = loaded(case, tmp_path)
    assert isinstance(error, TubeletError), error
    assert re.search(case.says, str(error), re.DOTALL), str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 600 + 2 * len(str(tmp_path))
    assert not world.canary.exists()


def test_the_canary_would_sing(tmp_path: Path) -> None:
    """What runs commands here does run them when it is opened with trust."""
    world = World(tmp_path)
    torch.load(world.save(world.evil()), weights_only=False)
    assert world.canary.exists()


@pytest.mark.slow
def test_a_key_of_many_levels_would_crash(tmp_path: Path) -> None:
    """So that the walk before is no mere repetition of what torch checks."""
    case = next(case for case in CASES if "levels" in case.name)
    path = case.make(World(tmp_path))
    code = f"import torch; torch.load({str(path)!r}, weights_only=True)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ran.returncode < 0  # a signal


def test_no_memory_is_taken_for_what_a_file_claims(tmp_path: Path) -> None:
    """In a process that could have a GiB: little more than the steps of the longest pickle take."""
    bombs = [case for case in CASES if case.bomb]
    folders = [tmp_path / str(at) for at in range(len(bombs) + 1)]
    for folder in folders:
        folder.mkdir()
    good = World(folders[0])
    paths = [good.save(good.state)]
    paths += [c.make(World(f)) for c, f in zip(bombs, folders[1:], strict=True)]
    command = [sys.executable, hostile.__file__, "bombs", *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    for case, told in zip(bombs, found, strict=True):
        assert re.search(case.says, told["said"]), told
        assert told["MB"] < 150, told
