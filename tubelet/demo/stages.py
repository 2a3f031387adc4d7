"""The demo: the whole of MVD on the built-in videos, and a probe of what each network has learned.

For each seed: render videos; train an image teacher on single frames and a video teacher on clips;
train students from the features of one of them and of both; freeze every encoder, and train the
same probe on its features, for *what* moves and for *how* it moves. All of it can be stopped and
started again; what is done is not done twice.
"""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tubelet import stored
from tubelet.analysis import demo_picture
from tubelet.data import toy
from tubelet.data.isolate import cpu_cores, each
from tubelet.demo import lab as labs
from tubelet.demo.lab import LABELS, Lab
from tubelet.demo.runs import CLIP, IMAGE, STUDENTS, VIDEO
from tubelet.errors import TubeletError
from tubelet.files import replace_file
from tubelet.methods.run import Pretraining, changed, to_dict
from tubelet.model import MaskedModel
from tubelet.probes.interval import bootstrap, student
from tubelet.train import checkpoint

TEACHERS: dict[str, Pretraining] = {"video teacher": VIDEO, "image teacher": IMAGE}
RANDOM, BEST = "random", "student of both"
ENCODERS = (RANDOM, "image teacher", "video teacher", *STUDENTS)
WHY = "How each is trained was chosen by trials with seed 0 (docs/toy.md), the same for every seed."
HOURS = 6 * 3600.0  # a stage that takes longer hangs
Result = TypeVar("Result")


@dataclass(frozen=True)
class DemoConfig:
    """How much of it."""

    seeds: int = 1
    """Repetitions, each with videos, weights and masks of its own."""
    seed: int = 0
    """The first one."""
    image_steps: int = 1400
    """Updates of the image teacher."""
    video_steps: int = 1400
    """Updates of the video teacher."""
    student_steps: int = 900
    """Updates of each student."""
    train: int = 6000
    """Clips to train on, without labels."""
    labelled: int = 2000
    """Of them, clips whose labels the probes learn from."""
    val: int = 640
    """Clips that choose the probes' learning rate and weight decay."""
    test: int = 1600
    """Clips that are scored."""
    difficulty: str = "middle"
    """Of the videos: easy, middle, hard."""
    workers: int | None = None
    """Networks trained side by side, each on a thread of its own; default: one for each core."""
    device: str = "auto"


@dataclass(frozen=True)
class Score:
    """Accuracies of one encoder on one label, by seed, and the gain over a random encoder."""

    accuracies: tuple[float, ...]
    gain: float  # mean, in points
    low: float  # 95 % interval
    high: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))


@dataclass(frozen=True)
class Demo:
    """What the demo found, and where it lies."""

    out: Path
    config: DemoConfig
    scores: dict[str, dict[str, Score]]  # encoder: label: score
    picture: Path
    results: Path
    runs: dict[str, Path]  # of the first seed, for `tubelet similarity` and the like

    def table(self) -> Table:
        n, clips = self.config.seeds, self.config.test
        table = Table(
            title=f"Accuracy of an attentive probe on frozen features, {clips} test clips"
            + (f", mean of {n} seeds" if n > 1 else ""),
            caption="After each accuracy, the gain over random and its 95 % interval over "
            f"{f'{n} seeds' if n > 1 else 'test clips'}. {WHY}",
        )
        units = {"what": "digits", "how": "motions"}
        table.add_column("", no_wrap=True)
        for label, names in LABELS.items():
            table.add_column(f"{label}: {len(names)} {units[label]}", no_wrap=True)
        table.add_row("chance", *(f"{1 / len(names):.1%}" for names in LABELS.values()))
        for encoder, scores in self.scores.items():
            table.add_row(encoder, *(_cell(encoder, scores[label]) for label in LABELS))
        return table


def _cell(encoder: str, score: Score) -> str:
    gain = f"  {score.gain:+.1f} [{score.low:+.1f}, {score.high:+.1f}]"
    return f"{score.mean:.1%}" + ("" if encoder == RANDOM else gain)


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
    scores = {
        encoder: {label: _score(encoder, label, found, config) for label in LABELS}
        for encoder in ENCODERS
    }
    runs = {name: folders[0] / _slug(name) for name in (*TEACHERS, *STUDENTS)}
    results = out / "results.json"
    record = {
        "config": asdict(config),
        "why": WHY,
        "runs": {name: to_dict(run) for name, run in (TEACHERS | STUDENTS).items()},
        "scores": {e: {k: asdict(v) for k, v in of.items()} for e, of in scores.items()},
        "seeds": found,
    }
    _write(results, record)
    return Demo(out, config, scores, _picture(out, folders[0], runs, scores), results, runs)


def _picture(
    out: Path, folder: Path, runs: dict[str, Path], scores: dict[str, dict[str, Score]]
) -> Path:
    picture = out / "demo.png"
    clips = sorted((folder / "videos" / "test").glob("*.mp4"))[:3]
    titles = [_title(folder / "videos", path) for path in clips]
    model = stored.load(runs["video teacher"])
    assert isinstance(model, MaskedModel)
    bars = {e: {k: v.accuracies for k, v in of.items()} for e, of in scores.items()}
    chance = {label: 1 / len(names) for label, names in LABELS.items()}
    demo_picture.draw(picture, model, clips, titles, bars, chance)
    return picture


def _check(config: DemoConfig) -> None:
    least = {"seeds": 1, "train": 64, "labelled": 128, "val": 80, "test": 80, "seed": 0}
    least |= {"image_steps": 1, "video_steps": 1, "student_steps": 1}
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
        keys = sorted({*found, *record})
        other = [
            f"{k} was {found.get(k)}, now {record.get(k)}"
            for k in keys
            if found.get(k) != record.get(k)
        ]
        raise TubeletError(
            f"{out} holds a demo with other options ({'; '.join(other)}). Choose another folder "
            "with --out, or remove it."
        )


@dataclass(frozen=True)
class Stage:
    """One network to train or to probe, in a process of its own."""

    name: str
    lab: Lab
    run: Pretraining
    out: Path
    labelled: int = 0
    then: tuple[Stage, ...] = ()  # networks that are trained after it, by the same process


def train_stage(stage: Stage) -> None:
    """Trains one network, and those that wait for it."""
    _one_thread()
    for one in (stage, *stage.then):
        labs.train(one.lab, one.run, one.out)


def probe_stage(stage: Stage) -> dict[str, Any]:
    """The probes of one trained network; of one as it was before training for "random"."""
    _one_thread()
    torch.manual_seed(stage.run.train.seed)
    model = stage.run.model()
    if stage.name != RANDOM:
        checkpoint.apply_weights(model, checkpoint.load_weights(stage.out), stage.out)
    return labs.probes(stage.lab, model, stage.labelled)


def _one_thread() -> None:
    """In a process of its own: two networks side by side are faster than one on two threads."""
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)


def _one(folder: Path, config: DemoConfig, seed: int, console: Console) -> dict[str, Any]:
    """All stages of one seed -> its record; at once where it is there already."""
    done = folder / "result.json"
    if done.exists():
        return _read(done)
    workers = cpu_cores() if config.workers is None else config.workers
    lab = Lab(folder, CLIP)
    options = toy.Options(seed=seed, difficulty=config.difficulty)  # pyright: ignore[reportArgumentType]
    counts = {split: getattr(config, split) for split in toy.SPLITS}
    with _bar("rendering videos", console) as progress:
        lab.prepare(options, counts, workers, progress)
    stages = _stages(lab, folder, config, seed)
    # The image teacher is done long before the video teacher: its student need not wait for that.
    alone = replace(stages["image teacher"], then=(stages["student of image"],))
    _side_by_side(
        "training teachers", train_stage, [stages["video teacher"], alone], workers, console
    )
    rest = [stages[f"student of {what}"] for what in ("video", "both")]
    _side_by_side("training students", train_stage, rest, workers, console)
    probed = _side_by_side("probing", probe_stage, list(stages.values()), workers, console)
    record: dict[str, Any] = {"seed": seed, **dict(zip(stages, probed, strict=True))}
    for encoder in ENCODERS[1:]:
        for label in LABELS:
            right, before = (np.array(record[e][label]["right"], float) for e in (encoder, RANDOM))
            record[encoder][label]["gain"] = bootstrap(100 * (right - before), seed)
    for encoder in ENCODERS:
        for label in LABELS:
            del record[encoder][label]["right"]
    _write(done, record)
    return record


def _stages(lab: Lab, folder: Path, config: DemoConfig, seed: int) -> dict[str, Stage]:
    """The stage of each encoder."""
    steps = {"image teacher": config.image_steps, "video teacher": config.video_steps}
    teachers = {"image": folder / "image-teacher", "video": folder / "video-teacher"}
    found: dict[str, Stage] = {}
    for name, run in ({RANDOM: VIDEO} | TEACHERS | STUDENTS).items():
        train = replace(
            run.train,
            steps=steps.get(name, config.student_steps),
            seed=seed,
            device=config.device,
        )
        taught = {f"{branch}_teacher": teachers[branch] for branch in run.teachers()}
        run = changed(run, data=folder / "videos" / "train", train=train, **taught)
        found[name] = Stage(name, lab, run, folder / _slug(name), config.labelled)
    return {name: found[name] for name in ENCODERS}


def _side_by_side(
    what: str,
    task: Callable[[Stage], Result],
    stages: Sequence[Stage],
    workers: int,
    console: Console,
) -> list[Result]:
    """`task` of each stage, in processes; the bar follows the updates that their logs tell of."""

    def lost(stage: Stage, why: str) -> Any:
        raise TubeletError(
            f"The process of the {stage.name} was lost: {why}. Start the demo again: it goes on."
        )

    trained = [one for stage in stages for one in (stage, *stage.then)]
    with _bar(what, console) as bar, _watching(trained if task is train_stage else [], bar):
        told = None if task is train_stage else bar
        return each(task, stages, workers=workers, lost=lost, timeout_seconds=HOURS, progress=told)


@contextmanager
def _watching(
    stages: Sequence[Stage], bar: Callable[[int, int], None]
) -> Generator[None, None, None]:
    """Follows the updates of runs by the last lines of their logs, until the block ends."""
    over = threading.Event()
    total = sum(stage.run.train.steps or 0 for stage in stages)

    def follow() -> None:
        while not over.wait(1.0):
            bar(sum(_steps_done(stage.out) for stage in stages), total)

    thread = threading.Thread(target=follow, daemon=True)
    if stages:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if stages:
            thread.join()


def _steps_done(run: Path) -> int:
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError, KeyError):
        return 0  # not begun, or a line that is being written


def _score(encoder: str, label: str, found: list[dict[str, Any]], config: DemoConfig) -> Score:
    """One seed: the interval over test clips, by bootstrap. Several: over seeds, by Student's t."""
    own, random = (
        tuple(one[name][label]["accuracy"] for one in found) for name in (encoder, RANDOM)
    )
    gains = 100 * (np.array(own) - np.array(random))
    if encoder == RANDOM:
        low = high = 0.0
    elif config.seeds == 1:
        low, high = found[0][encoder][label]["gain"]
    else:
        low, high = student(gains.tolist())
    return Score(own, float(gains.mean()), low, high)


def _slug(name: str) -> str:
    return name.replace(" ", "-")


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
        TextColumn(f"{what:<20}"),
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
    replace_file(path, lambda begun: begun.write_text(json.dumps(record, indent=1) + "\n"))
