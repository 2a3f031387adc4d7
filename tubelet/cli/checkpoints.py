"""Verbs about weights themselves: convert, inspect."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from tubelet.cli.parsing import (
    EXIT_ERROR,
    Given,
    option,
    options,
    parse,
    placed,
    told_options,
    write_json,
)
from tubelet.errors import TubeletError

if TYPE_CHECKING:
    from tubelet.interop.report import Report

ABOUT = (
    "Reads weights of any layout that tubelet knows, and writes those of another. What is written is "
    "read again and compared, tensor by tensor, before it bears its name. Layouts: tubelet, "
)


def convert(args: list[str]) -> int:
    """Weights from one layout into another: tubelet convert IN OUT --to videomae"""
    from tubelet import verbs
    from tubelet.backbones.positions import PositionMode
    from tubelet.interop.layouts import LAYOUTS

    kind = options(
        "Convert",
        ("source", placed(str, "IN", "Run folder, checkpoint, or weights of others.")),
        ("out", placed(Path, "OUT", "File to write; a folder for hf.")),
        ("to", option(str, f"Layout: tubelet, {', '.join(LAYOUTS)}."), ""),
        ("head_map", option(str, "Of merge-labels: keep the classes of one set."), ""),
        ("classes", option(str, "File of names for a head of numbers, one in each line."), ""),
        ("num_frames", option(int | None, "Of the clips, where other than trained."), None),
        ("img_size", option(tuple[int, int] | None, "Height and width of these clips."), None),
        ("positions", option(PositionMode | None, "How positions are made for them."), None),
        (
            "precision",
            option(
                Literal["as-read", "float32", "float16", "bfloat16"],
                "Of a file of others; as-read: as in the source.",
            ),
            "as-read",
        ),
        ("overwrite", option(bool, "Replace OUT."), False),
        ("report", option(Path | None, "File for what became of each tensor, as JSON."), None),
        told_options(),
    )
    job: Any = parse(kind, args, "convert", ABOUT + ", ".join(LAYOUTS) + ".")
    if not job.to:
        raise TubeletError(
            f"Into which layout? Pass --to with one of tubelet, {', '.join(LAYOUTS)}."
        )
    report = verbs.convert(
        job.source,
        job.out,
        to=job.to,
        told=job.told,
        head_map=job.head_map,
        classes=job.classes,
        num_frames=job.num_frames,
        img_size=job.img_size,
        positions=job.positions,
        precision=job.precision,
        overwrite=job.overwrite,
    )
    _tell(report)
    print(job.out)
    write_json(job.report, json.dumps(report.to_dict(), indent=2))
    return 0


def _tell(report: Report) -> None:
    print(report.line())
    for note in report.notes:
        print(f"  {note}")


def inspect(args: list[str]) -> int:
    """What a file of weights is, whoever wrote it: tubelet inspect weights.pth"""
    from tubelet import verbs

    kind = options(
        "Inspect",
        ("path", option(str, "Run folder, checkpoint, or weights of others.", Given)),
        ("tensors", option(bool, "List every tensor."), False),
        ("json", option(Path | None, "File for all of it, as JSON."), None),
        told_options(),
    )
    about = "Nothing in the file is run, and what it does not say is asked for at the end."
    job: Any = parse(kind, args, "inspect", about)
    found = verbs.inspect(job.path, job.told)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(found.table())
    if job.tensors:
        console.print(found.tensor_table())
    write_json(job.json, json.dumps(found.to_json(), indent=2))
    return 0 if found.usable else EXIT_ERROR
