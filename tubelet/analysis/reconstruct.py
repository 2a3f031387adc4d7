"""What a masked model sees and what it makes of the rest: a picture strip and an animation.

A model that predicts *normalised* pixels says nothing about the colour and contrast of a hidden
tubelet. Filling in the true ones, as the script published with arXiv 2203.12602 does, makes any
model look good, a random one too. Here they are estimated from what is visible, unless `oracle`
asks for the true ones, and then the picture says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tubelet import masks as draws
from tubelet.analysis import colours, picture
from tubelet.analysis.clip import read_clip
from tubelet.data.sampling import rng_for
from tubelet.errors import TubeletError
from tubelet.masks import pack
from tubelet.model import Branch, MaskedModel
from tubelet.shapes import ClipSpec, Grid, Masks, gather, patchify, unpatchify
from tubelet.targets.pixels import Pixels
from tubelet.train.parallel import choose_device

MaskFunction = Callable[[Grid, np.random.Generator], Tensor]
GREY = 0.8  # what is painted over hidden tubelets in the "masked" row


@dataclass(frozen=True)
class ReconstructConfig:
    """Which clip of the video, how it is masked, and how the result is shown."""

    mask_type: Literal["tube", "random", "frame"] = "tube"  # tube: the same cells in every frame
    mask_ratio: float = 0.9  # share of the tubelets that is hidden
    seed: int = 0  # of the mask
    oracle: bool = False  # use the true colour and contrast of hidden tubelets, and say so
    start_seconds: float | None = None  # where the clip begins; None: the middle of the video
    columns: int = 8  # frames shown in the strip, at most
    animation: Literal["gif", "none"] = "gif"  # beside the strip
    decoder: Literal["pyav", "torchcodec"] = "pyav"  # torchcodec is an extra
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto: a GPU where there is one


@dataclass(frozen=True)
class Reconstruction:
    """Clips are float32 [C,T,H,W] in [0,1] on the CPU."""

    strip: Path
    animation: Path | None
    clip: Tensor
    masked: Tensor
    filled: Tensor  # predictions where hidden, the input where visible
    hidden: Tensor  # bool [N]
    grid: Grid
    seconds: tuple[float, ...]  # [T]: when each frame is shown in the video
    psnr: float  # decibels, over the hidden tubelets


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

    Writes `<video's name>.png` and `.gif` (with `-oracle` in the name where it is one) into `out`.
    `mask`: a run's mask function; None draws by `mask_type` and `mask_ratio`. `name`: of the
    checkpoint, for the picture.

    Raises:
        TubeletError: the model predicts no pixels, the video or the moment cannot be read, or the
            oracle is asked for where there is nothing to borrow.
    """
    config = config or ReconstructConfig()
    branch, target = pixel_branch(model)
    if config.oracle and not target.normalise:
        raise TubeletError(
            "oracle borrows the true colour and contrast of hidden tubelets, but this model "
            "predicts raw pixels and needs none: leave it out."
        )
    clip, seconds = read_clip(video, spec, config.start_seconds, config.decoder)
    grid = model.backbone.grid_for(*clip.shape[1:])
    hidden = (mask or _mask(config))(grid, rng_for(config.seed, 0, 0))
    device = choose_device(config.device)
    pixels = clip[None].to(device).float() / 255
    chosen = pack(hidden[None, None]).to(device)
    cubes = _predict(model.to(device), branch.name, target, pixels, chosen)
    filled = compose(target, pixels, chosen, cubes, oracle=config.oracle)[0].cpu()
    flat = compose(target, pixels, chosen, torch.zeros_like(cubes))[0].cpu()
    pixels = pixels[0].cpu()
    where = unpatchify(hidden.view(1, -1, 1, 1, 1, 1).expand(1, -1, 1, *target.patch), grid)[0]
    masked = pixels.masked_fill(where, GREY)
    quality = psnr(filled, pixels, where)
    note = _note(target, config.oracle)
    figure = f"PSNR of hidden pixels: {quality:.1f} dB"
    if target.normalise and not config.oracle:
        figure += f"  (of the colours around them alone: {psnr(flat, pixels, where):.1f} dB)"
    sheet = picture.Sheet(
        rows=(("input", pixels), ("masked", masked), (_label(config.oracle), filled)),
        seconds=seconds,
        title=f"{Path(video).name}: {_share(hidden, grid)}",
        note=f"{name}  ·  {note}" if name else note,
        figure=figure,
        warning=config.oracle,
    )
    strip, animation = _write(sheet, Path(video), Path(out), config)
    return Reconstruction(strip, animation, pixels, masked, filled, hidden, grid, seconds, quality)


def pixel_branch(model: MaskedModel) -> tuple[Branch, Pixels]:
    """The branch of the model that predicts pixels."""
    for branch in model.branches.values():
        assert isinstance(branch, Branch)
        if isinstance(branch.target, Pixels):
            return branch, branch.target
    targets = ", ".join(type(b.target).__name__ for b in model.branches.values())
    raise TubeletError(
        f"This model predicts no pixels (its targets: {targets or 'none'}), so there is nothing to "
        "look at. Expected a model pretrained with a pixel target, such as VideoMAE's."
    )


@torch.no_grad()
def _predict(model: MaskedModel, branch: str, target: Pixels, clip: Tensor, masks: Masks) -> Tensor:
    """-> what the model predicts for the positions asked for: float32 [B,M,C,pt,ph,pw]."""
    was_training = model.training
    model.eval()
    cubes = target.cubes(model.predict(clip, masks)[branch].float())
    model.train(was_training)
    return cubes


def compose(
    target: Pixels, clip: Tensor, masks: Masks, cubes: Tensor, *, oracle: bool = False
) -> Tensor:
    """clip float [B,C,T,H,W] in [0,1], predictions [B,M,C,pt,ph,pw] -> the clip with these in it.

    One mask for each clip. Without `oracle` the result does not depend on hidden pixels, bit for
    bit: normalised predictions get their colour and contrast from visible tubelets (`colours`).
    """
    asked, keep = masks.asked[:, 0], masks.keep[:, 0]
    grid = target.patch.grid_for(*clip.shape[2:])
    patches = patchify(clip, target.patch)
    if target.normalise:
        seen = gather(patches, asked if oracle else keep).flatten(3)
        mean, std = target.statistics(target.standardised(seen))
        if not oracle:
            weights = colours.nearness(grid, keep, asked)
            mean, std = (torch.einsum("bmk,bkco->bmco", weights, x) for x in (mean, std))
        cubes = cubes * std[..., None, None] + mean[..., None, None]
    cubes = target.coloured(cubes.flatten(3)).view_as(cubes)
    index = asked.view(*asked.shape, 1, 1, 1, 1).expand_as(cubes)
    patches = patches.scatter(1, index, cubes)
    if target.normalise and not oracle:
        patches = colours.continued(patches, masks.hidden[:, 0], grid)
    return unpatchify(patches, grid).clamp(0, 1)


def psnr(made: Tensor, true: Tensor, where: Tensor) -> float:
    """Two clips [C,T,H,W] in [0,1], bool [1,T,H,W] -> decibels over the pixels `where`."""
    error = float((made - true)[where.expand_as(true)].square().mean())
    return 10 * log10(1 / error) if error > 0 else float("inf")


def _mask(config: ReconstructConfig) -> MaskFunction:
    draw = draws.DRAWS[config.mask_type]
    return lambda grid, rng: draw(grid, rng, mask_ratio=config.mask_ratio)


def _share(hidden: Tensor, grid: Grid) -> str:
    share = float(hidden.float().mean())
    return f"{share:.1%} of {'x'.join(map(str, grid))} tubelets hidden".replace(".0%", "%")


def _label(oracle: bool) -> str:
    return "ORACLE\nreconstruction" if oracle else "reconstruction"


def _note(target: Pixels, oracle: bool) -> str:
    if not target.normalise:
        return "raw pixels, as predicted"
    if oracle:
        return "ORACLE: true colour and contrast of every hidden tubelet were given to it"
    return "colour and contrast estimated from visible tubelets only"


def _write(
    sheet: picture.Sheet, video: Path, out: Path, config: ReconstructConfig
) -> tuple[Path, Path | None]:
    stem = video.stem + ("-oracle" if config.oracle else "")
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
