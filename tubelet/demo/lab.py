"""Experiments on the built-in videos: runs trained on clips in memory, and probes of what they learned.

The clips are decoded once. They are neither cropped nor flipped, so a teacher's features of a clip
never change: they are computed once too, before the student trains.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import masks, zoo
from tubelet.data import toy
from tubelet.data.lists import VideoList, read_list
from tubelet.data.loader import train_loader
from tubelet.data.remembered import Remembered, decode_all
from tubelet.data.sampling import rng_for
from tubelet.methods.run import Pretraining, to_dict
from tubelet.model import Card, MaskedModel
from tubelet.probes.tune import Labelled, ProbeConfig, probe
from tubelet.shapes import ClipSpec
from tubelet.targets.features import Features, Teacher
from tubelet.tasks.pretrain import Pretrain
from tubelet.teachers import connect, load_teacher, teacher_of
from tubelet.train import checkpoint
from tubelet.train.config import derive
from tubelet.train.loop import fit

LABELS = {"what": toy.WHAT, "how": toy.HOW}
BATCH = 128  # clips of a forward without gradients
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
                checkpoint.replace_file(path, lambda begun, clips=clips: torch.save(clips, begun))

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
    rng = rng_for(run.train.seed, 0, 0)
    narrows = run.asked(run.grid, run.draw_hidden(rng)[0], rng) is not None
    dataset = Remembered(
        videos,
        clips,
        run.clip,
        seed=run.train.seed,
        mask=run.draw_hidden,
        asked=run.draw_asked if narrows else None,
        stored=views,
    )

    def batches(start_step: int) -> Any:
        return train_loader(
            dataset,
            batch_size=run.train.batch_size,
            micro_batch=derived.micro_batch,
            seed=run.train.seed,
            total_steps=derived.total_steps,
            start_step=start_step,
            workers=0,
            pack=functools.partial(masks.pack, count_visible=run.count_visible),
        )

    header = zoo.describe(model, Card(clip=run.clip, run=to_dict(run)))
    begun = newest is not None or (out / "metrics.jsonl").exists()
    fit(Pretrain(model), batches, run.train, derived, out, header, resume=begun)


def stored_features(
    model: MaskedModel, teachers: Mapping[str, Teacher], clips: Tensor
) -> dict[str, Tensor]:
    """The teachers' features of every clip, float16 [n,N,P], as views of the branches' targets."""
    stored: dict[str, Tensor] = {}
    for name in teachers:
        target: Any = model.branches[name].target
        assert isinstance(target, Features)
        assert target.norm_feature, "raw features may be beyond half precision"
        parts = [target(_unit(part)).half() for part in clips.split(BATCH)]
        target.view = f"features_{name}"
        stored[target.view] = torch.cat(parts)
    return stored


@torch.no_grad()
def features(lab: Lab, model: MaskedModel, split: str, count: int | None = None) -> Tensor:
    """The tokens of a frozen encoder for the clips of a split: float32 [n,L,D].

    An encoder of images sees the first frame of each tubelet of two, as a teacher does.
    """
    clips = lab.clips(split)[:count]
    backbone = model.eval().backbone
    if backbone.trained[0] > 1:
        return torch.cat([backbone(_unit(part)).x for part in clips.split(BATCH)])
    slots = lab.spec.num_frames // 2
    teacher = teacher_of(backbone)
    teacher.read = lambda vit, x, layer: vit(x).x  # normed, as the others
    return torch.cat([teacher(_unit(part), slots) for part in clips.split(BATCH)])


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


def _unit(clips: Tensor) -> Tensor:
    return clips.float() / 255
