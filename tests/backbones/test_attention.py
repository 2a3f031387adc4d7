"""The ways to compute softmax attention are equal, and chosen where the choice is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # pyright: ignore
from torch.utils.flop_counter import FlopCounterMode

from tubelet import choices
from tubelet.backbones import attention, layers

SIZES = {  # [B,heads,L',L,d]
    "all": (2, 3, 20, 20, 16),
    "few queries": (1, 2, 5, 33, 8),
    "few keys": (2, 1, 41, 6, 24),
}


def inputs(size: str, kind: torch.dtype) -> list[Tensor]:
    """Cut out of one tensor, as those of a block are."""
    batch, heads, queries, keys, width = SIZES[size]
    generator = torch.Generator().manual_seed(3)
    long = torch.randn(batch, max(queries, keys), 3 * heads * width, generator=generator)
    q, k, v = (x.unflatten(-1, (heads, width)).transpose(1, 2) for x in long.to(kind).chunk(3, -1))
    return [x.requires_grad_() for x in (q[:, :, -queries:], k[:, :, :keys], v[:, :, :keys])]


def slow(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The formula, in float64."""
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
    powers = torch.exp(logits - logits.amax(-1, keepdim=True))
    return torch.einsum("bhqk,bhkd->bhqd", powers / powers.sum(-1, keepdim=True), v)


def with_gradients(way: Any, tensors: list[Tensor], scale: float) -> list[Tensor]:
    out = way(*tensors, scale)
    upon = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, tensors, upon)]


@pytest.mark.parametrize("pieces", ["one", "many"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", attention.WAYS)
def test_ways_are_equal(name: str, size: str, pieces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if pieces == "many":
        monkeypatch.setattr(attention, "PIECE", 100)
        monkeypatch.setattr(attention, "ROWS", 3)
    for scale in (0.2, 0.5):
        for kind, error in ((torch.float32, 1e-6), (torch.bfloat16, 0.02)):  # bf16 has 8 bits
            tensors = inputs(size, kind)
            found = with_gradients(attention.WAYS[name], tensors, scale)
            exact = [x.detach().double().requires_grad_() for x in tensors]
            for one, wanted in zip(found, with_gradients(slow, exact, scale), strict=True):
                assert one.dtype is kind and one.shape == wanted.shape
                assert (one - wanted).norm() < error * wanted.norm()
            with torch.no_grad():
                assert torch.equal(attention.WAYS[name](*tensors, scale), found[0])


def test_the_gradients_of_pieces_are_added_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else many pieces would lose more than few."""
    monkeypatch.setattr(attention, "ROWS", 1)
    torch.manual_seed(0)
    tensors = [torch.randn(1, 1, n, 8).bfloat16().requires_grad_() for n in (512, 16, 16)]
    exact = [x.detach().double().requires_grad_() for x in tensors]
    wanted = with_gradients(slow, exact, 0.3)
    errors = []
    for piece in (2**20, 32):
        monkeypatch.setattr(attention, "PIECE", piece)
        found = with_gradients(attention.chunked, tensors, 0.3)
        errors += [max(float((found[i] - wanted[i]).norm() / wanted[i].norm()) for i in (2, 3))]
    assert errors[1] < 1.3 * errors[0]


class Spy:
    """Ways that say who was called, in a time of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float):
        self.called: list[str] = []
        self.now = 0.0
        for name, took in seconds.items():
            monkeypatch.setitem(attention.WAYS, name, self.way(name, took, attention.WAYS[name]))
        monkeypatch.setattr(choices, "perf_counter", lambda: self.now)
        monkeypatch.setattr(attention, "fused", attention.WAYS["fused"])

    def way(self, name: str, took: float, way: Any) -> Any:
        def act(*args: Any) -> Tensor:
            self.called.append(name)
            self.now += took
            return way(*args)

        return act

    def used(self, tensors: list[Tensor]) -> str:
        """What computes attention now."""
        attention.attend(*tensors)
        return self.called[-1]


@pytest.fixture
def low() -> list[Tensor]:
    return inputs("all", torch.bfloat16)


def test_each_shape_and_use_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, low: list[Tensor]
) -> None:
    spy, made = Spy(monkeypatch, fused=3, plain=2, chunked=1), {}
    with choices.kept(made):
        assert spy.used(low) == "chunked" and len(spy.called) > 4
        spy.called.clear()
        assert spy.used(low) == "chunked" and len(spy.called) == 1
        with torch.inference_mode():
            spy.used(low)
        other = inputs("few keys", torch.bfloat16)
        spy.used(other)
    assert len(made) == 3 and set(made.values()) == {"chunked"}


def test_weights_that_would_fill_the_memory_are_not_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch, fused=3, plain=1, chunked=2)
    monkeypatch.setattr(attention, "PLAIN_KEYS", 2)
    with choices.kept({}):
        assert spy.used(inputs("all", torch.bfloat16)) == "plain"  # 20 keys, width 16
        assert spy.used(inputs("few queries", torch.bfloat16)) == "chunked"  # 33 keys, width 8


def test_float32_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    spy, made = Spy(monkeypatch, fused=3, plain=1, chunked=2), {}
    with choices.kept(made):
        assert spy.used(inputs("all", torch.float32)) == "fused"
        with torch.autocast("cpu", torch.bfloat16):
            assert spy.used(inputs("all", torch.float32)) == "plain"
    assert len(made) == 1


def test_it_is_fused_where_somebody_looks_on(
    monkeypatch: pytest.MonkeyPatch, low: list[Tensor]
) -> None:
    spy, made = Spy(monkeypatch, fused=3, plain=1, chunked=2), {}
    assert spy.used(low) == "fused"  # no one keeps a choice
    with choices.kept(made):
        with FlopCounterMode(display=False):
            assert spy.used(low) == "fused"
        with FakeTensorMode():
            assert spy.used([torch.empty(x.shape, dtype=x.dtype) for x in low]) == "fused"
        compiled = torch.compile(attention.attend, backend="eager", fullgraph=True)
        compiled(*low)
        assert spy.called[-1] == "fused" and not made


def test_measuring_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn from torch's generator, and a block that is computed again in the backward
    pass keeps as much as it did."""
    block = layers.Block(48, 2, 4, 0, 0)
    x = torch.randn(2, 9, 48)

    def gradients(recompute: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            out = layers.run_block(block, x, recompute=recompute)
        return list(torch.autograd.grad(out.float().square().sum(), block.parameters()))

    for first in (True, False):
        Spy(monkeypatch, fused=3, plain=1, chunked=2)
        with choices.kept({}):
            torch.manual_seed(0)
            one = gradients(recompute=first)
            drawn = torch.rand(3)
            torch.manual_seed(0)
            assert torch.equal(torch.rand(3), drawn)
            other = gradients(recompute=not first)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_blocks_compute_almost_the_same_whatever_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block, x = layers.Block(48, 2, 4, 0, 0), torch.randn(2, 30, 48)
    exact = block(x).detach()
    for quickest in attention.WAYS:
        spy = Spy(monkeypatch, **{name: 1 + (name != quickest) for name in attention.WAYS})
        with choices.kept({}), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            out = block(x).detach()
        assert spy.called[-1] == quickest
        assert 0 < (out - exact).norm() / exact.norm() < 0.01
