"""The benchmark of the loader: its plain path shows the same clips, and it runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tubelet.data.clips import Key

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("loader")


def test_plain_and_ours_show_the_same_clips(speed: Any, tmp_path: Path) -> None:
    path = tmp_path / "one.mp4"
    speed.make(path, 340, 256, 12, 70)
    clips = speed.plain(path, speed.wanted(path, 3, 2))
    exact = speed.dataset(path, 2, "exact")[Key(3, 0)]
    fast = speed.dataset(path, 2, "fast")[Key(3, 0)]
    assert speed.apart(exact, clips) < 0.05  # grey levels: Pillow's rounding
    assert 0.1 < speed.apart(fast, clips) < 4  # blocks of 4 pixels of any colour
    for (normal, _), sample in zip(clips, exact, strict=True):
        mean, std = (torch.tensor(x)[:, None, None, None] for x in (speed.MEAN, speed.STD))
        levels = (normal * std + mean) * 255
        # Two roundings of a resize, across and down, of which each may differ by one.
        assert (levels - sample.views["clip"]).abs().max() < 2.01


def test_it_runs(speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "loader.json"
    monkeypatch.setattr(speed, "KEYS", (12,))
    monkeypatch.setattr(
        "sys.argv", ["loader", "--quick", "--folder", str(tmp_path), "--out", str(out)]
    )
    threads = torch.get_num_threads()
    try:
        speed.main()
    finally:
        torch.set_num_threads(threads)
    record = json.loads(out.read_text())
    assert [row["clips_per_open"] for row in record["rows"]] == [4, 1]
    assert all(row["fast_ratio"] > 0 for row in record["rows"])
    assert {"date", "machine", "versions", "share_of_masks"} <= record.keys()
