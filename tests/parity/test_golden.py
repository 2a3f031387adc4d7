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
    assert len(cases) >= 7
    done = run(*cases)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") >= 44


@pytest.mark.parametrize(
    ("case", "file", "table"),
    [
        ("mvd_pretrain", "weights", "pos_embed_vid"),
        ("mvd_pretrain", "image_teacher", "pos_embed"),
        ("image_mae_pretrain", "weights", "decoder_pos_embed"),
    ],
)
def test_a_position_table_that_is_not_ours_fails(
    tmp_path: Path, case: str, file: str, table: str
) -> None:
    assert "not loaded, equal to ours: pos_embed" in run(GOLDEN / case).stdout
    copy = shutil.copytree(GOLDEN / case, tmp_path / "case")
    weights = load_file(copy / f"{file}.safetensors")
    weights[table][0, 3, 5] += 1e-3
    save_file(weights, copy / f"{file}.safetensors")
    done = run(copy)
    assert done.returncode == 1
    assert f"{table} is not the fixed one" in done.stderr


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
