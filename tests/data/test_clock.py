"""What the seconds of a loading worker are counted as."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tubelet import masks
from tubelet.data import clips
from tubelet.data.clips import ClipDataset, Key, collate
from tubelet.data.clock import Clock
from tubelet.data.lists import read_list
from tubelet.data.transforms import PRETRAIN
from tubelet.shapes import ClipSpec


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only moves where a test moves it."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def later(act: Callable[..., Any], clock: list[float], seconds: float) -> Callable[..., Any]:
    def slow(*args: Any, **kwargs: Any) -> Any:
        clock[0] += seconds
        return act(*args, **kwargs)

    return slow


def test_laps(clock: list[float]) -> None:
    watch = Clock()
    for part, seconds in (("decode", 2.0), ("augment", 1.0), ("decode", 4.0)):
        clock[0] += seconds
        watch.lap(part)
    assert watch.taken() == {"decode": 6.0, "augment": 1.0}
    assert watch.taken() == {}


def test_a_batch_tells_what_its_samples_took(
    ten_videos: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two videos, two crops of each: opened once, cut twice, a mask each."""
    hide = later(lambda _: torch.tensor([[True, False]]), clock, 0.25)
    spec = ClipSpec(num_frames=4, sampling_rate=2, size=(16, 16))
    data = ClipDataset(read_list(ten_videos), spec, PRETRAIN, seed=0, num_sample=2, mask=hide)
    monkeypatch.setattr(clips, "Video", later(clips.Video, clock, 8.0))
    monkeypatch.setattr(clips, "augment", later(clips.augment, clock, 1.0))
    groups = [data[Key(0, 0)], data[Key(0, 1)]]
    batch = collate(groups, pack=later(masks.pack, clock, 0.5))
    assert batch.spent == {"decode": 16.0, "augment": 4.0, "collate": 1.5}
    assert batch.to("cpu").spent == batch.spent
