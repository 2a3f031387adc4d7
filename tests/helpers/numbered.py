"""Videos whose frames show their numbers, in every container and codec that is hard to count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

FRAMES, HEIGHT, WIDTH = 41, 48, 64
X264 = {"preset": "ultrafast", "g": "12", "bf": "3", "crf": "10"}
OPEN_GOP = X264 | {"x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
X265 = {"preset": "ultrafast", "x265-params": "keyint=12:bframes=3:log-level=none"}
MPEG2 = {"g": "12", "bf": "3", "qmax": "4", "sc_threshold": "1000000000"}
VP = {"deadline": "realtime", "cpu-used": "8", "g": "12", "lag-in-frames": "16", "b": "90k"}

# name -> how to write it; between them every way that frames are found and every hard container.
FILES: dict[str, dict[str, Any]] = {
    "b_frames.mp4": {"options": X264},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.mkv": {"options": OPEN_GOP},
    "all_key.mp4": {"options": X264 | {"g": "1"}},
    "one_key.mp4": {"options": X264 | {"g": "250"}},
    "refresh.mkv": {"options": X264 | {"x264-params": "intra-refresh=1"}},
    "ten_bit.mp4": {"options": X264, "pixels": "yuv420p10le"},
    "hevc.mp4": {"codec": "libx265", "options": X265},
    "hevc_ten_bit.mkv": {"codec": "libx265", "options": X265, "pixels": "yuv420p10le"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VP},
    "vp8.webm": {"codec": "libvpx", "options": VP | {"auto-alt-ref": "1", "deadline": "good"}},
    "plain.avi": {"codec": "mpeg4", "options": {"g": "12"}},
    "guessed_times.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "h264.avi": {"options": X264},
    "no_times.h264": {"options": X264, "container": "h264"},
    "broadcast.ts": {"options": OPEN_GOP},
    "fragments.mp4": {"options": X264, "mux": {"movflags": "frag_keyframe+empty_moov"}},
    "late.mp4": {"options": X264, "pts": [100 + i for i in range(FRAMES)]},
    "late.mkv": {"options": X264, "pts": [100 + i for i in range(FRAMES)]},
    "edited.mp4": {"options": X264, "pts": [i - 7 for i in range(FRAMES)]},
    "same_times.mkv": {"options": X264, "rate": 2000},
    "mjpeg.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "mpeg2.mp4": {"codec": "mpeg2video", "options": MPEG2 | {"flags": "+cgop"}},
    "mpeg2_open_gop.mkv": {"codec": "mpeg2video", "options": MPEG2},
    "moving.gif": {"codec": "gif", "pixels": "rgb8"},
    "odd.mkv": {"codec": "ffv1", "size": (35, 51)},
    "odd.webm": {"codec": "libvpx-vp9", "options": VP, "size": (35, 51)},
}


def numbered(count: int = FRAMES, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """uint8 [n,H,W,3]: moving noise; the upper half shows the number as 6 black or white bars."""
    height, width = size
    rng = np.random.default_rng(0)
    noise = rng.integers(64, 192, (height, width, 3), dtype=np.uint8)
    frames = np.stack([np.roll(noise, (i, 2 * i), (0, 1)) for i in range(count)])
    for i in range(count):
        for bit in range(6):
            frames[i, : height // 2, bit * width // 6 : (bit + 1) * width // 6] = 255 * (
                i >> bit & 1
            )
    return frames


def numbers_in(frames: torch.Tensor) -> list[int]:
    """[n,H,W,3] -> the numbers that `numbered` drew."""
    width, height = frames.shape[2], frames.shape[1]
    centres = [(2 * bit + 1) * width // 12 for bit in range(6)]
    bars = frames[:, height // 4, centres].float().mean(-1) > 128
    return (bars * 2 ** torch.arange(6)).sum(-1).tolist()


def write(path: Path, frames: np.ndarray, **how: Any) -> Path:
    """Encodes uint8 [n,H,W,3]."""
    pts = how.get("pts", range(len(frames)))
    with av.open(str(path), "w", format=how.get("container"), options=how.get("mux", {})) as out:
        stream = out.add_stream(how.get("codec", "libx264"), rate=how.get("rate", 25))
        stream.options = how.get("options", {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = how.get("pixels", "yuv420p")
        if "time_base" in how:
            stream.codec_context.time_base = how["time_base"]
        for image, at in zip(frames, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = at
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def plain(path: Path) -> np.ndarray:
    """Everything that PyAV puts out from the start, in order: the slow reference."""
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24", threads=1) for f in container.decode(video=0)]
    return np.stack(frames)
