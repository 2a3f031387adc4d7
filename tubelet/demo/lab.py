"""Experiments on the built-in videos: runs trained on clips in memory, and probes of what they learned.

The clips are decoded once. They are neither cropped nor flipped, so a teacher's features of a clip
never change: they are computed once too, before the student trains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.data import toy
from tubelet.data.clips import Pack
from tubelet.data.lists import VideoList, read_list
from tubelet.data.loader import TrainLoader, train_loader
from tubelet.data.remembered import Remembered, decode_all
from tubelet.files import replace_file
from tubelet.methods.run import Pretraining, Run, to_dict
from tubelet.model import Card, MaskedModel
from tubelet.probes.tune import Labelled, ProbeConfig, frozen_features, probe
from tubelet.shapes import ClipSpec
from tubelet.stored import describe
from tubelet.targets.features import Features, Teacher
from tubelet.tasks.pretrain import Pretrain
from tubelet.teachers import connect, load_teacher
from tubelet.train import checkpoint
from tubelet.train.config import Derived, derive
from tubelet.train.loop import fit

LABELS = {"what": toy.WHAT, "how": toy.HOW}
BATCH = 128  # clips that a teacher sees together
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Lab:
    """The built-in videos of one seed, and where they lie decoded."""

    folder: Path
    spec: ClipSpec

    def prepare(
        self, options: toy.Options, counts: Mapping[str, int], workers: int, progress: Progress
    ) -> None:
        """Renders the videos and decodes them, as far as that is not done."""
        toy.render(self.folder / "videos", options, **counts, workers=workers, progress=progress)
        for split in toy.SPLITS:
            path = self._clips(split)
            if not path.exists():
                clips = decode_all(self.videos(split), self.spec, workers=workers)
                replace_file(path, lambda begun, clips=clips: torch.save(clips, begun))

    def videos(self, split: str) -> VideoList:
        """The list of a split."""
        return read_list(self.folder / "videos" / f"{split}_what.csv")

    def clips(self, split: str) -> Tensor:
        """uint8 [n,C,T,H,W]."""
        return torch.load(self._clips(split), mmap=True)

    def labels(self, split: str) -> dict[str, Tensor]:
        """{"what": int64 [n], "how": int64 [n]}, in the order of `toy`'s names."""
        text = (self.folder / "videos" / f"{split}.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        return {
            label: torch.tensor([names.index(row[label]) for row in rows])
            for label, names in LABELS.items()
        }

    def _clips(self, split: str) -> Path:
        return self.folder / f"clips-{split}.pt"


def train(lab: Lab, run: Pretraining, out: Path, *, stored: bool = True) -> None:
    """Trains a run on the lab's clips, or goes on with it; at once where it is done.

    `stored`: teachers see each clip once, before; else at each update, as with augmented clips.
    """
    videos, clips = lab.videos("train"), lab.clips("train")
    derived = derive(run.train, len(videos))
    newest = checkpoint.latest(out)
    if newest is not None and checkpoint.read_header(newest)["step"] >= derived.total_steps:
        return
    torch.manual_seed(run.train.seed)
    model = run.model()
    taught = {
        name: load_teacher(source, **run.teacher_options(name))
        for name, source in run.teachers().items()
    }
    connect(model, taught)
    views = stored_features(model, taught, clips) if stored else {}
    dataset = Remembered(
        videos,
        clips,
        run.clip,
        seed=run.train.seed,
        mask=run.draw_hidden,
        asked=run.draw_asked if run.narrows else None,
        stored=views,
    )

    header = describe(model, Card(clip=run.clip, run=to_dict(run)))
    begun = newest is not None or (out / "metrics.jsonl").exists()
    batches = batches_of(dataset, run, derived, run.pack)
    fit(Pretrain(model), batches, run.train, derived, out, header, resume=begun)


def batches_of(
    dataset: Remembered, run: Run, derived: Derived, pack: Pack | None = None
) -> Callable[[int], TrainLoader]:
    """The batches of clips in memory, from an update on: what the loop calls."""
    return lambda start_step: train_loader(
        dataset,
        batch_size=run.train.batch_size,
        micro_batch=derived.micro_batch,
        seed=run.train.seed,
        total_steps=derived.total_steps,
        start_step=start_step,
        workers=0,
        pack=pack,
    )


def stored_features(
    model: MaskedModel, teachers: Mapping[str, Teacher], clips: Tensor
) -> dict[str, Tensor]:
    """The teachers' features of every clip, float16 [n,N,P], as views of the branches' targets."""
    stored: dict[str, Tensor] = {}
    for name in teachers:
        target: Any = model.branches[name].target
        assert isinstance(target, Features)
        assert target.norm_feature, "raw features may be beyond half precision"
        parts = [target(part.float() / 255).half() for part in clips.split(BATCH)]
        target.view = f"features_{name}"
        stored[target.view] = torch.cat(parts)
    return stored


def features(lab: Lab, model: MaskedModel, split: str, count: int | None = None) -> Tensor:
    """The tokens of a frozen encoder for the clips of a split: float32 [n,L,D].

    An encoder of images sees the first frame of each tubelet of two, as a teacher does.
    """
    clips = lab.clips(split)[:count]
    if model.backbone.trained[0] > 1:
        return frozen_features(model.backbone, clips)
    images = clips[:, :, ::2].transpose(1, 2).flatten(0, 1).unsqueeze(2)
    return frozen_features(model.backbone, images).unflatten(0, (len(clips), -1)).flatten(1, 2)


def probes(
    lab: Lab, model: MaskedModel, labelled: int, config: ProbeConfig | None = None
) -> dict[str, Any]:
    """{label: accuracy, the setting chosen, and which test clips were right} of a frozen encoder."""
    counts = {"train": labelled, "val": None, "test": None}
    found = {split: features(lab, model, split, counts[split]) for split in toy.SPLITS}
    labels = {split: lab.labels(split) for split in toy.SPLITS}
    record: dict[str, Any] = {}
    for label, classes in LABELS.items():
        train, val, test = (
            Labelled(found[split], labels[split][label][: counts[split]]) for split in toy.SPLITS
        )
        result = probe(train, val, test, len(classes), config)
        record[label] = {
            "accuracy": result.accuracy,
            "best": asdict(result.best),
            "tried": [asdict(one) for one in result.tried],
            "right": (result.predicted == test.labels).tolist(),
        }
    return record
