"""Image MAE (He et al. 2021, arXiv 2111.06377): the pretraining of MVD's image teacher.

Images are clips of one frame: single frames of videos, or a folder of images. Random patches are
hidden, 75 % of them, and a decoder predicts the normalised pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from torch import Tensor, nn

from tubelet import masks
from tubelet.backbones.backbone import statistics
from tubelet.backbones.vit import BASE, HUGE, LARGE, SMALL, ViT, ViTShape
from tubelet.data.transforms import Augment
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.losses import mse
from tubelet.methods.run import Flat, Pretraining, changed
from tubelet.model import Branch, MaskedModel
from tubelet.shapes import ClipSpec, Grid
from tubelet.targets.pixels import Pixels


def image(shape: ViTShape) -> ViTShape:
    """The encoder of that size for images: 2-D positions and a class token."""
    return replace(shape, tubelet_size=1, position="sincos_2d", class_token=True)


CROP = Augment(crop="random_resized", area=(0.2, 1.0), flip=0.5, interpolation="bicubic")


@dataclass(frozen=True)
class ImageMAE(Pretraining):
    """Masked pixels of images. The defaults are the published ones for ViT-B."""

    clip: Annotated[ClipSpec, Flat] = ClipSpec(num_frames=1, sampling_rate=1)
    augment: Augment = CROP
    encoder: ViTShape = image(BASE)
    decoder: DecoderShape = DecoderShape(width=512, depth=8, heads=16)
    mask_ratio: float = 0.75
    normalise_target: bool = True
    """Predict patches normalised over their pixels and channels (`norm_pix_loss`); else as they are."""

    def __post_init__(self) -> None:
        if self.decoder_mask_ratio:
            raise TubeletError(
                "Image MAE decodes the whole image: a decoder mask would save nothing. Leave out "
                "--decoder-mask-ratio."
            )

    def mask(self, grid: Grid, rng: np.random.Generator) -> Tensor:
        """-> hidden bool [N]."""
        return masks.random(grid, rng, mask_ratio=self.mask_ratio)

    def model(self) -> MaskedModel:
        """Encoder, pixel target and decoder."""
        backbone = self.backbone()
        assert isinstance(backbone, ViT)
        # Published: the patch embedding is initialised as the matrix that it is.
        nn.init.xavier_uniform_(backbone.patch_embed.proj.weight.data.flatten(1))
        mean, std = statistics(self.clip.in_chans, self.encoder.mean, self.encoder.std)
        target = Pixels(
            backbone.patch,
            self.clip.in_chans,
            normalise=self.normalise_target,
            jointly=True,
            mean=mean,
            std=std,
        )
        decoder = self.joint(target.width, self.decoder, project_bias=True, overlap="own")
        return MaskedModel(backbone, [Branch("pixels", decoder, target, mse)])


PAPER = "arXiv 2111.06377, Table 8, and section 4.1 (normalised pixels)"

# The published teachers of MVD: ImageNet's images, as a folder of them.
base_in1k = changed(
    ImageMAE(source=PAPER, published="ImageNet-1K 83.6, fine-tuned on images"),
    epochs=1600,
    batch_size=4096,
    min_lr=0.0,
)
large_in1k = changed(base_in1k, encoder=image(LARGE), published="ImageNet-1K 85.9, fine-tuned")
huge_in1k = changed(
    base_in1k,
    encoder=replace(image(HUGE), patch=14),
    checkpoint_blocks=True,
    published="ImageNet-1K 86.9, fine-tuned",
)

OURS = "no published script: image MAE's values, on single frames of the videos"
base_k400 = changed(base_in1k, source=OURS, published="none", batch_size=2048, epochs=800)
small_k400 = changed(base_k400, encoder=image(SMALL), decoder=DecoderShape(256, 4, 8))
large_k400 = changed(base_k400, encoder=image(LARGE))
