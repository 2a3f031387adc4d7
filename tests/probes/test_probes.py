"""Probes against slow formulas, and their tuning on features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tubelet.backbones.vit import ViT
from tubelet.errors import TubeletError
from tubelet.probes import tune
from tubelet.probes.attentive import AttentiveProbe
from tubelet.probes.interval import STUDENT, bootstrap, student
from tubelet.probes.linear import LinearProbe
from tubelet.probes.tune import Labelled, ProbeConfig, frozen_features, probe


def test_attentive_probe_is_cross_attention_with_one_query() -> None:
    """Against torch's own multi-head attention, with any query and key weights whose product
    is what the probe learned: its keys are folded into the query."""
    dim, heads, head = 12, 3, 4
    model = AttentiveProbe(dim, 5, heads)
    torch.nn.init.normal_(model.query)
    tokens = torch.randn(2, 7, dim)
    key_weight = torch.randn(dim, dim)  # [heads * head, dim]
    blocks = key_weight.unflatten(0, (heads, head))
    # A head's query q solves W' q = query, as well as `head` numbers can: take queries that do.
    queries = torch.randn(heads, head)
    with torch.no_grad():
        model.query.copy_(torch.einsum("hed,he->hd", blocks, queries))
    attention = torch.nn.MultiheadAttention(dim, heads, bias=False, batch_first=True)
    with torch.no_grad():
        value_weight = model.value.permute(0, 2, 1).flatten(0, 1)
        attention.in_proj_weight.copy_(torch.cat([torch.eye(dim), key_weight, value_weight]))
        attention.out_proj.weight.copy_(torch.eye(dim))
    query = (queries * head**0.5).flatten().expand(2, 1, dim)  # torch divides by the root
    expected, shares = attention(query, tokens, tokens, average_attn_weights=False)
    assert torch.allclose(model.attention(tokens).transpose(1, 2), shares[:, :, 0], atol=1e-5)
    logits = model.head(F.layer_norm(expected[:, 0], (dim,), model.norm.weight, model.norm.bias))
    assert torch.allclose(model(tokens), logits, atol=1e-4)


def test_linear_probe_is_a_linear_layer_on_the_mean() -> None:
    model = LinearProbe(6, 3)
    tokens = torch.randn(4, 5, 6)
    slow = torch.stack([model.head.weight @ row.mean(0) + model.head.bias for row in tokens])
    assert torch.allclose(model(tokens), slow, atol=1e-6)


def spotted(count: int, seed: int, noise: float = 0.3) -> Labelled:
    """The class is written in one token of ten, which a mark in another dimension points out."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=draws)
    features = torch.randn(count, 10, 16, generator=draws) * noise
    features[..., :4] = F.one_hot(torch.randint(4, (count, 10), generator=draws), 4).float() * 2
    at = torch.randint(10, (count,), generator=draws)
    features[torch.arange(count), at, :4] = F.one_hot(labels, 4).float() * 2
    features[torch.arange(count), at, 4] += 4
    return Labelled(features, labels)


def test_attention_finds_the_token_that_tells_and_the_mean_does_not() -> None:
    parts = [spotted(n, seed) for seed, n in enumerate((800, 200, 400))]
    config = ProbeConfig(epochs=30, batch_size=50, lrs=(3e-3, 1e-2), weight_decays=(0.01,))
    attentive = probe(*parts, classes=4, config=config)
    linear = probe(*parts, classes=4, config=ProbeConfig(kind="linear", epochs=30, batch_size=50))
    assert attentive.accuracy > 0.95
    assert linear.accuracy < 0.75
    assert attentive.accuracy == (attentive.predicted == parts[2].labels).float().mean()


def test_the_setting_is_chosen_on_validation_and_reported() -> None:
    train, val, test = (spotted(n, seed) for seed, n in enumerate((400, 200, 200)))
    config = ProbeConfig(epochs=15, batch_size=50, lrs=(1e-6, 1e-2), weight_decays=(0.0, 0.1))
    result = probe(train, val, test, 4, config)
    assert [(t.lr, t.weight_decay) for t in result.tried] == [
        (1e-6, 0.0),
        (1e-6, 0.1),
        (1e-2, 0.0),
        (1e-2, 0.1),
    ]
    assert result.best in result.tried
    assert result.best.accuracy == max(t.accuracy for t in result.tried)
    assert result.best.lr == 1e-2
    # The test labels have no part in it: with other ones, the same setting and predictions.
    other = probe(train, val, Labelled(test.features, test.labels.flip(0)), 4, config)
    assert other.tried == result.tried
    assert (other.predicted == result.predicted).all()


def test_settings_do_not_influence_each_other() -> None:
    """Trained side by side, a setting comes out as it would alone."""
    parts = [spotted(n, seed) for seed, n in enumerate((300, 100, 100))]
    both = ProbeConfig(epochs=3, batch_size=50, lrs=(1e-3, 1e-2), weight_decays=(0.1,))
    alone = ProbeConfig(epochs=3, batch_size=50, lrs=(1e-2,), weight_decays=(0.1,))
    assert probe(*parts, 4, both).tried[1] == probe(*parts, 4, alone).tried[0]


def test_scale_and_shift_of_features_do_not_matter() -> None:
    parts = [spotted(n, seed) for seed, n in enumerate((300, 100, 200))]
    config = ProbeConfig(epochs=5, batch_size=50, lrs=(1e-2,), weight_decays=(0.1,))
    moved = [Labelled(p.features * 50 + 7, p.labels) for p in parts]
    first, second = probe(*parts, 4, config), probe(*moved, 4, config)
    assert (first.predicted == second.predicted).float().mean() > 0.97


def test_a_probe_leaves_torchs_generator_and_the_features_alone() -> None:
    parts = [spotted(n, seed) for seed, n in enumerate((100, 50, 50))]
    before = [p.features.clone() for p in parts]
    state = torch.get_rng_state()
    first = probe(*parts, 4, ProbeConfig(epochs=1, batch_size=50))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.features, b) for p, b in zip(parts, before, strict=True))
    torch.manual_seed(9)
    assert torch.equal(
        probe(*parts, 4, ProbeConfig(epochs=1, batch_size=50)).predicted, first.predicted
    )


def test_progress_counts_epochs() -> None:
    parts = [spotted(n, seed) for seed, n in enumerate((100, 50, 50))]
    seen: list[tuple[int, int]] = []
    probe(*parts, 4, ProbeConfig(epochs=3, batch_size=50), progress=lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_fewer_clips_than_a_batch() -> None:
    parts = [spotted(20, seed) for seed in range(3)]
    with pytest.raises(TubeletError, match="20 training clips, fewer than a probe's batch of 128"):
        probe(*parts, 4)


def test_features_are_the_encoders_tokens_in_eval_mode(tiny_vit: ViT) -> None:
    clips = torch.randint(0, 256, (5, 3, 8, 32, 32), dtype=torch.uint8)
    seen: list[tuple[int, int]] = []
    tiny_vit.train()
    found = frozen_features(tiny_vit, clips, batch_size=2, progress=lambda *at: seen.append(at))
    assert tiny_vit.training
    assert seen == [(2, 5), (4, 5), (5, 5)]
    tiny_vit.eval()
    with torch.no_grad():
        slow = torch.cat([tiny_vit(clip[None].float() / 255).x for clip in clips])
    assert found.shape == (5, tiny_vit.grid.size, tiny_vit.dim)
    assert torch.allclose(found, slow, atol=1e-5)
    assert not found.requires_grad


def test_accuracy() -> None:
    assert tune.accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 0.75


# --- intervals ----------------------------------------------------------------------------------


def test_students_quantiles() -> None:
    from scipy import stats  # type: ignore[import-untyped]

    assert [round(stats.t.ppf(0.975, n + 1), 3) for n in range(len(STUDENT))] == list(STUDENT)
    low, high = student([1.0, 2.0, 4.0])
    expected = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (low, high) == pytest.approx(expected, rel=1e-3)


def test_bootstrap_agrees_with_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 800)
    low, high = bootstrap(values, seed=0)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
