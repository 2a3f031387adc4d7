"""Dual masking as a run of its own, small, through the real verbs, on any number of processes.

Also a script: `dual.py spread FOLDER` trains what `test_fsdp.py` compares (under torchrun's
environment variables).
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.backbones.vit import ViTShape
from tubelet.decoders import DecoderShape
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import changed
from tubelet.methods.videomae_v2 import VideoMAEV2
from tubelet.shapes import Batch, ClipSpec
from tubelet.tasks.pretrain import Pretrain
from tubelet.train import checkpoint, parallel
from tubelet.verbs import finetune, pretrain, pretraining

CLIP = ClipSpec(num_frames=4, sampling_rate=2, size=(56, 56))  # 2x4x4 tokens
# The giant's patches, MLP and way of training; the decoder's 33 rows cannot be halved evenly, as the
# giant's 2,234 cannot be cut into 64.
SHAPE = ViTShape(44, 3, 4, patch=14, mlp_ratio=48 / 11, positions="rebuild")
TRAIN: dict[str, Any] = {
    "steps": 10,
    "batch_size": 4,
    "micro_batch": 2,  # one process accumulates two forwards, and so does each of two
    "lr": 0.05,
    "warmup_epochs": 0,
    "save_every_steps": 5,
    "log_every_steps": 1,
    "workers": 0,
    "device": "cpu",
    "progress": False,
}
RUN = changed(
    VideoMAEV2(clip=CLIP, encoder=SHAPE, decoder=DecoderShape(33, 2, 3, 48 / 11), mask_ratio=0.75),
    num_sample=2,
    clip_grad=0.02,
    checkpoint_blocks=True,
    **TRAIN,
)
FINE = changed(
    Finetune(clip=CLIP, encoder=SHAPE, drop_path=0.1, num_sample=2, init_scale=1.0),
    layer_decay=0.75,
    model_ema=0.9,
    checkpoint_blocks=True,
    **TRAIN | {"eval_every_epochs": 5},
)
WAYS: dict[str, dict[str, Any]] = {
    "fsdp": {"parallel": "fsdp", "micro_batch": 1},
    "ddp": {"parallel": "ddp", "micro_batch": 1},
    "fsdp-bf16": {"parallel": "fsdp", "micro_batch": 1, "precision": "bf16"},
}


def half_way(run: Path, to: Path) -> Path:
    """A copy of a run, as it was after five of its ten updates."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "checkpoint-000010")
    newest = checkpoint.latest(to)
    assert newest is not None and newest.name == "checkpoint-000005"
    return to


def spread(folder: Path) -> None:
    """Trains in two processes: whole runs, and those that one process has begun in `folder`."""
    grads: dict[str, set[str]] = {way: set() for way in WAYS}
    way = ""

    class Looked(Pretrain):
        """Looks at the gradients before each forward: those of the forwards before it."""

        def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
            for parameter in self.model.parameters():
                grad = parameter.grad
                grads[way].add("none" if grad is None else f"{type(grad).__name__} {grad.dtype}")
            return super().__call__(batch)

    pretraining.Pretrain = Looked  # pyright: ignore[reportPrivateImportUsage]
    with parallel.processes("cpu") as place:
        for way, changes in WAYS.items():
            pretrain(RUN, data=folder / "videos", out=folder / way, **changes)
        way = "fsdp"
        pretrain(RUN, data=folder / "videos", out=folder / "on", resume=True, **WAYS[way])
        finetune(FINE, data=folder / "labelled", out=folder / "fine", parallel="fsdp")
        told = {way: sorted(found) for way, found in grads.items()}
        (folder / f"told{place.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    logging.disable()
    torch.set_num_threads(1)
    spread(Path(sys.argv[2]))
