"""The benchmark of targets: its plain rows are the published numbers, and it says where ours are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tubelet.bench import targets
from tubelet.bench.plain.maskfeat import Hog, HogIntoCells
from tubelet.bench.turns import Took
from tubelet.errors import TubeletError

GOLDEN = Path(__file__).parents[1] / "golden/maskfeat_pretrain/io.safetensors"
TOOK = Took(seconds=(1.0, 2.0), rates=(1e9, 1e9), flops=0, peak_gib=1.0, value=5.0)


@pytest.mark.parametrize("plain", [Hog, HogIntoCells])
def test_plain_histograms_are_the_published_numbers(plain: type[Hog]) -> None:
    io = load_file(GOLDEN)
    clip, expected = io["clip"], io["hog_map"]
    frames = clip[:, :, ::2].transpose(1, 2).flatten(0, 1)
    found = plain()(frames).unflatten(0, (len(clip), -1))
    differ = (
        (found - expected).abs().amax(3)
    )  # rounding decides where a gradient is on a bin's edge
    assert (differ > 1e-6 * expected.abs().max()).float().mean() <= 0.001


@pytest.mark.parametrize("kind", targets.KINDS, ids=lambda kind: kind.name)
def test_all_rows_of_a_target_make_the_same(kind: targets.Kind) -> None:
    ours, *others = (
        targets.step_of(kind.name, name, quick=True)() for name in ("ours", *kind.bars)
    )
    assert others and others == pytest.approx([ours] * len(others), rel=targets.EQUAL)


def test_a_fingerprint_tells_another_order() -> None:
    y = targets.hog("ours", quick=True)()
    assert targets.fingerprint(y) != pytest.approx(targets.fingerprint(y.flip(1)), rel=1e-3)


def test_other_numbers_are_an_error() -> None:
    pixels = targets.KINDS[0]
    took = {"ours": TOOK, "plain": replace(TOOK, value=5.1, seconds=(3.0, 6.0))}
    with pytest.raises(TubeletError, match=r"pixels against 'plain': .* 5 and 5\.1\."):
        targets.records_of(pixels, took, quick=False)
    took["plain"] = replace(took["plain"], value=5.0)
    [record] = targets.records_of(pixels, took, quick=False)
    assert (record.name, record.against, record.ratio_time) == ("target-pixels", "plain", 3.0)
    assert record.mfu is None


def test_a_run_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "KINDS", targets.KINDS[1:2])
    shown: list[tuple[int, int]] = []
    found = targets.records(quick=True, threads=1, progress=lambda *at: shown.append(at))
    assert [record.against for record in found] == ["plain", "plain-into-cells"]
    assert shown[-1] == (100, 100)
    assert all(record.ratio_time > 0 and record.met is None for record in found)
