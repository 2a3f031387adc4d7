"""How long distillation takes per student view, against the plain formulation of MVD.

    python benchmarks/mvd_speed.py [--precision float32] [--students base small] [--out FOLDER]

Times whole updates (targets, forward, backward, AdamW) at 16x224x224 with ViT-B teachers of random
weights, all rows in one run, one precision, the same threads, taken in turns. docs/mvd-speed.md says
what the rows are and what was found.

"plain" is the published formulation, benchmarks/mvd_plain.py, with one mask a clip and torch's default
AdamW; "plain, fused kernels" the same with torch's fused attention and AdamW. It starts from clips that are float and normalised already; ours from uint8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mvd_plain import Plain
from torch import Tensor, nn

from tubelet import masks
from tubelet.backbones.vit import BASE, ViT, ViTShape
from tubelet.data.sampling import rng_for
from tubelet.decoders import DecoderShape
from tubelet.methods import mvd
from tubelet.methods.mae import image
from tubelet.methods.mvd import MVD, Distilled
from tubelet.methods.run import changed
from tubelet.model import MaskedModel
from tubelet.shapes import Batch, ClipSpec
from tubelet.tasks.pretrain import Pretrain
from tubelet.teachers import connect, teacher_of
from tubelet.train.optim import Updater
from tubelet.train.parallel import Place

RUNS = {"base": mvd.base_from_base_k400, "small": mvd.small_from_base_k400}
ROWS = {  # name: masks per clip, decoder_mask_ratio
    "k=1": (1, 0.0),
    "k=4": (4, 0.0),
    "k=4, decoder masks 0.5": (4, 0.5),
}
BARS = {
    ("base", "k=1"): 1.3,
    ("small", "k=1"): 1.3,
    ("base", "k=4"): 2.2,
    ("small", "k=4"): 3.0,
    ("base", "k=4, decoder masks 0.5"): 3.0,
}


@dataclass
class Clock:
    """Seconds spent in the parts of the steps."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def of(self, part: str) -> Generator[None, None, None]:
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    def watch(self, module: nn.Module, part: str) -> None:
        """Counts the forward passes of the module."""
        began: list[float] = []

        def before(*_: Any) -> None:
            began.append(time.perf_counter())

        def after(*_: Any) -> None:
            self.seconds[part] += time.perf_counter() - began.pop()

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def plain_step(
    model: Plain, optimizer: torch.optim.Optimizer, batches: Sequence[Any], bf16: bool, clock: Clock
) -> None:
    for clip, hidden in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(clip, hidden)
        (loss / len(batches)).backward()
    with clock.of("update"):
        optimizer.step()
        optimizer.zero_grad()


def our_step(
    task: Pretrain, updater: Updater, batches: Sequence[Batch], bf16: bool, clock: Clock
) -> None:
    total, weight = torch.zeros(()), 0.0
    for batch in batches:
        weight += task.weight(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = task(batch)["loss"]
        loss.backward()
        total += loss.detach()
    with clock.of("update"):
        updater.apply(1e-4, total, weight)


def batches_of(run: MVD, views: int, clips: int) -> list[Batch]:
    """`views` student views of random pixels, in forwards of `clips` clips."""
    made: list[Batch] = []
    shape = (run.clip.in_chans, run.clip.num_frames, *run.clip.size)
    for first in range(0, views // run.masks_per_clip, clips):
        index = range(first, min(first + clips, views // run.masks_per_clip))
        hidden = [run.draw_hidden(rng_for(0, 0, i)) for i in index]
        asked = [run.draw_asked(rng_for(1, 0, i), h) for i, h in zip(index, hidden, strict=True)]
        pixels = torch.randint(0, 256, (len(index), *shape), dtype=torch.uint8)
        seeds = torch.tensor(list(index))
        packed = masks.pack(torch.stack(hidden), torch.stack(asked))
        made.append(Batch({"clip": pixels}, [""] * len(index), seeds, seeds, packed))
    return made


def plain_batches(run: MVD, vit: ViT, views: int, clips: int) -> list[tuple[Tensor, Tensor]]:
    """The same as the plain formulation takes it: normalised clips, boolean masks."""
    return [
        ((batch.clip / 255 - vit.mean) / vit.std, batch.masks.hidden[:, 0])
        for batch in batches_of(run, views, clips)
        if batch.masks is not None
    ]


def models(run: MVD, teacher: ViTShape, precision: str) -> tuple[MaskedModel, Plain]:
    """Our model and the plain one, of equal weights."""
    torch.manual_seed(0)
    frames, size = run.clip.num_frames, run.clip.size
    given: dict[str, ViT] = {
        "image": ViT(image(teacher), trained=(1, *size)),
        "video": ViT(teacher, trained=(frames, *size)),
    }
    how = Distilled(width=teacher.width, precision=precision)  # pyright: ignore[reportArgumentType]
    ours = replace(run, image=how, video=how, image_teacher="here", video_teacher="here").model()
    connect(ours, {name: teacher_of(vit) for name, vit in given.items()})
    return ours, Plain(ours, run)


def rows_of(
    run: MVD, teacher: ViTShape, args: argparse.Namespace
) -> dict[str, tuple[Callable[[], None], Clock]]:
    """One student's rows: what runs one update, and the clock of its parts."""
    bf16 = args.precision == "bf16"
    ours, plain = models(run, teacher, args.precision)
    clock = Clock()
    for part in plain.teachers.values():
        clock.watch(part, "teachers")
    trained = [p for p in plain.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.05}
    default = torch.optim.AdamW(trained, **settings)
    fused = torch.optim.AdamW(trained, **settings, fused=True)
    data = plain_batches(run, ours.backbone, args.views, args.micro_batch)
    plain.train()

    def plain_row(fuse: bool) -> tuple[Callable[[], None], Clock]:
        def step() -> None:
            plain.fuse(fuse)
            plain_step(plain, fused if fuse else default, data, bf16, clock)

        return step, clock

    rows = {"plain": plain_row(False), "plain, fused kernels": plain_row(True)}

    own = Clock()
    for branch in ours.branches.values():
        target: Any = branch.target
        own.watch(target, "teachers")
    ours.train()
    task = Pretrain(ours)
    place = Place(torch.device("cpu"))
    updater = Updater(ours, place, weight_decay=0.05, betas=(0.9, 0.95))
    for name, (k, ratio) in ROWS.items():
        of = changed(run, masks_per_clip=k, decoder_mask_ratio=ratio)
        own_data = batches_of(of, args.views, max(1, args.micro_batch // k))
        rows[name] = (lambda own_data=own_data: our_step(task, updater, own_data, bf16, own), own)
    return rows


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Takes the rows in turns, `repetitions` times after a warm-up -> a record for each."""
    rows: dict[tuple[str, str], tuple[Callable[[], None], Clock]] = {}
    for student in args.students:
        run, teacher = (
            (quick(RUNS[student]), quick_shape(BASE)) if args.quick else (RUNS[student], BASE)
        )
        made = rows_of(run, teacher, args)
        rows |= {(student, name): row for name, row in made.items()}
    times: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in rows}
    for turn in range(args.repetitions + 1):
        for key, (step, clock) in rows.items():
            clock.seconds.clear()
            with clock.of("step"):
                step()
            print(f"turn {turn}  {' '.join(key):32} {clock.seconds['step']:.2f} s", flush=True)
            if turn:  # the first is the warm-up
                times[key].append(defaultdict(float, clock.seconds))
    return [record(key, times, args) for key in rows]


def record(
    key: tuple[str, str],
    times: dict[tuple[str, str], list[dict[str, float]]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Seconds per student view (medians), and how many times as fast as plain, with the range
    over turns."""
    student, name = key

    def median(part: str) -> float:
        return statistics.median(each[part] for each in times[key]) / args.views

    pairs = zip(times[student, "plain"], times[key], strict=True)
    ratios = [base["step"] / own["step"] for base, own in pairs]
    seconds, teachers, update = (median(part) for part in ("step", "teachers", "update"))
    return {
        "student": student,
        "row": name,
        "seconds": seconds,
        "teachers": teachers,
        "update": update,
        "student_and_decoders": seconds - teachers - update,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "bar": None if args.quick else BARS.get(key),
    }


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| student | row | s per view | teachers | student, decoders | update | times as fast | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        parts = [each[n] for n in ("seconds", "teachers", "student_and_decoders", "update")]
        low, high = min(each["ratios"]), max(each["ratios"])
        bar = (
            f"{each['bar']} {'met' if each['ratio'] >= each['bar'] else 'MISSED'}"
            if each["bar"]
            else ""
        )
        cells = [each["student"], each["row"], *(f"{p:.3f}" for p in parts)]
        cells += [f"{each['ratio']:.2f} ({low:.2f} to {high:.2f})", bar]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def quick(run: MVD) -> MVD:
    """The same in small, to see that it runs."""
    clip = ClipSpec(num_frames=4, size=(32, 32))
    shape = quick_shape(run.encoder)
    return changed(run, clip=clip, encoder=shape, decoder=DecoderShape(32, 2, 2), mask_ratio=0.75)


def quick_shape(shape: ViTShape) -> ViTShape:
    return replace(shape, width=32, depth=2, heads=2, patch=8)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--students", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--views", type=int, default=4, help="student views per update")
    parser.add_argument("--micro-batch", type=int, default=4, help="student views per forward")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--out", type=Path, help="folder for mvd_speed.json and mvd_speed.md")
    parser.add_argument("--quick", action="store_true", help="tiny networks: does it run?")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    found = measure(args)
    said = f"{args.precision}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"\n{said}\n\n{table(found)}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        settings = {k: v for k, v in vars(args).items() if k != "out"} | {"machine": said}
        text = json.dumps({"settings": settings, "rows": found}, indent=1)
        (args.out / "mvd_speed.json").write_text(text)
        (args.out / "mvd_speed.md").write_text(f"{said}\n\n{table(found)}\n")
    return found


if __name__ == "__main__":
    main()
