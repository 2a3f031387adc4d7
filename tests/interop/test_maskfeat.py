"""MaskFeat's files in PySlowFast's layout, of clips and of images: both ways, and at other sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import same_state, theirs
from maskfeat_files import FRAME, IMAGE, SHAPE, SPEC, TUNED, clips, finetuned, pretrained, save
from torch import Tensor

from tubelet import stored
from tubelet.backbones.mvit import MVIT_BASE, MVIT_LARGE, MVIT_SMALL, MViT, MViTShape
from tubelet.backbones.vit import ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop import layouts, maskfeat
from tubelet.interop.found import NOTHING, Found, Told
from tubelet.interop.ledger import Ledger
from tubelet.interop.reading import Raw
from tubelet.masks import pack
from tubelet.methods import maskfeat as runs
from tubelet.methods.maskfeat import MaskFeat
from tubelet.methods.run import changed, from_dict
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Classifier, MaskedModel, VideoModel

CFG = """AUG:
  MASK_RATIO: 0.4
DATA:
  MEAN:
  - 0.4
  - 0.5
  - 0.6
  NUM_FRAMES: 4
  SAMPLING_RATE: 2
  STD: [0.2, 0.25, 0.3]
MVIT:
  POOL_KV_STRIDE_ADAPTIVE:
  - 1
  - 8
  - 8
  POOL_Q_STRIDE:
  - - 0
    - 1
    - 1
    - 1
  - [1, 1, 2, 2]
  - [2, 1, 2, 2]
  - [3, 1, 2, 2]
  USE_MEAN_POOLING: true
NUM_GPUS: 8
"""


def read(state: dict[str, Tensor], told: Told = NOTHING) -> Found:
    """What is found in tensors without a file, as they may have no numbers (meta)."""
    return maskfeat.read(Ledger(Raw(Path("file.pyth"), state), told))


def there_and_back(model: VideoModel, tmp_path: Path, **told: Any) -> Any:
    """The model of a file that the first wrote, which gives that file's tensors again, directly and
    by way of a file of ours."""
    # In another order than ours, and in float16 where that holds the values.
    before = dict(reversed(theirs(model, "maskfeat").items()))
    before["cls_token"] = before["cls_token"].half()
    path = save(tmp_path / "theirs.pyth", before)
    loaded = stored.load(path, **told)
    same_state(layouts.state_of(stored.found_of(loaded), "maskfeat"), before)
    stored.save(loaded, tmp_path / "ours.safetensors")
    again = stored.found_of(stored.load(tmp_path / "ours.safetensors"))
    layouts.write(again, "maskfeat", tmp_path / "again.pyth")
    written = torch.load(tmp_path / "again.pyth", weights_only=True)
    same_state(written["model_state"], before)
    return loaded


# --- names and sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "entries", "parameters"),
    [
        ("small_k400", 400, 36_253_356),
        ("large_k400", 1168, 217_247_580),
        ("base_in1k", 155, 85_882_476),
        ("large_in1k", 299, 303_413_356),
    ],
)
def test_the_published_files_are_read_as_their_runs(
    run: str, entries: int, parameters: int
) -> None:
    """Counts of the specification, 8.1, 8.4 and 10.3; of images 12 entries a block, and 11 others."""
    named: MaskFeat = getattr(runs, run)
    with torch.device("meta"):
        model = named.model()
    learned = maskfeat.names_back(model.state_dict(), "pretraining")
    assert sum(value.numel() for value in learned.values()) == parameters
    state = learned | maskfeat.filters()
    assert len(state) == entries
    found = read(state)
    made = from_dict(found.header["run"])
    assert isinstance(made, MaskFeat)
    assert made.encoder == named.encoder
    assert (made.target, made.mask_type, made.mask_unit) == (
        "hog",
        named.mask_type,
        named.mask_unit,
    )
    assert made.clip == named.clip
    assert set(found.weights) == set(model.state_dict())
    told = [note for note in found.report.notes if "as published" in note]
    assert len(told) == (1 if "k400" in run else 0)  # that keys are pooled by 8 shows in no table


@pytest.mark.parametrize("widen", ["mlp", "attention"])
@pytest.mark.parametrize("shape", [MVIT_SMALL, MVIT_BASE, MVIT_LARGE])
def test_sizes_of_fine_tuned_and_supervised_networks(shape: MViTShape, widen: Any) -> None:
    shape = replace(shape, widen=widen)
    with torch.device("meta"):
        encoder = MViT(shape, trained=(32, 312, 312), masked=False)
        state = maskfeat.names_back(MaskedModel(encoder, []).state_dict(), "encoder")
    found = read(state)
    assert MViTShape(**found.header["backbone"]["shape"]) == shape
    assert found.header["backbone"]["trained"] == [32, 312, 312]
    assert found.header["backbone"]["final_norm"]


def test_pretrained_clips_there_and_back(tmp_path: Path) -> None:
    model = pretrained()
    loaded = there_and_back(model, tmp_path)
    assert loaded.report.layout == "maskfeat"
    assert loaded.backbone.shape == SHAPE
    assert loaded.card.clip == SPEC
    assert [one.name for one in loaded.report.dropped] == [
        *("epoch", "optimizer_state", "hogs.0.weight_y", "hogs.0.weight_x")
    ]
    masks = pack(torch.rand(1, 1, loaded.backbone.grid.size) < 0.5, replace=True)
    model.backbone.class_token.data = model.backbone.class_token.half().float()
    assert torch.equal(loaded.predict(clips(), masks)["hog"], model.predict(clips(), masks)["hog"])


def test_fine_tuned_clips_ask_for_what_no_table_tells(tmp_path: Path) -> None:
    model = finetuned()
    path = save(tmp_path / "x.pyth", theirs(model, "maskfeat"))
    with pytest.raises(TubeletError, match=r"pool their queries.*--pooled 1 2 3 or 1 2 3 4 \(in P"):
        stored.load(path)
    loaded = there_and_back(model, tmp_path, pooled=(1, 2, 3))
    assert loaded.card.classes == tuple("01234")
    other = stored.load(path, pooled=(1, 2, 3, 4))  # the same tensors, another network
    assert not torch.equal(other(clips()), loaded(clips()))
    for wrong in ((1, 2), (1, 2, 3, 9), (-1, 1, 2, 3)):
        with pytest.raises(TubeletError, match=r"fit no MViTv2 .*4x32x32.*--pooled"):
            stored.load(path, pooled=wrong)


def test_keys_pooled_by_more_than_the_tables_tell_are_asked_for(tmp_path: Path) -> None:
    shape = replace(SHAPE, depths=(1, 1), widths=(8, 16), heads=(1, 2), pool_kv=4)
    encoder = MViT(shape, trained=(4, 32, 32), final_norm=False, masked=False)
    path = save(
        tmp_path / "x.pyth", maskfeat.names_back(MaskedModel(encoder, []).state_dict(), "encoder")
    )
    with pytest.raises(TubeletError, match=r"--pooled 1 or \(none\).*--pool-kv 1 or 2 or 4 or 8"):
        stored.load(path)
    assert stored.load(path, pooled=(), pool_kv=4).backbone.shape == shape


def test_the_configuration_beside_the_weights_is_read(tmp_path: Path) -> None:
    model = finetuned(replace(TUNED, widen="attention"))
    loaded = stored.load(save(tmp_path / "x.pyth", theirs(model, "maskfeat"), CFG))
    assert loaded.backbone.shape.mean == (0.4, 0.5, 0.6)
    assert loaded.backbone.shape.std == (0.2, 0.25, 0.3)
    assert loaded.backbone.shape.depths == SHAPE.depths
    assert loaded.card.clip.sampling_rate == 2
    more = CFG.replace("  - [3, 1, 2, 2]\n", "  - [3, 1, 2, 2]\n  - [4, 1, 2, 2]\n")
    other = stored.load(save(tmp_path / "y.pyth", theirs(model, "maskfeat"), more))
    assert other.backbone.shape.depths == (1, 1, 1, 1, 1)


def test_heads_on_the_class_token_are_refused(tmp_path: Path) -> None:
    state = theirs(finetuned(replace(TUNED, widen="attention")), "maskfeat")
    told = {"pooled": (1, 2, 3)}
    for cfg in ("", CFG.replace("  USE_MEAN_POOLING: true\n", ""), CFG.replace("true", "false")):
        path = save(tmp_path / "x.pyth", state, cfg)
        with pytest.raises(TubeletError, match=r"reads? its class token.*--encoder-only"):
            stored.load(path, **told)
    loaded = stored.load(path, encoder_only=True, **told)
    assert isinstance(loaded, MaskedModel)
    assert not loaded.branches
    gone = {one.name for one in loaded.report.dropped if one.why.startswith("only the encoder")}
    assert gone == {n for n in state if n.startswith(("norm.", "head."))}


def test_an_encoder_alone_keeps_its_mask_token_for_the_way_back(tmp_path: Path) -> None:
    before = {n: v for n, v in theirs(pretrained(), "maskfeat").items() if "pred_head" not in n}
    path = save(tmp_path / "x.pyth", before)
    loaded = stored.load(path, pooled=(1, 2), pool_kv=8)
    assert loaded.backbone.mask_token is None
    same_state(layouts.state_of(stored.found_of(loaded), "maskfeat"), before)
    alone = stored.load(save(path, theirs(pretrained(), "maskfeat")), encoder_only=True)
    assert not any("pred" in name for name in layouts.state_of(stored.found_of(alone), "maskfeat"))


def test_an_old_spelling_is_read_and_written_again(tmp_path: Path) -> None:
    old = {
        name.replace("patch_embed.proj.", "patch_embed.project."): value
        for name, value in theirs(pretrained(), "maskfeat").items()
    }
    loaded = stored.load(save(tmp_path / "x.pyth", old))
    same_state(layouts.state_of(stored.found_of(loaded), "maskfeat"), old)


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["hog", "pixels"])
def test_pretrained_images_there_and_back(tmp_path: Path, target: Any) -> None:
    model = pretrained(IMAGE, FRAME, target=target, mask_type="tube", mask_unit=(1, 1, 1))
    state = theirs(model, "maskfeat")
    assert state["patch_embed.proj.weight"].shape == (48, 3, 8, 8)
    assert state["pos_embed"].shape == (1, 13, 48)
    assert state["blocks.1.attn.qkv.bias"].shape == (144,)
    loaded = there_and_back(model, tmp_path, heads=3, trained=(1, 32, 24))
    assert loaded.backbone.shape == IMAGE
    assert loaded.card.clip == FRAME
    assert list(loaded.branches) == [target]


def test_fine_tuned_images_keep_the_biases_of_keys(tmp_path: Path) -> None:
    state = theirs(finetuned(IMAGE, FRAME), "maskfeat")
    state["blocks.0.attn.qkv.bias"] = torch.randn(144)
    path = save(tmp_path / "x.pyth", state)
    loaded = stored.load(path, heads=3, trained=(1, 32, 24))
    assert isinstance(loaded, Classifier)
    same_state(layouts.state_of(stored.found_of(loaded), "maskfeat"), state)
    q, _, v = state["blocks.0.attn.qkv.bias"].chunk(3)
    assert torch.equal(loaded.state_dict()["backbone.blocks.0.attn.q_bias"], q)
    assert torch.equal(loaded.state_dict()["backbone.blocks.0.attn.v_bias"], v)


# --- what is refused ------------------------------------------------------------------------------


def turned(state: dict[str, Tensor]) -> None:
    state["hogs.0.weight_x"] = -state["hogs.0.weight_x"]


def second_head(state: dict[str, Tensor]) -> None:
    state["pred_head.projections.1.weight"] = state["pred_head.projections.0.weight"].clone()


def other_width(state: dict[str, Tensor]) -> None:
    state["pred_head.projections.0.weight"] = torch.zeros(96, 64)


def no_time(state: dict[str, Tensor]) -> None:
    del state["blocks.2.attn.rel_pos_t"]


def cut_table(state: dict[str, Tensor]) -> None:
    state["blocks.2.attn.rel_pos_h"] = state["blocks.2.attn.rel_pos_h"][1:].clone()


def other_kernel(state: dict[str, Tensor]) -> None:
    state["patch_embed.proj.weight"] = torch.zeros(8, 3, 7, 7)


def scalar(state: dict[str, Tensor]) -> None:
    state["blocks.1.norm1.weight"] = torch.tensor(1.0)


def odd_heads(state: dict[str, Tensor]) -> None:
    state["blocks.1.attn.pool_q.weight"] = torch.zeros(7, 1, 3, 3, 3)


def no_block(state: dict[str, Tensor]) -> None:
    for name in [name for name in state if name.startswith("blocks.1.")]:
        del state[name]


def positions(state: dict[str, Tensor]) -> None:
    state["pos_embed_spatial"] = torch.zeros(1, 64, 8)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (turned, r"hogs\.0\.weight_x is not Sobel's.*--encoder-only"),
        (second_head, r"not one head.*pred_head\.projections\.0.*--encoder-only"),
        (other_width, r"predicts 96 values a token.*are 108: take its encoder"),
        (no_time, r"lacks blocks\.2\.attn\.rel_pos_t"),
        (cut_table, r"fit no MViTv2 trained on clips of 4x32x32"),
        (other_kernel, r"patches are \[8, 3, 7, 7\], expected \[D,C,3,7,7\]"),
        (scalar, r"blocks\.1\.norm1\.weight is a single number"),
        (odd_heads, r"attention of block 1 is 16 wide.* 7 channels"),
        (no_block, r"blocks\.1 is missing"),
        (positions, r"no place for: pos_embed_spatial"),
    ],
)
def test_what_is_damaged_or_another_network_is_said(tmp_path: Path, damage: Any, says: str) -> None:
    state = theirs(pretrained(), "maskfeat")
    damage(state)
    with pytest.raises(TubeletError, match=says):
        stored.load(save(tmp_path / "x.pyth", state))


def test_what_has_no_place_is_not_written() -> None:
    plain = VideoMAE(clip=SPEC, encoder=ViTShape(48, 2, 3, patch=8), decoder=DecoderShape(16, 1, 2))
    with pytest.raises(TubeletError, match="no place for this model: position 'sinusoid_1d'"):
        theirs(plain.model(), "maskfeat")
    drops = replace(IMAGE, hide="drop")
    model = changed(
        MaskFeat(encoder=IMAGE, clip=FRAME), encoder=drops, decoder=DecoderShape(16, 1, 2)
    )
    with pytest.raises(TubeletError, match="hide 'drop'"):
        theirs(model.model(), "maskfeat")
