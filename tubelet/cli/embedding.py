"""Features over time: embed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from tubelet.cli.parsing import Given, bar, option, options_of, parse


def embed(args: list[str]) -> int:
    """Features over time, for detection or search: tubelet embed runs/b videos/ --out features"""
    from tubelet import verbs
    from tubelet.shapes import ClipSpec
    from tubelet.tasks.embed import EmbedConfig
    from tubelet.train import checkpoint
    from tubelet.zoo import card_of

    def options(clip: ClipSpec) -> type:
        return options_of(
            "Embed",
            EmbedConfig(),
            ("run", option(str, "Run folder or checkpoint.", Given)),
            ("videos", option(tuple[str, ...], "Videos, folders or lists.", Given)),
            ("out", option(Path, "Folder for the files.")),
            ("clip", Annotated[ClipSpec, tyro.conf.arg(name="")], clip),
        )

    about = "A vector for each window of each video; by default of clips as in training."
    job: Any = parse(options(ClipSpec()), args, "embed", about)
    # Once more, with the clips of the model as defaults.
    clip = card_of(checkpoint.read_header(job.run), job.run).clip
    job = parse(options(clip), args, "embed", about)
    started = time.monotonic()
    with bar("embedding", "videos") as shown:

        def told(done: float, of: int, windows: int) -> None:
            if shown is not None:
                shown(done, of, f"{windows / (time.monotonic() - started):.1f} windows/s")

        result = verbs.embed(
            job.run, list(job.videos), out=job.out, config=job.config, clip=job.clip, progress=told
        )
    Console().print(result.table())
    print(job.out)
    # torchrun ends all processes when one fails: the others would lose what they are at.
    return 0 if int(os.environ.get("WORLD_SIZE", "1")) > 1 else result.exit_code
