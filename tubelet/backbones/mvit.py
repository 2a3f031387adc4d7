"""The multiscale vision transformer, MViTv2 (Li et al., arXiv 2112.01526), as MaskFeat trains it.

Tokens begin fine and narrow, and become coarse and wide: at the first block of a stage the queries
are pooled 2x2. Keys and values are pooled more, so that attention over the fine grid is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.backbones import layers as parts
from tubelet.backbones.backbone import (
    KINETICS_MEAN,
    KINETICS_STD,
    Backbone,
    depths_of,
    masks_a_clip,
    per_mask,
)
from tubelet.backbones.depthwise import pooled_grid
from tubelet.backbones.pooling import PoolingAttention, cut_grid, resize_relative
from tubelet.errors import TubeletError
from tubelet.shapes import Grid, Masks, Patch, Tokens

STEM = Patch(2, 4, 4)  # stride of the patch embedding; its kernels overlap: 3x7x7


class Row(NamedTuple):
    """A block in the schedule: its widths, its heads, and by how much it pools rows and columns."""

    width: int
    out: int  # of the block; the next one's width
    heads: int
    pool_q: int
    pool_kv: int


@dataclass(frozen=True)
class MViTShape:
    """The sizes of an MViTv2: a value a stage. The default is S, as published for MaskFeat.

    Queries are pooled 2x2 where a stage begins. MaskFeat pretrains without the last pooling
    (`pool_last=False`), so that there is a token for each place of 16x16 pixels, and fine-tunes
    with it. `widen`: where the width grows. "mlp": in the last block of a stage, as in MaskFeat and
    the supervised L; "attention": in the first block of the next, as in the supervised S and B.
    """

    depths: tuple[int, ...] = (1, 2, 11, 2)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    pool_last: bool = True
    pool_kv: int = 8  # of the first stage; divided by what the queries have been pooled
    mlp_ratio: float = 4.0
    widen: Literal["mlp", "attention"] = "mlp"
    mean: tuple[float, ...] = KINETICS_MEAN
    std: tuple[float, ...] = KINETICS_STD

    hide: ClassVar[Literal["replace"]] = "replace"
    TIED: ClassVar[tuple[str, ...]] = (
        "depths",
        "widths",
        "heads",
        "pool_kv",
        "mlp_ratio",
        "widen",
    )  # what its weights depend on

    def __post_init__(self) -> None:
        stages = len(self.depths)
        if not stages or not len(self.widths) == len(self.heads) == stages:
            raise TubeletError(
                f"depths {self.depths}, widths {self.widths} and heads {self.heads} need a value for "
                "each stage."
            )
        if min(*self.depths, *self.heads, self.pool_kv) < 1 or not self.mlp_ratio > 0:
            raise TubeletError(
                f"depths {self.depths}, heads {self.heads}, pool_kv {self.pool_kv} and mlp_ratio "
                f"{self.mlp_ratio:g} must be above 0."
            )
        if any(width % heads for width, heads in zip(self.widths, self.heads, strict=True)):
            raise TubeletError(
                f"Each stage's width divides into its heads; got {self.widths}, {self.heads}."
            )

    @property
    def pools(self) -> tuple[int, ...]:
        """By how much each stage pools rows and columns of the queries where it begins."""
        last = len(self.depths) - 1
        return tuple(
            1 if i == 0 or (i == last and not self.pool_last) else 2 for i in range(last + 1)
        )

    @property
    def rows(self) -> tuple[Row, ...]:
        """The schedule, a row a block."""
        rows, pooled = [], 1
        stages = list(zip(self.depths, self.widths, self.heads, self.pools, strict=True))
        for i, (depth, width, heads, pool) in enumerate(stages):
            pooled *= pool
            before = self.widths[max(0, i - 1)]
            after = self.widths[min(len(stages) - 1, i + 1)]
            for j in range(depth):
                late = self.widen == "attention"
                rows.append(
                    Row(
                        width=before if late and j == 0 else width,
                        out=after if not late and j == depth - 1 else width,
                        heads=heads,
                        pool_q=pool if j == 0 else 1,
                        pool_kv=max(1, self.pool_kv // pooled),
                    )
                )
        return tuple(rows)

    @property
    def dim(self) -> int:
        """D of its tokens."""
        return self.widths[-1]

    @property
    def token(self) -> Patch:
        """The pixels behind one token of the output."""
        side = STEM.h * prod(self.pools)
        return Patch(STEM.t, side, side)

    def grid_for(self, frames: int, height: int, width: int) -> Grid:
        """The output's grid; a size that the token does not divide ends in a token of less."""
        grid = stem_grid(frames, height, width)
        for pool in self.pools:
            grid = pooled_grid(grid, pool)
        return grid

    def build(self, **options: Any) -> MViT:
        """The encoder of this shape; `options` are those of `MViT`."""
        return MViT(self, **options)

    def finetuned(self) -> MViTShape:
        """The shape that learns from labels after a pretraining with this one: with all pooling."""
        return replace(self, pool_last=True)


# arXiv 2112.09133, appendix, and arXiv 2112.01526, Table 1.
MVIT_SMALL = MViTShape()
MVIT_LARGE = MViTShape((2, 6, 36, 4), (144, 288, 576, 1152), (2, 4, 8, 16))
MVIT_BASE = MViTShape((2, 3, 16, 3))


class MViT(Backbone):
    """Hidden tokens are replaced by a learned one after the patch embedding (arXiv 2112.09133, 3).

    A mask is given on the grid of the output and holds for all finer tokens below a place. The
    kernels of the patch embedding overlap: visible tokens beside hidden ones see some of their
    pixels, as published. There are no absolute positions; the relative ones are resized for clips
    of another size.
    """

    def __init__(
        self,
        shape: MViTShape = MVIT_SMALL,
        *,
        trained: tuple[int, int, int] = (16, 224, 224),
        in_chans: int = 3,
        drop_path: float = 0.0,
        final_norm: bool = True,
        init: Literal["xavier", "normal"] = "normal",
        masked: bool = True,
    ):
        """`init` is the same for both: as published, normal, with biases of 0.02."""
        if in_chans != 3:  # Kinetics' statistics are the same for all colours
            mean = shape.mean[:1] * in_chans if shape.mean == KINETICS_MEAN else shape.mean
            std = shape.std[:1] * in_chans if shape.std == KINETICS_STD else shape.std
            shape = replace(shape, mean=mean, std=std)
        super().__init__(
            shape,
            patch=shape.token,
            dim=shape.dim,
            trained=trained,
            in_chans=in_chans,
            hide=shape.hide,
            masked=masked,
        )
        first = self._first_width
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv3d(in_chans, first, (3, 7, 7), stride=STEM, padding=(1, 3, 3))}
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, first))
        rows, grid = shape.rows, stem_grid(*trained)
        self.blocks = nn.ModuleList()
        for i, row in enumerate(rows):
            rate = drop_path * i / max(1, len(rows) - 1)
            self.blocks.append(Block(row, grid, shape, rate, salt=i))
            grid = cut_grid(grid, row.pool_q)
        self.norm = nn.LayerNorm(self.dim, eps=parts.NORM_EPS) if final_norm else nn.Identity()
        nn.init.trunc_normal_(self.class_token, std=0.02)
        self.apply(_init)

    @property
    def _first_width(self) -> int:
        return self.shape.widths[0]

    def forward(
        self,
        clip: Tensor,
        masks: Masks | None = None,
        *,
        layers: Sequence[int] | None = None,
        norm: bool = True,
        seeds: Tensor | None = None,
    ) -> Tokens:
        """See `Backbone.forward`. Outputs of inner blocks have their own grids and widths, and are
        normed only where they are as wide as the last."""
        self.check(clip)
        x = self.patch_embed["proj"]((clip - self.mean) / self.std)
        x = x.to(self.class_token.dtype)  # the residual stream is float32 under autocast too
        grid = Grid(*x.shape[2:])
        x = x.flatten(2).transpose(1, 2)
        k = masks_a_clip(masks)
        if masks is not None:
            whole = self.patch.grid_for(*clip.shape[2:])  # an error where tokens would be cut
            x = self.replaced(x, spread(masks.hidden, whole, grid))
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        seeds = None if seeds is None else per_mask(seeds, k)
        kept = depths_of(layers, len(self.blocks))
        outputs: dict[int, tuple[Tensor, Grid]] = {}
        for i, block in enumerate(self.blocks[: max(kept, default=len(self.blocks) - 1) + 1]):
            x = parts.run_block(block, x, grid, seeds, recompute=self.grad_checkpointing)
            grid = pooled_grid(grid, block.pool)  # pyright: ignore[reportArgumentType]
            if i in kept:
                outputs[i] = (self._normed(x, norm)[:, 1:], grid)
        x = self._normed(x, norm)
        return Tokens(
            x=x[:, 1:],
            at=torch.arange(x.shape[1] - 1, device=x.device).expand(len(x), -1),
            prefix=x[:, :1],
            grid=grid,
            layers=tuple(outputs[i][0] for i in kept),
            layer_grids=tuple(outputs[i][1] for i in kept),
        )

    def _normed(self, x: Tensor, norm: bool) -> Tensor:
        return self.norm(x) if norm and x.shape[-1] == self.dim else x

    def check_layer(self, layer: int) -> None:
        """TubeletError for a block whose output has not the grid and width of the last one's."""
        (at,) = depths_of([layer], len(self.blocks))
        rows = self.shape.rows
        pooled = [i for i, row in enumerate(rows) if row.pool_q > 1]
        narrow = [i + 1 for i, row in enumerate(rows) if row.out < self.dim]
        first = max([0, *pooled, *narrow])
        if at < first:
            raise TubeletError(
                f"Block {at} of this network has a finer grid or fewer channels than its output: as "
                f"targets, choose layers {first} to {len(rows) - 1}, or -1 for the last."
            )

    def fitted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights with the tables of relative positions of this clip size and pooling."""
        own = self.state_dict()
        return {
            name: resize_relative(value, len(own[name]))
            if ".rel_pos_" in name and name in own
            else value
            for name, value in weights.items()
        }


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on a grid that may become coarser.

    Where the width changes, what the branch is added to is the *normalised* input, projected (as
    published, in both the models of MaskFeat and the supervised ones).
    """

    def __init__(self, row: Row, grid: Grid, shape: MViTShape, drop_path: float, salt: int):
        super().__init__()
        inner = row.out if shape.widen == "attention" else row.width
        self.widen = shape.widen
        self.pool = row.pool_q
        self.norm1 = nn.LayerNorm(row.width, eps=parts.NORM_EPS)
        self.attn = PoolingAttention(
            row.width,
            inner,
            heads=row.heads,
            pool_q=row.pool_q,
            pool_kv=row.pool_kv,
            trained=grid,
        )
        self.norm2 = nn.LayerNorm(inner, eps=parts.NORM_EPS)
        self.mlp = parts.Mlp(inner, parts.hidden_of(inner, shape.mlp_ratio), row.out)
        self.proj: nn.Module | None = None
        if row.width != row.out:
            self.proj = nn.Linear(row.width, row.out)
        self.drop1 = parts.DropPath(drop_path, 2 * salt)
        self.drop2 = parts.DropPath(drop_path, 2 * salt + 1)

    def forward(self, x: Tensor, grid: Grid, seeds: Tensor | None = None) -> Tensor:
        """[B,1+n,D] over `grid`, seeds int64 [B] -> [B,1+n',D'] over the pooled grid."""
        y = self.norm1(x)
        if self.proj is not None and self.widen == "attention":
            x = self.proj(y).to(x.dtype)
        x = self._pooled(x, grid) + self.drop1(self.attn(y, grid), seeds)
        if self.proj is None or self.widen == "attention":
            return x + self.drop2(self.mlp(x, self.norm2), seeds)
        z = self.norm2(x)
        return self.proj(z).to(x.dtype) + self.drop2(self.mlp(z), seeds)

    def _pooled(self, x: Tensor, grid: Grid) -> Tensor:
        """The largest of each neighbourhood, [B,1+n,D] -> [B,1+n',D]; the class token stays."""
        if self.pool == 1:
            return x
        frames = x[:, 1:].unflatten(1, (-1, grid.h, grid.w)).flatten(0, 1).permute(0, 3, 1, 2)
        frames = F.max_pool2d(frames, 3, stride=self.pool, padding=1)
        pooled = frames.permute(0, 2, 3, 1).unflatten(0, (-1, grid.t)).flatten(1, 3)
        return torch.cat([x[:, :1], pooled], 1)


def spread(hidden: Tensor, grid: Grid, fine: Grid) -> Tensor:
    """hidden bool [B,k,N] over `grid` -> [B,k,n] over a finer one that it divides."""
    volume = hidden.unflatten(2, tuple(grid))
    for axis, (m, n) in enumerate(zip(grid, fine, strict=True)):
        volume = volume.repeat_interleave(n // m, dim=axis + 2)
    return volume.flatten(2)


def stem_grid(frames: int, height: int, width: int) -> Grid:
    """The grid of the patch embedding."""
    if min(frames, height, width) < 1:
        raise TubeletError(f"A clip of {frames}x{height}x{width} has no pixels.")
    return Grid(*(-(-n // stride) for n, stride in zip((frames, height, width), STEM, strict=True)))


def _init(module: nn.Module) -> None:
    """As published: normal of deviation 0.02, and biases of linear layers and norms 0.02."""
    if isinstance(module, (nn.Linear, nn.Conv3d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        nn.init.constant_(module.bias, 0.02)
