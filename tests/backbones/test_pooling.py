"""Attention that pools, and its relative positions, against slow formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tubelet.backbones.pooling import PoolingAttention, places_of, relative, resize_relative
from tubelet.shapes import Grid


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (8, 2), (2, 8), (14, 7)])
def test_relative_positions_follow_the_published_index(queries: int, keys: int) -> None:
    table = torch.randn(2 * max(queries, keys) - 1, 3)
    found = relative(table, queries, keys)
    for i in range(queries):
        for j in range(keys):
            at = i * max(keys / queries, 1) - j * max(queries / keys, 1)
            at += (keys - 1) * max(queries / keys, 1)
            assert torch.equal(found[i, j], table[int(at)])


def test_a_table_is_resized_linearly() -> None:
    ramp = torch.arange(27.0)[:, None].repeat(1, 2)
    found = resize_relative(ramp, 13)
    # Half-pixel centres: 13 samples of 27/13 steps, the first in the middle of its step.
    expected = (torch.arange(13) + 0.5) * 27 / 13 - 0.5
    torch.testing.assert_close(found[:, 0], expected)
    assert resize_relative(ramp, 27) is ramp


def test_places_are_one_hot_on_each_axis() -> None:
    grid = Grid(2, 3, 4)
    found = places_of(grid, torch.device("cpu"), torch.float32)
    assert found.shape == (1 + 24, 2 + 3 + 4)
    assert not found[0].any()
    t, h, w = 1, 2, 3
    row = found[1 + (t * 3 + h) * 4 + w]
    assert row.nonzero().flatten().tolist() == [t, 2 + h, 2 + 3 + w]


@pytest.mark.parametrize(("pool", "pool_kv"), [(1, 2), (2, 2), (2, 1)])
def test_attention_is_the_written_out_formula(pool: int, pool_kv: int) -> None:
    """Logits with a bias for each pair (arXiv 2112.01526, eq. 4), softmax, residual pooling."""
    torch.manual_seed(0)
    grid = Grid(2, 4, 4)
    pools = {"pool_q": pool, "pool_kv": pool_kv}
    attention = PoolingAttention(16, 16, heads=2, trained=grid, **pools).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 1 + grid.size, 16, dtype=torch.double)

    q, k, v = attention.qkv(x).view(2, -1, 3, 2, 8).permute(2, 0, 3, 1, 4)

    def pooled(name: str, x: Tensor, stride: int) -> Tensor:
        conv, norm = (
            attention.get_submodule(f"pool_{name}"),
            attention.get_submodule(f"norm_{name}"),
        )
        heads = []
        for head in range(2):
            volume = x[:, head, 1:].transpose(1, 2).reshape(2, 8, *grid)
            conv.stride = (1, stride, stride)  # pyright: ignore[reportAttributeAccessIssue]
            heads.append(torch.cat([x[:, head, :1], conv(volume).flatten(2).transpose(1, 2)], 1))
        return norm(torch.stack(heads, 1))

    q, k, v = pooled("q", q, pool), pooled("k", k, pool_kv), pooled("v", v, pool_kv)
    few, many = (Grid(2, 4 // s, 4 // s) for s in (pool, pool_kv))
    logits = q @ k.transpose(-1, -2) / 8**0.5
    tables = [
        relative(attention.get_parameter(f"rel_pos_{a}"), m, n)
        for a, m, n in zip("thw", few, many, strict=True)
    ]
    for i in range(few.size):
        qi = (i // (few.h * few.w), i // few.w % few.h, i % few.w)
        for j in range(many.size):
            kj = (j // (many.h * many.w), j // many.w % many.h, j % many.w)
            for table, a, b in zip(tables, qi, kj, strict=True):
                logits[:, :, 1 + i, 1 + j] += q[:, :, 1 + i] @ table[a, b]
    out = logits.softmax(-1) @ v
    out[:, :, 1:] += q[:, :, 1:]
    expected = attention.proj(out.transpose(1, 2).reshape(2, -1, 16))
    torch.testing.assert_close(attention(x, grid), expected)


def test_gradients_of_positions_do_not_depend_on_threads() -> None:
    """As many elements as block 0 of S has at 224 pixels: sums of several threads must not race."""
    table = torch.randn(111, 96, requires_grad=True)
    weights = torch.randn(56, 7, 96)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = set()
        for _ in range(50):
            (grad,) = torch.autograd.grad((relative(table, 56, 7) * weights).sum(), table)
            found.add(grad.numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1
