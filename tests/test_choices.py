"""The quickest way is measured once, where what was chosen is kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from tubelet import choices


class Clock:
    """Time passes by what is done alone."""

    def __init__(self, **seconds: float):
        self.seconds = seconds
        self.now = 0.0
        self.done: list[str] = []

    def ways(self) -> choices.Ways:
        return {name: lambda name=name: self.act(name) for name in self.seconds}

    def act(self, name: str) -> None:
        self.now += self.seconds[name]
        self.done.append(name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**seconds: float) -> Clock:
        made = Clock(**seconds)
        monkeypatch.setattr(choices, "perf_counter", lambda: made.now)
        return made

    return make


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        ({"a": 3, "b": 2, "c": 1}, "c"),
        ({"a": 1, "b": 2, "c": 3}, "a"),
        ({"a": 1, "b": 0.98, "c": 2}, "a"),  # too little to be no noise
        ({"a": 1, "b": 0.9, "c": 0.89}, "c"),
        ({"a": 1}, "a"),
    ],
)
def test_the_quickest_is_chosen(clock: Any, seconds: dict[str, float], wanted: str) -> None:
    time, made = clock(**seconds), {}
    with choices.kept(made):
        assert choices.choose("it", "a", time.ways) == wanted
    assert made == {"it": wanted}


def test_what_is_kept_is_not_measured_again(clock: Any) -> None:
    time, made = clock(a=3, b=2), {"it": "a"}
    with choices.kept(made):
        assert choices.choose("it", "b", time.ways) == "a" and not time.done
        assert choices.choose("another", "a", time.ways) == "b" and time.done
        time.done.clear()
        assert choices.choose("another", "a", time.ways) == "b" and not time.done
    assert made == {"it": "a", "another": "b"}


def test_nothing_is_measured_where_nothing_is_kept(clock: Any) -> None:
    time, made = clock(a=3, b=2), {}
    assert choices.choose("it", "a", time.ways) == "a"
    with choices.kept(made), choices.kept({}):
        choices.choose("it", "a", time.ways)
    time.done.clear()
    assert choices.choose("it", "a", time.ways) == "a"
    assert not made and not time.done


def test_long_work_is_measured_once_and_short_work_more_often(clock: Any) -> None:
    for seconds, rounds in ((choices.ENOUGH, 1), (choices.ENOUGH / 100, choices.ROUNDS)):
        time = clock(a=seconds, b=seconds)
        with choices.kept({}):
            choices.choose("it", "a", time.ways)
        assert time.done == ["a", "b"] * (1 + rounds)  # the first is not timed


def test_threads_measure_once(clock: Any) -> None:
    time, made, start = clock(a=0.03, b=0.02), {}, Barrier(8)

    def ask(_: int) -> str:
        start.wait()
        return choices.choose("it", "a", time.ways)

    with choices.kept(made), ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {"b"}
    assert time.done == ["a", "b"] * (1 + choices.ROUNDS)
