"""Features of frozen teachers on disk: float16, in shards that are written whole and read by row.

A cache is a folder. `cache.json` says what it was made for. Its entries are numbered crop by crop,
`crop * videos + index`, and a shard holds the next `shard_clips` of them: for each teacher
`000012.features_image.npy`, float16 [n,N,P], and `000012.index.npy`, int64 [n], the video of the
list that each entry shows (another than its own where that could not be read).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.errors import TubeletError

FILE = "cache.json"
FORMAT = 1  # of the folder; a higher one is of a later tubelet
VIEW = "features_"  # in front of a teacher's name: the view of a sample, and the files
INDEX = "index"
MEANS = {"list.fingerprint": " (a hash of the videos' paths)"}  # what a name alone does not tell


@dataclass(frozen=True)
class Layout:
    """Which files a cache has, and what is in them."""

    videos: int
    crops: int
    tokens: int  # N
    widths: Mapping[str, int]  # P of each teacher
    shard_clips: int

    @property
    def shards(self) -> int:
        return -(-self.videos * self.crops // self.shard_clips)

    def entries(self, shard: int) -> range:
        """The numbers of the entries in a shard; only the last may have fewer than the others."""
        first = shard * self.shard_clips
        return range(first, min(first + self.shard_clips, self.videos * self.crops))

    def arrays(self, shard: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The arrays of a shard: {name: (dtype, shape)}."""
        n = len(self.entries(shard))
        features = {VIEW + name: ("<f2", (n, self.tokens, p)) for name, p in self.widths.items()}
        return {INDEX: ("<i8", (n,)), **features}

    def size_bytes(self, shards: Iterable[int]) -> int:
        """What the files of these shards take, exactly."""
        return sum(
            len(_head(dtype, shape)) + np.dtype(dtype).itemsize * prod(shape)
            for shard in shards
            for dtype, shape in self.arrays(shard).values()
        )

    def missing(self, folder: str | Path) -> list[int]:
        """The shards of which a file is not there."""
        there = set(os.listdir(folder)) if os.path.isdir(folder) else set[str]()
        return [
            shard
            for shard in range(self.shards)
            if not all(_file(shard, name) in there for name in self.arrays(shard))
        ]


def _file(shard: int, name: str) -> str:
    return f"{shard:06d}.{name}.npy"


def _head(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The header of a .npy file."""
    made = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(made, described)
    return made.getvalue()


def write_shard(
    folder: Path, layout: Layout, shard: int, chunks: Iterable[Mapping[str, NDArray[Any]]]
) -> None:
    """Writes a shard from its parts, {name: [some of n, ...]} in order: all of it, or nothing.

    Raises TubeletError where it cannot be written (a full disk).
    """
    arrays = layout.arrays(shard)
    begun = {name: folder / f".{_file(shard, name)}.begun" for name in arrays}
    written = dict.fromkeys(arrays, 0)
    try:
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(path, "wb")) for name, path in begun.items()}
            for name, file in files.items():
                file.write(_head(*arrays[name]))
            for chunk in chunks:
                for name, part in chunk.items():
                    dtype, (_, *shape) = arrays[name]
                    assert part.dtype == dtype and list(part.shape[1:]) == shape, name
                    files[name].write(part.tobytes())
                    written[name] += len(part)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        assert set(written.values()) == {len(layout.entries(shard))}
        for name, path in begun.items():
            os.replace(path, folder / _file(shard, name))
    except OSError as error:
        raise TubeletError(
            f"Shard {shard} of the feature cache could not be written to {folder}: "
            f"{error.strerror or error}. The shards before it are whole: free some space or make the "
            "folder writable, and give the same command again."
        ) from error
    finally:
        for path in begun.values():
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class FeatureCache:
    """A whole cache, to be read from any process; `teachers` are those that are read."""

    folder: str
    header: Mapping[str, Any]
    layout: Layout
    teachers: tuple[str, ...]

    @property
    def crops(self) -> int:
        """Fixed crops of each video."""
        return self.layout.crops

    def of(self, teachers: Sequence[str]) -> FeatureCache:
        """The cache, of which only these teachers are read."""
        return replace(self, teachers=tuple(teachers))

    def read(self, crop: int, index: int) -> tuple[int, dict[str, Tensor]]:
        """-> the number of the video that the entry shows, and {view: float16 [N,P]}."""
        shard, row = divmod(crop * self.layout.videos + index, self.layout.shard_clips)
        shown = int(self._row(shard, INDEX, row))
        names = [VIEW + name for name in self.teachers]
        return shown, {name: torch.from_numpy(self._row(shard, name, row)) for name in names}

    def _row(self, shard: int, name: str, row: int) -> NDArray[Any]:
        """A copy of one row. Mapped for this read alone: open maps of all shards would be too many
        files for a process."""
        path = os.path.join(self.folder, _file(shard, name))
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise TubeletError(_damaged(path, str(error))) from error
        dtype, shape = self.layout.arrays(shard)[name]
        if array.dtype != dtype or array.shape != shape:
            raise TubeletError(
                _damaged(path, f"it holds {array.dtype} {list(array.shape)}, not {list(shape)}")
            )
        return np.array(array[row])


def _damaged(path: str, why: str) -> str:
    return (
        f"{path} cannot be read: {why}. Remove it, and give the command `tubelet cache` that made "
        "the cache again: it makes this shard anew."
    )


def open_cache(folder: str | Path) -> FeatureCache:
    """A folder -> the cache; TubeletError where there is none, or one that is not complete."""
    header = read_header(folder)
    if header is None:
        raise TubeletError(
            f"{folder} is no feature cache: it has no {FILE}. `tubelet cache RUN --data VIDEOS "
            f"--out {folder}` makes one."
        )
    layout = layout_of(header)
    missing = layout.missing(folder)
    if missing:
        raise TubeletError(
            f"The feature cache {folder} is not complete: {len(missing)} of {layout.shards} shards "
            f"are missing, the first is {missing[0]}. Give the command `tubelet cache` that made it "
            "again: it goes on where it stopped."
        )
    return FeatureCache(str(folder), header, layout, tuple(layout.widths))


def read_header(folder: str | Path) -> dict[str, Any] | None:
    """What `cache.json` says; None where there is none."""
    path = Path(folder, FILE)
    if not path.is_file():
        return None
    try:
        header = json.loads(path.read_text())
        layout_of(header)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TubeletError(
            f"{path} describes no feature cache ({type(error).__name__}: {error})."
        ) from error
    if header["format"] > FORMAT:
        raise TubeletError(
            f"{folder} is of format {header['format']}, and this tubelet reads up to {FORMAT}. "
            "Upgrade: pip install -U tubelet."
        )
    return header


def layout_of(header: Mapping[str, Any]) -> Layout:
    """What `cache.json` says about the files."""
    return Layout(
        videos=header["list"]["videos"],
        crops=header["crops"],
        tokens=prod(header["grid"]),
        widths={name: one["width"] for name, one in header["teachers"].items()},
        shard_clips=header["shard_clips"],
    )


def one_sample_a_video(num_sample: int) -> None:
    """TubeletError for repeated augmentation: a cache has one crop of a video for an epoch."""
    if num_sample != 1:
        raise TubeletError(
            f"num_sample is {num_sample}, and a feature cache has one crop of each video for an "
            "epoch: pass --num-sample 1; --crops of `tubelet cache` makes more crops."
        )


def differences(
    cached: Mapping[str, Any], wanted: Mapping[str, Any], *, there: str = "in the cache"
) -> Iterator[str]:
    """Where a cache is not what is wanted: "clip.num_frames: 16 in the cache, 8 here"."""
    found = _flat(cached)
    for key, value in _flat(wanted).items():
        if found.get(key) != value:
            yield f"{key}{MEANS.get(key, '')}: {found.get(key)} {there}, {value} here"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, as JSON has it."""
    if not isinstance(value, Mapping):
        return {prefix.removesuffix("."): json.loads(json.dumps(value))}
    return {k: v for key in value for k, v in _flat(value[key], f"{prefix}{key}.").items()}
