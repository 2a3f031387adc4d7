"""Lists of frame folders, in the published formats, as lists of paths (see `frames.py`)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from tubelet.data import frames
from tubelet.data.frames import FrameFolder
from tubelet.data.listfiles import VIDEO_EXTENSIONS, Bad, lines_of, of_files, refuse
from tubelet.data.lists import Entry, VideoList
from tubelet.data.missing import exists
from tubelet.data.pictures import IMAGES
from tubelet.errors import TubeletError

_LINE = re.compile(r"(?P<path>.+?)(?:[\s,;]+(?P<a>\d+))?(?:[\s,;]+(?P<b>-?\d+))?")
ADVICE = (
    "Expected on every line 'folder start total', 'folder total', or 'folder' alone, where frames "
    "are counted (a video among them as 'path 0 -1'), without labels."
)


def read_frame_folders(
    data: str, *, root: str = "", template: str, start: int, fps: float | None
) -> tuple[VideoList, bool]:
    """A list, or a folder of frame folders -> the list, and whether all frames were seen.

    A line of a list is `folder start total`, `folder total`, `folder` alone (frames are then
    counted), a path in the form of `frames.py`, or a video, as `path 0 -1` or by its extension.
    `template`: names of frames. `start`: number of the first one where a line does not say.

    Raises:
        TubeletError: nothing there, lines that cannot be used, gaps in folders that were counted.
    """
    frames.checked(template)
    to_count = partial(_counted, template=template, start=start, fps=fps)
    if os.path.isdir(data):
        found = [to_count(folder, numbers) for folder, numbers in _below(data, template)]
        if not found:
            raise TubeletError(
                f"No folder in {data} has frames named as {template}: expected {data}/<folder>/"
                f"{template.format(start)} (other names: template=...)."
            )
        refuse_gaps(data, [why for _, why in found if why], len(found))
        return _listed([str(folder) for folder, _ in found], data, data), True
    return _read_file(Path(data), root, template, start, fps)


def _read_file(
    file: Path, root: str, template: str, start: int, fps: float | None
) -> tuple[VideoList, bool]:
    if not file.is_file():
        raise TubeletError(f"There is no file or folder {str(file)!r}.")
    cut = [(line, text, *_cut(text)) for line, text in lines_of(file)]
    base = _root([path for _, _, path, _, _ in cut], file, root)
    paths: list[str] = []
    bare: list[int] = []
    gone: list[Bad] = []
    for at, (line, text, name, first, total) in enumerate(cut):
        path = os.path.join(base, name)
        if not _is_video(path) and frames.parse(path) is None:
            if not os.path.isdir(path):
                gone.append(Bad(line, text, f"there is no folder {path}"))
            elif total is None:
                bare.append(at)
            elif total < 1:
                gone.append(Bad(line, text, f"{path} is a folder, with {total} frames"))
            else:
                first = start if first is None else first
                path = str(FrameFolder(path, template, first, first + total - 1, fps))
        elif not exists(path):
            gone.append(Bad(line, text, f"{path} does not exist"))
        paths.append(path)
    advice = f"Relative paths were joined to {base or os.getcwd()!r} (root=...). {ADVICE}"
    refuse(str(file), gone, len(cut), advice)
    with ThreadPoolExecutor(frames.THREADS) as pool:
        numbers = pool.map(lambda at: _seen(paths[at], template)[0], bare)
        counted = [
            _counted(paths[at], seen, template=template, start=start, fps=fps)
            for at, seen in zip(bare, numbers, strict=True)
        ]
    refuse_gaps(str(file), [why for _, why in counted if why], len(paths))
    for at, (folder, _) in zip(bare, counted, strict=True):
        paths[at] = str(folder)
    return _listed(paths, str(file), base), len(bare) == len(paths)


def _cut(text: str) -> tuple[str, int | None, int | None]:
    """A line -> path, number of the first frame, how many."""
    match = _LINE.fullmatch(text)
    assert match is not None, text  # any line has a path
    path, a, b = match["path"].strip("\"'"), match["a"], match["b"]
    if b is None:
        return path, None, None if a is None else int(a)
    return (path, None, int(b)) if a is None else (path, int(a), int(b))


def _is_video(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS


def _root(names: Sequence[str], file: Path, root: str) -> str:
    """What relative paths are joined to: where most of some of them are."""
    some = names[:: max(1, len(names) // 50)]
    candidates = [root] if root else [str(file.parent), ""]
    return max(candidates, key=lambda base: sum(exists(os.path.join(base, n)) for n in some))


def _counted(
    folder: str, numbers: list[int], *, template: str, start: int, fps: float | None
) -> tuple[FrameFolder, str]:
    """A folder with these frames -> all of them from `start` on, and why it cannot be used, or ""."""
    found = FrameFolder(folder, template, start, max([start, *numbers[-1:]]), fps)
    if not numbers:
        return found, f"{folder} has no frame named as {template.format(start)}"
    if numbers[0] < start:
        first = template.format(numbers[0])
        return found, f"{folder} begins with {first}, before start={start}"
    lacking = sorted({*range(start, numbers[-1] + 1)} - {*numbers})
    return found, f"{found.file(lacking[0])} does not exist" if lacking else ""


def _below(folder: str, template: str) -> list[tuple[str, list[int]]]:
    """The folders at any depth that hold frames, sorted, each with the numbers of its frames."""
    found: list[tuple[str, list[int]]] = []
    level = [folder]
    with ThreadPoolExecutor(frames.THREADS) as pool:
        while level:
            seen = [*pool.map(partial(_seen, template=template), level)]
            found += [(at, n) for at, (n, _) in zip(level, seen, strict=True) if n]
            level = [inner for _, below in seen for inner in below]
    return sorted(found)


def _seen(folder: str, template: str) -> tuple[list[int], list[str]]:
    """The numbers of the frames in a folder, and the folders in it: from one listing."""
    with os.scandir(folder) as entries:
        listed = [*entries]
    below = [e.path for e in listed if not e.name.startswith(".") and e.is_dir()]
    return frames.numbers_of([e.name for e in listed], template), below


def refuse_gaps(source: str, reasons: Sequence[str], total: int) -> None:
    """TubeletError where folders cannot be used, with the first reasons."""
    if not reasons:
        return
    shown = "\n".join(f"  {why}" for why in reasons[:5])
    more = f"\n  ... and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    raise TubeletError(
        f"{source}: {len(reasons)} of {total} frame folders cannot be used:\n{shown}{more}\n"
        "Extract these videos again, take them out of the list, or correct its numbers and how the "
        "frames are named (template, start)."
    )


def _listed(paths: Sequence[str], source: str, root: str) -> VideoList:
    return VideoList(tuple(map(Entry, paths)), source=source, root=root)


def kind_of(data: str) -> Literal["video", "frames"]:
    """Whether a list or a folder is of frame folders or of videos, by its first line or file."""
    if os.path.isdir(data):
        for _, _, files in os.walk(data):
            if any(map(_is_video, files)):
                return "video"
            if any(os.path.splitext(name)[1].lower() in IMAGES for name in files):
                return "frames"
        return "video"
    if not os.path.isfile(data):
        return "video"  # what reads it says what is wrong
    _, text = lines_of(Path(data))[0]
    return "video" if of_files(text) or _cut(text)[2] == -1 else "frames"
