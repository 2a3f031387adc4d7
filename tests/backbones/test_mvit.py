"""The multiscale transformer: its schedule, its attention against a slow formula, its masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import tubelet
from tubelet.backbones.backbone import Backbone
from tubelet.backbones.mvit import (
    MVIT_LARGE,
    MVIT_SMALL,
    MViT,
    MViTShape,
    spread,
)
from tubelet.errors import TubeletError
from tubelet.masks import pack
from tubelet.methods.maskfeat import (
    large_k400,
    large_k400_finetune,
    small_k400,
    small_k400_finetune,
)
from tubelet.methods.mvd import MVD, Distilled
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Classifier, MaskedModel
from tubelet.shapes import ClipSpec, Grid, Patch

TINY = MViTShape((1, 2, 1), (8, 16, 32), (1, 2, 4), pool_kv=4)


def tiny(**options: object) -> MViT:
    torch.manual_seed(0)
    shape = options.pop("shape", replace(TINY, pool_last=False))
    assert isinstance(shape, MViTShape)
    return MViT(shape, **{"trained": (4, 32, 32), **options}).eval()  # pyright: ignore[reportArgumentType]


def clips(count: int = 2, frames: int = 4, side: int = 32) -> Tensor:
    return torch.rand(count, 3, frames, side, side, generator=torch.Generator().manual_seed(1))


def hidden(backbone: Backbone, rows: int, k: int = 1) -> Tensor:
    """Ragged masks, bool [rows,k,N]."""
    draws = torch.rand(rows, k, backbone.grid.size, generator=torch.Generator().manual_seed(2))
    return draws < 0.4


# --- the schedule --------------------------------------------------------------------------------


def test_the_small_schedule_is_the_published_one() -> None:
    rows = replace(MVIT_SMALL, pool_last=False).rows
    assert [row.width for row in rows] == [96, 192, 192, *[384] * 11, 768, 768]
    assert [i for i, row in enumerate(rows) if row.width != row.out] == [0, 2, 13]
    assert [row.heads for row in rows] == [1, 2, 2, *[4] * 11, 8, 8]
    assert [i for i, row in enumerate(rows) if row.pool_q == 2] == [1, 3]
    assert [row.pool_kv for row in rows] == [8, 4, 4, *[2] * 13]
    rows = MVIT_SMALL.rows
    assert [i for i, row in enumerate(rows) if row.pool_q == 2] == [1, 3, 14]
    assert [row.pool_kv for row in rows] == [8, 4, 4, *[2] * 11, 1, 1]


def test_the_large_schedule_is_the_published_one() -> None:
    rows = MVIT_LARGE.rows
    assert [row.width for row in rows] == [*[144] * 2, *[288] * 6, *[576] * 36, *[1152] * 4]
    assert [i for i, row in enumerate(rows) if row.width != row.out] == [1, 7, 43]
    assert [i for i, row in enumerate(rows) if row.pool_q == 2] == [2, 8, 44]
    assert [row.pool_kv for row in rows] == [*[8] * 2, *[4] * 6, *[2] * 36, *[1] * 4]
    assert {row.width // row.heads for row in rows} == {72}


def test_in_the_supervised_models_attention_widens_where_a_stage_begins() -> None:
    rows = replace(MVIT_SMALL, widen="attention").rows
    assert [i for i, row in enumerate(rows) if row.width != row.out] == [1, 3, 14]
    assert (rows[1].width, rows[1].out) == (96, 192)


@pytest.mark.parametrize(
    ("run", "count"),
    [(small_k400, 36_253_356), (large_k400, 217_247_580)],
    ids=["small", "large"],
)
def test_parameters_of_pretraining(run: object, count: int) -> None:
    with torch.device("meta"):
        model = run.model()  # pyright: ignore[reportAttributeAccessIssue]
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("run", "count"),
    [(small_k400_finetune, 36_475_120), (large_k400_finetune, 217_578_064)],
    ids=["small", "large"],
)
def test_parameters_of_fine_tuning(run: object, count: int) -> None:
    with torch.device("meta"):
        backbone = run.encoder.build(final_norm=False, masked=False)  # pyright: ignore[reportAttributeAccessIssue]
        model = Classifier(backbone, 400)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("name", "millions"), [("small", 34.5), ("base", 51.2), ("large", 217.6)])
def test_parameters_of_the_supervised_models(name: str, millions: float) -> None:
    """arXiv 2112.01526, Table 4; 400 classes."""
    with torch.device("meta"):
        model = tubelet.create(f"mvitv2_{name}")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


# --- masks ---------------------------------------------------------------------------------------


def test_a_mask_spreads_to_all_finer_tokens() -> None:
    mask = torch.tensor([True, False, False, True]).view(1, 1, 4)
    found = spread(mask, Grid(1, 2, 2), Grid(2, 4, 4)).view(2, 4, 4)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = expected[2:, 2:] = True
    assert torch.equal(found, expected.expand(2, 4, 4))


def test_a_mask_needs_whole_tokens() -> None:
    backbone = tiny()
    masks = pack(torch.arange(50).expand(2, 1, 50) < 9, replace=True)
    with pytest.raises(TubeletError, match=r"tubelets of 2x8x8.*Nearest that fits: 4x32x32"):
        backbone(clips(side=36), masks)


def test_what_is_hidden_beyond_the_reach_of_a_kernel_is_not_seen() -> None:
    backbone = tiny()
    grid = backbone.grid
    assert (grid, backbone.patch) == (Grid(2, 4, 4), Patch(2, 8, 8))
    mask = torch.zeros(1, 1, grid.size, dtype=torch.bool)
    mask.view(*grid)[:, 1:3, 1:3] = True  # pixels 8 to 24, in all frames
    clip, changed = clips(1), clips(1)
    changed[..., 8:21, 8:21] = 0.0  # the kernel of the next token, at 24, begins at 21
    masks = pack(mask, replace=True)
    assert torch.equal(backbone(clip, masks).x, backbone(changed, masks).x)
    changed[..., 23, 12] = 0.0  # beyond, it does see: patches overlap, as published
    assert not torch.equal(backbone(clip, masks).x, backbone(changed, masks).x)
    assert not torch.equal(backbone(clip).x, backbone(changed).x)


def test_several_masks_a_clip_are_each_as_one_alone() -> None:
    backbone = tiny()
    both = hidden(backbone, 2, k=2)
    together = backbone(clips(), pack(both, replace=True))
    assert together.x.shape == (4, backbone.grid.size, 32)
    for i in range(2):
        alone = backbone(clips(), pack(both[:, i : i + 1], replace=True))
        torch.testing.assert_close(together.x[i::2], alone.x)
        torch.testing.assert_close(together.prefix[i::2], alone.prefix)
    assert torch.equal(together.at, torch.arange(backbone.grid.size).expand(4, -1))


def test_an_encoder_for_whole_clips_refuses_masks() -> None:
    backbone = tiny(masked=False)
    assert "mask_token" not in backbone.state_dict()
    with pytest.raises(TubeletError, match="no token to put"):
        backbone(clips(), pack(hidden(backbone, 2), replace=True))


def test_the_residual_stream_stays_float32_under_autocast() -> None:
    backbone = tiny()
    seen = []
    for block in backbone.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    masks = pack(hidden(backbone, 2), replace=True)
    with torch.autocast("cpu", torch.bfloat16):
        low = backbone(clips(), masks).x
    assert seen == [torch.float32] * len(backbone.blocks)
    assert 0 < (low - backbone(clips(), masks).x).abs().max() < 0.1
    half = tiny().bfloat16()
    assert half(clips().bfloat16()).x.dtype == torch.bfloat16


def test_a_mask_as_users_write_it_may_be_ragged() -> None:
    model = MaskedModel(tiny(), [])
    mask = hidden(model.backbone, 2)[:, 0]
    assert len(set(mask.sum(1).tolist())) == 2
    assert model.forward_features(clips(), mask).shape == (2, 32, 32)


# --- the contract of a backbone ------------------------------------------------------------------


def test_inner_blocks_have_their_own_grids() -> None:
    backbone = tiny(shape=TINY)
    tokens = backbone(clips(), layers=[0, 2, -1], norm=False)
    assert tokens.layer_grids == (Grid(2, 8, 8), Grid(2, 4, 4), Grid(2, 2, 2))
    assert [tuple(x.shape) for x in tokens.layers] == [(2, 128, 16), (2, 32, 32), (2, 8, 32)]
    assert torch.equal(tokens.layers[-1], tokens.x)
    model = Classifier(tiny(shape=TINY, final_norm=False), 3)
    shapes = [tuple(x.shape) for x in model.forward_intermediates(clips(), 2)]
    assert shapes == [(2, 2, 4, 4, 32), (2, 2, 2, 2, 32)]


def test_inner_blocks_are_no_targets() -> None:
    backbone = tiny()  # rows: 8, 16 -> 16, 32: the last two have the grid and width of the output
    backbone.check_layer(-1)
    backbone.check_layer(2)
    with pytest.raises(TubeletError, match="choose layers 2 to 3"):
        backbone.check_layer(0)
    with pytest.raises(TubeletError, match="choose layers 3 to 3"):
        tiny(shape=TINY).check_layer(2)


def test_tables_at_312_pixels_are_the_published_sizes() -> None:
    with torch.device("meta"):
        backbone = MViT(MVIT_LARGE, trained=(40, 312, 312), masked=False)
    sizes = [len(backbone.get_parameter(f"blocks.{i}.attn.rel_pos_h")) for i in (0, 2, 8, 44, 47)]
    assert sizes == [155, 77, 37, 37, 17]  # 78, 39, 19 and 9 places: rounded down at each pooling
    assert len(backbone.get_parameter("blocks.47.attn.rel_pos_t")) == 39


def test_sizes_that_tokens_do_not_divide_are_taken_without_masks() -> None:
    backbone = tiny(shape=TINY)
    assert MVIT_LARGE.grid_for(40, 312, 312) == Grid(20, 10, 10)
    assert backbone(clips(frames=5, side=36)).x.shape == (2, backbone.grid_for(5, 36, 36).size, 32)


@pytest.mark.parametrize("where", ["mlp", "attention"])
def test_recomputed_blocks_give_the_same_gradients(where: str) -> None:
    found = []
    for recompute in (False, True):
        backbone = tiny(shape=replace(TINY, widen=where), drop_path=0.5).train()
        backbone.set_grad_checkpointing(recompute)
        backbone(clips(), seeds=torch.tensor([3, 4])).x.square().sum().backward()
        found.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert len(found[0]) > 30
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_it_traces_to_one_graph() -> None:
    backbone = tiny()
    masks = pack(hidden(backbone, 2), replace=True)
    expected = backbone(clips(), masks).x
    torch._dynamo.reset()  # pyright: ignore[reportPrivateImportUsage]
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    assert torch.equal(compiled(clips(), masks).x, expected)


def test_layers_of_the_decay() -> None:
    backbone = tiny()
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert {n for n, i in layers.items() if i == 0} == {
        *("patch_embed.proj.weight", "patch_embed.proj.bias", "class_token", "mask_token")
    }
    assert layers["blocks.3.attn.rel_pos_t"] == 4
    assert layers["norm.weight"] == backbone.num_layers - 1 == 5
    assert backbone.no_weight_decay() == set()  # as published, tokens and positions are decayed


def test_tables_are_resized_for_fine_tuning_only_where_pooling_differs() -> None:
    pretrained, tuned = tiny(), tiny(shape=TINY, masked=False)
    weights = {n: v for n, v in pretrained.state_dict().items() if n != "mask_token"}
    fitted = tuned.fitted(weights)
    changed = {n for n, v in weights.items() if fitted[n].shape != v.shape}
    # Only the last stage begins with another pooling, and only its second block would be all coarse.
    assert changed == set()
    deeper = replace(TINY, depths=(1, 2, 2))
    pretrained, tuned = (
        tiny(shape=replace(deeper, pool_last=False)),
        tiny(shape=deeper, masked=False),
    )
    weights = {n: v for n, v in pretrained.state_dict().items() if n != "mask_token"}
    fitted = tuned.fitted(weights)
    changed = {n for n, v in weights.items() if fitted[n].shape != v.shape}
    assert changed == {"blocks.4.attn.rel_pos_h", "blocks.4.attn.rel_pos_w"}
    tuned.load_state_dict(fitted)


def test_grey_clips_take_the_first_channels_statistics() -> None:
    backbone = tiny(in_chans=1)
    assert backbone.mean.flatten().tolist() == pytest.approx([0.45])
    assert backbone(clips()[:, :1]).x.shape[-1] == 32


def test_other_channels_need_statistics() -> None:
    with pytest.raises(TubeletError, match="must have 5 values"):
        tiny(shape=replace(TINY, mean=(0.1, 0.2), std=(1.0, 1.0)), in_chans=5)


@pytest.mark.parametrize("field", ["pool_kv", "mlp_ratio"])
def test_sizes_are_above_zero(field: str) -> None:
    with pytest.raises(TubeletError, match=f"{field} 0"):
        replace(TINY, **{field: 0})


@pytest.mark.parametrize(
    ("depths", "heads", "message"),
    [
        ((1, 2), (1, 2, 4), "a value for each stage"),
        ((1, 2, 1), (1, 2, 3), "divides into its heads"),
    ],
)
def test_stages_that_do_not_fit_are_errors(
    depths: tuple[int, ...], heads: tuple[int, ...], message: str
) -> None:
    with pytest.raises(TubeletError, match=message):
        MViTShape(depths, (8, 16, 32), heads)


SPEC = ClipSpec(num_frames=4, size=(32, 32))


@pytest.mark.parametrize(
    "run",
    [
        VideoMAE(clip=SPEC, encoder=replace(TINY, pool_last=False), mask_ratio=0.5),
        MVD(
            clip=SPEC,
            encoder=replace(TINY, pool_last=False),
            mask_ratio=0.5,
            image=Distilled(weight=0),
            video=Distilled(weight=0),
            pixel_weight=1.0,
            hog_weight=1.0,
        ),
    ],
    ids=["VideoMAE", "MVD"],
)
def test_other_methods_run_on_it(run: VideoMAE | MVD) -> None:
    torch.manual_seed(0)
    model = run.model()
    masks = run.pack(torch.stack([run.draw_hidden(np.random.default_rng(0))] * 2))
    total, weight = model(clips(), masks)["loss"]
    (total / weight).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.backbone.blocks.parameters())
