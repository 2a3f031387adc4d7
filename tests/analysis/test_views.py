"""What targets other than pixels look like, and how they are scored."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from small import write_video
from torch import Tensor, nn

from tubelet import masks, verbs
from tubelet.analysis import views
from tubelet.analysis.reconstruct import ReconstructConfig, reconstruct
from tubelet.analysis.views import DIM, GREY, Scene
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.data.sampling import rng_for
from tubelet.decoders import DecoderShape, Joint, Linear
from tubelet.errors import TubeletError
from tubelet.interop.found import Told
from tubelet.losses import mse
from tubelet.methods.mvd import MVD, Distilled
from tubelet.methods.run import to_dict
from tubelet.model import Branch, Card, MaskedModel
from tubelet.shapes import ClipSpec, Grid, Patch
from tubelet.targets.hog import Hog
from tubelet.targets.ids import PseudoLabels
from tubelet.targets.pixels import Pixels
from tubelet.teachers import teacher_of

GRID, PATCH = Grid(2, 2, 3), Patch(2, 16, 16)
SPEC = ClipSpec(num_frames=4, sampling_rate=2, size=(32, 48))
HERE = ReconstructConfig(mask_ratio=0.5, device="cpu", animation="none")
NET = ViTShape(width=32, depth=1, heads=2, patch=16, hide="replace")


class Means(nn.Module):
    """A target with three numbers a token: the mean of each colour."""

    width, view = 3, "clip"

    def forward(self, view: Tensor, asked: Tensor | None = None) -> Tensor:
        cubes = view.unfold(2, 2, 2).unfold(3, 16, 16).unfold(4, 16, 16)
        return cubes.mean((-3, -2, -1)).flatten(2).transpose(1, 2)


class Ids(Means):
    def forward(self, view: Tensor, asked: Tensor | None = None) -> Tensor:
        return (super().forward(view)[..., 0] * 100).long()


def scene(target: nn.Module, *, change: float = 0.0) -> Scene:
    """A scene whose predictions are the truth and `change`."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(3, 4, 32, 48, generator=generator)
    hidden = masks.random(GRID, np.random.default_rng(0), mask_ratio=0.5)
    chosen = masks.pack(hidden[None, None], replace=True)
    true = target(clip[None])[0]
    noise = torch.randn(true.shape, generator=generator)
    made = (true + change * noise)[chosen.asked[0, 0]]
    return Scene(clip, chosen, GRID, PATCH, made, true)


def test_a_perfect_prediction_of_histograms_looks_like_the_truth() -> None:
    hog = Hog(PATCH)
    perfect, wrong = scene(hog), scene(hog, change=0.3)
    view = views.of_histograms(perfect, hog)
    (_, predicted), (_, true) = view.rows
    assert view.score == pytest.approx(1, abs=1e-6)
    assert torch.equal(predicted, true)
    assert predicted.shape == (1, 2, 32 * view.enlarged, 48 * view.enlarged)
    other = views.of_histograms(wrong, hog)
    assert other.score < 0.95
    assert other.baseline == view.baseline
    visible = views.painted(~wrong.hidden, GRID, Patch(1, 16 * view.enlarged, 16 * view.enlarged))
    assert torch.equal(other.rows[0][1][0][visible], true[0][visible])
    assert true[0][visible].max() <= DIM < true[0][~visible].max()


def test_the_score_of_histograms_is_their_mean_cosine_beside_that_of_the_visible_mean() -> None:
    hog = Hog(PATCH)
    given = scene(hog, change=0.3)
    view = views.of_histograms(given, hog)
    true = given.true.view(12, 3, 9, 4).double().numpy()
    made = given.filled.view(12, 3, 9, 4).double().numpy()
    hidden = given.hidden.numpy()
    mean = true[~hidden].mean((0, 3))  # [C,bins]
    found, guessed = [], []
    for token in np.flatnonzero(hidden):
        for colour in range(3):
            for cell in range(4):
                a, b, c = true[token, colour, :, cell], made[token, colour, :, cell], mean[colour]
                found.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
                guessed.append(a @ c / np.linalg.norm(a) / np.linalg.norm(c))
    assert view.score == pytest.approx(np.mean(found), abs=1e-5)
    assert view.baseline == pytest.approx(np.mean(guessed), abs=1e-5)
    assert f"{view.score:.3f}" in view.figure
    assert f"{view.baseline:.3f}" in view.figure


def test_empty_histograms_are_not_scored() -> None:
    true, made = torch.eye(3), torch.ones(3, 3)
    true[1] = 0
    assert views.agreement(made, true) == pytest.approx(3**-0.5)


def test_histograms_that_are_not_normalised_are_drawn_on_a_scale_of_their_own() -> None:
    """Sums of lengths in a cell are far beyond 1."""
    hog = Hog(PATCH, normalise=False, frames="all")
    given = scene(hog)
    _, (_, true) = views.of_histograms(given, hog).rows
    assert true.shape[1] == 4
    assert 0.001 < float((true >= DIM).float().mean()) < 0.5


def test_features_are_coloured_where_they_are_predicted() -> None:
    given = scene(Means(), change=0.0)
    view = views.of_features(given)
    (_, predicted), (_, true) = view.rows
    hidden = views.painted(given.hidden, GRID, Patch(1, 16, 16))
    assert view.score == pytest.approx(1, abs=1e-6)
    assert view.baseline is not None
    assert view.baseline < view.score
    assert torch.equal(predicted[:, hidden], true[:, hidden])
    assert (predicted[:, ~hidden] == GREY).all()
    assert len(true[:, 0, ::16, ::16].flatten(1).unique(dim=1).T) > 3


def make_model(patch: int = 16, hide: Literal["drop", "replace"] = "replace") -> MaskedModel:
    torch.manual_seed(1)
    vit = ViT(replace(NET, patch=patch, hide=hide), trained=(4, 32, 48))
    kinds = {"hog": Hog(vit.patch), "pixels": Pixels(vit.patch, normalise=False)}
    targets = {**kinds, "means": Means(), "ids": Ids()}

    def decoder(out: int) -> nn.Module:
        joint = DecoderShape(16, 1, 2)
        return Linear(32, out) if hide == "replace" else Joint(32, out, joint, trained=vit.grid)

    return MaskedModel(vit, [Branch(name, decoder(y.width), y, mse) for name, y in targets.items()])


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("films") / "film.mp4")


def test_a_branch_is_chosen_by_name_and_pixels_are_the_default(tmp_path: Path, video: Path) -> None:
    model = make_model()
    made = {
        name: reconstruct(model, SPEC, video, tmp_path, replace(HERE, branch=name))
        for name in ("", "pixels", "hog", "means")
    }
    assert [one.strip.name for one in made.values()] == [
        *("film.png", "film.png", "film-hog.png", "film-means.png")
    ]
    assert torch.equal(made[""].filled, made["pixels"].filled)
    assert made["hog"].filled.shape == (2, 3, 9, 4, 6)
    assert made["means"].filled.shape == (12, 3)
    heights = {name: Image.open(one.strip).size[1] for name, one in made.items()}
    assert heights["hog"] == heights["means"] > heights["pixels"] + 112  # four rows, not three
    both = make_model()
    del both.branches["pixels"]
    assert reconstruct(both, SPEC, video, tmp_path, HERE).branch == "hog"
    with pytest.raises(TubeletError, match=r"no branch 'hogs'.*hog, pixels, means, ids"):
        reconstruct(model, SPEC, video, tmp_path, replace(HERE, branch="hogs"))


@pytest.mark.parametrize("hide", ["replace", "drop"])
def test_predictions_are_where_tokens_are_hidden_and_nowhere_else(
    tmp_path: Path, video: Path, hide: Literal["drop", "replace"]
) -> None:
    """Masks for a backbone that replaces tokens are filled up with the first position."""
    hidden = torch.zeros(48, dtype=torch.bool)
    hidden[7:32] = True  # 25 of 48, which are packed as 27
    model = make_model(8, hide)
    told = {"mask": lambda *_: hidden}
    pixels = reconstruct(model, SPEC, video, tmp_path, HERE, **told)
    where = views.painted(hidden, pixels.grid, Patch(2, 8, 8))
    assert torch.equal(pixels.filled[:, ~where], pixels.clip[:, ~where])
    assert not torch.isclose(pixels.filled[:, where], pixels.clip[:, where]).all(0).any()
    hog = reconstruct(model, SPEC, video, tmp_path, replace(HERE, branch="hog"), **told)
    filled, true = (x.permute(0, 3, 4, 1, 2).reshape(48, 27) for x in (hog.filled, hog.true))
    with torch.no_grad():
        made = model.predict(hog.clip[None], masks.pack(hidden[None, None]))["hog"][0]
    assert torch.equal(filled[~hidden], true[~hidden])
    torch.testing.assert_close(filled[hidden], made)


def test_what_cannot_be_drawn_is_said(tmp_path: Path, video: Path) -> None:
    with pytest.raises(TubeletError, match="'ids' predicts ids"):
        reconstruct(make_model(), SPEC, video, tmp_path, replace(HERE, branch="ids"))
    with pytest.raises(TubeletError, match="'hog' predicts no pixels"):
        reconstruct(make_model(), SPEC, video, tmp_path, replace(HERE, branch="hog", oracle=True))


def test_the_animation_has_a_frame_for_each_slot(tmp_path: Path, video: Path) -> None:
    config = replace(HERE, branch="hog", animation="gif")
    made = reconstruct(make_model(), SPEC, video, tmp_path, config)
    assert made.animation is not None
    with Image.open(made.animation) as moving:
        assert getattr(moving, "n_frames", 1) == 2
        assert moving.info["duration"] == 400  # every fourth frame of 10 a second


def test_scores_of_classes_are_shown_as_the_probabilities_that_they_are_compared_with(
    tmp_path: Path, video: Path
) -> None:
    model = make_model()
    target = PseudoLabels(5, patch=PATCH, grid=GRID)
    classes = ViT(ViTShape(5, 1, 1, patch=16, position="sinusoid_1d"), trained=(4, 32, 48))
    target.connect(teacher_of(classes))
    branch = Branch("classes", Linear(32, 5), target, mse)
    model.branches = nn.ModuleDict({"classes": branch})
    made = reconstruct(model, SPEC, video, tmp_path, HERE)
    torch.testing.assert_close(made.filled.sum(-1), torch.ones(12))


TEACHER = """
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.teachers import teacher_of
def teacher():
    return teacher_of(ViT(ViTShape(24, 1, 2, patch=16), trained=(4, 32, 48)))
"""


def test_a_run_brings_its_masks_and_its_teacher(tmp_path: Path, video: Path) -> None:
    (tmp_path / "mine.py").write_text(TEACHER)
    run = MVD(
        clip=SPEC,
        encoder=replace(NET, hide="drop"),
        decoder=DecoderShape(16, 1, 2),
        mask_type="random",
        mask_ratio=0.7,
        image_teacher=f"{tmp_path}/mine.py:teacher",
        image=Distilled(width=24),
        video=Distilled(weight=0.0),
    )
    model = run.model()
    model.card = Card(clip=SPEC, run=to_dict(run))
    with pytest.raises(TubeletError, match=r"made by .*mine\.py:teacher, .* --trust-code"):
        verbs.reconstruct(model, video, out=tmp_path)
    draw = partial(verbs.reconstruct, model, video, out=tmp_path, told=Told(trust_code=True))
    made = draw()
    assert made.branch == "image"
    assert made.filled.shape == (12, 24)
    assert torch.equal(made.hidden, run.mask(GRID, rng_for(0, 0, 0)))
    less = draw(config=ReconstructConfig(mask_type="run", mask_ratio=0.5))
    assert torch.equal(less.hidden, replace(run, mask_ratio=0.5).mask(GRID, rng_for(0, 0, 0)))
    tubes = draw(config=ReconstructConfig(mask_ratio=0.5))
    assert torch.equal(tubes.hidden, masks.tube(GRID, rng_for(0, 0, 0), mask_ratio=0.5))
    assert isinstance(model.branches["image"].decoder, Joint)
