"""`doctor` reports what is there, and fails where something required is broken."""

import json
import os

import pytest
import torch
from rich.console import Console

from tubelet import doctor as module
from tubelet.data.decode import DecodeError
from tubelet.doctor import EXTRAS, doctor, self_test


def states(report) -> dict[str, str]:
    return {finding.name: finding.state for finding in report.findings}


def test_this_machine_is_well():
    report = doctor()
    found = states(report)
    assert report.ok
    for name in ("tubelet", "python", "torch", "ffmpeg", "decoder pyav", "encode and decode"):
        assert found[name] == "ok"
    assert {f"extra {name}" for name in EXTRAS} <= set(found)
    assert "disk" in found and "shared memory" in found
    assert ("cuda:0" if torch.cuda.is_available() else "cuda") in found


def test_table_and_json(monkeypatch):
    report = doctor()
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.table())
    shown = console.export_text()
    found = json.loads(report.to_json())
    assert found["ok"] is True and len(found["findings"]) == len(report.findings)
    for finding in report.findings:
        assert finding.name in shown


def test_a_missing_extra_names_the_command(monkeypatch):
    find = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name)
    )
    report = doctor()
    (finding,) = [f for f in report.findings if f.name == "extra demo"]
    assert (finding.state, finding.fix) == ("missing", "pip install 'tubelet[demo]'")
    assert report.ok  # it is optional


def test_a_missing_decoder_names_the_command(monkeypatch):
    monkeypatch.setattr(
        module,
        "available_decoders",
        lambda: {"pyav": "1", "torchcodec": "missing: no libavutil; pip install it, and FFmpeg"},
    )
    (finding,) = [f for f in doctor().findings if f.name == "decoder torchcodec"]
    assert finding.state == "missing"
    assert (finding.detail, finding.fix) == ("no libavutil", "pip install it, and FFmpeg")


@pytest.mark.parametrize("fault", ["error", "pixels"])
def test_a_broken_decoder_fails(monkeypatch, fault):
    class Broken(module.Video):
        def frames(self, indices):
            if fault == "error":
                raise DecodeError(self.path, "it is upside down.")
            return super().frames(indices) + 50

    monkeypatch.setattr(module, "Video", Broken)
    finding = self_test()
    assert finding.state == "broken" and finding.fix
    assert ("upside down" if fault == "error" else "levels off") in finding.detail
    assert not doctor().ok


def test_an_old_torch_fails(monkeypatch):
    monkeypatch.setattr(module.torch, "__version__", "2.10.1+cpu")
    report = doctor()
    assert states(report)["torch"] == "broken" and not report.ok


def test_little_space_is_noted(monkeypatch):
    usage = module.shutil.disk_usage

    def small(path):
        return usage(path)._replace(free=2**20)

    monkeypatch.setattr(module.shutil, "disk_usage", small)
    found = states(doctor())
    assert found["disk"] == "note"
    assert found["shared memory"] in ("note", "ok")
    assert doctor().ok


@pytest.mark.parametrize(("low", "fix"), [(3e11, "--precision bf16"), (1.1e11, ""), (2e10, "")])
def test_it_says_whether_bf16_pays(monkeypatch, low, fix):
    rates = {torch.float32: 1e11, torch.bfloat16: low}
    monkeypatch.setattr(module.machine, "rate", lambda kind, side: rates[kind])
    (finding,) = [f for f in doctor().findings if f.name == "products"]
    assert finding.state == "ok" and finding.fix == fix
    assert f"100 GFLOP/s in float32 and {low / 1e9:.0f} in bf16" in finding.detail
    assert ("bf16 is 3.0x" in finding.detail) == bool(fix)
    assert ("does not pay" in finding.detail) != bool(fix)


def test_rates_of_products_are_of_the_quickest(monkeypatch):
    """Of products that took 0.5, 0.2 and 0.25 s."""
    times = iter([0, 0.5, 0.5, 0.7, 0.7, 0.95])
    monkeypatch.setattr(module.machine.time, "perf_counter", lambda: next(times))
    assert module.machine.rate(torch.float32, side=64) == pytest.approx(2 * 64**3 / 0.2)
