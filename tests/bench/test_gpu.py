"""The benchmark of GPUs, as far as a CPU can run it."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tubelet.bench.turns import Row, Took
from tubelet.errors import TubeletError

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("gpu")


@pytest.mark.parametrize("name", ["videomae-b", "v2-l", "mvd-b", "maskfeat-s"])
def test_turns_are_updates_of_the_loop(gpu: Any, name: str) -> None:
    step = gpu.made(name, 2, False, "cpu", True)
    losses = [step() for _ in range(8)]
    assert math.isfinite(losses[0]) and losses[-1] < losses[0]


def options(**changes: Any) -> argparse.Namespace:
    values = {"quick": False, "eager": False, "seconds": 450.0, "device": "cpu"}
    return argparse.Namespace(**(values | changes))


def fake(took: Callable[[Row], Took]) -> Callable[..., dict[str, Took]]:
    def in_turns(rows: Sequence[Row], turns: int) -> dict[str, Took]:
        return {row.name: took(row) for row in rows}

    return in_turns


def test_half_of_the_clips_where_memory_does_not_suffice(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def took(row: Row) -> Took:
        _, clips, compiled, *_ = row.make.args  # pyright: ignore[reportFunctionMemberAccess]
        if clips > 16:
            raise TubeletError("The row failed:\ntorch.OutOfMemoryError: CUDA out of memory.")
        flops = 1 if compiled else clips * gpu.UPDATES * 10**12
        return Took((0.5, 0.4, 2.0), (4e14, 5e14, 5e14), flops, 10.0, 1.25)

    monkeypatch.setattr(gpu, "in_turns", fake(took))
    eager, compiled = gpu.lines(["videomae-b"], options())
    assert (eager.clips, compiled.clips, compiled.compiled) == (16, 16, True)
    assert eager.clips_per_second == 16 * gpu.UPDATES / 0.5
    assert eager.tflops == pytest.approx(160.0)
    assert eager.mfu == pytest.approx(160 / 500)
    assert compiled.mfu == pytest.approx(eager.mfu)  # the operations are those that were counted
    assert "0.32" in gpu.shown(eager) and "160.0" in gpu.shown(eager)


def test_a_row_that_fails_is_a_line(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def took(row: Row) -> Took:
        raise TubeletError("The row failed:\nRuntimeError: no such kernel")

    monkeypatch.setattr(gpu, "in_turns", fake(took))
    (line,) = gpu.lines(["mvd-b"], options(eager=True))
    assert "RuntimeError: no such kernel" in gpu.shown(line)


def test_no_compiled_row_begins_that_ends_too_late(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 seconds a row: eight rows, and those compiled ones of which twice as much is left."""
    now = [0.0]

    def took(row: Row) -> Took:
        now[0] += 30.0
        return Took((1.0,), (1e12,), 10**12, 1.0, 1.0)

    monkeypatch.setattr(gpu, "in_turns", fake(took))
    found = list(gpu.lines(list(gpu.CASES), options(), clock=lambda: now[0]))
    assert [line.name for line in found[:8]] == list(gpu.CASES)
    assert sum(line.compiled for line in found) == 6
    assert now[0] <= 450.0


def test_one_command(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    wanted = ["--quick", "--device", "cpu", "--eager", "--only", "v2-b", "--out", str(out)]
    done = subprocess.run(
        ["sh", str(FOLDER / "gpu.sh"), *wanted],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["name"], row["clips"], row["failed"]) == ("v2-b", 2, "")
    assert row["mfu"] > 0 and row["clips_per_second"] > 0
    assert "v2-b        eager" in done.stdout
