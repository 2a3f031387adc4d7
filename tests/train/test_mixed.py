"""A mixed run over videos, folders of frames and images: killed, resumed, counted."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from processes import run
from small import write_frames, write_video


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes to kill them")
def test_a_killed_and_resumed_mix_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    for i in range(6):
        write_video(tmp_path / f"videos/{i}.mp4", frames=10, seed=i)
    for i in range(4):
        write_frames(tmp_path / f"{i}", frames=6, seed=i)
    (tmp_path / "frames.csv").write_text("".join(f"{i} 1 6\n" for i in range(4)))
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (48, 40), (0, 80 * i, 0)).save(tmp_path / f"images/{i}.png")

    script = Path(__file__).with_name("mixed.py")
    assert run(script, tmp_path) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["equal"] == [True, True], result

    # 13 videos make epochs of 3 updates, 12 draws: 6, 3.6 and 2.4 of them, each seen twice.
    counts = {row["step"]: Counter(row["sources"]) for row in result["rows"]}
    assert sorted(counts) == [2, 3, 4, 6, 8]
    assert (
        counts[2] + counts[3] == counts[4] + counts[6] == {"videos": 12, "frames": 8, "images": 4}
    )
    assert sum(counts[8].values()) == 16
