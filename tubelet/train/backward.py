"""Forward and backward of a micro-batch: whole, or on a CPU as two halves at once, each on half of its cores.

Threads that share one product of matrices wait for one another thousands of times a step, and small
products do not divide well; halves meet once. The sums are the same up to rounding.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from threading import Barrier
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from tubelet.choices import is_watched
from tubelet.shapes import Batch, Terms
from tubelet.train import allocator
from tubelet.train.parallel import Place

# Trained parameters times pixels of a batch. Below it Python, which computes one half at a time, is
# most of a step: docs/log.md.
LEAST = 1e14
UNEVEN = 1.1  # the larger half through half of the clips, at most: the other waits for it


DRAWING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.RReLU)


class Learner(Protocol):
    """What is asked of a task here; see `loop.Task`."""

    model: nn.Module

    def __call__(self, batch: Batch) -> Terms: ...


class Backward:
    """Adds the gradients of micro-batches up in the parameters.

    Halves are taken where that is exact and pays: in one process on a CPU of several cores, not
    compiled, of a task whose terms are sums over clips (`together`, see `loop.Task`), and of batches
    large enough. What is chosen depends on the run and its batches alone, so a resumed run is the same.
    """

    def __init__(
        self, task: Learner, place: Place, *, bf16: bool = False, whole: bool = False
    ) -> None:
        self.task = task
        self.place = place
        self.bf16 = bf16
        self.parameters = [p for p in task.model.parameters() if p.requires_grad]
        self.together: int = 0 if whole else getattr(task, "together", 0)
        threads = torch.get_num_threads()
        alone = place.device.type == "cpu" and place.world == 1 and threads % 2 == 0
        if not alone or one_at_a_time(task.model):
            self.together = 0
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, batch: Batch) -> Terms:
        """A batch on the device -> the task's terms, without their graphs."""
        cut = self.cut(batch)
        terms = self._halves(batch, cut) if cut else self._whole(batch)
        allocator.adapt()
        return terms

    def cut(self, batch: Batch) -> int:
        """The clips of the first half; 0: the batch is computed whole."""
        clips = len(batch.paths)
        if not self.together or clips < 2 * self.together:
            return 0
        first = -(-clips // (2 * self.together)) * self.together
        if 2 * first > UNEVEN * clips:
            return 0
        pixels = sum(view.numel() for view in batch.views.values())
        if pixels * sum(p.numel() for p in self.parameters) < LEAST:
            return 0
        return first

    def _whole(self, batch: Batch) -> Terms:
        with self.autocast():
            terms = self.task(batch)
        terms["loss"][0].backward()
        return {name: (value.detach(), weight) for name, (value, weight) in terms.items()}

    def _halves(self, batch: Batch, cut: int) -> Terms:
        """An error of one is raised when both have ended."""
        # Which half adds to a gradient first is chance, and two numbers have one sum in any order;
        # three have not.
        before = [(p, p.grad) for p in self.parameters if p.grad is not None]
        for parameter, _ in before:
            parameter.grad = None
        one, other = self._both(batch.part(slice(0, cut)), batch.part(slice(cut, None)))
        for parameter, gradient in before:
            parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        return {
            name: (value + other[name][0], weight + other[name][1])
            for name, (value, weight) in one.items()
        }

    def _both(self, one: Batch, other: Batch) -> tuple[Terms, Terms]:
        if is_watched():  # by a counter of operations, of this thread alone
            return self._whole(one), self._whole(other)
        if self._pool is None:
            self._pool = _pool_of_two()
        done = [self._pool.submit(self._whole, half) for half in (one, other)]
        wait(done)
        return done[0].result(), done[1].result()

    def autocast(self) -> AbstractContextManager[Any]:
        if self.bf16:
            # A forward uses each weight once, so kept copies would serve nothing: of a giant, 2 GB.
            return torch.autocast(self.place.device.type, torch.bfloat16, cache_enabled=False)
        return nullcontext()

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def one_at_a_time(model: nn.Module) -> bool:
    """Whether parts of it must see a batch whole, or by one thread: what draws from torch's generator
    (ours draw by the samples' seeds) or learns from the statistics of a batch, and networks of others
    that are only read, of which it is not known."""

    def alone(part: nn.Module) -> bool:
        drawing = isinstance(part, DRAWING) and getattr(part, "p", 1) > 0
        return drawing or isinstance(part, _BatchNorm) or not getattr(part, "in_threads", True)

    return any(alone(part) for part in model.modules())


def _pool_of_two() -> ThreadPoolExecutor:
    """Two threads, each with half of the cores that this one computes on."""
    threads, both = torch.get_num_threads(), Barrier(3)

    def begin() -> None:
        torch.get_num_threads()  # else the thread's first product would take the process's number
        torch.set_num_threads(max(1, threads // 2))
        both.wait()

    pool = ThreadPoolExecutor(2, "half", begin)
    for _ in range(2):
        pool.submit(int)
    both.wait()
    torch.set_num_threads(threads)  # of this thread, and of those that begin later
    return pool
