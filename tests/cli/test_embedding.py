"""tubelet embed as a command: files, going on, the parts of several processes, exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
from small import write_video

RUN = ["embed", "runs/fine", "videos"]


def test_embed_writes_a_file_for_each_video_and_goes_on(tubelet, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    code, said, _ = tubelet(*RUN, "--out", out, "--sampling-rate", "1", "--hop-frames", "4")
    assert code == 0 and "6 videos, 36 windows" in said
    assert np.load(tmp_path / "out/3.npy").shape == ((24 - 4) // 4 + 1, 32)
    made = json.loads((tmp_path / "out/features.json").read_text())
    assert made["model"]["path"] == "runs/fine"
    assert made["clip"]["sampling_rate"] == 1 and made["clip"]["num_frames"] == 4
    (tmp_path / "out/3.npy").unlink()
    code, said, _ = tubelet(*RUN, "--out", out, "--sampling-rate", "1", "--hop-frames", "4")
    assert code == 0 and "1 video, 6 windows" in said and "5 videos" in said


def test_published_preprocessing_of_a_pretrained_run(tubelet, tmp_path: Path) -> None:
    options = ["--published-preprocessing", "--hop-frames", "16", "--format", "npz"]
    code, _, _ = tubelet("embed", "runs/pre", "videos/0.mp4", "--out", str(tmp_path), *options)
    assert code == 0
    assert np.load(tmp_path / "0.npz")["features"].shape == ((24 - 4) // 16 + 1, 32)
    made = json.loads((tmp_path / "features.json").read_text())
    assert (made["preprocessing"], made["clip"]["sampling_rate"]) == ("published", 1)


def test_each_process_of_torchrun_makes_its_part(
    tubelet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "videos/a.mp4")
    (tmp_path / "videos/b.mp4").write_text("no video")
    line = ["embed", "runs/fine", str(tmp_path / "videos"), "--out", str(tmp_path / "out")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, made in enumerate(("a.npy", "b.error.txt")):
        monkeypatch.setenv("RANK", str(rank))
        code, said, _ = tubelet(*line)
        assert code == 0  # torchrun would end the others
        assert ("unreadable" in said) == (rank == 1)
        assert (tmp_path / "out" / made).exists()
    (tmp_path / "videos/b.mp4").unlink()
    assert tubelet(*line)[:2] == (0, "")  # nothing was left for this one: the first one tells
    (tmp_path / "videos/b.mp4").write_text("no video")
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert tubelet(*line)[0] == 1
