"""What trained models are good for: evaluate, predict, reconstruct."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tubelet import heads, stored
from tubelet.analysis import reconstruct as reconstruction
from tubelet.analysis.reconstruct import ReconstructConfig, Reconstruction
from tubelet.data.lists import Source, VideoList, read_list
from tubelet.errors import TubeletError
from tubelet.interop.found import NOTHING, Told
from tubelet.methods.run import Pretraining, changed, from_dict
from tubelet.model import Branch, Card, Classifier, MaskedModel
from tubelet.targets.features import Features
from tubelet.tasks import evaluate as evaluation
from tubelet.tasks import predict as prediction
from tubelet.tasks.evaluate import EvaluateConfig
from tubelet.tasks.predict import PredictConfig, Predictions
from tubelet.tasks.report import Evaluation
from tubelet.teachers import connect, is_code, load_teacher
from tubelet.train import parallel
from tubelet.verbs.begin import split_of, tell_notes


def evaluate(
    weights: str | Path | Classifier,
    data: Source | VideoList,
    config: EvaluateConfig | None = None,
    *,
    root: str = "",
    split: str | None = None,
    label_column: str = "",
    head_map: str | Path = "",
    told: Told = NOTHING,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores a fine-tuned model on labelled videos by the published protocol.

    `weights`: a run's folder, a checkpoint, a file of others (`told`: see `load`), or a model. `config` None: the views that the run was
    made for (5x3, on Something-Something 2x3). `split` None: of a folder with splits, test or val.
    `head_map`: the model answers with the classes of one set of those merged for it, by this map of
    `merge_labels`. Under torchrun each process scores a part, and all get the whole result.
    """
    model = _classifier(weights, told)
    model = heads.gathered(model, head_map) if head_map else model
    card = model.card
    config = config or test_views(card)
    if not isinstance(data, VideoList):
        kind = card.label_kind if card.label_kind in ("single", "multi", "regression") else None
        data = read_list(
            data,
            root=root,
            labels_from=card.classes or None,
            kind=kind,
            split=split or _scored_split(data),
            column=label_column or None,
        )
        tell_notes(data)
    elif head_map and data.classes != card.classes:
        raise TubeletError(
            f"{data.source} has {len(data.classes)} classes, and not in the order of {head_map}: read it "
            "with read_list(..., labels_from=tubelet.heads.read_head_map(map).classes)."
        )
    with parallel.processes(config.device):
        return evaluation.evaluate(model, data, card.clip, config, progress=progress)


def predict(
    weights: str | Path | Classifier,
    sources: Any,
    config: PredictConfig | None = None,
    *,
    told: Told = NOTHING,
    progress: Any = None,
) -> Predictions:
    """The best classes over time of video files of any length; see `tubelet.tasks.predict`."""
    model = _classifier(weights, told)
    card = model.card
    kind = card.label_kind if card.label_kind in ("multi", "regression") else "single"
    return prediction.predict(
        model, card.classes, card.clip, sources, config, kind=kind, progress=progress
    )


def reconstruct(
    weights: str | Path | MaskedModel,
    video: str | Path,
    *,
    out: str | Path,
    config: ReconstructConfig | None = None,
    name: str = "",
    told: Told = NOTHING,
) -> Reconstruction:
    """What a pretrained model makes of hidden parts; see `tubelet.analysis.reconstruct`.

    `config` None: masks as in the run. `name`: of the model in the picture; default: its folder's.
    """
    model = masked_model(weights, told)
    name = name or ("" if isinstance(weights, MaskedModel) else Path(weights).name)
    config = config or run_masks(model.card)
    run = from_dict(model.card.run) if model.card.run else None
    mask = None
    if isinstance(run, Pretraining):
        branch = reconstruction.branch_of(model, config.branch)
        _connect(model, run, branch, trusted=told.trust_code)
        if config.mask_type == "run":
            mask = changed(run, mask_ratio=config.mask_ratio).mask
    return reconstruction.reconstruct(
        model, model.card.clip, video, out, config, mask=mask, name=name
    )


def _connect(model: MaskedModel, run: Pretraining, branch: Branch, *, trusted: bool) -> None:
    """Gives the branch the teacher that its run names, if it learns from one and has none."""
    if isinstance(branch.target, Features) and branch.target.teacher is None:
        options = run.teacher_options(branch.name)
        source = run.teachers()[branch.name]
        if not source:
            raise TubeletError(
                f"What the branch {branch.name} predicts is a teacher's, and this run was given its "
                "teacher in Python: connect it (tubelet.teachers.connect) and pass the model."
            )
        if is_code(source) and not trusted:
            raise TubeletError(
                f"What the branch {branch.name} predicts is made by {source}, and drawing it runs that "
                "code. If you trust it: --trust-code (in Python: told=Told(trust_code=True))."
            )
        connect(model, {branch.name: load_teacher(source, **options)})


def masked_model(weights: str | Path | MaskedModel, told: Told = NOTHING) -> MaskedModel:
    """A pretrained model, from its run where it is not there yet."""
    model = weights if isinstance(weights, MaskedModel) else stored.load(weights, told=told)
    if not isinstance(model, MaskedModel):
        raise TubeletError(
            f"{weights} is a fine-tuned classifier, which has no decoder to reconstruct with: "
            "pass the pretraining run."
        )
    if not model.branches:
        raise TubeletError(
            f"{weights} holds an encoder alone, without the decoder to reconstruct with: pass the file of "
            "its whole pretraining."
        )
    return model


def test_views(card: Card) -> EvaluateConfig:
    """The test protocol that a fine-tuned model's run names."""
    run = card.run
    return EvaluateConfig(
        segments=run.get("test_num_segment", 5), crops=run.get("test_num_crop", 3)
    )


def run_masks(card: Card) -> ReconstructConfig:
    """Masks as the pretraining run drew them."""
    if card.run.get("mask_type") == "none":
        raise TubeletError(
            "This model was shown whole clips (mask_type 'none'), so it has not learned to fill in "
            "what is hidden. Expected one pretrained with masks, such as VideoMAE's."
        )
    if "mask_ratio" not in card.run:
        return ReconstructConfig()
    return ReconstructConfig(mask_type="run", mask_ratio=card.run["mask_ratio"])


def _classifier(weights: str | Path | Classifier, told: Told) -> Classifier:
    model = weights if isinstance(weights, Classifier) else stored.load(weights, told=told)
    if not isinstance(model, Classifier):
        raise TubeletError(
            f"{weights} is a pretrained model without classes: fine-tune it first, with "
            f"`tubelet finetune --weights {weights} --data LABELLED --out runs/NAME`."
        )
    return model


def _scored_split(data: Source) -> str | None:
    """test, or else val, of a folder of splits; one that has neither is refused."""
    split = split_of(data, "test", "val")
    if split is None and split_of(data, "train"):
        raise TubeletError(
            f"{data} has no test or val split to score, only train. Pass the folder of the videos to "
            "score, or --split train."
        )
    return split
