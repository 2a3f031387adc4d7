"""Features over time: embed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from tubelet.cli.parsing import (
    Given,
    bar,
    first_process,
    option,
    options_of,
    parse_as_the_run,
    say,
    told_options,
)


def embed(args: list[str]) -> int:
    """Features over time, for detection or search: tubelet embed runs/b videos/ --out features"""
    from tubelet import verbs
    from tubelet.shapes import ClipSpec
    from tubelet.tasks.embed import EmbedConfig

    def options(clip: ClipSpec) -> type:
        return options_of(
            "Embed",
            EmbedConfig(),
            ("run", option(str, "Run folder, checkpoint, or weights of others.", Given)),
            told_options(),
            ("videos", option(tuple[str, ...], "Videos, folders or lists.", Given)),
            ("out", option(Path, "Folder for the files.")),
            ("clip", Annotated[ClipSpec, tyro.conf.arg(name="")], clip),
        )

    about = "A vector for each window of each video; by default of clips as in training."
    job = parse_as_the_run(args, "embed", about, options, ClipSpec(), lambda card: card.clip)
    started = time.monotonic()
    with bar("embedding", "videos") as shown:

        def moved(done: float, of: int, windows: int) -> None:
            if shown is not None:
                shown(done, of, f"{windows / (time.monotonic() - started):.1f} windows/s")

        result = verbs.embed(
            job.run,
            list(job.videos),
            out=job.out,
            config=job.config,
            clip=job.clip,
            told=job.told,
            progress=moved,
        )
    if first_process() or result.exit_code:  # each process tells of its part
        Console().print(result.table())
    say(str(job.out))
    # torchrun ends all processes when one fails: the others would lose what they are at.
    return 0 if int(os.environ.get("WORLD_SIZE", "1")) > 1 else result.exit_code
