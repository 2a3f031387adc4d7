"""What a video file holds, and why one cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from tubelet.data.packets import say
from tubelet.errors import TubeletError


class DecodeError(TubeletError):
    """A file that cannot be read as a video, or a frame of it; `.path` and `.reason` say which."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it can be pickled on its way from a worker
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"Cannot decode {self.path}: {self.reason}"


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds. `frames` is exact; `fps` is the average; the size is as shown."""

    frames: int
    fps: float  # an image: 1.0
    duration_seconds: float  # frames / fps
    height: int  # pixels, after rotation
    width: int
    codec: str
    pixel_format: str
    rotation: int  # degrees counter-clockwise that show it upright: 0, 90, 180 or 270


def why_not_open(path: str, error: Exception) -> str:
    """What the first bytes of a file say of an error at opening it."""
    with open(path, "rb") as file:
        head = file.read(12)
    if head.startswith((b"ffconcat", b"#EXTM3U")):
        return "it is a list of other files, and a video was expected."
    if head[4:8] == b"ftyp":
        return f"the file is cut off or damaged: its index is missing ({say(error)})."
    return f"it is no video that FFmpeg knows ({say(error)})."
