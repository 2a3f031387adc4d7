"""The loop: resumption, accumulation, updates that are skipped, folders, precision."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tubelet.errors import TubeletError
from tubelet.shapes import Batch
from tubelet.train import checkpoint
from tubelet.train.config import derive
from tubelet.train.loop import fit


class Stopped(Exception):
    pass


def stopped_before(tiny: ModuleType, out: Path, step: int, **changes: Any) -> None:
    """A run that an exception ends in update `step`, after half of its micro-batches."""
    config = tiny.settings(**changes)
    derived = derive(config, 2 * tiny.SIZE)

    def batches(start: int) -> Iterator[Batch]:
        for i, batch in enumerate(tiny.batches(derived)(start)):
            if i == (step - start) * derived.accumulate + 1:
                raise Stopped
            yield batch

    with pytest.raises(Stopped):
        fit(tiny.Tiny(noise=0.1), batches, config, derived, out, tiny.HEADER)


@pytest.mark.parametrize("step", [0, 1, 3, 4, 5])
def test_resumed_runs_are_equal(step: int, tiny: ModuleType, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    changes = {"model_ema": 0.9, "clip_grad": 0.5, "layer_decay": 0.8}
    tiny.train(whole, tiny.Tiny(noise=0.1), **changes)
    stopped_before(tiny, parts, step, **changes)
    newest = checkpoint.latest(parts)
    assert (newest and newest.name) == {1: None, 0: None, 3: "checkpoint-000002"}.get(
        step, "checkpoint-000004"
    )
    tiny.train(parts, tiny.Tiny(noise=0.1), resume=True, **changes)
    assert tiny.contents(parts)["step"] == 6
    assert tiny.same(tiny.contents(parts), tiny.contents(whole))
    assert tiny.rows(parts) == tiny.rows(whole)


def test_other_seeds_give_other_runs(tiny: ModuleType, tmp_path: Path) -> None:
    """So that the equality above means something."""
    for seed in (0, 1):
        tiny.train(tmp_path / str(seed), tiny.Tiny(noise=0.1), seed=seed)
    assert not tiny.same(tiny.contents(tmp_path / "0"), tiny.contents(tmp_path / "1"))


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_accumulation_changes_nothing(micro_batch: int, tiny: ModuleType, tmp_path: Path) -> None:
    """Weights per sample are 0 to 3: means of micro-batches would not do."""
    tiny.train(tmp_path / "at once", micro_batch=12, clip_grad=0.5)
    tiny.train(tmp_path / "parts", micro_batch=micro_batch, clip_grad=0.5)
    at_once, parts = tiny.contents(tmp_path / "at once"), tiny.contents(tmp_path / "parts")
    for name, value in at_once.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for row, wanted in zip(
        tiny.rows(tmp_path / "parts"), tiny.rows(tmp_path / "at once"), strict=True
    ):
        assert row == pytest.approx(wanted, rel=1e-5)


def test_first_gradient_is_of_the_mean(tiny: ModuleType, tmp_path: Path) -> None:
    """The norm in the log is that of sum(loss) / sum(weight), and so is the loss."""
    tiny.train(tmp_path, steps=1, micro_batch=3)
    task = tiny.Tiny()
    derived = derive(tiny.settings(micro_batch=12), 2 * tiny.SIZE)
    loss, weight = task(next(tiny.batches(derived)(0)))["loss"]
    (loss / weight).backward()
    norm = torch.stack([p.grad.norm() for p in task.model.parameters()]).norm()
    [row] = tiny.rows(tmp_path)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert row["loss"] == pytest.approx(loss.item() / weight, rel=1e-5)


class Follows:
    """Mixed into a task: keeps the weights after each update that was applied."""

    def after_step(self, step: int) -> None:
        self.__dict__.setdefault("seen", {})[step] = {
            n: p.clone() for n, p in self.__dict__["model"].state_dict().items()
        }


def following(tiny: ModuleType, **options: Any) -> Any:
    return type("Following", (Follows, tiny.Tiny), {})(**options)


def test_skipped_updates(tiny: ModuleType, tmp_path: Path) -> None:
    task = following(tiny, bad_steps=(1, 3))
    tiny.train(tmp_path, task, model_ema=0.9, log_every_steps=1, micro_batch=4)
    assert list(task.seen) == [1, 3, 5, 6]
    rows = tiny.rows(tmp_path)
    assert [row["skipped"] for row in rows] == [0, 1, 1, 2, 2, 2]
    assert [row["loss"] is None for row in rows] == [False, True, False, True, False, False]
    assert all((row["grad_norm"] is None) == (row["loss"] is None) for row in rows)
    lines = (tmp_path / "nonfinite.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": step, "paths": sorted(f"video{12 * (step - 1) + i}.mp4" for i in range(12))}
        for step in (2, 4)
    ]
    moments = checkpoint.load_state(checkpoint.latest(tmp_path) or "")["optimizer"]
    assert float(moments["head.weight"]["step"]) == 4
    assert all(t.isfinite().all() for t in checkpoint.load_weights(tmp_path).values())


class OneBad:
    """Mixed into a task: the loss of the micro-batch that holds one video is infinite."""

    def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
        terms = super().__call__(batch)  # pyright: ignore[reportAttributeAccessIssue]
        loss, weight = terms["loss"]
        return terms | {"loss": (loss / (17 not in batch.index), weight)}


def test_only_the_forwards_at_fault_are_named(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.train(tmp_path, type("T", (OneBad, tiny.Tiny), {})(), micro_batch=3)
    [line] = (tmp_path / "nonfinite.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 2, "paths": ["video15.mp4", "video16.mp4", "video17.mp4"]}


def test_repeated_skips_stop_the_run(tiny: ModuleType, tmp_path: Path) -> None:
    task = tiny.Tiny(bad_steps=(1, 3, 4, 5, 6, 7, 8))
    with pytest.raises(TubeletError, match="5 updates in a row, up to step 8 of 20") as error:
        tiny.train(tmp_path, task, epochs=10, log_every_steps=4)
    assert "nonfinite.jsonl" in str(error.value) and "--lr" in str(error.value)
    # Saved twice amid the series, whose length counts on after a resumption.
    state = checkpoint.load_state(checkpoint.latest(tmp_path) or "")
    assert (state["step"], state["skipped"], state["in_a_row"]) == (6, 4, 3)
    with pytest.raises(TubeletError, match="up to step 8"):
        tiny.train(tmp_path, task, resume=True, epochs=10, log_every_steps=4)
    steps = [json.loads(s)["step"] for s in (tmp_path / "nonfinite.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 5, 6, 7, 8]


def test_skips_with_updates_between_do_not_stop_it(tiny: ModuleType, tmp_path: Path) -> None:
    bad = (0, 1, 2, 3, 5, 6, 7, 8)
    tiny.train(tmp_path, tiny.Tiny(bad_steps=bad), epochs=5, log_every_steps=10)
    assert tiny.contents(tmp_path)["skipped"] == 8


def test_used_folders_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.train(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(TubeletError, match=r"holds a run already \(checkpoint-000006\).*--resume"):
        tiny.train(tmp_path, epochs=5)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(TubeletError, match=r"metrics\.jsonl, but no checkpoint yet"):
        tiny.train(begun)
    failed = tmp_path / "failed"
    failed.mkdir()
    (failed / "config.json").write_text("{}")  # of a run that ended before its first row
    tiny.train(failed)
    (tmp_path / "file").touch()
    with pytest.raises(TubeletError, match="is a file"):
        tiny.train(tmp_path / "file")


def test_a_task_that_cannot_be_trained_leaves_the_folder_unused(
    tiny: ModuleType, tmp_path: Path
) -> None:
    task = tiny.Tiny()
    task.model.requires_grad_(False)
    with pytest.raises(TubeletError, match="no parameter"):
        tiny.train(tmp_path / "new", task)
    assert not (tmp_path / "new").exists()


def test_resuming_with_other_settings(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tubelet"):
        tiny.train(tmp_path, resume=True)
        assert "Nothing to resume" in caplog.text
        caplog.clear()
        tiny.train(tmp_path, resume=True, epochs=4, lr=0.5, workers=7)
    warned = [record.getMessage() for record in caplog.records]
    assert warned == [
        "Resumed with another train.epochs: 4, was 3.",
        "Resumed with another train.lr: 0.5, was 1.0.",
    ]
    assert tiny.contents(tmp_path)["step"] == 8
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["header"] == tiny.HEADER and record["train"]["lr"] == 0.5
    assert record["derived"]["total_steps"] == 8 and record["versions"]["torch"]
    assert any("total_steps 8" in rule for rule in record["derived"]["rules"])
    changed = {"train.epochs": [3, 4], "train.lr": [1.0, 0.5], "train.workers": [2, 7]}
    assert record["resumed"] == [{"step": 6, "changed": changed}]
    caplog.clear()
    tiny.train(tmp_path, resume=True, epochs=4, lr=0.5, workers=7)
    assert "has done its 8 updates" in caplog.text
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TubeletError, match=r"config\.json is damaged"):
        tiny.train(tmp_path, resume=True)


def test_resuming_with_an_average_that_was_not_kept(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.train(tmp_path)
    with pytest.raises(TubeletError, match="--model-ema 0"):
        tiny.train(tmp_path, resume=True, epochs=4, model_ema=0.9)


def test_weights_of_another_model_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.train(tmp_path)
    task = tiny.Tiny()
    task.model.head = torch.nn.Linear(10, 5)
    with pytest.raises(TubeletError, match=r"head\.weight is 3x10, the model's is 5x10"):
        tiny.train(tmp_path, task, resume=True, epochs=4)


def test_data_that_ends_early(tiny: ModuleType, tmp_path: Path) -> None:
    config = tiny.settings()
    derived = derive(config, 2 * tiny.SIZE)
    short = derive(tiny.settings(steps=4), 2 * tiny.SIZE)
    task = tiny.Tiny()
    model = task.model
    with pytest.raises(TubeletError, match="data ended before the 6 updates"):
        fit(task, tiny.batches(short), config, derived, tmp_path, tiny.HEADER)
    assert task.model is model


class Watching:
    """Mixed into a task: notes where it is called, and what in."""

    def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
        bf16 = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
        training = self.__dict__["model"].training
        self.__dict__.setdefault("seen", []).append((bf16, training))
        return super().__call__(batch)  # pyright: ignore[reportAttributeAccessIssue]

    def evaluate(self) -> dict[str, float]:
        self.__dict__["model"].eval()
        weights = torch.cat([p.flatten() for p in self.__dict__["model"].parameters()])
        return {"weights": float(weights.detach().double().sum())}


@pytest.mark.parametrize("precision", ["auto", "float32", "bf16"])
def test_precision(precision: str, tiny: ModuleType, tmp_path: Path) -> None:
    task: Any = type("T", (Watching, tiny.Tiny), {})()
    tiny.train(tmp_path, task, precision=precision)
    assert len(task.seen) == 12 and {bf16 for bf16, _ in task.seen} == {precision == "bf16"}
    contents = tiny.contents(tmp_path)
    dtypes = {value.dtype for value in contents.values() if isinstance(value, Tensor)}
    assert dtypes == {torch.float32}
    reference = tiny.train(tmp_path / "float32").model
    for own, wanted in zip(task.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=0.1, atol=0.02)
        assert torch.equal(own, wanted) == (precision != "bf16")


def test_evaluations(tiny: ModuleType, tmp_path: Path) -> None:
    task: Any = type("T", (Watching, tiny.Tiny), {})()
    tiny.train(tmp_path, task, model_ema=0.9, eval_every_epochs=2, keep_checkpoints=9)
    found = {row["step"]: row["evaluation"] for row in tiny.rows(tmp_path) if "evaluation" in row}
    assert list(found) == [4, 6]
    assert all(training for _, training in task.seen)  # evaluate left it in eval mode
    for step, scores in found.items():
        folder = tmp_path / f"checkpoint-{step:06d}"
        for file, name in (("model.safetensors", "weights"), ("ema.safetensors", "ema_weights")):
            tensors = checkpoint.load_weights(folder / file)
            total = sum(t.double().sum() for n, t in tensors.items() if n != "mean")
            assert scores[name] == pytest.approx(float(total), abs=1e-5)
        assert scores["weights"] != pytest.approx(scores["ema_weights"], abs=1e-3)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: `item()`, `bool(tensor)`, ..., and (patched) `tolist`."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("follows", "model_ema"), [(False, 0.0), (False, 0.9), (True, 0.0)])
def test_nothing_waits_between_rows(
    follows: bool,
    model_ema: float,
    tiny: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ready(tiny.Tiny):
        def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
            loss = self.model(batch.clip.flatten(1).float() / 255).square().sum()
            return {"loss": (loss, 12.0), "half": (loss / 2, torch.ones(()))}

        def weight(self, batch: Batch) -> float:
            return 12.0

    class ReadyFollowing(Follows, Ready):
        pass

    waits = Waits()
    tolist = torch.Tensor.tolist

    def counted(tensor: Tensor) -> Any:
        waits.count += 1
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    config = tiny.settings(model_ema=model_ema, clip_grad=1.0, save_every_steps=5, steps=5)
    derived = derive(config, 2 * tiny.SIZE)
    ready = list(tiny.batches(derived)(0))
    counts: list[int] = []

    def batches(start: int) -> Iterator[Batch]:
        for batch in ready[start * derived.accumulate :]:
            counts.append(waits.count)
            yield batch

    task = (ReadyFollowing if follows else Ready)()
    with waits:
        fit(task, batches, config, derived, tmp_path, tiny.HEADER)
    # Two micro-batches per update; the row after update 3 reads twice: sums, and flags.
    update = 1 if follows else 0
    assert counts == [update * (i // 2) + 2 * (i >= 6) for i in range(10)]
