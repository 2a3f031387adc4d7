"""Where a run computes: device, precision, processes, and the wrapping of the model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tubelet.errors import TubeletError
from tubelet.train import allocator


@dataclass(frozen=True)
class Place:
    """The device of this process, and which of the run's processes it is."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes the files and the screen."""
        return self.rank == 0

    @property
    def exact(self) -> torch.dtype:
        """The widest float of the device: sums for the log and the gradient's norm."""
        return torch.float32 if self.device.type == "mps" else torch.float64


@contextmanager
def processes(device: str = "auto") -> Generator[Place, None, None]:
    """Joins the processes that `torchrun` started, for the time of the block; one needs none."""
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if started:
        backend = "nccl" if choose_device(device).type == "cuda" else "gloo"
        dist.init_process_group(backend)
    try:
        yield place(device)
        if started:
            # Work is let go of by the group's own threads, which outlive it where DDP was used, and
            # need Python for tensors that it knows: a process that ends before they are done is
            # aborted, rarely. Meeting once more gives them the time.
            dist.barrier()
    finally:
        if started:
            dist.destroy_process_group()


def place(device: str = "auto") -> Place:
    """The place of this process; on a GPU also makes that GPU the current one, on a CPU keeps freed
    memory (see `allocator`)."""
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        allocator.keep_freed()
    if not dist.is_initialized():
        return Place(chosen)
    return Place(chosen, dist.get_rank(), dist.get_world_size())


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda", "cuda:1", ... -> device; TubeletError where it is not there.

    "auto" and "cuda" give each process of a machine its own GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and ":" not in name:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0]
        raise TubeletError(
            f"The device {name!r} cannot be used here: {reason}. "
            "Pass --device cpu, or run `tubelet doctor` to see what is there."
        ) from error
    return device


def choose_precision(
    wanted: Literal["auto", "float32", "bf16"], device: torch.device
) -> Literal["float32", "bf16"]:
    """float32 on a CPU and bf16 on a GPU that has it, unless one is asked for."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "float32"


def wrap(
    model: nn.Module,
    place: Place,
    *,
    checkpoint_blocks: bool = False,
    compile: bool = False,
    parallel: Literal["ddp", "fsdp"] = "ddp",
) -> nn.Module:
    """Moves the model to the device and wraps it, in this order: activation checkpointing,
    compilation block by block, then DDP or FSDP2 where there are several processes.

    All processes start from the weights of the first. Parameter names stay those of `model`
    (see `unwrap`). With "fsdp" the parameters become DTensors: build the optimizer afterwards.
    """
    model = model.to(place.device)
    if checkpoint_blocks:
        _checkpoint_blocks(model)
    if compile:
        blocks = [block for part in _with_frozen(model) for block in blocks_of(part)]
        _allow_variants(2 * len(blocks))
        for block in blocks:
            block.compile()
    if place.world == 1:
        return model
    for tensor in chain(model.parameters(), model.buffers()):
        dist.broadcast(tensor.detach(), src=0)
    if parallel == "fsdp":
        # Here, as below for its tensors: a run without FSDP2 need not wait seconds for the import.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(place.device.type, (place.world,))
        for block in blocks_of(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)  # in place
        return model
    gpus = [place.device] if place.device.type == "cuda" else None
    # Buffers are fixed, so they need no copying at each forward; torch 2.13 renamed the option.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(model, device_ids=gpus, **options)


def unwrap(model: nn.Module) -> nn.Module:
    """The model as it was given to `wrap`."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def reducing(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """For a forward and its backward: gradients travel between processes only for the `last`.

    Not with FSDP2: until they have travelled, each process holds gradients of all weights, which it
    was chosen to avoid.
    """
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def is_split(model: nn.Module) -> bool:
    """Whether each process holds a part of the parameters (FSDP2)."""
    return any(hasattr(parameter, "to_local") for parameter in model.parameters())


def local(tensor: Any) -> Tensor:
    """The part of a tensor that this process holds: all of it unless it is split (FSDP2)."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def gathered(tensor: Any) -> Tensor:
    """Any tensor -> a whole one, on every process; of a split one all processes must ask together."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole(tensor: Tensor, place: Place) -> Tensor:
    """Any tensor -> on the main process, a whole one on the CPU; on the others, an empty one.

    All processes must ask together. It may share memory with a tensor that is on the CPU already.
    """
    full = gathered(tensor)
    return full.cpu().contiguous() if place.main else torch.empty(0)


def split_like(value: Tensor, like: Any) -> Tensor:
    """A whole tensor -> a copy placed, and split, as `like` is."""
    value = value.to(like.device, copy=True)
    if not hasattr(like, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of everyone's tensor, in place; no wait on a GPU."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def from_all(value: Any) -> list[Any]:
    """Everyone's value, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(place: Place, act: Callable[[], Any]) -> Any:
    """The first process acts; the others wait and get its result, or its TubeletError."""
    result: Any = None
    failed: TubeletError | None = None
    if place.main:
        try:
            result = act()
        except TubeletError as error:
            failed = error
    if place.world > 1:
        told = [(result, None if failed is None else str(failed))]
        dist.broadcast_object_list(told, src=0)
        result, message = told[0]
        if failed is None and message is not None:
            failed = TubeletError(message)
    if failed is not None:
        raise failed
    return result


def _allow_variants(count: int) -> None:
    """Blocks share their code, and differ in shapes and drop path, in training and evaluation:
    each may be a variant, and beyond the limit (8) torch would silently compute without compiling.
    """
    config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
    for name in ("recompile_limit", "cache_size_limit"):  # torch renamed the option
        if hasattr(config, name):
            setattr(config, name, max(count, getattr(config, name)))
            return


def _with_frozen(model: nn.Module) -> Iterable[nn.Module]:
    """The model, and the networks that it only reads: teachers keep theirs, as `module`, out of
    their submodules, so that nothing saves, trains or splits them."""
    yield model
    for part in model.modules():
        read = part.__dict__.get("module")
        if isinstance(read, nn.Module):
            yield read


def blocks_of(model: nn.Module) -> Iterable[nn.Module]:
    """The blocks of every backbone and decoder within: the elements of each list `blocks`."""
    for module in model.modules():
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.ModuleList):
            yield from blocks


def _checkpoint_blocks(model: nn.Module) -> None:
    found = [
        m
        for m in model.modules()
        if callable(getattr(m, "set_grad_checkpointing", None))
        and any(p.requires_grad for p in m.parameters())
    ]
    for module in found:
        module.set_grad_checkpointing(True)  # pyright: ignore[reportCallIssue]
    if not found:
        raise TubeletError(
            f"checkpoint_blocks was asked for, but no part of {type(model).__name__} has "
            "`set_grad_checkpointing`: add it, or leave checkpoint_blocks out."
        )
