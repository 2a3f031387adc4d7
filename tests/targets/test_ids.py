"""A tokenizer's ids and a classifier's probabilities as targets."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import losses
from tubelet.errors import TubeletError
from tubelet.shapes import Grid, Patch, gather
from tubelet.targets.features import Teacher
from tubelet.targets.ids import Ids, PseudoLabels, nearest

Made = TypeVar("Made", Ids, PseudoLabels)
PATCH = Patch(2, 8, 8)
GRID = Grid(4, 4, 4)
CLASSES = 12


class Scores(nn.Module):
    """A linear layer over the mean colours of each patch."""

    def __init__(self, patch: Patch = PATCH):
        super().__init__()
        self.patch = patch
        self.head = nn.Linear(3, CLASSES, bias=False)
        nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(0), std=20)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.avg_pool3d(x, self.patch).flatten(2).transpose(1, 2))


class Tokenizer(Scores):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


class OfClip(Scores):
    """One row of scores for all that it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1)


def taught(target: Made, module: nn.Module, patch: Patch = PATCH, **stated) -> Made:
    stated = {"sees": "clip", "mean": (0.5,) * 3, "std": (0.2,) * 3, **stated}
    target.connect(Teacher(module, width=target.width, patch=patch, **stated))
    return target


def ids(module: nn.Module | None = None, patch: Patch = PATCH, **stated) -> Ids:
    target = Ids(CLASSES, patch=PATCH, grid=GRID)
    return taught(target, module or Tokenizer(patch), patch, **stated)


def labels(module: nn.Module | None = None, patch: Patch = PATCH, **stated) -> PseudoLabels:
    target = PseudoLabels(CLASSES, patch=PATCH, grid=GRID)
    return taught(target, module or Scores(patch), patch, **stated)


def a_clip() -> Tensor:
    return torch.rand(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


ASKED = torch.tensor([[3, 0, 63], [7, 7, 20]])


def test_ids_are_the_tokenizers_of_the_normalised_clip() -> None:
    target, clip = ids(), a_clip()
    expected = Tokenizer()((clip - 0.5) / 0.2)
    assert len(expected.unique()) > 3
    assert torch.equal(target(clip), expected)
    found = target(clip, ASKED)
    assert found.dtype is torch.int64 and torch.equal(found, gather(expected, ASKED))


def test_ids_of_frames_are_those_of_the_first_of_each_tubelet() -> None:
    target, clip = ids(patch=Patch(1, 8, 8), sees="frames"), a_clip()
    alone = [Tokenizer(Patch(1, 8, 8))((clip[:, :, i : i + 1] - 0.5) / 0.2) for i in (0, 2, 4, 6)]
    assert torch.equal(target(clip), torch.cat(alone, 1))


@pytest.mark.parametrize("patch", [Patch(4, 4, 8), Patch(2, 16, 4), Patch(8, 32, 16)])
def test_on_another_grid_each_token_has_the_nearest_id(patch: Patch) -> None:
    target, clip = ids(patch=patch), a_clip()
    there = Tokenizer(patch)((clip - 0.5) / 0.2).view(2, 1, *target.teacher_grid)
    expected = F.interpolate(there.double(), size=tuple(GRID), mode="nearest-exact")
    assert torch.equal(target(clip), expected.flatten(1).long())


def test_nearest_on_the_same_grid_is_itself() -> None:
    assert nearest(GRID, GRID).tolist() == list(range(64))
    assert nearest(Grid(1, 1, 3), Grid(2, 1, 6)).tolist() == [0, 0, 1, 1, 2, 2] * 2


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    class Beyond(Tokenizer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 100 * (x.amax() > 2)

    target = ids(Beyond())
    target(torch.full((1, 3, 8, 32, 32), 0.5))  # the first batch is in range
    with pytest.raises(
        TubeletError, match=r"ids from 10\d to 11\d, where its vocabulary of 12 has 0 to"
    ):
        target(a_clip())
    with pytest.raises(TubeletError, match="ids from -"):
        ids(nn.Sequential(Tokenizer(), Shift(-12)))(a_clip())


class Shift(nn.Module):
    def __init__(self, by: int):
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


def test_what_is_no_id_is_refused() -> None:
    with pytest.raises(TubeletError, match=r"float32 \[2, 64, 12\].*argmax.*PseudoLabels"):
        ids(Scores())(a_clip())
    with pytest.raises(TubeletError, match=r"returned features \[2, 64\].* make \[2, 128\]"):
        ids(Tokenizer(), Patch(2, 8, 4))(a_clip())
    with pytest.raises(TubeletError, match="feature cache"):
        ids()(torch.zeros(2, 64, 12))
    with pytest.raises(TubeletError, match="no teacher"):
        Ids(CLASSES, patch=PATCH, grid=GRID)(a_clip())


def test_pseudo_labels_are_probabilities_per_token() -> None:
    target, clip = labels(), a_clip()
    expected = Scores()((clip - 0.5) / 0.2).softmax(-1)
    torch.testing.assert_close(target(clip), expected)
    torch.testing.assert_close(target(clip, ASKED), gather(expected, ASKED))
    cached = target(clip)
    assert torch.equal(target(cached, ASKED), target(clip, ASKED))


def test_pseudo_labels_of_a_clip_are_every_tokens() -> None:
    clip = a_clip()
    expected = OfClip()((clip - 0.5) / 0.2).softmax(-1)
    torch.testing.assert_close(labels(OfClip())(clip), expected[:, None].expand(2, 64, CLASSES))


def test_pseudo_labels_of_frames_are_those_of_the_tokens_of_its_slot() -> None:
    clip = a_clip()
    found = labels(OfClip(Patch(1, 8, 8)), Patch(1, 8, 8), sees="frames")(clip).view(2, 4, 16, -1)
    for slot in range(4):
        alone = OfClip(Patch(1, 8, 8))((clip[:, :, 2 * slot : 2 * slot + 1] - 0.5) / 0.2)
        expected = alone.softmax(-1)[:, None].expand(2, 16, CLASSES)
        torch.testing.assert_close(found[:, slot], expected)


def test_pseudo_labels_of_another_grid_stay_probabilities() -> None:
    target, clip = labels(patch=Patch(4, 4, 16)), a_clip()
    found = target(clip)
    assert found.shape == (2, 64, CLASSES) and float(found.min()) >= 0
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 64))
    there = Scores(Patch(4, 4, 16))((clip - 0.5) / 0.2).softmax(-1)
    # Rows: the student's first lies midway between two of the teacher's.
    midway = there.view(2, 2, 8, 2, -1)[:, 0, :2, 0].mean(1)
    torch.testing.assert_close(found[:, 0], midway)


def test_scores_of_another_width_are_refused() -> None:
    target = PseudoLabels(CLASSES + 1, patch=PATCH, grid=GRID)
    with pytest.raises(TubeletError, match=r"\[2, 64, 12\].* make \[2, 64, 13\]"):
        taught(target, Scores())(a_clip())
    with pytest.raises(TubeletError, match=r"\[2, 12\].* make \[2, 64, 13\]"):
        taught(PseudoLabels(CLASSES + 1, patch=PATCH, grid=GRID), OfClip())(a_clip())


@pytest.mark.parametrize("make", [ids, labels])
def test_the_network_is_frozen_and_only_the_student_learns(make) -> None:
    target = make()
    model = nn.ModuleDict({"target": target, "student": nn.Linear(3, CLASSES)})
    model.train()
    assert [name for name, _ in model.named_parameters()] == ["student.weight", "student.bias"]
    assert list(model.state_dict()) == ["student.weight", "student.bias"]
    assert target.teacher is not None
    assert not any(part.training for part in target.teacher.module.modules())
    clip = a_clip()
    seen = F.avg_pool3d(clip, PATCH).flatten(2).transpose(1, 2)
    loss = losses.cross_entropy(model["student"](gather(seen, ASKED)), target(clip, ASKED))
    assert loss.shape == (2, 3)
    loss.sum().backward()
    weight = model["student"].get_parameter("weight")
    assert weight.grad is not None and bool(weight.grad.any())
    assert all(p.grad is None for p in target.teacher.module.parameters())
