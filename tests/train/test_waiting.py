"""The share of a run that is spent waiting for data: measured, explained, and what helps said once."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tubelet.shapes import Batch
from tubelet.train import parallel, waiting
from tubelet.train.config import derive
from tubelet.train.log import Log
from tubelet.train.waiting import Waiting, in_words, remedies

DECODING = {"decode": 8.0, "augment": 1.5, "collate": 0.5}


def test_shares_of_the_time_and_of_the_workers() -> None:
    wait = Waiting(workers=2)
    wait.add(1.0, {"decode": 3.0, "collate": 1.0})
    wait.add(0.5, {"decode": 3.0, "augment": 1.0})
    share, parts = wait.read(10, 6.0)
    assert (share, parts) == (0.25, {"decode": 0.75, "collate": 0.125, "augment": 0.125})
    assert in_words(parts) == "decode 75%, collate 12%, augment 12%"
    assert wait.read(20, 6.0) == (0.0, {})  # what was read is forgotten
    wait.add(5.0, DECODING)
    wait.forget()
    assert wait.read(30, 6.0) == (0.0, {})


@pytest.mark.parametrize(
    ("waited", "told"), [((9.0, 1.0, 1.0), False), ((0.0, 2.0, 2.0), True), ((0.0, 9.0), False)]
)
def test_advice_leaves_out_the_first_steps_and_short_runs(
    waited: tuple[float, ...], told: bool
) -> None:
    """20 seconds a row of 10 steps; a resumed run has first steps too."""
    wait = Waiting(workers=2, start=50)
    said = ""
    for row, seconds in enumerate(waited, 1):
        wait.add(seconds, DECODING)
        _, parts = wait.read(50 + 10 * row, 20.0)
        said += wait.advice(parts)
    assert bool(said) == told


def test_advice_names_cause_and_remedy_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_cores", lambda: 8)
    wait = Waiting(workers=2)
    said: list[str] = []
    for row in range(1, 5):
        wait.add(12.0, DECODING)
        _, parts = wait.read(10 * row, 100.0)
        said.append(wait.advice(parts))
    (text,) = [each for each in said if each]
    assert text.startswith("Training waits for data 12% of the time")
    assert "decode 80%, augment 15%, collate 5%" in text
    assert "more --workers (2 now; this machine has 8 cores); `tubelet prepare`" in text
    assert "--repeats clip" in text and "pixels fast" not in text


def test_remedies_follow_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_cores", lambda: 2)
    first, *_ = remedies({"decode": 0.3, "augment": 0.7}, workers=2)
    assert first.startswith("--augment.pixels fast")
    assert "--workers" not in " ".join(remedies(DECODING, workers=2))
    assert "the training itself decodes" in remedies({}, workers=0)[0]
    assert remedies({"collate": 1.0}, workers=2)


def slow(batches: Callable[[int], Iterator[Batch]], clock: list[float]) -> Iterator[Batch]:
    """Batches that each take 0.2 of the seconds of `clock`, most of them to decode."""
    for batch in batches(0):
        clock[0] += 0.2
        batch.spent = {"decode": 0.3, "augment": 0.1}
        yield batch


def test_log_shows_the_share_with_its_cause(
    tiny: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    config = tiny.settings(progress=True, log_every_steps=1, steps=60)
    derived = derive(config, 24)
    shown: list[str] = []
    stream = slow(tiny.batches(derived), clock)
    monkeypatch.setattr("tubelet.train.log.QUIET_SECONDS", 0.0)
    with (
        caplog.at_level(logging.WARNING, "tubelet"),
        Log(tmp_path, parallel.place("cpu"), config, derived, 0) as log,
    ):
        monkeypatch.setattr(log.console, "print", lambda text, **_: shown.append(text))
        for step in range(1, 61):
            log.next(stream)
            clock[0] += 0.8
            log.progress(step, 0.1, {"loss": 1.0}, 1, 0, {})
    assert "data wait 20% (decode 75%, augment 25%)" in shown[-1]
    row: dict[str, Any] = tiny.json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["wait_ratio"] == pytest.approx(0.2)
    assert row["worker_time"] == pytest.approx({"decode": 0.75, "augment": 0.25})
    assert len(caplog.records) == 1
    assert "Training waits for data 20% of the time" in caplog.text
