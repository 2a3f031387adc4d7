"""The demo: pretrain a small VideoMAE on the built-in videos, and probe what it has learned.

For each seed: render videos, pretrain without labels, freeze the encoder, and train the same probe
on its features and on those of an encoder of the same shape with random weights, for *what* moves
and for *how* it moves. All of it can be stopped and started again; what is done is not done twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from tubelet import masks, zoo
from tubelet.analysis import demo_picture
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.data import toy
from tubelet.data.isolate import cpu_cores
from tubelet.data.lists import VideoList, read_list
from tubelet.data.loader import train_loader
from tubelet.data.remembered import Remembered, decode_all
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.methods.run import to_dict
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Card, MaskedModel
from tubelet.probes.interval import bootstrap, student
from tubelet.probes.tune import Labelled, ProbeConfig, Probed, frozen_features, probe
from tubelet.shapes import ClipSpec
from tubelet.tasks.pretrain import Pretrain
from tubelet.train import checkpoint
from tubelet.train.config import TrainConfig, derive
from tubelet.train.loop import fit

LABELS = {"what": toy.WHAT, "how": toy.HOW}
ENCODERS = ("random", "pretrained")

# 64 tokens a clip. Masks of whole time slots, half of them, and raw pixels: of what was tried
# (docs/toy.md), this teaches most in the minutes of a demo. Tubes at the published 0.9 would leave 2 of
# 16 cells, and normalised pixels are mostly noise here.
RUN = VideoMAE(
    encoder=ViTShape(width=128, depth=4, heads=4, patch=8, position="sincos_3d"),
    decoder=DecoderShape(width=64, depth=2, heads=4),
    mask_type="frame",
    mask_ratio=0.5,
    normalise_target=False,
    clip=ClipSpec(num_frames=8, sampling="dense", sampling_rate=1, size=(32, 32)),
    train=TrainConfig(
        steps=2200,
        epochs=100,
        warmup_epochs=5,
        batch_size=32,
        micro_batch=32,
        lr=1.2e-2,
        min_lr=1.2e-4,
        save_every_steps=400,
        keep_checkpoints=1,
        workers=0,
    ),
    source="our own, by trials (docs/toy.md)",
)
WHY = (
    "Masks hide 2 of 4 time slots (frame masks, ratio 0.5) and the target is raw pixels: chosen "
    "beforehand by trials with seed 0 (docs/toy.md), the same for every seed."
)


@dataclass(frozen=True)
class DemoConfig:
    """How much of it."""

    seeds: int = 1
    """Repetitions, each with videos, weights and masks of its own."""
    seed: int = 0
    """The first one."""
    steps: int = 2200
    """Updates of pretraining."""
    train: int = 6000
    """Clips to pretrain on."""
    labelled: int = 2000
    """Of them, clips whose labels the probes learn from."""
    val: int = 640
    """Clips that choose the probes' learning rate and weight decay."""
    test: int = 1600
    """Clips that are scored."""
    difficulty: str = "middle"
    """Of the videos: easy, middle, hard."""
    workers: int | None = None
    """Processes that render and decode; default: one for each core."""
    device: str = "auto"


@dataclass(frozen=True)
class Score:
    """Accuracies on one label, by seed, and the gain of pretraining."""

    random: tuple[float, ...]
    pretrained: tuple[float, ...]
    gain: float  # mean, in points
    low: float  # 95 % interval
    high: float


@dataclass(frozen=True)
class Demo:
    """What the demo found, and where it lies."""

    out: Path
    config: DemoConfig
    scores: dict[str, Score]
    picture: Path
    results: Path
    runs: tuple[Path, ...]  # pretraining runs, for `tubelet reconstruct` and the like

    def table(self) -> Table:
        n, clips = self.config.seeds, self.config.test
        table = Table(
            title=f"Accuracy of an attentive probe on frozen features, {clips} test clips"
            + (f", mean of {n} seeds" if n > 1 else ""),
            caption=f"Intervals over {f'{n} seeds' if n > 1 else 'test clips'}. {WHY}",
        )
        for column in ("", "chance", "random", "pretrained", "gain", "95 % interval"):
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        units = {"what": "digits", "how": "motions"}
        for label, score in self.scores.items():
            table.add_row(
                f"{label}: {len(LABELS[label])} {units[label]}",
                f"{1 / len(LABELS[label]):.1%}",
                f"{np.mean(score.random):.1%}",
                f"{np.mean(score.pretrained):.1%}",
                f"{score.gain:+.1f}",
                f"{score.low:+.1f} to {score.high:+.1f}",
            )
        return table


def demo(
    out: str | Path, config: DemoConfig | None = None, *, console: Console | None = None
) -> Demo:
    """Does all of it and returns what was found; stages that `out` holds already are not repeated.

    Raises:
        TubeletError: `out` is used for something else or for a demo with other options; what
            rendering, training and decoding may raise.
    """
    out, config = Path(out), config or DemoConfig()
    console = console or Console(stderr=True)
    _check(config)
    _claim(out, config)
    folders = [out / f"seed-{config.seed + i}" for i in range(config.seeds)]
    found = []
    for i, folder in enumerate(folders):
        if config.seeds > 1:
            console.print(f"[bold]seed {config.seed + i}[/], {i + 1} of {config.seeds}")
        found.append(_one(folder, config, config.seed + i, console))
    scores = {label: _score(label, found, config) for label in LABELS}
    runs = tuple(folder / "pretrain" for folder in folders)
    results = out / "results.json"
    _write(
        results,
        {
            "config": asdict(config),
            "why": WHY,
            "run": to_dict(_run(folders[0], config, config.seed)),
            "scores": {label: asdict(score) for label, score in scores.items()},
            "seeds": found,
        },
    )
    picture = out / "demo.png"
    clips = sorted((folders[0] / "videos" / "test").glob("*.mp4"))[:3]
    bars = {label: (score.random, score.pretrained) for label, score in scores.items()}
    chance = {label: 1 / len(names) for label, names in LABELS.items()}
    model = zoo.load(runs[0])
    assert isinstance(model, MaskedModel)
    titles = [_title(folders[0] / "videos", path) for path in clips]
    demo_picture.draw(picture, model, clips, titles, bars, chance)
    return Demo(out, config, scores, picture, results, runs)


def _check(config: DemoConfig) -> None:
    least = {"seeds": 1, "steps": 1, "train": 64, "labelled": 128, "val": 80, "test": 80, "seed": 0}
    wrong = [
        f"{k} {getattr(config, k)}: at least {v}"
        for k, v in least.items()
        if getattr(config, k) < v
    ]
    if config.labelled > config.train:
        wrong.append(f"labelled {config.labelled}: at most train, {config.train}")
    if wrong:
        raise TubeletError("There is no such demo. " + "; ".join(wrong) + ".")
    toy.difficulty(config.difficulty)  # pyright: ignore[reportArgumentType]


def _claim(out: Path, config: DemoConfig) -> None:
    """The folder is this demo's; TubeletError where it is something else's."""
    path = out / "demo.json"
    # More seeds may be added, and who computes changes nothing.
    record = {k: v for k, v in asdict(config).items() if k not in ("seeds", "workers", "device")}
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise TubeletError(f"{out} exists and holds no demo: choose another folder.")
        _write(path, record)
        return
    found = _read(path)
    if found != record:
        other = [f"{k} was {found.get(k)}, now {v}" for k, v in record.items() if found.get(k) != v]
        raise TubeletError(
            f"{out} holds a demo with other options ({'; '.join(other)}). Choose another folder "
            "with --out, or remove it."
        )


def _run(folder: Path, config: DemoConfig, seed: int) -> VideoMAE:
    train = replace(RUN.train, steps=config.steps, seed=seed, device=config.device)
    return replace(RUN, data=str(folder / "videos" / "train"), train=train)


def _one(folder: Path, config: DemoConfig, seed: int, console: Console) -> dict[str, Any]:
    """All stages of one seed -> its record; at once where it is there already."""
    done = folder / "result.json"
    if done.exists():
        return _read(done)
    with _bar("rendering", console) as progress:
        videos = toy.render(
            folder / "videos",
            toy.Options(seed=seed, difficulty=config.difficulty),  # pyright: ignore[reportArgumentType]
            train=config.train,
            val=config.val,
            test=config.test,
            workers=config.workers,
            progress=progress,
        )
    run = _run(folder, config, seed)
    lists = {split: read_list(videos / f"{split}_what.csv") for split in toy.SPLITS}
    clips = {
        split: _decode(split, videos_, run.clip, config, console)
        for split, videos_ in lists.items()
    }
    encoder, random = _pretrain(run, lists["train"], clips["train"], folder / "pretrain", console)
    clips["train"] = clips["train"][: config.labelled]
    labels = {split: _labels(videos / f"{split}.jsonl", len(clips[split])) for split in toy.SPLITS}
    record: dict[str, Any] = {"seed": seed}
    hits: dict[tuple[str, str], Tensor] = {}
    for name, backbone in (("random", random), ("pretrained", encoder)):
        features = {
            split: _features(f"{name} encoder", backbone, clips[split], console) for split in clips
        }
        record[name] = {}
        for label, classes in LABELS.items():
            result = _probe(f"{name}, {label}", features, labels, label, len(classes), console)
            hits[name, label] = result.predicted == labels["test"][label]
            record[name][label] = _record(result)
    for label in LABELS:
        difference = hits["pretrained", label].double() - hits["random", label].double()
        record[f"gain_{label}"] = bootstrap(100 * difference.numpy(), seed)
    _write(done, record)
    return record


def _decode(
    split: str, videos: VideoList, spec: ClipSpec, config: DemoConfig, console: Console
) -> Tensor:
    """Every clip of a list, decoded once: uint8 [n,C,T,H,W]."""
    workers = min(2, cpu_cores()) if config.workers is None else config.workers
    with _bar(f"decoding {split}", console) as progress:
        return decode_all(videos, spec, workers=workers, progress=progress)


def _pretrain(
    run: VideoMAE, videos: VideoList, clips: Tensor, out: Path, console: Console
) -> tuple[ViT, ViT]:
    """-> the encoder after pretraining, and as it was before."""
    torch.manual_seed(run.train.seed)
    random = run.model()
    model = run.model()
    model.load_state_dict(random.state_dict())
    derived = derive(run.train, len(videos))
    newest = checkpoint.latest(out)
    if newest is not None and checkpoint.read_header(newest)["step"] >= derived.total_steps:
        checkpoint.apply_weights(model, checkpoint.load_weights(newest), newest)
        return model.backbone, random.backbone

    def batches(start_step: int) -> Any:
        return train_loader(
            Remembered(videos, clips, run.clip, seed=run.train.seed, mask=run.draw_hidden),
            batch_size=run.train.batch_size,
            micro_batch=derived.micro_batch,
            seed=run.train.seed,
            total_steps=derived.total_steps,
            start_step=start_step,
            workers=0,
            pack=masks.pack,
        )

    header = zoo.describe(model, Card(clip=run.clip, run=to_dict(run)))
    console.print(f"pretraining. {WHY}")
    begun = newest is not None or (out / "metrics.jsonl").exists()
    fit(Pretrain(model), batches, run.train, derived, out, header, resume=begun)
    return model.backbone, random.backbone


def _features(name: str, backbone: ViT, clips: Tensor, console: Console) -> Tensor:
    with _bar(f"features, {name}", console) as progress:
        return frozen_features(backbone, clips, progress=progress)


def _probe(
    name: str,
    features: dict[str, Tensor],
    labels: dict[str, dict[str, Tensor]],
    label: str,
    classes: int,
    console: Console,
) -> Probed:
    train, val, test = (Labelled(features[s], labels[s][label]) for s in toy.SPLITS)
    with _bar(f"probe, {name}", console) as progress:
        return probe(train, val, test, classes, ProbeConfig(), progress=progress)


def _labels(path: Path, count: int) -> dict[str, Tensor]:
    """The labels of the first clips of a split, as numbers in the order of `toy`'s names."""
    rows = [json.loads(line) for line in path.read_text().splitlines()[:count]]
    return {
        label: torch.tensor([names.index(row[label]) for row in rows])
        for label, names in LABELS.items()
    }


def _record(result: Probed) -> dict[str, Any]:
    return {
        "accuracy": result.accuracy,
        "validation": result.best.accuracy,
        "lr": result.best.lr,
        "weight_decay": result.best.weight_decay,
        "tried": [asdict(one) for one in result.tried],
    }


def _score(label: str, found: list[dict[str, Any]], config: DemoConfig) -> Score:
    """One seed: the interval over test clips, by bootstrap. Several: over seeds, by Student's t."""
    by = {name: tuple(one[name][label]["accuracy"] for one in found) for name in ENCODERS}
    gains = 100 * (np.array(by["pretrained"]) - np.array(by["random"]))
    mean = float(gains.mean())
    if config.seeds == 1:
        low, high = found[0][f"gain_{label}"]
    else:
        low, high = student(gains.tolist())
    return Score(by["random"], by["pretrained"], mean, low, high)


def _title(videos: Path, clip: Path) -> str:
    rows = [json.loads(line) for line in (videos / "test.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["path"].endswith(clip.name))
    return f"{row['what']}, {row['how']}"


@contextmanager
def _bar(what: str, console: Console) -> Generator[Callable[[int, int], None], None, None]:
    """A progress bar, on a terminal; one line elsewhere."""
    if not console.is_terminal:
        console.print(what)
    columns = [
        TextColumn(f"{what:<28}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise TubeletError(
            f"{path} cannot be read ({error}). Remove it and start again."
        ) from error


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_name(f".{path.name}.begun")
    begun.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(begun, path)
