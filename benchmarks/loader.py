"""Clips per CPU second: the loader against the plain path, on files made here.

    python benchmarks/loader.py [--out loader.json] [--folder FOLDER] [--rounds 12] [--quick]

Files: H.264 at 340x256 and 1280x720, 300 frames of moving texture, a key frame every 250 and every 12. Clips:
16 frames, stride 4, 224 pixels, VideoMAE's crop, 4 of each opened file and 1. Plain: PyAV decodes everything from the
key frame before the first frame wanted to the last one (once for all clips of an opened file), and each wanted frame
is made RGB, cut and resized by Pillow, and normalised in float32. Ours: `ClipDataset`, with fast and with exact
pixels; uint8, as the device normalises. All draw the same frames and boxes. One thread; CPU time of the process; the
three by turns, medians of the ratio of each turn. docs/data.md says what `fast` is.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from tubelet import masks
from tubelet.data.clips import ClipDataset, Key, collate
from tubelet.data.lists import Entry, VideoList
from tubelet.data.sampling import draw_frames, rng_for
from tubelet.data.transforms import PRETRAIN, Box, multiscale_box
from tubelet.shapes import ClipSpec, Grid, Sample

SPEC = ClipSpec(num_frames=16, sampling_rate=4, size=(224, 224))
SIZES = ((340, 256), (1280, 720))
KEYS = (250, 12)
FRAMES, FPS = 300, 30
BARS = {(340, 250): 2.0, (340, 12): 2.5}  # with 4 clips per opened file
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRID = Grid(8, 14, 14)


def texture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [H,W,3]: blocks of 4 to 64 pixels, the larger the stronger."""
    total = np.zeros((height, width, 3), np.float32)
    for side in (4, 8, 16, 32, 64):
        cells = rng.standard_normal((height // side + 1, width // side + 1, 3), np.float32)
        blocks = np.repeat(np.repeat(cells, side, 0), side, 1)
        total += blocks[:height, :width] * np.float32(side**0.5)
    low, high = total.min(), total.max()
    return ((total - low) * (255 / (high - low))).astype(np.uint8)


def moving(width: int, height: int, frames: int) -> Iterator[np.ndarray]:
    """uint8 [H,W,3] each: a camera that wanders, a square that moves otherwise, and noise."""
    rng = np.random.default_rng(0)
    far, near = texture(2 * height, 2 * width, rng), texture(height // 2, width // 2, rng)
    for i in range(frames):
        top, left = height * (1 + np.sin(i / 40)) / 2, width * (1 + np.cos(i / 55)) / 2
        image = far[int(top) :, int(left) :][:height, :width].copy()
        y, x = height * (1 + np.sin(i / 11)) / 4, width * (1 + np.cos(i / 17)) / 4
        image[int(y) :, int(x) :][: near.shape[0], : near.shape[1]] = near
        noise = rng.integers(-4, 5, image.shape, np.int16)
        yield np.clip(image + noise, 0, 255).astype(np.uint8)


def make(path: Path, width: int, height: int, key: int, frames: int) -> None:
    """Encodes a file as x264 does by default, but for its key frames."""
    begun = path.with_suffix(".part")
    with av.open(str(begun), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"g": str(key), "keyint_min": str(min(key, 25)), "threads": "1"}
        for image in moving(width, height, frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(stream.encode(None))
    begun.rename(path)


@dataclass
class Wanted:
    """One clip: its frames and its box."""

    at: np.ndarray
    box: Box


def wanted(path: Path, epoch: int, clips: int) -> list[Wanted]:
    """What `ClipDataset` draws for an epoch."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        count, size = stream.frames, (stream.height, stream.width)
    found = []
    for repeat in range(clips):
        rng = rng_for(0, epoch, 0, repeat)
        at = draw_frames(SPEC, count, FPS, rng)
        found.append(Wanted(at, multiscale_box(size, SPEC.size, PRETRAIN, rng)))
    return found


def plain(path: Path, draws: list[Wanted]) -> list[tuple[Tensor, np.ndarray]]:
    """Clips, float32 [3,T,h,w] normalised each, and their pixels before, uint8 [T,h,w,3]."""
    first = min(int(draw.at.min()) for draw in draws)
    last = max(int(draw.at.max()) for draw in draws)
    needed = {int(frame) for draw in draws for frame in draw.at}
    images: dict[int, Image.Image] = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        step = 1 / (FPS * float(stream.time_base or 0))
        container.seek(round(first * step), stream=stream)
        for frame in container.decode(stream):
            number = round((frame.pts or 0) / step)
            if number in needed:
                images[number] = Image.fromarray(frame.to_ndarray(format="rgb24"))
            if number >= last:
                break
    clips = []
    for draw in draws:
        top, left, height, width = draw.box
        corners = (left, top, left + width, top + height)
        cut = (images[int(at)].crop(corners) for at in draw.at)
        pixels = np.stack([np.asarray(x.resize(SPEC.size, Image.Resampling.BILINEAR)) for x in cut])
        planes = torch.from_numpy(pixels).permute(3, 0, 1, 2).contiguous().float().div_(255)
        for plane, mean, std in zip(planes, MEAN, STD, strict=True):  # by planes: 3 times as fast
            plane.sub_(mean).div_(std)
        clips.append((planes, pixels))
    return clips


def hide(rng: np.random.Generator) -> Tensor:
    return masks.tube(GRID, rng, mask_ratio=0.9)[None]


def dataset(path: Path, clips: int, pixels: Any) -> ClipDataset:
    videos = VideoList(entries=(Entry(str(path)),))
    config = replace(PRETRAIN, pixels=pixels)
    return ClipDataset(videos, SPEC, config, seed=0, num_sample=clips, repeats="clip", mask=hide)


def seconds(job: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a job, and what it returns."""
    begin = time.process_time()
    result = job()
    return time.process_time() - begin, result


def apart(samples: list[Sample], clips: list[tuple[Tensor, np.ndarray]]) -> float:
    """Mean absolute difference of our views to the plain pixels, in grey levels."""
    pairs = zip(samples, clips, strict=True)
    levels = [
        (s.views["clip"].float() - torch.from_numpy(pixels).permute(3, 0, 1, 2)).abs().mean()
        for s, (_, pixels) in pairs
    ]
    return float(torch.stack(levels).mean())


def measure(path: Path, clips: int, rounds: int) -> dict[str, Any]:
    """One row: clips per CPU second of the three, and the ratios."""
    sides = {pixels: dataset(path, clips, pixels) for pixels in ("fast", "exact")}
    took: dict[str, list[float]] = {"plain": [], "fast": [], "exact": []}
    levels: dict[str, list[float]] = {"fast": [], "exact": []}
    for turn in range(rounds + 1):
        draws = wanted(path, turn, clips)
        times = {}
        times["plain"], expected = seconds(lambda draws=draws: plain(path, draws))
        for name, ours in sides.items():
            times[name], samples = seconds(lambda ours=ours, turn=turn: ours[Key(turn, 0)])
            if turn:
                levels[name].append(apart(samples, expected))
        for name in took if turn else ():  # the first turn warms up
            took[name].append(times[name])
    row: dict[str, Any] = {"clips_per_open": clips, "rounds": rounds}
    for name, of in took.items():
        row[f"{name}_clips_per_cpu_second"] = round(clips * rounds / sum(of), 2)
    for name, of in levels.items():
        pairs = zip(took["plain"], took[name], strict=True)
        row[f"{name}_ratio"] = round(median(a / b for a, b in pairs), 2)
        row[f"{name}_grey_levels_apart"] = round(sum(of) / len(of), 3)
    return row


def share_of_masks(path: Path, clips: int = 8) -> float:
    """The part of a worker's CPU time that drawing and packing masks is, in a batch of VideoMAE."""
    ours = dataset(path, 1, "fast")
    collate([ours[Key(0, 0)]], pack=masks.pack)
    decode, samples = seconds(lambda: [ours[Key(epoch, 0)][0] for epoch in range(clips)])
    draw, _ = seconds(lambda: [hide(rng_for(0, epoch, 0)) for epoch in range(clips)])
    stack, _ = seconds(lambda: collate([[replace(s, hidden=None)] for s in samples]))
    both, _ = seconds(lambda: collate([[s] for s in samples], pack=masks.pack))
    return (draw + max(0.0, both - stack)) / (decode + both)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in markdown."""
    lines = [
        "| file | key frame every | clips per open | plain | exact | fast | exact / plain | fast / plain "
        "| bar | exact, fast: grey levels apart |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speeds = [row[f"{name}_clips_per_cpu_second"] for name in ("plain", "exact", "fast")]
        ratios = [f"{row[f'{name}_ratio']:.2f}" for name in ("exact", "fast")]
        levels = f"{row['exact_grey_levels_apart']}, {row['fast_grey_levels_apart']}"
        cells = [row["file"], row["key_every"], row["clips_per_open"], *speeds, *ratios]
        lines.append("| " + " | ".join(map(str, [*cells, row["bar"] or "", levels])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("loader.json"))
    parser.add_argument("--folder", type=Path, help="of the files; what is there is kept")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--quick", action="store_true", help="small files, two rounds: does it run?"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="loader"))
    folder.mkdir(parents=True, exist_ok=True)
    sizes, frames = (((340, 256),), 80) if args.quick else (SIZES, FRAMES)
    rounds = 2 if args.quick else args.rounds
    rows, share = [], 0.0
    for width, height in sizes:
        for key in KEYS:
            path = folder / f"{width}x{height}_{key}_{frames}.mp4"
            if not path.exists():
                make(path, width, height, key, frames)
            for clips in (4, 1):
                bar = BARS.get((width, key)) if clips == 4 else None
                about = {"file": f"{width}x{height}", "key_every": key, "bar": bar}
                # As few turns of large frames as give the same ratio: they are slow.
                turns = max(2, rounds // 3) if width > 1000 else rounds
                rows.append(about | measure(path, clips, turns))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
            share = max(share, share_of_masks(path))
    versions = {"av": av.__version__, "torch": torch.__version__, "pillow": PIL.__version__}
    machine = {"processor": platform.processor() or platform.machine(), "system": platform.system()}
    record = {"date": datetime.now().date().isoformat(), "machine": machine, "versions": versions}
    args.out.write_text(json.dumps(record | {"share_of_masks": share, "rows": rows}, indent=1))
    print(f"\n{table(rows)}\n\nmasks: at most {share:.2%} of a worker's time\n{args.out}")


if __name__ == "__main__":
    main()
