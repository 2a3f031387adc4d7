"""Rows of a benchmark, in turns: each in a process of its own, and only one works at a time.

So a row has its own allocator and its own threads, and what the machine does to one turn it does to
the next row's too: a ratio is taken pair by pair, and then its median.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from tubelet.bench import machine
from tubelet.data.isolate import safe_context
from tubelet.errors import TubeletError
from tubelet.plan.counting import FORMULAS

Step = Callable[[], float]  # a turn's work -> what it computed: the loss
Precision = Literal["float32", "bf16"]
KINDS = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """One side of a comparison. `make` builds the step in the row's process: it must be picklable
    (a function of a module, or `functools.partial` of one)."""

    name: str
    make: Callable[[], Step]
    precision: Precision = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Took:
    """What a row took, in each turn, and what its first step computed."""

    seconds: tuple[float, ...]
    rates: tuple[float, ...]  # operations a second of a large product, after each turn
    flops: int  # of a step, counted; attention included
    peak_gib: float | None  # of a step, after two; None where the system does not tell
    value: float
    counted: float = 0.0  # what the step computed whose operations were counted: the last

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the machine's rate of products, in each turn."""
        pairs = zip(self.seconds, self.rates, strict=True)
        return tuple(self.flops / took / rate for took, rate in pairs)


def in_turns(
    rows: Sequence[Row],
    *,
    turns: int = 7,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Took]:
    """Each row's step, once a turn -> by name. `threads` 0: as torch chooses.

    Two steps of each row come before, which warm up, and one after, which is counted. An error of a row, or the end of
    its process, is a TubeletError.
    """
    # Every optimizer of torch imports the first; its seconds are waited for once, not in each row.
    context = safe_context("torch._dynamo", "tubelet.bench.steps")
    pipes: dict[str, Any] = {}
    workers: list[BaseProcess] = []
    done, whole = 0, len(rows) * (turns + 1)
    try:
        values: dict[str, float] = {}
        for row in rows:
            pipes[row.name], theirs = context.Pipe()
            worker = context.Process(target=_work, args=(row, threads, theirs), daemon=True)
            worker.start()
            theirs.close()
            workers.append(worker)
            values[row.name] = _answer(row.name, pipes[row.name])
            done += 1
            if progress is not None:
                progress(done, whole)
        found: dict[str, list[tuple[float, float]]] = {row.name: [] for row in rows}
        for _ in range(turns):
            for name, pipe in pipes.items():
                pipe.send(True)
                found[name].append(_answer(name, pipe))
                done += 1
                if progress is not None:
                    progress(done, whole)
        took: dict[str, Took] = {}
        for name, pipe in pipes.items():
            pipe.send(False)
            flops, peak, counted = _answer(name, pipe)
            seconds, rates = zip(*found[name], strict=True)
            took[name] = Took(seconds, rates, flops, peak, values[name], counted)
        return took
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _answer(name: str, pipe: Any) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        raise TubeletError(
            f"The process of the row {name!r} ended by itself: too little memory, most likely. Close "
            "other programs, or choose a smaller size or fewer clips."
        ) from None
    if isinstance(answer, str):
        raise TubeletError(f"The row {name!r} failed:\n{answer}")
    return answer


def _work(row: Row, threads: int, pipe: Any) -> None:
    """A row's process: a step each time that it is told to; at the end what it counted."""
    try:
        if threads:
            torch.set_num_threads(threads)
        step = row.make()
        value = step()
        step()
        counted = machine.counts_peak(row.device)
        if counted:
            machine.forget_peak(row.device)
        pipe.send(value)
        peak = None
        while pipe.recv():
            began = time.perf_counter()
            step()
            machine.wait(row.device)
            took = time.perf_counter() - began
            peak = machine.peak_gib(row.device) if counted else None
            # Beside a step of milliseconds, in small or without products, one product will do.
            products = machine.PRODUCTS if took > 0.1 else 1
            pipe.send((took, machine.rate(KINDS[row.precision], row.device, products)))
        # Last: a step that is counted takes its memory in another order, and leaves other holes.
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            last = step()
        pipe.send((counter.get_total_flops(), peak, last))
    except Exception:  # noqa: BLE001  (any: the parent says it)
        pipe.send(traceback.format_exc())
