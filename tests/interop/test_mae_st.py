"""MAE-ST's files in PySlowFast's layout: separate positions become one table, and are given back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import features, randomised, same_state
from torch import Tensor

from tubelet import stored
from tubelet.backbones.backbone import KINETICS_MEAN, KINETICS_STD
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.interop.tables import POSITIONS
from tubelet.model import Classifier, MaskedModel

WIDTH, SLOTS, SIDE = 48, 4, 4  # of clips of 8x32x32, in patches of 2x8x8
SHAPE = ViTShape(
    *(WIDTH, 2, 3),
    patch=8,
    position="learned",
    class_token=True,
    mean=KINETICS_MEAN,
    std=KINETICS_STD,
)
HEADS = {"heads": 3}


def block(prefix: str, width: int) -> dict[str, Tensor]:
    """The 12 entries of a block."""
    shapes = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    return {f"{prefix}{name}": torch.randn(shape) * 0.1 for name, shape in shapes.items()}


def trunk(*, joint: bool = False, side: int = SIDE, patch: int = 8) -> dict[str, Tensor]:
    """The specification, 10.2, in a small size."""
    cells = side**2
    tables = {
        "pos_embed_spatial": torch.randn(1, cells, WIDTH),
        "pos_embed_temporal": torch.randn(1, SLOTS, WIDTH),
        "pos_embed_class": torch.randn(1, 1, WIDTH),
    }
    return {
        "cls_token": torch.randn(1, 1, WIDTH),
        **({"pos_embed": torch.randn(1, 1 + SLOTS * cells, WIDTH)} if joint else tables),
        "patch_embed.proj.weight": torch.randn(WIDTH, 3, 2, patch, patch) * 0.1,
        "patch_embed.proj.bias": torch.randn(WIDTH),
        **block("blocks.0.", WIDTH),
        **block("blocks.1.", WIDTH),
        "norm.weight": torch.randn(WIDTH),
        "norm.bias": torch.randn(WIDTH),
    }


def pretrained(**size: Any) -> dict[str, Tensor]:
    return trunk(**size) | {
        "mask_token": torch.randn(1, 1, 32),
        "decoder_embed.weight": torch.randn(32, WIDTH),
        "decoder_embed.bias": torch.randn(32),
        "decoder_pos_embed": torch.randn(1, 1 + SLOTS * SIDE**2, 32),
        **block("pred_head.transforms.0.0.", 32),
        "pred_head.transforms.0.4.weight": torch.randn(32),
        "pred_head.transforms.0.4.bias": torch.randn(32),
        "pred_head.projections.0.weight": torch.randn(192, 32),
        "pred_head.projections.0.bias": torch.randn(192),
    }


def finetuned(**size: Any) -> dict[str, Tensor]:
    head = {"weight": torch.randn(5, WIDTH), "bias": torch.randn(5)}
    return trunk(**size) | {f"head.projection.{name}": value for name, value in head.items()}


def save(path: Path, state: dict[str, Tensor], cfg: str = "") -> Path:
    told = {"cfg": cfg} if cfg else {}
    torch.save({"epoch": 3, "model_state": state, "optimizer_state": {}, **told}, path)
    return path


def slow_table(state: dict[str, Tensor]) -> Tensor:
    """Row by row: the class token's, then of each slot and place."""
    rows = [state["pos_embed_class"][0, 0]]
    for t in range(SLOTS):
        for place in range(state["pos_embed_spatial"].shape[1]):
            rows.append(state["pos_embed_temporal"][0, t] + state["pos_embed_spatial"][0, place])
    return torch.stack(rows)


@pytest.mark.parametrize("make", [pretrained, finetuned, trunk])
def test_there_and_back_is_identical(tmp_path: Path, make: Any) -> None:
    before = dict(reversed(make().items()))
    loaded = stored.load(save(tmp_path / "theirs.pyth", before), **HEADS)
    assert loaded.report.layout == "maskfeat"
    assert loaded.backbone.shape == SHAPE
    assert loaded.backbone.trained == (8, 32, 32)
    assert torch.equal(loaded.state_dict()[POSITIONS], slow_table(before))
    same_state(layouts.state_of(stored.found_of(loaded), "maskfeat"), before)
    stored.save(loaded, tmp_path / "ours.safetensors")
    again = stored.found_of(stored.load(tmp_path / "ours.safetensors"))
    layouts.write(again, "maskfeat", tmp_path / "again.pyth")
    same_state(torch.load(tmp_path / "again.pyth", weights_only=True)["model_state"], before)


def test_half_precision_is_summed_in_full(tmp_path: Path) -> None:
    before = {name: value.half() for name, value in pretrained().items()}
    loaded = stored.load(save(tmp_path / "x.pyth", before), **HEADS)
    full = slow_table({name: value.float() for name, value in before.items()})
    assert torch.equal(loaded.state_dict()[POSITIONS], full)
    same_state(layouts.state_of(stored.found_of(loaded), "maskfeat"), before)


def test_the_decoder_has_no_place_and_is_kept(tmp_path: Path) -> None:
    before = pretrained()
    path = save(tmp_path / "x.pyth", before)
    loaded = stored.load(path, **HEADS)
    assert isinstance(loaded, MaskedModel)
    assert not loaded.branches
    decoder = {n for n in before if n.startswith(("mask_token", "decoder_", "pred_head."))}
    gone = {one.name: one.why for one in loaded.report.dropped if "second frame" in one.why}
    assert set(gone) == decoder
    alone = stored.load(path, encoder_only=True, **HEADS)
    left = layouts.state_of(stored.found_of(alone), "maskfeat")
    assert set(left) == set(before) - decoder


def slowly(state: dict[str, Tensor], clip: Tensor) -> Tensor:
    """Logits by formulas: patches as one product each, attention by its definition."""
    d = {name: value.double() for name, value in state.items()}
    x = (clip.double() - 0.45) / 0.225
    weight = d["patch_embed.proj.weight"]
    rows = [d["cls_token"][0, 0]]
    for t in range(SLOTS):
        for h in range(SIDE):
            for w in range(SIDE):
                cut = x[0, :, 2 * t : 2 * t + 2, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8]
                rows.append((weight * cut).sum((1, 2, 3, 4)) + d["patch_embed.proj.bias"])
    y = torch.stack(rows) + slow_table(d)
    norm = torch.nn.functional.layer_norm
    for i in range(2):
        b = {
            n.removeprefix(f"blocks.{i}."): v for n, v in d.items() if n.startswith(f"blocks.{i}.")
        }
        z = norm(y, (WIDTH,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        q, k, v = (
            part.unflatten(1, (3, 16)).transpose(0, 1)
            for part in (z @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).chunk(3, 1)
        )
        share = (q @ k.transpose(1, 2) / 4).softmax(-1)
        seen = (share @ v).transpose(0, 1).flatten(1)
        y = y + seen @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        z = norm(y, (WIDTH,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        z = torch.nn.functional.gelu(z @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        y = y + z @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    pooled = norm(y[1:].mean(0), (WIDTH,), d["norm.weight"], d["norm.bias"], 1e-6)
    return pooled @ d["head.projection.weight"].T + d["head.projection.bias"]


def test_logits_are_those_of_the_formulas(tmp_path: Path) -> None:
    """The bias of keys, which ours have not, is among theirs."""
    state = finetuned()
    loaded = stored.load(save(tmp_path / "x.pyth", state), **HEADS)
    assert isinstance(loaded, Classifier)
    clip = torch.rand(1, 3, 8, 32, 32)
    expected = slowly(state, clip)
    assert ((loaded(clip)[0] - expected).abs().max() / expected.abs().max()) < 1e-5


def test_positions_that_were_trained_on_cannot_be_taken_apart(tmp_path: Path) -> None:
    loaded = stored.load(save(tmp_path / "x.pyth", finetuned()), **HEADS)
    with torch.no_grad():
        loaded.get_parameter(POSITIONS)[3, 5] += 0.1
    with pytest.raises(TubeletError, match=r"cannot be taken apart: convert it --to tubelet"):
        layouts.state_of(stored.found_of(loaded), "maskfeat")


def test_one_table_for_all(tmp_path: Path) -> None:
    before = finetuned(joint=True)
    path = save(tmp_path / "x.pyth", before)
    loaded = stored.load(path, trained=(8, 32, 32), **HEADS)
    assert torch.equal(loaded.state_dict()[POSITIONS], before["pos_embed"][0])
    same_state(layouts.state_of(stored.found_of(loaded), "maskfeat"), before)
    with pytest.raises(TubeletError, match=r"64 positions.*--trained FRAMES HEIGHT WIDTH"):
        stored.load(path, **HEADS)  # 16 frames would be 8 slots of no square
    cfg = "DATA:\n  NUM_FRAMES: 8\n"
    told = stored.load(save(path, before, cfg), **HEADS)
    assert told.backbone.trained == (8, 32, 32)


@pytest.mark.parametrize("head", [True, False])
def test_a_network_of_ours_is_written_with_one_table(tmp_path: Path, head: bool) -> None:
    encoder = ViT(SHAPE, trained=(8, 32, 32), final_norm=not head)
    model = randomised(Classifier(encoder, 5) if head else MaskedModel(encoder, []))
    layouts.write(stored.found_of(model), "maskfeat", tmp_path / "x.pyth")
    loaded = stored.load(tmp_path / "x.pyth", trained=(8, 32, 32), **HEADS)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"position": "sincos_3d"}, r"MAE-ST's layout has no place .*position 'sincos_3d'"),
        ({"class_token": False}, r"class_token False"),
        ({"mean": (), "std": ()}, r"mean \(0\.485, .*by \(0\.45, .*--to tubelet"),
    ],
)
def test_what_has_no_place_is_not_written(shape: Any, says: str) -> None:
    model = MaskedModel(ViT(replace(SHAPE, **shape), trained=(8, 32, 32)), [])
    with pytest.raises(TubeletError, match=says):
        layouts.state_of(stored.found_of(model), "maskfeat")


def lacks_slots(state: dict[str, Tensor]) -> None:
    del state["pos_embed_temporal"]


def narrow(state: dict[str, Tensor]) -> None:
    state["pos_embed_class"] = torch.zeros(1, 1, 40)


def oblong(state: dict[str, Tensor]) -> None:
    state["pos_embed_spatial"] = torch.zeros(1, 15, WIDTH)


@pytest.mark.parametrize(
    ("damage", "told", "says"),
    [
        (lacks_slots, {}, r"lacks one of pos_embed_class, pos_embed_spatial, pos_embed_temporal"),
        (narrow, {}, r"pos_embed_class is \[1, 1, 40\]: expected \[1,N,48\]"),
        (oblong, {}, r"60 positions.*--trained"),
        (lambda _: None, {"trained": (16, 32, 16)}, r"4 time slots, which are 8 frames"),
        (lambda _: None, {"heads": None}, r"how many heads.*--heads one of 1, 2, 3"),
    ],
)
def test_what_is_damaged_or_not_said(tmp_path: Path, damage: Any, told: Any, says: str) -> None:
    state = pretrained()
    damage(state)
    with pytest.raises(TubeletError, match=says):
        stored.load(save(tmp_path / "x.pyth", state), **{**HEADS, **told})


@pytest.mark.parametrize(("frames", "size"), [(16, (224, 224)), (8, (320, 320)), (8, (160, 288))])
@pytest.mark.parametrize("make", [pretrained, finetuned])
def test_clips_of_another_size(
    tmp_path: Path, make: Any, frames: int, size: tuple[int, int]
) -> None:
    """Trained on 8 frames of 224 pixels, in patches of 2x16x16."""
    path = save(tmp_path / "x.pyth", make(side=14, patch=16))
    loaded = stored.load(path, num_frames=frames, img_size=size, **HEADS)
    ((name, before, after, how),) = loaded.report.resized
    grid = (frames // 2, size[0] // 16, size[1] // 16)
    assert (name, before, how) == ("backbone.positions", "4x14x14", "interpolated")
    assert after == "x".join(map(str, grid))
    with torch.no_grad():
        seen = features(loaded, torch.rand(1, 3, frames, *size))
    assert seen.shape[1] == grid[0] * grid[1] * grid[2]
    same = stored.load(path, num_frames=8, img_size=224, **HEADS)
    assert not same.report.resized
    clip = torch.rand(1, 3, 8, 224, 224)
    with torch.no_grad():
        assert torch.equal(features(same, clip), features(stored.load(path, **HEADS), clip))


def test_a_larger_clip_has_positions_between_those_of_the_trained(tmp_path: Path) -> None:
    """Twice the slots: row i is read at (i + 1/2) / 2 - 1/2, of the sums and so of the slots."""
    state = trunk()
    loaded = stored.load(save(tmp_path / "x.pyth", state), num_frames=16, **HEADS)
    positions: Any = loaded.backbone.positions
    table = positions(loaded.backbone.grid_for(16, 32, 32)).unflatten(0, (8, 16))
    slots, places = state["pos_embed_temporal"][0], state["pos_embed_spatial"][0]
    for i in range(8):
        at = min(max((i + 0.5) / 2 - 0.5, 0.0), 3.0)
        low, share = int(at), at - int(at)
        slot = (1 - share) * slots[low] + share * slots[min(low + 1, 3)]
        assert (table[i] - (slot + places)).abs().max() < 1e-5


def test_fine_tuning_takes_the_encoder(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pyth", pretrained())
    encoder, card = stored.encoder_of(path, told=stored.Told(**HEADS))
    assert (card.clip.num_frames, card.clip.size) == (8, (32, 32))
    assert isinstance(encoder.norm, torch.nn.Identity)
    assert encoder.shape == SHAPE
