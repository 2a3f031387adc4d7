"""Features over time: embed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tubelet import stored
from tubelet.interop.found import NOTHING, Told
from tubelet.model import VideoModel
from tubelet.shapes import ClipSpec
from tubelet.tasks import embed as embedding
from tubelet.tasks.embed import EmbedConfig, Embeddings, Progress


def embed(
    weights: str | Path | VideoModel,
    videos: Any,
    *,
    out: str | Path | None = None,
    config: EmbedConfig | None = None,
    clip: ClipSpec | None = None,
    told: Told = NOTHING,
    progress: Progress | None = None,
) -> Embeddings:
    """Features [windows, D] of videos; see `tubelet.tasks.embed`.

    Args:
        weights: a run's folder, a checkpoint, a file of others (`told`: see `load`), or a model: a
            classifier or a pretrained one.
        videos: a video, a folder, a list, or several of these.
        out: folder for a file of each video; None: they are returned in memory. Under torchrun
            each process makes a part of the files, and returns what became of its part.
        clip: how windows are cut; None: as the model was trained.
        progress: called with (videos done, videos in all, windows so far).
    """
    model = weights if isinstance(weights, VideoModel) else stored.load(weights, told=told)
    part = (0, 1)
    if out is not None:
        part = (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    name = "" if isinstance(weights, VideoModel) else str(weights)
    return embedding.embed(
        model, videos, config, out=out, clip=clip, name=name, part=part, progress=progress
    )
