"""Kill pretraining with SIGKILL at random moments, resume it, compare the weights bit for bit.

    python tests/kill_and_resume.py VIDEOS [--trials 10] [--steps 20] [--run videomae:small_k400]
    python tests/kill_and_resume.py --sources a=VIDEOS b=FRAMES,kind=frames [...]

VIDEOS: a folder. Further options go to `tubelet pretrain`. Exit code 1 if any trial ends with
other weights than the uninterrupted run.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tubelet.train import checkpoint


def command(args: argparse.Namespace, more: list[str], out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "tubelet", "pretrain", args.run),
        *(("--sources", *args.sources) if args.sources else ("--data", args.videos)),
        *("--out", str(out), "--steps", str(args.steps), "--batch-size", str(args.batch_size)),
        *("--save-every-steps", str(args.save_every_steps), "--no-progress", *more),
    ]


def finish(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stderr}")


def trial(args: argparse.Namespace, more: list[str], out: Path, seconds: float) -> int:
    """Starts the run, kills it, lets it finish -> the step that it went on from."""
    process = subprocess.Popen(
        command(args, more, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    newest = checkpoint.latest(out)
    finish([*command(args, more, out), "--resume"])
    return int(newest.name.rpartition("-")[2]) if newest else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--videos", default="")
    parser.add_argument("--sources", nargs="+", help="of a mixed run, in the place of VIDEOS")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--save-every-steps", type=int, default=4)
    parser.add_argument("--run", default="videomae:small_k400")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    given = sys.argv[1:]
    first = ["--videos"] if given and not given[0].startswith("-") else []
    args, more = parser.parse_known_args([*first, *given])
    moments, failed = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        finish(command(args, more, Path(folder, "whole")))
        length = time.monotonic() - started
        whole = checkpoint.load_weights(Path(folder, "whole"))
        print(
            f"uninterrupted: {args.steps} steps in {length:.0f} s, {len(whole)} tensors", flush=True
        )
        for i in range(args.trials):
            seconds = moments.uniform(0, length)
            out = Path(folder, f"trial{i}")
            step = trial(args, more, out, seconds)
            weights = checkpoint.load_weights(out)
            equal = weights.keys() == whole.keys() and all(
                torch.equal(weights[name], whole[name]) for name in whole
            )
            failed += not equal
            verdict = "bit-equal" if equal else "DIFFERENT"
            print(
                f"killed after {seconds:5.1f} s, resumed at step {step:2d}: {verdict}", flush=True
            )
            for path in sorted(out.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
    print(f"{args.trials - failed} of {args.trials} trials ended bit-equal")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
