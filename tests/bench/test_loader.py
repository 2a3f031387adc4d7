"""The benchmarks of loading and decoding: their plain paths show the same clips and frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet.bench import decode, films, loader
from tubelet.bench.films import FPS, make
from tubelet.bench.plain.loading import MEAN, STD, clips
from tubelet.bench.record import Record
from tubelet.data.clips import Key


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("films") / "one.mp4"
    make(path, 340, 256, 12, 70)
    return path


def test_plain_and_ours_show_the_same_clips(film: Path) -> None:
    expected = clips(film, loader.wanted(film, 3, 2), loader.SPEC.size, FPS)
    exact = loader.dataset(film, 2, "exact")[Key(3, 0)]
    fast = loader.dataset(film, 2, "fast")[Key(3, 0)]
    assert loader.apart(exact, expected) < 0.05  # grey levels: Pillow's rounding
    assert 0.1 < loader.apart(fast, expected) < 4  # blocks of 4 pixels of any colour
    for clip, sample in zip(expected, exact, strict=True):
        mean, std = (torch.tensor(x)[:, None, None, None] for x in (MEAN, STD))
        levels = (clip.values * std + mean) * 255
        # Two roundings of a resize, across and down, of which each may differ by one.
        assert (levels - sample.views["clip"]).abs().max() < 2.01


def test_a_full_decode_and_ours_give_the_same_frames(film: Path) -> None:
    at = np.array([0, 5, 13, 14, 40, 69])
    stored = decode.full(film, at, as_rgb=False)
    assert all(map(np.array_equal, decode.raw(film, at), stored))
    assert np.array_equal(decode.rgb(film, at), decode.full(film, at, as_rgb=True))


def test_records_of_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "KEYS", (12,))
    threads, told = torch.get_num_threads(), []
    *found, masks = loader.records(True, lambda *at: told.append(at), folder=tmp_path)
    assert torch.get_num_threads() == threads
    assert told == [(1, 1)]
    name = "loader-340x256-key12"
    records = {(each.name, each.against): each for each in found if isinstance(each, Record)}
    assert len(records) == len(found) == 6
    assert {name, f"{name}-1", f"{name}-exact", f"{name}-1-exact"} <= {name for name, _ in records}
    assert {(f"{name}-prepared", "plain"), (f"{name}-prepared", "plain-1")} <= records.keys()
    assert all(each.ratio_time > 0 and each.bar is None for each in records.values())
    assert "grey levels" in records[name, "plain"].note
    assert isinstance(masks, dict)
    assert 0 < masks["share_of_a_worker"] < 1
    assert masks.keys() == {"name", "share_of_a_worker"}  # no bars in small


@pytest.mark.parametrize(("share", "met"), [(0.012, True), (0.0204, False)])
def test_masks_have_a_bar_of_two_in_a_hundred(share: float, met: bool) -> None:
    row = loader._row_of_masks(share, quick=False)
    assert (row["bar"], row["met"], row["share_of_a_worker"]) == (0.02, met, share)


def test_a_ratio_is_the_median_over_turns_and_seconds_are_of_a_clip() -> None:
    turns = loader.Turns(
        4, {"fast": [1.0, 2.0, 1.0], "plain": [2.0, 8.0, 3.0]}, {"fast": [0.5] * 3}
    )
    record = turns.record("one", "fast", "plain", 2.5, "")
    assert (record.ratio_time, record.spread) == (3.0, (2.0, 4.0))
    assert (record.seconds, record.seconds_against) == (0.25, 0.75)
    assert record.met
    assert record.note.startswith("3.0 clips a CPU second, against 0.9; 0.50 grey levels")


def test_records_of_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "KEYS", (12,))
    found = {(each.name, each.against) for each in decode.records(True, folder=tmp_path)}
    name = "decode-340x256-key12"
    assert {(f"{name}-raw", "pyav-raw"), (f"{name}-rgb", "pyav")} <= found
