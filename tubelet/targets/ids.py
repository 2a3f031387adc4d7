"""Classes as targets: a frozen tokenizer's ids, a frozen classifier's probabilities.

Of the targets that arXiv 2112.09133, section 3, compares. The student predicts logits [B,M,P], and
`losses.cross_entropy` takes either target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.shapes import Grid, gather
from tubelet.targets.features import Features, Teacher


class Ids(Features):
    """Discrete ids of a frozen tokenizer at the student's tokens; `width` is its vocabulary.

    The teacher is any module that returns ids, int [B,n]. They cannot be averaged: where its grid is
    another than the student's, each of the student's tokens has the id that is nearest.
    """

    checked: bool = False

    def connect(self, teacher: Teacher) -> None:
        super().connect(teacher)
        self.checked = False

    def forward(self, view: Tensor, asked: Tensor | None = None) -> Tensor:
        """view float [B,C,T,H,W] in [0,1]; asked int64 [B,M] -> int64 [B,M].

        TubeletError where ids are none of the vocabulary: on a GPU, where to look means to wait,
        only of the first batch.
        """
        if view.dim() != 5:
            raise TubeletError(
                f"Ids are made from clips [B,C,T,H,W]; got {list(view.shape)}. They cannot be read "
                "from a feature cache, whose numbers are rounded: leave the cache out."
            )
        ids = self._compute(view)
        return ids if asked is None else gather(ids, asked)

    def _compute(self, clip: Tensor) -> Tensor:
        """clip float [B,C,T,H,W] in [0,1] -> int64 [B,N], an ordinary tensor."""
        ids = self._read(clip)
        assert self.teacher is not None
        if ids.is_floating_point():
            raise TubeletError(
                f"The teacher {self.teacher.name} returned {ids.dtype} {list(ids.shape)}, where ids are "
                "whole numbers [B,n]: let its `read` return them (of scores: argmax(-1)), or learn "
                "from scores by `PseudoLabels`."
            )
        self._expect(ids, self.teacher_grid.size)
        if not self.checked or ids.device.type == "cpu":
            self._in_vocabulary(ids)
        return ids[:, nearest(self.teacher_grid, self.grid).to(ids.device)].long()

    def _in_vocabulary(self, ids: Tensor) -> None:
        assert self.teacher is not None
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.width:
            raise TubeletError(
                f"The teacher {self.teacher.name} returned ids from {low} to {high}, where its "
                f"vocabulary of {self.width} has 0 to {self.width - 1}: state its width as it is."
            )
        self.checked = True


class PseudoLabels(Features):
    """Class probabilities of a frozen classifier at the student's tokens; `width` is its classes.

    The teacher returns scores before the softmax: [B,n,P] for each of its tokens, or one row [B,P]
    for all it sees: the clip, or (`sees="frames"`) each slot's frame. Such a row is every token's.
    Where its grid is another than the student's, probabilities are resized, linear on three axes.
    """

    def _read(self, clip: Tensor) -> Tensor:
        """clip float [B,C,T,H,W] in [0,1] -> probabilities float32 [B,n,P] on the teacher's grid.

        Made here, before any resizing: between two probabilities lies a probability.
        """
        scores = super()._read(clip)
        assert self.teacher is not None
        rows = self.teacher_grid.t if self.teacher.sees == "frames" else 1
        if scores.dim() == 2 and scores.shape[1] == rows * self.width:
            each = self.teacher_grid.size // rows
            scores = scores.unflatten(1, (rows, self.width)).repeat_interleave(each, 1)
        return scores.float().softmax(-1)


def nearest(grid: Grid, to: Grid) -> Tensor:
    """int64 [N]: of each token of `to`, the number of the token of `grid` that is nearest."""
    t, h, w = (
        ((torch.arange(new) + 0.5) * old / new).long() for old, new in zip(grid, to, strict=True)
    )
    return ((t[:, None, None] * grid.h + h[:, None]) * grid.w + w).flatten()
