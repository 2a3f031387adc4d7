"""A task of a few hundred weights with ragged weights, for the tests of the loop.

Also a script, so that tests can start it in other processes, and kill it:
`tiny.py kill FOLDER` and `tiny.py spread FOLDER` (under torchrun's environment variables).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.shapes import Batch
from tubelet.train import checkpoint, parallel
from tubelet.train.config import Derived, TrainConfig, derive
from tubelet.train.loop import fit

HEADER = {"run": "tests:tiny", "classes": ["a", "b"]}


class TinyModel(nn.Module):
    """[B,12] -> [B,3]"""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.patch_embed = nn.Linear(12, 10)
        self.blocks = nn.ModuleList(nn.Linear(10, 10) for _ in range(2))
        self.head = nn.Linear(10, 3)
        self.register_buffer("mean", torch.full((12,), 0.5))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x - self.mean)
        for block in self.blocks:
            x = x + torch.nn.functional.gelu(block(x))
        return self.head(x)

    num_layers = 4

    def layer_of(self, name: str) -> int:
        first, *rest = name.split(".")
        return {"patch_embed": 0, "blocks": int(rest[0]) + 1 if first == "blocks" else 0}.get(
            first, 3
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable


class Tiny:
    """Regression with a weight of 0 to 3 per sample; `noise` draws from torch's generator."""

    def __init__(self, noise: float = 0.0, bad_steps: tuple[int, ...] = ()) -> None:
        self.model: nn.Module = TinyModel()
        self.noise = noise
        self.bad_steps = bad_steps

    def weight(self, batch: Batch) -> float:
        return float((batch.index % 4).sum())

    def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
        x = batch.clip.flatten(1).float() / 255
        answer = self.model(x + self.noise * torch.rand_like(x)).float()
        wanted = torch.stack([x.sum(1), x[:, 0] - x[:, 1], x.square().sum(1)], 1)
        weights = (batch.index % 4).float()
        loss = ((answer - wanted).square().sum(1) * weights).sum()
        error = (answer - wanted).abs().sum()
        bad = int(batch.index[0]) // SIZE in self.bad_steps
        return {
            "loss": (loss * float("nan") if bad else loss, self.weight(batch)),
            "error": (error, torch.tensor(float(3 * len(x)))),
        }

    def evaluate(self) -> dict[str, float]:
        return {}


SIZE = 12  # videos per update
SPACE = (3, 1, 2, 2)


def sample(index: int) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randint(0, 256, SPACE, generator=generator, dtype=torch.uint8)


def batches(derived: Derived, rank: int = 0) -> Callable[[int], Iterator[Batch]]:
    """Sample s*SIZE + j in update s, whatever the processes and the accumulation."""

    def stream(start: int) -> Iterator[Batch]:
        share = SIZE // derived.world
        for step in range(start, derived.total_steps):
            first = step * SIZE + rank * share
            for at in range(first, first + share, derived.micro_batch):
                index = torch.arange(at, at + derived.micro_batch)
                clips = torch.stack([sample(int(i)) for i in index])
                paths = [f"video{int(i)}.mp4" for i in index]
                yield Batch({"clip": clips}, paths, index=index, seeds=index)

    return stream


def settings(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "epochs": 3,
        "warmup_epochs": 0.5,
        "batch_size": SIZE,
        "micro_batch": 6,
        "lr": 1.0,
        "save_every_steps": 2,
        "log_every_steps": 3,
        "progress": False,
        "device": "cpu",
    }
    return TrainConfig(**(values | changes))


def train(out: Path, task: Tiny | None = None, *, resume: bool = False, **changes: Any) -> Tiny:
    """Six updates on one process, unless `changes` say otherwise."""
    config = settings(**changes)
    derived = derive(config, 2 * SIZE)
    task = task or Tiny()
    fit(task, batches(derived), config, derived, out, HEADER, resume)
    return task


def contents(out: Path) -> dict[str, Any]:
    """Everything in a run's last checkpoint, tensors by name."""
    newest = checkpoint.latest(out)
    assert newest is not None
    state = checkpoint.load_state(newest)
    found: dict[str, Any] = {"step": state["step"], "skipped": state["skipped"]}
    for name, moments in state["optimizer"].items():
        found |= {f"{name}/{key}": value for key, value in moments.items()}
    for file in newest.glob("*.safetensors"):
        weights = checkpoint.load_weights(file)
        found |= {f"{file.name}/{name}": value for name, value in weights.items()}
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal to the bit."""
    return set(a) == set(b) and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k] for k in a
    )


def rows(out: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what a clock or the machine says."""
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    told = ("clips_per_second", "wait_ratio", "worker_time", "memory_gib")
    return [{k: v for k, v in row.items() if k not in told} for row in read]


# --- killing -------------------------------------------------------------------------------------

NOISE = 0.1
SETTINGS: dict[str, Any] = {"model_ema": 0.9, "keep_checkpoints": 1, "epochs": 2}


def die_at(call: int) -> list[int]:
    """Kills this process before (even) or after (odd) its n-th touch of the disk, n = call // 2."""
    seen = [0]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            mine, seen[0] = seen[0], seen[0] + 2
            if mine == call:
                half_written(args)
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if mine + 1 == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapper

    for module, name in (
        *((os, n) for n in ("fsync", "rename", "replace", "unlink", "mkdir")),
        (shutil, "rmtree"),
        (torch, "save"),
        (checkpoint, "save_tensors"),
    ):
        setattr(module, name, counted(getattr(module, name)))
    return seen


def half_written(args: tuple[Any, ...]) -> None:
    """What a kill amid `save_tensors(tensors, path, metadata)` or `torch.save(state, file)` leaves."""
    if len(args) >= 2 and isinstance(args[0], dict):
        path = args[1] if isinstance(args[1], Path) else Path(args[1].name)
        path.write_bytes(b"begun")


def in_child(act: Callable[[], Any], kill_after_seconds: float | None = None) -> int:
    """Runs `act` in a fork -> its wait status. The parent must not have computed with torch."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:  # noqa: BLE001
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after_seconds is not None:
        time.sleep(kill_after_seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(folder: Path) -> None:
    """Kills runs at each touch of the disk and at many moments, resumes them, and compares."""
    import torch._dynamo  # once, rather than in each child's optimizer

    torch.set_num_threads(1)
    whole, counts = folder / "whole", folder / "counts"

    def uninterrupted() -> None:
        seen = die_at(-1)
        train(whole, Tiny(NOISE), **SETTINGS)
        counts.write_text(str(seen[0]))

    def resumed(out: Path) -> None:
        train(out, Tiny(NOISE), resume=True, **SETTINGS)

    def judged(out: Path) -> None:
        resumed(out)
        equal = same(contents(out), contents(whole)) and rows(out) == rows(whole)
        left = sorted(p.name for p in out.glob(".*"))
        (folder / "verdict").write_text(json.dumps({"equal": equal, "left": left}))

    result: dict[str, Any] = {"killed": 0, "verdicts": []}

    def judge(out: Path) -> None:
        assert in_child(lambda: judged(out)) == 0, out
        result["verdicts"].append(json.loads((folder / "verdict").read_text()))
        shutil.rmtree(out)

    assert in_child(uninterrupted) == 0
    result["points"] = int(counts.read_text())
    for call in range(result["points"]):
        out = folder / f"call{call}"

        def killed(call: int = call, out: Path = out) -> None:
            die_at(call)
            train(out, Tiny(NOISE), **SETTINGS)

        result["killed"] += in_child(killed) == -signal.SIGKILL
        judge(out)
    for moment in range(10):
        out = folder / f"moment{moment}"
        for seconds in (0.02 + 0.01 * moment, 0.05, 0.1):
            in_child(lambda out=out: resumed(out), seconds)
        judge(out)
    (folder / "result.json").write_text(json.dumps(result))


# --- several processes ---------------------------------------------------------------------------


def spread(folder: Path) -> None:
    """Trains in several processes: whole runs, and runs that change their number of processes."""
    torch.set_num_threads(1)
    with parallel.processes("cpu") as place:
        told: dict[str, Any] = {}
        for how in ("ddp", "fsdp"):
            for clip, micro in ((None, 6), (0.5, 3)):
                out = folder / f"{how}-{micro}"
                for epochs, resume in ((3, False), (4, True)):
                    config = settings(
                        parallel=how,
                        model_ema=0.9,
                        clip_grad=clip,
                        micro_batch=micro,
                        layer_decay=0.75,
                        epochs=epochs,
                    )
                    derived = derive(config, 2 * SIZE, place.world)
                    task = Tiny(bad_steps=(3,))
                    fit(task, batches(derived, place.rank), config, derived, out, HEADER, resume)
                    told[f"{how}-{micro}"] = type(task.model).__name__
        # A file that only the main process cannot write stops them all.
        (folder / "file").touch()
        try:
            config = settings()
            derived = derive(config, 2 * SIZE, place.world)
            fit(Tiny(), batches(derived, place.rank), config, derived, folder / "file", HEADER)
        except Exception as error:  # noqa: BLE001
            told["error"] = f"{type(error).__name__}: {error}"
        (folder / f"told{place.rank}.json").write_text(json.dumps(told | asdict_place(place)))


def asdict_place(place: parallel.Place) -> dict[str, Any]:
    return {"place": {k: str(v) for k, v in asdict(place).items()}}


if __name__ == "__main__":
    logging.disable()
    {"kill": kill, "spread": spread}[sys.argv[1]](Path(sys.argv[2]))
