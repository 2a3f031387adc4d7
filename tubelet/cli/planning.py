"""The verb that looks ahead: plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from tubelet.cli.parsing import bar, option, parse, write_json
from tubelet.cli.runs import chosen
from tubelet.errors import TubeletError

ABOUT = (
    "What a run takes before it is started: parameters, memory of each process, operations, steps "
    "and time. Give the run as it will be trained, with the same options; nothing is computed, and "
    "no videos or GPU are needed."
)


def plan(args: list[str]) -> int:
    """Memory, steps and time of a run: tubelet plan videomae_v2:giant_hybrid --processes 64"""
    run, name = chosen(args)
    if run is None:
        if not {"-h", "--help"} & set(args):
            raise TubeletError(
                "Which run? Pass its name first (`tubelet list` shows them), or --from and a config.json."
            )
        from tubelet.methods.run import find

        run = find("videomae:base_k400")
    from tubelet import verbs

    kind = dataclasses.make_dataclass(
        "Plan",
        [
            ("processes", option(int, "Processes that it is started in, one a GPU."), 1),
            ("memory_gib", option(float | None, "Memory of each GPU: whether it fits."), None),
            ("videos", option(int | None, "Videos in its list: how many steps."), None),
            (
                "clips_per_second",
                option(float | None, "Of all processes, as training shows it: how long it takes."),
                None,
            ),
            ("classes", option(int, "Classes, of a fine-tuning run."), 400),
            ("json", option(Path | None, "File for all numbers, in bytes."), None),
            ("run", Annotated[type(run), tyro.conf.arg(name="")], run),
        ],
        frozen=True,
    )
    job: Any = parse(kind, args, f"plan {name}".strip(), ABOUT)
    with bar("counting", "forwards") as progress:
        planned = verbs.plan(
            job.run,
            processes=job.processes,
            memory_gib=job.memory_gib,
            videos=job.videos,
            clips_per_second=job.clips_per_second,
            classes=job.classes,
            progress=progress,
        )
    found = dataclasses.replace(planned, name=name)
    print(found.table())
    write_json(job.json, json.dumps(found.to_json(), indent=2))
    return 0
