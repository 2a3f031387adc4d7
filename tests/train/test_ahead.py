"""Batches come in their order, with their copies, whether or not the next one travels meanwhile."""

from collections.abc import Iterator

import pytest
import torch

from tubelet.masks import pack
from tubelet.shapes import Batch
from tubelet.train.ahead import Ahead

CPU = torch.device("cpu")


def batches(count: int, log: list[str] | None = None) -> Iterator[Batch]:
    for i in range(count):
        if log is not None:
            log.append(f"made {i}")
        hidden = torch.tensor([[[True, False]]])
        index = torch.tensor([i])
        clip = torch.full((1, 3, 1, 2, 2), i, dtype=torch.uint8)
        yield Batch({"clip": clip}, [f"{i}.mp4"], index, index, pack(hidden))


class Told:
    """A copier that tells what it is asked for."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def begin(self, batch: Batch) -> Batch:
        self.log.append(f"begin {int(batch.index)}")
        return batch.to("cpu")

    def end(self, copy: Batch) -> None:
        self.log.append(f"end {int(copy.index)}")


@pytest.mark.parametrize("beside", [False, True])
def test_order_and_contents_stay(beside: bool) -> None:
    ahead = Ahead(batches(4), CPU, Told([]) if beside else None)
    found = 0
    for batch, expected in zip(ahead, batches(4), strict=True):
        for each in (batch, ahead.copy):
            assert each.paths == expected.paths and torch.equal(each.clip, expected.clip)
            assert each.masks is not None and expected.masks is not None
            assert torch.equal(each.masks.keep, expected.masks.keep)
        found += 1
    assert found == 4
    assert next(ahead, None) is None and next(ahead, None) is None


def test_the_next_copy_begins_before_the_one_at_hand_is_computed() -> None:
    log: list[str] = []
    ahead = Ahead(batches(3, log), CPU, Told(log))
    for batch in ahead:
        log.append(f"compute {int(batch.index)}")
    assert log == [
        *("made 0", "begin 0"),
        *("end 0", "made 1", "begin 1", "compute 0"),
        *("end 1", "made 2", "begin 2", "compute 1"),
        *("end 2", "compute 2"),
    ]


def test_nothing_is_taken_before_it_is_asked_for() -> None:
    log: list[str] = []
    ahead = Ahead(batches(3, log), CPU)
    assert log == []
    next(ahead)
    assert log == ["made 0"]  # without a GPU there is nothing to hide a copy behind


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_on_a_stream_of_their_own() -> None:
    device = torch.device("cuda")
    ahead = Ahead((batch.pin_memory() for batch in batches(6)), device)
    sums = []
    for _ in ahead:
        torch.randn(4000, 4000, device=device).mm(torch.randn(4000, 4000, device=device))
        sums.append(ahead.copy.clip.float().mean())
    assert [float(x) for x in sums] == [0, 1, 2, 3, 4, 5]
