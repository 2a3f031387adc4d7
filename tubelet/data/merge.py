"""One label set out of several: classes under common names, each video once, none of validation's.

As K710 was made of Kinetics-400, 600 and 700 (arXiv 2303.16727), but for one thing: a video that
is in the training list of one set and in the validation list of another leaves the training list
here. Published, it left the validation list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from rich.table import Table

from tubelet.data import frames
from tubelet.data.listfiles import number
from tubelet.data.lists import VideoList
from tubelet.data.renames import Rename, renamed
from tubelet.errors import TubeletError

Identity = Literal["stem", "youtube", "path"]
CLASHES = 0.05  # share of a list whose names may stand for several videos before names are no ids
SHOWN = 5


class Clip(NamedTuple):
    """A video of a set, its class as it is called in the merged set."""

    of: str
    path: str
    label: str


@dataclass(frozen=True)
class Count:
    """What became of a list."""

    listed: int
    in_validation: int  # of any set: left out of training
    duplicates: int  # of a video listed before
    conflicts: int  # of both: with another label there
    kept: int


@dataclass(frozen=True)
class Merged:
    """A merged label set. `classes` are sorted, as `read_list` numbers those of a written list."""

    classes: tuple[str, ...]
    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    counts: Mapping[str, Mapping[str, Count]]  # "train" or "val" -> set -> count
    conflicts: tuple[tuple[Clip, Clip], ...]  # what was kept, and what was not
    names: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]  # set -> own names, merged names

    def maps(self) -> dict[str, dict[str, Any]]:
        """For each set: its classes in its order, their rows in the merged head, their names there."""
        row = {name: at for at, name in enumerate(self.classes)}
        return {
            of: {"classes": own, "rows": [row[name] for name in merged], "merged": merged}
            for of, (own, merged) in self.names.items()
        }

    def report(self) -> dict[str, Any]:
        """All counts, and the conflicts, as plain values."""
        counts = {
            split: {of: asdict(count) for of, count in sets.items()}
            for split, sets in self.counts.items()
        }
        conflicts = [
            {"kept": kept._asdict(), "left_out": left._asdict()} for kept, left in self.conflicts
        ]
        sizes = {of: len(own) for of, (own, _) in self.names.items()}
        videos = {"train": len(self.train), "val": len(self.val)}
        return {
            "classes": len(self.classes),
            "classes_of": sizes,
            "videos": videos,
            "counts": counts,
            "conflicts": conflicts,
        }

    def table(self) -> Table:
        """What a person should see, for rich."""
        names = ("listed", "in validation", "duplicates", "other label", "kept")
        table = Table("list", "classes", *names, title=f"{len(self.classes)} classes")
        for split, sets in self.counts.items():
            for of, count in sets.items():
                classes = str(len(self.names[of][0]))
                table.add_row(f"{of} {split}", classes, *map(str, asdict(count).values()))
            kept = sum(count.kept for count in sets.values())
            table.add_row(f"all {split}", str(len(self.classes)), "", "", "", "", str(kept))
            table.add_section()
        return table


def merge(
    train: Mapping[str, VideoList],
    val: Mapping[str, VideoList],
    renames: Sequence[Rename] = (),
    identity: Identity = "stem",
) -> Merged:
    """Labelled lists by set -> one list, in the order of the sets and of their lists.

    Args:
        val: of the same sets, with the numbers of their training lists.
        identity: what makes two files one video: the name without its ending; the first eleven
            characters of it (YouTube's); or the path.

    Raises:
        TubeletError: names that cannot be (see `renamed`), a set of which no training video is
            left, a class without any, names of files that cannot be ids.
    """
    names = renamed({of: videos.classes for of, videos in train.items()}, renames)
    classes = tuple(sorted({name for of in names.values() for name in of}))
    _check_names(classes)
    tested, val_counts, val_conflicts = _once(val, names, identity, {})
    found, counts, conflicts = _once(train, names, identity, tested)
    _check_left(train, names, found.values(), counts)
    return Merged(
        classes,
        tuple(found.values()),
        tuple(tested.values()),
        {"train": counts, "val": val_counts} if val else {"train": counts},
        tuple(conflicts + val_conflicts),
        {of: (videos.classes, names[of]) for of, videos in train.items()},
    )


def id_of(path: str, identity: Identity) -> str:
    """The id of a video's file, or of its folder of frames."""
    if identity == "path":
        return os.path.abspath(path)
    folder = frames.parse(path)
    name = os.path.basename(path if folder is None else folder.folder)
    stem = os.path.splitext(name)[0] if folder is None else name
    if identity == "stem":
        return stem
    if not re.match(r"[\w-]{11}", stem):
        raise TubeletError(
            f"{path} is not called by a YouTube id, of eleven letters, digits, - and _: expected "
            "names such as abcdefghijk_000010_000020.mp4, or --id stem."
        )
    return stem[:11]


def _once(
    lists: Mapping[str, VideoList],
    names: Mapping[str, Sequence[str]],
    identity: Identity,
    elsewhere: Mapping[str, Clip],
) -> tuple[dict[str, Clip], dict[str, Count], list[tuple[Clip, Clip]]]:
    """-> each video once, the first time it is listed, by id; counts; what disagrees on labels.

    Videos that are `elsewhere` are left out.
    """
    found: dict[str, Clip] = {}
    counts: dict[str, Count] = {}
    conflicts: list[tuple[Clip, Clip]] = []
    for of, videos in lists.items():
        tested = duplicates = 0
        before = len(found)
        clashes: list[tuple[Clip, Clip]] = []
        for entry in videos.entries:
            assert isinstance(entry.label, int)
            clip = Clip(of, entry.path, names[of][entry.label])
            key = id_of(clip.path, identity)
            first = elsewhere.get(key) or found.setdefault(key, clip)
            if first is clip:
                continue
            tested += key in elsewhere
            duplicates += key not in elsewhere
            clashes += [(first, clip)] if first.label != clip.label else []
        if identity == "stem":
            _check_ids(videos, clashes)
        kept = len(found) - before
        counts[of] = Count(len(videos), tested, duplicates, len(clashes), kept)
        conflicts += clashes
    return found, counts, conflicts


def _check_ids(videos: VideoList, clashes: Sequence[tuple[Clip, Clip]]) -> None:
    """Refuses names that are used again for other videos of a set, such as 0.mp4 in each folder."""
    own = [(a, b) for a, b in clashes if a.of == b.of and a.path != b.path]
    if len(own) > CLASHES * len(videos):
        first, second = own[0]
        raise TubeletError(
            f"{videos.source}: {len(own)} of {len(videos)} videos have the name of another one of their "
            f"set and another label, such as {first.path} ({first.label}) and {second.path} "
            f"({second.label}). Their names do not tell videos apart: pass --id path, which takes "
            "files of different paths for different videos."
        )


def _check_names(classes: Sequence[str]) -> None:
    """Refuses names that a list would not give back."""
    for name in classes:
        if not name or name != name.strip() or re.search(r"[;|\r\n]", name) or number(name) != name:
            raise TubeletError(
                f"A class is called {name!r}, and a list would not give it back: expected a text that "
                "is no number, without ; and |. Rename it (--rename)."
            )


def _check_left(
    train: Mapping[str, VideoList],
    names: Mapping[str, Sequence[str]],
    clips: Any,
    counts: Mapping[str, Count],
) -> None:
    """Refuses a set, and a class, of which no video is left to train on."""
    for of, count in counts.items():
        if not count.kept:
            raise TubeletError(
                f"No training video of {of} is left: of {count.listed}, {count.in_validation} are in a "
                f"validation list and {count.duplicates} were listed before. Leave the set out, or say "
                "what tells its videos apart (--id stem, youtube or path)."
            )
    have = {clip.label for clip in clips}
    for of in train:
        without = [name for name in names[of] if name not in have]
        if without:
            raise TubeletError(
                f"{len(without)} of {len(names[of])} classes of {of} have no training video in the "
                f"merged set: {', '.join(map(repr, without[:SHOWN]))}. A head trained on it would have "
                "no row for them: give lists with videos of each class."
            )
