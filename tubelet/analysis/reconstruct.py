"""What a masked model sees and what it makes of the rest: a picture strip and an animation.

Each kind of target has a view of its own: pixels are put back into the clip, histograms of
gradients become strokes, features become colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tubelet import masks as draws
from tubelet.analysis import picture, views
from tubelet.analysis.clip import read_clip
from tubelet.data.sampling import rng_for
from tubelet.errors import TubeletError
from tubelet.masks import pack
from tubelet.model import Branch, MaskedModel
from tubelet.shapes import ClipSpec, Grid
from tubelet.targets.hog import Hog
from tubelet.targets.ids import PseudoLabels
from tubelet.targets.pixels import Pixels
from tubelet.train.parallel import choose_device

MaskFunction = Callable[[Grid, np.random.Generator], Tensor]


@dataclass(frozen=True)
class ReconstructConfig:
    """Which clip of the video, how it is masked, and how the result is shown."""

    mask_type: Literal["run", "tube", "random", "frame"] = "tube"  # run: as the run drew them
    mask_ratio: float = 0.9  # share of the tokens that is hidden
    seed: int = 0  # of the mask
    branch: str = ""  # of a model that predicts several targets; default: pixels, or the first
    oracle: bool = False  # use the true colour and contrast of hidden tubelets, and say so
    start_seconds: float | None = None  # where the clip begins; None: the middle of the video
    columns: int = 8  # frames shown in the strip, at most
    animation: Literal["gif", "none"] = "gif"  # beside the strip
    decoder: Literal["pyav", "torchcodec"] = "pyav"  # torchcodec is an extra
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: a GPU where there is one


@dataclass(frozen=True)
class Reconstruction:
    """Clips are float32 [C,T,H,W] in [0,1] on the CPU.

    `filled` and `true` are the target, with predictions where hidden and as it is: for pixels a
    clip, for histograms [frames,C,bins,rows,columns], for features [N,P].
    """

    strip: Path
    animation: Path | None
    branch: str
    clip: Tensor
    masked: Tensor
    filled: Tensor
    true: Tensor
    hidden: Tensor  # bool [N]
    grid: Grid
    seconds: tuple[float, ...]  # [T]: when each frame is shown in the video
    score: float  # of what is hidden: PSNR of pixels in decibels; of others the mean cosine
    baseline: float | None  # the same of a guess without a model, where there is one


def reconstruct(
    model: MaskedModel,
    spec: ClipSpec,
    video: str | Path,
    out: str | Path,
    config: ReconstructConfig | None = None,
    *,
    mask: MaskFunction | None = None,
    name: str = "",
) -> Reconstruction:
    """Hides part of a clip, lets the model predict it, and draws input, masked and prediction.

    Writes `<video's name>.png` and `.gif` into `out`, with the branch in the name where it is not
    the default one, and `-oracle` where it is that. `mask`: a run's mask function; None draws by
    `mask_type` and `mask_ratio`. `name`: of the checkpoint, for the picture.

    Raises:
        TubeletError: the branch does not exist or cannot be drawn, the video or the moment cannot
            be read, or the oracle is asked for where there is nothing to borrow.
    """
    config = config or ReconstructConfig()
    branch = branch_of(model, config.branch)
    _check_oracle(branch, config)
    clip, seconds = read_clip(video, spec, config.start_seconds, config.decoder)
    grid = model.backbone.grid_for(*clip.shape[1:])
    hidden = (mask or _mask(config))(grid, rng_for(config.seed, 0, 0))
    scene = _predict(model, branch, clip.float() / 255, hidden, choose_device(config.device))
    view = _view(branch, scene, oracle=config.oracle)
    masked = scene.clip.masked_fill(scene.where, views.GREY)
    sheet = _sheet(view, (("input", scene.clip), ("masked", masked)), seconds)
    sheet = replace(
        sheet,
        title=f"{Path(video).name}: {_share(hidden, grid)}",
        note="  ·  ".join(part for part in (name, _predicts(model, branch), view.note) if part),
        warning=config.oracle,
    )
    strip, animation = _write(sheet, Path(out), _stem(model, branch, Path(video), config), config)
    return Reconstruction(
        strip=strip,
        animation=animation,
        branch=branch.name,
        clip=scene.clip,
        masked=masked,
        filled=view.filled,
        true=view.true,
        hidden=hidden,
        grid=grid,
        seconds=seconds,
        score=view.score,
        baseline=view.baseline,
    )


def branch_of(model: MaskedModel, name: str = "") -> Branch:
    """The branch of that name; without one the first that predicts pixels, or else the first."""
    branches = [branch for branch in model.branches.values() if isinstance(branch, Branch)]
    if name:
        branches = [branch for branch in branches if branch.name == name]
    if not branches:
        raise TubeletError(
            f"This model has no branch {name!r} to look at. It has: "
            f"{', '.join(model.branches) or 'none'}."
        )
    return next((b for b in branches if isinstance(b.target, Pixels)), branches[0])


def _check_oracle(branch: Branch, config: ReconstructConfig) -> None:
    if not config.oracle:
        return
    if not isinstance(branch.target, Pixels):
        raise TubeletError(
            "oracle borrows the true colour and contrast of hidden tubelets, and the branch "
            f"{branch.name!r} predicts no pixels: leave it out."
        )
    if not branch.target.normalise:
        raise TubeletError(
            "oracle borrows the true colour and contrast of hidden tubelets, but this model "
            "predicts raw pixels and needs none: leave it out."
        )


@torch.no_grad()
def _predict(
    model: MaskedModel, branch: Branch, clip: Tensor, hidden: Tensor, device: torch.device
) -> views.Scene:
    """clip float [C,T,H,W] in [0,1], hidden bool [N] -> what the branch makes of it."""
    masks = pack(hidden[None, None])
    # For a backbone that replaces what is hidden, filled up behind the positions that are meant.
    given = pack(hidden[None, None], replace=model.backbone.hide == "replace").to(device)
    was_training = model.training
    model.to(device).eval()
    pixels = clip[None].to(device)
    made = model.predict(pixels, given)[branch.name][0, : int(hidden.sum())].float().cpu()
    target: Any = branch.target
    made = made.softmax(-1) if isinstance(target, PseudoLabels) else made
    true = target(pixels)[0].cpu()
    model.train(was_training)
    if not true.is_floating_point():
        raise TubeletError(
            f"The branch {branch.name!r} predicts ids, which are classes and have neither colours "
            f"nor strokes. Choose another with --branch, of {', '.join(model.branches)}."
        )
    grid = model.backbone.grid_for(*clip.shape[1:])
    return views.Scene(clip, masks, grid, model.backbone.patch, made, true)


def _view(branch: Branch, scene: views.Scene, *, oracle: bool) -> views.View:
    if isinstance(branch.target, Pixels):
        return views.of_pixels(scene, branch.target, oracle=oracle)
    if isinstance(branch.target, Hog):
        return views.of_histograms(scene, branch.target)
    return views.of_features(scene)


def _sheet(
    view: views.View, above: tuple[views.Row, ...], seconds: tuple[float, ...]
) -> picture.Sheet:
    """The rows of the view with those of the clip `above`: of each slot its first frame, if the
    target has but one a slot."""
    every = len(seconds) // view.rows[0][1].shape[1]
    size = view.enlarged
    rows = tuple(
        (label, clip[:, ::every].repeat_interleave(size, 2).repeat_interleave(size, 3))
        for label, clip in above
    )
    most = picture.MOST if size == 1 else rows[0][1].shape[2]
    return picture.Sheet(rows + view.rows, seconds[::every], figure=view.figure, most=most)


def _mask(config: ReconstructConfig) -> MaskFunction:
    if config.mask_type == "run":
        raise TubeletError(
            "mask_type 'run' draws masks as the run of a model does, and this model comes without "
            f"one: choose {', '.join(draws.DRAWS)}, or pass mask=."
        )
    draw = draws.DRAWS[config.mask_type]
    return lambda grid, rng: draw(grid, rng, mask_ratio=config.mask_ratio)


def _share(hidden: Tensor, grid: Grid) -> str:
    share = float(hidden.float().mean())
    return f"{share:.1%} of {'x'.join(map(str, grid))} tubelets hidden".replace(".0%", "%")


def _predicts(model: MaskedModel, branch: Branch) -> str:
    """Which of several branches this is."""
    return f"branch {branch.name}" if len(model.branches) > 1 else ""


def _stem(model: MaskedModel, branch: Branch, video: Path, config: ReconstructConfig) -> str:
    other = "" if branch is branch_of(model) else f"-{branch.name}"
    return video.stem + other + ("-oracle" if config.oracle else "")


def _write(
    sheet: picture.Sheet, out: Path, stem: str, config: ReconstructConfig
) -> tuple[Path, Path | None]:
    strip, animation = out / f"{stem}.png", out / f"{stem}.gif"
    frames = len(sheet.seconds)
    shown = np.unique(np.linspace(0, frames - 1, min(frames, max(1, config.columns))).round())
    try:
        out.mkdir(parents=True, exist_ok=True)
        picture.strip(sheet, [int(i) for i in shown]).save(strip)
        if config.animation == "none":
            return strip, None
        picture.animate(sheet, animation)
    except OSError as error:
        raise TubeletError(
            f"The pictures cannot be written to {out}: {error.strerror or error}. Choose another "
            "folder, or make room."
        ) from error
    return strip, animation
