"""Does a small network learn more from a large one's answers than from labels? On the built-in videos.

    python benchmarks/distillation.py --out runs/distillation [--seeds 3] [--workers 2] [--scale 1]

For each seed: a large and a small ViT are pretrained (VideoMAE) on all clips; the large one is
fine-tuned on *how* digits move (docs/toy.md), with the labels of 2,000 clips. The small one then
makes equally many updates from the same start: on those labels, or on the teacher's answers to the
same clips, or to all 6,000. Accuracy is that on test clips. Runs train side by side, each on one
thread; what is done is not done twice. Writes study.json and table.md.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import labs_of, mean_of, options, seconds_of, side_by_side, write

from tubelet import stored, verbs
from tubelet.data.lists import VideoList, read_list
from tubelet.data.mix import Mixing
from tubelet.data.remembered import Remembered
from tubelet.demo import DemoConfig
from tubelet.demo import lab as labs
from tubelet.demo.lab import Lab
from tubelet.demo.runs import CLIP, SHAPE, TRAIN, VIDEO
from tubelet.methods.distil import MATCHING, distilling
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import Run, changed, to_dict
from tubelet.model import Card, Classifier
from tubelet.tasks.classify import Classify
from tubelet.tasks.distil import Distil
from tubelet.teachers import classifier
from tubelet.train import checkpoint
from tubelet.train.config import derive
from tubelet.train.loop import fit

SMALL = replace(SHAPE, width=64, depth=2, heads=2)
# The rate is that of benchmarks/toy_supervised.py. The teacher needs its long pretraining: after 420
# updates of it, 210 on mixed clips left it at chance, where after 2500, 60 on clips unmixed gave 48 %
# of the training clips.
TUNE = replace(TRAIN, betas=(0.9, 0.999), lr=8e-3, min_lr=8e-5, layer_decay=0.75)
UNMIXED = Mixing(mixup=0, cutmix=0)
LARGE_TUNE = Finetune(encoder=SHAPE, clip=CLIP, drop_path=0.0, mixing=UNMIXED, train=TUNE)
SMALL_TUNE = Finetune(encoder=SMALL, clip=CLIP, drop_path=0.0, train=TUNE)
TAUGHT = distilling(SMALL_TUNE)
START, TEACHER = {"large": "large-VideoMAE", "small": "small-VideoMAE"}, "teacher"
STEPS = {"large-VideoMAE": 2500, "small-VideoMAE": 1400, "teacher": 400, "student": 1000}
STUDENTS: dict[str, Finetune] = {
    "labels": SMALL_TUNE,
    "labels, mixed as for the teacher's answers": changed(SMALL_TUNE, mixing=MATCHING),
    "labels, never mixed": changed(SMALL_TUNE, mixing=UNMIXED),
    "teacher's answers": TAUGHT,
    "teacher's answers, all clips": changed(TAUGHT, labels=False),
}


@dataclass(frozen=True)
class Work:
    """A run of one seed, for a process."""

    name: str
    run: Run
    steps: int
    lab: Lab

    @property
    def out(self) -> Path:
        return self.lab.folder / self.name.replace(",", "").replace("'", "").replace(" ", "-")

    @property
    def settings(self) -> dict[str, Any]:
        seed = int(self.lab.folder.name.split("-")[1])
        return {"steps": self.steps, "seed": seed, "save_every_steps": 10**9}


def pretrain(work: Work) -> None:
    """Trains an encoder without labels, unless it is done."""
    torch.set_num_threads(1)
    labs.train(work.lab, changed(work.run, **work.settings), work.out)  # pyright: ignore[reportArgumentType]


def listed(lab: Lab, labelled: int | None) -> VideoList:
    """The first training clips with *how* they move; None: all of them, labels left out."""
    how = lab.folder / "videos" / "train_how.csv"
    if labelled is None:
        return read_list(how, kind="unlabelled")
    videos = read_list(how)
    return replace(videos, entries=videos.entries[:labelled])


def train(work: Work, labelled: int) -> None:
    """Fine-tunes or distils, from the weights of its size, unless it is done."""
    torch.set_num_threads(1)
    lab, small = work.lab, work.name != TEACHER
    weights = lab.folder / START["small" if small else "large"]
    run = changed(work.run, weights=weights, **work.settings)
    assert isinstance(run, Finetune)
    known = listed(lab, labelled)
    videos = known if getattr(run, "labels", True) else listed(lab, None)
    derived = derive(run.train, len(videos))
    if checkpoint.latest(work.out) is not None:  # the last step's is the only one
        return
    torch.manual_seed(run.train.seed)
    model = verbs.classifier_of(run, known)
    if run.verb == "distil":
        teacher = classifier(lab.folder / TEACHER)
        task: Classify = Distil(model, teacher, size=CLIP.size, mixing=run.mixing)
    else:
        task = Classify(model, mixing=run.mixing)
    dataset = Remembered(videos, lab.clips("train"), CLIP, seed=run.train.seed)

    batches = labs.batches_of(dataset, run, derived)
    card = Card(CLIP, known.classes, known.kind, to_dict(run))
    begun = (work.out / "metrics.jsonl").exists()
    fit(task, batches, run.train, derived, work.out, stored.describe(model, card), resume=begun)


@torch.no_grad()
def scored(work: Work) -> dict[str, float]:
    """Percent of the test clips that are right, what training took, and the size of the network."""
    torch.set_num_threads(1)
    model = stored.load(work.out)
    assert isinstance(model, Classifier)
    how = work.lab.folder / "videos" / "test_how.csv"
    entries = read_list(how, labels_from=model.card.classes).entries
    clips, labels = work.lab.clips("test"), torch.tensor([entry.label for entry in entries])
    said = torch.cat([model(part.float() / 255).argmax(1) for part in clips.split(100)])
    return {
        "accuracy": 100 * float((said == labels).double().mean()),
        "seconds": seconds_of(work.out),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def report(found: dict[str, list[dict[str, float]]]) -> str:
    """The tables, as Markdown."""
    lines = ["| learns from | parameters | seconds of a thread | how |", "|---|---|---|---|"]
    for name, seeds in found.items():
        parameters, seconds = (
            np.mean([s[key] for s in seeds]) for key in ("parameters", "seconds")
        )
        shown = "teacher: labels" if name == TEACHER else name
        accuracy = mean_of([seed["accuracy"] for seed in seeds])
        lines.append(f"| {shown} | {parameters / 1e3:.0f} k | {seconds:.0f} | {accuracy} |")
    lines += ["", "| difference, by seed | how |", "|---|---|"]
    labels = [name for name in STUDENTS if name.startswith("labels")]
    taught = [name for name in STUDENTS if name not in labels]
    pairs = [(one, other) for one in taught for other in labels]
    pairs.append(("teacher's answers, all clips", "teacher's answers"))
    for one, other in pairs:
        both = zip(found[one], found[other], strict=True)
        lines.append(
            f"| {one} - {other} | {mean_of([a['accuracy'] - b['accuracy'] for a, b in both])} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="times the updates of every run")
    args = parser.parse_args()
    config = DemoConfig()
    steps = {name: max(2, round(args.scale * n)) for name, n in STEPS.items()}
    every = labs_of(args)
    small = replace(VIDEO, encoder=SMALL)
    starts = {START["large"]: VIDEO, START["small"]: small}
    begun = [Work(name, run, steps[name], lab) for name, run in starts.items() for lab in every]
    side_by_side(pretrain, begun, args.workers)
    tune = functools.partial(train, labelled=config.labelled)
    teachers = [Work(TEACHER, LARGE_TUNE, steps[TEACHER], lab) for lab in every]
    side_by_side(tune, teachers, args.workers)
    students = [
        Work(name, run, steps["student"], lab) for name, run in STUDENTS.items() for lab in every
    ]
    side_by_side(tune, students, args.workers)
    found: dict[str, list[dict[str, float]]] = {}
    works = teachers + students
    for work, score in zip(works, side_by_side(scored, works, args.workers), strict=True):
        found.setdefault(work.name, []).append(score)
    record = {"steps": steps, "labelled": config.labelled, "train": config.train, "results": found}
    write(args.out, record, report(found))


if __name__ == "__main__":
    main()
