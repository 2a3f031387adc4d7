"""How much memory it takes to load a pretrained ViT from a `.pth` of others.

    python benchmarks/load_memory.py [--size huge] [--folder FOLDER]

Makes a file of a published run's shapes and random numbers, laid out as VideoMAE's are ("model", by
torch.save), in float32 and in float16. A new process loads it by `tubelet.load` and tells how far its
peak (the greatest resident size, pages of the mapped file included) is above what it had before and
the model itself, as a part of the file's size. To show: below 1.3. docs/log.md has what was found.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import tubelet
from tubelet import stored
from tubelet.interop import layouts

BAR = 1.3


def make(size: str, file: Path, dtype: torch.dtype) -> None:
    """The file that VideoMAE's code would have written."""
    found = stored.found_of(tubelet.create(f"videomae:{size}_k400"))
    found.weights.update({name: value.to(dtype) for name, value in found.weights.items()})
    layouts.write(found, "videomae", file)


def measure(file: Path) -> dict[str, float]:
    """Loads the file in this process -> bytes and seconds."""
    before, begin = _peak(), time.perf_counter()
    model = tubelet.load(file)
    seconds = time.perf_counter() - begin
    parts = [*model.parameters(), *model.buffers()]
    return {
        "before": before,
        "peak": _peak(),
        "model": sum(part.numel() * part.element_size() for part in parts),
        "file": file.stat().st_size,
        "seconds": seconds,
    }


def _peak() -> int:
    """The greatest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # there ru_maxrss counts the process that started this one too
        told = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(told["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def show(size: str, dtype: str, folder: Path) -> bool:
    """Makes a file, loads it, prints a line; -> whether it is below the bar."""
    file = folder / "weights.pth"
    _run("make", size, str(file), dtype)
    told = json.loads(_run("measure", size, str(file), dtype).splitlines()[-1])
    file.unlink()
    beyond = told["peak"] - told["before"] - told["model"]
    ratio = beyond / told["file"]
    print(
        f"ViT-{size} {dtype}: file {told['file'] / 1e6:.0f} MB, model {told['model'] / 1e6:.0f} MB, "
        f"{told['before'] / 1e6:.0f} MB before, peak {told['peak'] / 1e6:.0f} MB; beyond the model "
        f"{beyond / 1e6:.0f} MB, {ratio:.2f} of the file; {told['seconds']:.1f} s",
        flush=True,
    )
    return ratio < BAR


def _run(*args: str) -> str:
    """This script in a process of its own."""
    command = [sys.executable, __file__, "--part", *args]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("small", "base", "large", "huge"), default="huge")
    parser.add_argument("--folder", type=Path, help="where the file is made; huge has 2.8 GB")
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is None:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            below = [show(args.size, dtype, Path(folder)) for dtype in ("float32", "float16")]
        raise SystemExit(0 if all(below) else 1)
    part, size, file, dtype = args.part
    if part == "make":
        make(size, Path(file), getattr(torch, dtype))
    else:
        print(json.dumps(measure(Path(file))))


if __name__ == "__main__":
    main()
