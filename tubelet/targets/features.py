"""Features of frozen networks as targets: the teachers of MVD (arXiv 2212.04500)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.shapes import Grid, Patch, gather

LOWERING = Lock()  # one thread at a time; of the module, as a teacher is copied and pickled
Sees = Literal["clip", "frames"]
Precision = Literal["auto", "float32", "bf16"]
# Bytes. Clips that a teacher sees together take hardly less time on a CPU than one by one (two of
# ViT-B at 16x224x224: 0.97), and their buffers grow with them.
BUFFER = 2**25
# module, its input, number of a block (-1: the last) -> [b,n,P], un-normed where it has a choice
Read = Callable[[Any, Tensor, int], Tensor]


def call(module: Any, x: Tensor, layer: int) -> Tensor:
    """The module's own output, [b,n,P]: for networks of which nothing more is known."""
    if layer != -1:
        raise TubeletError(
            f"Layer {layer} was asked for of a {type(module).__name__}, of which only the output is "
            "known: give Teacher(read=...), or layer -1."
        )
    return module(x)


class Teacher(nn.Module):
    """A network that is only read, and all that it takes to feed it with the student's clips.

    Frozen: its weights are in no `parameters()` and no `state_dict()`, `train()` leaves it in
    eval mode, and `to(device)` takes it along.

    Args:
        module: the network.
        width: P of its features.
        patch: the pixels behind one of its tokens; for images `Patch(1, p, p)`.
        sees: "clip": all frames at once; "frames": the first frame of each of the student's
            tubelets, as an image of its own (as MVD's image teacher).
        read: how the features of a block are got; default: the module's output.
        mean, std: its normalisation of pixels in [0,1], one value a channel. Must be given; a
            module that normalises by itself has mean 0 and std 1.
        layout: of what the module takes: "BCTHW" or "BTCHW" for clips, "BCHW" for images.
        size: (height, width) that it takes, where it cannot take others.
        num_frames: frames that it takes, where it cannot take others.
        prefix: tokens in front that are no patch (class token, registers).
        name: where it comes from, for messages.
        in_threads: whether two threads may read it at once, as networks without hooks or state allow.
        digest: a hash of its weights, for the header; default: made here.
    """

    mean: Tensor
    std: Tensor
    module: Any

    def __init__(
        self,
        module: Any,
        *,
        width: int,
        patch: Patch,
        sees: Sees,
        mean: Sequence[float],
        std: Sequence[float],
        read: Read = call,
        layout: Literal["BCTHW", "BTCHW", "BCHW"] = "BCTHW",
        size: tuple[int, int] | None = None,
        num_frames: int | None = None,
        prefix: int = 0,
        name: str = "",
        in_threads: bool = False,
        digest: str = "",
    ):
        super().__init__()
        name = name or type(module).__name__
        if len(mean) != len(std) or not mean:
            raise TubeletError(
                f"The normalisation of the teacher {name} is not known: give the mean and std of "
                "each channel, of pixels in [0,1], that it was trained with."
            )
        if layout == "BCHW" and sees != "frames":
            raise TubeletError(f"The teacher {name} takes images: pass sees='frames'.")
        self.__dict__["module"] = module.eval().requires_grad_(False)  # not registered
        device = next((p.device for p in module.parameters()), None)
        for column, values in (("mean", mean), ("std", std)):
            own = torch.tensor(values, device=device).view(-1, 1, 1, 1)
            self.register_buffer(column, own, persistent=False)
        self.width = width
        self.patch = patch
        self.sees: Sees = sees
        self.read = read
        self.layout = layout
        self.size = size
        self.num_frames = num_frames
        self.prefix = prefix
        self.name = name
        self.digest = digest or digest_of(module)
        self.in_threads = in_threads
        self.lowered = False

    def lower(self) -> None:
        """The weights of linear layers and convolutions as bf16, in place: once, not at each call.

        Norms and the residual stream stay float32 under autocast, without which it fails.
        """
        with LOWERING:
            if self.lowered:
                return
            for part in self.module.modules():
                if isinstance(part, (nn.Linear, nn.Conv2d, nn.Conv3d)):
                    part.to(torch.bfloat16)
            self.lowered = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Teacher:
        self.module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def grid_for(self, slots: int, frames: int, height: int, width: int) -> Grid:
        """The grid of its features for a clip that the student sees as `slots` tubelets."""
        if self.sees == "frames":
            return Grid(slots, *self.patch.grid_for(self.patch.t, height, width)[1:])
        if self.num_frames not in (None, frames):
            raise TubeletError(
                f"The teacher {self.name} takes clips of {self.num_frames} frames, and the student's "
                f"have {frames}: pass --num-frames {self.num_frames}."
            )
        fit = getattr(self.module, "grid_for", self.patch.grid_for)  # ours may cut tokens
        return fit(frames, height, width)

    def forward(
        self, clip: Tensor, slots: int, layer: int = -1, size: tuple[int, int] | None = None
    ) -> Tensor:
        """clip float [B,C,T,H,W] in [0,1] -> [B,n,P], time slowest; n: see `grid_for`.

        A clip of another size than `size` (default: the teacher's) is resized first.
        """
        if self.lowered and not torch.is_autocast_enabled(clip.device.type):
            raise TubeletError(
                f"The teacher {self.name} has taught in bf16, and holds its weights so since then: "
                "load it anew to use it in float32."
            )
        b, _, frames, *given = clip.shape
        if self.sees == "frames":
            clip = clip[:, :, :: frames // slots]  # the first of each tubelet
        size = size or self.size
        if size is not None and tuple(given) != size:
            flat = clip.transpose(1, 2).flatten(0, 1)
            flat = F.interpolate(flat, size, mode="bilinear", antialias=True)
            clip = flat.unflatten(0, (b, -1)).transpose(1, 2)
        x = (clip - self.mean) / self.std
        if self.sees == "frames":
            x = x.transpose(1, 2).flatten(0, 1)  # [B*slots,C,H,W]
            x = x if self.layout == "BCHW" else x.unsqueeze(2 if self.layout == "BCTHW" else 1)
        elif self.layout == "BTCHW":
            x = x.transpose(1, 2)
        features = self.read(self.module, x, layer)[:, self.prefix :]
        return features.unflatten(0, (b, -1)).flatten(1, 2)


class Features(nn.Module):
    """What a teacher makes of the whole clip, at the student's tokens.

    Raw outputs of a block, before any last norm (arXiv 2212.04500's code); `norm_feature` puts a
    LayerNorm without weights over them. Where the teacher's grid is another than the student's,
    its features are resized, linear on three axes. Built without a teacher, so that a model can be
    made and loaded where its teachers are not; `connect` gives it one.

    The view is the student's clip, or features [B,N,P] that were computed before (a cache).
    """

    def __init__(
        self,
        width: int,
        *,
        patch: Patch,
        grid: Grid,
        layer: int = -1,
        norm_feature: bool = False,
        size: tuple[int, int] | None = None,
        precision: Precision = "auto",
    ):
        """`patch`, `grid`: the student's. `size`: of the teacher's input; None: what it states, or
        the student's. `precision` "auto": bf16 on a GPU that has it, else float32."""
        super().__init__()
        self.width = width
        self.patch = patch
        self.grid = grid
        self.layer = layer
        self.norm_feature = norm_feature
        self.size = size
        self.precision: Precision = precision
        self.view = "clip"
        self.view_size: tuple[int, int] | None = None  # where it is another than the student's
        self.teacher: Teacher | None = None

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """Frames, height, width of the student's clips."""
        frames, height, width = (n * p for n, p in zip(self.grid, self.patch, strict=True))
        return frames, height, width

    def connect(self, teacher: Teacher) -> None:
        """Takes a teacher. TubeletError where its width or its grid does not fit."""
        frames, *own = self.clip_shape
        if teacher.width != self.width:
            raise TubeletError(
                f"The teacher {teacher.name} has features of width {teacher.width}, and this model "
                f"predicts {self.width}: choose the run for a teacher of that size, or let the width be "
                f"the teacher's (--image.width 0, --video.width 0; of MaskFeat --teacher-width 0)."
            )
        if self.size and teacher.size and self.size != teacher.size:
            raise TubeletError(
                f"The teacher {teacher.name} takes {teacher.size[0]}x{teacher.size[1]} pixels and no "
                f"others, and this model asks it for {self.size[0]}x{self.size[1]} (--image.size, "
                "--video.size): leave that out."
            )
        size = self.size or teacher.size or (own[0], own[1])
        try:
            self.teacher_grid = teacher.grid_for(self.grid.t, frames, *size)
        except TubeletError as error:
            raise TubeletError(
                f"The features of the teacher {teacher.name} cannot be mapped onto the student's "
                f"{'x'.join(map(str, self.grid))} tokens (clips of {frames}x{own[0]}x{own[1]}): {error}"
                f"{_resizing(teacher.patch, size)}"
            ) from error
        self.view_size = None if size == (own[0], own[1]) else size
        self.view = "clip" if size == (own[0], own[1]) else f"clip_{size[0]}x{size[1]}"
        self.teacher = teacher

    def forward(self, view: Tensor, asked: Tensor | None = None) -> Tensor:
        """view float [B,C,T,H,W] in [0,1], or [B,N,P]; asked int64 [B,M] -> float32 [B,M,P]."""
        features = view if view.dim() == 3 else self._compute(view)
        return select(features, asked, self.norm_feature)

    def _compute(self, clip: Tensor) -> Tensor:
        """clip float [B,C,T,H,W] in [0,1] -> [B,N,P] at the student's tokens."""
        features = self._read(clip)
        self._expect(features, self.teacher_grid.size, self.width)
        if self.teacher_grid == self.grid:
            return features
        return resize_features(features, self.teacher_grid, self.grid)

    def _read(self, clip: Tensor) -> Tensor:
        """clip float [B,C,T,H,W] in [0,1] -> what the teacher returns, [B,n,...]."""
        if self.teacher is None:
            raise TubeletError(
                "This model has no teacher: it was made without one. `connect` gives its targets "
                "theirs; `tubelet pretrain` takes --image-teacher and --video-teacher."
            )
        kind = clip.device.type
        low = in_bf16(self.precision, clip.device)
        if low:
            self.teacher.lower()
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=low):
            parts = clip.split(self._at_once(len(clip), kind))
            return torch.cat(
                [self.teacher(part, self.grid.t, self.layer, self.view_size) for part in parts]
            )

    def _expect(self, features: Tensor, *shape: int) -> None:
        """TubeletError where a clip's features are not of that shape."""
        if features.shape[1:] != shape:
            assert self.teacher is not None
            raise TubeletError(
                f"The teacher {self.teacher.name} returned features {list(features.shape)}, where its "
                f"grid {'x'.join(map(str, self.teacher_grid))} and width {self.width} make "
                f"{[len(features), *shape]}: state its patch, size and prefix tokens as they are."
            )

    def _at_once(self, clips: int, kind: str) -> int:
        """How many clips the teacher sees together: on a CPU, as its buffers stay below `BUFFER`."""
        if kind != "cpu":
            return clips
        buffer = 4 * 4 * self.width * self.teacher_grid.size  # bytes: the MLP's, float32
        return max(1, min(clips, BUFFER // buffer))

    def extra_repr(self) -> str:
        name = "none" if self.teacher is None else self.teacher.name
        return f"width={self.width}, teacher={name}, layer={self.layer}"


def _resizing(patch: Patch, size: tuple[int, int]) -> str:
    """The way out where it is height or width that does not fit."""
    fit = tuple(max(unit, got // unit * unit) for got, unit in zip(size, patch[1:], strict=True))
    if fit == size:
        return ""
    return f" With --image.size {fit[0]} {fit[1]} (or --video.size) the teacher sees the clips resized."


def select(features: Tensor, asked: Tensor | None, norm_feature: bool) -> Tensor:
    """features [B,N,P], asked int64 [B,M] -> float32 [B,M,P], an ordinary tensor."""
    features = features.clone() if asked is None else gather(features, asked)
    features = features.float()
    if norm_feature:
        features = F.layer_norm(features, features.shape[-1:], eps=1e-6)
    return features


def resize_features(features: Tensor, grid: Grid, to: Grid) -> Tensor:
    """[B,n,P] over `grid` -> [B,N,P] over `to`, linear on the three axes (half-pixel centres)."""
    volume = features.float().transpose(1, 2).unflatten(2, tuple(grid))
    return F.interpolate(volume, size=tuple(to), mode="trilinear").flatten(2).transpose(1, 2)


def digest_of(module: nn.Module) -> str:
    """A hash of all weights with their names: 16 hex digits."""
    found = hashlib.blake2b(digest_size=8)
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return found.hexdigest()


def in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether a network that is only read computes in bf16: "auto" on a GPU that has it."""
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
