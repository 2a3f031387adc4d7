"""MVD's students and fine-tuned models, and trunks of clips with a position table: both ways."""

from pathlib import Path

import pytest
import torch
from foreign import (
    DECODED,
    TOLD,
    classifier_model,
    encoder_model,
    same_state,
    save,
    student_model,
    theirs,
)
from torch import Tensor

from tubelet import stored
from tubelet.errors import TubeletError
from tubelet.interop import layouts, mvd
from tubelet.interop.names import renamed
from tubelet.masks import pack
from tubelet.methods.mvd import Distilled, base_from_base_k400
from tubelet.shapes import ClipSpec

HEADS = {"heads": 3, "decoder_heads": 2}


def test_names_and_shapes_are_those_of_the_published_files() -> None:
    """The specification's counts, 2.3, at the published size."""
    with torch.device("meta"):
        model = base_from_base_k400.model()
    names = renamed(model.state_dict(), mvd.PRETRAIN, back=True)
    assert len(names) + len(("pos_embed", "pos_embed_img", "pos_embed_vid")) == 229
    assert names["mask_token_vid"].shape == (1, 1, 768)
    assert names["decoder_img.blocks.1.attn.qkv.weight"].shape == (2304, 768)


@pytest.mark.parametrize("file", ["a.pth", "a.safetensors"])
def test_a_student_there_and_back(file: str, tmp_path: Path) -> None:
    model = student_model()
    state = theirs(model, "mvd")
    assert state["pos_embed"].shape == (1, 64, 48)
    assert state["pos_embed_vid"].shape == (1, 64, 32)
    path = save(tmp_path / file, state, num_frames=8, mask_ratio=0.75)
    told = HEADS if file == "a.pth" else DECODED  # settings beside the weights tell the frames
    found = stored.load(path, **told)
    assert found.card.run["type"] == "tubelet.methods.mvd:MVD"
    assert [found.branches[name].target.width for name in ("image", "video")] == [32, 40]
    assert found.card.run.get("mask_ratio") == (0.75 if file == "a.pth" else None)
    own = model.state_dict()
    assert found.state_dict().keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in found.state_dict().items())
    kept = [one.name for one in found.report.dropped if "fixed table" in one.why]
    assert kept == ["pos_embed", "pos_embed_img", "pos_embed_vid"]
    same_state(layouts.state_of(stored.found_of(found), "mvd"), layouts.read_raw(path).state)


@pytest.mark.parametrize("left", ["image", "video"])
def test_a_student_of_one_teacher(left: str, tmp_path: Path) -> None:
    other = {"image": "video", "video": "image"}[left]
    model = student_model(**{other: Distilled(weight=0)})
    state = theirs(model, "mvd")
    assert not any(mvd.BRANCHES[other] in name for name in state)
    found = stored.load(save(tmp_path / "a.pth", state), **DECODED)
    assert list(found.branches) == [left]
    clip, masks = torch.rand(1, 3, 8, 32, 32), pack((torch.arange(64) % 2 == 0)[None, None])
    expected = model.predict(clip, masks)[left]
    torch.testing.assert_close(found.predict(clip, masks)[left], expected, rtol=0, atol=0)


def test_a_class_token(tmp_path: Path) -> None:
    model = student_model()
    state = theirs(model, "mvd")
    state["cls_token"] = torch.randn(1, 1, 48)
    found = stored.load(save(tmp_path / "a.pth", state), **DECODED)
    assert torch.equal(found.backbone.class_token, state["cls_token"])
    same_state(layouts.state_of(stored.found_of(found), "mvd"), state)
    fine = theirs(classifier_model("sincos_3d", class_token=True), "mvd")
    tuned = stored.load(save(tmp_path / "b.pth", fine), **TOLD)  # VideoMAE's has none: no question
    assert tuned.backbone.shape.position == "sincos_3d"
    assert tuned.report.layout == "mvd"
    same_state(layouts.state_of(stored.found_of(tuned), "mvd"), fine)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tables_in_half_precision_are_still_the_fixed_ones(dtype, tmp_path: Path) -> None:
    half = {name: v.to(dtype) for name, v in theirs(student_model(), "mvd").items()}
    found = stored.load(save(tmp_path / "a.pth", half), **DECODED)
    assert found.backbone.shape.position == "sincos_3d"
    assert torch.equal(found.backbone.positions.table, student_model().backbone.positions.table)
    same_state(layouts.state_of(stored.found_of(found), "mvd"), half)
    half["pos_embed"] = (half["pos_embed"].float() + 0.02).to(dtype)
    with pytest.raises(TubeletError, match="not the fixed one"):
        stored.load(save(tmp_path / "b.pth", half), **DECODED)


def test_tables_of_neither_kind_are_refused(tmp_path: Path) -> None:
    state = theirs(student_model(), "mvd")

    def refused(**changed: Tensor) -> str:
        with pytest.raises(TubeletError) as told:
            stored.load(save(tmp_path / "a.pth", {**state, **changed}), **DECODED)
        return str(told.value)

    learned = state["pos_embed"] + 0.01
    assert "pos_embed is not the fixed one of this layout: it differs by 0.01" in refused(
        pos_embed=learned
    )
    moved = state["pos_embed_vid"].flip(1)
    assert "pos_embed_vid is not the fixed one" in refused(pos_embed_vid=moved)
    assert "60 positions" in refused(pos_embed=state["pos_embed"][:, :60])
    assert "pos_embed is [1, 64, 47]: expected [1,N,48]" in refused(
        pos_embed=state["pos_embed"][..., :47]
    )


def test_decoders_that_ours_cannot_hold(tmp_path: Path) -> None:
    state = theirs(student_model(), "mvd")
    twice = {n: v for n, v in state.items() if n.startswith("decoder_vid.blocks.0.")}
    more = {n.replace("blocks.0", "blocks.1"): v for n, v in twice.items()}
    path = save(tmp_path / "a.pth", {**state, **more})
    with pytest.raises(TubeletError, match=r"decoders of two sizes .* --encoder-only"):
        stored.load(path, **DECODED)
    found = stored.load(path, encoder_only=True, **TOLD)
    assert not len(found.branches)
    lacking = {n: v for n, v in state.items() if n != "decoder_img.head.weight"}
    with pytest.raises(TubeletError, match=r"lacks decoder_img\.head\.weight"):
        stored.load(save(tmp_path / "b.pth", lacking), **DECODED)


@pytest.mark.parametrize("position", ["sincos_3d", "sinusoid_1d", "learned"])
def test_a_trunk_with_a_table_says_its_kind_by_content(position, tmp_path: Path) -> None:
    clip = ClipSpec(num_frames=8, size=(32, 48))
    model = encoder_model(position, clip, class_token=False, tubelet_size=2)
    state = theirs(model, "mvd")
    assert state["pos_embed"].shape == (1, 96, 48)
    path = save(tmp_path / "a.pth", state, "")
    told = {"heads": 3, "trained": (8, 32, 48)}
    found = stored.load(path, **told)
    assert found.backbone.shape.position == position
    pixels = torch.rand(1, 3, 8, 32, 48)
    assert torch.equal(found.backbone(pixels).x, model.backbone(pixels).x)
    same_state(layouts.state_of(stored.found_of(found), "mvd"), state)
    other = "learned" if position == "sincos_3d" else "sincos_3d"
    with pytest.raises(TubeletError, match=f"table that is {position}, and not {other}"):
        stored.load(path, position=other, **told)


def test_learned_positions_do_not_say_the_clips(tmp_path: Path) -> None:
    """64 positions are 4 slots of 4x4 cells, or 1 of 8x8: nothing tells."""
    model = encoder_model("learned", ClipSpec(8, size=(32, 32)), class_token=False, tubelet_size=2)
    state = theirs(model, "mvd")
    state["pos_embed"] = torch.randn(1, 8 * 4 * 4, 48)
    with pytest.raises(TubeletError, match="--trained"):
        stored.load(save(tmp_path / "a.pth", state), heads=3)


def test_fine_tuned_models_and_encoders_become_files_of_mvd() -> None:
    names = list(theirs(classifier_model("sincos_3d"), "mvd"))
    assert "fc_norm.weight" in names
    assert "pos_embed" not in names
    with pytest.raises(TubeletError, match="position 'sinusoid_1d'"):
        theirs(classifier_model("sinusoid_1d"), "mvd")
    with pytest.raises(TubeletError, match="position 'sincos_3d'"):
        theirs(classifier_model("sincos_3d"), "videomae")
    with pytest.raises(TubeletError, match="no name in the other layout"):
        theirs(student_model(mask_type="none"), "mvd")


@pytest.mark.parametrize(
    ("mark", "kind"), [("remove_pos_emb", "sincos_3d"), ("with_checkpoint", "sinusoid_1d")]
)
def test_settings_tell_whose_fine_tuned_file_it_is(mark: str, kind, tmp_path: Path) -> None:
    state = theirs(classifier_model(kind), "mvd" if kind == "sincos_3d" else "videomae")
    path = save(tmp_path / "a.pth", state, **{mark: False})
    assert stored.load(path, **TOLD).backbone.shape.position == kind


def test_a_student_without_tables_has_the_positions_that_are_said(tmp_path: Path) -> None:
    state = {n: v for n, v in theirs(student_model(), "mvd").items() if "pos_embed" not in n}
    path = save(tmp_path / "a.pth", state)
    assert stored.load(path, **DECODED).backbone.shape.position == "sincos_3d"
    said = stored.load(path, position="sinusoid_1d", **DECODED)
    assert said.backbone.shape.position == "sinusoid_1d"
    with pytest.raises(TubeletError, match="no position table, and learned was said"):
        stored.load(path, position="learned", **DECODED)
