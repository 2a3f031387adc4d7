"""MaskFeat: whole updates of MViTv2-S beside the published formulation, on the same clips.

At 16x224x224 with the published masks and weights of one seed. Theirs begins with clips that are float
and normalised already; ours with uint8. There is no clipping of gradients on either side.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from tubelet.backbones.mvit import MViTShape
from tubelet.bench import steps
from tubelet.bench.plain.maskfeat import Plain
from tubelet.bench.steps import Case, Peer, as_published, our_step, their_step
from tubelet.bench.turns import Precision, Row, Step
from tubelet.methods import maskfeat
from tubelet.methods.maskfeat import MaskFeat
from tubelet.methods.run import changed
from tubelet.shapes import Batch
from tubelet.tasks.pretrain import Pretrain

CLIPS = 2
TURNS = 3  # a step takes seconds
BAR = 1.5


def cases(quick: bool = False) -> list[Case]:
    """In float32, and in whatever precision is the quicker one of each; `quick`: in small."""
    run, bar = (in_small(maskfeat.small_k400), None) if quick else (maskfeat.small_k400, BAR)
    shape = "x".join(map(str, (CLIPS, run.clip.in_chans, run.clip.num_frames, *run.clip.size)))

    def rows(name: str, *precisions: Precision) -> tuple[Row, ...]:
        make = {"ours": ours, "plain": theirs}[name]
        return tuple(Row(f"{name}-{p}", partial(make, run, CLIPS, p), p) for p in precisions)

    def case(name: str, *precisions: Precision) -> Case:
        peer = Peer(rows("plain", *precisions), bar)
        own = rows("ours", *precisions)
        return Case(name, own, {"plain": peer}, shape, together="maskfeat", turns=TURNS)

    return [case("maskfeat-s-f32", "float32"), case("maskfeat-s-best", "float32", "bf16")]


def in_small(run: MaskFeat) -> MaskFeat:
    """The run with a tiny network, on tiny clips."""
    clip = replace(run.clip, num_frames=8, size=(64, 64))
    shape = MViTShape((1, 1, 1), (16, 32, 48), (1, 2, 3), pool_kv=4)
    return changed(run, clip=clip, encoder=shape)


def batch_of(run: MaskFeat, clips: int) -> Batch:
    """As `steps.batch_of`, with the lowest bit of each pixel set so that no horizontal gradient is 0.

    Such a gradient lies on the edge of a bin of HOG, where rounding decides, which is not the same in
    both formulations. Here Sobel's left and right sums are one odd and one even.
    """
    batch = steps.batch_of(run, clips)
    pixels = batch.clip
    rows, columns = (torch.arange(n) for n in pixels.shape[-2:])
    odd = (rows[:, None] // 2 % 2) * (columns // 2 % 2)
    batch.views["clip"] = (pixels // 2 * 2 + odd).to(torch.uint8)
    return batch


def ours(run: MaskFeat, clips: int, precision: Precision) -> Step:
    """Our step, with weights of the seed that all rows have."""
    torch.manual_seed(0)
    return our_step(Pretrain(run.model()), batch_of(run, clips), bf16=precision == "bf16")


def theirs(run: MaskFeat, clips: int, precision: Precision) -> Step:
    """The step of the published formulation."""
    torch.manual_seed(0)
    model = run.model()
    batch = batch_of(run, clips)
    clip, hidden = as_published(model, batch)
    plain = Plain(model).train()
    return their_step(plain, lambda: plain(clip, hidden), bf16=precision == "bf16")
