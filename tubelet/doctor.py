"""`tubelet doctor`: what is installed, which decoders and devices work, and what to do about it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

import tubelet
from tubelet.bench import machine
from tubelet.data.decode import Video, available_decoders
from tubelet.data.isolate import cpu_cores
from tubelet.errors import TubeletError
from tubelet.train import allocator
from tubelet.train.parallel import choose_precision

State = Literal["ok", "note", "missing", "broken"]

# What each optional part of tubelet needs: extra -> (modules, what it is for).
EXTRAS = {
    "demo": (("sklearn",), "the built-in videos"),
    "torchcodec": (("torchcodec",), "a second, faster decoder"),
    "hf": (("transformers", "huggingface_hub"), "weights in Hugging Face's layout"),
    "tensorboard": (("tensorboard",), "curves of a run"),
    "tables": (("pyarrow",), "features as parquet"),
}
SMALL_SHM_GIB = 1.0  # batches on their way from the workers lie there
SMALL_DISK_GIB = 5.0
SIDE = 1024  # of the matrices whose products are timed: a report has no seconds for larger ones
PAYS = 1.2  # bf16 costs casts: products that are so little quicker do not make up for them
COLOURS: dict[State, str] = {"ok": "green", "note": "yellow", "missing": "yellow", "broken": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. "broken" is something required; "missing" something optional."""

    name: str
    state: State
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """What `doctor` found; `ok` unless something required is broken."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.state != "broken" for finding in self.findings)

    def to_json(self) -> str:
        """All findings, for a program."""
        found = [asdict(finding) for finding in self.findings]
        return json.dumps({"ok": self.ok, "findings": found}, indent=2, ensure_ascii=False)

    def table(self) -> RenderableType:
        """All findings, for rich."""
        table = Table(title="tubelet doctor", title_justify="left")
        for column in ("part", "state", "found", "what to do"):
            table.add_column(column, overflow="fold")
        for one in self.findings:
            state = Text(one.state, style=COLOURS[one.state])
            table.add_row(Text(one.name), state, Text(one.detail), Text(one.fix))
        return table


def doctor() -> Report:
    """Looks at Python, torch, devices, decoders, extras, memory and disk; decodes a test video."""
    findings = [_tubelet(), _python(), *_torch(), _ffmpeg(), *_decoders(), self_test()]
    findings += [_extra(name) for name in EXTRAS]
    findings += [_products(), _freed_memory(), _shared_memory(), _disk()]
    return Report(tuple(findings))


def _tubelet() -> Finding:
    return Finding("tubelet", "ok", f"{tubelet.__version__} in {Path(__file__).parent}")


def _python() -> Finding:
    detail = f"{platform.python_version()} on {platform.platform()}, {cpu_cores()} CPU cores"
    return Finding("python", "ok", detail)


def _torch() -> list[Finding]:
    version = torch.__version__
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    old = numbers < (2, 11)
    found = [
        Finding("torch", "broken", version, "pip install 'torch>=2.11'")
        if old
        else Finding("torch", "ok", version)
    ]
    if torch.cuda.is_available():
        for at in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(at)
            precision = choose_precision("auto", torch.device("cuda", at))
            bf16 = "bf16" if precision == "bf16" else "no bf16: runs in float32"
            found.append(
                Finding(
                    f"cuda:{at}", "ok", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {bf16}"
                )
            )
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        fix = "install torch with CUDA: see pytorch.org/get-started"
        found.append(Finding("cuda", "note", "there is a GPU, and this torch is for CPUs", fix))
    elif torch.version.cuda is not None:
        detail = f"torch is built for CUDA {torch.version.cuda}, and finds no GPU that it can use"
        found.append(Finding("cuda", "note", detail, "look at nvidia-smi and the driver's version"))
    else:
        found.append(Finding("cuda", "note", "no GPU: everything runs on the CPU, in float32"))
    return found


def _ffmpeg() -> Finding:
    versions = ", ".join(
        f"{name} {'.'.join(map(str, av.library_versions[name]))}"
        for name in ("libavcodec", "libavformat", "libswscale")
        if name in av.library_versions
    )
    return Finding("ffmpeg", "ok", f"{versions} (in PyAV's wheel)")


def _decoders() -> list[Finding]:
    found = []
    for name, state in available_decoders().items():
        if not state.startswith("missing"):
            found.append(Finding(f"decoder {name}", "ok", state))
            continue
        required = name == "pyav"
        why, _, fix = state.removeprefix("missing: ").rpartition("; ")
        found.append(Finding(f"decoder {name}", "broken" if required else "missing", why, fix))
    return found


def self_test() -> Finding:
    """Encodes a short H.264 video with PyAV, decodes it, and compares the pixels."""
    name = "encode and decode"
    frames = np.stack([np.full((64, 64, 3), 40 + 20 * i, np.uint8) for i in range(8)])
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "test.mp4")
            _encode(path, frames)
            started = time.perf_counter()
            with Video(path) as video:
                back = video.frames(range(len(frames))).numpy()
            took = time.perf_counter() - started
    except (TubeletError, OSError, ValueError) as error:
        return Finding(name, "broken", str(error), "pip install --force-reinstall av")
    worst = int(np.abs(back.astype(int) - frames).max())
    if worst > 8:  # grey levels; H.264 and the colour conversion cost 2 or 3 on flat frames
        return Finding(
            name, "broken", f"a pixel is {worst} levels off", "pip install --force-reinstall av"
        )
    return Finding(
        name, "ok", f"8 frames of H.264 in {1000 * took:.0f} ms, exact to {worst} levels"
    )


def _encode(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _extra(name: str) -> Finding:
    modules, purpose = EXTRAS[name]
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        detail = f"{purpose}: no {', '.join(missing)}"
        return Finding(f"extra {name}", "missing", detail, f"pip install 'tubelet[{name}]'")
    return Finding(f"extra {name}", "ok", purpose)


def _products() -> Finding:
    """A step is products of matrices for the most part: their rates say whether bf16 pays."""
    full, low = (machine.rate(kind, side=SIDE) for kind in (torch.float32, torch.bfloat16))
    detail = f"{full / 1e9:.0f} GFLOP/s in float32 and {low / 1e9:.0f} in bf16, on the CPU: "
    if low < PAYS * full:
        return Finding("products", "ok", detail + "--precision bf16 does not pay there")
    return Finding("products", "ok", detail + f"bf16 is {low / full:.1f}x", "--precision bf16")


def _freed_memory() -> Finding:
    """On CPUs a step takes about a tenth longer where the system clears memory for each use."""
    if allocator.keep_freed():
        return Finding("freed memory", "ok", "is kept for the next step (glibc's mallopt)")
    said = allocator.chosen()
    if said:
        detail = f"is treated as the environment says ({', '.join(said)})"
        return Finding("freed memory", "note", detail, "unset it to let tubelet choose")
    return Finding("freed memory", "note", "is given back to the system: no glibc here")


def _shared_memory() -> Finding:
    name = "shared memory"
    if not os.path.isdir("/dev/shm"):
        return Finding(name, "ok", "not by /dev/shm on this system")
    free = shutil.disk_usage("/dev/shm").free / 2**30
    if free < SMALL_SHM_GIB:
        fix = "docker run --shm-size=8g; or --workers 0"
        return Finding(name, "note", f"{free:.2f} GiB free: loading workers may die", fix)
    return Finding(name, "ok", f"{free:.1f} GiB free in /dev/shm")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free / 2**30
    if free < SMALL_DISK_GIB:
        return Finding("disk", "note", f"{free:.2f} GiB free here", "checkpoints may not fit")
    return Finding("disk", "ok", f"{free:.0f} GiB free here")
