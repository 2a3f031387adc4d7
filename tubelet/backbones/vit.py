"""The plain vision transformer: the encoder of VideoMAE, VideoMAE V2, MVD, and of image MAE.

An image is a clip of one frame, with tubelets of one frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.backbones import layers as parts
from tubelet.backbones.positions import PositionKind, PositionMode, Positions
from tubelet.errors import TubeletError
from tubelet.shapes import Grid, Masks, Patch, Tokens, gather, patchify

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
    class_token: bool = False  # a learned token in front, without a position (image MAE)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise TubeletError(
                f"width {self.width} does not divide into {self.heads} heads: choose heads among "
                f"{[n for n in range(1, 33) if self.width % n == 0]}."
            )


# arXiv 2203.12602, appendix; head dimension 64, in H 80.
SMALL = ViTShape(384, 12, 6)
BASE = ViTShape(768, 12, 12)
LARGE = ViTShape(1024, 24, 16)
HUGE = ViTShape(1280, 32, 16)


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


class ViT(nn.Module):
    """Pre-norm ViT on tubelets; hidden tokens are dropped before the first block (MAE family).

    `trained`: (frames, height, width) of the clips its positions were made for. It takes any
    other size that its patch divides (see `Positions`). `in_chans` other than 1 and 3 needs `mean`
    and `std` of that length in the shape. `final_norm=False` leaves the last LayerNorm out
    (fine-tuning: the classifier has one after pooling). `init`: "xavier" as published for
    pretraining, "normal" as for fine-tuning.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: ViTShape = BASE,
        *,
        trained: tuple[int, int, int] = (16, 224, 224),
        in_chans: int = 3,
        drop_path: float = 0.0,
        final_norm: bool = True,
        init: Literal["xavier", "normal"] = "xavier",
    ):
        super().__init__()
        self.shape = shape
        self.patch = Patch(shape.tubelet_size, shape.patch, shape.patch)
        self.trained = trained
        self.grid: Grid = self.patch.grid_for(*trained)
        self.dim = shape.width
        self.in_chans = in_chans
        self.grad_checkpointing = False
        mean, std = _statistics(in_chans, shape.mean, shape.std)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1, 1), persistent=False)
        self.patch_embed = PatchEmbed(self.patch, in_chans, self.dim)
        self.class_token: nn.Parameter | None = None
        if shape.class_token:
            self.class_token = nn.Parameter(torch.randn(1, 1, self.dim) * 0.02)
        self.positions = Positions(shape.position, self.dim, self.grid, shape.positions)
        self.blocks = parts.blocks(self.dim, shape.depth, shape.heads, shape.mlp_ratio, drop_path)
        self.norm: nn.Module = (
            nn.LayerNorm(self.dim, eps=parts.NORM_EPS) if final_norm else nn.Identity()
        )
        self.apply(parts.init_xavier if init == "xavier" else parts.init_normal)

    def grid_for(self, frames: int, height: int, width: int) -> Grid:
        """The token grid of a clip of this size; an error where the patch does not divide it."""
        return self.patch.grid_for(frames, height, width)

    def forward(
        self,
        clip: Tensor,
        masks: Masks | None = None,
        *,
        layers: Sequence[int] | None = None,
        norm: bool = True,
        seeds: Tensor | None = None,
    ) -> Tokens:
        """clip float [B,C,T,H,W] in [0,1] -> Tokens with x [B*k,K,D] (all N tokens without masks).

        `layers`: numbers of blocks (0 the first; negative from the end) whose outputs are
        returned in `Tokens.layers`, normed if `norm`; no block beyond the deepest runs.
        `seeds` int64 [B] drive drop path in training.
        """
        self._check(clip)
        grid = self.grid_for(*clip.shape[2:])
        patches = patchify(clip, self.patch)
        k = 1 if masks is None else masks.keep.shape[1]
        if masks is None:
            at = torch.arange(grid.size, device=clip.device).expand(len(clip), -1)
        else:
            at = masks.keep.flatten(1)
            patches = gather(patches, at)
        x = self.patch_embed((patches - self.mean) / self.std)
        x = (x + self.positions(grid)[at]).reshape(len(clip) * k, -1, self.dim)
        prefix = 0 if self.class_token is None else 1
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(len(x), -1, -1), x], 1)
        outputs, kept = [], _depths(layers, len(self.blocks))
        seeds = None if seeds is None else per_mask(seeds, k)
        for i, block in enumerate(self.blocks[: max(kept, default=len(self.blocks) - 1) + 1]):
            x = parts.run_block(block, x, seeds, recompute=self.grad_checkpointing)
            if i in kept:
                outputs.append((self.norm(x) if norm else x)[:, prefix:])
        by_depth = dict(zip(sorted(set(kept)), outputs, strict=True))
        x = self.norm(x) if norm else x
        return Tokens(
            x=x[:, prefix:],
            at=at.reshape(len(x), -1),
            prefix=x[:, :prefix],
            grid=grid,
            layers=tuple(by_depth[i] for i in kept),
        )

    def _check(self, clip: Tensor) -> None:
        if clip.dim() != 5 or clip.shape[1] != self.in_chans:
            raise TubeletError(
                f"Expected a clip [B,C,T,H,W] with C = {self.in_chans}, got {list(clip.shape)}. "
                'A clip [B,T,C,H,W] is taken with layout="BTCHW".'
            )
        if not clip.is_floating_point():
            raise TubeletError(
                f"Expected a float clip in [0,1], got {clip.dtype}: divide uint8 pixels by 255."
            )

    @property
    def num_layers(self) -> int:
        """Steps of layer decay: the patch embedding, each block, and what follows."""
        return len(self.blocks) + 2

    def layer_of(self, name: str) -> int:
        """Parameter name -> its layer for layer decay (0: patch embedding)."""
        if name.startswith(("patch_embed.", "class_token")):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return len(self.blocks) + 1

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay beyond biases and norms: the class token."""
        return set() if self.class_token is None else {"class_token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, about a third more time."""
        self.grad_checkpointing = enable


def per_mask(seeds: Tensor, k: int) -> Tensor:
    """int64 [B] -> [B*k]: a seed for each mask of each sample; the first keeps the sample's."""
    if k == 1:
        return seeds
    return torch.stack([seeds, *(parts.hashed(seeds, i) for i in range(1, k))], 1).flatten()


def _depths(layers: Sequence[int] | None, depth: int) -> list[int]:
    wrong = [i for i in layers or () if not -depth <= i < depth]
    if wrong:
        raise TubeletError(
            f"layers {wrong} do not exist: this network has blocks 0 to {depth - 1}."
        )
    return [i % depth for i in layers or ()]


def _statistics(
    in_chans: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel; ImageNet's for RGB, their average for grey."""
    if not mean or not std:
        if in_chans == 3:
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        elif in_chans == 1:
            mean, std = (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)
        else:
            raise TubeletError(
                f"in_chans={in_chans} has no usual statistics: give ViTShape(mean=..., std=...), one "
                "value a channel."
            )
    if len(mean) != in_chans or len(std) != in_chans:
        raise TubeletError(f"mean {mean} and std {std} must have {in_chans} values (in_chans).")
    return mean, std
