"""How long a step of VideoMAE's pretraining takes, against Hugging Face's model and the published way.

    python benchmarks/step.py [--sizes small base] [--clips 4] [--threads 2] [--bf16] [--out FILE]

Whole updates (target, forward, backward, AdamW) at 16x224x224 with the published decoders and masks on
the same clips. Each row is a process of its own with the same number of threads; they take turns, and
only one works at a time. A ratio is the median over the turns of one row's time through the other's.
FLOPs are counted by torch; the share is of the rate of a large product of matrices, measured in the same
process after the steps. Memory is the process's highest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from videomae_plain import Plain, huggingface

from tubelet.data.sampling import rng_for
from tubelet.methods import videomae
from tubelet.methods.videomae import VideoMAE
from tubelet.shapes import Batch
from tubelet.tasks.pretrain import Pretrain
from tubelet.train import allocator
from tubelet.train.optim import Updater
from tubelet.train.parallel import Place

RUNS = {"small": videomae.small_k400, "base": videomae.base_k400, "large": videomae.large_k400}
ROWS = ("ours", "hf", "plain")
RATE, DECAY, BETAS = 1e-4, 0.05, (0.9, 0.95)
Step = Callable[[], float]


def clips_of(run: VideoMAE, clips: int) -> tuple[Tensor, Tensor]:
    """Random clips uint8 [B,C,T,H,W] and the run's masks, hidden bool [B,k,N]: the same for all."""
    shape = (clips, run.clip.in_chans, run.clip.num_frames, *run.clip.size)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    hidden = torch.stack([run.draw_hidden(rng_for(0, 0, i)) for i in range(clips)])
    return pixels.to(torch.uint8), hidden


def ours(run: VideoMAE, clips: int, bf16: bool) -> Step:
    """Our step, as the loop makes it: from uint8, fused AdamW, freed memory kept."""
    allocator.keep_freed()
    task = Pretrain(run.model())
    updater = Updater(
        *(task.model, Place(torch.device("cpu"))),
        weight_decay=DECAY,
        betas=BETAS,
        layer_decay=1.0,
        clip_grad=None,
    )
    pixels, hidden = clips_of(run, clips)
    batch = Batch(
        views={"clip": pixels},
        paths=[""] * clips,
        index=torch.arange(clips),
        seeds=torch.arange(clips),
        masks=run.pack(hidden),
    )
    weight = task.weight(batch)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = task(batch)["loss"]
        loss.backward()
        updater.apply(RATE, loss.detach(), weight)
        return float(loss.detach()) / weight

    return step


def peer(run: VideoMAE, clips: int, bf16: bool, *, plain: bool) -> Step:
    """The step of another formulation, from normalised clips, with torch's default AdamW."""
    model = run.model()
    pixels, hidden = clips_of(run, clips)
    hidden = hidden[:, 0]
    clip = (pixels / 255 - model.backbone.mean) / model.backbone.std
    other: nn.Module = Plain(model, run) if plain else huggingface(model, run)
    optimizer = torch.optim.AdamW(other.parameters(), lr=RATE, weight_decay=DECAY, betas=BETAS)
    frames = clip.transpose(1, 2).contiguous()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = (
                other(clip, hidden)
                if plain
                else other(pixel_values=frames, bool_masked_pos=hidden).loss
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def made(row: str, run: VideoMAE, clips: int, bf16: bool) -> Step:
    """The step of a row, with its own model of the same seed."""
    torch.manual_seed(0)
    return ours(run, clips, bf16) if row == "ours" else peer(run, clips, bf16, plain=row == "plain")


def work(row: str, size: str, args: argparse.Namespace, pipe: Connection) -> None:
    """A row's process: a step each time that it is told to; at the end what it counted."""
    torch.set_num_threads(args.threads)
    step = made(row, RUNS[size], args.clips, args.bf16)
    with FlopCounterMode(display=False) as counter:
        loss = step()
    pipe.send(loss)
    while pipe.recv():
        began = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - began)
    status = Path("/proc/self/status").read_text()
    memory = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    pipe.send((counter.get_total_flops(), memory, peak(args.bf16)))


def peak(bf16: bool) -> float:
    """FLOPs a second of a product of matrices of 2048: the best of some."""
    kind = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(2048, 2048).to(kind) for _ in range(2))
    seconds: list[float] = []
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(seconds)


def measure(size: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a size, in turns."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    losses: dict[str, float] = {}
    for row in args.rows:
        pipes[row], theirs = context.Pipe()
        context.Process(target=work, args=(row, size, args, theirs), daemon=True).start()
        losses[row] = pipes[row].recv()
    seconds: dict[str, list[float]] = {row: [] for row in args.rows}
    for turn in range(args.repetitions + 1):  # the first warms up
        for row, pipe in pipes.items():
            pipe.send(True)
            took = pipe.recv()
            if turn:
                seconds[row].append(took)
    found: list[dict[str, Any]] = []
    for row, pipe in pipes.items():
        pipe.send(False)
        flops, memory, rate = pipe.recv()
        middle = statistics.median(seconds[row])
        found.append(
            {
                "name": f"videomae-{size}-{'bf16' if args.bf16 else 'f32'}",
                "row": row,
                "shape": f"{args.clips}x16x224x224",
                "loss": losses[row],
                "seconds": middle,
                "peak_gib": memory,
                "flops": flops,
                "mfu": flops / middle / rate,
                "turns": seconds[row],
            }
        )
    for row in found:
        pairs = zip(row["turns"], found[0]["turns"], strict=True)
        row["ratio_time"] = statistics.median(other / own for other, own in pairs)
        row["ratio_memory"] = found[0]["peak_gib"] / row["peak_gib"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sizes", nargs="+", default=["small", "base"], choices=list(RUNS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true", help="default: float32")
    parser.add_argument("--out", type=Path, help="json file")
    args = parser.parse_args()
    records: list[dict[str, Any]] = []
    for size in args.sizes:
        for row in measure(size, args):
            records.append(row)
            print(
                f"{row['name']} {row['row']:<6} {row['seconds']:6.2f} s  "
                f"{row['ratio_time']:.2f}x ours' time  peak {row['peak_gib']:.2f} GiB "
                f"(ours {row['ratio_memory']:.2f}x)  {row['flops'] / 1e9:.0f} GFLOP, "
                f"{row['mfu']:.2f} of the machine's  loss {row['loss']:.6f}",
                flush=True,
            )
    if args.out is not None:
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": platform.processor() or platform.machine(),
            "threads": args.threads,
            "torch": torch.__version__,
        }
        args.out.write_text(json.dumps({**about, "records": records}, indent=2) + "\n")


if __name__ == "__main__":
    main()
