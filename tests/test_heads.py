"""Rows of a head for other classes: which are taken, what is carried over, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tubelet import heads, stored, zoo
from tubelet.backbones.vit import ViTShape
from tubelet.data.lists import Entry, VideoList
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.interop.found import Told
from tubelet.methods import videomae_v2
from tubelet.methods.finetune import Finetune
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Card, Classifier
from tubelet.shapes import ClipSpec
from tubelet.verbs import classifier_of, evaluate

CLIP = ClipSpec(num_frames=4, size=(16, 16))
SHAPE = ViTShape(16, 1, 2, patch=8)
MERGED = ("bowling", "diving", "hugging (not baby)", "skiing mono", "yoga")
TARGET = ("yoga", "hugging", "bowling")  # in the target's order, one under its old name
ROWS = [4, 2, 0]
MAP = {"classes": TARGET, "rows": ROWS, "merged": ("yoga", "hugging (not baby)", "bowling")}


def merged_model(classes: tuple[str, ...] = MERGED) -> Classifier:
    torch.manual_seed(3)
    run = Finetune(clip=CLIP, encoder=SHAPE)
    model = run.model(zoo.new_encoder(SHAPE, CLIP), len(classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.card = Card(CLIP, classes, "single")
    return model.eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    stored.save(merged_model(), tmp_path / "k710.safetensors")
    return tmp_path / "k710.safetensors"


@pytest.fixture
def head_map(tmp_path: Path) -> Callable[..., str]:
    """head_map(**changes) -> the file of MAP with these changes."""

    def write(**changes: Any) -> str:
        (tmp_path / "k400.json").write_text(json.dumps(MAP | changes))
        return str(tmp_path / "k400.json")

    return write


def videos(*classes: str) -> VideoList:
    return VideoList((Entry("a.mp4", 0),), classes, "list.csv", "single")


def carried(weights: Path, *classes: str, head_map: str = "") -> tuple[Classifier, Classifier]:
    """-> the classifier that a run with these classes begins with, and the one it is from."""
    run = Finetune(clip=CLIP, encoder=SHAPE, weights=str(weights), head="rows", head_map=head_map)
    model, source = classifier_of(run, videos(*classes)), stored.load(weights)
    assert isinstance(source, Classifier)
    return model, source


def test_rows_are_found_by_the_names_of_classes(weights: Path) -> None:
    model, source = carried(weights, "diving", "yoga")
    for name, value in source.state_dict().items():
        wanted = value[[1, 4]] if name.startswith("head.") else value
        assert torch.equal(model.state_dict()[name], wanted), name


def test_rows_are_found_by_a_map_in_any_order_of_the_videos_classes(
    weights: Path, head_map: Callable[..., str]
) -> None:
    model, source = carried(weights, *sorted(TARGET), head_map=head_map())
    assert torch.equal(model.head.weight, source.head.weight[[0, 2, 4]])
    assert torch.equal(model.head.bias, source.head.bias[[0, 2, 4]])
    assert heads.target_classes(weights, head_map()) == TARGET


@pytest.mark.parametrize(
    "text", ["[4, 2, 0]", "4\n2\n0\n", "\n4\n2\n0"], ids=["json", "a line each", "an empty line"]
)
def test_published_maps_are_numbers_alone(weights: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "label_710to400.txt"
    path.write_text(text)
    assert heads.read_head_map(path) == ((4, 2, 0), (), ())
    assert heads.target_classes(weights, path) == ("yoga", "hugging (not baby)", "bowling")
    stored.save(merged_model(tuple("01234")), weights)  # K710 as published has no names
    assert heads.target_classes(weights, path) == ("0", "1", "2")
    assert heads.rows_for(weights, ("0", "1", "2"), path) == (4, 2, 0)


def test_a_new_head_keeps_nothing_but_the_encoder(weights: Path) -> None:
    run = Finetune(clip=CLIP, encoder=SHAPE, weights=str(weights))
    model, source = classifier_of(run, videos("diving", "yoga")), stored.load(weights)
    assert torch.equal(model.fc_norm.weight, torch.ones(16))
    assert model.head.weight.abs().max() < 1e-3  # 0.02 times the published 0.001
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name


def test_gathered_answers_are_the_merged_ones_of_these_rows(
    weights: Path, head_map: Callable[..., str], tmp_path: Path
) -> None:
    source = stored.load(weights)
    assert isinstance(source, Classifier)
    part = heads.gathered(source, head_map())
    clip = torch.rand(2, 3, 4, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(part(clip), source(clip)[:, ROWS], rtol=0, atol=1e-5)
    assert (part.card.classes, part.num_classes, part.training) == (TARGET, 3, False)
    assert source.num_classes == 5
    stored.save(part, tmp_path / "k400.safetensors")
    loaded = stored.load(tmp_path / "k400.safetensors")
    assert loaded.card == part.card
    with torch.no_grad():
        assert torch.equal(loaded(clip), part(clip))


def test_a_published_head_is_gathered_and_written_as_published(tmp_path: Path) -> None:
    merged = merged_model(tuple("0123456"))  # as V2's of K710: classes without names
    layouts.write(stored.found_of(merged), "videomae-v2", tmp_path / "k710.pth")
    (tmp_path / "map.json").write_text("[4, 2, 0]")
    told = Told(position="sinusoid_1d", heads=2, trained=(4, 16, 16))
    part = heads.part(stored.opened(tmp_path / "k710.pth", told), tmp_path / "map.json")
    assert part.header["classes"] == ["0", "1", "2"]
    assert [(one.name, one.before, one.after) for one in part.report.resized] == [
        ("head.weight", "7 rows", "3 rows"),
        ("head.bias", "7 rows", "3 rows"),
    ]
    layouts.write(part, "videomae-v2", tmp_path / "k400.pth")
    states = [torch.load(tmp_path / name)["model"] for name in ("k710.pth", "k400.pth")]
    assert [*states[0]] == [*states[1]]
    for name, value in states[0].items():
        wanted = value[ROWS] if name.startswith("head.") else value
        assert torch.equal(states[1][name], wanted), name
    model, clip = stored.load(tmp_path / "k400.pth", told=told), torch.rand(2, 3, 4, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(clip), merged(clip)[:, ROWS], rtol=0, atol=1e-5)


def test_parts_of_ours_have_the_maps_names(
    weights: Path, head_map: Callable[..., str], tmp_path: Path
) -> None:
    part = heads.part(stored.opened(weights), head_map())
    stored.write(part, tmp_path / "part.safetensors")
    loaded, source = stored.load(tmp_path / "part.safetensors"), stored.load(weights)
    assert loaded.card.classes == TARGET
    assert torch.equal(loaded.head.weight, source.head.weight[ROWS])
    with pytest.raises(TubeletError, match=r"names row 9, and the head in .*k710.* has 5"):
        heads.part(stored.opened(weights), head_map(rows=[4, 2, 9]))


def test_gather_head_names_the_classes_and_refuses_wrong_rows() -> None:
    model = merged_model()
    assert model.gather_head([3, 1]).card.classes == ("skiing mono", "diving")
    with pytest.raises(TubeletError, match=r"rows \[1\] were asked for.*each of them once"):
        model.gather_head([1, 0, 1])
    with pytest.raises(TubeletError, match=r"rows \[-1, 5\].*from 0 to 4"):
        model.gather_head([5, -1])
    with pytest.raises(TubeletError, match="0 rows"):
        model.gather_head([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [4, 2, 4]}, "the row 4 more than once"),
        ({"classes": ["yoga", "yoga", "bowling"]}, "the class 'yoga' more than once"),
        ({"rows": [4, 2]}, '2 rows, 3 classes and 3 merged names: expected "rows"'),
        ({"rows": [4, 2, -1]}, "numbers from 0 on"),
        ({"rows": ["4", "2", "0"]}, "numbers from 0 on"),
        ({"rows": 4}, "cannot be read as a map of head rows"),
        ({"rows": [4, 2, 9]}, "names row 9, and the head in .* has 5"),
        ({"rows": [4, 2, 1]}, "row 1 is 'bowling', and in .* it is 'diving'"),
    ],
)
def test_maps_that_cannot_be_are_errors(
    weights: Path, head_map: Callable[..., str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TubeletError, match=message):
        heads.rows_for(weights, TARGET, head_map(**changes))


def test_classes_without_a_row_are_errors(weights: Path, head_map: Callable[..., str]) -> None:
    with pytest.raises(
        TubeletError, match=r"no row for 1 of 2 classes: 'hugging'.*Nearest.*not baby"
    ):
        heads.rows_for(weights, ("yoga", "hugging"))
    with pytest.raises(TubeletError, match="no row for 1 of 1 classes: 'diving'"):
        heads.rows_for(weights, ("diving",), head_map())
    with pytest.raises(TubeletError, match="videos are known by number alone"):
        heads.rows_for(weights, ("0", "1"))
    stored.save(merged_model(tuple("01234")), weights)
    assert heads.rows_for(weights, tuple("01234")) == (0, 1, 2, 3, 4)  # the same set
    with pytest.raises(TubeletError, match="videos are known by number alone"):
        heads.rows_for(weights, ("0", "1"))
    with pytest.raises(TubeletError, match="head are known by number alone"):
        heads.rows_for(weights, ("yoga", "diving"))


def test_what_has_no_head_is_an_error_before_training(tmp_path: Path, weights: Path) -> None:
    pretrained = VideoMAE(clip=CLIP, encoder=SHAPE).model()
    pretrained.card = Card(CLIP, run={"type": "tubelet.methods.videomae:VideoMAE"})
    stored.save(pretrained, tmp_path / "pre.safetensors")
    run = Finetune(clip=CLIP, encoder=SHAPE, head="rows")
    with pytest.raises(TubeletError, match=r"pre.safetensors is a pretrained encoder.*--head new"):
        classifier_of(replace(run, weights=str(tmp_path / "pre.safetensors")), videos("a", "b"))
    with pytest.raises(TubeletError, match=r"pre.safetensors is a pretrained encoder"):
        heads.part(stored.opened(tmp_path / "pre.safetensors"), "k400.json")
    with pytest.raises(TubeletError, match="no weights were given"):
        classifier_of(run, videos("a", "b"))
    numbers = VideoList((Entry("a.mp4", (0.5,)),), (), "list.csv", "regression")
    with pytest.raises(TubeletError, match="numbers to be regressed"):
        classifier_of(replace(run, weights=str(weights)), numbers)
    with pytest.raises(TubeletError, match="add --head rows"):
        Finetune(head_map="k400.json")


def test_a_list_in_another_order_than_the_map_is_not_scored(
    weights: Path, head_map: Callable[..., str]
) -> None:
    with pytest.raises(TubeletError, match=r"not in the order of .*k400.json"):
        evaluate(weights, videos(*sorted(TARGET)), head_map=head_map())


def test_recipes_after_k710_carry_its_rows_where_published() -> None:
    kept = {
        name: getattr(videomae_v2, f"giant_k710_{name}finetune").head
        for name in ("", "k400_", "k600_", "ucf101_", "hmdb51_")
    }
    assert kept == {"": "new", "k400_": "rows", "k600_": "rows", "ucf101_": "new", "hmdb51_": "new"}
