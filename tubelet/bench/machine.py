"""The machine that a benchmark ran on: what it is, its rate of matrix products, memory in use."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

SIDE = 2048  # of the matrices whose product is the machine's rate
PRODUCTS = 3  # of which the quickest counts
GPU_SIDE, GPU_PRODUCTS = 8192, 8  # a GPU has done one of 2048 before the next is given
FORGET = Path("/proc/self/clear_refs")
LIBRARIES = ("tubelet", "torch", "numpy", "av", "pillow", "transformers")


def about() -> dict[str, str | int]:
    """Processor, cores, system, threads and date: what figures of a run belong to."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def versions() -> dict[str, str]:
    """Library -> version, of those that are installed."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def rate(
    kind: torch.dtype, device: str = "cpu", products: int = PRODUCTS, *, side: int = SIDE
) -> float:
    """Operations a second of a product of large square matrices, now: the best of `products`.

    `side`: of the matrices, on a CPU.
    """
    side, at_once = (GPU_SIDE, GPU_PRODUCTS) if device.startswith("cuda") else (side, 1)
    draws = torch.Generator(device).manual_seed(0)  # its own: nobody else's draws change
    a, b = (torch.randn(side, side, generator=draws, device=device).to(kind) for _ in range(2))
    seconds: list[float] = []
    for _ in range(products):
        wait(device)
        began = time.perf_counter()
        for _ in range(at_once):
            torch.mm(a, b)
        wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 * at_once / min(seconds)


@cache
def has_bf16_units(device: str = "cpu") -> bool:
    """Whether products of matrices are quicker in bf16 than in float32: measured once."""
    return rate(torch.bfloat16, device) > rate(torch.float32, device)


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def counts_peak(device: str = "cpu") -> bool:
    """Whether the most memory in use is known: of a process, Linux alone tells it."""
    return device.startswith("cuda") or FORGET.exists()


def forget_peak(device: str = "cpu") -> None:
    """From here on `peak_gib` counts anew."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        FORGET.write_text("5")  # proc(5): the peak of resident memory


def peak_gib(device: str = "cpu") -> float:
    """The most memory that was in use: of the device, or resident of this process (Linux)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    # Not getrusage: its maximum is that of the parent where that had more at the start.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
