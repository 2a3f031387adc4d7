"""Batches on their way to the device: on a GPU the next one travels while the one at hand is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch

from tubelet.shapes import Batch


class Copier(Protocol):
    """How copies are made without waiting for them."""

    def begin(self, batch: Batch) -> Batch:
        """-> a copy on the device, which may not be there yet."""
        ...

    def end(self, copy: Batch) -> None:
        """What the device is given from here on finds the copy there."""
        ...


class Beside:
    """Copies on a stream of their own, beside what a GPU computes; from pinned memory, as others are
    copied by a processor that waits."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def begin(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self.stream):
            return batch.to(self.device, non_blocking=True)

    def end(self, copy: Batch) -> None:
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        copy.record_stream(computing)


class Ahead(Iterator[Batch]):
    """The batches as they come, and by `copy` the one at hand on the device.

    With a `copier` one batch more than the one at hand is taken, and its copy has begun. So an error
    of the loader's comes a batch earlier; what is computed is the same.
    """

    def __init__(
        self, batches: Iterable[Batch], device: torch.device, copier: Copier | None = None
    ) -> None:
        """`copier`: the one of a GPU where there is none."""
        self._batches = iter(batches)
        self._device = device
        self._copier = Beside(device) if copier is None and device.type == "cuda" else copier
        self._next: tuple[Batch, Batch] | None = None
        self._begun = False
        self._copy: Batch | None = None

    def __next__(self) -> Batch:
        if self._copier is None:
            batch = next(self._batches)
            self._copy = batch.to(self._device)
            return batch
        if not self._begun:
            self._begun, self._next = True, self._following(self._copier)
        if self._next is None:
            self._copy = None
            raise StopIteration
        batch, self._copy = self._next
        self._copier.end(self._copy)  # before the next one begins, for which nothing has to wait
        self._next = self._following(self._copier)
        return batch

    @property
    def copy(self) -> Batch:
        """The last batch, on the device."""
        assert self._copy is not None, "no batch is at hand"
        return self._copy

    def _following(self, copier: Copier) -> tuple[Batch, Batch] | None:
        batch = next(self._batches, None)
        return None if batch is None else (batch, copier.begin(batch))
