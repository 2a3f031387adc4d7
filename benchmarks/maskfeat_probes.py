"""MaskFeat beside VideoMAE at equal student compute, on the built-in videos.

    python benchmarks/maskfeat_probes.py --out runs/maskfeat [--seeds 3] [--workers 2] [--updates 1400]

Every run may spend what VideoMAE spends in --updates updates: floating-point operations of encoder
and decoder, forward and backward, counted on one batch. MaskFeat's encoders see the whole grid, so
they make fewer updates. Frozen attentive probes then read *what* and *how* (docs/toy.md). Runs train
side by side, each on one thread; what is done is not done twice. Writes study.json and table.md.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from study import labs_of, mean_of, options, seconds_of, side_by_side, write
from torch.utils.flop_counter import FlopCounterMode

from tubelet import stored
from tubelet.backbones.mvit import MViTShape
from tubelet.data.sampling import rng_for
from tubelet.demo import DemoConfig
from tubelet.demo import lab as labs
from tubelet.demo.lab import LABELS, Lab
from tubelet.demo.runs import CLIP, SHAPE, TRAIN, VIDEO
from tubelet.methods.maskfeat import HogOptions, MaskFeat
from tubelet.methods.run import Pretraining, changed
from tubelet.model import MaskedModel

# A token is 8x8 pixels, for both encoders: HOG in cells of 4.
HOG = MaskFeat(
    encoder=MViTShape((1, 3), (64, 128), (2, 4), pool_kv=4),
    clip=CLIP,
    mask_unit=(1, 1, 1),
    hog=HogOptions(cell=4),
    augment=VIDEO.augment,
    train=replace(TRAIN, betas=(0.9, 0.999)),
)
VIT = replace(HOG, encoder=replace(SHAPE, hide="replace"))
FRAMES: dict[str, Any] = {"mask_type": "frame", "mask_ratio": 0.5}  # as VideoMAE's here
RUNS: dict[str, Pretraining] = {
    "VideoMAE, ViT": VIDEO,
    "MaskFeat, MViT": HOG,
    "MaskFeat, ViT": VIT,
    "MaskFeat, MViT, frames hidden": replace(HOG, **FRAMES),
    "MaskFeat, ViT, frames hidden": replace(VIT, **FRAMES),
    # What is between the two methods: the target, and how it is predicted.
    "MaskFeat, ViT, frames hidden, pixels": replace(
        VIT, **FRAMES, target="pixels", normalise_target=False
    ),
    "VideoMAE, ViT, HOG": replace(VIT, **FRAMES, encoder=SHAPE, decoder=VIDEO.decoder),
}
RANDOM = {"random ViT": "VideoMAE, ViT", "random MViT": "MaskFeat, MViT"}


def flops(run: Pretraining) -> float:
    """Of the student for one clip: encoder and decoder, forward and backward."""
    model, clips = run.model(), 16
    hidden = torch.stack([run.draw_hidden(rng_for(0, 0, i)) for i in range(clips)])
    clip = torch.rand(clips, 3, run.clip.num_frames, *run.clip.size)
    with FlopCounterMode(display=False) as counter:
        sum(x.sum() for x in model.predict(clip, run.pack(hidden)).values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    return counter.get_total_flops() / clips


@dataclass(frozen=True)
class Work:
    """A run of one seed, for a process."""

    name: str
    steps: int
    lab: Lab

    @property
    def out(self) -> Path:
        return self.lab.folder / self.name.replace(",", "").replace(" ", "-")

    @property
    def run(self) -> Pretraining:
        run, seed = RUNS[RANDOM.get(self.name, self.name)], int(self.lab.folder.name.split("-")[1])
        every = {"save_every_steps": 10**9, "steps": self.steps, "seed": seed}
        return changed(run, data=self.lab.folder / "videos" / "train", **every)


def train(work: Work) -> None:
    """Trains a run, unless it is done."""
    torch.set_num_threads(1)
    labs.train(work.lab, work.run, work.out)


def probed(work: Work, labelled: int) -> dict[str, float]:
    """The accuracy of a probe on each label."""
    torch.set_num_threads(1)
    record = work.out / "probes.json"
    if not record.exists():
        torch.manual_seed(work.run.train.seed)
        model = work.run.model() if work.name in RANDOM else stored.load(work.out)
        assert isinstance(model, MaskedModel)
        found = labs.probes(work.lab, model, labelled)
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps({label: found[label]["accuracy"] for label in LABELS}))
    return json.loads(record.read_text())


def report(found: dict[str, dict[str, Any]]) -> str:
    """The tables, as Markdown."""
    lines = ["| encoder | Mflop a clip | updates | seconds of a thread | what | how |"]
    lines.append("|---|---|---|---|---|---|")
    for name, one in found.items():
        cells = [mean_of([100 * seed[label] for seed in one["probes"]]) for label in LABELS]
        cost = f"{one['flops'] / 1e6:.0f} | {one['steps']} | {np.mean(one['seconds'] or [0]):.0f}"
        lines.append(f"| {name} | {cost} | {' | '.join(cells)} |")
    lines += ["", "| difference, by seed | what | how |", "|---|---|---|"]
    base = "VideoMAE, ViT"
    trained = [name for name in found if name not in RANDOM]
    pairs = [(name, base) for name in trained if name != base]
    pairs += [(name, f"random {'MViT' if 'MViT' in name else 'ViT'}") for name in trained]
    for one, other in pairs:
        seeds = list(zip(found[one]["probes"], found[other]["probes"], strict=True))
        cells = [mean_of([100 * (a[label] - b[label]) for a, b in seeds]) for label in LABELS]
        lines.append(f"| {one} - {other} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--updates", type=int, default=1400, help="of VideoMAE")
    args = parser.parse_args()
    config = DemoConfig()
    labs_ = labs_of(args)
    cost = {name: flops(run) for name, run in RUNS.items()}
    budget = args.updates * VIDEO.train.batch_size * cost["VideoMAE, ViT"]
    steps = {name: round(budget / cost[name] / run.train.batch_size) for name, run in RUNS.items()}
    works = [Work(name, steps[name], lab) for name in RUNS for lab in labs_]
    side_by_side(train, works, args.workers)
    every = [Work(name, 0, lab) for name in RANDOM for lab in labs_] + works
    scores = side_by_side(functools.partial(probed, labelled=config.labelled), every, args.workers)
    found: dict[str, dict[str, Any]] = {}
    for work, score in zip(every, scores, strict=True):
        of = RANDOM.get(work.name, work.name)
        one = found.setdefault(work.name, {"flops": cost[of], "steps": work.steps})
        one.setdefault("probes", []).append(score)
        trained = [] if work.name in RANDOM else [seconds_of(work.out)]
        one["seconds"] = one.get("seconds", []) + trained
    record = {"config": asdict(config), "updates": args.updates, "results": found}
    write(args.out, record, report(found))


if __name__ == "__main__":
    main()
