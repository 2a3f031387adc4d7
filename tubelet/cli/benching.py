"""The verb that measures: bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tubelet.cli.parsing import bar, option, options, parse
from tubelet.errors import TubeletError

QUICK = ("quick", option(bool, "Tiny networks and few files: whether it runs."), False)
THREADS = ("threads", option(int, "Of each row; 0: as torch chooses."), 0)
CASES = option(tuple[str, ...], "By name; default: all that say something here.")
FILE = ("out", option(Path | None, "Write all numbers to this file, as JSON."), None)


def bench(args: list[str]) -> int:
    """How fast it is, side by side with others: tubelet bench step --quick"""
    from tubelet.bench.run import KINDS

    kind = args[0] if args else ""
    if kind in ("-h", "--help"):
        print(usage())
        return 0
    if kind == "all":
        return _all(args[1:])
    if kind not in KINDS:
        raise TubeletError(
            f"There is no benchmark {kind!r}; expected one of {', '.join(KINDS)}, all. Such as: "
            "tubelet bench step --quick."
        )
    return _one(kind, args[1:])


def usage() -> str:
    """What `tubelet bench --help` prints."""
    from tubelet.bench.words import HEADS

    lines = ["usage: tubelet bench KIND [OPTIONS]    tubelet bench KIND --help", ""]
    lines += [f"  {kind:<8} {title}" for kind, (title, _) in HEADS.items()]
    return "\n".join([*lines, "  all      Every kind, into docs: performance.json, .md and .png"])


def _one(kind: str, args: list[str]) -> int:
    from tubelet import verbs
    from tubelet.bench import kept, report
    from tubelet.bench.words import HEADS

    fields: list[tuple[Any, ...]] = [QUICK]
    if kind == "step":
        turns = ("turns", option(int | None, "Of each row; default: as the case says."), None)
        fields += [("cases", CASES, ()), turns, THREADS]
    if kind == "wait":
        fields.append(
            ("steps", option(int | None, "Of the run; default: 200, or 14 with --quick."), None)
        )
    about = f"{HEADS[kind][0]}, measured here; docs/performance.md says what the rows are."
    job: Any = parse(options("Bench", *fields, FILE), args, f"bench {kind}", about)
    given = {name: getattr(job, name) for name, *_ in fields}
    with bar(f"bench {kind}", "parts") as progress:
        done = verbs.bench(kind, **given, progress=progress)
    print(report.summary([done]))
    if job.out is not None:
        kept.write(job.out, [done])
        print(job.out)
    return 0


def _all(args: list[str]) -> int:
    from tubelet import verbs
    from tubelet.bench import report

    keep = option(bool, "Keep what the file has of this machine and these versions.")
    emulated = option(bool, "Measure bf16 also where the processor only emulates it.")
    kind = options(
        "Bench",
        ("out", option(Path, "Folder for performance.json, .md and .png.")),
        *(("keep", keep, False), ("emulated", emulated, False), QUICK, THREADS),
    )
    about = "Every kind; files are written after each part, so what is stopped loses only the rest."
    job: Any = parse(kind, args, "bench all", about)
    with bar("bench all", "parts") as progress:
        done = verbs.bench_all(
            job.out,
            quick=job.quick,
            keep=job.keep,
            emulated=job.emulated,
            threads=job.threads,
            progress=progress,
        )
    print(report.summary(done), job.out / "performance.md", sep="\n")
    return 0
