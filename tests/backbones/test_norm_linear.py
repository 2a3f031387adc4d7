"""A norm before a linear layer: what is normed is not kept, and all is as torch's parts give it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.backbones.layers import Block, norm_linear

WIDTH = 24


def made() -> tuple[nn.LayerNorm, nn.Linear, Tensor]:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(WIDTH, eps=1e-6), nn.Linear(WIDTH, 40)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, linear, 3 * torch.randn(2, 5, WIDTH) + 1


@pytest.mark.parametrize("kind", ["float32", "autocast", "bf16"])
def test_outputs_and_gradients_are_those_of_the_parts(kind: str) -> None:
    norm, linear, x = made()
    if kind == "bf16":
        norm, linear, x = norm.bfloat16(), linear.bfloat16(), x.bfloat16()

    def ours(x: Tensor) -> Tensor:
        return norm_linear(norm, x, linear.weight, linear.bias)

    found: list[list[Tensor]] = []
    for forward in (ours, lambda x: linear(norm(x))):
        own = x.clone().requires_grad_()
        norm.zero_grad(), linear.zero_grad()
        cast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
        with cast if kind == "autocast" else nullcontext():
            y = forward(own)
        assert y.dtype is (torch.float32 if kind == "float32" else torch.bfloat16)
        y.float().square().sum().backward()
        grads = [p.grad for p in (own, *norm.parameters(), *linear.parameters())]
        assert all(g is not None and g.dtype is x.dtype for g in grads)
        found.append([y.float(), *(g.float() for g in grads if g is not None)])
    room: dict[str, Any] = (
        {"rtol": 1e-6, "atol": 1e-5} if kind == "float32" else {"rtol": 3e-2, "atol": 0.3}
    )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **room)


def test_gradients_are_those_of_differences() -> None:
    norm, linear, x = made()
    norm, linear, x = norm.double(), linear.double(), x.double().requires_grad_()
    inputs = (x, norm.weight, norm.bias, linear.weight, linear.bias)

    def of(x: Tensor, *_: Tensor) -> Tensor:
        return norm_linear(norm, x, linear.weight, linear.bias)

    assert torch.autograd.gradcheck(of, inputs)


def kept(block: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """Shapes of the tensors of x's size that a forward keeps, x aside; each once."""
    seen: dict[int, tuple[int, ...]] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() == x.numel() and tensor.data_ptr() != x.data_ptr():
            seen[tensor.data_ptr()] = tuple(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x).sum()
    return list(seen.values())


def test_a_block_keeps_its_middle_and_not_what_is_normed() -> None:
    torch.manual_seed(0)
    block, x = Block(WIDTH, 3, 4, 0.0, 0), torch.randn(2, 7, WIDTH, requires_grad=True)
    # What attention gives, before and after it is put together, and x after attention.
    without = len(kept(block, x))
    for norm in (block.norm1, block.norm2):
        norm.register_forward_hook(lambda *_: None)
    assert len(kept(block, x)) == without + 2


def test_what_stands_in_for_a_norm_is_called() -> None:
    block, x = Block(WIDTH, 3, 4, 0.0, 0), torch.randn(2, 7, WIDTH)
    plain = block(x)
    with torch.no_grad():
        torch.testing.assert_close(block(x), plain)
    seen: list[Tensor] = []
    block.norm1.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(block(x), plain)
    assert torch.equal(seen[0], F.layer_norm(x, (WIDTH,), eps=1e-6))
    block.norm2 = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    assert not torch.allclose(block(x), plain)
