"""Files, written whole: in one move, and for those who may read the user's others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """One safetensors file, which those may read who may read the user's other new files.

    By itself safetensors makes files for their owner alone: on a cluster, colleagues could not load
    them.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata)
    path.chmod(mode)


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Replaces a file in one move, so that it is the old or the new one at any moment."""
    begun = path.with_name(f".{path.name}.begun")
    try:
        write(begun)
        flush(begun)
        os.replace(begun, path)
    finally:
        begun.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until the file, or the names in the folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot; it keeps names by its own journal
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
