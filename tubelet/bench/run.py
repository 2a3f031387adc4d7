"""What `tubelet bench` measures: kinds, the parts of each, and all of them into a folder of docs."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tubelet.bench import machine, report
from tubelet.bench.kept import Done, Found, about, read, write
from tubelet.bench.record import Record
from tubelet.bench.steps import Case, Progress, run_cases, runs_of
from tubelet.errors import TubeletError

STEPS = ("videomae", "mvd", "maskfeat")  # modules with `cases(quick)`
KINDS = ("step", "loader", "decode", "targets", "memory", "wait")
TABLES = ("memory",)  # whose module has `rows`, dicts alone; others have `records`
THREADED = ("memory", "targets")  # whose steps take threads; the loader's and decoders' take one
Moved = Callable[[float, int], None]  # (parts done, of)


@dataclass(frozen=True)
class Part:
    """What is measured in one go, and kept or lost as one."""

    kind: str
    name: str
    measure: Callable[[Progress | None], Found]


def bench(
    kind: str,
    *,
    cases: Sequence[str] = (),
    quick: bool = False,
    turns: int | None = None,
    steps: int | None = None,
    threads: int = 0,
    progress: Moved | None = None,
) -> Done:
    """Measures one kind of `KINDS`.

    Args:
        cases: of steps, by name; none: all that say something on this machine.
        quick: in small, without bars: whether it runs.
        turns: of each row of a step; None: as its case says.
        steps: of the run that waits for data; None: as many as it takes by default.
        threads: of each row of a step; 0: as torch chooses.
        progress: called with (parts done, of).

    Raises:
        TubeletError: no such kind or case, a library that is missing, a row that failed.
    """
    began = time.perf_counter()
    parts = parts_of(kind, Choice(tuple(cases), quick=quick), turns, threads, steps)
    found = Found()
    for i, part in enumerate(parts):
        one = part.measure(within(progress, i, len(parts)))
        found = Found(found.records + one.records, found.rows + one.rows)
    return Done(kind, kind, _here(threads, quick), quick, time.perf_counter() - began, found)


def bench_all(
    out: Path | str,
    *,
    quick: bool = False,
    keep: bool = False,
    emulated: bool = False,
    threads: int = 0,
    progress: Callable[[float, int, str], None] | None = None,
) -> list[Done]:
    """Measures every kind, and writes performance.json, .md and .png in `out` after each part.

    `keep`: parts that the file has already, of this machine and these versions, are not measured
    again. `emulated`: rows in bf16 also where the processor only emulates it. `progress` is called
    with (parts done, of, the part's name). Raises TubeletError as `bench` does.
    """
    out = Path(out)
    file = out / "performance.json"
    here = _here(threads, quick)
    choice = Choice(quick=quick, emulated=emulated)
    kinds = [kind for kind in KINDS if kind != "memory" or machine.counts_peak()]
    parts = [part for kind in kinds for part in parts_of(kind, choice, None, threads)]
    order = [part.name for part in parts]
    before = read(file) if keep and file.exists() else []
    done = [each for each in before if each.fits(here, quick) and each.part in order]
    for i, part in enumerate(parts):
        if any(each.part == part.name for each in done):
            continue
        name = part.name.partition(" against")[0]
        named = None if progress is None else partial(_named, progress, name)
        began = time.perf_counter()
        found = part.measure(within(named, i, len(parts)))
        new = Done(part.name, part.kind, here, quick, time.perf_counter() - began, found)
        done = sorted([*done, new], key=lambda each: order.index(each.part))
        write(file, done)
        report.write(out, done)
    return done


@dataclass(frozen=True)
class Choice:
    """Which cases of steps are measured."""

    names: tuple[str, ...] = ()  # (): all that say something on this machine
    quick: bool = False
    emulated: bool = False

    def of(self, cases: Sequence[Case]) -> list[Case]:
        """The chosen ones of these cases."""
        known = {case.name: case for case in cases}
        for name in self.names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"Did you mean {near[0]!r}? " if near else ""
                raise TubeletError(f"There is no case {name!r}. {hint}Cases: {', '.join(known)}.")
        if self.names:
            return [known[name] for name in self.names]
        if self.quick or self.emulated or machine.has_bf16_units():
            return list(cases)
        return [fit for case in cases if (fit := in_float32(case)) is not None]


def parts_of(
    kind: str, choice: Choice, turns: int | None, threads: int, steps: int | None = None
) -> list[Part]:
    """The parts of a kind."""
    if kind not in KINDS:
        raise TubeletError(f"There is no benchmark {kind!r}; expected one of {', '.join(KINDS)}.")
    if kind == "memory" and not machine.counts_peak():
        raise TubeletError(
            f"The most memory that a process had is read from {machine.FORGET.parent}, which this "
            "system does not have: measure memory on Linux. The other kinds run here."
        )
    if kind != "step":
        told = {"steps": steps} if kind == "wait" else {}
        told |= {"threads": threads} if kind in THREADED else {}
        return [Part(kind, kind, partial(_other, kind, choice.quick, told))]
    return [
        Part(kind, _name(run), partial(_steps, run, turns, threads))
        for run in runs_of(choice.of(all_cases(choice.quick)))
    ]


def all_cases(quick: bool = False) -> list[Case]:
    """The cases of every method."""
    modules = [import_module(f"tubelet.bench.{name}") for name in STEPS]
    return [case for module in modules for case in module.cases(quick)]


def _name(run: Sequence[Case]) -> str:
    """Of a run: what is compared in it."""
    return "; ".join(f"{case.name} against {', '.join(case.against)}" for case in run)


def _here(threads: int, quick: bool) -> dict[str, Any]:
    units = None if quick else machine.has_bf16_units()
    return {**about(threads), "bf16_units": units}


def in_float32(case: Case) -> Case | None:
    """The case without rows in bf16, which are slower still where a processor only emulates it;
    None where nothing is left to compare."""
    ours = tuple(row for row in case.ours if row.precision == "float32")
    against = {
        name: replace(peer, rows=rows)
        for name, peer in case.against.items()
        if (rows := tuple(row for row in peer.rows if row.precision == "float32"))
    }
    return replace(case, ours=ours, against=against) if ours and against else None


def within(progress: Moved | None, part: int, parts: int) -> Progress | None:
    """Progress of one part as that of all, in parts."""
    if progress is None:
        return None
    return lambda done, of: progress(part + done / max(1, of), parts)


def _named(progress: Callable[[float, int, str], None], name: str, done: float, of: int) -> None:
    progress(done, of, name)


def _steps(
    cases: Sequence[Case], turns: int | None, threads: int, progress: Progress | None
) -> Found:
    return Found(run_cases(cases, turns=turns, threads=threads, progress=progress))


def _other(kind: str, quick: bool, told: dict[str, Any], progress: Progress | None) -> Found:
    module = import_module(f"tubelet.bench.{kind}")
    measure = module.rows if kind in TABLES else module.records
    measured = measure(quick=quick, progress=progress, **told)
    return Found(
        [each for each in measured if isinstance(each, Record)],
        [each for each in measured if not isinstance(each, Record)],
    )
