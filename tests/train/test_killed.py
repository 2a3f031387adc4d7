"""Runs that are killed with SIGKILL, also amid a save, and go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them")
def test_killed_and_resumed_runs_end_as_uninterrupted_ones(tmp_path: Path, script: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, "kill", tmp_path], check=True, env=environment)
    result = json.loads((tmp_path / "result.json").read_text())
    # Two saves of 3 files each, besides config.json: so many touches of the disk, and 10 moments.
    assert result["points"] >= 40
    assert result["killed"] >= result["points"] - 2  # a call that fails has no "after"
    assert len(result["verdicts"]) == result["points"] + 10
    assert all(verdict == {"equal": True, "left": []} for verdict in result["verdicts"])
