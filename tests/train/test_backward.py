"""Half batches at once: the sums of the whole, in one order whatever the threads do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tubelet.backbones.vit import ViTShape
from tubelet.data.sampling import rng_for
from tubelet.decoders import DecoderShape
from tubelet.methods.run import changed
from tubelet.methods.videomae import base_k400
from tubelet.shapes import Batch, Patch
from tubelet.targets.features import Teacher
from tubelet.tasks.pretrain import Pretrain
from tubelet.train import backward as module
from tubelet.train.backward import Backward
from tubelet.train.config import derive
from tubelet.train.loop import fit
from tubelet.train.parallel import Place

PLACE = Place(torch.device("cpu"))


@pytest.fixture(autouse=True)
def two_threads_and_no_least(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "LEAST", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def made(clips: int, **changes: Any) -> tuple[Pretrain, Batch]:
    torch.manual_seed(0)
    run = changed(
        base_k400,
        clip=replace(base_k400.clip, num_frames=8, size=(32, 32)),
        encoder=ViTShape(48, 2, 3, patch=8),
        decoder=DecoderShape(32, 2, 2),
        **changes,
    )
    hidden = torch.stack([run.draw_hidden(rng_for(0, 0, i)) for i in range(clips)])
    batch = Batch(
        views={"clip": torch.randint(0, 256, (clips, 3, 8, 32, 32), dtype=torch.uint8)},
        paths=[str(i) for i in range(clips)],
        index=torch.arange(clips),
        seeds=torch.arange(clips),
        masks=run.pack(hidden),
    )
    return Pretrain(run.model().train()), batch


def gradients(
    task: Any, batch: Batch, *, times: int = 1, **options: Any
) -> tuple[Any, list[Tensor]]:
    run = Backward(task, PLACE, **options)
    for parameter in run.parameters:
        parameter.grad = None
    terms: Any = {}
    for _ in range(times):
        terms = run(batch)
    run.close()
    return terms, [p.grad.clone() for p in run.parameters if p.grad is not None]


@pytest.mark.parametrize("clips", [2, 4])
@pytest.mark.parametrize("changes", [{}, {"drop_path": 0.5}])
def test_halves_have_the_sums_of_the_whole(clips: int, changes: dict[str, Any]) -> None:
    task, batch = made(clips, **changes)
    whole, expected = gradients(task, batch, whole=True)
    halves, found = gradients(task, batch)
    assert set(halves) == set(whole) == {"loss", "pixels"}
    for name in whole:
        assert halves[name][0].item() == pytest.approx(whole[name][0].item(), rel=1e-6)
        assert float(halves[name][1]) == float(whole[name][1])
        assert not halves[name][0].requires_grad
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_it_is_halves_that_are_computed() -> None:
    task, batch = made(4)
    seen: list[int] = []
    forward = task.model.forward

    def watched(clip: Tensor, *args: Any) -> Any:
        seen.append(len(clip))
        assert torch.get_num_threads() == 1
        return forward(clip, *args)

    task.model.forward = watched
    gradients(task, batch)
    assert seen == [2, 2]
    assert torch.get_num_threads() == 2


def test_accumulated_gradients_are_the_same_each_time() -> None:
    """Of three summands the order counts: what was there before is added last."""
    task, batch = made(4)
    _, first = gradients(task, batch, times=3)
    for _ in range(5):
        _, again = gradients(task, batch, times=3)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    _, whole = gradients(task, batch, times=3, whole=True)
    for one, other in zip(first, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_operations_are_counted_though_two_threads_compute_them() -> None:
    task, batch = made(4)
    counts = []
    for whole in (True, False):
        with FlopCounterMode(display=False) as counter:
            gradients(task, batch, whole=whole)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_clips_that_belong_together_stay_together() -> None:
    cuts = {}
    for clips, together in [(6, 0), (6, 1), (6, 2), (6, 4), (8, 2), (8, 4), (5, 1), (11, 1)]:
        task, batch = made(clips)
        task.together = together
        cuts[clips, together] = Backward(task, PLACE).cut(batch)
    # Of 5 clips the half of 3 would take longer than all five do on both cores: whole.
    assert cuts == {
        (6, 0): 0,
        (6, 1): 3,
        (6, 2): 0,
        (6, 4): 0,
        (8, 2): 4,
        (8, 4): 4,
        (5, 1): 0,
        (11, 1): 6,
    }


def test_whole_where_halves_would_not_be_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = made(4)
    assert Backward(task, PLACE).cut(batch) == 2
    assert Backward(task, PLACE, whole=True).cut(batch) == 0
    assert Backward(task, Place(torch.device("cpu"), 0, 2)).cut(batch) == 0
    task.model.add_module("noise", nn.Dropout(0.1))  # two threads would draw in any order
    assert Backward(task, PLACE).cut(batch) == 0
    task.model.add_module("noise", nn.BatchNorm1d(2))  # of two batches it would know two means
    assert Backward(task, PLACE).cut(batch) == 0
    teacher = Teacher(
        nn.Identity(), width=2, patch=Patch(1, 1, 1), sees="clip", mean=(0,), std=(1,)
    )
    task.model.add_module("noise", teacher)  # of others: it may keep what it saw last
    assert Backward(task, PLACE).cut(batch) == 0
    task.model.add_module("noise", nn.Dropout(0.0))
    assert Backward(task, PLACE).cut(batch) == 2
    monkeypatch.setattr(module, "LEAST", 1e14)
    assert Backward(task, PLACE).cut(batch) == 0


def test_an_error_of_a_half_is_raised() -> None:
    task, batch = made(4)
    forward = task.model.forward

    def failing(clip: Tensor, masks: Any, seeds: Tensor, views: Any) -> Any:
        if int(seeds[0]):
            raise ValueError("the second half")
        return forward(clip, masks, seeds, views)

    task.model.forward = failing
    with pytest.raises(ValueError, match="the second half"):
        gradients(task, batch)


def test_a_run_of_halves_is_resumed_exactly(tiny: ModuleType, tmp_path: Any) -> None:
    class Apart(tiny.Tiny):
        together = 1

    whole, parts, plain = tmp_path / "whole", tmp_path / "parts", tmp_path / "plain"
    tiny.train(whole, Apart())
    tiny.train(plain, tiny.Tiny())
    config = tiny.settings()
    derived = derive(config, 2 * tiny.SIZE)

    def until(start: int) -> Iterator[Batch]:
        yield from islice(tiny.batches(derived)(start), 4 * derived.accumulate + 1)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(Apart(), until, config, derived, parts, tiny.HEADER)
    tiny.train(parts, Apart(), resume=True)
    assert tiny.same(tiny.contents(parts), tiny.contents(whole))
    once = tiny.contents(plain)
    for name, value in tiny.contents(whole).items():
        if name.startswith("model.safetensors"):
            torch.testing.assert_close(value, once[name], rtol=1e-4, atol=1e-5)
