"""The plain vision transformer: of VideoMAE, VideoMAE V2, MVD, image MAE, and MaskFeat on images.

An image is a clip of one frame, with tubelets of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.backbones import layers as parts
from tubelet.backbones.backbone import Backbone, depths_of, masks_a_clip, per_mask
from tubelet.backbones.positions import PositionKind, PositionMode, positions_of
from tubelet.errors import TubeletError
from tubelet.shapes import Grid, Masks, Patch, Tokens, gather, patchify


@dataclass(frozen=True)
class ViTShape:
    """The size of a vision transformer, and of the clip it is trained on."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    patch: int = 16  # pixels, both ways
    tubelet_size: int = 2  # frames
    position: PositionKind = "sinusoid_1d"
    positions: PositionMode = "interpolate"  # at another size than the trained one
    mean: tuple[float, ...] = ()  # of each channel in [0,1]; (): ImageNet's
    std: tuple[float, ...] = ()
    class_token: bool = False  # a learned token in front; without a position unless learned
    # In front of a clip, or of each time slot: of images, inflated (see `interop.inflate`).
    class_token_of: Literal["clip", "slot"] = "clip"
    hide: Literal["drop", "replace"] = "drop"  # what becomes of hidden tokens (MaskFeat: replace)

    TIED: ClassVar[tuple[str, ...]] = (
        "width",
        "depth",
        "heads",
        "mlp_ratio",
        "patch",
        "tubelet_size",
    )  # what its weights depend on

    def __post_init__(self) -> None:
        sizes = (self.width, self.depth, self.heads, self.mlp_ratio, self.patch, self.tubelet_size)
        if not all(size > 0 for size in sizes):
            raise TubeletError(
                f"width, depth, heads, mlp_ratio, patch and tubelet_size are {sizes}: all must be above 0."
            )
        if self.width % self.heads:
            raise TubeletError(
                f"width {self.width} does not divide into {self.heads} heads: choose heads among "
                f"{[n for n in range(1, 33) if self.width % n == 0]}."
            )

    @property
    def dim(self) -> int:
        """D of its tokens."""
        return self.width

    @property
    def token(self) -> Patch:
        """The pixels behind one token."""
        return Patch(self.tubelet_size, self.patch, self.patch)

    def grid_for(self, frames: int, height: int, width: int) -> Grid:
        """The token grid of a clip of this size; an error where the patch does not divide it."""
        return self.token.grid_for(frames, height, width)

    def build(self, **options: Any) -> ViT:
        """The encoder of this shape; `options` are those of `ViT`."""
        return ViT(self, **options)

    def finetuned(self) -> ViTShape:
        """The shape that learns from labels after a pretraining with this one: the same."""
        return self


# arXiv 2203.12602, appendix; head dimension 64, in H 80.
SMALL = ViTShape(384, 12, 6)
BASE = ViTShape(768, 12, 12)
LARGE = ViTShape(1024, 24, 16)
HUGE = ViTShape(1280, 32, 16)
GIANT = ViTShape(1408, 40, 16, 48 / 11, patch=14)  # arXiv 2303.16727, Table 1


class PatchEmbed(nn.Module):
    """A Conv3d with kernel = stride, as one matrix product on the patches that are kept."""

    def __init__(self, patch: Patch, in_chans: int, dim: int):
        super().__init__()
        self.patch = patch
        # Never called: it holds the weights in the published shape [D,C,pt,ph,pw].
        self.proj = nn.Conv3d(in_chans, dim, kernel_size=patch, stride=patch)

    def forward(self, patches: Tensor) -> Tensor:
        """[B,L,C,pt,ph,pw] -> [B,L,D]."""
        return F.linear(patches.flatten(2), self.proj.weight.flatten(1), self.proj.bias)


class ViT(Backbone):
    """Pre-norm ViT on tubelets.

    Hidden tokens are dropped before the first block (MAE family), or replaced by a learned token
    after the patch embedding (arXiv 2112.09133, section 3). It takes any size that its patch
    divides (see `Positions`). `final_norm=False` leaves the last LayerNorm out (fine-tuning: the
    classifier has one after pooling). `init`: "xavier" as published for pretraining, "normal" as
    for fine-tuning.
    """

    def __init__(
        self,
        shape: ViTShape = BASE,
        *,
        trained: tuple[int, int, int] = (16, 224, 224),
        in_chans: int = 3,
        drop_path: float = 0.0,
        final_norm: bool = True,
        init: Literal["xavier", "normal"] = "xavier",
        masked: bool = True,
    ):
        super().__init__(
            shape,
            patch=shape.token,
            dim=shape.width,
            trained=trained,
            in_chans=in_chans,
            hide=shape.hide,
            masked=masked,
        )
        self.patch_embed = PatchEmbed(self.patch, in_chans, self.dim)
        self.class_token: nn.Parameter | None = None
        if shape.class_token:
            self.class_token = nn.Parameter(torch.randn(1, 1, self.dim) * 0.02)
        self.positions = positions_of(
            shape.position, self.dim, self.grid, shape.positions, prefix=int(shape.class_token)
        )
        self.blocks = parts.blocks(self.dim, shape.depth, shape.heads, shape.mlp_ratio, drop_path)
        self.norm = nn.LayerNorm(self.dim, eps=parts.NORM_EPS) if final_norm else nn.Identity()
        self.apply(parts.init_xavier if init == "xavier" else parts.init_normal)

    def prefix(self, grid: Grid) -> int:
        """R, tokens in front that are no part of the clip: all copies of the class token."""
        if self.class_token is None:
            return 0
        return grid.t if self.shape.class_token_of == "slot" else 1

    def forward(
        self,
        clip: Tensor,
        masks: Masks | None = None,
        *,
        layers: Sequence[int] | None = None,
        norm: bool = True,
        seeds: Tensor | None = None,
    ) -> Tokens:
        """See `Backbone.forward`."""
        self.check(clip)
        grid = self.grid_for(*clip.shape[2:])
        k, first = masks_a_clip(masks), self.prefix(grid)
        x, at = self._embed(clip, grid, masks)
        x = x.reshape(len(clip) * k, -1, self.dim)
        if self.class_token is not None:
            token = (self.class_token + self.positions.prefix()).to(x.dtype)
            x = torch.cat([token.expand(len(x), first, -1), x], 1)
        outputs, kept = [], depths_of(layers, len(self.blocks))
        seeds = None if seeds is None else per_mask(seeds, k)
        for i, block in enumerate(self.blocks[: max(kept, default=len(self.blocks) - 1) + 1]):
            x = parts.run_block(block, x, seeds, recompute=self.grad_checkpointing)
            if i in kept:
                outputs.append((self.norm(x) if norm else x)[:, first:])
        by_depth = dict(zip(sorted(set(kept)), outputs, strict=True))
        x = self.norm(x) if norm else x
        return Tokens(
            x=x[:, first:],
            at=at.reshape(len(x), -1),
            prefix=x[:, :first],
            grid=grid,
            layers=tuple(by_depth[i] for i in kept),
            layer_grids=(grid,) * len(kept),
        )

    def _embed(self, clip: Tensor, grid: Grid, masks: Masks | None) -> tuple[Tensor, Tensor]:
        """-> patches embedded, with their positions, and where they are: [B,k*K,D] and [B,k*K], or
        [B*k,N,D] and [B*k,N]."""
        patches, table = patchify(clip, self.patch), self.positions(grid)
        if masks is not None and self.hide == "drop":
            at = masks.keep.flatten(1)
            x = self.patch_embed((gather(patches, at) - self.mean) / self.std)
            return x + F.embedding(at, table), at
        x = self.patch_embed((patches - self.mean) / self.std)
        if masks is not None:
            x = self.replaced(x, masks.hidden)
        return x + table, torch.arange(grid.size, device=clip.device).expand(len(x), -1)

    def no_weight_decay(self) -> set[str]:
        """The class token, as image MAE; none where hidden tokens are replaced, as MaskFeat."""
        return {"class_token"} if self.class_token is not None and self.hide == "drop" else set()
