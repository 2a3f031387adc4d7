"""Prepares videos in processes that kill themselves at each touch of the disk, and goes on.

    python killed_preparing.py DATA FOLDER

Writes FOLDER/result.json: for each kill, how many videos were there when it went on, and whether
the files are in the end those of a job that was never stopped.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from killing import killing

from tubelet.data.prepare.job import Report, prepare
from tubelet.data.prepare.ledger import NAME
from tubelet.data.prepare.reencode import Settings


def job(data: Path, out: Path) -> Report:
    return prepare(data, out, Settings(short_side=16), workers=0)


def contents(out: Path) -> dict[str, bytes]:
    files = {str(p.relative_to(out)): p for p in out.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != NAME}


def die_at_rename(count: int, after: bool) -> None:
    os.replace = killing(count, after)


def die_in_line(out: Path, count: int) -> None:
    """The process dies when half of the n-th video's line is written."""
    from tubelet.data.prepare.ledger import Ledger

    real, left = Ledger._add, [count]

    def add(ledger: Ledger, record: dict[str, Any]) -> None:
        left[0] -= 1
        real(ledger, record)
        if not left[0]:
            path = out / NAME
            os.truncate(path, path.stat().st_size - 40)
            os.kill(os.getpid(), signal.SIGKILL)

    Ledger._add = add


def killed(data: Path, folder: Path, out: Path, arm: Callable[[], None]) -> dict[str, Any]:
    """A job that dies, and one that goes on."""
    child = os.fork()
    if not child:
        arm()
        job(data, out)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    again = job(data, out)
    return {
        "killed": os.WIFSIGNALED(status),
        "there": again.there,
        "equal": contents(out) == contents(folder / "whole"),
    }


def main(data: Path, folder: Path) -> None:
    job(data, folder / "whole")
    kills: list[dict[str, Any]] = []
    for count in range(1, 5):
        for after in (False, True):
            out = folder / f"rename{count}{after}"
            arm = lambda count=count, after=after: die_at_rename(count, after)  # noqa: E731
            kills.append(killed(data, folder, out, arm))
    for count in range(1, 3):
        out = folder / f"line{count}"
        arm = lambda out=out, count=count: die_in_line(out, count)  # noqa: E731
        kills.append(killed(data, folder, out, arm))
    (folder / "result.json").write_text(json.dumps(kills))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
