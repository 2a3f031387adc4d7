"""What `prepare` has made in a folder, noted file by file, so that it need not be made again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tubelet.data.prepare.reencode import BEGUN, Made, Settings
from tubelet.errors import TubeletError
from tubelet.files import replace_file

NAME = "prepared.ndjson"  # no list, by its ending: the loader does not take it for one
FORMAT = 2  # of the notes and of the files: another one means that they are made in another way


@dataclass(frozen=True)
class Note:
    """One file that was made, and what it was made of."""

    source: str  # absolute path
    size: int  # of the source, in bytes
    mtime_ns: int
    bytes: int  # of what was made
    frames: int
    cpu_seconds: float
    copied: bool


class Ledger:
    """The notes of a folder. A line is written when its file is whole, so a kill costs one file."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.notes: dict[str, Note] = {}  # by place in the folder
        self.lists: dict[str, str] = {}  # name of a list -> the list that it was made of
        self._sizes: dict[str, dict[str, int]] = {}

    def has(self, source: str, place: str) -> bool:
        """Whether the file at this place is whole, and of this source as it is now."""
        note = self.notes.get(place)
        if note is None or note.bytes != self._size(place):
            return False
        try:
            now = os.stat(source)
        except OSError:
            return False
        return (note.size, note.mtime_ns) == (now.st_size, now.st_mtime_ns)

    def refuse_others(self, places: Mapping[str, str]) -> None:
        """Refuses to put videos (path -> place) where another one of a source that is there still is."""
        for source, place in places.items():
            note = self.notes.get(place)
            if note is not None and note.source != source and os.path.exists(note.source):
                raise TubeletError(
                    f"{self.folder / place} was made of {note.source}, and {source} would take its "
                    "place: pass another folder for this source."
                )

    def begin(self) -> None:
        """Makes the folder and the file of notes, where they are not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / NAME
        if not path.exists():
            text = json.dumps({"format": FORMAT, **asdict(self.settings)}) + "\n"
            replace_file(path, lambda begun: begun.write_text(text))

    def note(self, place: str, made: Made) -> None:
        """Notes a file that was just made."""
        now = os.stat(made.source)
        note = Note(
            source=made.source,
            size=now.st_size,
            mtime_ns=now.st_mtime_ns,
            bytes=made.bytes_after,
            frames=made.frames,
            cpu_seconds=round(made.cpu_seconds, 3),
            copied=made.copied,
        )
        self.notes[place] = note
        self._sizes.clear()
        self._add({"place": place, **asdict(note)})

    def write_list(self, file: Path, text: str) -> None:
        """Writes a list beside the videos; refuses to replace one that was made of another list."""
        source, name = os.path.abspath(file), file.name
        before = self.lists.get(name)
        if before is not None and before != source and os.path.exists(before):
            raise TubeletError(
                f"{self.folder / name} was made of {before}, and {file} has the same name: rename it, "
                "or pass another folder. The videos are there, and the list is as it was."
            )
        replace_file(self.folder / name, lambda begun: begun.write_text(text, encoding="utf-8"))
        if before != source:
            self.lists[name] = source
            self._add({"list": name, "source": source})

    def _add(self, record: dict[str, Any]) -> None:
        # A line that a kill has cut off ends here, and is left out when notes are read.
        with open(self.folder / NAME, "r+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
                file.write(b"\n" if torn else b"")
            file.write(json.dumps(record).encode() + b"\n")

    def _size(self, place: str) -> int:
        """Bytes of the file at a place, or -1; a folder is looked at once."""
        folder, name = os.path.split(place)
        if folder not in self._sizes:
            try:
                with os.scandir(self.folder / folder) as found:
                    self._sizes[folder] = {e.name: e.stat().st_size for e in found if e.is_file()}
            except OSError:
                self._sizes[folder] = {}
        return self._sizes[folder].get(name, -1)


def claim(folder: Path, settings: Settings) -> Ledger:
    """The notes of a folder that is empty, not there, or of earlier work with the same settings.

    Raises `TubeletError` for a folder of something else. Nothing is written.
    """
    ledger = Ledger(folder, settings)
    path = folder / NAME
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or _holds_more(folder)):
            raise TubeletError(
                f"{folder} exists and holds no prepared videos: choose another folder for them."
            )
        return ledger
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    try:
        head = json.loads(lines[0])
        made_with = {name: value for name, value in head.items() if name != "format"}
        known = head["format"] == FORMAT
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise TubeletError(f"{path} cannot be read ({error}): choose another folder.") from error
    if not known:
        raise TubeletError(
            f"The videos in {folder} were made by another version of tubelet, in another way. Choose "
            "another folder, or remove this one."
        )
    wanted = asdict(settings)
    if made_with != wanted:
        names = sorted(made_with.keys() | wanted.keys())
        other = [
            f"--{name.replace('_', '-')} was {made_with.get(name)}, now {wanted.get(name)}"
            for name in names
            if made_with.get(name) != wanted.get(name)
        ]
        raise TubeletError(
            f"The videos in {folder} were made with other settings: "
            f"{'; '.join(other)}. Choose another folder, or remove this one."
        )
    _read(lines[1:], ledger)
    return ledger


def _holds_more(folder: Path) -> bool:
    """Whether there is more than what a process that was killed at its beginning leaves."""
    return any(not path.name.endswith(BEGUN) for path in folder.iterdir())


def _read(lines: list[str], ledger: Ledger) -> None:
    for line in lines:
        try:
            record = json.loads(line)
            if "list" in record:
                ledger.lists[record["list"]] = record["source"]
            else:
                place = record.pop("place")
                ledger.notes[place] = Note(**record)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # cut off by a kill: that file is made again
