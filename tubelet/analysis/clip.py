"""One clip of a video, to look at."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tubelet.data.decode import Decoder, Video
from tubelet.data.sampling import centre_frames, window_frames
from tubelet.data.transforms import to_channels, views_of
from tubelet.errors import TubeletError
from tubelet.shapes import ClipSpec


def read_clip(
    path: str | Path, spec: ClipSpec, start_seconds: float | None, decoder: Decoder
) -> tuple[Tensor, tuple[float, ...]]:
    """-> the centre crop uint8 [C,T,H,W] of the clip, and the moment of each frame.

    `start_seconds` None: the clip in the middle of the video.
    """
    with Video(path, decoder=decoder) as video:
        info = video.info
        if start_seconds is None:
            indices = centre_frames(spec, info.frames, info.fps)
        else:
            first = int(start_seconds * info.fps)
            if not 0 <= first < info.frames:
                raise TubeletError(
                    f"{path} lasts {info.duration_seconds:.2f} s; a clip cannot start at "
                    f"{start_seconds:g} s. Choose a start from 0 to below that."
                )
            rest = next(window_frames(spec, info.frames - first, info.fps))[2]
            indices = first + rest
        frames = to_channels(video.frames(indices), spec.in_chans)
        seconds = tuple(float(s) for s in video.timestamps[indices])
    return views_of(frames, spec)[0], seconds
