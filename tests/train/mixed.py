"""A mixed run that is killed at a step, resumed and compared: `mixed.py FOLDER`.

Over video files, folders of frames and images, in `FOLDER/videos`, `frames.csv` and `images`.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
from pathlib import Path

import torch
from tiny import contents, in_child, rows, same

from tubelet.backbones.vit import ViTShape
from tubelet.data.clips import ClipDataset, Key
from tubelet.data.sources import DataSource
from tubelet.decoders import DecoderShape
from tubelet.methods.run import changed
from tubelet.methods.videomae_v2 import VideoMAEV2
from tubelet.shapes import ClipSpec, Sample
from tubelet.verbs.pretraining import pretrain as learn

STEPS, BATCH, REPEATS = 8, 4, 2  # a checkpoint after 3 updates, and after 6
WEIGHTS = {"videos": 0.5, "frames": 0.3, "images": 0.2}


def pretrain(folder: Path, out: Path, resume: bool = False) -> None:
    torch.set_num_threads(1)
    run = VideoMAEV2(
        clip=ClipSpec(num_frames=4, sampling_rate=2, size=(32, 32)),
        encoder=ViTShape(16, 1, 2, patch=8),
        decoder=DecoderShape(16, 1, 2),
        mask_ratio=0.75,
        num_sample=REPEATS,
        sources=(
            DataSource("videos", f"{folder}/videos", weight=WEIGHTS["videos"]),
            DataSource(
                *("frames", f"{folder}/frames.csv", "", "frames"),
                sampling_rate=1,
                weight=WEIGHTS["frames"],
            ),
            DataSource("images", f"{folder}/images", "", "images", weight=WEIGHTS["images"]),
        ),
    )
    run = changed(
        run,
        steps=STEPS,
        batch_size=BATCH,
        micro_batch=2,
        lr=1.0,
        save_every_steps=3,
        log_every_steps=2,
        workers=0,
        device="cpu",
        progress=False,
    )
    learn(run, out=out, resume=resume)


def killed(folder: Path, out: Path, draw: int) -> None:
    """Dies when it asks for its n-th video."""
    original, drawn = ClipDataset.__getitem__, [0]

    def counting(dataset: ClipDataset, key: Key) -> list[Sample]:
        drawn[0] += 1
        if drawn[0] == draw:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(dataset, key)

    ClipDataset.__getitem__ = counting
    pretrain(folder, out)


def main(folder: Path) -> None:

    whole = folder / "whole"
    assert in_child(lambda: pretrain(folder, whole)) == 0
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    chosen = [moments.randrange(2, 3 * BATCH), moments.randrange(3 * BATCH + 2, STEPS * BATCH)]
    verdicts: list[bool] = []

    def resumed(out: Path) -> None:
        pretrain(folder, out, resume=True)
        equal = same(contents(out), contents(whole)) and rows(out) == rows(whole)
        (folder / "verdict").write_text(json.dumps(equal))

    for draw in chosen:
        out = folder / f"killed{draw}"
        assert in_child(lambda out=out, draw=draw: killed(folder, out, draw)) == -signal.SIGKILL
        assert in_child(lambda out=out: resumed(out)) == 0
        verdicts.append(json.loads((folder / "verdict").read_text()))
    told = {"seed": seed, "draws": chosen, "equal": verdicts, "rows": rows(whole)}
    (folder / "result.json").write_text(json.dumps(told))


if __name__ == "__main__":
    logging.disable()
    main(Path(sys.argv[1]))
