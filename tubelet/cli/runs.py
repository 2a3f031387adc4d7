"""Verbs that train, and the list of what there is: pretrain, cache, finetune, distil, list."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from tubelet.cli.parsing import bar, option, parse, say
from tubelet.errors import TubeletError

if TYPE_CHECKING:
    from tubelet.methods.run import Run


def _job(run: Any) -> type:
    """The options of a run, with where it writes."""
    flat = tyro.conf.arg(name="")
    return dataclasses.make_dataclass(
        "Job",
        [
            ("out", Annotated[Path, tyro.conf.arg(help="Folder of the run.")]),
            (
                "resume",
                Annotated[bool, tyro.conf.arg(help="Go on from the newest checkpoint in --out.")],
                False,
            ),
            ("run", Annotated[type(run), flat], run),
        ],
        frozen=True,
    )


def _pop(args: list[str], flag: str) -> str:
    """Takes `flag VALUE` or `flag=VALUE` out of the arguments -> VALUE, or ""."""
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            del args[i]
            return args.pop(i)
        if arg.startswith(flag + "="):
            return args.pop(i).partition("=")[2]
    return ""


def chosen(args: list[str]) -> tuple[Run | None, str]:
    """The run that the arguments begin with, or name by --from -> (run or None, how it was named).

    Both are taken out of the arguments.
    """
    from tubelet.methods.run import find, from_config

    repeated = _pop(args, "--from")
    name = args.pop(0) if args and not args[0].startswith("-") else ""
    if name and repeated:
        raise TubeletError(f"Both a run, {name}, and --from {repeated} were given: choose one.")
    if name:
        return find(name), name
    return (from_config(repeated), f"--from {repeated}") if repeated else (None, "")


def _named(args: list[str], verb: str, kind: type[Run]) -> tuple[Any, str]:
    """The chosen run, which has to be of the verb's kind -> (run or None, what was called)."""
    run, name = chosen(args)
    if run is not None and (not isinstance(run, kind) or run.verb != kind.verb):
        raise TubeletError(f"{name.removeprefix('--from ')} is a run for `tubelet {run.verb}`.")
    return run, f"{verb} {name}".strip()


def pretrain(args: list[str]) -> int:
    """Learn from videos without labels: tubelet pretrain videomae:base_k400 --data videos/ --out runs/a"""
    from tubelet import verbs
    from tubelet.methods.run import Pretraining, find

    run, called = _named(args, "pretrain", Pretraining)
    run = run or find("videomae:base_k400")
    about = _about(run, "Masked pretraining. `tubelet list` shows the named runs.")
    job: Any = parse(_job(run), args, called, about)
    out = verbs.pretrain(job.run, out=job.out, resume=job.resume)
    say(f"done: {out}    next: tubelet finetune --weights {out} --data LABELLED --out runs/NAME")
    return 0


def cache(args: list[str]) -> int:
    """Keep the features of MVD's teachers on disk: tubelet cache mvd:... --data videos/ --out cache/"""
    from tubelet import verbs
    from tubelet.methods.run import Pretraining, find

    run, called = _named(args, "cache", Pretraining)
    run = run or find("mvd:base_from_base_k400")
    kind = dataclasses.make_dataclass(
        "Cache",
        [
            ("out", option(Path, "Folder of the cache; what is there is not made again.")),
            ("crops", option(int, "Fixed crops of each video."), 1),
            ("shard_clips", option(int, "Clips in a file."), 64),
            ("run", Annotated[type(run), tyro.conf.arg(name="")], run),
        ],
        frozen=True,
    )
    job: Any = parse(kind, args, called, "Give the run as it will be trained, with its teachers.")
    with bar("caching", "clips") as progress:
        out = verbs.cache(
            job.run, out=job.out, crops=job.crops, shard_clips=job.shard_clips, progress=progress
        )
    say(
        f"done: {out}    next: tubelet pretrain RUN --data VIDEOS --feature-cache {out} --out runs/NAME"
    )
    return 0


def finetune(args: list[str]) -> int:
    """Train a pretrained encoder on labels: tubelet finetune --weights runs/a --data labelled/ --out runs/b"""
    from tubelet import verbs
    from tubelet.methods.finetune import Finetune

    text = "Supervised fine-tuning. `tubelet list` shows the named runs."

    def begin(run: Finetune) -> Run:
        return verbs.finetune_from(run.weights, run.told)

    return _classifier(args, Finetune, begin, verbs.finetune, text)


def distil(args: list[str]) -> int:
    """Teach a small classifier by a large one: tubelet distil --teacher runs/g --weights runs/s --data videos/ --out runs/d"""
    from tubelet import verbs
    from tubelet.methods.distil import Distil

    text = "Training on the answers of a fine-tuned model. `tubelet list` shows runs."

    def begin(run: Distil) -> Run:
        return verbs.distil_from(run.weights, run.teacher, run.told, run.teacher_told)

    return _classifier(args, Distil, begin, verbs.distil, text)


def _classifier(
    args: list[str],
    kind: type[Run],
    begin: Callable[[Any], Run],
    train: Callable[..., Path],
    text: str,
) -> int:
    """Training that ends with a classifier. `begin`: the options -> the run for its networks."""
    run, called = _named(args, kind.verb, kind)
    about = _about(run, text)
    job: Any = parse(_job(run or kind()), args, called, about)
    if run is None:  # once more, with the clips and the size of the networks that are named
        job = parse(_job(begin(job.run)), args, called, about)
    out = train(job.run, out=job.out, resume=job.resume)
    say(f"done: {out}    next: tubelet evaluate {out} LABELLED    tubelet predict {out} VIDEO")
    return 0


def _about(run: Any, text: str) -> str:
    lines = [text]
    if run is None:
        return text
    if run.source:
        lines.append(f"Source: {run.source}.")
    if run.published:
        lines.append(f"Published: {run.published}.")
    return " ".join(lines)


def list_runs(args: list[str]) -> int:
    """The named runs, with their source and the published result."""
    from rich.table import Table

    from tubelet.methods.run import named_runs

    parse(lambda: None, args, "list", list_runs.__doc__ or "")
    table = Table("run", "batch", "epochs", "lr /256", "clip", "published", "source")
    for name, run in named_runs().items():
        clip = run.clip
        dense = clip.sampling in ("dense", "dense_fps")
        rate = f"x{clip.sampling_rate}" if dense else f" {clip.sampling}"
        table.add_row(
            name,
            str(run.train.batch_size),
            f"{run.train.epochs:g}",
            f"{run.train.lr:g}",
            f"{clip.num_frames}{rate}",
            run.published,
            run.source,
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0
