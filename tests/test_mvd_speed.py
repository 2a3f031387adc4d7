"""The benchmark of distillation: its baseline computes the same, and it runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tubelet.methods.run import changed

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("mvd_speed")


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("student", ["base", "small"])
def test_plain_and_ours_have_equal_losses_and_gradients(
    student: str, fused: bool, speed: Any
) -> None:
    run = changed(speed.quick(speed.RUNS[student]), drop_path=0.0)
    ours, plain = speed.models(run, speed.quick_shape(speed.BASE), "float32")
    plain.fuse(fused)
    torch.manual_seed(3)
    [batch] = speed.batches_of(run, 2, 2)
    torch.manual_seed(3)
    [(clip, hidden)] = speed.plain_batches(run, ours.backbone, 2, 2)
    total, weight = ours.train()(batch.clip / 255, batch.masks)["loss"]
    loss = plain.train()(clip, hidden)
    torch.testing.assert_close(loss, total / weight, rtol=1e-5, atol=0)
    (total / weight).backward()
    loss.backward()
    other = dict(plain.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        own = name.replace("branches.", "decoders.").replace(".decoder.", ".")
        found = other[own].grad
        assert parameter.grad is not None and found is not None
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
        compared += 1
    assert compared == sum(p.requires_grad for p in plain.parameters())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_it_runs_in_small(
    precision: str, speed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--precision", precision, "--repetitions", "2", "--out", str(tmp_path)]
    found = speed.main(["--quick", "--students", "small", *options])
    names = ["plain", "plain, fused kernels", *speed.ROWS]
    assert [each["row"] for each in found] == names
    for each in found:
        parts = [each[name] for name in ("teachers", "student_and_decoders", "update")]
        assert all(part > 0 for part in parts)
        assert len(each["ratios"]) == 2 and each["bar"] is None
    assert found[0]["ratios"] == [1.0, 1.0]
    written = json.loads((tmp_path / "mvd_speed.json").read_text())
    assert written["rows"] == found and written["settings"]["precision"] == precision
    text = (tmp_path / "mvd_speed.md").read_text()
    assert all(f"| small | {name} |" in text for name in names)
    assert text.strip() in capsys.readouterr().out


def test_rows_ask_for_what_they_say(speed: Any) -> None:
    run = speed.quick(speed.RUNS["base"])
    for k, ratio in speed.ROWS.values():
        of = changed(run, masks_per_clip=k, decoder_mask_ratio=ratio)
        batches = speed.batches_of(of, 8, 1)
        assert sum(batch.masks.keep.shape[:2].numel() for batch in batches) == 8
        assert {len(batch.clip) for batch in batches} == {1} and len(batches) == 8 // k
        [asked] = {batch.masks.asked.shape[-1] for batch in batches}
        assert asked == (16 if ratio else 24)  # of 32 tokens
