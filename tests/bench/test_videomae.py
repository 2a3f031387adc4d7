"""VideoMAE's benchmark: all that it compares take the same steps, and cases are what they are called."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tubelet.bench import steps, videomae
from tubelet.bench.run import in_float32
from tubelet.bench.turns import Took
from tubelet.errors import TubeletError
from tubelet.methods.videomae import base_k400

CASES = {case.name: case for case in videomae.cases()}


def test_all_rows_take_the_same_steps() -> None:
    """Three updates: the losses before each are equal, so the gradients and AdamW are too."""
    run = videomae.in_small(base_k400)
    made = [videomae.ours(run, 2, "float32")]
    made += [videomae.theirs(name, run, 2, "float32") for name in ("hf", "plain")]
    own, *others = [[step() for _ in range(3)] for step in made]
    assert own[2] < own[0]
    for losses in others:
        assert losses == pytest.approx(own, rel=1e-5)


def test_the_cases_have_their_bars() -> None:
    bars = {
        (name, against): peer.bar
        for name, case in CASES.items()
        for against, peer in case.against.items()
    }
    assert bars == {
        ("videomae-s-f32", "plain"): 2.0,
        ("videomae-b-f32", "hf"): 1.2,
        ("videomae-b-f32", "plain"): 1.7,
        ("videomae-b-best", "hf-f32"): 2.4,
        ("videomae-b-best", "hf-bf16"): 1.45,
        ("videomae-b-best", "plain-bf16"): 1.9,
        ("videomae-v2-b-best", "videomae-b-best"): 1 / 0.75,
    }
    assert CASES["videomae-b-f32"].against["hf"].bar_memory == 0.85
    small = [peer.bar for case in videomae.cases(quick=True) for peer in case.against.values()]
    assert set(small) == {None}


def test_cases_that_share_rows_are_one_run_while_these_are_few() -> None:
    found = [[case.name for case in run] for run in steps.runs_of(list(CASES.values()))]
    assert [len(run) for run in found] == [1, 1, 1, 1]  # with bf16: five rows of one alone
    few = [fit for case in CASES.values() if (fit := in_float32(case))]
    runs = steps.runs_of(few)
    assert [len(run) for run in runs] == [1, 3]
    names = [row.name for row in steps.rows_of(runs[1])]
    assert names == ["ours-float32", "v2-float32", "hf-float32", "plain-float32"]


def test_where_bf16_is_emulated_float32_is_compared() -> None:
    best = in_float32(CASES["videomae-b-best"])
    assert best is not None and list(best.against) == ["hf-f32"]
    assert [row.precision for row in best.ours] == ["float32"]
    only = replace(
        CASES["videomae-b-f32"], against={"x": CASES["videomae-b-best"].against["hf-bf16"]}
    )
    assert in_float32(only) is None


def took(seconds: float, value: float = 1.0) -> Took:
    return Took((seconds,) * 3, (1e9,) * 3, 10**9, 1.0, value)


def test_the_quickest_precision_counts_on_both_sides() -> None:
    case = CASES["videomae-v2-b-best"]
    times = {"v2-float32": 3.0, "v2-bf16": 1.5, "ours-float32": 2.0, "ours-bf16": 4.0}
    [record] = steps.records_of(case, {name: took(time) for name, time in times.items()})
    assert (record.precision, record.seconds, record.seconds_against) == ("bf16", 1.5, 2.0)
    assert record.ratio_time == pytest.approx(4 / 3)


def test_unequal_losses_are_an_error() -> None:
    case = CASES["videomae-s-f32"]
    found = {"ours-float32": took(1, 1.0), "plain-float32": took(3, 1.00002)}
    with pytest.raises(TubeletError, match="losses of the first step"):
        steps.records_of(case, found)
    found["plain-float32"] = took(3, 1.000001)
    assert len(steps.records_of(case, found)) == 1


def test_a_bar_above_the_rate_of_products_is_answered_with_what_that_allows() -> None:
    case = CASES["videomae-s-f32"]  # products alone: 1 s
    [record] = steps.records_of(case, {"ours-float32": took(1.1), "plain-float32": took(1.5)})
    assert "1.50x is the most" in record.note and "0.91 of the rate" in record.note
    [record] = steps.records_of(case, {"ours-float32": took(1.1), "plain-float32": took(2.1)})
    assert record.note == "" and record.met is False


def test_beside_the_share_that_was_reached_is_what_is_aimed_at() -> None:
    case = CASES["videomae-v2-b-best"]
    names = ("v2-float32", "v2-bf16", "ours-float32", "ours-bf16")
    for precision, aim in (("float32", "0.90"), ("bf16", "0.65")):
        times = {name: took(1.25 if name == f"v2-{precision}" else 1.3) for name in names}
        [record] = steps.records_of(case, times)
        assert record.note.endswith(f"reached: 0.80 of the rate, {aim} aimed at")
