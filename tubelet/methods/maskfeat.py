"""MaskFeat (Wei et al. 2021, arXiv 2112.09133): cubes are hidden, and HOG of them predicted.

Hidden tokens are replaced by a learned one, so the encoder sees the whole grid and a linear layer
predicts. Epochs and rates are those of the published configurations, whose rates are for a node's
batch: here they are per 256 videos. Numbers in `published` are top-1 of the fine-tuned model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, Self

import numpy as np
import tyro
from torch import Tensor, nn

from tubelet import losses, masks
from tubelet.backbones.backbone import Backbone
from tubelet.backbones.mvit import MVIT_LARGE, MVIT_SMALL
from tubelet.backbones.vit import BASE, LARGE, ViTShape
from tubelet.data import transforms
from tubelet.data.transforms import Augment
from tubelet.decoders import DecoderShape, Linear
from tubelet.errors import TubeletError
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import AnyEncoder, Flat, Pretraining, changed
from tubelet.model import Branch, Loss, MaskedModel
from tubelet.shapes import ClipSpec, Grid
from tubelet.targets.features import Features
from tubelet.targets.hog import Hog
from tubelet.targets.ids import Ids, PseudoLabels
from tubelet.targets.pixels import Pixels
from tubelet.train.config import TrainConfig

TAUGHT_BY = {"features": Features, "ids": Ids, "pseudo_labels": PseudoLabels}


@dataclass(frozen=True)
class HogOptions:
    """Which histograms of gradients; see `tubelet.targets.hog.Hog`. The defaults are published."""

    colour: Literal["rgb", "grey"] = "rgb"
    bins: int = 9
    cell: int = 8  # pixels, high and wide
    normalise: bool = True  # the contrast of each cell
    frames: Literal["centre", "all"] = "centre"  # of a token


CLIP = ClipSpec(num_frames=16, sampling="dense_fps", sampling_rate=4, crop_pct=0.875)
CROP = Augment(crop="random_resized", area=(0.5, 1.0), flip=0.5)
# What both published pretraining configurations share; rates for 256 videos, of 32 at 1e-4.
TRAIN = TrainConfig(
    epochs=300,
    batch_size=512,
    lr=8e-4,
    min_lr=8e-6,
    warmup_epochs=10,
    betas=(0.9, 0.999),
    clip_grad=0.02,
)


@dataclass(frozen=True)
class MaskFeat(Pretraining):
    """Masked feature prediction. The defaults are the published ones for MViTv2-S on Kinetics."""

    clip: Annotated[ClipSpec, Flat] = CLIP
    augment: Augment = CROP
    train: Annotated[TrainConfig, Flat] = TRAIN
    encoder: AnyEncoder = replace(MVIT_SMALL, pool_last=False)
    decoder: Annotated[DecoderShape | None, tyro.conf.Suppress] = None
    """None: a linear layer, as published. A shallow ViT is for encoders that drop hidden tokens."""
    mask_type: Literal["cube", "tube", "frame", "random"] = "cube"
    """cube: boxes in space and time; tube: blocks, the same in each time slot (on images the blocks
    of BEiT); frame: whole time slots; random: single tokens."""
    mask_ratio: float = 0.4
    mask_unit: tuple[int, int, int] = (1, 2, 2)
    """Tokens (time, rows, columns) that are hidden together, of cube and tube."""
    target: Literal["hog", "pixels", "features", "ids", "pseudo_labels"] = "hog"
    """features, ids (a tokenizer's) and pseudo_labels (a classifier's) are of a frozen network."""
    hog: HogOptions = HogOptions()
    normalise_target: bool = True
    """Predict pixels normalised over each token; else as they are."""
    teacher: str = ""
    """The frozen network: a run folder, a checkpoint, a Hugging Face model's folder, or
    ./mine.py:function, which returns a Teacher."""
    teacher_width: int = 0
    """Width of its features, size of its vocabulary or its number of classes; 0: as it says."""

    def __post_init__(self) -> None:
        if self.decoder is None and self.encoder.hide == "drop":
            raise TubeletError(
                "A linear decoder predicts from hidden tokens, and this encoder drops them: replace "
                "them (--encoder.hide replace), or give the run a decoder=DecoderShape(...) in Python."
            )
        if self.teacher and self.target not in TAUGHT_BY:
            raise TubeletError(
                f"The target {self.target!r} has no teacher: leave out --teacher, or choose --target "
                f"{', '.join(TAUGHT_BY)}."
            )

    def mask(self, grid: Grid, rng: np.random.Generator) -> Tensor:
        """-> hidden bool [N]; of cube and tube the number of tokens varies."""
        if self.mask_type == "random":
            return masks.random(grid, rng, mask_ratio=self.mask_ratio)
        if self.mask_type == "frame":
            return masks.frame(grid, rng, mask_ratio=self.mask_ratio, rounded=True)
        draw = masks.cube if self.mask_type == "cube" else masks.block
        return draw(grid, rng, mask_ratio=self.mask_ratio, unit=self.mask_unit)

    @property
    def ragged(self) -> bool:
        """Whether masks hide a varying number of tokens."""
        return self.mask_type in ("cube", "tube")

    @property
    def fills(self) -> bool:
        """A linear decoder looks at each token alone."""
        return self.decoder is None

    def teachers(self) -> dict[str, str]:
        """{branch: where its frozen network comes from}."""
        return {self.target: self.teacher} if self.target in TAUGHT_BY else {}

    def teacher_options(self, branch: str) -> dict[str, Any]:
        """Of a fine-tuned run, pseudo-labels are what it says of its classes."""
        return {"logits": True} if branch == "pseudo_labels" else {}

    def teacher_flags(self, branch: str) -> tuple[str, str]:
        """How a user gives the frozen network, and how to do without."""
        return "pass --teacher with", "--target hog"

    def fitted(self, widths: Mapping[str, int]) -> Self:
        """The run with its teacher's width, where it left that open."""
        width = self.teacher_width or widths.get(self.target, 0)
        return replace(self, teacher_width=width)

    def model(self) -> MaskedModel:
        """Encoder, target and decoder; a teacher is connected afterwards."""
        # Of encoder and linear decoder only one norms: published networks have it in the decoder.
        backbone = self.backbone(final_norm=self.decoder is not None, init="normal")
        target, loss = self._target(backbone)
        width: Any = target.width
        decoder = (
            Linear(backbone.dim, width) if self.decoder is None else self.joint(width, self.decoder)
        )
        return MaskedModel(backbone, [Branch(self.target, decoder, target, loss)])

    def _target(self, backbone: Backbone) -> tuple[nn.Module, Loss]:
        patch, channels = backbone.patch, backbone.in_chans
        if self.target == "hog":
            return Hog(patch, channels, **asdict(self.hog)), losses.mse
        if self.target == "pixels":
            target = Pixels(
                patch,
                channels,
                normalise=self.normalise_target,
                jointly=True,
                mean=backbone.mean.flatten().tolist(),
                std=backbone.std.flatten().tolist(),
            )
            return target, losses.mse
        if not self.teacher_width:
            raise TubeletError(
                f"The width of the target {self.target!r} is that of its teacher: give --teacher, or "
                "--teacher-width to make the model without it."
            )
        target = TAUGHT_BY[self.target](self.teacher_width, patch=patch, grid=backbone.grid)
        # Features: the angle between vectors, as arXiv 2112.09133, section 3.
        return target, losses.cosine if self.target == "features" else losses.cross_entropy


def image(shape: ViTShape) -> ViTShape:
    """The encoder of that size for images: learned positions, a class token, a mask token."""
    return replace(shape, tubelet_size=1, position="learned", class_token=True, hide="replace")


CONFIG = "published configuration; masks and target as arXiv 2112.09133, sections 3 and 4"
OURS = "no published configuration: our values, after the nearest published one"

small_k400 = MaskFeat(source=CONFIG, published="K400 82.2 (16x10x1)")
large_k400 = changed(
    small_k400,
    encoder=replace(MVIT_LARGE, pool_last=False),
    epochs=800,
    checkpoint_blocks=True,
    published="K400 84.3 (16x10x1)",
    source=CONFIG + "; it says 300 epochs, the published weights have 800",
)
large_k600 = changed(
    large_k400,
    epochs=300,
    published="K600 88.3 after fine-tuning on larger inputs (paper)",
    source=OURS,
)
large_k700 = changed(large_k600, published="K700 80.4 after fine-tuning on larger inputs (paper)")

base_in1k = changed(
    small_k400,
    encoder=image(BASE),
    clip=ClipSpec(num_frames=1, sampling_rate=1, crop_pct=0.875, interpolation="bicubic"),
    augment=replace(CROP, interpolation="bicubic"),
    mask_type="tube",
    mask_unit=(1, 1, 1),
    epochs=1600,
    warmup_epochs=30,
    batch_size=2048,
    lr=2e-4,
    min_lr=1e-6,
    published="ImageNet-1K 84.0, fine-tuned on images",
    source=CONFIG + "; it says 300 epochs, the published weights have 1600",
)
large_in1k = changed(
    base_in1k,
    encoder=image(LARGE),
    checkpoint_blocks=True,
    published="ImageNet-1K 85.7, fine-tuned on images",
)

small_k400_finetune = changed(
    Finetune(
        encoder=MVIT_SMALL,
        clip=CLIP,
        augment=replace(transforms.FINETUNE, auto_augment="rand-m7-n2-mstd0.5-inc1"),
        source="published configuration",
        published="K400 82.2 (16x10x1), from small_k400",
    ),
    epochs=100,
    warmup_epochs=20,
    batch_size=256,
    num_sample=2,
    lr=9.6e-3,
    min_lr=1.6e-5,
    clip_grad=5.0,
    drop_path=0.1,
    layer_decay=0.75,
    test_num_segment=10,
    test_num_crop=1,
)
large_k400_finetune = changed(
    small_k400_finetune,
    encoder=MVIT_LARGE,
    epochs=75,
    warmup_epochs=5,
    num_sample=1,
    min_lr=1.6e-4,
    drop_path=0.2,
    layer_decay=0.875,
    checkpoint_blocks=True,
    published="K400 84.3 (16x10x1), from large_k400",
)
large_k600_finetune = changed(
    large_k400_finetune, published="not given for this input", source=OURS
)
large_k700_finetune = changed(large_k600_finetune)
# Larger and longer inputs start from the model that was fine-tuned at 224 pixels.
large_k400_312_finetune = changed(
    large_k400_finetune,
    size=(312, 312),
    num_frames=32,
    sampling_rate=3,
    crop_pct=1.0,
    epochs=30,
    test_num_segment=5,
    test_num_crop=3,
    published="K400 86.7 at 312 or 352 pixels (paper)",
    source=OURS,
)
large_k400_352_finetune = changed(
    large_k400_312_finetune,
    size=(352, 352),
    num_frames=40,
    published="K400 86.7 at 312 or 352 pixels (paper)",
)

base_in1k_finetune = changed(
    Finetune(
        encoder=image(BASE),
        clip=base_in1k.clip,
        augment=replace(
            transforms.FINETUNE, auto_augment="rand-m9-n2-mstd0.5-inc1", interpolation="bicubic"
        ),
        source="published configuration",
        published="ImageNet-1K 84.0, from base_in1k",
    ),
    epochs=100,
    warmup_epochs=20,
    batch_size=1024,
    lr=1e-3,
    min_lr=5e-7,
    drop_path=0.1,
    layer_decay=0.65,
    test_num_segment=1,
    test_num_crop=1,
)
large_in1k_finetune = changed(
    base_in1k_finetune,
    encoder=image(LARGE),
    epochs=50,
    warmup_epochs=5,
    min_lr=1e-6,
    layer_decay=0.75,
    checkpoint_blocks=True,
    published="ImageNet-1K 85.7, from large_in1k",
)
