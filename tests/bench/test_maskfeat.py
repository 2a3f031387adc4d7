"""MaskFeat's benchmark: what it compares computes the same."""

from __future__ import annotations

import pytest
import torch
from published import backward_of_both

from tubelet.bench import maskfeat
from tubelet.bench.plain.maskfeat import Hog, Plain, hog_of_tokens
from tubelet.bench.steps import run_cases
from tubelet.methods.maskfeat import small_k400
from tubelet.shapes import Patch
from tubelet.targets import hog

SMALL = maskfeat.in_small(small_k400)


def test_plain_and_ours_have_equal_losses_and_gradients() -> None:
    ours = SMALL.model().train()
    plain = Plain(ours).train()
    batch = maskfeat.batch_of(SMALL, 2)
    backward_of_both(ours, plain, batch)
    other = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        own = name.replace("backbone.", "").replace("branches.hog.decoder.", "")
        grad = other.pop(own.replace("patch_embed.proj", "patch")).grad
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert not other


def test_three_updates_of_both_have_equal_losses() -> None:
    losses = [
        [step() for _ in range(3)]
        for step in (make(SMALL, 2, "float32") for make in (maskfeat.ours, maskfeat.theirs))
    ]
    assert losses[0][2] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_plain_histograms_are_those_of_the_target() -> None:
    clip = torch.rand(2, 3, 4, 32, 48)
    found = hog_of_tokens(clip, Hog(), 16)
    expected = hog.Hog(Patch(2, 16, 16))(clip)
    far = ((found - expected).abs() > 1e-5).float().mean()
    assert far < 0.001  # where a gradient lies on the edge of a bin, rounding decides


def test_cases_are_what_their_names_say() -> None:
    single, best = maskfeat.cases()
    assert (single.name, best.name) == ("maskfeat-s-f32", "maskfeat-s-best")
    assert [row.precision for row in single.against["plain"].rows] == ["float32"]
    assert {row.precision for row in best.ours} == {"float32", "bf16"}
    assert {row.precision for row in best.against["plain"].rows} == {"float32", "bf16"}
    assert {peer.bar for case in (single, best) for peer in case.against.values()} == {1.5}


def test_a_run_in_small() -> None:
    [record] = run_cases(maskfeat.cases(quick=True)[:1], turns=2, threads=1)
    assert (record.name, record.against) == ("maskfeat-s-f32", "plain")
    assert record.ratio_time > 0 and record.met is None
    assert record.loss_against == pytest.approx(record.loss, rel=1e-5)
