"""What a decoder's mask saves: a VideoMAE V2 step with dual masking against the same step without.

    python benchmarks/dual_masking.py [--sizes base large] [--threads 2] [--out FILE]

Whole updates (targets, forward, backward, AdamW) at 16x224x224 with the published decoders, tubes of
0.9 for the encoder, running cells of 0.5 for the decoder. The rows of a size are timed in one process, in
turns, on the same clip. Memory is that of a process of its own for each row, which takes two steps: its
peak, and what the forward keeps for the backward pass. With few clips the peak is where weights,
gradients and moments are all there, and activations are gone: then it is the same for all rows.
arXiv 2303.16727, table 1 and section 3.2.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.data.sampling import rng_for
from tubelet.methods import videomae_v2
from tubelet.methods.run import Pretraining, changed
from tubelet.shapes import Batch
from tubelet.tasks.pretrain import Pretrain
from tubelet.train.optim import Updater
from tubelet.train.parallel import Place

RUNS = {
    "small": videomae_v2.small_hybrid,
    "base": videomae_v2.base_hybrid,
    "large": videomae_v2.large_hybrid,
}
ROWS: dict[str, dict[str, Any]] = {
    "single mask": {"decoder_mask_ratio": 0.0},
    "dual masking": {"decoder_mask_ratio": 0.5},
    "dual, hidden queries alone": {"decoder_mask_ratio": 0.5, "decode_visible": False},
}
# glibc returns what is freed at once, so that a peak is what was in use.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
BAR = 0.75  # of the single-masked step's time, at base; and less memory


def step_of(
    run: Pretraining, clips: int, device: str, bf16: bool
) -> tuple[Callable[[], None], nn.Module]:
    """A whole update of this run on `clips` random clips, and its model."""
    torch.manual_seed(0)
    place = Place(torch.device(device))
    task = Pretrain(run.model().to(place.device))
    updater = Updater(
        task.model, place, weight_decay=0.05, betas=(0.9, 0.95), layer_decay=1.0, clip_grad=None
    )
    hidden, asked = [], []
    for i in range(clips):
        rng = rng_for(0, 0, i)
        hidden.append(run.draw_hidden(rng))
        asked.append(run.draw_asked(rng, hidden[-1]))
    shape = (clips, run.clip.in_chans, run.clip.num_frames, *run.clip.size)
    batch = Batch(
        views={"clip": torch.randint(0, 256, shape, dtype=torch.uint8)},
        paths=[""] * clips,
        index=torch.arange(clips),
        seeds=torch.arange(clips),
        masks=run.pack(torch.stack(hidden), torch.stack(asked)),
    )
    weight = task.weight(batch)
    batch = batch.to(place.device)

    def step() -> None:
        with torch.autocast(place.device.type, torch.bfloat16, enabled=bf16):
            loss, _ = task(batch)["loss"]
        loss.backward()
        updater.apply(1e-4, loss.detach(), weight)
        if place.device.type == "cuda":
            torch.cuda.synchronize()

    return step, task.model


def memory_of(job: tuple[Any, ...]) -> tuple[float, float]:
    """GiB: the most that a process held which made two steps (on a GPU, its own), and what a
    forward keeps for the backward pass beside the parameters."""
    run, clips, device, bf16, threads = job
    torch.set_num_threads(threads)
    step, model = step_of(run, clips, device, bf16)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    step()
    saved = sum(kept.values()) / 2**30
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30, saved
    # Not getrusage: its maximum is that of the parent where that had more at the start.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20, saved


def measure(size: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a size."""
    clips = args.clips or (1 if size == "large" else 2)
    runs = {name: changed(RUNS[size], **values) for name, values in ROWS.items()}
    os.environ.update(GIVE_BACK)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        jobs = [(run, clips, args.device, args.bf16, args.threads) for run in runs.values()]
        memory = dict(zip(runs, pool.map(memory_of, jobs, chunksize=1), strict=True))
    steps = {name: step_of(run, clips, args.device, args.bf16)[0] for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.repetitions + 1):  # the first warms up
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    single = statistics.median(seconds["single mask"])
    found = []
    for name, took in seconds.items():
        middle = statistics.median(took)
        row = {"size": size, "clips": clips, "row": name, "seconds": middle}
        row |= dict(zip(("peak_gib", "kept_gib"), memory[name], strict=True))
        found.append({**row, "ratio": middle / single, "spread": [min(took), max(took)]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sizes", nargs="+", default=["base", "large"], choices=list(RUNS))
    parser.add_argument("--clips", type=int, help="per step; default 2, at large 1")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="default: float32")
    parser.add_argument("--out", type=Path, help="json file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for size in args.sizes:
        for row in measure(size, args):
            rows.append(row)
            print(
                f"{row['size']:<6} {row['clips']} clips  {row['row']:<27} {row['seconds']:7.2f} s "
                f"({row['spread'][0]:.2f} to {row['spread'][1]:.2f})  {row['ratio']:.2f}x  "
                f"peak {row['peak_gib']:.3f} GiB, kept for backward {row['kept_gib']:.3f} GiB",
                flush=True,
            )
    if args.out is not None:
        args.out.write_text(json.dumps({"threads": args.threads, "rows": rows}, indent=2) + "\n")
    found = {(row["size"], row["row"]): row for row in rows}
    if ("base", "dual masking") in found:
        dual, single = found["base", "dual masking"], found["base", "single mask"]
        met = dual["ratio"] <= BAR and dual["peak_gib"] < single["peak_gib"]
        print(
            f"base, dual masking: {dual['ratio']:.2f}x, bar {BAR}x; peak {dual['peak_gib']:.3f} GiB, bar "
            f"below {single['peak_gib']:.3f}: {'met' if met else 'missed'}"
        )


if __name__ == "__main__":
    main()
