"""MVD's benchmark: what it compares computes the same, and cases are what their names say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from published import backward_of_both

from tubelet.bench import mvd
from tubelet.bench.plain.mvd import Plain
from tubelet.bench.steps import batch_of, run_cases, runs_of


@pytest.mark.parametrize("size", ["b", "s"])
def test_plain_and_ours_have_equal_losses_and_gradients(size: str) -> None:
    run = replace(mvd.in_small(mvd.STUDENTS[size]), drop_path=0.0)
    ours = mvd.model_of(run, mvd.SMALL, "float32").train()
    plain = Plain(ours, run).train()
    batch = batch_of(run, 2)
    backward_of_both(ours, plain, batch)
    other = dict(plain.named_parameters())
    trained = [name for name, parameter in other.items() if parameter.requires_grad]
    for name, parameter in ours.named_parameters():
        own = name.replace("branches.", "decoders.").replace(".decoder.", ".")
        own = own.replace("image.decoder", "image").replace("video.decoder", "video")
        torch.testing.assert_close(other[own].grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
        trained.remove(own)
    assert not trained


def test_three_updates_of_both_have_equal_losses() -> None:
    """So their gradients are equal, and their updates."""
    run = replace(mvd.in_small(mvd.STUDENTS["b"]), drop_path=0.0)
    losses = [
        [step() for _ in range(3)]
        for step in (make(run, mvd.SMALL, 2, "float32") for make in (mvd.ours, mvd.theirs))
    ]
    assert losses[0][2] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_cases_are_what_their_names_say() -> None:
    cases = {case.name: case for case in mvd.cases()}
    assert set(cases) == {name + end for name in mvd.BARS for end in ("", "-f32")}
    assert cases["mvd-b-k1"].against["plain-bf16"].bar == 1.4
    assert cases["mvd-b-k1"].against["plain-f32"].bar == 2.8
    assert cases["mvd-b-k1"].against["plain-f32"].rows[0].precision == "float32"
    assert [cases[f"mvd-{name}"].against["plain-bf16"].bar for name in ("b-k4", "s-k4")] == [2.2, 3]
    assert cases["mvd-b-k4-decoder-mask-f32"].against["plain"].bar == 3.0
    for case in cases.values():
        [row] = case.ours
        run, teacher, clips, precision = row.make.args  # pyright: ignore[reportFunctionMemberAccess]
        masks = batch_of(mvd.in_small(run), clips).masks
        assert masks is not None and masks.keep.shape[:2].numel() == case.views
        assert case.shape == f"{clips}x3x16x224x224" and teacher.width == 768
        assert precision == row.precision == ("float32" if "f32" in case.name else "bf16")
        assert masks.asked.shape[2] == (32 if "decoder-mask" in case.name else 56)  # of 64


def test_a_run_in_small() -> None:
    """All of a student's cases in one run, the plain row once for them."""
    cases = [case for case in mvd.cases(quick=True) if case.together == "mvd-b-float32"]
    [together] = runs_of(cases)
    shown: list[tuple[int, int]] = []
    found = run_cases(together, turns=2, threads=1, progress=lambda *at: shown.append(at))
    assert [record.name for record in found] == [f"{name}-f32" for name in list(mvd.BARS)[:3]]
    assert shown[-1] == (4 * 3, 4 * 3)  # three rows of ours and one of theirs
    assert len({record.seconds_against for record in found}) == 1
    for record in found:
        assert record.against == "plain" and record.bar is None and record.met is None
        assert record.ratio_time > 0 and (record.ratio_memory or 0) > 0
    one = found[0]
    assert one.loss == pytest.approx(one.loss_against, rel=1e-5)
    assert found[1].flops and one.flops and found[1].flops != one.flops
