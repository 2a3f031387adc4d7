"""Features of frozen networks as targets."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from tubelet.backbones.positions import sincos_2d
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.errors import TubeletError
from tubelet.shapes import Grid, Patch, gather
from tubelet.targets.features import Features, Teacher, resize_features
from tubelet.teachers import teacher_of

PATCH = Patch(2, 8, 8)
GRID = Grid(4, 4, 4)


class Mean(nn.Module):
    """A network whose features are easy to say: the mean colour of each patch."""

    def __init__(self, patch: Patch, tokens_in_front: int = 0):
        super().__init__()
        self.patch = patch
        self.front = nn.Parameter(torch.full((1, tokens_in_front, 3), 9.0))
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(list(x.shape))
        x = x.unsqueeze(2) if x.dim() == 4 else x
        means = nn.functional.avg_pool3d(x, self.patch).flatten(2).transpose(1, 2)
        return torch.cat([self.front.expand(len(x), -1, -1), means], 1)


def mean_teacher(patch: Patch = PATCH, *, front: int = 0, **stated) -> Teacher:
    stated = {"sees": "clip", "mean": (0.0,) * 3, "std": (1.0,) * 3, **stated}
    return Teacher(Mean(patch, front), width=3, patch=patch, prefix=front, **stated)


def target(**options) -> Features:
    return Features(3, patch=PATCH, grid=GRID, **options)


def vit_teacher(**options) -> Teacher:
    shape = ViTShape(32, 3, 2, patch=8, **options)
    frames = 8 if shape.tubelet_size == 2 else 1
    return teacher_of(ViT(shape, trained=(frames, 32, 32)), name="runs/teacher")


# A teacher is frozen, and goes where the model goes.


def test_a_teacher_is_invisible_to_training_and_to_checkpoints() -> None:
    teacher = vit_teacher()
    features = Features(32, patch=PATCH, grid=GRID)
    features.connect(teacher)
    model = nn.ModuleDict({"target": features})
    assert not list(model.parameters())
    assert not model.state_dict()
    model.train()
    assert not any(part.training for part in teacher.module.modules())
    assert not any(p.requires_grad for p in teacher.module.parameters())
    assert not features(torch.rand(1, 3, 8, 32, 32)).requires_grad


def test_a_teacher_moves_with_the_model() -> None:
    teacher = vit_teacher()
    features = Features(32, patch=PATCH, grid=GRID)
    features.connect(teacher)
    features.to(torch.float64)
    assert {p.dtype for p in teacher.module.parameters()} == {torch.float64}
    assert teacher.mean.dtype == teacher.module.mean.dtype == torch.float64
    found = teacher(torch.rand(1, 3, 8, 32, 32, dtype=torch.float64), 4)
    assert found.dtype == torch.float64
    features.to("meta")
    assert teacher.module.patch_embed.proj.weight.is_meta


def test_targets_can_be_trained_against_after_inference_mode() -> None:
    """An inference tensor would refuse to be saved for the backward pass."""
    features = target()
    features.connect(mean_teacher())
    pred = torch.zeros(2, 64, 3, requires_grad=True)
    (pred * features(torch.rand(2, 3, 8, 32, 32))).sum().backward()
    assert pred.grad is not None


def test_the_digest_is_of_all_weights_and_their_names() -> None:
    one = mean_teacher(front=1)
    assert one.digest == mean_teacher(front=1).digest
    other = Mean(PATCH, 1)
    with torch.no_grad():
        other.front[0, 0, 2] += 1e-6
    teacher = Teacher(other, width=3, patch=PATCH, sees="clip", mean=(0,) * 3, std=(1,) * 3)
    assert teacher.digest != one.digest


# What a teacher sees.


def test_a_clip_is_normalised_once_and_laid_out_as_stated() -> None:
    clip = torch.rand(2, 3, 8, 32, 32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    found = mean_teacher(mean=mean, std=std)(clip, 4)
    for b, n, c in [(0, 0, 0), (1, 21, 1), (1, 63, 2)]:
        t, h, w = n // 16, n // 4 % 4, n % 4
        cube = clip[b, c, 2 * t : 2 * t + 2, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
        assert found[b, n, c] == pytest.approx(float((cube.mean() - mean[c]) / std[c]), abs=1e-5)
    teacher = mean_teacher(layout="BTCHW", read=lambda m, x, layer: m(x.transpose(1, 2)))
    torch.testing.assert_close(teacher(clip, 4), mean_teacher()(clip, 4))


@pytest.mark.parametrize("layout", ["BCHW", "BCTHW"])
def test_a_network_of_images_sees_the_first_frame_of_each_tubelet(layout: str) -> None:
    clip = torch.rand(2, 3, 8, 32, 32)
    teacher = mean_teacher(Patch(1, 8, 8), sees="frames", layout=layout)
    found = teacher(clip, 4)
    assert teacher.module.seen == [[8, 3, 32, 32] if layout == "BCHW" else [8, 3, 1, 32, 32]]
    assert teacher.grid_for(4, 8, 32, 32) == Grid(4, 4, 4)
    for slot in range(4):
        alone = Mean(Patch(1, 8, 8))(clip[:, :, 2 * slot])
        torch.testing.assert_close(found[:, 16 * slot : 16 * slot + 16], alone)


def test_tokens_in_front_are_left_out() -> None:
    clip = torch.rand(2, 3, 8, 32, 32)
    torch.testing.assert_close(mean_teacher(front=5)(clip, 4), mean_teacher()(clip, 4))


def test_the_teachers_own_size_makes_a_view_of_its_own() -> None:
    same, other = target(), target(size=(48, 64))
    same.connect(mean_teacher())
    assert (same.view, same.view_size) == ("clip", None)
    other.connect(mean_teacher())
    assert (other.view, other.view_size) == ("clip_48x64", (48, 64))
    assert other.teacher_grid == Grid(4, 6, 8)
    stated = target()
    stated.connect(mean_teacher(size=(16, 16)))
    assert (stated.view, stated.teacher_grid) == ("clip_16x16", Grid(4, 2, 2))
    # The view is taken as it is; the student's clip, where there is no view, is resized.
    view = torch.rand(1, 3, 8, 16, 16)
    stated(view)
    stated(torch.rand(1, 3, 8, 32, 32))
    assert stated.teacher.module.seen == [[1, 3, 8, 16, 16]] * 2


def test_mvds_huge_image_teacher_at_196_pixels_crops_its_positions() -> None:
    """Patches of 14 at 196 pixels make a 14x14 grid, the corner of its own 16x16 (5.1)."""
    shape = ViTShape(32, 1, 2, patch=14, tubelet_size=1, position="sincos_2d", class_token=True)
    vit = ViT(shape, trained=(1, 224, 224), final_norm=False)
    vit.positions.mode = "rebuild"
    whole = sincos_2d(Grid(1, 16, 16), 32).view(16, 16, 32)
    assert torch.equal(vit.positions(Grid(1, 14, 14)), whole[:14, :14].reshape(196, 32))
    features = Features(32, patch=Patch(2, 16, 16), grid=Grid(1, 14, 14), size=(196, 196))
    features.connect(teacher_of(vit))
    assert features.teacher_grid == features.grid
    assert features(torch.rand(1, 3, 2, 196, 196)).shape == (1, 196, 32)


# Which features.


def test_features_are_un_normed_blocks() -> None:
    teacher = vit_teacher()
    clip = torch.rand(2, 3, 8, 32, 32)
    features = Features(32, patch=PATCH, grid=GRID)
    features.connect(teacher)
    vit = teacher.module
    with torch.no_grad():
        x = vit.patch_embed((_patches(clip) - vit.mean) / vit.std) + vit.positions(vit.grid)
        outputs = []
        for block in vit.blocks:
            x = block(x)
            outputs.append(x)
    for layer in (0, 1, 2, -1, -3):
        features.layer = layer
        torch.testing.assert_close(features(clip), outputs[layer], rtol=1e-5, atol=1e-5)


def _patches(clip: Tensor) -> Tensor:
    """[B,C,T,H,W] -> [B,N,C,2,8,8], one by one."""
    t, h, w = clip.shape[2:]
    return torch.stack(
        [
            clip[:, :, i : i + 2, j : j + 8, k : k + 8]
            for i in range(0, t, 2)
            for j in range(0, h, 8)
            for k in range(0, w, 8)
        ],
        1,
    )


def test_feature_normalisation_has_no_weights() -> None:
    features = target(norm_feature=True)
    features.connect(mean_teacher())
    clip = torch.rand(2, 3, 8, 32, 32)
    raw = mean_teacher()(clip, 4)
    var, mean = torch.var_mean(raw, -1, correction=0, keepdim=True)
    expected = (raw - mean) / (var + 1e-6).sqrt()
    # Three values close to each other: their differences have few digits.
    torch.testing.assert_close(features(clip), expected, rtol=1e-3, atol=1e-4)


def test_only_what_is_asked_for_is_given() -> None:
    features = target()
    features.connect(mean_teacher())
    clip = torch.rand(2, 3, 8, 32, 32)
    asked = torch.tensor([[3, 17, 60], [0, 1, 63]])
    assert torch.equal(features(clip, asked), gather(features(clip), asked))


def test_features_computed_before_are_taken_as_they_are() -> None:
    features = target(norm_feature=False)
    cached = torch.randn(2, 64, 3).half()
    found = features(cached, torch.tensor([[3], [5]]))
    assert found.dtype == torch.float32
    assert torch.equal(found[:, 0], torch.stack([cached[0, 3], cached[1, 5]]).float())


def slow_resize(x: Tensor, size: int) -> Tensor:
    """[n,P] -> [size,P]: linear between the centres of cells, constant beyond the outer ones."""
    rows = []
    for i in range(size):
        at = min(max((i + 0.5) * len(x) / size - 0.5, 0), len(x) - 1)
        low, high = math.floor(at), min(math.floor(at) + 1, len(x) - 1)
        rows.append(x[low] * (1 - (at - low)) + x[high] * (at - low))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("grid", "to"),
    [
        (Grid(4, 6, 5), Grid(2, 4, 7)),
        (Grid(2, 3, 3), Grid(4, 3, 3)),
        (Grid(1, 2, 2), Grid(3, 4, 4)),
    ],
)
def test_grids_are_resized_as_by_a_slow_formula(grid: Grid, to: Grid) -> None:
    x = torch.randn(2, grid.size, 3)
    expected = []
    for row in x.unflatten(1, tuple(grid)):
        volume = row
        for axis, size in enumerate(to):
            volume = slow_resize(volume.transpose(0, axis), size).transpose(0, axis)
        expected.append(volume.reshape(to.size, 3))
    torch.testing.assert_close(resize_features(x, grid, to), torch.stack(expected))


def test_a_teacher_on_another_grid_is_resized_onto_the_students_tokens() -> None:
    features = target()
    features.connect(mean_teacher(Patch(4, 16, 16)))
    clip = torch.rand(2, 3, 8, 32, 32)
    raw = mean_teacher(Patch(4, 16, 16))(clip, 2)
    assert raw.shape == (2, 8, 3)
    expected = resize_features(raw, Grid(2, 2, 2), Grid(4, 4, 4))
    torch.testing.assert_close(features(clip), expected)


def test_a_grid_of_as_many_tokens_is_another_grid_all_the_same() -> None:
    features = target()
    features.connect(mean_teacher(Patch(8, 4, 4)))  # 1x8x8 tokens, where the student has 4x4x4
    clip = torch.rand(2, 3, 8, 32, 32)
    raw = mean_teacher(Patch(8, 4, 4))(clip, 1)
    assert raw.shape == (2, 64, 3)
    expected = resize_features(raw, Grid(1, 8, 8), GRID)
    torch.testing.assert_close(features(clip), expected)


def test_a_teacher_that_taught_in_bf16_is_not_read_in_float32() -> None:
    teacher = vit_teacher()
    low, full = (Features(32, patch=PATCH, grid=GRID, precision=p) for p in ("bf16", "float32"))
    low.connect(teacher)
    full.connect(teacher)
    clip = torch.rand(1, 3, 8, 32, 32)
    full(clip)
    low(clip)
    with pytest.raises(TubeletError, match=r"runs/teacher has taught in bf16.*load it anew"):
        full(clip)


def test_bf16_lowers_the_weights_once_and_gives_float32() -> None:
    teacher = vit_teacher()
    full = copy.deepcopy(teacher.module)
    features = Features(32, patch=PATCH, grid=GRID, precision="bf16")
    features.connect(teacher)
    clip = torch.rand(1, 3, 8, 32, 32)
    found = features(clip)
    assert found.dtype == torch.float32
    assert teacher.module.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert teacher.module.blocks[0].norm1.weight.dtype == torch.float32
    exact = full(clip, layers=[-1], norm=False).layers[0]
    error = (found - exact).norm() / exact.norm()
    assert 0 < error < 0.02  # bf16 has 8 bits of precision


# What does not fit.


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (
            Teacher(Mean(PATCH), width=5, patch=PATCH, sees="clip", mean=(0,), std=(1,), name="A"),
            r"The teacher A has features of width 5, and this model predicts 3: .*--image\.width 0",
        ),
        (
            mean_teacher(Patch(2, 12, 12), name="A"),
            r"teacher A cannot be mapped onto the student's 4x4x4 tokens \(clips of 8x32x32\): "
            r".*tubelets of 2x12x12: height 32 is no multiple of 12.* --image\.size 24 24 ",
        ),
        (
            mean_teacher(Patch(3, 8, 8), name="A"),
            r"teacher A cannot be mapped .*num_frames 8 is no multiple of 3\. Nearest that fits: \S+$",
        ),
        (
            mean_teacher(num_frames=16, name="A"),
            r"The teacher A takes clips of 16 frames, and the student's have 8: pass --num-frames 16",
        ),
        (
            mean_teacher(Patch(1, 12, 12), sees="frames", layout="BCHW", name="A"),
            r"teacher A cannot be mapped .*height 32 is no multiple of 12",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_names_both_sides(teacher: Teacher, said: str) -> None:
    with pytest.raises(TubeletError, match=said):
        target().connect(teacher)


def test_sizes_that_contradict_each_other() -> None:
    with pytest.raises(
        TubeletError, match=r"takes 16x16 pixels and no others, .* asks it for 48x48"
    ):
        target(size=(48, 48)).connect(mean_teacher(size=(16, 16)))


def test_an_unknown_normalisation_is_an_error() -> None:
    for mean, std in [((), ()), ((0.5,), (0.5, 0.5))]:
        with pytest.raises(TubeletError, match="normalisation of the teacher Mean is not known"):
            Teacher(Mean(PATCH), width=3, patch=PATCH, sees="clip", mean=mean, std=std)


def test_images_are_told_apart_from_clips() -> None:
    with pytest.raises(TubeletError, match="takes images: pass sees='frames'"):
        mean_teacher(layout="BCHW")


def test_a_layer_of_an_unknown_network() -> None:
    with pytest.raises(TubeletError, match=r"Layer 1 was asked for of a Mean.*Teacher\(read="):
        mean_teacher()(torch.rand(1, 3, 8, 32, 32), 4, layer=1)


def test_tokens_that_are_not_as_stated() -> None:
    features = target()
    teacher = mean_teacher(front=1)
    teacher.prefix = 0
    features.connect(teacher)
    with pytest.raises(TubeletError, match=r"returned features \[2, 65, 3\].*make \[2, 64, 3\]"):
        features(torch.rand(2, 3, 8, 32, 32))


def test_a_model_without_its_teacher() -> None:
    with pytest.raises(TubeletError, match="has no teacher: it was made without one"):
        target()(torch.rand(1, 3, 8, 32, 32))
