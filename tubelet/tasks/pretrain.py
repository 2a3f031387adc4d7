"""Pretraining as the loop's task: mask, predict, compare."""

from __future__ import annotations

from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.shapes import Batch, Masks


class Pretrain:
    """Masked prediction with a `MaskedModel`; the loop may replace `model` by its wrapped form."""

    def __init__(self, model: nn.Module):
        self.model = model

    def weight(self, batch: Batch) -> float:
        """What the batch adds to the denominator of the loss: the tokens that count."""
        return float(_masks(batch).weight.sum())

    def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
        """A batch on the model's device, clips uint8 -> {"loss": (sum, weight), each branch: ...}."""
        return self.model(batch.clip.float() / 255, _masks(batch), batch.seeds)

    def evaluate(self) -> dict[str, float]:
        """Pretraining has no score but its loss."""
        return {}


def _masks(batch: Batch) -> Masks:
    if batch.masks is None:
        raise TubeletError(
            "Pretraining needs masks, and this batch has none: give ClipDataset a mask function "
            "(a run's `mask`) and the loader `pack`."
        )
    return batch.masks
