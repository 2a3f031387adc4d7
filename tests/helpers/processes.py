"""Scripts in processes of their own, that are forked where torch has been imported already."""

from __future__ import annotations

import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from tubelet.data.isolate import safe_context


def start(script: str | Path, *args: object, **environment: str) -> BaseProcess:
    """`python script args` with these variables beside, on one thread; it goes on meanwhile.

    Other variables are those of the first test that started one: the server of processes has them.
    """
    words = [str(script), *map(str, args)]
    process = safe_context().Process(target=_main, args=(words, environment))
    process.start()
    return process


def end(process: BaseProcess) -> int | None:
    """Waits -> its exit code; below 0 a signal ended it, None where it goes on after 5 minutes."""
    process.join(300)
    code = process.exitcode
    process.kill()
    return code


def run(script: str | Path, *args: object) -> int | None:
    """`start` to its end -> its exit code."""
    return end(start(script, *args))


def _main(words: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment, OMP_NUM_THREADS="1")  # also of processes that it starts
    torch.set_num_threads(1)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")
