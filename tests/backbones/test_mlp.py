"""The MLP keeps what goes into GELU and not what comes out, and is the same as torch's parts."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tubelet.backbones.layers import Mlp


def parts(mlp: Mlp, x: Tensor) -> Tensor:
    return mlp.fc2(nn.functional.gelu(mlp.fc1(x)))


def made() -> tuple[Mlp, Tensor]:
    torch.manual_seed(0)
    return Mlp(24, 96, 16), torch.randn(2, 5, 24)


@pytest.mark.parametrize("bf16", [False, True])
def test_outputs_and_gradients_are_those_of_the_parts(bf16: bool) -> None:
    mlp, x = made()
    found: list[list[Tensor]] = []
    for forward in (mlp, lambda x: parts(mlp, x)):
        own = x.clone().requires_grad_()
        mlp.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if bf16 else nullcontext():
            y = forward(own)
        assert y.dtype is (torch.bfloat16 if bf16 else torch.float32)
        y.float().square().sum().backward()
        grads = [p.grad for p in (own, *mlp.parameters())]
        assert all(g is not None and g.dtype is torch.float32 for g in grads)
        found.append([y.float(), *(g for g in grads if g is not None)])
    room: dict[str, Any] = {"rtol": 2e-2, "atol": 2e-2} if bf16 else {"rtol": 1e-6, "atol": 1e-6}
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **room)


def kept(mlp: Mlp, x: Tensor) -> int:
    """Numbers that a forward keeps beside weights."""
    own = {p.untyped_storage().data_ptr() for p in (*mlp.parameters(), x)}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mlp(x).sum()
    return sum(seen.values())


def test_one_tensor_of_the_hidden_width_is_kept() -> None:
    mlp, x = made()
    assert kept(mlp, x) == 2 * 5 * 96
    mlp.fc2.register_forward_hook(lambda *_: None)  # its parts then, and GELU's output with them
    assert kept(mlp, x) == 2 * 2 * 5 * 96


def test_what_stands_in_for_a_layer_is_called() -> None:
    """An adapter around it, or a hook that looks at it."""
    mlp, x = made()

    class Doubled(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    plain = mlp(x)
    seen: list[Tensor] = []
    hook = mlp.fc2.register_forward_hook(lambda module, args, output: seen.append(output))
    mlp(x)
    assert len(seen) == 1 and torch.equal(seen[0], plain)
    hook.remove()
    mlp.fc2 = Doubled(mlp.fc2)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(mlp(x), 2 * plain)
