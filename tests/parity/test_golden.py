"""The reference numbers of tests/golden, through the same script that checks any other folder."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "golden"
CHECK = Path(__file__).with_name("check.py")


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECK), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_case_is_within_the_tolerance() -> None:
    cases = sorted(path.parent for path in GOLDEN.glob("*/config.json"))
    assert len(cases) >= 3
    done = run(*cases)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") >= 13


@pytest.mark.parametrize("damage", ["value", "extra"])
def test_a_difference_and_an_unknown_tensor_fail(tmp_path: Path, damage: str) -> None:
    case = shutil.copytree(GOLDEN / "videomae_pretrain", tmp_path / "case")
    io = load_file(case / "io.safetensors")
    if damage == "value":
        io["pred"][0, 0, 0] += 1e-3 * io["pred"].abs().max()
    else:
        io["grad.encoder.blocks.7.norm1.weight"] = io["loss"].clone()
    save_file(io, case / "io.safetensors")
    done = run(case)
    assert done.returncode == 1
    assert done.stdout.count("FAIL") == 1
