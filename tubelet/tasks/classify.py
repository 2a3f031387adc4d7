"""Supervised training as the loop's task: one label, several labels, or numbers for each clip."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tubelet import losses
from tubelet.errors import TubeletError
from tubelet.shapes import Batch
from tubelet.tasks.scores import Kind

# clips uint8 [B,C,T,H,W], labels int64 [B], seeds int64 [B] -> clips, soft labels [B,classes]
Mix = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Validation = Callable[[nn.Module], dict[str, float]]


class Classify:
    """Training of a `Classifier`; the loop may replace `model` by its wrapped form.

    Args:
        model: clips float in [0,1], seeds -> [B,outputs].
        kind: "single" (cross-entropy), "multi" (binary cross-entropy of each class) or
            "regression" (squared error).
        mix: mixup, cutmix and label smoothing of a batch on the device; for "single" only.
        validation: the model -> scores, for instance `tubelet.tasks.evaluate.validation(...)`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kind: Kind = "single",
        mix: Mix | None = None,
        validation: Validation | None = None,
    ):
        if mix is not None and kind != "single":
            raise TubeletError(
                f"mixup and cutmix mix single labels, and these are {kind!r}: pass --mixup 0 "
                "--cutmix 0 --smoothing 0."
            )
        self.model = model
        self.kind: Kind = kind
        self._mix = mix
        self._validation = validation

    def weight(self, batch: Batch) -> float:
        """What the batch adds to the denominator of the loss: its clips."""
        return float(len(batch.seeds))

    def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor | float]]:
        """A batch on the model's device, clips uint8 -> {"loss": (sum, clips), "accuracy": ...}.

        Accuracy is a share in [0,1]; of a mixed clip, the label that weighs most counts. In
        regression "error" is the sum of absolute errors, in the labels' unit.
        """
        labels, clip = batch.labels, batch.clip
        if labels is None:
            raise TubeletError("Fine-tuning needs labels, and these videos have none.")
        if self._mix is not None:
            clip, labels = self._mix(clip, labels, batch.seeds)
        clip = clip.float() / 255
        outputs = self.model(clip, batch.seeds)
        with torch.autocast(clip.device.type, enabled=False):
            loss = self._loss(outputs.float(), labels)
        with torch.no_grad():
            name, term = self._term(outputs.float(), labels)
        clips = float(len(clip))
        return {"loss": (loss.sum(), clips), name: (term.sum(), clips)}

    def evaluate(self) -> dict[str, float]:
        """What `validation` scores; {} without it."""
        return {} if self._validation is None else self._validation(self.model)

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """[B,outputs], labels -> [B]."""
        if self.kind == "multi":
            return losses.binary_cross_entropy(outputs, labels)
        if self.kind == "regression":
            return losses.squared_error(outputs, labels)
        return losses.cross_entropy(outputs, labels)

    def _term(self, outputs: Tensor, labels: Tensor) -> tuple[str, Tensor]:
        """The number that people read beside the loss: its name, and its value [B]."""
        if self.kind == "regression":
            return "error", (outputs - labels).abs().mean(-1)
        if self.kind == "multi":
            return "accuracy", ((outputs > 0) == (labels > 0.5)).float().mean(-1)
        truth = labels if labels.dim() == 1 else labels.argmax(-1)
        return "accuracy", (outputs.argmax(-1) == truth).float()
