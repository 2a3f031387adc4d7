"""The command `tubelet VERB ...`: reads arguments, calls the function of the verb, shows errors.

Heavy imports wait until a verb needs them, so that `tubelet --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tubelet.errors import TubeletError

Args = TypeVar("Args")
Given = tyro.conf.Positional
EXIT_ERROR, EXIT_BUG, EXIT_INTERRUPTED = 1, 70, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command -> exit code: 0 done, 1 a user's error, 2 wrong options, 70 a bug."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        return _usage(sys.stdout)
    if args[0] in ("-V", "--version", "version"):
        from tubelet import __version__

        print(f"tubelet {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else " `tubelet --help` lists them."
        print(f"tubelet: there is no command {verb!r}.{hint}", file=sys.stderr)
        return 2
    _log_to_terminal()
    try:
        return VERBS[verb](rest) or 0
    except TubeletError as error:
        if debug:
            raise
        print(f"tubelet {verb}: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(f"\ntubelet {verb}: stopped.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except Exception as error:
        if debug:
            raise
        print(
            f"tubelet {verb}: {type(error).__name__}: {error}\n"
            "This is a fault of tubelet's, not yours. Run it again with --debug for the traceback "
            "to report.",
            file=sys.stderr,
        )
        return EXIT_BUG


def _usage(stream: Any) -> int:
    print(
        "usage: tubelet VERB [OPTIONS]    tubelet VERB --help    tubelet --version\n", file=stream
    )
    for name, verb in VERBS.items():
        print(f"  {name:<12} {(verb.__doc__ or '').splitlines()[0]}", file=stream)
    print("\n--debug with any verb shows the traceback of an error.", file=stream)
    return 0


class _Terminal(logging.Handler):
    """Messages to stderr as it is at that moment: a progress bar puts its own in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(prefix + self.format(record), file=sys.stderr)


def _log_to_terminal() -> None:
    logger = logging.getLogger("tubelet")
    if not logger.handlers:
        logger.addHandler(_Terminal())
    logger.setLevel(logging.INFO)


def _parse(kind: Callable[..., Args], args: Sequence[str], verb: str, about: str) -> Args:
    return tyro.cli(kind, args=args, prog=f"tubelet {verb}", description=about)


# --- runs: pretrain, finetune -------------------------------------------------------------------


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


def _named(args: list[str], verb: str, kind: type) -> tuple[Any, str]:
    """The run that the arguments begin with, or name by --from -> (run or None, its name).

    Both are taken out of the arguments.
    """
    from tubelet.methods.run import find, from_config

    repeated = _pop(args, "--from")
    name = args.pop(0) if args and not args[0].startswith("-") else ""
    if name and repeated:
        raise TubeletError(f"Both a run, {name}, and --from {repeated} were given: choose one.")
    if not name and not repeated:
        return None, verb
    run = find(name) if name else from_config(repeated)
    if not isinstance(run, kind):
        other = "pretrain" if verb == "finetune" else "finetune"
        raise TubeletError(f"{name or repeated} is a run for `tubelet {other}`.")
    return run, f"{verb} {name}" if name else f"{verb} --from {repeated}"


def pretrain(args: list[str]) -> int:
    """Learn from videos without labels: tubelet pretrain videomae:base_k400 --data videos/ --out runs/a"""
    from tubelet import verbs
    from tubelet.methods.run import Pretraining, find

    run, called = _named(args, "pretrain", Pretraining)
    run = run or find("videomae:base_k400")
    about = _about(run, "Masked pretraining. `tubelet list` shows the named runs.")
    job: Any = _parse(_job(run), args, called, about)
    out = verbs.pretrain(job.run, out=job.out, resume=job.resume)
    _say(f"done: {out}    next: tubelet finetune --weights {out} --data LABELLED --out runs/NAME")
    return 0


def finetune(args: list[str]) -> int:
    """Train a pretrained encoder on labels: tubelet finetune --weights runs/a --data labelled/ --out runs/b"""
    from tubelet import verbs
    from tubelet.methods.finetune import Finetune

    run, called = _named(args, "finetune", Finetune)
    about = _about(run, "Supervised fine-tuning. `tubelet list` shows the named runs.")
    job: Any = _parse(_job(run or Finetune()), args, called, about)
    if run is None and job.run.weights:  # once more, with the clips and the size of the weights
        job = _parse(_job(verbs.finetune_from(job.run.weights)), args, called, about)
    out = verbs.finetune(job.run, out=job.out, resume=job.resume)
    _say(f"done: {out}    next: tubelet evaluate {out} LABELLED    tubelet predict {out} VIDEO")
    return 0


def _say(text: str) -> None:
    """Prints, from the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


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

    _parse(lambda: None, args, "list", list_runs.__doc__ or "")
    table = Table("run", "batch", "epochs", "lr /256", "clip", "published", "source")
    for name, run in named_runs().items():
        clip = run.clip
        rate = f"x{clip.sampling_rate}" if clip.sampling == "dense" else " uniform"
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


# --- using models: evaluate, predict, reconstruct -----------------------------------------------


def _options(name: str, config: Any, *fields: tuple[Any, ...]) -> type:
    """Options of a verb: its own, then those of a config, with this config's values as defaults."""
    flat = Annotated[type(config), tyro.conf.arg(name="")]
    return dataclasses.make_dataclass(name, [*fields, ("config", flat, config)], frozen=True)


def _help(kind: Any, text: str, *more: Any) -> Any:
    return Annotated[(kind, tyro.conf.arg(help=text), *more)]


def _as_the_run(
    args: list[str],
    verb: str,
    about: str,
    options: Callable[[Any], type],
    default: Any,
    refine: Any,
) -> Any:
    """Parses twice: first to know the run, then with the defaults that its checkpoint names."""
    from tubelet.train import checkpoint
    from tubelet.zoo import card_of

    job: Any = _parse(options(default), args, verb, about)
    card = card_of(checkpoint.read_header(job.run), job.run)
    return _parse(options(refine(card)), args, verb, about)


def evaluate(args: list[str]) -> int:
    """Score a fine-tuned model by the published protocol: tubelet evaluate runs/b labelled/"""
    from tubelet import verbs
    from tubelet.tasks.evaluate import EvaluateConfig

    def options(config: EvaluateConfig) -> type:
        return _options(
            "Evaluate",
            config,
            ("run", _help(str, "Run folder or checkpoint.", Given)),
            ("data", _help(str, "Labelled folder or list.", Given)),
            ("root", _help(str, "Joined in front of relative paths."), ""),
            ("label_column", _help(str, "Of a csv or jsonl, where it is not called label."), ""),
            ("split", _help(str | None, "Of a folder with splits; default: test, or val."), None),
            ("out", _help(Path | None, "Folder for evaluation.json, scores.csv, ..."), None),
        )

    about = "Each video is decoded once for all of its views; by default those of the run."
    job = _as_the_run(args, "evaluate", about, options, EvaluateConfig(), verbs.test_views)
    with _bar("evaluating", "videos") as progress:
        result = verbs.evaluate(
            job.run,
            job.data,
            job.config,
            root=job.root,
            split=job.split,
            label_column=job.label_column,
            progress=progress,
        )
    if os.environ.get("RANK", "0") != "0":
        return 0
    Console().print(result.table())
    if job.out is not None:
        for path in result.write(job.out):
            print(path)
    return 0


def predict(args: list[str]) -> int:
    """The best classes over time, of videos of any length: tubelet predict runs/b video.mp4"""
    from tubelet import verbs
    from tubelet.tasks.predict import PredictConfig

    kind = _options(
        "Predict",
        PredictConfig(),
        ("run", _help(str, "Run folder or checkpoint.", Given)),
        ("videos", _help(tuple[str, ...], "Videos, folders or lists.", Given)),
        ("out", _help(Path | None, "Write a .json or .csv file."), None),
    )
    job: Any = _parse(kind, args, "predict", "Windows of one clip each, from start to end.")
    with _bar("predicting", "seconds") as progress:
        told = progress and (lambda _path, done, of: progress(done, of))
        result = verbs.predict(job.run, list(job.videos), job.config, progress=told)
    Console().print(result.table())
    if job.out is not None:
        result.write(job.out)
        print(job.out)
    return result.exit_code


def reconstruct(args: list[str]) -> int:
    """Draw what a pretrained model makes of hidden parts: tubelet reconstruct runs/a video.mp4"""
    from tubelet import verbs
    from tubelet.analysis.reconstruct import ReconstructConfig

    def options(config: ReconstructConfig) -> type:
        return _options(
            "Reconstruct",
            config,
            ("run", _help(str, "Run folder or checkpoint of pretraining.", Given)),
            ("videos", _help(tuple[str, ...], "Videos.", Given)),
            ("out", _help(Path, "Folder for the pictures."), Path("reconstructions")),
        )

    about = "Input, masked input, reconstruction; by default with the masks of the run."
    job = _as_the_run(args, "reconstruct", about, options, ReconstructConfig(), verbs.run_masks)
    stems = [Path(video).stem for video in job.videos]
    same = sorted({stem for stem in stems if stems.count(stem) > 1})
    if same:
        raise TubeletError(
            f"Several videos are called {', '.join(same)}, and their pictures would overwrite one "
            "another: draw them into different folders, with --out."
        )
    model, name = verbs.masked_model(job.run), Path(job.run).name
    for video in job.videos:
        made = verbs.reconstruct(model, video, out=job.out, config=job.config, name=name)
        print(made.strip, *([made.animation] if made.animation else []), sep="\n")
    return 0


# --- data and the machine: check, toy, doctor, demo ---------------------------------------------


def check(args: list[str]) -> int:
    """Decode every file of a data set and say what is wrong: tubelet check data/"""
    from tubelet.data.check import check as run_check
    from tubelet.shapes import ClipSpec

    kind = _options(
        "Check",
        ClipSpec(),
        ("data", _help(str, "Folder or list.", Given)),
        ("root", _help(str, "Joined in front of relative paths."), ""),
        ("workers", _help(int | None, "Processes; default: one for each core."), None),
        ("decoder", Literal["pyav", "torchcodec"], "pyav"),
        ("label_column", _help(str, "Of a csv or jsonl, where it is not called label."), ""),
        ("allow_short", _help(bool, "Let videos shorter than the clip pass."), False),
        ("json", _help(Path | None, "Write the whole report to this file."), None),
    )
    job: Any = _parse(kind, args, "check", "Videos too short for the given clip are named too.")
    with _bar("checking", "files") as progress:
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
    _write_json(job.json, report.to_json())
    return 0 if report.ok else EXIT_ERROR


def demo(args: list[str]) -> int:
    """Pretrain on built-in videos and probe what was learned, in minutes: tubelet demo"""
    from tubelet.demo import DemoConfig
    from tubelet.demo import demo as run_demo

    kind = _options(
        "Demo",
        DemoConfig(),
        ("out", _help(Path, "Folder for videos, runs and results."), Path("runs/demo")),
    )
    job: Any = _parse(kind, args, "demo", "What is done already in --out is not done again.")
    result = run_demo(job.out, job.config)
    Console().print(result.table())
    print(f"picture: {result.picture}", f"results: {result.results}", sep="\n")
    return 0


def toy(args: list[str]) -> int:
    """Render the built-in videos, digits that move, with their lists: tubelet toy videos/"""
    from tubelet.data.toy import Options, render

    kind = _options(
        "Toy",
        Options(),
        ("out", _help(Path, "Folder for the videos.", Given)),
        ("train", _help(int, "Clips for training."), 4000),
        ("val", _help(int, "Clips for validation."), 400),
        ("test", _help(int, "Clips for testing."), 1000),
        ("workers", _help(int | None, "Processes; default: one for each core."), None),
    )
    job: Any = _parse(kind, args, "toy", "What a clip shows (the digit) and how it moves.")
    counts = {"train": job.train, "val": job.val, "test": job.test}
    with _bar("rendering", "clips") as progress:
        out = render(job.out, job.config, **counts, workers=job.workers, progress=progress)
    print(f"{out}: {', '.join(f'{count} {split}' for split, count in counts.items())}")
    return 0


def doctor(args: list[str]) -> int:
    """What is installed, which decoders and devices work, and what to do about the rest."""
    from tubelet.doctor import doctor as examine

    kind = dataclasses.make_dataclass(
        "Doctor", [("json", _help(Path | None, "Write the report to this file."), None)]
    )
    job: Any = _parse(kind, args, "doctor", doctor.__doc__ or "")
    report = examine()
    Console().print(report.table())
    _write_json(job.json, report.to_json())
    return 0 if report.ok else EXIT_ERROR


def _write_json(path: Path | None, text: str) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise TubeletError(f"{path} cannot be written: {error.strerror or error}.") from error
    print(path)


@contextmanager
def _bar(what: str, unit: str) -> Generator[Callable[[float, float], None] | None, None, None]:
    """A progress bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = [
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
    ]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


VERBS: dict[str, Callable[[list[str]], int | None]] = {
    "demo": demo,
    "check": check,
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "predict": predict,
    "reconstruct": reconstruct,
    "toy": toy,
    "list": list_runs,
    "doctor": doctor,
}
