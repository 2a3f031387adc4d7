"""The table of a step's memory: its rows, and that they are what they say."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tubelet import verbs
from tubelet.bench import memory
from tubelet.train import allocator


def test_the_table_in_small() -> None:
    shown: list[tuple[int, int]] = []
    rows = memory.rows(quick=True, threads=1, progress=lambda *at: shown.append(at))
    nothing, *rows = rows
    assert nothing["name"] == "nothing" and 0.05 < nothing["peak_gib"] < 2
    asked = [(row["name"], row["checkpointing"], row["keep_freed"]) for row in rows]
    assert asked == [("videomae-b", False, True), ("videomae-b", True, False)]
    assert shown == [(1, 3), (2, 3), (3, 3)]
    for row in rows:
        assert row["peak_gib"] > row["planned_gib"] > row["forward_gib"] > 0
        assert row["seconds"] > 0 and row["bar_gib"] is None and row["met"] is None


def test_bars_are_of_the_full_table() -> None:
    large = [one for one in memory.settings() if one.name == "videomae-l"]
    assert [(one.clips, one.recompute, one.bar_gib) for one in large] == [
        (2, False, 16.0),
        (2, True, 16.0),
    ]
    assert {one.clips for one in memory.settings() if one.name == "videomae-b"} == {4}


@pytest.mark.parametrize("recompute", [False, True])
def test_a_forward_keeps_what_is_planned(recompute: bool) -> None:
    one = memory.settings(quick=True)[0]
    plan = verbs.plan(one.run, micro_batch=4, batch_size=4, precision="float32")
    count = plan.count
    planned = count.outside.at(4) + count.inputs.at(4) if recompute else count.kept(4)
    step = memory.training(one.run, 4, recompute)
    losses = [step(), step()]
    with FlopCounterMode(display=False):
        found = step()
    assert found * memory.GIB == pytest.approx(planned, rel=0.03)
    assert step() < losses[1] < losses[0]  # they learn, also after one that was counted


def test_freed_memory_is_kept_where_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(allocator, "keep_freed", lambda: called.append(True))
    one = memory.settings(quick=True)[0]
    kept = [memory.training(one.run, 2, False, keep_freed=keep)() for keep in (False, True)]
    assert called == [True] and kept[0] == kept[1]
