"""What a run shows, and where it writes it."""

from __future__ import annotations

import builtins
import errno
import io
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

from tubelet.errors import TubeletError
from tubelet.shapes import Batch
from tubelet.train import parallel
from tubelet.train.config import derive
from tubelet.train.log import Log, Meter


def batch(*paths: str) -> Batch:
    index = torch.arange(len(paths))
    return Batch({}, list(paths), index=index, seeds=index)


def test_clips_of_each_source_are_counted_between_rows() -> None:
    meter = Meter(parallel.place("cpu"))
    for step, sources in enumerate(({"a": 2, "b": 0}, {"a": 1, "b": 1}), 1):
        counted = batch("x", "y")
        counted.sources = sources
        meter.forward(counted, {"loss": (torch.tensor(1.0), 1.0)})
        meter.update(step, torch.tensor(step == 2), torch.tensor(1.0))  # the second is skipped
    means, _, clips, sources = meter.read()
    assert (sources, clips, list(means)) == ({"a": 3, "b": 1}, 4, ["loss", "grad_norm"])
    meter.forward(batch("z"), {"loss": (torch.tensor(1.0), 1.0)})
    meter.update(3, torch.tensor(False), torch.tensor(1.0))
    assert meter.read()[3] == {}


def test_means_are_weighted_and_leave_out_what_was_skipped() -> None:
    meter = Meter(parallel.place("cpu"))
    nan = float("nan")
    updates = [  # forwards of (loss sum, weight, paths), gradient norm, skipped
        ([(6.0, 2.0, "a"), (1.0, 1.0, "b")], 3.0, False),
        ([(nan, 2.0, "c"), (1.0, 5.0, "d")], 7.0, True),
        ([(9.0, 4.0, "e"), (0.0, 0.0, "f")], 5.0, False),
        ([(1.0, 1.0, "h"), (1.0, 1.0, "g")], nan, True),
    ]
    for step, (forwards, norm, skipped) in enumerate(updates, 1):
        for total, weight, path in forwards:
            terms = {
                "loss": (torch.tensor(total), weight),
                "other": (torch.tensor(2.0), torch.tensor(1.0)),
            }
            meter.forward(batch(path), terms)
        assert float(meter.loss) == pytest.approx(sum(f[0] for f in forwards), nan_ok=True)
        meter.update(step, torch.tensor(skipped), torch.tensor(norm))
    means, found, clips, _ = meter.read()
    assert means == {"loss": 16.0 / 7.0, "other": 2.0, "grad_norm": 4.0}
    assert [(each.step, each.paths) for each in found] == [(2, ["c"]), (4, ["g", "h"])]
    assert clips == 8
    meter.forward(batch("i"), {"loss": (torch.tensor(1.0), 1.0)})
    meter.update(5, torch.tensor(True), torch.tensor(1.0))
    means, found, clips, _ = meter.read()
    assert (
        math.isnan(means["loss"])
        and len(found) == clips == 1
        and list(means)
        == [
            "loss",
            "grad_norm",
        ]
    )


def test_losses_in_half_precision_are_refused() -> None:
    meter = Meter(parallel.place("cpu"))
    with pytest.raises(TubeletError, match=r"bfloat16.*float32"):
        meter.forward(batch("a"), {"loss": (torch.ones((), dtype=torch.bfloat16), 1.0)})


def log_of(tiny: ModuleType, out: Path, console: Console, **changes: Any) -> Log:
    config = tiny.settings(**{"progress": True, **changes})
    return Log(out, parallel.place("cpu"), config, derive(config, 24), 2, console)


def test_bar_on_a_terminal(tiny: ModuleType, tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160, highlight=False)
    with log_of(tiny, tmp_path, console) as log:
        assert log.next(iter([batch("a")])).paths == ["a"]
        log.advance(3)
        log.progress(3, 0.0125, {"loss": 1.25, "grad_norm": math.nan}, 1, skipped=2, sources={})
        log.evaluation(3, {"top1": 81.5})
        log.evaluation(3, {})
    shown = screen.getvalue()
    for part in ("3/6", "loss 1.2500", "lr 1.25e-02", "clips/s", "wait", "GiB", "top1 81.5"):
        assert part in shown
    assert "lr 0.046875 = 1 x 12 / 256" in shown
    progress, evaluation = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (progress["step"], progress["epoch"], progress["skipped"]) == (3, 1.5, 2)
    assert (progress["loss"], progress["grad_norm"]) == (1.25, None)
    assert progress["clips_per_second"] > 0 and 0 <= progress["wait_ratio"] <= 1
    assert progress["memory_gib"] > 0.01
    assert evaluation == {"step": 3, "epoch": 1.5, "evaluation": {"top1": 81.5}}


def test_lines_elsewhere(tiny: ModuleType, tmp_path: Path) -> None:
    screen = io.StringIO()
    with log_of(tiny, tmp_path, Console(file=screen, soft_wrap=True)) as log:
        for step in (3, 4, 5, 6):  # the first and the last are shown; no two within 10 seconds
            log.progress(step, 0.1, {"loss": 1.25}, 1, skipped=0, sources={})
    *rules, first, last = screen.getvalue().splitlines()
    assert len(rules) == len(log.derived.rules)
    assert first.startswith("step 3/6  loss 1.2500") and first.endswith(" left")
    assert last.startswith("step 6/6") and last.endswith("0:00:00 left")
    assert "\x1b" not in screen.getvalue()
    silent = io.StringIO()
    with log_of(tiny, tmp_path, Console(file=silent), progress=False) as log:
        log.progress(3, 0.1, {"loss": 1.25}, 1, skipped=0, sources={})
    assert silent.getvalue() == ""


def test_tensorboard(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    tiny.train(tmp_path / "with", tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 3, 4, 6]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TubeletError, match=r"pip install 'tubelet\[tensorboard\]'"):
        tiny.train(tmp_path / "without", tensorboard=True)
    assert not (tmp_path / "without").exists()


def test_full_disk_while_logging(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.open

    def fail(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith("metrics.jsonl") and args == ("a",):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *args, **options)

    monkeypatch.setattr(builtins, "open", fail)
    with pytest.raises(TubeletError, match=r"metrics\.jsonl could not be written .* No space left"):
        tiny.train(tmp_path)
