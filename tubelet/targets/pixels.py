"""The pixels of each token as a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tubelet.shapes import Patch, gather, patchify


class Pixels(nn.Module):
    """Pixels in [0,1], by default normalised per token and channel (arXiv 2203.12602, 4.1).

    Normalised: (x - mean) / (sqrt(var_unbiased) + 1e-6) over the pixels of one cube and channel.
    `jointly`: over all channels of a cube together, of pixels that were standardised by `mean`
    and `std` before, divided by sqrt(var_unbiased + 1e-6): image MAE's (arXiv 2111.06377, 3).
    The order within a token is pixel by pixel (time, row, column), the channel fastest.
    """

    EPS = 1e-6
    view = "clip"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        patch: Patch,
        in_chans: int = 3,
        *,
        normalise: bool = True,
        jointly: bool = False,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ):
        super().__init__()
        self.patch = patch
        self.in_chans = in_chans
        self.normalise = normalise
        self.jointly = jointly
        self.width = in_chans * patch.t * patch.h * patch.w
        self.register_buffer("mean", torch.tensor(mean)[:, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None], persistent=False)

    def forward(self, view: Tensor, asked: Tensor | None = None) -> Tensor:
        """view float [B,C,T,H,W] in [0,1], asked int64 [B,M] -> [B,M,P]; None: all tokens."""
        cubes = patchify(view, self.patch)
        if asked is not None:
            cubes = gather(cubes, asked)
        cubes = self.standardised(cubes.flatten(3))
        if self.normalise:
            cubes, _, std = self._centred(cubes)
            cubes.div_(std)
        return cubes.transpose(2, 3).flatten(2)

    def standardised(self, cubes: Tensor) -> Tensor:
        """[B,M,C,pixels] in [0,1] -> the same by `mean` and `std`, where there are any."""
        return (cubes - self.mean) / self.std if len(self.mean) else cubes

    def coloured(self, cubes: Tensor) -> Tensor:
        """The inverse."""
        return cubes * self.std + self.mean if len(self.mean) else cubes

    def statistics(self, cubes: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised [B,M,C,pixels] -> mean and divisor of the normalisation, [B,M,C,1] ([B,M,1,1]
        jointly)."""
        return self._centred(cubes)[1:]

    def _centred(self, cubes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> also the standardised cubes without their mean. (`torch.var_mean` takes twice the time
        of all this.)"""
        over = (-2, -1) if self.jointly else (-1,)
        mean = cubes.mean(over, keepdim=True)
        centred = cubes - mean
        numbers = cubes[0, 0].numel() if self.jointly else cubes.shape[-1]
        std = torch.linalg.vector_norm(centred, dim=over, keepdim=True) / (numbers - 1) ** 0.5
        if self.jointly:
            return centred, mean, (std.square() + self.EPS).sqrt()
        return centred, mean, std + self.EPS

    def cubes(self, y: Tensor) -> Tensor:
        """[B,M,P] -> [B,M,C,pt,ph,pw]: the target's order back to `patchify`'s."""
        return y.unflatten(-1, (*self.patch, self.in_chans)).permute(0, 1, 5, 2, 3, 4)
