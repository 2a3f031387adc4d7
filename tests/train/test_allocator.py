"""Memory that was freed is there again without the system clearing it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
