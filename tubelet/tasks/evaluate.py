"""The published test: several views of each video, softmax each, mean, argmax.

arXiv 2203.12602, section 4.1: 5 segments x 3 crops on Kinetics, 2 x 3 on Something-Something.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from math import ceil
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tubelet.data.clips import EvalDataset, Views
from tubelet.data.decode import available_decoders
from tubelet.data.lists import VideoList
from tubelet.data.loader import EvalLoader, eval_loader
from tubelet.errors import TubeletError
from tubelet.model import Classifier
from tubelet.shapes import ClipSpec
from tubelet.tasks import metrics
from tubelet.tasks.report import Evaluation
from tubelet.tasks.scores import Kind, Precision, Scorer, check_finite, weights_hash
from tubelet.train.parallel import from_all, is_split, unwrap

Progress = Callable[[int, int], None]  # videos done, videos in all
TOKENS_PER_FORWARD = 12544  # 8 views of 16x224x224: enough to fill a GPU


@dataclass(frozen=True)
class EvaluateConfig:
    """The protocol, and where and how it runs. Only the first two and `precision` bear on scores."""

    segments: int = 5  # temporal views (test_num_segment): 5 for Kinetics, 2 for SSv2, 1 centred
    crops: int = 3  # spatial views along the longer side (test_num_crop); 1: the centre
    batch_size: int = 32  # views sent to the device at once
    workers: int = 2  # decoding processes; 0 decodes in this one
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: a GPU where there is one
    precision: Precision = "auto"  # auto: bf16 on a GPU that has it, float32 elsewhere
    decoder: Literal["pyav", "torchcodec"] = "pyav"  # torchcodec is an extra
    allow_missing: bool = False  # score what can be read, and report how many cannot


def evaluate(
    model: nn.Module,
    videos: VideoList,
    spec: ClipSpec,
    config: EvaluateConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Evaluation:
    """A classifier and a labelled list -> what it scores by the published protocol.

    Each video is decoded once for all of its views. A video's scores depend on this video, the
    weights and the protocol alone, bit for bit: not on batch size, workers, processes, or the rest
    of the list. With several processes each takes a part, and all get the whole result.

    Raises:
        TubeletError: labels that the model cannot give; a video that cannot be read, unless
            `allow_missing`; scores that are not finite.
    """
    config = config or EvaluateConfig()
    core = unwrap(model)
    assert isinstance(core, Classifier)
    kind = _checked(core, videos)
    # A model split by FSDP computes on all processes together: then each does all videos.
    split = dist.is_initialized() and not is_split(core)
    rank, world = (dist.get_rank(), dist.get_world_size()) if split else (0, 1)
    dataset = EvalDataset(
        videos, spec, segments=config.segments, crops=config.crops, decoder=config.decoder
    )
    loader = eval_loader(dataset, workers=config.workers, rank=rank, world=world)
    scorer = Scorer(
        core,
        kind,
        per_forward=views_per_forward(core, spec, config.segments * config.crops),
        device=config.device,
        precision=config.precision,
    )
    with scorer:
        found = _run(scorer, loader, config, world, progress)
    rows, missing = _together(from_all(found) if split else [found])
    if missing and not config.allow_missing:
        raise TubeletError(_missing_message(missing))
    if not rows:
        raise TubeletError(
            f"None of the {len(videos)} videos of {videos.source} could be read, for example: "
            f"{missing[0][1]}"
        )
    return _report(core, videos, spec, config, scorer, rows, missing)


def validation(
    videos: VideoList, spec: ClipSpec, config: EvaluateConfig | None = None
) -> Callable[[nn.Module], dict[str, float]]:
    """For `Classify(evaluate=...)`: model -> its scores on one centred view of each video.

    Runs where the model is; `config` may set the rest (missing videos, workers, precision).
    """
    config = replace(config or EvaluateConfig(), segments=1, crops=1)

    def score(model: nn.Module) -> dict[str, float]:
        device = str(next(unwrap(model).parameters()).device)
        return evaluate(model, videos, spec, replace(config, device=device)).metrics

    return score


def views_per_forward(model: Classifier, spec: ClipSpec, views: int) -> int:
    """A fixed number for a protocol: a video's views in the fewest even forwards of bounded size."""
    tokens = views * model.backbone.grid_for(spec.num_frames, *spec.size).size
    return ceil(views / ceil(tokens / TOKENS_PER_FORWARD))


def _checked(model: Classifier, videos: VideoList) -> Kind:
    """The kind of the labels, after a look whether the model can give them."""
    outputs, source = model.num_classes, videos.source
    if videos.kind == "unlabelled":
        raise TubeletError(
            f"{source} has no labels, and without them nothing can be scored. Expected class "
            "folders or a list with a label on every line; `tubelet predict` takes plain videos."
        )
    if videos.kind != "single":
        if videos.targets != outputs:
            raise TubeletError(
                f"{source} has {videos.targets} values a label and the model gives {outputs}: "
                "evaluate on a list with the labels that it was trained on."
            )
        return videos.kind
    for entry in videos.entries:
        if isinstance(entry.label, int) and not 0 <= entry.label < outputs:
            raise TubeletError(
                f"{entry.path} has label {entry.label} in {source}, and the model knows {outputs} "
                f"classes (0 to {outputs - 1}): evaluate on a list with the labels that it was "
                "trained on."
            )
    return "single"


@dataclass(frozen=True)
class _Row:
    """One video's result."""

    index: int
    scores: Tensor  # float64 [outputs]: the mean over its views
    clip_top1: float  # share of its views that are right alone, in percent
    clip_top5: float


Missing = tuple[str, str]  # path, why


def _run(
    scorer: Scorer,
    loader: EvalLoader,
    config: EvaluateConfig,
    world: int,
    progress: Progress | None,
) -> tuple[list[_Row], list[Missing]]:
    """Scores the videos as they come; stops at the first that cannot be read unless allowed."""
    rows: list[_Row] = []
    missing: list[Missing] = []
    waiting: list[Views] = []
    held = 0
    total = len(loader) * world
    for done, video in enumerate((video for videos in loader for video in videos), 1):
        if video.clips is None:
            missing.append((video.path, video.error))
            if not config.allow_missing:
                break
        else:
            waiting.append(video)
            held += len(video.clips)
        if held >= config.batch_size:
            rows += _score(scorer, waiting)
            waiting, held = [], 0
        if progress is not None:
            progress(min(done * world, total), total)
    return rows + _score(scorer, waiting), missing


def _score(scorer: Scorer, videos: list[Views]) -> list[_Row]:
    """The rows of some videos, from one transfer to the device."""
    clips = [video.clips for video in videos if video.clips is not None]
    if not clips:
        return []
    padded = [scorer.padded(views) for views in clips]
    scores = scorer(torch.cat(padded)).split([len(views) for views in padded])
    rows: list[_Row] = []
    for video, own, views in zip(videos, scores, clips, strict=True):
        own = own[: len(views)]
        check_finite(own, video.path)
        top1 = top5 = 0.0
        if scorer.kind == "single" and video.label is not None:
            place = metrics.ranks(own, video.label.expand(len(own)))
            top1, top5 = metrics.percent(place < 1), metrics.percent(place < 5)
        rows.append(_Row(video.index, own.mean(0), top1, top5))
    return rows


def _together(parts: list[tuple[list[_Row], list[Missing]]]) -> tuple[list[_Row], list[Missing]]:
    """The parts of all processes, in the order of the list."""
    rows = sorted((row for rows, _ in parts for row in rows), key=lambda row: row.index)
    return rows, sorted(file for _, missing in parts for file in missing)


def _missing_message(missing: list[Missing]) -> str:
    files = "\n".join(f"  {why}" for _, why in missing)
    return (
        f"Evaluation stopped, because a video of the list cannot be read:\n{files}\n"
        "It is never replaced by another one. `tubelet check` lists all such files; "
        "--allow-missing scores the others and reports how many are missing."
    )


def _report(
    model: Classifier,
    videos: VideoList,
    spec: ClipSpec,
    config: EvaluateConfig,
    scorer: Scorer,
    rows: list[_Row],
    missing: list[Missing],
) -> Evaluation:
    index = [row.index for row in rows]
    scores = torch.stack([row.scores for row in rows])
    targets = [videos.target(i) for i in index]
    labels = torch.stack([target for target in targets if target is not None])
    protocol = {
        "clip": {**asdict(spec), "size": list(spec.size)},
        "segments": config.segments,
        "crops": config.crops,
        "views_per_forward": scorer.per_forward,
    }
    names = videos.classes
    if videos.kind == "single" and len(names) != model.num_classes:
        names = tuple(names[i] if i < len(names) else str(i) for i in range(model.num_classes))
    return Evaluation(
        kind=scorer.kind,
        source=videos.source,
        classes=names,
        paths=tuple(videos.entries[i].path for i in index),
        labels=labels,
        scores=scores,
        metrics=_metrics(scorer.kind, scores, labels, rows),
        missing=tuple(missing),
        protocol=protocol,
        fingerprint=_fingerprint(model, videos, protocol, config, scorer),
    )


def _metrics(kind: Kind, scores: Tensor, labels: Tensor, rows: list[_Row]) -> dict[str, float]:
    if kind == "multi":
        return metrics.multi_label(scores, labels)
    if kind == "regression":
        return metrics.regression(scores, labels)
    found = metrics.classification(scores, labels)
    found["clip_top1"] = sum(row.clip_top1 for row in rows) / len(rows)
    if "top5" in found:
        found["clip_top5"] = sum(row.clip_top5 for row in rows) / len(rows)
    return found


def _fingerprint(
    model: Classifier,
    videos: VideoList,
    protocol: dict[str, Any],
    config: EvaluateConfig,
    scorer: Scorer,
) -> dict[str, str]:
    """What decides a score, and one hash over all of it."""
    parts = {
        "list": videos.fingerprint(),
        "weights": weights_hash(model),
        "protocol": json.dumps(protocol, sort_keys=True),
        "decoder": f"{config.decoder} {available_decoders()[config.decoder]}",
        "precision": scorer.precision,
        "device": scorer.device.type,
        "torch": torch.__version__,
        "tubelet": version("tubelet"),
    }
    return {"all": hashlib.sha256(repr(parts).encode()).hexdigest(), **parts}
