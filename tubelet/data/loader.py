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
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from tubelet.data.clips import ClipDataset, EvalDataset, Key, Pack, Views, collate
from tubelet.data.lists import Part
from tubelet.data.order import check_drawn, epoch_order, mixed_order, weighted
from tubelet.data.workers import batches_of
from tubelet.errors import TubeletError
from tubelet.shapes import Batch

log = logging.getLogger("tubelet")


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


class Order:
    """The keys of each micro-batch of one process, from `start_step` to `total_steps`.

    `parts`: of a list of several sources; they matter where they have weights.
    """

    def __init__(
        self,
        videos: int,
        *,
        parts: Sequence[Part] = (),
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
        check_drawn(parts, self.steps_per_epoch * batch_size)
        self.videos = videos
        self.parts = parts
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
        passes, order, of_epoch = np.empty(0), np.empty(0), -1
        for step in range(self.start_step, self.total_steps):
            epoch, update = divmod(step, self.steps_per_epoch)
            if epoch != of_epoch:
                (passes, order), of_epoch = self._epoch(epoch), epoch
            first = update * self.batch_size + self.rank * share
            for start in range(first, first + share, self.micro_batch):
                mine = slice(start, start + self.micro_batch)
                yield [Key(int(p), int(i)) for p, i in zip(passes[mine], order[mine], strict=True)]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The `Key.epoch` and `Key.index` of the draws of an epoch, int64 [n] each."""
        if self.shuffle and weighted(self.parts):
            draws = self.steps_per_epoch * self.batch_size
            return mixed_order(self.parts, draws, self.seed, epoch)
        listed = np.arange(self.videos)
        order = epoch_order(self.videos, self.seed, epoch) if self.shuffle else listed
        return np.full(self.videos, epoch), order


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
    `share` of the list, or when so many of the first draws meet one that the list must hold more
    than `share` (by four standard deviations; the way to notice early in a long list). One bad
    file is always let pass, however short the list or often drawn, unless `share` is 0.
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
        # Paths, not draws: a source with a large weight may meet the same one again and again.
        too_often = len(self.paths) > expected + 4 * math.sqrt(max(expected, 1.0))
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
        self._count = dataset.count if dataset.parts else None
        self._batches: Callable[[], Iterator[Batch]] = functools.partial(
            batches_of, dataset, order, functools.partial(collate, pack=pack), workers, pin
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches():
            self.unreadable.note(batch.unreadable, len(batch.paths) // self._num_sample)
            if self._count is not None:
                batch.sources = self._count(batch.index)
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
        parts=dataset.parts,
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
            batches_of, dataset, batches, list, workers, pin
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
