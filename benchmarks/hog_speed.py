"""How long histograms of oriented gradients take, against the plain formulation.

    python benchmarks/hog_speed.py [--clips 4] [--threads 2] [--repetitions 15]

Times the published target (9 bins, cells of 8, each colour, the first frame of each tubelet of two)
of clips of 16x224x224 in float32, all rows in one run, in turns, after one to warm up. docs/hog.md
says what was found.

"plain" is the published formula step by step: a convolution for the gradients, atan2, a scatter of
the lengths into a map for each bin, sums over the cells. "plain, into cells" scatters straight into
the cells' histograms: the best that the same steps give. Every row's histograms are compared with
the plain ones; where a gradient lies on the edge of a bin, rounding decides, so a few cells differ.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.shapes import Patch
from tubelet.targets.hog import Hog

BINS, CELL, TUBELET = 9, 8, 2
BAR = 2.0  # times as fast as each plain row
TOLERANCE = 1e-5
AT_EDGES = 0.001  # of the cells


def plain(clip: Tensor) -> Tensor:
    """[B,C,T,H,W] -> [B,t,C,bins,cell rows,cell columns]: a map of pixels for each bin."""
    length, at = lengths_and_bins(clip)
    n, colours, height, width = length.shape
    maps = torch.zeros(n, colours, BINS, height, width, device=clip.device)
    maps.scatter_add_(2, at.unsqueeze(2), length.unsqueeze(2))
    return divided(in_cells(maps).sum(-1), len(clip))


def into_cells(clip: Tensor) -> Tensor:
    """The same, without the maps."""
    length, at = map(in_cells, lengths_and_bins(clip))
    sums = torch.zeros(*length.shape[:-1], BINS, device=clip.device)
    return divided(sums.scatter_add_(-1, at, length).movedim(-1, 2), len(clip))


def lengths_and_bins(clip: Tensor) -> tuple[Tensor, Tensor]:
    """[B,C,T,H,W] -> of the gradients of every second frame, [B*t,C,H,W] each."""
    frames = clip[:, :, ::TUBELET].transpose(1, 2).flatten(0, 1)
    colours = frames.shape[1]
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], device=clip.device)
    padded = F.pad(frames, (1, 1, 1, 1), mode="reflect")
    across = F.conv2d(padded, sobel.expand(colours, 1, 3, 3), groups=colours)
    down = F.conv2d(padded, sobel.T.expand(colours, 1, 3, 3), groups=colours)
    angle = torch.atan2(across, down)
    at = (angle / math.pi * BINS).floor().remainder(BINS).long()
    return (across**2 + down**2).sqrt(), at


def in_cells(x: Tensor) -> Tensor:
    """[..., H,W] -> [..., rows,columns,CELL * CELL]."""
    cut = x.unflatten(-1, (-1, CELL)).unflatten(-3, (-1, CELL))
    return cut.transpose(-3, -2).flatten(-2)


def divided(sums: Tensor, clips: int) -> Tensor:
    return F.normalize(sums, dim=2, eps=1e-12).unflatten(0, (clips, -1))


def rows_of(compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    ours = Hog(Patch(TUBELET, 2 * CELL, 2 * CELL)).histograms
    rows = {"plain": plain, "plain, into cells": into_cells, "ours": ours}
    return rows | ({"ours, compiled": torch.compile(ours, fullgraph=True)} if compiled else {})


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Takes the rows in turns, `repetitions` times after a warm-up -> a record for each."""
    torch.manual_seed(0)
    clip = torch.rand(args.clips, 3, args.frames, args.size, args.size, device=args.device)
    rows = rows_of(args.compile)
    expected = plain(clip)
    times: dict[str, list[float]] = {name: [] for name in rows}
    differ: dict[str, float] = {}
    for turn in range(args.repetitions + 1):
        for name, row in rows.items():
            started = now(clip)
            found = row(clip)
            seconds = now(clip) - started
            if turn:  # the first is the warm-up
                times[name].append(seconds)
            else:
                cells = (found - expected).abs().amax(3) > TOLERANCE
                differ[name] = float(cells.float().mean())
    wrong = [name for name, share in differ.items() if share > AT_EDGES]
    if wrong:
        raise SystemExit(
            f"Other numbers than the plain formulation's: {', '.join(wrong)} ({differ})"
        )
    return [record(name, times, differ[name]) for name in rows]


def now(clip: Tensor) -> float:
    """Seconds, when all that was asked of the device is done."""
    if clip.is_cuda:
        torch.cuda.synchronize(clip.device)
    return time.perf_counter()


def record(name: str, times: dict[str, list[float]], differ: float) -> dict[str, Any]:
    """Milliseconds (median), and the medians of how many times as fast as the plain rows, in turns."""
    against = {
        base: [a / b for a, b in zip(times[base], times[name], strict=True)]
        for base in ("plain", "plain, into cells")
    }
    return {
        "row": name,
        "ms": 1000 * statistics.median(times[name]),
        "ratios": against,
        "differ": differ,
    }


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| row | ms | times as fast as plain | as plain, into cells | cells that differ |",
        "|---|---|---|---|---|",
    ]
    for each in found:
        ratios = [
            f"{statistics.median(r):.1f} ({min(r):.1f} to {max(r):.1f})"
            for r in each["ratios"].values()
        ]
        cells = [each["row"], f"{each['ms']:.1f}", *ratios, f"{100 * each['differ']:.4f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=16, help="per clip; every second is taken")
    parser.add_argument("--size", type=int, default=224, help="pixels, high and wide")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--compile", action="store_true", help="a row for ours compiled, too")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    found = measure(args)
    where = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "cpu"
    print(
        f"{where}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{args.clips} clips of {args.frames}x{args.size}x{args.size}, "
        f"{args.repetitions} turns after one to warm up\n\n{table(found)}"
    )
    [ours] = [each for each in found if each["row"] == "ours"]
    least = min(statistics.median(r) for r in ours["ratios"].values())
    print(f"\nbar {BAR}: {'met' if least >= BAR else 'MISSED'} ({least:.1f})")
    return found


if __name__ == "__main__":
    main()
