"""A folder of features, a file for each video: whole at any moment, shared by several processes.

A file is written under another name and renamed, so that what bears its name is complete. Who
makes it holds a lock that ends with the process, however it ends. `features.json` says what all of
the files were made with.
"""

from __future__ import annotations

import importlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from tubelet.data import frames
from tubelet.data.cache import differences
from tubelet.errors import TubeletError
from tubelet.files import replace_file

try:
    import fcntl
except ImportError:  # Windows: files are whole all the same, but nothing keeps others from them
    fcntl = None

Format = Literal["npy", "npz", "parquet"]
FILE = "features.json"
FORMAT = 1  # of the folder; a higher one is of a later tubelet
TIMES, ERROR = ".times.json", ".error.txt"
NOT_COMPARED = ("library", "model.path")  # of features.json: the digest says which model


@dataclass(frozen=True)
class Features:
    """The features of one video; row i is of the window from start_seconds[i] to end_seconds[i]."""

    values: NDArray[Any]  # float32 or float16 [windows, D], [windows,t,D] or [windows,t,h,w,D]
    start_seconds: NDArray[np.float64]
    end_seconds: NDArray[np.float64]
    fps: float
    frames: int  # of the video


class Claim:
    """The right to make one file; `release` gives it back."""

    def __init__(self, path: Path, handle: int | None) -> None:
        self._path, self._handle = path, handle

    def release(self) -> None:
        if self._handle is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None


def claim(file: Path, *, wait: bool = False) -> Claim | None:
    """The claim to a file, or None where another process has it (unless told to wait for it)."""
    path = _lock(file)
    if fcntl is None:
        return Claim(path, None)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            os.close(handle)
            raise TubeletError(
                f"{path} cannot be locked ({error.strerror}), so that processes would write the "
                "same file at the same time: choose a folder on a file system that has locks."
            ) from error
        if path.exists() and os.path.samestat(os.stat(path), os.fstat(handle)):
            return Claim(path, handle)
        os.close(handle)  # whoever had it has removed it since


def _lock(file: Path) -> Path:
    return file.with_name(f".{file.name}.lock")


@dataclass(frozen=True)
class FeatureFolder:
    """Where features go: `folder`/NAME.npy (or .npz, .parquet)."""

    folder: Path
    format: Format

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder, with its `features.json`; TubeletError where its files were made with
        other settings."""
        if self.folder.exists() and not self.folder.is_dir():
            raise TubeletError(f"The output folder {self.folder} is a file. Pass another folder.")
        path = self.folder / FILE
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            mine = claim(path, wait=True)
            assert mine is not None
            try:
                if not path.exists():
                    text = json.dumps({"format": FORMAT, **settings}, indent=1) + "\n"
                    replace_file(path, lambda begun: begun.write_text(text, encoding="utf-8"))
                self._check(path, settings)
            finally:
                mine.release()

    def _check(self, path: Path, settings: Mapping[str, Any]) -> None:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            known = int(before["format"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TubeletError(
                f"{path} describes no features ({type(error).__name__}: {error}). Pass another folder."
            ) from error
        if known > FORMAT:
            raise TubeletError(f"{path} is of a later tubelet. Upgrade: pip install -U tubelet.")
        wrong = [
            one
            for one in differences(before, settings, there="in the folder")
            if not one.startswith(NOT_COMPARED)
        ]
        if wrong:
            raise TubeletError(
                f"{self.folder} holds features made with other settings: {'; '.join(wrong)}. Pass "
                "another folder, or the settings of that one."
            )

    def file(self, name: str) -> Path:
        """Where the features of a video go."""
        return self.folder / f"{name}.{self.format}"

    def there(self, name: str, video: str) -> bool:
        """Whether a video's features are there; TubeletError where they are of another video."""
        file = self.file(name)
        if not file.is_file():
            return False
        try:
            size = _READ[self.format](file)
        except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
            raise TubeletError(
                f"{file} is damaged ({error}): remove it to make it again."
            ) from error
        if os.path.exists(video) and size != size_of(video):
            raise TubeletError(
                f"{file} was made of another video than {video}: of {size} bytes, and this one has "
                f"{size_of(video)}. Pass another folder; or --relative-to a folder above the videos, "
                "so that their names differ; or remove the file to make it again."
            )
        # Of a process that was killed just then; who has it now finds the file, as we did.
        _lock(file).unlink(missing_ok=True)
        return True

    def claim(self, name: str) -> Claim | None:
        """The right to make a video's file; None where another process makes it now."""
        with self._writing():
            return claim(self.file(name))

    def write(self, name: str, video: str, features: Features) -> Path:
        """Writes a video's file(s), whole or not at all."""
        file = self.file(name)
        with self._writing():
            _WRITE[self.format](file, size_of(video), features)
            file.with_name(Path(name).name + ERROR).unlink(missing_ok=True)
        return file

    def failed(self, name: str, reason: str) -> None:
        """Leaves NAME.error.txt with the reason, in the place of features."""
        path = self.folder / (name + ERROR)
        with self._writing():
            replace_file(path, lambda begun: begun.write_text(reason + "\n", encoding="utf-8"))

    @contextmanager
    def _writing(self) -> Any:
        try:
            yield
        except OSError as error:
            raise TubeletError(
                f"Features cannot be written to {self.folder}: {error.strerror or error}. What is "
                "there is whole: free some space or make the folder writable, and give the same "
                "command again."
            ) from error


def names_of(videos: Sequence[str], relative_to: str = "") -> list[str]:
    """Paths -> names for their features: from the folder given, or the one that all share, without
    the extension, which stays where two would have one name. Frames are named by their folder.

    TubeletError where two would have one name all the same: a video that was given twice.
    """
    folders = [frames.parse(video) for video in videos]
    both = list(zip(videos, folders, strict=True))
    whole = [os.path.abspath(folder.folder if folder else video) for video, folder in both]
    root = os.path.abspath(relative_to or os.path.commonpath([os.path.dirname(v) for v in whole]))
    relative = [Path(os.path.relpath(video, root)) for video in whole]
    outside = [video for video, path in zip(videos, relative, strict=True) if ".." in path.parts]
    if outside:
        raise TubeletError(
            f"{outside[0]} does not lie in {relative_to}, from which files are named. Expected a "
            "folder above all videos."
        )
    stems = [
        (path if folder else path.with_suffix("")).as_posix()
        for path, folder in zip(relative, folders, strict=True)
    ]
    count = Counter(stems)
    unique = [
        f"{path.as_posix()}[{folder.first}-{folder.last}]" if folder else path.as_posix()
        for path, folder in zip(relative, folders, strict=True)
    ]
    names = [long if count[stem] > 1 else stem for stem, long in zip(stems, unique, strict=True)]
    first: dict[str, str] = {}
    for video, name in zip(videos, names, strict=True):
        if first.setdefault(name, video) != video:
            raise TubeletError(
                f"The features of {first[name]} and of {video} would be one file, {name}. Expected "
                "each video once: leave one out, or write them into different folders."
            )
    return names


def size_of(video: str) -> int:
    """Bytes of a video's file; 0 of frames in a folder."""
    return 0 if frames.parse(video) else os.path.getsize(video)


# --- formats ---------------------------------------------------------------------------------


def _write_npy(file: Path, size: int, features: Features) -> None:
    """NAME.npy, the values alone as published, and before it NAME.times.json."""
    times = {
        "video_bytes": size,
        "frames": features.frames,
        "fps": features.fps,
        "start_seconds": features.start_seconds.tolist(),
        "end_seconds": features.end_seconds.tolist(),
    }
    text = json.dumps(times) + "\n"
    replace_file(
        file.with_name(file.stem + TIMES), lambda begun: begun.write_text(text, encoding="utf-8")
    )

    def save(file: IO[bytes]) -> None:
        np.save(file, features.values, allow_pickle=False)

    _replace(file, save)


def _size_npy(file: Path) -> int:
    times = json.loads(file.with_name(file.stem + TIMES).read_text(encoding="utf-8"))
    return int(times["video_bytes"])


def _write_npz(file: Path, size: int, features: Features) -> None:
    def save(file: IO[bytes]) -> None:
        np.savez(
            file,
            features=features.values,
            start_seconds=features.start_seconds,
            end_seconds=features.end_seconds,
            fps=np.float64(features.fps),
            frames=np.int64(features.frames),
            video_bytes=np.int64(size),
        )

    _replace(file, save)


def _size_npz(file: Path) -> int:
    with np.load(file, allow_pickle=False) as arrays:
        return int(arrays["video_bytes"])


def _replace(file: Path, save: Any) -> None:
    def write(begun: Path) -> None:
        with open(begun, "wb") as handle:
            save(handle)

    replace_file(file, write)


def arrow() -> Any:
    """pyarrow with its parquet, or a TubeletError that says how to get it."""
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise TubeletError(
            "format 'parquet' needs pyarrow: pip install 'tubelet[tables]', or choose npz, which "
            "needs nothing more."
        ) from error


def _write_parquet(file: Path, size: int, features: Features) -> None:
    """Columns start_seconds, end_seconds, features: a list of fixed length, flat in C order."""
    pa = arrow()
    flat = features.values.reshape(len(features.values), -1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    about = {
        "video_bytes": size,
        "frames": features.frames,
        "fps": features.fps,
        "shape": list(features.values.shape[1:]),
    }
    table = pa.table(
        {
            "start_seconds": features.start_seconds,
            "end_seconds": features.end_seconds,
            "features": column,
        },
        metadata={"tubelet": json.dumps(about)},
    )
    replace_file(file, lambda begun: pa.parquet.write_table(table, begun))


def _size_parquet(file: Path) -> int:
    metadata = arrow().parquet.read_schema(file).metadata
    return int(json.loads(metadata[b"tubelet"])["video_bytes"])


_WRITE = {"npy": _write_npy, "npz": _write_npz, "parquet": _write_parquet}
_READ = {"npy": _size_npy, "npz": _size_npz, "parquet": _size_parquet}
