"""Supervised training as the loop's task: one label, several labels, or numbers for each clip."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tubelet import losses
from tubelet.data.mix import Mixing, mix
from tubelet.errors import TubeletError
from tubelet.model import Classifier
from tubelet.shapes import Batch, Terms
from tubelet.tasks.scores import Kind

Validation = Callable[[nn.Module], dict[str, float]]


class Classify:
    """Training of a `Classifier`; the loop may replace `model` by its wrapped form.

    Args:
        model: clips float in [0,1], seeds -> [B,outputs].
        kind: "single" (cross-entropy), "multi" (binary cross-entropy of each class) or
            "regression" (squared error).
        mixing: mixup, cutmix and label smoothing of each batch, on its device. Several labels are
            mixed without smoothing; in regression nothing is, for half of two clips has no value
            that is known.
        evaluate: the model -> scores, for instance `tubelet.tasks.evaluate.validation(...)`.
    """

    def __init__(
        self,
        model: Classifier,
        *,
        kind: Kind = "single",
        mixing: Mixing | None = None,
        evaluate: Validation | None = None,
    ):
        self.model: nn.Module = model
        self.kind: Kind = kind
        self.mixing = None if kind == "regression" else mixing
        self.together = 1 if mixing is None else mixing.mix_group
        self._outputs = model.num_classes
        self._evaluate = evaluate
        self._seen: tuple[list[str], list[int]] = ([], [])  # paths of a batch, seeds of its groups

    def weight(self, batch: Batch) -> float:
        """What the batch adds to the denominator of the loss: its clips."""
        # Here the batch is still on the CPU: reading its seeds later would wait for the GPU.
        self._seen = (batch.paths, self._group_seeds(batch))
        return float(len(batch.paths))

    def __call__(self, batch: Batch) -> Terms:
        """A batch on the model's device, clips uint8 -> {"loss": (sum, clips), "accuracy": ...}.

        Accuracy is a share in [0,1]; of a mixed clip, the label that weighs most counts. In
        regression "error" is the absolute error, in the labels' unit.
        """
        labels, clip = batch.labels, batch.clip
        if labels is None:
            raise TubeletError("Fine-tuning needs labels, and these videos have none.")
        if self.mixing is not None:
            clip, labels = mix(clip, labels, self._outputs, self.mixing, self._seeds(batch))
        outputs = self.model(clip.float() / 255, batch.seeds)
        with torch.autocast(clip.device.type, enabled=False):
            loss = self._loss(outputs, labels)
        with torch.no_grad():
            name, term = self._term(outputs.float(), labels)
        clips = float(len(clip))
        return {"loss": (loss.sum(), clips), name: (term.sum(), clips)}

    def evaluate(self) -> dict[str, float]:
        """What the function given as `evaluate` says of the model; {} without one."""
        return {} if self._evaluate is None else self._evaluate(self.model)

    def _seeds(self, batch: Batch) -> list[int]:
        """The seeds of the batch's groups; those that `weight` has read where it is that batch."""
        paths, seeds = self._seen
        return seeds if paths is batch.paths else self._group_seeds(batch)

    def _group_seeds(self, batch: Batch) -> list[int]:
        """The seed of the first clip of each group that is mixed."""
        return [] if self.mixing is None else batch.seeds[:: self.mixing.mix_group].tolist()

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """[B,outputs], labels -> float32 [B]."""
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
