"""What studies on the built-in videos share: options, videos of each seed, runs side by side, tables."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.data import toy
from tubelet.data.isolate import each
from tubelet.demo import DemoConfig
from tubelet.demo.lab import Lab
from tubelet.demo.runs import CLIP
from tubelet.errors import TubeletError
from tubelet.probes.interval import student as interval


def options(about: str | None) -> argparse.ArgumentParser:
    """The options of a study; `about`: its docstring."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    return parser


def labs_of(args: argparse.Namespace) -> list[Lab]:
    """For each seed its videos, rendered and decoded as far as that is not done."""
    config = DemoConfig()
    counts = {split: getattr(config, split) for split in toy.SPLITS}
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    every = [Lab(args.out / f"seed-{seed}", CLIP) for seed in seeds]
    for seed, lab in zip(seeds, every, strict=True):
        lab.prepare(toy.Options(seed=seed), counts, args.workers, lambda done, of: None)
    return every


def seconds_of(run: Path) -> float:
    """What the updates of a run took, by its log."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "clips_per_second" in row]
    config = json.loads((run / "config.json").read_text())
    clips = config["train"]["batch_size"]
    steps = np.diff([0, *(row["step"] for row in rows)])
    return float(
        sum(clips * n / row["clips_per_second"] for n, row in zip(steps, rows, strict=True))
    )


def lost(work: Any, why: str) -> Any:
    raise TubeletError(f"The process of {work} was lost: {why}. Start again: it goes on.")


def side_by_side(task: Any, items: list[Any], workers: int) -> list[Any]:
    name = getattr(task, "func", task).__name__  # also of a task with settings

    def told(done: int, of: int) -> None:
        print(f"{name}: {done} of {of}", flush=True)

    return each(task, items, workers=workers, lost=lost, timeout_seconds=1e5, progress=told)


def mean_of(values: list[float]) -> str:
    """Mean and, of several seeds, the half width of the 95 % interval (Student's t)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {interval(values)[1] - mean:.1f}"


def write(out: Path, record: dict[str, Any], table: str) -> None:
    """study.json and table.md; the table is printed too."""
    (out / "study.json").write_text(json.dumps(record, indent=1))
    (out / "table.md").write_text(table)
    print(table)
