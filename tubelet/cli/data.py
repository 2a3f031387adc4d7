"""Verbs about data and the machine: check, prepare, merge-labels, demo, toy, doctor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from tubelet.cli.parsing import EXIT_ERROR, Given, bar, option, options_of, pairs, parse, write_json


def check(args: list[str]) -> int:
    """Decode every file of a data set and say what is wrong: tubelet check data/"""
    from tubelet.data.check import check as run_check
    from tubelet.shapes import ClipSpec

    kind = options_of(
        "Check",
        ClipSpec(),
        ("data", option(str, "Folder or list.", Given)),
        ("root", option(str, "Joined in front of relative paths."), ""),
        ("workers", option(int | None, "Processes; default: one for each core."), None),
        ("decoder", Literal["pyav", "torchcodec"], "pyav"),
        ("label_column", option(str, "Of a csv or jsonl, where it is not called label."), ""),
        ("allow_short", option(bool, "Let videos shorter than the clip pass."), False),
        ("json", option(Path | None, "Write the whole report to this file."), None),
    )
    job: Any = parse(kind, args, "check", "Videos too short for the given clip are named too.")
    with bar("checking", "files") as progress:
        report = run_check(
            job.data,
            root=job.root,
            spec=job.config,
            workers=job.workers,
            decoder=job.decoder,
            column=job.label_column or None,
            allow_short=job.allow_short,
            progress=progress,
        )
    Console().print(report.table())
    write_json(job.json, report.to_json())
    return 0 if report.ok else EXIT_ERROR


def prepare(args: list[str]) -> int:
    """Make videos again, small and quick to decode: tubelet prepare data/ data_256/"""
    from tubelet import verbs

    kind = options_of(
        "Prepare",
        verbs.PrepareSettings(),
        ("source", option(str, "Folder, list or video.", Given)),
        ("out", option(Path, "Folder for the new videos and lists.", Given)),
        ("root", option(str, "Joined in front of relative paths of a list."), ""),
        ("workers", option(int | None, "Processes; default: one for each core."), None),
        ("dry_run", option(bool, "Only measure a few videos, and say what all will take."), False),
        ("report", option(Path | None, "Write the whole report to this file, as JSON."), None),
    )
    about = (
        "The same frames, times, labels and tree of files, made for fast decoding, without "
        "sound; then --data OUT. Originals stay. What was stopped goes on (docs/prepare.md)."
    )
    job: Any = parse(kind, args, "prepare", about)
    with bar("preparing", "videos") as progress:
        report = verbs.prepare(
            job.source,
            job.out,
            job.config,
            root=job.root,
            workers=job.workers,
            dry_run=job.dry_run,
            progress=progress,
        )
    Console().print(report.table())
    write_json(job.report, report.to_json())
    return 0 if report.ok else EXIT_ERROR


def merge_labels(args: list[str]) -> int:
    """One label set out of several: tubelet merge-labels k400=a.csv k600=b.csv --out merged/"""
    from tubelet import verbs

    kind = options_of(
        "MergeLabels",
        verbs.MergeConfig(),
        ("lists", option(tuple[str, ...], "SET=LIST: the training list of each set.", Given)),
        ("out", option(Path, "Folder for the merged lists and the maps.")),
        ("val", option(tuple[str, ...], "SET=LIST: videos that no training list may have."), ()),
        ("classes", option(tuple[str, ...], "SET=FILE: a name in each line, that of 0 first."), ()),
        ("root", option(tuple[str, ...], "SET=FOLDER: joined in front of relative paths."), ()),
    )
    about = "Classes of one name are one class; each video is kept once (docs/progressive.md)."
    job: Any = parse(kind, args, "merge-labels", about)
    with bar("reading", "lists") as progress:
        merged = verbs.merge_labels(
            pairs(job.lists, "The lists"),
            out=job.out,
            val=pairs(job.val, "--val"),
            classes=pairs(job.classes, "--classes"),
            root=pairs(job.root, "--root"),
            config=job.config,
            progress=progress,
        )
    Console().print(merged.table())
    print(f"{job.out}    next: tubelet finetune --weights RUN --data {job.out} --out runs/NAME")
    return 0


def demo(args: list[str]) -> int:
    """Pretrain on built-in videos and probe what was learned, in minutes: tubelet demo"""
    from tubelet.demo import DemoConfig
    from tubelet.demo import demo as run_demo

    kind = options_of(
        "Demo",
        DemoConfig(),
        ("out", option(Path, "Folder for videos, runs and results."), Path("runs/demo")),
    )
    job: Any = parse(kind, args, "demo", "What is done already in --out is not done again.")
    result = run_demo(job.out, job.config)
    Console().print(result.table())
    print(f"picture: {result.picture}", f"results: {result.results}", sep="\n")
    return 0


def toy(args: list[str]) -> int:
    """Render the built-in videos, digits that move, with their lists: tubelet toy videos/"""
    from tubelet.data.toy import Options, render

    kind = options_of(
        "Toy",
        Options(),
        ("out", option(Path, "Folder for the videos.", Given)),
        ("train", option(int, "Clips for training."), 4000),
        ("val", option(int, "Clips for validation."), 400),
        ("test", option(int, "Clips for testing."), 1000),
        ("workers", option(int | None, "Processes; default: one for each core."), None),
    )
    job: Any = parse(kind, args, "toy", "What a clip shows (the digit) and how it moves.")
    counts = {"train": job.train, "val": job.val, "test": job.test}
    with bar("rendering", "clips") as progress:
        out = render(job.out, job.config, **counts, workers=job.workers, progress=progress)
    print(f"{out}: {', '.join(f'{count} {split}' for split, count in counts.items())}")
    return 0


def doctor(args: list[str]) -> int:
    """What is installed, which decoders and devices work, and what to do about the rest."""
    from tubelet.doctor import doctor as examine

    kind = dataclasses.make_dataclass(
        "Doctor", [("json", option(Path | None, "Write the report to this file."), None)]
    )
    job: Any = parse(kind, args, "doctor", doctor.__doc__ or "")
    report = examine()
    Console().print(report.table())
    write_json(job.json, report.to_json())
    return 0 if report.ok else EXIT_ERROR
