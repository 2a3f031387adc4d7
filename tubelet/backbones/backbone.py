"""What every encoder offers: `backbone(clip, masks) -> Tokens`, and what it is trained by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tubelet.backbones.layers import hashed
from tubelet.errors import TubeletError
from tubelet.shapes import Grid, Masks, Patch, Tokens

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
KINETICS_MEAN = (0.45, 0.45, 0.45)  # as PySlowFast's models are trained
KINETICS_STD = (0.225, 0.225, 0.225)


class Backbone(nn.Module, ABC):
    """An encoder of clips.

    Args:
        shape: its sizes, a frozen dataclass that makes it again (`shape.build`).
        patch: the pixels behind one token of the output, which targets are cut by.
        dim: D of its tokens.
        trained: (frames, height, width) of the clips that it is made for; it takes others.
        in_chans: C. Other than 1 and 3 needs `mean` and `std` of that length in the shape.
        hide: "drop" leaves hidden tokens out, L = K; "replace" puts a learned token in their
            places, L = N.
        masked: whether hidden tokens will come; without, there is no token to replace them.
    """

    mean: Tensor
    std: Tensor
    blocks: nn.ModuleList
    norm: nn.Module  # after the last block; Identity where a head has a norm of its own

    def __init__(
        self,
        shape: Any,
        *,
        patch: Patch,
        dim: int,
        trained: tuple[int, int, int],
        in_chans: int,
        hide: Literal["drop", "replace"],
        masked: bool,
    ):
        super().__init__()
        self.shape = shape
        self.patch = patch
        self.dim = dim
        self.trained = trained
        self.in_chans = in_chans
        self.hide: Literal["drop", "replace"] = hide
        self.grad_checkpointing = False
        mean, std = statistics(in_chans, shape.mean, shape.std)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1, 1), persistent=False)
        self.mask_token: nn.Parameter | None = None
        if masked and hide == "replace":
            self.mask_token = nn.Parameter(torch.empty(1, 1, self._first_width))
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def _first_width(self) -> int:
        """D of embedded patches."""
        return self.dim

    def replaced(self, x: Tensor, hidden: Tensor) -> Tensor:
        """x [B,n,D], hidden bool [B,k,n] -> [B*k,n,D]: the mask token where hidden.

        Pixels are embedded once for all masks of a clip.
        """
        if self.mask_token is None:
            raise TubeletError(
                "This encoder was made to see whole clips, and has no token to put in the place of "
                "hidden ones: load the pretrained model, or build it with masked=True."
            )
        token = self.mask_token.to(x.dtype)
        return torch.where(hidden[..., None], token, x[:, None]).flatten(0, 1)

    def grid_for(self, frames: int, height: int, width: int) -> Grid:
        """The grid of the output for a clip of this size; TubeletError for one it cannot take."""
        return self.shape.grid_for(frames, height, width)

    @abstractmethod
    def forward(
        self,
        clip: Tensor,
        masks: Masks | None = None,
        *,
        layers: Sequence[int] | None = None,
        norm: bool = True,
        seeds: Tensor | None = None,
    ) -> Tokens:
        """clip float [B,C,T,H,W] in [0,1] -> Tokens with x [B*k,L,D] (all N tokens without masks).

        `layers`: numbers of blocks (0 the first; negative from the end) whose outputs are
        returned in `Tokens.layers`, normed if `norm`; no block beyond the deepest runs.
        `seeds` int64 [B] drive drop path in training.
        """

    @property
    def grid(self) -> Grid:
        """The grid of the clips that it is made for."""
        return self.grid_for(*self.trained)

    def fitted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the same encoder for clips of another size, resized where they depend on it."""
        return dict(weights)

    def check_layer(self, layer: int) -> None:
        """TubeletError for a block whose output has not the grid and width of the last one's."""
        depths_of([layer], len(self.blocks))

    def check(self, clip: Tensor) -> None:
        """TubeletError for what is no float clip of its channels."""
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
        """Parameter name -> its layer for layer decay (0: patch embedding, tokens, positions)."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return len(self.blocks) + 1 if name.startswith("norm.") else 0

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay beyond biases and norms."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, about a third more time."""
        self.grad_checkpointing = enable


def masks_a_clip(masks: Masks | None) -> int:
    """k; 1 without masks."""
    return 1 if masks is None else masks.hidden.shape[1]


def per_mask(seeds: Tensor, k: int) -> Tensor:
    """int64 [B] -> [B*k]: a seed for each mask of each sample; the first keeps the sample's."""
    if k == 1:
        return seeds
    return torch.stack([seeds, *(hashed(seeds, i) for i in range(1, k))], 1).flatten()


def depths_of(layers: Sequence[int] | None, depth: int) -> list[int]:
    """Block numbers as users write them -> 0 to depth - 1."""
    wrong = [i for i in layers or () if not -depth <= i < depth]
    if wrong:
        raise TubeletError(
            f"layers {wrong} do not exist: this network has blocks 0 to {depth - 1}."
        )
    return [i % depth for i in layers or ()]


def statistics(
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
