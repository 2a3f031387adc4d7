"""What a run has measured to be quickest is part of its state."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tubelet import choices
from tubelet.shapes import Batch
from tubelet.train import checkpoint, parallel

WAYS = {"one": lambda x: x.sum(), "other": lambda x: x.flatten().cumsum(0)[-1] * (1 + 1e-6)}


def chooser(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, quickest: str) -> Any:
    """A task whose loss is rounded otherwise by each way, and for which one of them is quick."""
    now = [0.0]
    monkeypatch.setattr(choices, "perf_counter", lambda: now[0])

    def way(name: str) -> Any:
        def act() -> None:
            task.__dict__.setdefault("measured", []).append(name)
            now[0] += 1 + (name != quickest)

        return act

    def call(self: Any, batch: Batch) -> dict[str, tuple[Tensor, Any]]:
        terms = tiny.Tiny.__call__(self, batch)
        name = choices.choose("loss", "one", lambda: {name: way(name) for name in WAYS})
        loss, weight = terms["loss"]
        return terms | {"loss": (WAYS[name](loss[None]), weight)}

    task = type("Chooser", (tiny.Tiny,), {"__call__": call, "measured": ()})(noise=0.1)
    return task


@pytest.mark.parametrize("wanted", WAYS)
def test_a_resumed_run_goes_on_with_its_choice(
    wanted: str, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although another way has become the quickest."""
    later = next(name for name in WAYS if name != wanted)
    whole, parts, never = (tmp_path / name for name in ("whole", "parts", "never"))
    tiny.train(whole, chooser(tiny, monkeypatch, wanted))
    tiny.train(never, chooser(tiny, monkeypatch, later))
    assert not tiny.same(tiny.contents(whole), tiny.contents(never))  # so that equality says much

    class Stopped(Exception):
        pass

    def stopped(self: Any, step: int) -> None:
        if step == 3:
            raise Stopped

    first = chooser(tiny, monkeypatch, wanted)
    type(first).after_step = stopped
    with pytest.raises(Stopped):
        tiny.train(parts, first)
    assert first.measured
    second = chooser(tiny, monkeypatch, later)
    tiny.train(parts, second, resume=True)
    assert not second.measured
    assert tiny.same(tiny.contents(parts), tiny.contents(whole))
    assert checkpoint.load_state(checkpoint.latest(parts))["choices"] == {"loss": wanted}


def test_a_state_without_choices_is_resumed(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 0.1.0."""
    tiny.train(tmp_path, epochs=2)
    path = checkpoint.latest(tmp_path) / checkpoint.STATE
    state = torch.load(path, weights_only=True)
    del state["choices"]
    torch.save(state, path)
    task = chooser(tiny, monkeypatch, "other")
    tiny.train(tmp_path, task, resume=True)
    assert task.measured


def test_several_processes_do_not_choose(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = parallel.place("cpu")
    monkeypatch.setattr(parallel, "place", lambda device: parallel.Place(one.device, 0, 2))
    monkeypatch.setattr(parallel, "wrap", lambda model, *_, **__: model)
    monkeypatch.setattr(parallel, "on_main", lambda place, act: act())
    task = chooser(tiny, monkeypatch, "other")
    tiny.train(tmp_path, task)
    assert not task.measured
