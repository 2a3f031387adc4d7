"""Batches in an order that depends on (seed, epoch) alone, from workers that live for the run.

Update `s` takes the positions [s*batch_size, (s+1)*batch_size) of its epoch's order. Process r of
`world` takes the r-th of `world` equal consecutive parts, cut into consecutive micro-batches: put
together again, ranks first, they are the same batch for any number of processes, micro-batches and
workers. So a run that starts at step s continues exactly where an uninterrupted one would be.
"""

from __future__ import annotations

import functools
import logging
import math
import pickle
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tubelet.data.clips import ClipDataset, EvalDataset, Key, Pack, Views, collate
from tubelet.data.isolate import safe_context
from tubelet.errors import TubeletError
from tubelet.shapes import Batch

log = logging.getLogger("tubelet")

T = TypeVar("T")

POLL_SECONDS = 5  # how often to look, while waiting, whether a worker has died
TIMEOUT_SECONDS = 1800  # without a batch: a worker hangs on a file
ORDER_STREAM = 0x6F72646572  # keeps the order's random numbers apart from all others


def steps_per_epoch(videos: int, batch_size: int) -> int:
    """Updates in an epoch; the last videos that fill no batch wait for another epoch's order."""
    if batch_size < 1:
        raise TubeletError(f"batch_size is {batch_size}: expected 1 or more videos an update.")
    if videos < batch_size:
        raise TubeletError(
            f"{videos} videos, fewer than one batch of {batch_size}: pass --batch-size {videos} or "
            "less."
        )
    return videos // batch_size


def epoch_order(videos: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [videos]: the order of an epoch, a function of (seed, epoch) alone."""
    # Raw 64-bit draws of a bit generator, which NumPy keeps stable over versions.
    draws = np.random.PCG64([ORDER_STREAM, seed, epoch]).random_raw(videos)
    return np.argsort(draws, kind="stable")


class Order:
    """The keys of each micro-batch of one process, from `start_step` to `total_steps`."""

    def __init__(
        self,
        videos: int,
        *,
        batch_size: int,
        micro_batch: int,
        seed: int,
        total_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(videos, batch_size)
        _divides(batch_size, world, micro_batch)
        if not 0 <= rank < world:
            raise TubeletError(f"rank {rank} of {world} processes: expected 0 to {world - 1}.")
        self.videos = videos
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.seed = seed
        self.start_step = start_step
        self.total_steps = total_steps
        self.rank = rank
        self.world = world
        self.shuffle = shuffle

    def __len__(self) -> int:
        """Micro-batches."""
        steps = max(0, self.total_steps - self.start_step)
        return steps * (self.batch_size // self.world // self.micro_batch)

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.batch_size // self.world
        order, of_epoch = np.arange(self.videos), -1
        for step in range(self.start_step, self.total_steps):
            epoch, update = divmod(step, self.steps_per_epoch)
            if self.shuffle and epoch != of_epoch:
                order, of_epoch = epoch_order(self.videos, self.seed, epoch), epoch
            first = update * self.batch_size + self.rank * share
            for start in range(first, first + share, self.micro_batch):
                yield [Key(epoch, int(i)) for i in order[start : start + self.micro_batch]]


def _divides(batch_size: int, world: int, micro_batch: int) -> None:
    if batch_size % world:
        raise TubeletError(
            f"batch_size {batch_size} cannot be shared by {world} processes: pass a multiple, such as "
            f"--batch-size {max(1, batch_size // world) * world}."
        )
    share = batch_size // world
    if micro_batch < 1 or share % micro_batch:
        fits = [n for n in range(1, share + 1) if share % n == 0 and n <= max(1, micro_batch)]
        raise TubeletError(
            f"micro_batch {micro_batch} does not divide the {share} videos that each of {world} "
            f"processes has of a batch of {batch_size}: pass --micro-batch {fits[-1]}."
        )


class Unreadable:
    """Counts the videos that training had to replace, and stops a run that has too many.

    Each path is logged once. The run stops when the distinct unreadable paths are more than
    `share` of the list, or when so many draws fail that the list must hold more than `share` (by
    four standard deviations; the way to notice early in a long list). One bad file is always
    let pass, however short the list, unless `share` is 0.
    """

    def __init__(self, videos: int, share: float) -> None:
        self.allowed = max(1, int(share * videos)) if share > 0 else 0
        self.share = max(share, self.allowed / videos)
        self.videos = videos
        self.paths: dict[str, int] = {}  # path: how often it was drawn
        self.drawn = 0

    @property
    def replaced(self) -> int:
        """Draws that were replaced so far."""
        return sum(self.paths.values())

    def note(self, unreadable: Iterable[str], drawn: int) -> None:
        """Takes account of one batch of `drawn` videos. Raises TubeletError above the share."""
        self.drawn += drawn
        for path in unreadable:
            self.drawn += 1
            if path not in self.paths:
                log.warning("unreadable, replaced by another video: %s", path)
            self.paths[path] = self.paths.get(path, 0) + 1
        expected = self.share * self.drawn
        too_often = self.replaced > expected + 4 * math.sqrt(max(expected, 1.0))
        if len(self.paths) > self.allowed or too_often:
            raise TubeletError(self._message())

    def _message(self) -> str:
        shown = "\n".join(f"  {path}" for path in list(self.paths)[:5])
        more = f"\n  ... and {len(self.paths) - 5} more" if len(self.paths) > 5 else ""
        return (
            f"Too many unreadable videos: {len(self.paths)} of {self.videos} so far "
            f"({self.replaced} of {self.drawn} draws), and {self.allowed} are let pass:\n"
            f"{shown}{more}\n"
            "`tubelet check` on this data lists all of them with the reason. Repair or remove them, "
            "or raise the share that is let pass (--max-unreadable)."
        )


class TrainLoader:
    """Iterates over micro-batches; made by `train_loader`. Each `iter` starts at `start_step`."""

    def __init__(
        self, dataset: ClipDataset, order: Order, *, workers: int, pack: Pack | None, pin: bool
    ) -> None:
        self.order = order
        self.unreadable = Unreadable(len(dataset), dataset.max_unreadable)
        self._num_sample = dataset.num_sample
        self._batches: Callable[[], Iterator[Batch]] = functools.partial(
            _batches, dataset, order, functools.partial(collate, pack=pack), workers, pin
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches():
            self.unreadable.note(batch.unreadable, len(batch.paths) // self._num_sample)
            yield batch


def train_loader(
    dataset: ClipDataset,
    *,
    batch_size: int,
    micro_batch: int,
    seed: int,
    total_steps: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 2,
    pack: Pack | None = None,
    pin: bool = False,
    shuffle: bool = True,
) -> TrainLoader:
    """Micro-batches of this process, `batch_size/world/micro_batch` an update, until `total_steps`.

    Args:
        dataset: the samples.
        batch_size: videos an update, over all processes.
        micro_batch: videos a forward of one process; with `num_sample` repeats the Batch holds
            `micro_batch * num_sample` clips.
        seed: of the order.
        total_steps: the update after which the iteration ends.
        start_step: the update to begin with (resume).
        rank, world: this process, of how many.
        workers: decoding processes; 0 decodes in this one. They stay for the whole iteration.
        pack: `tubelet.masks.pack`, where samples have masks.
        pin: pinned memory, for a copy to a GPU that does not wait.
        shuffle: False keeps the order of the list in every epoch.

    Raises:
        TubeletError: sizes that do not fit, and while iterating: too many unreadable videos, a
            worker that died or hangs.
    """
    order = Order(
        len(dataset),
        batch_size=batch_size,
        micro_batch=micro_batch,
        seed=seed,
        total_steps=total_steps,
        start_step=start_step,
        rank=rank,
        world=world,
        shuffle=shuffle,
    )
    return TrainLoader(dataset, order, workers=workers, pack=pack, pin=pin)


class EvalLoader:
    """Iterates over lists of `Views`; made by `eval_loader`. Can be iterated again."""

    def __init__(
        self, dataset: EvalDataset, batches: list[list[int]], *, workers: int, pin: bool
    ) -> None:
        self.batches = batches
        self._lists: Callable[[], Iterator[list[Views]]] = functools.partial(
            _batches, dataset, batches, list, workers, pin
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Views]]:
        return self._lists()


def eval_loader(
    dataset: EvalDataset,
    *,
    batch_size: int = 1,
    workers: int = 2,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> EvalLoader:
    """Every video of this process once, in order, as lists of up to `batch_size` `Views`.

    Process r takes videos r, r+world, ...: none is padded or repeated.
    """
    if batch_size < 1:
        raise TubeletError(f"batch_size is {batch_size}: expected 1 or more videos.")
    mine = range(rank, len(dataset), world)
    batches = [list(mine[at : at + batch_size]) for at in range(0, len(mine), batch_size)]
    return EvalLoader(dataset, batches, workers=workers, pin=pin)


# --- the one DataLoader ----------------------------------------------------------------------


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


def _batches(
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
