"""VideoMAE and VideoMAE V2: whole updates beside Hugging Face's model and the published formulation.

All at 16x224x224 with the published decoders and masks, on the same clips, and all of VideoMAE from the
same weights. Theirs begin with clips that are float and normalised already; ours with uint8.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from tubelet.backbones.vit import ViTShape
from tubelet.bench.plain.videomae import Plain, huggingface
from tubelet.bench.steps import Case, Peer, batch_of, our_step, their_step
from tubelet.bench.turns import Precision, Row, Step
from tubelet.decoders import DecoderShape
from tubelet.methods import videomae, videomae_v2
from tubelet.methods.run import Pretraining, changed
from tubelet.methods.videomae import VideoMAE
from tubelet.tasks.pretrain import Pretrain

CLIPS = 4
SINGLE_TIME = 0.75  # of a VideoMAE step, that V2's may take (arXiv 2303.16727, table 1)


def cases(quick: bool = False) -> list[Case]:
    """The cases of VideoMAE and V2, with their bars; `quick`: in small, without."""
    base, small, dual = videomae.base_k400, videomae.small_k400, videomae_v2.base_hybrid
    clips = CLIPS
    if quick:
        base, small, dual = (in_small(run) for run in (base, small, dual))
        clips = 2
    spec = base.clip
    shape = f"{clips}x{spec.in_chans}x{spec.num_frames}x{spec.size[0]}x{spec.size[1]}"

    def row(name: str, made: str, run: Pretraining, precision: Precision) -> Row:
        make = ours if made == "ours" else partial(theirs, made)
        return Row(name, partial(make, run, clips, precision), precision)

    def hf(precision: Precision) -> Row:
        return row(f"hf-{precision}", "hf", base, precision)

    def plain(precision: Precision, run: Pretraining = base) -> Row:
        return row(f"plain-{precision}", "plain", run, precision)

    def best(name: str, run: Pretraining) -> tuple[Row, ...]:
        return tuple(row(f"{name}-{p}", "ours", run, p) for p in ("float32", "bf16"))

    def bar(value: float) -> float | None:
        return None if quick else value

    return [
        Case(
            "videomae-b-f32",
            (row("ours-float32", "ours", base, "float32"),),
            {
                "hf": Peer((hf("float32"),), bar(1.2), bar(0.85), needs="transformers"),
                "plain": Peer((plain("float32"),), bar(1.7)),
            },
            shape,
        ),
        Case(
            "videomae-s-f32",
            (row("ours-float32", "ours", small, "float32"),),
            {"plain": Peer((plain("float32", small),), bar(2.0))},
            shape,
        ),
        Case(
            "videomae-b-best",
            best("ours", base),
            {
                "hf-f32": Peer((hf("float32"),), bar(2.4), needs="transformers"),
                "hf-bf16": Peer((hf("bf16"),), bar(1.45), needs="transformers"),
                "plain-bf16": Peer((plain("bf16"),), bar(1.9)),
            },
            shape,
        ),
        Case(
            "videomae-v2-b-best",
            best("v2", dual),
            {
                "videomae-b-best": Peer(
                    best("videomae", base), bar(1 / SINGLE_TIME), same_loss=False
                )
            },
            shape,
        ),
    ]


def in_small(run: VideoMAE) -> VideoMAE:
    """The run with a tiny network, on tiny clips."""
    clip = replace(run.clip, num_frames=8, size=(32, 32))
    shape = ViTShape(48, 2, 3, patch=8)
    return changed(run, clip=clip, encoder=shape, decoder=DecoderShape(32, 2, 2))


def ours(run: Pretraining, clips: int, precision: Precision) -> Step:
    """Our step, with weights of the seed that all rows have."""
    torch.manual_seed(0)
    return our_step(Pretrain(run.model()), batch_of(run, clips), bf16=precision == "bf16")


def theirs(made: str, run: VideoMAE, clips: int, precision: Precision) -> Step:
    """The step of Hugging Face's model ("hf") or of the published formulation ("plain")."""
    torch.manual_seed(0)
    model = run.model()
    batch = batch_of(run, clips)
    assert batch.masks is not None
    hidden = batch.masks.hidden[:, 0]
    clip = (batch.clip / 255 - model.backbone.mean) / model.backbone.std
    bf16 = precision == "bf16"
    if made == "plain":
        plain = Plain(model, run)
        return their_step(plain, lambda: plain(clip, hidden), bf16=bf16)
    other = huggingface(model, run)
    frames = clip.transpose(1, 2).contiguous()
    return their_step(
        other, lambda: other(pixel_values=frames, bool_masked_pos=hidden).loss, bf16=bf16
    )
