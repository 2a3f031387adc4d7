"""Decoders against slow formulas: which tokens attend to which, and what is predicted where."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.backbones.layers import Block
from tubelet.decoders import DecoderShape, Joint, Mlp
from tubelet.errors import TubeletError
from tubelet.shapes import Grid, Tokens, gather

GRID = Grid(2, 4, 4)
WIDTH, DIM, OUT = 16, 24, 10


def joint(overlap: Literal["query", "own"], *, drop_path: float = 0.0, depth: int = 2) -> Joint:
    decoder = Joint(
        DIM,
        OUT,
        DecoderShape(WIDTH, depth, 2),
        trained=GRID,
        position="sincos_3d",
        project_bias=True,
        drop_path=drop_path,
        overlap=overlap,
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder


def tokens_of(rows: int, visible: int, prefix: int) -> Tokens:
    at = torch.stack([torch.randperm(GRID.size)[:visible] for _ in range(rows)])
    return Tokens(torch.randn(rows, visible, DIM), at, torch.randn(rows, prefix, DIM), GRID)


def slow_attention(block: Block, x: Tensor) -> Tensor:
    """[L,D] -> [L,D], one head and one query at a time."""
    attn: Any = block.attn
    q, k, v = (part @ x.T for part in attn.qkv.weight.chunk(3))
    q, v = q + attn.q_bias[:, None], v + attn.v_bias[:, None]
    width = len(q) // attn.heads
    out = torch.zeros_like(x)
    for head in range(attn.heads):
        own = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            scores = torch.stack([(q[own, i] * k[own, j]).sum() for j in range(len(x))])
            out[i, own] = v[own] @ (scores / width**0.5).softmax(0)
    return attn.proj(out)


def slow_blocks(decoder: Joint, x: Tensor) -> Tensor:
    """[L,D] -> [L,P]"""
    for block in decoder.blocks:
        assert isinstance(block, Block)
        x = x + slow_attention(
            block, F.layer_norm(x, (WIDTH,), block.norm1.weight, block.norm1.bias, 1e-6)
        )
        x = x + block.mlp(F.layer_norm(x, (WIDTH,), block.norm2.weight, block.norm2.bias, 1e-6))
    return decoder.head(F.layer_norm(x, (WIDTH,), decoder.norm.weight, decoder.norm.bias, 1e-6))


@pytest.mark.parametrize("prefix", [0, 2])
def test_query_gives_every_asked_position_a_mask_token_of_its_own(prefix: int) -> None:
    decoder, tokens = joint("query"), tokens_of(2, 5, prefix)
    hidden = torch.tensor([[i for i in range(32) if i not in row] for row in tokens.at.tolist()])
    asked = torch.cat([tokens.at[:, :2], hidden[:, :6]], 1)  # two of them are visible
    found = decoder(tokens, asked)
    table = decoder.positions(GRID)
    for b in range(2):
        visible = decoder.project(tokens.x[b]) + table[tokens.at[b]]
        queries = decoder.mask_token[0] + table[asked[b]]
        all_of_them = torch.cat([decoder.project(tokens.prefix[b]), visible, queries])
        slow = slow_blocks(decoder, all_of_them)[prefix + 5 :]
        torch.testing.assert_close(found[b], slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 1])
def test_own_decodes_all_positions_and_visible_ones_by_their_token(prefix: int) -> None:
    decoder, tokens = joint("own"), tokens_of(2, 5, prefix)
    asked = torch.stack([torch.randperm(32)[:20] for _ in range(2)])
    assert all(set(a) & set(v) for a, v in zip(asked.tolist(), tokens.at.tolist(), strict=True))
    found = decoder(tokens, asked)
    table = decoder.positions(GRID)
    for b in range(2):
        canvas = [decoder.mask_token[0, 0] + table[n] for n in range(32)]
        for x, n in zip(tokens.x[b], tokens.at[b].tolist(), strict=True):
            canvas[n] = decoder.project(x) + table[n]
        whole = torch.cat([decoder.project(tokens.prefix[b]), torch.stack(canvas)])
        slow = slow_blocks(decoder, whole)[prefix:][asked[b]]
        torch.testing.assert_close(found[b], slow, rtol=1e-4, atol=1e-5)


def test_own_does_not_depend_on_what_else_is_asked() -> None:
    decoder, tokens = joint("own"), tokens_of(2, 5, 1)
    whole = decoder(tokens, torch.arange(32).expand(2, -1))
    asked = torch.stack([torch.randperm(32)[:7] for _ in range(2)])
    torch.testing.assert_close(decoder(tokens, asked), gather(whole, asked))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_last_block_computes_only_queries_and_nothing_changes(
    depth: int, recompute: bool
) -> None:
    """Outputs and all gradients, drop path included, are those of whole blocks cut afterwards."""
    decoder, tokens = joint("query", drop_path=0.5, depth=depth).train(), tokens_of(6, 5, 1)
    tokens.x.requires_grad_()
    tokens.prefix.requires_grad_()
    inputs = [tokens.x, tokens.prefix, *decoder.parameters()]
    asked, seeds = torch.stack([torch.randperm(32)[:9] for _ in range(6)]), torch.arange(6)
    decoder.set_grad_checkpointing(recompute)
    found = decoder(tokens, asked, seeds)
    direction = torch.randn_like(found)
    gradients = torch.autograd.grad(found, inputs, direction)

    table = decoder.positions(GRID)
    x = torch.cat(
        [
            decoder.project(tokens.prefix),
            decoder.project(tokens.x) + table[tokens.at],
            decoder.mask_token + table[asked],
        ],
        1,
    )
    for block in decoder.blocks:
        x = block(x, seeds)
    whole = decoder.head(decoder.norm(x))[:, -9:]
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)
    for mine, other in zip(gradients, torch.autograd.grad(whole, inputs, direction), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("overlap", ["query", "own"])
def test_it_traces_to_one_graph(overlap: Literal["query", "own"]) -> None:
    decoder, tokens = joint(overlap, drop_path=0.5).train(), tokens_of(2, 5, 1)
    asked, seeds = torch.stack([torch.randperm(32)[:9] for _ in range(2)]), torch.arange(2)
    traced = torch.compile(decoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(tokens, asked, seeds), decoder(tokens, asked, seeds))
    explained = torch._dynamo.explain(decoder)(tokens, asked, seeds)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_mlp_sees_the_token_of_each_position_and_no_other() -> None:
    decoder = Mlp(DIM, OUT, 12)
    tokens = Tokens(
        torch.randn(2, 32, DIM), torch.arange(32).expand(2, -1), torch.randn(2, 1, DIM), GRID
    )
    asked = torch.tensor([[3, 31, 3], [0, 7, 9]])
    found = decoder(tokens, asked)
    for b in range(2):
        for m, n in enumerate(asked[b].tolist()):
            inner = decoder.fc1.weight @ tokens.x[b, n] + decoder.fc1.bias
            inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
            slow = decoder.fc2.weight @ inner + decoder.fc2.bias
            torch.testing.assert_close(found[b, m], slow, rtol=1e-5, atol=1e-6)


def test_mlp_needs_all_tokens() -> None:
    with pytest.raises(TubeletError, match=r"returned 5 of 32.*show it the whole clip"):
        Mlp(DIM, OUT, 12)(tokens_of(2, 5, 0), torch.zeros(2, 1, dtype=torch.int64))
