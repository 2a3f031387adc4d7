"""What the verbs share: options from dataclasses, progress on a terminal, files of results."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tubelet.errors import TubeletError

Args = TypeVar("Args")
Given = tyro.conf.Positional
EXIT_ERROR, EXIT_BUG, EXIT_INTERRUPTED = 1, 70, 130


def parse(kind: Callable[..., Args], args: Sequence[str], verb: str, about: str) -> Args:
    """The arguments of a verb as an object of `kind`; ends the process on `--help` and bad ones."""
    return tyro.cli(kind, args=args, prog=f"tubelet {verb}", description=about)


def parse_as_the_run(
    args: Sequence[str],
    verb: str,
    about: str,
    options: Callable[[Any], type],
    default: Any,
    refine: Callable[[Any], Any],
) -> Any:
    """Parses twice: first to know the run, then with the defaults that its checkpoint names."""
    from tubelet import stored

    job: Any = parse(options(default), args, verb, about)
    card = stored.card_of(stored.header_of(job.run, job.told), job.run)
    return parse(options(refine(card)), args, verb, about)


def options_of(name: str, config: Any, *fields: tuple[Any, ...]) -> type:
    """Options of a verb: its own, then those of a config, with this config's values as defaults."""
    flat = Annotated[type(config), tyro.conf.arg(name="")]
    return options(name, *fields, ("config", flat, config))


def options(name: str, *fields: tuple[Any, ...]) -> type:
    """Options of a verb: (name, type) of each, and its default if it has one."""
    return dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)


def told_options() -> tuple[str, Any, Any]:
    """The field of options that say what weights of others do not say of themselves."""
    from tubelet.interop.found import NOTHING
    from tubelet.methods.run import OfOthers

    return ("told", OfOthers, NOTHING)


def option(kind: Any, text: str, *more: Any) -> Any:
    """The type of a field of options, with its help."""
    return Annotated[(kind, tyro.conf.arg(help=text), *more)]


def placed(kind: Any, name: str, text: str) -> Any:
    """The type of a field that is given by its place, and called `name` in the help."""
    return Annotated[kind, tyro.conf.arg(help=text, metavar=name), Given]


def pairs(given: Sequence[str], flag: str) -> dict[str, str]:
    """("a=x", "b=y") -> {"a": "x", "b": "y"}; no name, and a name given twice, are errors."""
    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals and value):
            raise TubeletError(f"{flag}: got {one!r}; expected NAME=VALUE, such as k400=train.csv.")
        if name in found:
            raise TubeletError(f"{flag}: {name!r} was given twice, {found[name]} and {value}.")
        found[name] = value
    return found


def first_process() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Prints, from the first of several processes."""
    if first_process():
        print(text)


def write_json(path: Path | None, text: str) -> None:
    """Writes a report where a path was given, and prints where."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise TubeletError(f"{path} cannot be written: {error.strerror or error}.") from error
    print(path)


@contextmanager
def bar(what: str, unit: str) -> Generator[Callable[..., None] | None, None, None]:
    """A progress bar on a terminal, moved by (done, of) and maybe a note; nothing elsewhere, and of
    several processes only the first's."""
    if not sys.stderr.isatty() or not first_process():
        yield None
        return
    columns = [
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit + " {task.fields[note]}"),
    ]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=None, note="")
        yield lambda done, of, note="": shown.update(task, completed=done, total=of, note=note)
