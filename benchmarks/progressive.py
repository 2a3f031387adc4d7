"""Progressive training beside direct fine-tuning, on the built-in videos.

    python benchmarks/progressive.py --out runs/progressive [--seeds 3] [--workers 2] [--scale 1]

Two sets of motions with labels: *a*, small, is the target; *b*, larger, shares four of its six classes
with it, two under other names, and some videos. VideoMAE is pretrained on all clips without labels.
Then `finetune` learns *a* alone; or `merge_labels` makes one set of both, the encoder is post-pretrained
on that, and fine-tuned on *a* with the rows of its head, or with a new one. Every run is scored on test
clips of *a*. Runs train side by side, each on one thread; what is done is not done twice. Writes
study.json and table.md.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import labs_of, mean_of, options, seconds_of, side_by_side, write

from tubelet import heads, stored
from tubelet.data import toy
from tubelet.data.lists import read_list
from tubelet.data.mix import Mixing
from tubelet.data.transforms import Augment
from tubelet.demo import DemoConfig
from tubelet.demo import lab as labs
from tubelet.demo.lab import Lab
from tubelet.demo.runs import CLIP, SHAPE, TRAIN, VIDEO
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import changed
from tubelet.model import Classifier
from tubelet.train import checkpoint
from tubelet.verbs import MergeConfig, finetune, merge_labels

RENAMES = {"to the left": "left", "to the right": "right"}  # b's names -> a's
A = ("left", "right", "up", "down", "clockwise", "counter-clockwise")
B = ("to the left", "to the right", "clockwise", "counter-clockwise", "growing", "shrinking")
# Clips of the training split, before those of other motions are left out: the first 100 are in both.
PARTS = {"a": (0, 1000), "b": (900, 5000)}
PRETRAINING = "pretraining"
# Neither crops nor flips, which change the motions; nothing mixed, for the updates are few.
RUN = Finetune(
    clip=CLIP,
    encoder=SHAPE,
    augment=Augment(crop="centre"),
    mixing=Mixing(mixup=0.0, cutmix=0.0),
    train=replace(TRAIN, layer_decay=0.75, min_lr=0.0, save_every_steps=10**9),
    drop_path=0.0,
)


@dataclass(frozen=True)
class Arm:
    """A fine-tuning run: its updates, what it begins with, and how it is scored."""

    steps: int
    weights: str = PRETRAINING
    merged: bool = False  # on both sets; else on a
    lr: float = 8e-3  # for 256 clips
    head: str = "new"


MERGED = "both sets"
ARMS = {
    "a alone": Arm(200),
    "a alone, for as long as both stages": Arm(600),
    MERGED: Arm(400, merged=True),
    "both sets, then a: rows of the head": Arm(200, MERGED, lr=8e-4, head="rows"),
    "both sets, then a: new head": Arm(200, MERGED),
}


@dataclass(frozen=True)
class Work:
    """A run of one seed, for a process."""

    name: str
    lab: Lab
    scale: float

    @property
    def out(self) -> Path:
        return self.lab.folder / self.name.replace(",", "").replace(":", "").replace(" ", "-")

    @property
    def steps(self) -> int:
        """Updates of the run."""
        steps = 2500 if self.name == PRETRAINING else ARMS[self.name].steps
        return max(2, round(self.scale * steps))

    @property
    def labelled(self) -> int:
        """Updates with labels, those of its weights included."""
        before = self.of(ARMS[self.name].weights)
        return self.steps + (before.labelled if before.name in ARMS else 0)

    @property
    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "seed": int(self.lab.folder.name.split("-")[1])}

    def of(self, name: str) -> Work:
        """Another run of this seed."""
        return replace(self, name=name)


def write_sets(lab: Lab) -> None:
    """The lists of both sets, and the merged one."""
    folder, videos = lab.folder / "sets", lab.folder / "videos"
    folder.mkdir(exist_ok=True)
    rows = {
        split: [json.loads(line) for line in (videos / f"{split}.jsonl").read_text().splitlines()]
        for split in toy.SPLITS
    }
    for of, names in (("a", A), ("b", B)):
        own = {RENAMES.get(name, name): name for name in names}
        first, last = PARTS[of]
        train = rows["train"][first:last]
        # What one set validates on, the other may train on: it is for the merging to find out.
        train += rows["val"][:80] if of == "b" else []
        for split, listed in (("train", train), ("val", rows["val"]), ("test", rows["test"])):
            kept = [(str((videos / r["path"]).resolve()), own.get(r["how"])) for r in listed]
            with open(folder / f"{of}_{split}.csv", "w", newline="") as file:
                csv.writer(file).writerows([("path", "label"), *(row for row in kept if row[1])])
    (folder / "renames.csv").write_text("".join(f"b,{old},{new}\n" for old, new in RENAMES.items()))
    merge_labels(
        {of: str(folder / f"{of}_train.csv") for of in PARTS},
        val={"a": str(folder / "a_val.csv")},
        out=lab.folder / "merged",
        config=MergeConfig(rename=str(folder / "renames.csv"), id="path"),
    )


def head_map(folder: Path) -> str:
    """The map of the rows of a's classes."""
    return str(folder / "merged" / "maps" / "a.json")


def train(work: Work) -> None:
    """Trains a run, unless it is done."""
    torch.set_num_threads(1)
    folder = work.lab.folder
    if work.name == PRETRAINING:
        run = changed(VIDEO, data=folder / "videos" / "train", save_every_steps=10**9)
        labs.train(work.lab, changed(run, **work.settings), work.out)
        return
    arm = ARMS[work.name]
    run = changed(
        RUN,
        weights=work.of(arm.weights).out,
        data=folder / ("merged/train.csv" if arm.merged else "sets/a_train.csv"),
        head=arm.head,
        head_map=head_map(folder) if arm.head == "rows" else "",
        lr=arm.lr,
        **work.settings,
    )
    newest = checkpoint.latest(work.out)
    if newest is None or checkpoint.read_header(newest)["step"] < work.steps:
        finetune(run, out=work.out, resume=(work.out / "metrics.jsonl").exists())


def scored(work: Work) -> dict[str, Any]:
    """{"top1": of the test clips of a, in percent}."""
    torch.set_num_threads(1)
    record = work.out / "score.json"
    if not record.exists():
        folder = work.lab.folder
        model = stored.load(work.out)
        assert isinstance(model, Classifier)
        model = heads.gathered(model, head_map(folder)) if ARMS[work.name].merged else model
        videos = read_list(folder / "sets/a_test.csv", labels_from=model.card.classes)
        at = {entry.path: entry.label for entry in videos.entries}
        every = [str(Path(entry.path).resolve()) for entry in work.lab.videos("test").entries]
        chosen = [i for i, path in enumerate(every) if path in at]
        clips = work.lab.clips("test")[chosen]
        with torch.no_grad():
            answers = torch.cat([model(part.float() / 255).argmax(1) for part in clips.split(100)])
        right = answers == torch.tensor([at[every[i]] for i in chosen])
        record.write_text(json.dumps({"top1": 100 * float(right.float().mean())}))
    return json.loads(record.read_text())


def report(found: dict[str, dict[str, Any]]) -> str:
    """The tables, as Markdown."""
    lines = ["| learned from labels of | labelled updates | seconds of a thread | top-1 on a |"]
    lines.append("|---|---|---|---|")
    for name, one in found.items():
        cells = f"{one['updates']} | {np.mean(one['seconds']):.0f} | {mean_of(one['top1'])}"
        lines.append(f"| {name} | {cells} |")
    lines += ["", "| difference, by seed | top-1 on a |", "|---|---|"]
    alone, long, merged, rows, new = found
    for one, other in [(rows, alone), (rows, long), (rows, new), (rows, merged), (long, alone)]:
        gap = np.subtract(found[one]["top1"], found[other]["top1"])
        lines.append(f"| {one} - {other} | {mean_of(list(gap))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="times the updates of every run")
    args = parser.parse_args()
    config = DemoConfig()
    every = labs_of(args)
    for lab in every:
        write_sets(lab)
    runs = [Work(name, lab, args.scale) for name in ARMS for lab in every]
    early = [work for work in runs if ARMS[work.name].weights == PRETRAINING]
    early.sort(key=lambda work: -work.steps)  # the longest first
    pretraining = [Work(PRETRAINING, lab, args.scale) for lab in every]
    for stage in (pretraining, early, [work for work in runs if work not in early]):
        side_by_side(train, stage, args.workers)
    found: dict[str, dict[str, Any]] = {}
    for work, score in zip(runs, side_by_side(scored, runs, args.workers), strict=True):
        one = found.setdefault(work.name, {"updates": work.labelled, "top1": [], "seconds": []})
        one["top1"].append(score["top1"])
        one["seconds"].append(seconds_of(work.out))
    merging = json.loads((every[0].folder / "merged" / "report.json").read_text())["counts"]
    record = {"config": asdict(config), "scale": args.scale, "merging": merging, "results": found}
    write(args.out, record, report(found))


if __name__ == "__main__":
    main()
