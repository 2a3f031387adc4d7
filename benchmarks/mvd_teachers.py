"""Who teaches what? MVD's comparisons in small, on the built-in videos.

    python benchmarks/mvd_teachers.py --out runs/demo [--seeds 3] [--workers 2] [--scale 1]

Begins with the demo (`tubelet demo --seeds 3`): teachers, and students of one or of both. A folder in
which that was done is gone on with. Then, for each seed, the paper's variations (arXiv 2212.04500,
section 4.3 and appendix); VideoMAE for longer, probed on the way, to see when it reaches the student;
and the student with one mask a clip or four, its teachers computing at each update, probed on the way.
All runs train side by side, each on one thread; what is done is not done twice. Writes study.json,
table.md, teachers.png and masks.png into --out.
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from study import mean_of, seconds_of, side_by_side, write

from tubelet import stored
from tubelet.demo import DemoConfig, demo
from tubelet.demo import lab as labs
from tubelet.demo.lab import LABELS, Lab
from tubelet.demo.runs import BOTH, CLIP, IMAGE, NONE, TEACHER, VIDEO
from tubelet.methods.run import Pretraining, changed
from tubelet.model import MaskedModel
from tubelet.train import checkpoint

SMALL = {"width": 64, "depth": 2, "heads": 2}
OF_SMALL = replace(TEACHER, width=64)
LONG = 2500  # updates of VideoMAE for longer
DEMO = ("image teacher", "video teacher", "student of image", "student of video", "student of both")


@dataclass(frozen=True)
class Job:
    """One run beyond the demo's; `every`: updates between checkpoints that are kept and probed."""

    name: str
    run: Pretraining
    steps: int
    teachers: str = ""  # what the folders of both begin with; "": it has none
    stored: bool = True
    every: int = 10**9


def jobs(config: DemoConfig, scale: float) -> list[Job]:
    """Teachers of teachers first; then the longest first."""
    image, video, student = config.image_steps, config.video_steps, config.student_steps
    small = [replace(run, encoder=replace(run.encoder, **SMALL)) for run in (IMAGE, VIDEO)]
    batch = BOTH.train.batch_size
    # A quarter of the clips, as many student views at the same rate.
    four = replace(
        BOTH.train,
        batch_size=batch // 4,
        micro_batch=batch // 4,
        lr=4 * BOTH.train.lr,
        min_lr=4 * BOTH.train.min_lr,
    )
    live: dict[str, Any] = {"stored": False, "every": max(1, student // 3)}
    own = replace(BOTH, image=NONE, video_teacher="ema")
    small_pair = replace(BOTH, image=replace(OF_SMALL, weight=BOTH.image.weight), video=OF_SMALL)
    long = max(2, round(scale * LONG))
    return [
        Job("small video teacher", small[1], video),
        Job("small image teacher", small[0], image),
        Job("VideoMAE, longer", VIDEO, long, every=max(1, long // 5)),
        Job("1 mask a clip", BOTH, student, "-", **live),
        Job("4 masks a clip", changed(BOTH, masks_per_clip=4, train=four), student, "-", **live),
        Job("student of both, and pixels", replace(BOTH, pixel_weight=1.0), student, "-"),
        Job("student of both, hidden only", replace(BOTH, predict="hidden"), student, "-"),
        Job("student of both, no masks", replace(BOTH, mask_type="none"), student, "-"),
        Job("student of both, small teachers", small_pair, student, "small-"),
        Job("student of its own average", own, student),
    ]


@dataclass(frozen=True)
class Work:
    """A job of one seed, for a process."""

    job: Job
    lab: Lab

    @property
    def seed(self) -> int:
        return int(self.lab.folder.name.split("-")[1])

    @property
    def out(self) -> Path:
        return self.lab.folder / self.job.name.replace(",", "").replace(" ", "-")


def train(work: Work) -> None:
    """Trains a job, unless it is done."""
    torch.set_num_threads(1)
    job, folder = work.job, work.lab.folder
    settings = replace(
        job.run.train,
        steps=job.steps,
        seed=work.seed,
        save_every_steps=job.every,
        keep_checkpoints=100,
    )
    begin = job.teachers.removeprefix("-")
    taught = {
        f"{branch}_teacher": folder / f"{begin}{branch}-teacher"
        for branch, source in job.run.teachers().items()
        if not source
    }
    run = changed(job.run, data=folder / "videos" / "train", train=settings, **taught)
    labs.train(work.lab, run, work.out, stored=job.stored)


def probed(work: Work, labelled: int) -> list[dict[str, Any]]:
    """Accuracies after each checkpoint that was kept, the last one last."""
    torch.set_num_threads(1)
    record = work.out / "probes.json"
    if record.exists():
        return json.loads(record.read_text())
    found = []
    for path in checkpoint.checkpoints(work.out):
        model = stored.load(path)
        assert isinstance(model, MaskedModel)
        scores = labs.probes(work.lab, model, labelled)
        step = int(checkpoint.read_header(path)["step"])
        found.append({"step": step} | {label: scores[label]["accuracy"] for label in LABELS})
    record.write_text(json.dumps(found))
    return found


def losses_of(run: Path) -> list[tuple[int, float]]:
    """(updates, loss) along a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="times the updates of every run")
    args = parser.parse_args()
    base = DemoConfig()
    steps = {
        name: max(2, round(args.scale * getattr(base, name)))
        for name in ("image_steps", "video_steps", "student_steps")
    }
    config = replace(base, seeds=args.seeds, workers=args.workers, **steps)
    done = demo(args.out, config)
    every = jobs(config, args.scale)
    labs_ = [Lab(args.out / f"seed-{seed}", CLIP) for seed in range(args.seeds)]
    for stage in (every[:2], every[2:]):
        side_by_side(train, [Work(job, lab) for job in stage for lab in labs_], args.workers)
    works = [Work(job, lab) for job in every for lab in labs_]
    read = functools.partial(probed, labelled=config.labelled)
    scores = side_by_side(read, works, args.workers)
    results: dict[str, Any] = {}
    for name, of in done.scores.items():
        seeds = [{k: v.accuracies[i] for k, v in of.items()} for i in range(args.seeds)]
        results[name] = {"probes": [[one] for one in seeds], "seconds": [], "steps": 0}
        if name in DEMO:
            paths = [lab.folder / name.replace(" ", "-") for lab in labs_]
            results[name]["seconds"] = [seconds_of(path) for path in paths]
            which = "student" if name.startswith("student") else name.split()[0]
            results[name]["steps"] = steps[f"{which}_steps"]
    for work, score in zip(works, scores, strict=True):
        one = results.setdefault(
            work.job.name, {"probes": [], "seconds": [], "steps": work.job.steps}
        )
        one["probes"].append(score)
        one["seconds"].append(seconds_of(work.out))
        one.setdefault("losses", []).append(losses_of(work.out))
    record = {"config": asdict(config), "results": results}
    draw_bars(results, args.out / "teachers.png")
    draw_curves(results, args.out / "masks.png")
    write(args.out, record, report(results))


def last(results: dict[str, Any], name: str, label: str) -> list[float]:
    """Final accuracies of all seeds, in percent."""
    return [100 * seed[-1][label] for seed in results[name]["probes"]]


def report(results: dict[str, Any]) -> str:
    """The tables, as Markdown."""
    lines = ["| encoder | updates | what | how |", "|---|---|---|---|"]
    for name, one in results.items():
        cells = [mean_of(last(results, name, label)) for label in LABELS]
        lines.append(f"| {name} | {one['steps']} | {' | '.join(cells)} |")
    lines += ["", "| difference, by seed | what | how |", "|---|---|---|"]
    both = "student of both"
    pairs = [("student of image", "student of video"), (both, "student of image")]
    pairs += [(both, "student of video"), (both, "random"), (both, "video teacher")]
    pairs += [(name, both) for name in results if name.startswith("student of") and "," in name]
    pairs += [("student of its own average", both), ("4 masks a clip", "1 mask a clip")]
    for one, other in pairs:
        cells = [
            mean_of(list(np.subtract(last(results, one, label), last(results, other, label))))
            for label in LABELS
        ]
        lines.append(f"| {one} - {other} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *cost(results)]) + "\n"


def cost(results: dict[str, Any]) -> list[str]:
    """Seconds of one thread until the student is there, its teachers included, against VideoMAE."""
    seconds = {name: float(np.mean(of["seconds"] or [0])) for name, of in results.items()}
    long, mvd = "VideoMAE, longer", ("image teacher", "video teacher", "1 mask a clip")
    lines = ["| | seconds of one thread |", "|---|---|"]
    lines += [f"| {name} | {seconds[name]:.0f} |" for name in mvd]
    lines.append(f"| all of MVD | {sum(seconds[name] for name in mvd):.0f} |")
    for label in LABELS:
        goal = float(np.mean(last(results, "student of both", label)))
        curve = _means(results, long, label)
        there = next((step for step, value in curve if value >= goal), None)
        took = seconds[long] * (there or curve[-1][0]) / curve[-1][0]
        reached = f"after {there} updates" if there else f"not reached ({curve[-1][1]:.1f} %)"
        lines.append(f"| VideoMAE until {goal:.1f} % on *{label}*: {reached} | {took:.0f} |")
    return lines


def _means(results: dict[str, Any], name: str, label: str) -> list[tuple[int, float]]:
    """(updates, mean accuracy in percent) along a run."""
    seeds = results[name]["probes"]
    return [
        (points[0]["step"], 100 * float(np.mean([p[label] for p in points])))
        for points in zip(*seeds, strict=True)
    ]


def draw_bars(results: dict[str, Any], path: Path) -> None:
    """Accuracies of every encoder, dots for the seeds."""
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    names = list(results)[::-1]
    for column, label in zip(axes, LABELS, strict=True):
        for at, name in enumerate(names):
            values = last(results, name, label)
            colour = "#c3c7d1" if "student" not in name else "#5f8fe0"
            colour = "#d98f3d" if "teacher" in name and "student" not in name else colour
            column.barh(at, np.mean(values), color=colour)
            column.plot(values, [at] * len(values), ".", color="#20242c", markersize=5)
        column.set_yticks(range(len(names)), names)
        column.axvline(100 / len(LABELS[label]), color="#777", linestyle="--", linewidth=1)
        column.set_title(f"{label}: accuracy, % (dashed: chance)", fontsize=10)
        column.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def draw_curves(results: dict[str, Any], path: Path) -> None:
    """One mask a clip and four: loss and probes, by student views and by seconds of one thread."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes: Any = figure.subplots(3, 2, sharex="col", sharey="row")
    views = BOTH.train.batch_size
    for name, colour in (("1 mask a clip", "#d98f3d"), ("4 masks a clip", "#2450b0")):
        seeds = results[name]["losses"]
        loss = [
            (points[0][0], float(np.mean([p[1] for p in points])))
            for points in zip(*seeds, strict=True)
        ]
        curves = {"loss": loss} | {label: _means(results, name, label) for label in LABELS}
        pace = float(np.mean(results[name]["seconds"])) / loss[-1][0]
        for row, curve in zip(axes, curves.values(), strict=True):
            updates, values = (np.array(column) for column in zip(*curve, strict=True))
            marks = "-" if len(curve) > 20 else "o-"
            row[0].plot(updates * views, values, marks, color=colour, label=name)
            row[1].plot(updates * pace, values, marks, color=colour)
    for row, unit in zip(axes, ("loss", *(f"{label}, %" for label in LABELS)), strict=True):
        row[0].set_ylabel(unit)
        for column in row:
            column.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_yscale("log")
    axes[0][0].legend(frameon=False)
    axes[2][0].set_xlabel("student views")
    axes[2][1].set_xlabel("seconds of one thread, teachers computing at each update")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
