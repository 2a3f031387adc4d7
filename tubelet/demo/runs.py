"""What the demo trains: two teachers, and students that learn from one of them or from both."""

from __future__ import annotations

from dataclasses import replace

from tubelet.backbones.vit import ViTShape
from tubelet.decoders import DecoderShape
from tubelet.methods.mae import ImageMAE
from tubelet.methods.mvd import MVD, Distilled
from tubelet.methods.run import Pretraining
from tubelet.methods.videomae import VideoMAE
from tubelet.shapes import ClipSpec
from tubelet.train.config import TrainConfig

CLIP = ClipSpec(num_frames=8, sampling="dense", sampling_rate=1, size=(32, 32))
SHAPE = ViTShape(width=128, depth=4, heads=4, patch=8, position="sincos_3d")  # 64 tokens a clip
TRAIN = TrainConfig(
    epochs=100,
    warmup_epochs=5,
    batch_size=32,
    micro_batch=32,
    lr=1.2e-2,
    min_lr=1.2e-4,
    save_every_steps=400,
    keep_checkpoints=1,
    workers=0,
    progress=False,
)
SOURCE = "our own, by trials (docs/toy.md)"

# Raw pixels: normalised ones are mostly noise here. Whole time slots are hidden from the video
# teacher: of what was tried, it teaches motion fastest.
IMAGE = ImageMAE(
    encoder=replace(SHAPE, tubelet_size=1, position="sincos_2d", class_token=True),
    decoder=DecoderShape(width=64, depth=2, heads=4),
    normalise_target=False,
    clip=replace(CLIP, num_frames=1),
    train=replace(TRAIN, batch_size=64, micro_batch=64, lr=6e-3, min_lr=6e-5),
    source=SOURCE,
)
VIDEO = VideoMAE(
    encoder=SHAPE,
    decoder=DecoderShape(width=64, depth=2, heads=4),
    mask_type="frame",
    mask_ratio=0.5,
    normalise_target=False,
    clip=CLIP,
    train=TRAIN,
    source=SOURCE,
)
# Features of visible tokens are predicted too: with hidden ones alone students learn several times
# slower. The image teacher's hold the noise of each frame, which nobody can predict: its loss stays
# ten times as high as the video teacher's, so it weighs less.
TEACHER = Distilled(width=SHAPE.width, norm_feature=True)
BOTH = MVD(
    encoder=SHAPE,
    decoder=DecoderShape(width=64, depth=1, heads=4),
    mask_type="frame",
    mask_ratio=0.5,
    predict="all",
    drop_path=0.0,
    image=replace(TEACHER, weight=0.2),
    video=TEACHER,
    clip=CLIP,
    train=replace(TRAIN, batch_size=16, micro_batch=16, lr=2.4e-2, min_lr=2.4e-4),
    source=SOURCE,
)
NONE = Distilled(weight=0.0)
STUDENTS: dict[str, Pretraining] = {
    "student of image": replace(BOTH, video=NONE),
    "student of video": replace(BOTH, image=NONE),
    "student of both": BOTH,
}
