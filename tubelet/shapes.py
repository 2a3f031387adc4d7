"""The letters of the house: the shapes that travel between its parts.

`B` batch, `C` channels, `T H W` pixels, `t h w` the token grid, `N = t*h*w`, `K` tokens kept,
`L` tokens that a backbone returns, `M` tokens asked for, `k` masks per clip, `D` width,
`P` target width. Tokens are numbered time slowest, then row, then column:
`n = (it * h + ih) * w + iw`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from tubelet.errors import TubeletError

# What a task returns by name: "loss", and what else the log shows; a sum, and what it is divided by.
Terms = dict[str, tuple[Tensor, Tensor | float]]


class Grid(NamedTuple):
    """A token grid: `t` slots in time, `h` rows, `w` columns."""

    t: int
    h: int
    w: int

    @property
    def size(self) -> int:
        """N, the number of tokens."""
        return self.t * self.h * self.w


class Patch(NamedTuple):
    """The pixels behind one token: `t` frames (the tubelet), `h` rows, `w` columns."""

    t: int
    h: int
    w: int

    def grid_for(self, frames: int, height: int, width: int) -> Grid:
        """The grid of a clip [C, frames, height, width]; an error where it does not divide."""
        clip = (frames, height, width)
        wrong = [
            f"{name} {got} is no multiple of {unit}"
            for name, got, unit in zip(("num_frames", "height", "width"), clip, self, strict=True)
            if got < unit or got % unit
        ]
        if wrong:
            fit = "x".join(
                str(max(unit, got // unit * unit)) for got, unit in zip(clip, self, strict=True)
            )
            raise TubeletError(
                f"A clip of {'x'.join(map(str, clip))} (frames x height x width) cannot be cut into "
                f"tubelets of {'x'.join(map(str, self))}: {'; '.join(wrong)}. Nearest that fits: {fit}."
            )
        return Grid(*(got // unit for got, unit in zip(clip, self, strict=True)))


Sampling = Literal["dense", "dense_fps", "uniform", "seconds"]


@dataclass(frozen=True)
class ClipSpec:
    """What a clip is, the same in training, evaluation and prediction; saved with the weights.

    `sampling`: "dense" takes every `sampling_rate`-th frame from a random start; "dense_fps" means
    that stride in frames at `target_fps`, so that a clip lasts as long whatever the video's frame
    rate, and spreads the frames over the whole span; "uniform" cuts the video into `num_frames`
    equal segments and takes a frame of each; "seconds" spreads the frames evenly over `seconds`
    of the video, whatever its frame rate.
    """

    num_frames: int = 16
    sampling: Sampling = "dense"
    sampling_rate: int = 4  # frames from one to the next, for "dense" and "dense_fps"
    target_fps: float = 30.0  # frames a second in which `sampling_rate` counts, for "dense_fps"
    seconds: float = 2.0  # span of a clip, for "seconds"
    size: tuple[int, int] = (224, 224)  # height, width in pixels
    # How evaluation and prediction cut their views; training has its augmentation.
    crop_pct: float = 1.0  # share of the short side in the crop: 0.875 is 224 of 256 pixels
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    in_chans: int = 3  # 3: RGB; 1: grey

    def __post_init__(self) -> None:
        if not 0 < self.crop_pct <= 1:
            raise TubeletError(
                f"crop_pct is {self.crop_pct:g}: the share of a frame's short side that a test crop "
                "has, above 0 and at most 1 (0.875: 224 of 256 pixels)."
            )


@dataclass
class Sample:
    """One training sample, as a worker hands it to the collate."""

    views: dict[str, Tensor]  # uint8 [C,T,H,W]; "clip" is the student's; cached features [N,P]
    path: str
    index: int  # in the list
    seed: int  # of this sample: a hash of (seed, epoch, index, repeat), below 2**63
    hidden: Tensor | None = None  # bool [k,N]
    asked: Tensor | None = None  # bool [k,N]; None: what is hidden is asked for
    label: Tensor | None = None  # int64 [], or float32 [classes] (multi-label, regression)
    unreadable: tuple[str, ...] = ()  # paths that this sample replaces
    spent: dict[str, float] = field(default_factory=dict)  # seconds of a worker, by `clock.Part`


@dataclass
class Masks:
    """k masks for each of B clips, as indices of static size: no boolean select in any model."""

    hidden: Tensor  # bool [B,k,N]; True = hidden from the encoder
    keep: Tensor  # int64 [B,k,K], ascending: the tokens that a dropping encoder takes
    asked: Tensor  # int64 [B,k,M]: what the decoder is asked for, ascending up to its padding
    weight: Tensor  # float32 [B,k,M]; 0 for padding

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Masks:
        return _each(self, lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Masks:
        return _each(self, lambda x: x.pin_memory())


@dataclass
class Tokens:
    """What a backbone returns."""

    x: Tensor  # [B,L,D] (B*k rows where there are k masks a clip)
    at: Tensor  # int64 [B,L]: the grid position of each token
    prefix: Tensor  # [B,R,D]: class tokens; R may be 0
    grid: Grid
    layers: tuple[Tensor, ...] = ()  # [B,L,D] each: the blocks asked for by `layers=`
    layer_grids: tuple[Grid, ...] = ()  # of these; an MViT's inner blocks have finer ones


@dataclass
class Batch:
    """What the collate makes of samples and the loop hands to a task."""

    views: dict[str, Tensor]  # uint8 [B,C,T,H,W]; features from a cache: float16 [B,N,P]
    paths: list[str]
    index: Tensor  # int64 [B]
    seeds: Tensor  # int64 [B]
    masks: Masks | None = None
    labels: Tensor | None = (
        None  # int64 [B], or float32 [B,classes] (soft, multi-label, regression)
    )
    unreadable: tuple[str, ...] = ()
    sources: dict[str, int] = field(default_factory=dict)  # clips of each, in a run of several
    spent: dict[str, float] = field(default_factory=dict)  # seconds of a worker, by `clock.Part`

    @property
    def clip(self) -> Tensor:
        """uint8 [B,C,T,H,W]: the student's view."""
        return self.views["clip"]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return _each(self, lambda x: x.to(device, non_blocking=non_blocking))

    def part(self, clips: slice) -> Batch:
        """The batch of these clips alone; what is told of the whole (`unreadable`, `sources`) stays."""
        return replace(_each(self, lambda x: x[clips]), paths=self.paths[clips])

    def pin_memory(self) -> Batch:
        """Called by the loader where the device copies from pinned memory."""
        return _each(self, lambda x: x.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Memory that another stream has filled is given to nobody else before this one has used it."""
        _each(self, lambda x: x.record_stream(stream) or x)


Record = TypeVar("Record", Masks, Batch)


def _each(record: Record, of: Callable[[Tensor], Tensor]) -> Record:
    """The record with `of` applied to every tensor in it, also inside dicts and masks."""

    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return of(value)
        if isinstance(value, Masks):
            return _each(value, of)
        if isinstance(value, dict):
            return {key: one(item) for key, item in value.items()}
        return value

    return replace(record, **{f.name: one(getattr(record, f.name)) for f in fields(record)})


def patchify(clip: Tensor, patch: Patch) -> Tensor:
    """[B,C,T,H,W] -> [B,N,C,pt,ph,pw]: the pixels of each token, in the order of a Conv3d kernel."""
    b, c, *space = clip.shape
    t, h, w = patch.grid_for(*space)
    cut = clip.reshape(b, c, t, patch.t, h, patch.h, w, patch.w)
    return cut.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, t * h * w, c, *patch)


def unpatchify(patches: Tensor, grid: Grid) -> Tensor:
    """[B,N,C,pt,ph,pw] -> [B,C,T,H,W]: the inverse of `patchify`."""
    b, _, c, pt, ph, pw = patches.shape
    cut = patches.reshape(b, *grid, c, pt, ph, pw).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return cut.reshape(b, c, grid.t * pt, grid.h * ph, grid.w * pw)


def gather(x: Tensor, at: Tensor) -> Tensor:
    """x [B,N,...], at [B,M] -> [B,M,...]: the rows `at` of each item."""
    # By whole rows of all items together: several times as fast as a gather of numbers.
    first = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=at.device)
    return x.flatten(0, 1).index_select(0, (at + first[:, None]).flatten()).unflatten(0, at.shape)
