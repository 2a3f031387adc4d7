"""Several sources in one run: each a list or a folder with its own root, kind, stride and weight."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Literal, get_args

from tubelet.data import frames
from tubelet.data.clips import TRIES, all_failed
from tubelet.data.decode import DecodeError, Decoder, Video
from tubelet.data.framelists import read_frame_folders, refuse_gaps
from tubelet.data.lists import Part, VideoList, read_list
from tubelet.data.order import shares, weighted
from tubelet.data.pictures import IMAGES
from tubelet.data.sampling import draw_frames, rng_for
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec

Kind = Literal["video", "frames", "images"]


@dataclass(frozen=True)
class DataSource:
    """One source of a mixed run. Raises TubeletError for values that do not go together."""

    name: str
    data: str  # a list or a folder
    root: str = ""  # joined in front of relative paths in the list
    kind: Kind = "video"  # "frames": folders of frames; "images": clips that stand still
    sampling_rate: int | None = None  # from frame to frame of a clip; None: the run's sampling
    target_fps: float | None = None  # `sampling_rate` counts in frames at that rate; None: its own
    fps: float | None = None  # at which the frames of folders were saved
    template: str = "img_{:05}.jpg"  # names of frames
    start: int = 1  # number of a folder's first frame, where the list does not say
    weight: float | None = None  # share of the draws, relative; None: its number of videos

    def __post_init__(self) -> None:
        wrong = [
            f"{field} is {value}: expected {'0 or more' if field == 'weight' else 'above 0'}"
            for field in ("sampling_rate", "target_fps", "fps", "weight")
            if (value := getattr(self, field)) is not None
            and not (0 < value < math.inf or (field == "weight" and value == 0))
        ]
        if not self.name or not self.data:
            wrong.append("a source has a name, and data (a list or a folder)")
        if self.kind not in get_args(Kind):
            wrong.append(f"kind is {self.kind!r}: expected one of {', '.join(get_args(Kind))}")
        of_frames = [f for f in fields(self) if f.name in ("fps", "template", "start")]
        changed = [f.name for f in of_frames if getattr(self, f.name) != f.default]
        if changed and self.kind != "frames":
            wrong.append(f"{' and '.join(changed)} are of kind=frames, and this is {self.kind}")
        if self.kind == "images" and (self.sampling_rate or self.target_fps):
            wrong.append("images have no frame rate: leave out sampling_rate and target_fps")
        if self.start < 0:
            wrong.append(f"start is {self.start}: expected 0 or more")
        frames.checked(self.template)
        if wrong:
            raise TubeletError(f"Source {self.name or self.data!r}: {'; '.join(wrong)}.")

    def clip(self, clip: ClipSpec) -> ClipSpec:
        """The run's clip as it is taken from this source."""
        if self.target_fps is not None:
            rate = self.sampling_rate or clip.sampling_rate
            changed = {"sampling": "dense_fps", "target_fps": self.target_fps}
            clip = replace(clip, sampling_rate=rate, **changed)
        elif self.sampling_rate is not None:
            clip = replace(clip, sampling="dense", sampling_rate=self.sampling_rate)
        if self.kind == "frames" and self.fps is None and clip.sampling in ("dense_fps", "seconds"):
            raise TubeletError(
                f"Source {self.name!r}: {clip.sampling!r} counts in time, and at which rate its "
                "frames were saved is not known: say fps=12, or sampling_rate=2 for a stride in "
                "frames."
            )
        return clip


def read_sources(sources: Sequence[DataSource], clip: ClipSpec) -> VideoList:
    """The lists of all sources, one after the other, as one list with parts.

    Raises:
        TubeletError: a source that is empty or cannot be read, a kind that does not fit, names
            given twice, weights that cannot be.
    """
    _check(sources)
    specs = [source.clip(clip) for source in sources]
    lists: list[VideoList] = []
    complete: list[bool] = []
    for source in sources:
        try:
            videos, seen = _read(source)
        except TubeletError as error:
            raise TubeletError(f"Source {source.name!r}: {error}") from error
        lists.append(videos)
        complete.append(seen)
    firsts = [0, *accumulate(map(len, lists))]
    rows = zip(sources, lists, specs, firsts, complete, strict=False)
    return VideoList(
        tuple(entry for videos in lists for entry in videos.entries),
        source=f"{len(sources)} sources",
        notes=tuple(f"{s.name}: {n}" for s, v in zip(sources, lists, strict=True) for n in v.notes),
        parts=tuple(
            Part(s.name, first, len(v), s.weight, spec, v.fingerprint(), seen)
            for s, v, spec, first, seen in rows
        ),
    )


def _check(sources: Sequence[DataSource]) -> None:
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TubeletError(f"Two sources are called {twice[0]!r}: give each a name of its own.")
    without = [source.name for source in sources if source.weight is None]
    if without and len(without) < len(sources):
        raise TubeletError(
            f"Some sources have a weight, and {', '.join(without)} none: give every source one, or "
            "none of them (then each is drawn as often as it has videos)."
        )
    if not without and not any(source.weight for source in sources):
        raise TubeletError("The weights of all sources are 0: nothing would be drawn.")


def _read(source: DataSource) -> tuple[VideoList, bool]:
    """The list of a source, and whether all that it names was looked for."""
    if source.kind == "frames":
        return read_frame_folders(
            source.data,
            root=source.root,
            template=source.template,
            start=source.start,
            fps=source.fps,
        )
    videos = read_list(source.data, root=source.root, kind="unlabelled")
    for entry in videos.entries:
        if (os.path.splitext(entry.path)[1].lower() in IMAGES) != (source.kind == "images"):
            raise TubeletError(
                f"{entry.path} is no {source.kind.removesuffix('s')}, and its kind is "
                f"{source.kind!r}: expected kind=video, kind=frames for folders of frames, or "
                "kind=images for pictures that stand still."
            )
    return videos, True


def examine(videos: VideoList, decoder: Decoder) -> None:
    """Looks for the frames that lists count, and for a readable video in every source.

    Raises TubeletError: frame folders with gaps, a source of which ten videos (or all) cannot be
    decoded.
    """
    for part in videos.parts:
        paths = [e.path for e in videos.entries[part.first : part.first + part.videos]]
        gaps = [] if part.complete else [*frames.gaps(paths).values()]
        refuse_gaps(f"Source {part.name!r}", gaps, len(paths))
        reasons: list[str] = []
        tried = paths[:: max(1, len(paths) // TRIES)][:TRIES]
        for path in tried:
            try:
                with Video(path, decoder=decoder) as video:
                    info = video.info
                    video.frames(draw_frames(part.clip, info.frames, info.fps, rng_for(0, 0, 0)))
                break
            except (DecodeError, OSError) as error:
                reasons.append(str(error))
        if len(reasons) == len(tried):
            raise all_failed(reasons, len(paths), part.name)


def table(videos: VideoList) -> list[str]:
    """What a person should see of a mix: a line for each source."""
    how = "by weight" if weighted(videos.parts) else "by their videos"
    rows = [("source", "videos", f"share, {how}", "clips")]
    for part, share in zip(videos.parts, shares(videos.parts), strict=True):
        rows.append((part.name, str(part.videos), f"{share:.1%}", _described(part.clip)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[c.ljust(width) for c, width in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]


def _described(clip: ClipSpec) -> str:
    if clip.sampling == "dense":
        return f"{clip.num_frames} frames, every {clip.sampling_rate}"
    if clip.sampling == "dense_fps":
        return (
            f"{clip.num_frames} frames, every {clip.sampling_rate} at {clip.target_fps:g} a second"
        )
    return f"{clip.num_frames} frames, {clip.sampling}"
