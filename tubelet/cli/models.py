"""Verbs that use models: evaluate, predict, reconstruct, similarity."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from tubelet.cli.parsing import (
    Given,
    bar,
    first_process,
    option,
    options_of,
    parse,
    parse_as_the_run,
    told_options,
)
from tubelet.errors import TubeletError


def evaluate(args: list[str]) -> int:
    """Score a fine-tuned model by the published protocol: tubelet evaluate runs/b labelled/"""
    from tubelet import verbs
    from tubelet.tasks.evaluate import EvaluateConfig

    def options(config: EvaluateConfig) -> type:
        return options_of(
            "Evaluate",
            config,
            ("run", option(str, "Run folder, checkpoint, or weights of others.", Given)),
            told_options(),
            ("data", option(str, "Labelled folder or list.", Given)),
            ("root", option(str, "Joined in front of relative paths."), ""),
            ("label_column", option(str, "Of a csv or jsonl, where it is not called label."), ""),
            ("split", option(str | None, "Of a folder with splits; default: test, or val."), None),
            ("head_map", option(str, "Of merge-labels: score the classes of one set."), ""),
            ("out", option(Path | None, "Folder for evaluation.json, scores.csv, ..."), None),
        )

    about = "Each video is decoded once for all of its views; by default those of the run."
    job = parse_as_the_run(args, "evaluate", about, options, EvaluateConfig(), verbs.test_views)
    with bar("evaluating", "videos") as progress:
        result = verbs.evaluate(
            job.run,
            job.data,
            job.config,
            root=job.root,
            split=job.split,
            told=job.told,
            label_column=job.label_column,
            head_map=job.head_map,
            progress=progress,
        )
    if not first_process():
        return 0
    Console().print(result.table())
    if job.out is not None:
        for path in result.write(job.out):
            print(path)
    return 0


def predict(args: list[str]) -> int:
    """The best classes over time, of videos of any length: tubelet predict runs/b video.mp4"""
    from tubelet import verbs
    from tubelet.tasks.predict import PredictConfig

    kind = options_of(
        "Predict",
        PredictConfig(),
        ("run", option(str, "Run folder, checkpoint, or weights of others.", Given)),
        told_options(),
        ("videos", option(tuple[str, ...], "Videos, folders or lists.", Given)),
        ("out", option(Path | None, "Write a .json or .csv file."), None),
    )
    job: Any = parse(kind, args, "predict", "Windows of one clip each, from start to end.")
    with bar("predicting", "seconds") as progress:
        shown = progress and (lambda _path, done, of: progress(done, of))
        result = verbs.predict(job.run, list(job.videos), job.config, told=job.told, progress=shown)
    Console().print(result.table())
    if job.out is not None:
        result.write(job.out)
        print(job.out)
    return result.exit_code


def reconstruct(args: list[str]) -> int:
    """Draw what a pretrained model makes of hidden parts: tubelet reconstruct runs/a video.mp4"""
    from tubelet import verbs
    from tubelet.analysis.reconstruct import ReconstructConfig

    def options(config: ReconstructConfig) -> type:
        return options_of(
            "Reconstruct",
            config,
            ("run", option(str, "Run folder or checkpoint of pretraining.", Given)),
            told_options(),
            ("videos", option(tuple[str, ...], "Videos.", Given)),
            ("out", option(Path, "Folder for the pictures."), Path("reconstructions")),
        )

    about = "Input, masked input, and what is predicted; by default with the masks of the run."
    job = parse_as_the_run(
        args, "reconstruct", about, options, ReconstructConfig(), verbs.run_masks
    )
    stems = [Path(video).stem for video in job.videos]
    same = sorted({stem for stem in stems if stems.count(stem) > 1})
    if same:
        raise TubeletError(
            f"Several videos are called {', '.join(same)}, and their pictures would overwrite one "
            "another: draw them into different folders, with --out."
        )
    model, name = verbs.masked_model(job.run, job.told), Path(job.run).name
    for video in job.videos:
        made = verbs.reconstruct(
            model, video, out=job.out, config=job.config, name=name, told=job.told
        )
        print(made.strip, *([made.animation] if made.animation else []), sep="\n")
    return 0


def similarity(args: list[str]) -> int:
    """How alike features of different moments are: tubelet similarity runs/a video.mp4 --with runs/b"""
    from tubelet import verbs
    from tubelet.analysis.similarity import SimilarityConfig
    from tubelet.shapes import ClipSpec

    def options(clip: ClipSpec) -> type:
        others = tyro.conf.arg(name="with", help="Further models, compared on the same clips.")
        return options_of(
            "Similarity",
            SimilarityConfig(),
            ("run", option(str, "Run folder, checkpoint, or weights of others.", Given)),
            told_options(),
            ("videos", option(tuple[str, ...], "Videos, folders or lists.", Given)),
            ("others", Annotated[tuple[str, ...], others], ()),
            ("out", option(Path, "Folder for the picture and numbers."), Path("similarity")),
            ("clip", Annotated[ClipSpec, tyro.conf.arg(name="")], clip),
        )

    about = "Cosine between feature maps; by default of clips as the first model's of clips."
    job: Any = parse(options(ClipSpec()), args, "similarity", about)
    if not job.videos:
        raise TubeletError(
            "No videos were given. Expected one or more, after the model and before --with: "
            "tubelet similarity RUN VIDEO --with OTHER."
        )
    models = verbs.compared([job.run, *job.others], job.told)
    # Once more, with the clips of the models as defaults.
    job = parse(options(verbs.compared_clip(models)), args, "similarity", about)
    with bar("comparing", "videos") as progress:
        result = verbs.similarity(
            models, list(job.videos), clip=job.clip, config=job.config, progress=progress
        )
    Console(width=None if sys.stdout.isatty() else 200).print(result.table())
    for path, reason in result.left_out:
        print(f"left out: {path}: {reason}")
    for path in result.write(job.out):
        print(path)
    return 0
