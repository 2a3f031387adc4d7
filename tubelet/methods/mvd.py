"""MVD (Wang et al. 2022, arXiv 2212.04500): a student predicts what frozen teachers see.

From the 10 % of the tokens that it is shown, the student predicts the features that an image teacher
and a video teacher compute from the whole clip, at the tokens hidden from it, each with a decoder
of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import tyro
from torch import Tensor

from tubelet import losses, masks
from tubelet.backbones.backbone import Backbone
from tubelet.backbones.positions import PositionKind, PositionMode
from tubelet.backbones.vit import BASE, HUGE, LARGE, SMALL, ViTShape
from tubelet.decoders import DecoderShape, Joint, Mlp
from tubelet.errors import TubeletError
from tubelet.methods import videomae
from tubelet.methods.run import AnyEncoder, Pretraining, changed
from tubelet.model import Branch, MaskedModel
from tubelet.shapes import Grid
from tubelet.targets.ema import Bootstrap
from tubelet.targets.features import Features, Precision
from tubelet.targets.hog import Hog
from tubelet.targets.pixels import Pixels

EMA = "ema"  # as a teacher: the student's own moving average


@dataclass(frozen=True)
class Distilled:
    """How the student learns from one teacher."""

    weight: float = 1.0
    """Of this branch's loss; 0 leaves the teacher out."""
    loss: Literal["smooth_l1", "l1", "mse", "cosine"] = "smooth_l1"
    layer: int = -1
    """Block of the teacher whose output is predicted, before any last norm; -1: the last."""
    norm_feature: bool = False
    """LayerNorm without weights over the teacher's features."""
    width: int = 0
    """Of the teacher's features; 0: as the teacher says."""
    size: tuple[int, int] | None = None
    """Height and width that the teacher sees (`teacher_input_size`); default: as it states, or
    the student's."""
    positions: PositionMode | None = None
    """How a teacher takes another size than the one it was trained at; default: as it did in its own
    training."""
    position: PositionKind | None = None
    """Kind of positions of a published file that does not tell: a fine-tuned one."""
    heads: int | None = None
    """Heads of a published file's attention, where its width is none of the published."""
    trained: tuple[int, int, int] | None = None
    """Frames, height and width of a published file's clips, where not 16 224 224."""
    precision: Precision = "auto"
    """Of the teacher; auto: bf16 on a GPU that has it, else float32."""
    momentum: float = 0.999
    """Of the average, for the teacher "ema"."""


@dataclass(frozen=True)
class Further(Distilled):
    """A teacher beyond the two, in a run of your own."""

    name: str = ""
    teacher: str = ""


@dataclass(frozen=True)
class MVD(Pretraining):
    """Masked feature distillation. The defaults are the published ones for a B student."""

    image_teacher: str = ""
    """A run folder, a checkpoint, a Hugging Face model's folder, ./mine.py:function, or ema (the
    student's own moving average). Sees single frames if it is a network of images."""
    video_teacher: str = ""
    """As image_teacher; usually a network of clips."""
    image: Distilled = Distilled()
    video: Distilled = Distilled()
    further: Annotated[tuple[Further, ...], tyro.conf.Suppress] = ()
    feature_cache: str = ""
    """A folder that `tubelet cache` made: the features of the teachers, which are then not needed."""
    pixel_weight: float = 0.0
    """Of a branch that predicts normalised pixels, beside the teachers; 0: none."""
    hog_weight: float = 0.0
    """Of a branch that predicts histograms of gradients (arXiv 2112.09133); 0: none."""
    encoder: AnyEncoder = replace(BASE, position="sincos_3d")
    decoder: DecoderShape = DecoderShape(width=768, depth=2, heads=12)
    """Of each branch."""
    mask_type: Literal["tube", "random", "frame", "none"] = "tube"
    """none: the student sees the whole clip, and an MLP predicts the features of each token."""
    mask_ratio: float = 0.9
    predict: Literal["hidden", "all"] = "hidden"
    """hidden: what the student does not see, as published; all: the features of visible tokens too
    (as arXiv 2303.16058 does), which teaches faster where a teacher is hard to guess."""
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        names = ["image", "video", "pixels", "hog", *(one.name for one in self.further)]
        if len(set(names)) < len(names) or not all(one.name for one in self.further):
            raise TubeletError(f"Each branch needs a name of its own, and these are {names}.")
        sized = [name for name, source in self._sources().items() if source == EMA]
        sized = [name for name in sized if name in self.distilled() and self.distilled()[name].size]
        if sized:
            raise TubeletError(
                f"The {sized[0]} teacher is the student's average, and sees the student's clips: "
                f"leave out --{sized[0]}.size."
            )
        if not self.distilled() and not self.pixel_weight and not self.hog_weight:
            raise TubeletError("Nothing is predicted: all branches have weight 0.")
        if self.count_visible and self.decoder_mask_ratio:
            raise TubeletError(
                "decoder_mask_ratio leaves out tokens that mask_type 'none' and predict 'all' ask "
                "for: set it to 0."
            )

    def distilled(self) -> dict[str, Distilled]:
        """The branches with a teacher, by name, without those of weight 0."""
        every = {"image": self.image, "video": self.video}
        every |= {one.name: one for one in self.further}
        return {name: one for name, one in every.items() if one.weight}

    def teachers(self) -> dict[str, str]:
        """{branch: where its teacher comes from}; the student's own averages are not among them."""
        given = self._sources()
        return {name: given[name] for name in self.distilled() if given[name] != EMA}

    def _sources(self) -> dict[str, str]:
        given = {"image": self.image_teacher, "video": self.video_teacher}
        return given | {one.name: one.teacher for one in self.further}

    @property
    def cached_features(self) -> str:
        return self.feature_cache

    def teacher_options(self, branch: str) -> dict[str, Any]:
        """How the teacher of a branch is loaded."""
        one = self.distilled()[branch]
        said = {"heads": one.heads, "trained": one.trained}
        said = {name: value for name, value in said.items() if value is not None}
        return {"positions": one.positions, "position": one.position, **said}

    def teacher_flags(self, branch: str) -> tuple[str, str]:
        """How a user gives the teacher of a branch, and how the branch is left out."""
        if any(one.name == branch for one in self.further):  # of a run in Python
            return f"give Further(name={branch!r}, teacher=...)", "weight=0"
        return super().teacher_flags(branch)

    def fitted(self, widths: Mapping[str, int]) -> Self:
        """The run with the widths of its teachers where it left them open."""
        run = self
        for name in ("image", "video"):
            own: Distilled = getattr(run, name)
            if not own.width and name in widths:
                run = replace(run, **{name: replace(own, width=widths[name])})
        further = tuple(
            replace(one, width=one.width or widths.get(one.name, 0)) for one in run.further
        )
        return replace(run, further=further)

    def mask(self, grid: Grid, rng: np.random.Generator) -> Tensor:
        """-> hidden bool [N]."""
        if self.mask_type == "none":
            return torch.zeros(grid.size, dtype=torch.bool)
        return masks.DRAWS[self.mask_type](grid, rng, mask_ratio=self.mask_ratio)

    def asked(self, grid: Grid, hidden: Tensor, rng: np.random.Generator) -> Tensor | None:
        """hidden bool [N] -> what is predicted, bool [N]; None: all that is hidden."""
        if self.count_visible:
            return torch.ones_like(hidden)
        return super().asked(grid, hidden, rng)

    @property
    def count_visible(self) -> bool:
        """Whether visible tokens are predicted too."""
        return self.mask_type == "none" or self.predict == "all"

    def model(self) -> MaskedModel:
        """The student with a decoder for each branch; its teachers are connected afterwards."""
        backbone = self.backbone()
        branches = [self._distil(backbone, name, one) for name, one in self.distilled().items()]
        plain = {"pixels": (Pixels, self.pixel_weight), "hog": (Hog, self.hog_weight)}
        for name, (kind, weight) in plain.items():
            if weight:
                target = kind(backbone.patch, self.clip.in_chans)
                decoder = self._decoder(backbone, target.width)
                branches.append(Branch(name, decoder, target, losses.mse, weight))
        return MaskedModel(backbone, branches)

    def _distil(self, backbone: Backbone, name: str, one: Distilled) -> Branch:
        if name in self.teachers():
            target = Features(
                one.width or backbone.dim,
                patch=backbone.patch,
                grid=backbone.grid,
                layer=one.layer,
                norm_feature=one.norm_feature,
                size=one.size,
                precision=one.precision,
            )
        else:
            target = Bootstrap(
                backbone,
                backbone.dim,
                momentum=one.momentum,
                layer=one.layer,
                norm_feature=one.norm_feature,
                precision=one.precision,
            )
        loss = getattr(losses, one.loss)
        return Branch(name, self._decoder(backbone, target.width), target, loss, one.weight)

    def _decoder(self, backbone: Backbone, out: int) -> Joint | Mlp:
        if self.mask_type == "none":
            return Mlp(backbone.dim, out, self.decoder.width)
        overlap = "own" if self.predict == "all" else "query"
        return self.joint(out, self.decoder, project_bias=True, overlap=overlap)


def student(shape: ViTShape) -> ViTShape:
    """The encoder of that size with MVD's positions, separate for time, column and row."""
    return replace(shape, position="sincos_3d")


SCRIPT = "published script; masks and loss as arXiv 2212.04500, section 4.1 and appendix"
B, L, H = Distilled(width=768), Distilled(width=1024), Distilled(width=1280)

base_from_base_k400 = changed(
    MVD(
        image=B,
        video=B,
        source=SCRIPT,
        published="SSv2 72.5/93.6 (16x2x3), K400 82.7/95.4 (16x5x3)",
    ),
    epochs=400,
    batch_size=1024,
    min_lr=1e-4,
    save_every_epochs=10,
)
base_from_large_k400 = changed(
    base_from_base_k400,
    image=L,
    video=L,
    published="SSv2 73.7/94.0 (16x2x3), K400 83.4/95.8 (16x5x3)",
)
small_from_base_k400 = changed(
    base_from_base_k400,
    encoder=student(SMALL),
    decoder=DecoderShape(384, 2, 6),
    published="SSv2 70.7/92.6 (16x2x3), K400 80.6/94.7 (16x5x3)",
)
small_from_large_k400 = changed(
    small_from_base_k400,
    image=L,
    video=L,
    published="SSv2 70.9/92.8 (16x2x3), K400 81.0/94.8 (16x5x3)",
)
large_from_large_k400 = changed(
    base_from_large_k400,
    encoder=student(LARGE),
    decoder=DecoderShape(512, 4, 8),
    batch_size=512,
    published="SSv2 76.1/95.4 (16x2x3), K400 86.0/96.9 (16x5x3)",
)
large_from_large_k400_800 = changed(
    large_from_large_k400,
    epochs=800,
    min_lr=1e-5,
    published="SSv2 76.7/95.5 (16x2x3), K400 86.4/97.0 (16x5x3)",
)
huge_from_huge_k400 = changed(
    large_from_large_k400_800,
    encoder=student(HUGE),
    decoder=DecoderShape(640, 8, 8),
    # Its image teacher has patches of 14 pixels: at 196 they make the student's 14x14 grid.
    image=replace(H, size=(196, 196), positions="rebuild"),
    video=H,
    drop_path=0.2,
    checkpoint_blocks=True,
    published="SSv2 77.3/95.7 (16x2x3), K400 87.3/97.4 (16x5x3)",
)

# Fine-tuning: VideoMAE's, with two crops a video, and MVD's positions.
small_k400_finetune = changed(
    videomae.small_k400_finetune,
    encoder=student(SMALL),
    published="K400 80.6/94.7 (16x5x3), from small_from_base_k400",
)
base_k400_finetune = changed(
    small_k400_finetune,
    encoder=student(BASE),
    epochs=75,
    published="K400 82.7/95.4 (16x5x3), from base_from_base_k400",
)
large_k400_finetune = changed(
    small_k400_finetune,
    encoder=student(LARGE),
    epochs=50,
    batch_size=512,
    lr=1e-3,
    head_dropout=0.5,
    drop_path=0.3,
    published="K400 86.0/96.9 (16x5x3), from large_from_large_k400",
)
large_k400_800_finetune = changed(
    large_k400_finetune,
    checkpoint_blocks=True,
    published="K400 86.4/97.0 (16x5x3), from large_from_large_k400_800",
)
huge_k400_finetune = changed(
    large_k400_800_finetune,
    encoder=student(HUGE),
    batch_size=256,
    published="K400 87.3/97.4 (16x5x3), from huge_from_huge_k400",
)
small_ssv2_finetune = changed(
    videomae.small_ssv2_finetune,
    encoder=student(SMALL),
    published="SSv2 70.7/92.6 (16x2x3), from small_from_base_k400",
)
base_ssv2_finetune = changed(
    small_ssv2_finetune,
    encoder=student(BASE),
    epochs=30,
    lr=5e-4,
    layer_decay=0.75,
    checkpoint_blocks=True,
    published="SSv2 72.5/93.6 (16x2x3), from base_from_base_k400",
)
large_ssv2_finetune = changed(
    base_ssv2_finetune,
    encoder=student(LARGE),
    batch_size=256,
    head_dropout=0.5,
    drop_path=0.3,
    published="SSv2 76.1/95.4 (400 epochs), 76.7/95.5 (800) (16x2x3)",
)
huge_ssv2_finetune = changed(
    large_ssv2_finetune,
    encoder=student(HUGE),
    batch_size=128,
    min_lr=1e-5,
    published="SSv2 77.3/95.7 (16x2x3), from huge_from_huge_k400",
)
