"""MVD: whole updates per student view beside the published formulation.

At 16x224x224 with two ViT-B teachers of random weights. Theirs begins with clips that are float and
normalised already; ours with uint8. With k masks a clip, one clip gives k student views, and times are
per view. No part of a batch is dropped (`drop_path` 0), so that with one mask both compute one loss.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from tubelet.backbones.vit import BASE, ViT, ViTShape
from tubelet.bench.plain.mvd import Plain
from tubelet.bench.steps import Case, Peer, as_published, batch_of, our_step, their_step
from tubelet.bench.turns import Precision, Row, Step
from tubelet.decoders import DecoderShape
from tubelet.methods import mvd
from tubelet.methods.mae import image
from tubelet.methods.mvd import MVD
from tubelet.methods.run import changed
from tubelet.model import MaskedModel
from tubelet.tasks.pretrain import Pretrain
from tubelet.teachers import connect, teacher_of

# Of a step with one mask a clip; with four masks one clip makes as large a student's batch.
CLIPS = 2
MASKS = 4
TURNS = 3  # a step takes seconds
STUDENTS = {"b": mvd.base_from_base_k400, "s": mvd.small_from_base_k400}
SMALL = ViTShape(48, 2, 3, patch=8)  # where it is only tried

# Of the plain formulation's time through ours, per student view: in the same precision, and in
# float32 through ours in bf16.
BARS = {
    "mvd-b-k1": (1.4, 2.8),
    "mvd-b-k4": (2.2, None),
    "mvd-b-k4-decoder-mask": (3.0, None),
    "mvd-s-k4": (3.0, None),
}


def cases(quick: bool = False) -> list[Case]:
    """The cases in bf16, with their bars, and the same in float32 ("-f32"); `quick`: in small,
    without bars."""
    precisions: tuple[Precision, ...] = ("bf16", "float32")
    return [_case(name, precision, quick) for precision in precisions for name in BARS]


def _case(name: str, precision: Precision, quick: bool) -> Case:
    """One case. B students of one precision are one run, with one plain row for all; so are S."""
    bar, bar_float32 = BARS[name]
    _, size, masks, *decoder = name.split("-")
    plain = replace(STUDENTS[size], drop_path=0.0)
    plain, teacher = (in_small(plain), SMALL) if quick else (plain, BASE)
    k, clips = (MASKS, 1) if masks == "k4" else (1, CLIPS)
    run = changed(plain, masks_per_clip=k, decoder_mask_ratio=0.5 if decoder else 0.0)

    def peer(of: Precision, value: float | None) -> Peer:
        row = Row(f"plain-{of}", partial(theirs, plain, teacher, CLIPS, of), of)
        return Peer((row,), None if quick else value, views=CLIPS, same_loss=k == 1)

    bf16 = precision == "bf16"
    against = {"plain-bf16" if bf16 else "plain": peer(precision, bar)}
    if bf16 and bar_float32:
        against["plain-f32"] = peer("float32", bar_float32)
    name += "" if bf16 else "-f32"
    return Case(
        name,
        (Row(name, partial(ours, run, teacher, clips, precision), precision),),
        against,
        "x".join(map(str, (clips, run.clip.in_chans, run.clip.num_frames, *run.clip.size))),
        views=clips * k,
        together=f"mvd-{size}-{precision}",
        turns=TURNS,
    )


def in_small(run: MVD) -> MVD:
    """The run with tiny networks, on tiny clips."""
    clip = replace(run.clip, num_frames=8, size=(32, 32))
    encoder = replace(SMALL, position="sincos_3d")
    return changed(run, clip=clip, encoder=encoder, decoder=DecoderShape(32, 2, 2))


def model_of(run: MVD, teacher: ViTShape, precision: Precision) -> MaskedModel:
    """Student and teachers with the weights of one seed; the teachers compute in that precision."""
    torch.manual_seed(0)
    given: dict[str, ViT] = {
        "image": ViT(image(teacher), trained=(1, *run.clip.size)),
        "video": ViT(teacher, trained=(run.clip.num_frames, *run.clip.size)),
    }
    image_how, video_how = (
        replace(how, width=teacher.width, precision=precision) for how in (run.image, run.video)
    )
    here = {"image_teacher": "here", "video_teacher": "here"}
    model = replace(run, image=image_how, video=video_how, **here).model()
    connect(model, {name: teacher_of(vit) for name, vit in given.items()})
    return model


def ours(run: MVD, teacher: ViTShape, clips: int, precision: Precision) -> Step:
    """Our step on that many clips, with the run's masks of each."""
    model = model_of(run, teacher, precision)
    return our_step(Pretrain(model), batch_of(run, clips), bf16=precision == "bf16")


def theirs(run: MVD, teacher: ViTShape, clips: int, precision: Precision) -> Step:
    """The step of the published formulation, one mask a clip."""
    model = model_of(run, teacher, "float32")
    batch = batch_of(run, clips)
    clip, hidden = as_published(model, batch)
    plain = Plain(model, run).train()
    return their_step(plain, lambda: plain(clip, hidden), bf16=precision == "bf16")
