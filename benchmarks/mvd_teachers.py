"""Who teaches what? MVD's comparisons in small, on the built-in videos.

    python benchmarks/mvd_teachers.py --out runs/teachers [--seeds 3] [--workers 2] [--scale 1]

For each seed: an image and a video teacher, a smaller pair, and students of one teacher or of both,
with the paper's variations (arXiv 2212.04500, section 4.3 and appendix). Every encoder is frozen and
probed for *what* moves and *how*. VideoMAE is trained on, and probed on the way, to see when it
reaches the student. And the same student with one mask a clip or four, its teachers computing at
each update, probed on the way. All runs train side by side, each on one thread; what is done is
not done twice. Writes results.json, table.md, teachers.png and masks.png into --out.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from tubelet import zoo
from tubelet.data import toy
from tubelet.data.isolate import each
from tubelet.demo import lab as labs
from tubelet.demo.lab import LABELS, Lab
from tubelet.demo.runs import BOTH, CLIP, IMAGE, NONE, SHAPE, VIDEO
from tubelet.errors import TubeletError
from tubelet.methods.mvd import Distilled
from tubelet.methods.run import Pretraining, changed
from tubelet.model import MaskedModel
from tubelet.probes.interval import student as interval
from tubelet.train import checkpoint

COUNTS = {"train": 6000, "val": 640, "test": 1600}
LABELLED = 2000
SMALL = {"width": 64, "depth": 2, "heads": 2}
OF_SMALL = replace(BOTH.image, width=64)
STEPS = {"image": 2500, "video": 2500, "student": 2000, "long": 5000}
EVERY = 500  # updates between two probes on the way


@dataclass(frozen=True)
class Job:
    """One run of the study; `on_the_way` keeps and probes its checkpoints."""

    name: str
    run: Pretraining
    steps: int
    teachers: tuple[str, ...] = ()  # of the branches image and video
    stored: bool = True
    on_the_way: bool = False


def jobs(scale: float) -> list[Job]:
    """Teachers first; the longest first among those that can begin together."""
    image, video, student, long = (max(2, round(scale * n)) for n in STEPS.values())
    small = [replace(run, encoder=replace(run.encoder, **SMALL)) for run in (IMAGE, VIDEO)]
    pair = ("image teacher", "video teacher")
    small_pair = ("small image teacher", "small video teacher")
    four = replace(BOTH.train, batch_size=BOTH.train.batch_size // 4)
    four = replace(four, micro_batch=four.batch_size, lr=4 * four.lr, min_lr=4 * four.min_lr)
    ema = Distilled(width=SHAPE.width, norm_feature=True)
    return [
        Job("video teacher", VIDEO, video),
        Job("image teacher", IMAGE, image),
        Job("small video teacher", small[1], video),
        Job("small image teacher", small[0], image),
        Job("VideoMAE, longer", VIDEO, long, on_the_way=True),
        Job("1 mask a clip", BOTH, student, pair, stored=False, on_the_way=True),
        Job("4 masks a clip", changed(BOTH, masks_per_clip=4, train=four), student, pair,
            stored=False, on_the_way=True),
        Job("student of both, and pixels", replace(BOTH, pixel_weight=1.0), student, pair),
        Job("student of both", BOTH, student, pair),
        Job("student of both, no masks", replace(BOTH, mask_type="none"), student, pair),
        Job("student of both, small teachers",
            replace(BOTH, image=OF_SMALL, video=OF_SMALL), student, small_pair),
        Job("student of its own average",
            replace(BOTH, image=NONE, video=ema, video_teacher="ema"), student),
        Job("student of image", replace(BOTH, video=NONE), student, pair[:1]),
        Job("student of video", replace(BOTH, image=NONE), student, pair[1:]),
    ]  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A job of one seed, for a process."""

    job: Job
    lab: Lab

    @property
    def out(self) -> Path:
        return self.lab.folder / self.job.name.replace(",", "").replace(" ", "-")


def train(work: Work) -> None:
    """Trains a job, unless it is done, and records the seconds of its thread."""
    torch.set_num_threads(1)
    job, seed = work.job, int(work.lab.folder.name.split("-")[1])
    every = EVERY if job.on_the_way else 10**9
    settings = replace(
        job.run.train, steps=job.steps, seed=seed, save_every_steps=every, keep_checkpoints=100
    )
    taught = {
        f"{name.split()[-2]}_teacher": work.lab.folder / name.replace(" ", "-")
        for name in job.teachers
    }
    run = changed(job.run, data=work.lab.folder / "videos" / "train", train=settings, **taught)
    record = work.out / "seconds.json"
    if record.exists():
        return
    begun = time.process_time()
    labs.train(work.lab, run, work.out, stored=job.stored)
    record.write_text(json.dumps(time.process_time() - begun))


def probed(work: Work) -> list[dict[str, Any]]:
    """Accuracies after each checkpoint that was kept, the last one last."""
    torch.set_num_threads(1)
    record = work.out / "probes.json"
    if record.exists():
        return json.loads(record.read_text())
    found = []
    for path in checkpoint.checkpoints(work.out):
        model = zoo.load(path)
        assert isinstance(model, MaskedModel)
        scores = labs.probes(work.lab, model, LABELLED)
        step = int(checkpoint.read_header(path)["step"])
        found.append({"step": step} | {label: scores[label]["accuracy"] for label in LABELS})
    record.write_text(json.dumps(found))
    return found


def random_probe(lab: Lab) -> dict[str, float]:
    """Accuracies of an encoder as it is before training."""
    torch.set_num_threads(1)
    record = lab.folder / "random.json"
    if not record.exists():
        torch.manual_seed(int(lab.folder.name.split("-")[1]))
        scores = labs.probes(lab, VIDEO.model(), LABELLED)
        record.write_text(json.dumps({label: scores[label]["accuracy"] for label in LABELS}))
    return json.loads(record.read_text())


def lost(work: Any, why: str) -> Any:
    raise TubeletError(f"The process of {work} was lost: {why}. Start again: it goes on.")


def side_by_side(task: Any, items: list[Any], workers: int) -> list[Any]:
    told = lambda done, of: print(f"{task.__name__}: {done} of {of}", flush=True)  # noqa: E731
    return each(task, items, workers=workers, lost=lost, timeout_seconds=1e5, progress=told)


def mean_of(values: list[float]) -> str:
    """Mean and, of several seeds, the half width of the 95 % interval (Student's t)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {interval(values)[1] - mean:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="times the updates of every run")
    args = parser.parse_args()
    every = jobs(args.scale)
    folders = [Lab(args.out / f"seed-{seed}", CLIP) for seed in range(args.seeds)]
    for seed, lab in enumerate(folders):
        lab.prepare(toy.Options(seed=seed), COUNTS, args.workers, lambda done, of: None)
    # All seeds together: teachers of teachers come first, and no process waits for another long.
    for stage in (every[:4], every[4:]):
        side_by_side(train, [Work(job, lab) for job in stage for lab in folders], args.workers)
    works = [Work(job, lab) for job in every for lab in folders]
    random = side_by_side(random_probe, folders, args.workers)
    scores = side_by_side(probed, works, args.workers)
    results: dict[str, Any] = {"random": {"probes": [[one] for one in random], "seconds": []}}
    for at, work in enumerate(works):
        one = results.setdefault(work.job.name, {"probes": [], "seconds": []})
        one["probes"].append(scores[at])
        one["seconds"].append(json.loads((work.out / "seconds.json").read_text()))
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    text = report(results, every)
    (args.out / "table.md").write_text(text)
    draw_bars(results, args.out / "teachers.png")
    draw_curves(results, args.out / "masks.png")
    print(text)


def last(results: dict[str, Any], name: str, label: str) -> list[float]:
    """Final accuracies of all seeds, in percent."""
    return [100 * seed[-1][label] for seed in results[name]["probes"]]


def report(results: dict[str, Any], every: list[Job]) -> str:
    """The tables, as Markdown."""
    steps = {job.name: job.steps for job in every}
    lines = ["| encoder | updates | what | how |", "|---|---|---|---|"]
    for name in results:
        cells = [mean_of(last(results, name, label)) for label in LABELS]
        lines.append(f"| {name} | {steps.get(name, 0)} | {' | '.join(cells)} |")
    lines += ["", "| difference, by seed | what | how |", "|---|---|---|"]
    both = "student of both"
    pairs = [("student of image", "student of video"), (both, "student of image")]
    pairs += [(both, "student of video"), (both, "random"), (both, "video teacher")]
    pairs += [(name, both) for name in results if name.startswith("student of") and "," in name]
    pairs += [("student of its own average", both)]
    for one, other in pairs:
        cells = [
            mean_of(list(np.subtract(last(results, one, label), last(results, other, label))))
            for label in LABELS
        ]
        lines.append(f"| {one} - {other} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *cost(results, steps)]) + "\n"


def cost(results: dict[str, Any], steps: dict[str, int]) -> list[str]:
    """Seconds of one thread until the student is there, its teachers included, against VideoMAE."""
    seconds = {name: float(np.mean(of["seconds"] or [0])) for name, of in results.items()}
    long = "VideoMAE, longer"
    each_update = seconds[long] / steps[long]
    lines = ["| | seconds of one thread |", "|---|---|"]
    for name in ("image teacher", "video teacher", "student of both"):
        lines.append(f"| {name} | {seconds[name]:.0f} |")
    total = sum(seconds[n] for n in ("image teacher", "video teacher", "student of both"))
    lines.append(f"| all of MVD | {total:.0f} |")
    for label in LABELS:
        goal = float(np.mean(last(results, "student of both", label)))
        curve = _means(results, long, label)
        there = next((step for step, value in curve if value >= goal), None)
        reached = (
            f"reached after {there} updates: {there * each_update:.0f}"
            if there
            else f"not reached in {steps[long]} updates ({curve[-1][1]:.1f}): {seconds[long]:.0f}"
        )
        lines.append(f"| VideoMAE until {goal:.1f} % on *{label}* | {reached} |")
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
    """One mask a clip and four: probes by student views, and by seconds of one thread."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes: Any = figure.subplots(2, 2, sharey="row")
    views = BOTH.train.batch_size
    for row, label in zip(axes, LABELS, strict=True):
        for name, colour in (("1 mask a clip", "#d98f3d"), ("4 masks a clip", "#2450b0")):
            curve = _means(results, name, label)
            updates = np.array([step for step, _ in curve])
            values = [value for _, value in curve]
            pace = float(np.mean(results[name]["seconds"])) / updates[-1]
            for column, x in zip(row, (updates * views, updates * pace), strict=True):
                column.plot(x, values, "o-", color=colour, label=name)
        row[0].set_ylabel(f"{label}, %")
        for column in row:
            column.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False)
    axes[1][0].set_xlabel("student views")
    axes[1][1].set_xlabel("seconds of one thread, teachers computing at each update")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
