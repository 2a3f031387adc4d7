"""Which of many listed files are there."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tubelet.data import frames


def exists(path: str) -> bool:
    """Whether there is such a file, or the folder of such frames."""
    folder = frames.parse(path)
    return os.path.exists(complete(path) if folder is None else folder.folder)


def complete(path: str) -> str:
    """The path, or with .mp4 where it has no extension and only that exists (as published)."""
    if not os.path.splitext(path)[1] and not os.path.exists(path) and os.path.exists(path + ".mp4"):
        return path + ".mp4"
    return path


def missing_files(paths: Sequence[str]) -> list[int]:
    """Positions of the paths that do not exist; a folder with many of them is listed once.

    A folder of frames is missing where any of them is.
    """
    by_folder: dict[str, list[int]] = {}
    missing = list(frames.gaps(paths))
    for at, path in enumerate(paths):
        if not path.endswith("]") or frames.parse(path) is None:
            by_folder.setdefault(os.path.dirname(path), []).append(at)
    for folder, positions in by_folder.items():
        there: set[str] = set()
        if len(positions) > 8 and os.path.isdir(folder or "."):
            there = set(os.listdir(folder or "."))
        missing += [
            at
            for at in positions
            if os.path.basename(paths[at]) not in there and not os.path.exists(paths[at])
        ]
    return sorted(missing)
