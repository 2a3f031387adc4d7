"""What the target of a branch looks like, predicted and true, and how near the two are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.analysis import picture, strokes
from tubelet.analysis.components import Components
from tubelet.analysis.fill import compose, psnr
from tubelet.shapes import Grid, Masks, Patch, unpatchify
from tubelet.targets.hog import Hog
from tubelet.targets.pixels import Pixels

GREY = 0.8  # what is painted over tokens that a row says nothing of
DIM = 0.45  # brightness of strokes that the model was shown
STROKE = 16  # pixels: the least size of a cell of a histogram
Row = tuple[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """A clip, what is hidden of it, and what is predicted of that; all on the CPU."""

    clip: Tensor  # float32 [C,T,H,W] in [0,1]
    masks: Masks  # of one clip, one mask
    grid: Grid
    patch: Patch  # the pixels behind a token
    made: Tensor  # float32 [M,P], at the hidden tokens
    true: Tensor  # float32 [N,P]

    @property
    def hidden(self) -> Tensor:
        """bool [N]."""
        return self.masks.hidden[0, 0]

    @property
    def where(self) -> Tensor:
        """bool [1,T,H,W]: the hidden pixels."""
        return painted(self.hidden, self.grid, self.patch)[None]

    @property
    def filled(self) -> Tensor:
        """[N,P]: predicted where hidden, true where visible."""
        filled = self.true.clone()
        filled[self.masks.asked[0, 0]] = self.made
        return filled


@dataclass(frozen=True)
class View:
    """The rows below the clip, and what is said of them."""

    rows: tuple[Row, ...]  # clips [C,frames,H,W]; frames: those of the clip, or one a slot
    filled: Tensor
    true: Tensor
    score: float
    baseline: float | None
    figure: str
    note: str
    enlarged: int = 1  # how much larger than the clip the rows are


def of_pixels(scene: Scene, target: Pixels, *, oracle: bool) -> View:
    """The clip with predictions in it; scored by PSNR."""
    cubes, clip = target.cubes(scene.made[None]), scene.clip[None]
    filled = compose(target, clip, scene.masks, cubes, oracle=oracle)[0]
    score, baseline = psnr(filled, scene.clip, scene.where), None
    figure = f"PSNR of hidden pixels: {score:.1f} dB"
    note = "raw pixels, as predicted"
    if oracle:
        note = "ORACLE: true colour and contrast of every hidden tubelet were given to it"
    elif target.normalise:
        note = "colour and contrast estimated from visible tubelets only"
        flat = compose(target, clip, scene.masks, torch.zeros_like(cubes))[0]
        baseline = psnr(flat, scene.clip, scene.where)
        figure += f"  (of the colours around them alone: {baseline:.1f} dB)"
    label = "ORACLE\nreconstruction" if oracle else "reconstruction"
    return View(((label, filled),), filled, scene.clip, score, baseline, figure, note)


def of_histograms(scene: Scene, target: Hog) -> View:
    """Strokes along the edges (arXiv 2112.09133, figure 1); scored by the cosine of histograms."""
    true, filled = (
        strokes.histograms_of(x, target, scene.grid) for x in (scene.true, scene.filled)
    )
    frames, colours, _, rows, columns = true.shape
    each = Patch(frames // scene.grid.t, rows // scene.grid.h, columns // scene.grid.w)
    cells = painted(scene.hidden, scene.grid, each)  # bool [frames,rows,columns]
    where = cells[:, None].expand(-1, colours, -1, -1)
    single = [x.movedim(2, -1) for x in (filled, true)]  # [frames,C,rows,columns,bins]
    made, hidden = (x[where] for x in single)
    # What can be said without a model: in each colour the mean of what is visible.
    seen = (single[1] * ~where[..., None]).sum((0, 2, 3)) / (~cells).sum()
    guess = seen[None, :, None, None].expand_as(single[1])[where]
    score, baseline = agreement(made, hidden), agreement(guess, hidden)
    enlarged = max(-(-STROKE // target.cell), -(-picture.LEAST // scene.clip.shape[2]))
    size = enlarged * target.cell
    light = painted(torch.where(scene.hidden, 1.0, DIM), scene.grid, each)
    light = light.repeat_interleave(size, 1).repeat_interleave(size, 2)
    most = 1.0 if target.normalise else true.mean(1).max().clamp_min(target.EPS)
    drawn = [(strokes.draw(x / most, size) * light)[None] for x in (filled, true)]
    return View(
        rows=(("predicted\nHOG", drawn[0]), ("true HOG", drawn[1])),
        filled=filled,
        true=true,
        score=score,
        baseline=baseline,
        figure=_cosine("histograms", score, baseline),
        note="strokes run along edges; bright: hidden from the model; dim: visible, true in both rows",
        enlarged=enlarged,
    )


def of_features(scene: Scene) -> View:
    """Principal components of the true features as colours; scored by the cosine of features."""
    made, hidden = scene.made, scene.true[scene.masks.asked[0, 0]]
    guess = scene.true[~scene.hidden].mean(0).expand_as(hidden)
    score, baseline = agreement(made, hidden), agreement(guess, hidden)
    components = Components.fitted(scene.true)
    rows = [
        painted(column, scene.grid, Patch(1, scene.patch.h, scene.patch.w))
        for column in (*components.colours(scene.filled).T, *components.colours(scene.true).T)
    ]
    visible = painted(~scene.hidden, scene.grid, Patch(1, scene.patch.h, scene.patch.w))
    predicted, true = torch.stack(rows[:3]), torch.stack(rows[3:])
    return View(
        rows=(("predicted", predicted.masked_fill(visible, GREY)), ("true", true)),
        filled=scene.filled,
        true=scene.true,
        score=score,
        baseline=baseline,
        figure=_cosine("features", score, baseline),
        note="colours: three principal components of the true features, the same for both rows",
    )


def painted(tokens: Tensor, grid: Grid, patch: Patch) -> Tensor:
    """[N] -> [T,H,W]: the value of each token on all of its pixels."""
    cubes = tokens.view(1, -1, 1, 1, 1, 1).expand(1, -1, 1, *patch)
    return unpatchify(cubes, grid)[0, 0]


def agreement(made: Tensor, true: Tensor) -> float:
    """[n,P] twice -> the mean cosine, of those whose truth is not empty; NaN where all are."""
    there = true.abs().amax(-1) > 0
    return float(F.cosine_similarity(made[there], true[there], dim=-1).mean())


def _cosine(what: str, score: float, baseline: float) -> str:
    return (
        f"cosine of predicted and true {what}, where hidden: {score:.3f}  "
        f"(of the mean of the visible ones: {baseline:.3f})"
    )
