"""What a training step keeps in memory and computes: counted on tensors that have no memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (  # pyright: ignore[reportPrivateImportUsage]
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from tubelet.train.parallel import blocks_of

Step = Callable[[nn.Module, int], Tensor]  # model, videos of a forward -> the loss
OUTSIDE, INPUTS = -1, -2  # of blocks


@dataclass(frozen=True)
class Line:
    """Bytes as a function of the videos in a forward: the fixed ones are copies of weights."""

    fixed: int
    per_video: int

    def at(self, videos: int) -> int:
        return self.fixed + self.per_video * videos


@dataclass(frozen=True)
class Count:
    """What a step keeps for its backward pass, and its operations a video."""

    outside: Line  # of the blocks
    inputs: Line  # of the blocks
    inside: tuple[Line, ...]  # each block
    flops: int  # forward and backward
    recomputed: int  # forward of the blocks that learn, once more

    def kept(self, videos: int) -> int:
        """Bytes at the end of a forward that keeps everything."""
        return self._rest(videos) + sum(block.at(videos) for block in self.inside)

    def recomputing(self, videos: int) -> int:
        """Bytes where blocks keep only their input: all of these, and the inside of one block."""
        return self._rest(videos) + max((block.at(videos) for block in self.inside), default=0)

    def _rest(self, videos: int) -> int:
        return self.outside.at(videos) + self.inputs.at(videos)


def count(
    model: nn.Module,
    step: Step,
    *,
    bf16: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Count:
    """A model on the meta device and its step -> what the step keeps and computes.

    The step is run with one video and with two, on tensors without memory: bytes grow along a line.
    Operators are those of a CPU, whose attention keeps what a GPU's fused attention keeps.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu").train()
        one, flops, recomputed = _run(model, step, 1, bf16, backward=True)
        if progress is not None:
            progress(1, 2)
        two, _, _ = _run(model, step, 2, bf16, backward=False)
        if progress is not None:
            progress(2, 2)
    blocks = len(list(blocks_of(model)))
    lines = {i: Line(2 * one[i] - two[i], two[i] - one[i]) for i in range(INPUTS, blocks)}
    inside = tuple(line for i, line in lines.items() if i >= 0)
    return Count(lines[OUTSIDE], lines[INPUTS], inside, flops, recomputed)


def _run(
    model: nn.Module, step: Step, videos: int, bf16: bool, *, backward: bool
) -> tuple[Counter[int], int, int]:
    """-> bytes by place, operations in all, those of the forward of blocks that learn."""
    ledger = Ledger(model)
    counter = _Counter()
    low = torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if bf16 else nullcontext()
    with counter, ledger.keeping(lambda: counter.flops):
        with low:
            loss = step(model, videos)
        if backward:
            loss.backward()
    model.zero_grad()
    return ledger.bytes, counter.flops, ledger.flops


class Ledger:
    """The storages that a graph keeps for its backward pass, each counted where it was first kept.

    Without those of weights and buffers, which are there in any case; works on real tensors too.
    """

    def __init__(self, model: nn.Module) -> None:
        self.bytes: Counter[int] = Counter()  # by number of the block, OUTSIDE or INPUTS
        self.flops = 0  # of the blocks' forward, where they learn
        self._blocks = list(blocks_of(model))
        self._at = OUTSIDE
        self._input = 0  # storage of what the block was given
        self._before = 0  # operations until then
        own = [*model.parameters(), *model.buffers()]
        # Kept, so that no later one gets the same address.
        self._seen = {_key(tensor): tensor.untyped_storage() for tensor in own}

    @contextmanager
    def keeping(self, flops: Callable[[], int] = int) -> Generator[None, None, None]:
        """Counts what graphs made in the block keep. `flops`: operations so far."""
        hooks: list[Any] = []
        for i, block in enumerate(self._blocks):
            hooks.append(block.register_forward_pre_hook(self._enter(i, flops)))
            hooks.append(block.register_forward_hook(self._leave(flops)))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, i: int, flops: Callable[[], int]) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._at, self._input = i, _key(args[0])
            self._before = flops()

        return enter

    def _leave(self, flops: Callable[[], int]) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._at = OUTSIDE
            if torch.is_grad_enabled():
                self.flops += flops() - self._before

        return leave

    def _keep(self, tensor: Tensor) -> Tensor:
        key = _key(tensor)
        if key not in self._seen:
            storage = tensor.untyped_storage()
            self._seen[key] = storage
            within = INPUTS if self._at >= 0 and key == self._input else self._at
            self.bytes[within] += storage.nbytes()
        return tensor


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _convolution_backward(grad: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """As much as forward for the gradient of the input, and for that of the kernel. The counter's own
    formula takes a depthwise kernel for a dense one."""
    return 2 * prod(grad) * prod(weight[1:]) * sum(rest[-1][:2])


_aten: Any = torch.ops.aten
FORMULAS = {  # of operators that torch's counter does not know, or counts wrong
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten.convolution_backward: _convolution_backward,
}


class _Counter(TorchDispatchMode):
    """Counts operations by the formulas of torch's FlopCounterMode, which also asks every other operator
    for parts that it may consist of: a third to half of the time of a plan. Here none is left whole that has
    any; in `torch.inference_mode` some would be, and none be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._formulas = FlopCounterMode(display=False, custom_mapping=FORMULAS).flop_registry

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := self._formulas.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out
