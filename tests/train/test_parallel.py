"""Two processes train as one does; checkpoints fit any number of processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from spread import in_two
from torch import nn

from tubelet.backbones.vit import ViT, ViTShape
from tubelet.errors import TubeletError
from tubelet.train import parallel

CASES = {"ddp-6": None, "ddp-3": 0.5, "fsdp-6": None, "fsdp-3": 0.5}  # how-micro_batch: clip_grad


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, script: Path) -> Path:
    """The folder of runs that two processes trained."""
    return in_two(script, tmp_path_factory.mktemp("two"))


def one(out: Path, tiny: ModuleType, clip: float | None, epochs: int, resume: bool) -> None:
    task = tiny.Tiny(bad_steps=(3,))
    common: dict[str, Any] = {"model_ema": 0.9, "layer_decay": 0.75, "micro_batch": 12}
    tiny.train(out, task, resume=resume, clip_grad=clip, epochs=epochs, **common)


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_where_one_does(
    case: str, two: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    for epochs, resume in ((3, False), (4, True)):
        one(tmp_path, tiny, CASES[case], epochs, resume)
    expected = tiny.contents(tmp_path)
    assert expected["step"] == 8 and expected["skipped"] == 1
    assert any(name.startswith("ema.safetensors/") for name in expected)
    close(tiny.contents(two / case), expected)
    for row, wanted in zip(tiny.rows(two / case), tiny.rows(tmp_path), strict=True):
        assert [k for k, v in row.items() if v is None] == [
            k for k, v in wanted.items() if v is None
        ]
        numbers = {k: v for k, v in wanted.items() if v is not None}
        assert {k: row[k] for k in numbers} == pytest.approx(numbers, rel=2e-5)
    # All processes' videos of the update that was skipped are named.
    lines = (two / case / "nonfinite.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 4, "paths": [f"video{i}.mp4" for i in range(36, 48)]}
    ]


@pytest.mark.parametrize("case", CASES)
def test_one_process_goes_on_where_two_stopped(
    case: str, two: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    alone, both = tmp_path / "alone", tmp_path / "both"
    for epochs, resume in ((3, False), (4, True), (5, True)):
        one(alone, tiny, CASES[case], epochs, resume)
    shutil.copytree(two / case, both)
    one(both, tiny, CASES[case], 5, True)
    assert tiny.contents(both)["step"] == 10
    close(tiny.contents(both), tiny.contents(alone))


def test_models_were_split_and_errors_shared(two: Path) -> None:
    told = [json.loads((two / f"told{rank}.json").read_text()) for rank in (0, 1)]
    assert [each["place"]["rank"] for each in told] == ["0", "1"]
    for each in told:
        assert each["fsdp-6"] == "FSDPTinyModel" and each["ddp-6"] == "TinyModel"
        assert each["error"].startswith("TubeletError") and "is a file" in each["error"]


def test_place_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    with parallel.processes("cpu") as place:
        assert place == parallel.Place(torch.device("cpu"), 0, 1) and place.main
        assert place.exact is torch.float64
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parallel.choose_device("auto").type == "cpu"
    assert parallel.choose_precision("auto", torch.device("cpu")) == "float32"
    assert parallel.choose_precision("bf16", torch.device("cpu")) == "bf16"
    for name in ("cuda:77", "abacus"):
        with pytest.raises(TubeletError, match="--device cpu") as error:
            parallel.choose_device(name)
        assert repr(name) in str(error.value)


def test_each_block_may_be_a_variant_of_the_compiled_code(tiny: ModuleType) -> None:
    """Else torch would compute the ninth block with another drop path without compiling it."""
    config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateImportUsage]
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    # Not by monkeypatch, which takes the option away at the end.
    with config.patch({name: 8, "fail_on_recompile_limit_hit": True}):
        place = parallel.Place(torch.device("cpu"))
        shape = ViTShape(width=8, depth=12, heads=2, patch=8)
        model = ViT(shape, trained=(2, 8, 8), drop_path=0.2).train()
        parallel.wrap(model, place, compile=True)
        assert getattr(config, name) == 24
        torch._dynamo.reset()  # pyright: ignore[reportPrivateImportUsage]
        for block in model.blocks:
            block.compile(backend="eager", fullgraph=True)
        model(torch.rand(2, 3, 2, 8, 8), seeds=torch.tensor([1, 2])).x.sum().backward()


def test_wrapping_prepares_every_block(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    model = tiny.TinyModel()
    place = parallel.place("cpu")
    assert parallel.wrap(model, place, checkpoint_blocks=True, compile=True) is model
    assert compiled == list(model.blocks) and model.grad_checkpointing
    with pytest.raises(TubeletError, match="checkpoint_blocks"):
        parallel.wrap(nn.Linear(2, 2), place, checkpoint_blocks=True)
