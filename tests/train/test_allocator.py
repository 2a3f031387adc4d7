"""Memory that was freed is there again without the system clearing it."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tubelet.train import allocator

ROOT = Path(__file__).parents[2]
COUNT = """
import resource, torch
from tubelet.train.allocator import keep_freed
kept = keep_freed()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # memory with an alignment is found again once neighbours are free too
    torch.ones(1 << 20)
before = faults()
for _ in range(5):
    torch.ones(1 << 20)  # 4 MiB: 1,024 pages
print(kept, faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("said", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_pages_are_cleared_once(said: dict[str, str]) -> None:
    env = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_")} | said
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", COUNT], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    kept, faults = run.stdout.split()
    if said:  # what the user has chosen stays
        assert kept == "False"
    else:
        assert kept == "True"
        assert int(faults) < 1024


LARGER = """
import resource, sys, torch
from tubelet.train import allocator
assert allocator.keep_freed()
found = []
for _ in range(10):
    for _ in range(20):
        torch.ones(int(sys.argv[1]) << 18)  # so many MiB
    allocator.adapt()
    found.append(allocator._kept.largest >> 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(int(sys.argv[1]) << 18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, *found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("mebibytes", [10, 20, 40])
def test_larger_ones_are_kept_where_clearing_them_takes_time(mebibytes: int) -> None:
    env = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LARGER, str(mebibytes)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    faults, *largest = map(int, run.stdout.split())
    assert largest[0] == 6
    assert min(mebibytes, 32) <= largest[-1] <= 32
    assert (faults < 256 * mebibytes) == (mebibytes < 32)  # pages of 4 KiB


def test_what_is_kept_follows_from_the_systems_share(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(allocator, "_set", lambda option, value: told.append(value) or True)
    monkeypatch.setattr(allocator, "_kept", allocator._Kept(6 << 20, 6))
    system, whole = 0.0, 0.0
    # The first is new memory, and so is the one after each change.
    for share in (0.5, 0.02, 0.1, 0.5, 0.01, 0.02, 0.9, 0.9):
        system, whole = system + share, whole + 1
        used = SimpleNamespace(ru_stime=system, ru_utime=whole - system)
        monkeypatch.setattr("resource.getrusage", lambda _, used=used: used)
        allocator.adapt()
    assert told == [12 << 20]
    assert (allocator._kept.largest, allocator._kept.looks) == (12 << 20, 0)
