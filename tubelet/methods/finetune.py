"""Fine-tuning on labels: one class of runs for every method's encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tubelet.backbones.backbone import Backbone
from tubelet.backbones.vit import BASE
from tubelet.data import transforms
from tubelet.data.mix import Mixing
from tubelet.data.transforms import Augment
from tubelet.errors import TubeletError
from tubelet.interop.found import NOTHING
from tubelet.methods.run import AnyEncoder, Flat, OfOthers, Run
from tubelet.model import Classifier
from tubelet.train.config import TrainConfig

# What all published fine-tuning scripts share (arXiv 2203.12602, appendix).
TRAIN = TrainConfig(
    epochs=100,
    batch_size=128,
    lr=5e-4,
    min_lr=1e-6,
    warmup_epochs=5,
    betas=(0.9, 0.999),
    layer_decay=0.75,
    eval_every_epochs=1,
)


@dataclass(frozen=True)
class Finetune(Run):
    """Supervised training of an encoder and a linear head. `data` is a labelled list or folder."""

    verb = "finetune"
    weights: str = ""
    """Pretrained encoder: a run folder, a checkpoint, or a file of others. Empty trains from scratch."""
    told: OfOthers = NOTHING
    val: str = ""
    """Labelled videos that are scored after each epoch, on one centred clip each."""
    label_kind: Literal["auto", "single", "multi", "regression"] = "auto"
    """auto: as the list shows; several labels a clip: multi."""
    label_column: str = ""
    """Column of the label in a csv or jsonl, where it is not called label."""
    augment: Augment = transforms.FINETUNE
    train: Annotated[TrainConfig, Flat] = TRAIN
    encoder: AnyEncoder = BASE
    """Size of the encoder; `weights` must be of the same."""
    drop_path: float = 0.1
    head_dropout: float = 0.0
    init_scale: float = 0.001
    head: Literal["new", "rows"] = "new"
    """rows: `weights` are of a classifier, and the norm before its head and the rows that it has for
    these classes are carried over (arXiv 2303.16727)."""
    head_map: str = ""
    """Whose rows are whose: a file of `tubelet merge-labels`, or row numbers. Empty: by name."""
    mixing: Annotated[Mixing, Flat] = Mixing()
    test_num_segment: int = 5
    """Temporal views in the final test (K400 5, SSv2 2)."""
    test_num_crop: int = 3

    def __post_init__(self) -> None:
        if self.head_map and self.head != "rows":
            raise TubeletError(
                f"The map {self.head_map} says which rows of a head are kept, and this run starts with a "
                "new one: add --head rows, or leave the map out."
            )

    def model(self, backbone: Backbone, outputs: int) -> Classifier:
        """The classifier on this encoder, at its published initialisation."""
        return Classifier(
            backbone, outputs, head_dropout=self.head_dropout, init_scale=self.init_scale
        )
