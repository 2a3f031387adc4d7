import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tubelet.backbones import layers
from tubelet.backbones.positions import Positions, resize_table, sincos_3d, sinusoid_1d
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.errors import TubeletError
from tubelet.masks import pack
from tubelet.shapes import Grid, Patch, patchify, unpatchify


def masks_for(vit: ViT, batch: int, k: int = 1, hidden: int = 24):
    rows = torch.stack([torch.randperm(vit.grid.size) < hidden for _ in range(batch * k)]).view(
        batch, k, -1
    )
    return pack(rows)


def test_patchify_is_a_conv3d_with_kernel_equal_to_stride(tiny_vit: ViT) -> None:
    clip = torch.rand(2, 3, 8, 32, 32)
    conv = tiny_vit.patch_embed.proj
    slow = conv(clip).flatten(2).transpose(1, 2)
    fast = tiny_vit.patch_embed(patchify(clip, tiny_vit.patch))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    assert torch.equal(unpatchify(patchify(clip, tiny_vit.patch), tiny_vit.grid), clip)


def test_block_equals_attention_written_out() -> None:
    block = layers.Block(32, 4, 4, 0.0, 0)
    nn.init.normal_(block.attn.q_bias)
    nn.init.normal_(block.attn.v_bias)
    x = torch.randn(2, 7, 32)
    y = block.norm1(x)
    wq, wk, wv = block.attn.qkv.weight.chunk(3)

    def heads(z: torch.Tensor) -> torch.Tensor:
        return z.view(2, 7, 4, 8).transpose(1, 2)

    q, k, v = (
        heads(y @ wq.T + block.attn.q_bias),
        heads(y @ wk.T),
        heads(y @ wv.T + block.attn.v_bias),
    )
    mixed = ((q @ k.transpose(-1, -2)) / math.sqrt(8)).softmax(-1) @ v
    x2 = x + block.attn.proj(mixed.transpose(1, 2).reshape(2, 7, 32))
    h = block.mlp.fc1(block.norm2(x2))
    gelu = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    torch.testing.assert_close(block(x), x2 + block.mlp.fc2(gelu), rtol=1e-5, atol=1e-5)


def test_hidden_tokens_do_not_influence_the_encoder_bit_for_bit(tiny_vit: ViT) -> None:
    clip = torch.rand(2, 3, 8, 32, 32)
    masks = masks_for(tiny_vit, 2)
    patches = patchify(clip, tiny_vit.patch)
    hidden = masks.hidden[:, 0]
    noise = torch.where(hidden[..., None, None, None, None], torch.rand_like(patches), patches)
    other = unpatchify(noise, tiny_vit.grid)
    assert not torch.equal(clip, other)
    assert torch.equal(tiny_vit(clip, masks).x, tiny_vit(other, masks).x)


def test_masked_encoder_equals_encoding_the_visible_tokens_alone(tiny_vit: ViT) -> None:
    clip = torch.rand(2, 3, 8, 32, 32)
    masks = masks_for(tiny_vit, 2, k=3)
    tokens = tiny_vit(clip, masks)
    assert tokens.x.shape == (6, 64 - 24, 32)
    assert torch.equal(tokens.at, masks.keep.flatten(0, 1))
    # Slow: one row at a time, by boolean select.
    normal = (clip - tiny_vit.mean) / tiny_vit.std
    every = tiny_vit.patch_embed.proj(normal).flatten(2).transpose(1, 2) + tiny_vit.positions.table
    for row in range(6):
        x = every[row // 3][~masks.hidden[row // 3, row % 3]][None]
        for block in tiny_vit.blocks:
            x = block(x)
        torch.testing.assert_close(tokens.x[row : row + 1], tiny_vit.norm(x), rtol=1e-4, atol=1e-5)


def test_without_masks_every_token_in_raster_order(tiny_vit: ViT) -> None:
    tokens = tiny_vit(torch.rand(1, 3, 8, 32, 32))
    assert tokens.at.tolist() == [list(range(64))]
    assert tokens.prefix.shape == (1, 0, 32)
    assert tokens.grid == Grid(4, 4, 4)


def test_layers_come_in_the_order_asked_and_no_deeper_block_runs(tiny_vit: ViT) -> None:
    clip = torch.rand(1, 3, 8, 32, 32)
    outputs: list[torch.Tensor] = []
    hooks = [b.register_forward_hook(lambda m, i, o: outputs.append(o)) for b in tiny_vit.blocks]
    tokens = tiny_vit(clip, layers=[1, 0], norm=False)
    assert len(outputs) == 2
    assert torch.equal(tokens.layers[0], outputs[1])
    assert torch.equal(tokens.layers[1], outputs[0])
    for hook in hooks:
        hook.remove()
    last = tiny_vit(clip, layers=[-1], norm=True).layers[0]
    assert torch.equal(last, tiny_vit(clip).x)
    with pytest.raises(TubeletError, match="blocks 0 to 2"):
        tiny_vit(clip, layers=[3])


@pytest.mark.parametrize("in_chans", [1, 2, 4])
def test_any_channel_count_frame_count_and_rectangle(tiny_shape: ViTShape, in_chans: int) -> None:
    if in_chans > 1:
        tiny_shape = replace(tiny_shape, mean=(0.5,) * in_chans, std=(0.2,) * in_chans)
    vit = ViT(tiny_shape, trained=(6, 24, 40), in_chans=in_chans)
    assert vit(torch.rand(1, in_chans, 6, 24, 40)).x.shape == (1, 3 * 3 * 5, 32)


def test_another_size_resizes_positions_and_says_so(tiny_vit: ViT, caplog) -> None:
    with caplog.at_level("INFO", logger="tubelet"):
        tokens = tiny_vit(torch.rand(1, 3, 12, 48, 24))
        tiny_vit(torch.rand(1, 3, 12, 48, 24))
    assert tokens.x.shape == (1, 6 * 6 * 3, 32)
    assert [r.getMessage() for r in caplog.records] == [
        "positions: resized from the trained grid 4x4x4 to 6x6x3 (positions='interpolate')"
    ]


def test_both_position_modes_are_equal_at_the_trained_size_only() -> None:
    kinds = [Positions("sinusoid_1d", 32, Grid(2, 4, 4), m) for m in ("interpolate", "rebuild")]
    assert torch.equal(kinds[0](Grid(2, 4, 4)), kinds[1](Grid(2, 4, 4)))
    resized, rebuilt = (p(Grid(4, 4, 4)) for p in kinds)
    assert torch.equal(rebuilt, sinusoid_1d(Grid(4, 4, 4), 32))
    assert not torch.allclose(resized, rebuilt)
    # Linear along time with half-pixel centres: slots at 0, 0.25, 0.75, 1 of the trained two.
    table = sinusoid_1d(Grid(2, 4, 4), 32).view(2, 16, 32)
    slow = torch.stack([table[0], *(table[0].lerp(table[1], a) for a in (0.25, 0.75)), table[1]])
    torch.testing.assert_close(resized, slow.flatten(0, 1))


def test_resizing_a_linear_function_of_the_grid_keeps_it() -> None:
    trained, grid = Grid(1, 8, 1), Grid(1, 4, 1)
    ramp = torch.arange(8.0)[:, None]
    torch.testing.assert_close(
        resize_table(ramp, trained, grid)[:, 0], torch.tensor([0.5, 2.5, 4.5, 6.5])
    )


def test_tables_equal_their_formulas_written_out() -> None:
    grid, dim = Grid(2, 3, 2), 32
    flat, apart = sinusoid_1d(grid, dim), sincos_3d(grid, dim)
    for t in range(2):
        for h in range(3):
            for w in range(2):
                n = (t * 3 + h) * 2 + w
                slow = [
                    (math.cos if j % 2 else math.sin)(n / 10000 ** (2 * (j // 2) / dim))
                    for j in range(dim)
                ]
                torch.testing.assert_close(flat[n], torch.tensor(slow))
                parts: list[float] = []
                for pos, m in ((t, dim // 4), (w, dim * 3 // 8), (h, dim * 3 // 8)):
                    angles = [pos * 10000 ** (-k / (m // 2)) for k in range(m // 2)]
                    parts += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                torch.testing.assert_close(apart[n], torch.tensor(parts))


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (torch.rand(1, 8, 3, 32, 32), 'layout="BTCHW"'),
        (
            torch.rand(1, 3, 7, 32, 32),
            "num_frames 7 is no multiple of 2.*Nearest that fits: 6x32x32",
        ),
        (torch.rand(1, 3, 8, 30, 32), "height 30 is no multiple of 8"),
        (torch.zeros(1, 3, 8, 32, 32, dtype=torch.uint8), "divide uint8 pixels by 255"),
    ],
)
def test_a_clip_that_does_not_fit_is_named(tiny_vit: ViT, clip: torch.Tensor, said: str) -> None:
    with pytest.raises(TubeletError, match=said):
        tiny_vit(clip)


def test_statistics_are_asked_for_where_there_are_no_usual_ones(tiny_shape: ViTShape) -> None:
    with pytest.raises(TubeletError, match="in_chans=5 has no usual statistics"):
        ViT(tiny_shape, trained=(8, 32, 32), in_chans=5)
    with pytest.raises(TubeletError, match="choose heads among"):
        ViTShape(width=30, heads=4)


def test_drop_path_follows_the_seeds_and_nothing_else() -> None:
    drop = layers.DropPath(0.4, salt=3).train()
    seeds = torch.arange(4000) * 7919 + 2**40
    x = torch.ones(4000, 1, 1)
    first = drop(x, seeds)
    assert torch.equal(first, drop(x, seeds))
    flipped = drop(x, seeds.flip(0))
    assert torch.equal(first.flip(0), flipped)
    assert set(first.unique().tolist()) == {0.0, torch.tensor(1 / 0.6).item()}
    assert abs(float((first == 0).float().mean()) - 0.4) < 0.03
    assert not torch.equal(first, layers.DropPath(0.4, salt=4).train()(x, seeds))
    assert torch.equal(drop.eval()(x, seeds), x)


def test_uniform_numbers_are_uniform_and_uncorrelated() -> None:
    draws = layers.uniform(torch.arange(20_000), salt=1, width=4).double()
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram = torch.histc(draws.flatten().float(), 20, 0, 1) / draws.numel() * 20
    assert (histogram - 1).abs().max() < 0.06
    correlation = torch.corrcoef(draws.T)
    assert (correlation - torch.eye(4)).abs().max() < 0.03
    assert abs(float(torch.corrcoef(torch.stack([draws[1:, 0], draws[:-1, 0]]))[0, 1])) < 0.03


def test_checkpointing_changes_memory_not_numbers(tiny_shape: ViTShape) -> None:
    vit = ViT(tiny_shape, trained=(8, 32, 32), drop_path=0.5).train()
    clip, seeds, grads = torch.rand(4, 3, 8, 32, 32), torch.arange(4), []
    for on in (False, True):
        vit.set_grad_checkpointing(on)
        vit.zero_grad()
        vit(clip, seeds=seeds).x.square().sum().backward()
        grads.append([p.grad.clone() for p in vit.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_layer_numbers_for_layer_decay(tiny_vit: ViT) -> None:
    assert tiny_vit.num_layers == 5
    assert tiny_vit.layer_of("patch_embed.proj.weight") == 0
    assert tiny_vit.layer_of("blocks.0.norm1.weight") == 1
    assert tiny_vit.layer_of("blocks.2.mlp.fc1.bias") == 3
    assert tiny_vit.layer_of("norm.weight") == 4


def test_patch_says_which_sizes_fit() -> None:
    with pytest.raises(TubeletError, match="Nearest that fits: 16x224x224"):
        Patch(2, 16, 16).grid_for(16, 225, 239)
