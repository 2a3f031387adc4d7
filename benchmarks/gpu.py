"""Training steps on a GPU: clips a second, memory, and the share of the GPU's rate of products that is used.

    benchmarks/gpu.sh [--only videomae-b ...] [--seconds 450] [--eager] [--device cuda] [--quick] [--out gpu.json]

Whole updates as the loop makes them, from uint8 in pinned memory, 16x224x224, the published masks and decoders, in
bf16: VideoMAE, V2 and MVD (its teachers as large as the student) at ViT-B and ViT-L, MaskFeat at MViTv2-S and -L. Each
row is a process of its own. First all as they are; then with compiled blocks (`--compile`), as many as fit into the
time. Where memory does not suffice, a row has half of the clips. Operations are counted by torch, and the rate is that
of products of large matrices in bf16, measured in the row's process after each turn. Files are not decoded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from tubelet.backbones.vit import ViTShape
from tubelet.bench import machine
from tubelet.bench import mvd as bench_mvd
from tubelet.bench.steps import BETAS, DECAY, RATE, batch_of
from tubelet.bench.turns import Precision, Row, Step, Took, in_turns
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.methods import maskfeat, mvd, videomae, videomae_v2
from tubelet.methods.mvd import MVD
from tubelet.methods.run import Pretraining, changed
from tubelet.model import MaskedModel
from tubelet.tasks.pretrain import Pretrain
from tubelet.train import parallel
from tubelet.train.ahead import Ahead
from tubelet.train.backward import Backward
from tubelet.train.log import Meter
from tubelet.train.optim import Updater

UPDATES = 5  # of a turn: the loop waits for the GPU only when a row of the log is due
TURNS = 5
CASES: dict[str, tuple[Pretraining, int]] = {  # the run, and the clips of an update
    "videomae-b": (videomae.base_k400, 64),
    "v2-b": (videomae_v2.base_hybrid, 64),
    "mvd-b": (mvd.base_from_base_k400, 32),
    "maskfeat-s": (maskfeat.small_k400, 16),
    "videomae-l": (videomae.large_k400, 32),
    "v2-l": (videomae_v2.large_hybrid, 32),
    "mvd-l": (mvd.large_from_large_k400, 16),
    "maskfeat-l": (maskfeat.large_k400, 8),
}


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    name: str
    compiled: bool
    clips: int  # of an update
    clips_per_second: float = 0.0
    seconds: float = 0.0  # of an update
    peak_gib: float = 0.0
    tflops: float = 0.0  # operations a second, 1e12
    rate_tflops: float = 0.0  # of products, in the same process
    mfu: float = 0.0
    loss: float = 0.0  # of the first turn
    failed: str = ""


def in_small(run: Pretraining) -> Pretraining:
    """The run with a tiny network, on tiny clips."""
    clip = replace(run.clip, num_frames=4, size=(32, 32))
    if not isinstance(run.encoder, ViTShape):
        shape = replace(run.encoder, depths=(1, 1, 1), widths=(8, 16, 16), heads=(1, 2, 2))
        return changed(run, clip=clip, encoder=replace(shape, pool_kv=4))
    shape = replace(run.encoder, width=48, depth=2, heads=3, patch=8)
    return changed(run, clip=clip, encoder=shape, decoder=DecoderShape(32, 2, 2))


def model_of(run: Pretraining) -> MaskedModel:
    """The run's model, with the weights of one seed; MVD's with teachers of the student's size."""
    if isinstance(run, MVD) and isinstance(run.encoder, ViTShape):
        return bench_mvd.model_of(run, run.encoder, "bf16")
    torch.manual_seed(0)
    return run.model()


def made(name: str, clips: int, compiled: bool, device: str, quick: bool) -> Step:
    """A turn: some updates as the loop makes them -> their mean loss."""
    run, _ = CASES[name]
    run = in_small(run) if quick else run
    place = parallel.place(device)
    task = Pretrain(model_of(run))
    model = task.model
    task.model = parallel.wrap(model, place, compile=compiled)
    updater = Updater(model, place, weight_decay=DECAY, betas=BETAS)
    backward = Backward(task, place, bf16=True, whole=compiled)
    batch = batch_of(run, clips)
    batch = batch.pin_memory() if place.device.type == "cuda" else batch
    stream, meter = Ahead(itertools.repeat(batch), place.device), Meter(place)
    task.model.train()

    def step() -> float:
        for i in range(1 if quick else UPDATES):
            weight = task.weight(next(stream))
            meter.forward(stream.copy, backward(stream.copy))
            meter.update(i + 1, *updater.apply(RATE, meter.loss, weight))
        means, *_ = meter.read()
        return means["loss"]

    return step


def line_of(name: str, clips: int, compiled: bool, took: Took, updates: int, flops: int) -> Line:
    """What a row took -> its line. `flops`: of a turn."""
    seconds, rate = median(took.seconds), median(took.rates)
    return Line(
        name,
        compiled,
        clips,
        clips_per_second=clips * updates / seconds,
        seconds=seconds / updates,
        peak_gib=took.peak_gib or 0.0,
        tflops=flops / seconds / 1e12,
        rate_tflops=rate / 1e12,
        mfu=flops / seconds / rate,
        loss=took.value,
    )


def measured(
    name: str, clips: int, compiled: bool, args: argparse.Namespace, counted: dict[str, float]
) -> Line:
    """A row's line; with half of the clips where memory does not suffice. `counted`: operations of a
    clip, of the rows before: compiled ones cannot be counted."""
    updates = 1 if args.quick else UPDATES
    precision: Precision = "bf16"
    make = partial(made, name, clips, compiled, args.device, args.quick)
    row = Row(f"{name}{' compiled' if compiled else ''}", make, precision, args.device)
    try:
        took = in_turns([row], turns=1 if args.quick else TURNS)[row.name]
    except TubeletError as error:
        if "out of memory" in str(error).lower() and clips > 1:
            return measured(name, clips // 2, compiled, args, counted)
        return Line(name, compiled, clips, failed=str(error).strip().splitlines()[-1])
    each = counted.setdefault(name, took.flops / (clips * updates))
    return line_of(name, clips, compiled, took, updates, round(each * clips * updates))


def lines(
    names: Sequence[str], args: argparse.Namespace, clock: Callable[[], float] = time.perf_counter
) -> Iterable[Line]:
    """The rows as they are measured: all as they are, then compiled while there is time."""
    began, longest, counted = clock(), 0.0, dict[str, float]()
    found: dict[str, int] = {}
    for compiled in (False,) if args.eager else (False, True):
        longest *= 2 if compiled else 1  # compiling takes its time, and the first shows how much
        for name in names:
            start = clock()
            if compiled and start - began + longest > args.seconds:
                continue
            clips = found.get(name, 2 if args.quick else CASES[name][1])
            line = measured(name, clips, compiled, args, counted)
            found[name] = line.clips
            longest = max(longest, clock() - start)
            yield line


HEAD = (
    f"{'':<12}{'blocks':<10}{'clips':>6}{'clips/s':>10}{'ms/update':>11}{'GiB':>8}"
    f"{'TFLOP/s':>9}{'of rate':>9}{'MFU':>7}"
)


def shown(line: Line) -> str:
    """A line of the table."""
    start = f"{line.name:<12}{'compiled' if line.compiled else 'eager':<10}{line.clips:>6}"
    if line.failed:
        return f"{start}  {line.failed}"
    return (
        f"{start}{line.clips_per_second:>10.1f}{1e3 * line.seconds:>11.1f}{line.peak_gib:>8.2f}"
        f"{line.tflops:>9.1f}{line.rate_tflops:>9.1f}{line.mfu:>7.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument(
        "--seconds", type=float, default=450.0, help="no row begins that ends later"
    )
    parser.add_argument("--eager", action="store_true", help="without compiled rows")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks: does it run?")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    args = parser.parse_args()
    cuda = args.device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --device cpu --quick tries the script")
    about = {**machine.about(), "versions": machine.versions(), "quick": args.quick}
    about["device"] = torch.cuda.get_device_name(args.device) if cuda else args.device
    print(f"{about['device']}, torch {torch.__version__}, bf16\n{HEAD}", flush=True)
    rows: list[Line] = []
    for line in lines(args.only, args):
        rows.append(line)
        print(shown(line), flush=True)
        text = json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1)
        args.out.write_text(text + "\n")
    left = len(args.only) * (1 if args.eager else 2) - len(rows)
    print(f"{f'{left} compiled rows left out: no time' if left else ''}\n{args.out}")


if __name__ == "__main__":
    main()
