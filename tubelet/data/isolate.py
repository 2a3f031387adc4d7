"""Running a task on many files in processes that may crash or hang without harm to the rest."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from tubelet.errors import TubeletError

Item = TypeVar("Item")
Result = TypeVar("Result")

START_SECONDS = 120  # for a process to import the library
IMPORTED = ["tubelet.data.clips"]  # by the server that processes come from: torch, PyAV


def cpu_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def safe_context(*more: str) -> Any:
    """A way to start processes that inherit no threads, locks or CUDA state, as a fork would.

    Where the system allows, they come from a server that has imported torch and PyAV once, and the
    modules `more` if it was not running yet.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED, *more])
    return context


def each(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    lost: Callable[[Item, str], Result],
    timeout_seconds: float,
    progress: Callable[[int, int], None] | None = None,
    arrived: Callable[[Result], None] | None = None,
) -> list[Result]:
    """`task` of every item, in their order; 0 workers runs it here, unprotected.

    An item whose process crashes, or that takes longer than `timeout_seconds`, gives
    `lost(item, why)`, and the process is replaced. `arrived(result)` and then
    `progress(done, of)` follow every item, here, in the order in which they end.
    """
    done: dict[int, Result] = {}

    def keep(at: int, result: Result) -> None:
        done[at] = result
        if arrived is not None:
            arrived(result)
        if progress is not None:
            progress(len(done), len(items))

    if workers == 0:
        for at, item in enumerate(items):
            keep(at, task(item))
        return [done[at] for at in range(len(items))]
    context = safe_context()
    waiting = list(range(len(items)))[::-1]
    pool = [_Worker(context, task) for _ in range(min(workers, len(items)))]
    try:
        while len(done) < len(items):
            for number, worker in enumerate(pool):
                if why := worker.trouble(timeout_seconds):
                    pool[number] = _Worker(context, task)
                    if worker.at is not None:
                        keep(worker.at, lost(items[worker.at], why))
                elif worker.at is None and waiting and worker.started:
                    worker.give(waiting.pop(), items)
            for worker in _with_news(pool):
                if (answer := worker.receive()) is not None:
                    keep(*answer)
    finally:
        for worker in pool:
            worker.end()
    return [done[at] for at in range(len(items))]


class _Worker:
    """One process, and the item that it works on."""

    def __init__(self, context: BaseContext, task: Callable[[Any], Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(  # pyright: ignore[reportAttributeAccessIssue]
            target=_serve, args=(theirs, task), daemon=True
        )
        self.process.start()
        theirs.close()
        self.started = False
        self.gone = False
        self.at: int | None = None
        self._since = time.monotonic()

    def give(self, at: int, items: Sequence[Any]) -> None:
        self.at, self._since = at, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it died since; `trouble` tells
            self.pipe.send((at, items[at]))

    def receive(self) -> tuple[int, Any] | None:
        """An answer, or None where the process has only just started or has died."""
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.gone = True
            return None
        if answer is None:
            self.started = True
            return None
        self.at = None
        at, result, error = answer
        if error is not None:
            raise error
        return at, result

    def trouble(self, timeout_seconds: float) -> str:
        """Why the item will not come, and the process is ended; "" while all is well."""
        seconds = time.monotonic() - self._since
        why = ""
        if self.gone:
            self.process.join(1)
            why = f"reading it crashed the decoder (exit code {self.process.exitcode})"
        elif self.at is not None and seconds > timeout_seconds:
            why = f"reading it did not end within {timeout_seconds:.0f} s"
        if not self.started and (why or seconds > START_SECONDS):
            raise TubeletError(
                "A worker process could not start. A script needs `if __name__ == '__main__':` "
                "around its first call; or pass workers=0."
            )
        if why:
            self.end()
        return why

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _with_news(pool: Sequence[_Worker]) -> list[_Worker]:
    ready = wait([worker.pipe for worker in pool], timeout=0.2)
    return [worker for worker in pool if worker.pipe in ready]


def _serve(pipe: Connection, task: Callable[[Any], Any]) -> None:
    """Answers (place, item) by (place, result, error) until the other side is gone."""
    try:
        pipe.send(None)
        while True:
            at, item = pipe.recv()
            try:
                answer = (at, task(item), None)
            except Exception as error:  # noqa: BLE001 - raised again where the pool is
                answer = (at, None, error)
            pipe.send(answer)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
