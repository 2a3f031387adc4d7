"""Runs that are killed with SIGKILL, also amid a save, and go on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from processes import run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them")
def test_killed_and_resumed_runs_end_as_uninterrupted_ones(tmp_path: Path, script: Path) -> None:
    assert run(script, "kill", tmp_path) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    # Two saves of 3 files each, besides config.json: so many touches of the disk, and 10 moments.
    assert result["points"] >= 40
    assert result["killed"] >= result["points"] - 2  # a call that fails has no "after"
    assert len(result["verdicts"]) == result["points"] + 10
    assert all(verdict == {"equal": True, "left": []} for verdict in result["verdicts"])
