"""Distillation as the loop's task: a classifier learns what another one says of the same clips."""

from __future__ import annotations

import torch
from torch import Tensor

from tubelet import losses
from tubelet.data.mix import Mixing, mix, mix_clips
from tubelet.errors import TubeletError
from tubelet.model import Classifier
from tubelet.shapes import Batch, Terms
from tubelet.targets.features import Teacher
from tubelet.tasks.classify import Classify, Validation
from tubelet.tasks.scores import Kind


class Distil(Classify):
    """A student sees what its frozen teacher sees, and learns its answers (arXiv 2106.05237).

    Both get the same crop, augmented and mixed in the same way; labels are not needed. The teacher
    computes in the run's precision, the loss in float32.

    Args:
        model: the student; clips float in [0,1], seeds -> [B,outputs].
        teacher: clips float in [0,1] -> [B,outputs] before softmax or sigmoid.
        size: (height, width) that the teacher sees clips in; others are resized on the device.
        kind: "single" (KL divergence of softened probabilities), "multi" (binary cross-entropy with
            the teacher's as labels) or "regression" (squared error).
        temperature: divides the logits of both.
        label_weight: of the loss of fine-tuning, on labels, beside the teacher's; 0: labels only
            show how many answers are right.
        mixing, evaluate: see `Classify`. Regression is mixed too: of a mixed clip the teacher says
            a value, though no label does.
    """

    def __init__(
        self,
        model: Classifier,
        teacher: Teacher,
        *,
        size: tuple[int, int],
        kind: Kind = "single",
        temperature: float = 1.0,
        label_weight: float = 0.0,
        mixing: Mixing | None = None,
        evaluate: Validation | None = None,
    ):
        super().__init__(model, kind=kind, mixing=mixing, evaluate=evaluate)
        self.mixing = mixing
        self.teacher = teacher
        self.size = size
        self.temperature = temperature
        self.label_weight = label_weight
        # It goes where the student goes, and is compiled with it; nothing of it is trained or saved.
        model.add_module("teacher", teacher)

    def __call__(self, batch: Batch) -> Terms:
        """A batch on the model's device, clips uint8 -> {"loss": (sum, clips), "agreement": ...}.

        "agreement" is the share of clips (of several labels: of answers) on which both say the
        same; in regression "difference" is the absolute one. With labels also Classify's terms; not
        for numbers where clips are mixed.
        """
        clip, labels = self._mixed(batch)
        pixels = clip.float() / 255
        outputs = self.model(pixels, batch.seeds)
        taught = self._taught(pixels)
        with torch.autocast(clip.device.type, enabled=False):
            loss = self._distance(outputs, taught)
            if self.label_weight:
                if labels is None:
                    raise TubeletError("label_weight is above 0, and these videos have no labels.")
                loss = loss + self.label_weight * self._loss(outputs, labels)
        with torch.no_grad():
            said = taught if self.kind != "multi" else (taught > 0).float()
            name, alike = self._term(outputs.float(), said)
            shown = {{"accuracy": "agreement", "error": "difference"}[name]: alike}
            if labels is not None:
                shown |= dict([self._term(outputs.float(), labels)])
        clips = float(len(clip))
        terms: Terms = {"loss": (loss.sum(), clips)}
        return terms | {name: (term.sum(), clips) for name, term in shown.items()}

    def _mixed(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """-> the clips that both networks see, uint8, and their labels where these are known."""
        clip, labels, mixing = batch.clip, batch.labels, self.mixing
        if mixing is None:
            return clip, labels
        seeds = self._seeds(batch)
        if labels is None or (self.kind == "regression" and mixing.mixes):
            return mix_clips(clip, mixing, seeds)[0], None
        return mix(clip, labels, self._outputs, mixing, seeds)

    @torch.no_grad()
    def _taught(self, pixels: Tensor) -> Tensor:
        """float [B,C,T,H,W] in [0,1] -> the teacher's outputs, float32 [B,outputs]."""
        if torch.is_autocast_enabled(pixels.device.type):
            self.teacher.lower()  # its weights would be cast anew in every forward
        return self.teacher(pixels, 1, size=self.size).float()

    def _distance(self, outputs: Tensor, taught: Tensor) -> Tensor:
        """[B,outputs] of student and teacher -> float32 [B]."""
        if self.kind == "multi":
            return losses.softened_binary(outputs, taught, self.temperature)
        if self.kind == "regression":
            return losses.squared_error(outputs.float(), taught)
        return losses.softened_kl(outputs, taught, self.temperature)
