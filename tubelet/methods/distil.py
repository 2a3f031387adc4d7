"""Distillation of a fine-tuned classifier into a smaller one, by its answers.

After Beyer et al. 2021, "Knowledge distillation: a good teacher is patient and consistent" (arXiv
2106.05237): teacher and student see the very same crop and mixture, and training is long. VideoMAE V2
(arXiv 2303.16727, 4.3) makes its ViT-S and ViT-B from ViT-g so.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import tyro

from tubelet.data.mix import Mixing
from tubelet.errors import TubeletError
from tubelet.interop.found import NOTHING, Told
from tubelet.methods.finetune import Finetune
from tubelet.methods.run import Flat, changed

# "Function matching": mixup with a share drawn evenly from 0 to 1, and nothing else (2106.05237,
# section 3.1). Labels are not smoothed: the teacher says how sure to be.
MATCHING = Mixing(mixup=1.0, cutmix=0.0, smoothing=0.0)


@dataclass(frozen=True)
class Distil(Finetune):
    """Training of a student on the answers of a frozen teacher. `data` needs no labels."""

    verb = "distil"
    teacher: str = ""
    """Fine-tuned classifier to learn from: a run folder, a checkpoint, or a file of others."""
    teacher_told: Annotated[Told, tyro.conf.arg(name="teacher")] = NOTHING
    temperature: float = 1.0
    """Divides the logits of both: above 1, the small probabilities of the teacher count more."""
    labels: bool = True
    """Read the labels of the list, if it has any; they must be of the teacher's classes."""
    label_weight: float = 0.0
    """Of the usual loss on the labels, beside the teacher's answers; 0: these alone teach."""
    mixing: Annotated[Mixing, Flat] = MATCHING

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise TubeletError(f"temperature is {self.temperature:g}: expected above 0 (usual: 1).")
        if not self.label_weight >= 0:
            raise TubeletError(f"label_weight is {self.label_weight:g}: expected 0 or more.")
        if self.label_weight and not self.labels:
            raise TubeletError(
                f"label_weight is {self.label_weight:g}, and labels are left unread: leave out "
                "--no-labels, or --label-weight."
            )


def distilling(run: Finetune, **changes: Any) -> Distil:
    """A fine-tuning run as one of distillation: its values, but for those of mixing."""
    values: dict[str, Any] = {f.name: getattr(run, f.name) for f in fields(run)}
    values["mixing"] = MATCHING
    return changed(Distil(**values), **changes)
