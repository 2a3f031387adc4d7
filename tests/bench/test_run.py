"""The command bench: what it measures, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tubelet.bench import kept, machine, run, steps
from tubelet.bench.kept import Found
from tubelet.bench.record import Record
from tubelet.bench.run import Choice, Part
from tubelet.cli import main
from tubelet.errors import TubeletError


def test_a_case_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command: rows in processes of their own, their losses compared, a table, a file."""
    out = tmp_path / "one.json"
    options = ["--quick", "--turns", "1", "--threads", "1", "--out", str(out)]
    assert main(["bench", "step", "--cases", "videomae-s-f32", *options]) == 0
    said = capsys.readouterr().out
    assert "| videomae-s-f32 | plain | float32 | 2x3x8x32x32 |" in said
    [row] = json.loads(out.read_text())["records"]
    assert row["loss"] == pytest.approx(row["loss_against"], rel=1e-5)
    assert row["flops"] < row["flops_against"] and row["bar"] is None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["step", "--cases", "videomae-bf32"], "Did you mean 'videomae-b-f32'?"),
        (["stepp"], "expected one of step, loader"),
        ([], "tubelet bench step --quick"),
    ],
)
def test_wrong_words_are_answered(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *args]) == 1
    assert says in capsys.readouterr().err


def test_a_missing_library_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "find_spec", lambda name: None)
    with pytest.raises(TubeletError, match=r"pip install 'tubelet\[hf\]'"):
        run.bench("step", cases=["videomae-b-f32"], quick=True)


def test_memory_is_not_measured_where_the_system_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "FORGET", tmp_path / "none")
    with pytest.raises(TubeletError, match="measure memory on Linux"):
        run.bench("memory", quick=True)


def test_what_is_measured_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = run.all_cases()
    assert len({case.name for case in cases}) == len(cases)
    monkeypatch.setattr(machine, "has_bf16_units", lambda: True)
    assert Choice().of(cases) == cases
    monkeypatch.setattr(machine, "has_bf16_units", lambda: False)
    fit = {case.name: case for case in Choice().of(cases)}
    assert "mvd-b-k1" not in fit and "mvd-b-k1-f32" in fit
    assert list(fit["videomae-b-best"].against) == ["hf-f32"]
    assert Choice(emulated=True).of(cases) == cases
    assert [case.name for case in Choice(("mvd-b-k1",)).of(cases)] == ["mvd-b-k1"]


class Stopped(Exception):
    pass


def test_all_writes_after_each_part_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[str] = []
    ends = {"c"}

    def part(name: str) -> Part:
        def measure(progress: steps.Progress | None) -> Found:
            if name in ends:
                raise Stopped
            measured.append(name)
            if progress is not None:
                progress(1, 2)
            return Found([Record(name, "other", 2.0, "float32", "1", bar=1.5)])

        return Part("step", name, measure)

    parts = [part(name) for name in "abc"]
    monkeypatch.setattr(run, "parts_of", lambda kind, *_: parts if kind == "step" else [])
    moved: list[tuple[float, int, str]] = []
    with pytest.raises(Stopped):
        run.bench_all(tmp_path, quick=True, progress=lambda *at: moved.append(at))
    assert moved == [(0.5, 3, "a"), (1.5, 3, "b")]
    assert [each.part for each in kept.read(tmp_path / "performance.json")] == ["a", "b"]
    assert (tmp_path / "performance.md").exists() and (tmp_path / "performance.png").exists()
    ends.clear()
    done = run.bench_all(tmp_path, quick=True, keep=True)
    assert measured == ["a", "b", "c"] and [each.part for each in done] == ["a", "b", "c"]
    run.bench_all(tmp_path, quick=True)
    assert measured[3:] == ["a", "b", "c"]
