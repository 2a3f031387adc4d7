"""The one DataLoader: worker processes that stay, end with their parent, and fail in our words."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from tubelet.data.isolate import safe_context
from tubelet.errors import TubeletError

T = TypeVar("T")

POLL_SECONDS = 5  # how often to look, while waiting, whether a worker has died
TIMEOUT_SECONDS = 1800  # without a batch: a worker hangs on a file


class _Failure:
    """A TubeletError on its way to the main process, with its message as it is."""

    def __init__(self, message: str) -> None:
        self.message = message

    def pin_memory(self) -> _Failure:
        return self


class _Guarded(Dataset[Any], Generic[T]):
    """Fetches a whole batch; user errors come back as data, so that no traceback wraps them."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[Sequence[Any]], T]) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitem__(self, keys: Sequence[Any]) -> T | _Failure:
        try:
            return self.collate([self.dataset[key] for key in keys])
        except TubeletError as error:
            return _Failure(str(error))


def batches_of(
    dataset: Dataset[Any],
    keys: Iterable[Any],
    collate: Callable[[Sequence[Any]], T],
    workers: int,
    pin: bool,
) -> Iterator[T]:
    """Batches in the order of `keys`; one DataLoader, whose workers stay until the end."""
    loader = DataLoader(
        _Guarded(dataset, collate),
        sampler=keys,  # with batch_size None, each of its items is one fetch
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context=safe_context() if workers else None,
        worker_init_fn=_start_worker if workers else None,
        timeout=POLL_SECONDS if workers else 0,
        generator=torch.Generator(),  # the global one is not touched
        collate_fn=_as_it_is,
    )
    iterator = _start(loader)
    while (batch := _fetch(iterator, workers)) is not None:
        if isinstance(batch, _Failure):
            raise TubeletError(batch.message)
        yield batch


def _as_it_is(batch: T) -> T:
    return batch


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends them
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """Ends this worker when the main process is gone, however it went.

    torch looks for a change of the parent's id, and the parent of a worker is the fork server,
    which lives as long as any worker does.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start(loader: DataLoader[T]) -> Iterator[T]:
    """The loader's iterator, its workers started."""
    try:
        with warnings.catch_warnings():  # torch's words for what the error below says
            warnings.filterwarnings("ignore", message="Got pickle error")
            return iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error):
            raise
        raise TubeletError(
            f"This cannot be sent to the loading workers: {error}. Use a function at the top level "
            "of a module (or functools.partial of one) as mask, asked and pack; or workers=0."
        ) from error


def _fetch(iterator: Iterator[T], workers: int) -> T | None:
    """The next batch, None at the end; a worker that died or hangs is said in our words."""
    waited_seconds = 0
    while True:
        try:
            return next(iterator, None)
        except RuntimeError as error:
            message = str(error)
            if "DataLoader timed out" in message:
                waited_seconds += POLL_SECONDS
                if waited_seconds < TIMEOUT_SECONDS:
                    continue  # no worker has died; a batch may take long
                raise TubeletError(
                    f"No batch in {waited_seconds} s: a loading worker hangs, mostly on a file or a "
                    "network drive. `tubelet check` on this data finds the file."
                ) from error
            if "exited unexpectedly" not in message and "killed by signal" not in message:
                raise
            raise TubeletError(_why_dead(iterator, workers)) from error


def _why_dead(iterator: Any, workers: int) -> str:
    """What the exit code of a dead worker says: above 0 an error of Python, else a signal."""
    dead = [worker.exitcode for worker in iterator._workers if worker.exitcode]
    if any(code > 0 for code in dead):
        return (
            "A loading worker could not start (it has printed why, above). A script needs "
            "`if __name__ == '__main__':` around its start, and what is sent to workers (mask, "
            "asked, pack, a data set of your own) has to be importable there: in a module, not in a "
            "notebook. --workers 0 decodes in the main process."
        )
    names = ", ".join(signal.Signals(-code).name for code in dead) or "no exit code"
    return (
        f"A loading worker was killed ({names}). Mostly memory has run out, or with SIGBUS shared "
        f"memory (`tubelet doctor` shows it): pass fewer --workers than {workers}, or a smaller "
        "--micro-batch. With SIGSEGV a file has crashed the decoder: `tubelet check` on this data "
        "finds it."
    )
