"""VideoMAE and VideoMAE V2: whole updates beside Hugging Face's model and the published formulation.

All at 16x224x224 with the published decoders and masks, on the same clips, and all of VideoMAE from the
same weights. Theirs begin with clips that are float and normalised already; ours with uint8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from tubelet.backbones.vit import ViTShape
from tubelet.bench.plain.videomae import Plain, huggingface
from tubelet.bench.steps import (
    Case,
    Peer,
    as_published,
    batch_of,
    our_step,
    their_step,
    without_bars,
)
from tubelet.bench.turns import Precision, Row, Step
from tubelet.decoders import DecoderShape
from tubelet.methods import videomae, videomae_v2
from tubelet.methods.run import Pretraining, changed
from tubelet.methods.videomae import VideoMAE
from tubelet.tasks.pretrain import Pretrain

Made = Literal["hf", "plain"]
CLIPS = 4
TURNS = 5  # a step takes seconds
DUAL_TIME = 0.75  # of a VideoMAE step, that V2's may take (arXiv 2303.16727, table 1)


@dataclass(frozen=True)
class Rows:
    """The rows of a run."""

    run: VideoMAE
    clips: int

    def ours(self, precision: Precision, name: str = "ours") -> Row:
        make = partial(ours, self.run, self.clips, precision)
        return Row(f"{name}-{precision}", make, precision)

    def best(self, name: str = "ours") -> tuple[Row, ...]:
        return (self.ours("float32", name), self.ours("bf16", name))

    def theirs(self, made: Made, precision: Precision) -> tuple[Row, ...]:
        make = partial(theirs, made, self.run, self.clips, precision)
        return (Row(f"{made}-{precision}", make, precision),)


def cases(quick: bool = False) -> list[Case]:
    """The cases of VideoMAE and V2, with their bars; `quick`: in small, without."""
    runs: list[VideoMAE] = [videomae.small_k400, videomae.base_k400, videomae_v2.base_hybrid]
    clips = 2 if quick else CLIPS
    small, base, dual = (Rows(in_small(run) if quick else run, clips) for run in runs)
    spec = base.run.clip
    shape = "x".join(map(str, (clips, spec.in_chans, spec.num_frames, *spec.size)))

    def hf(precision: Precision, bar: float, bar_memory: float | None = None) -> Peer:
        return Peer(base.theirs("hf", precision), bar, bar_memory, needs="transformers")

    single = Peer(base.best(), 1 / DUAL_TIME, same_loss=False)
    found = [
        Case(
            "videomae-s-f32",
            (small.ours("float32"),),
            {"plain": Peer(small.theirs("plain", "float32"), 2.0)},
            shape,
        ),
        Case(
            "videomae-b-f32",
            (base.ours("float32"),),
            {"hf": hf("float32", 1.2, 0.85), "plain": Peer(base.theirs("plain", "float32"), 1.7)},
            shape,
            together="videomae-b",
            turns=TURNS,
        ),
        Case(
            "videomae-b-best",
            base.best(),
            {
                "hf-f32": hf("float32", 2.4),
                "hf-bf16": hf("bf16", 1.45),
                "plain-bf16": Peer(base.theirs("plain", "bf16"), 1.9),
            },
            shape,
            together="videomae-b",
            turns=TURNS,
        ),
        Case(
            *("videomae-v2-b-best", dual.best("v2"), {"videomae-b-best": single}, shape),
            together="videomae-b",
            turns=TURNS,
        ),
    ]
    return [without_bars(case) for case in found] if quick else found


def in_small(run: VideoMAE) -> VideoMAE:
    """The run with a tiny network, on tiny clips."""
    clip = replace(run.clip, num_frames=8, size=(32, 32))
    shape = ViTShape(48, 2, 3, patch=8)
    return changed(run, clip=clip, encoder=shape, decoder=DecoderShape(32, 2, 2))


def ours(run: Pretraining, clips: int, precision: Precision) -> Step:
    """Our step, with weights of the seed that all rows have."""
    torch.manual_seed(0)
    return our_step(Pretrain(run.model()), batch_of(run, clips), bf16=precision == "bf16")


def theirs(made: Made, run: VideoMAE, clips: int, precision: Precision) -> Step:
    """The step of Hugging Face's model ("hf") or of the published formulation ("plain")."""
    torch.manual_seed(0)
    model = run.model()
    batch = batch_of(run, clips)
    clip, hidden = as_published(model, batch)
    bf16 = precision == "bf16"
    if made == "plain":
        plain = Plain(model, run)
        return their_step(plain, lambda: plain(clip, hidden), bf16=bf16)
    other = huggingface(model, run)
    frames = clip.transpose(1, 2).contiguous()
    return their_step(
        *(other, lambda: other(pixel_values=frames, bool_masked_pos=hidden).loss),
        bf16=bf16,
        fused=True,
    )
