"""Pretraining as the loop's task: mask, predict, compare."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.model import MaskedModel
from tubelet.shapes import Batch, Masks, Terms
from tubelet.targets.ema import Bootstrap


class Pretrain:
    """Masked prediction with a `MaskedModel`; the loop may replace `model` by its wrapped form."""

    together = 1

    def __init__(self, model: nn.Module):
        self.model = model
        self._backbone = model.backbone if isinstance(model, MaskedModel) else model
        self._averages = [m for m in model.modules() if isinstance(m, Bootstrap)]
        if self._averages:  # the loop asks for `after_step`, and waits for the device where it is
            self.after_step = self._move

    def weight(self, batch: Batch) -> float:
        """What the batch adds to the denominator of the loss: the tokens that count."""
        return float(_masks(batch).weight.sum())

    def __call__(self, batch: Batch) -> Terms:
        """A batch on the model's device, clips uint8 -> {"loss": (sum, weight), each branch: ...}."""
        views = {name: _unit(view) for name, view in batch.views.items()}
        return self.model(views.pop("clip"), _masks(batch), batch.seeds, views)

    def evaluate(self) -> dict[str, float]:
        """Pretraining has no score but its loss."""
        return {}

    def _move(self, step: int) -> None:
        """The student's averages follow it."""
        for average in self._averages:
            average.move(self._backbone)


def _unit(view: Tensor) -> Tensor:
    """Pixels uint8 -> float in [0,1]; features stay as they are."""
    return view.float() / 255 if view.dtype == torch.uint8 else view


def _masks(batch: Batch) -> Masks:
    if batch.masks is None:
        raise TubeletError(
            "Pretraining needs masks, and this batch has none: give ClipDataset a mask function "
            "(a run's `mask`) and the loader `pack`."
        )
    return batch.masks
