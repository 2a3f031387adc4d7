"""Checkpoints: what is in them, what survives a full disk, and what damaged ones say."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.train import checkpoint

HEADER = {"run": "videomae:base_k400", "clip": {"num_frames": 16}, "classes": ["jump", "läuft"]}


def some(seed: int, size: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(size, 3, generator=generator) for n in ("a.weight", "b.weight")}


def write(out: Path, step: int, keep: int = 9, size: int = 4) -> Path:
    state = {"optimizer": {"a.weight": {"exp_avg": some(step, size)["a.weight"]}}, "skipped": 1}
    average = {"a.weight": some(step + 100, size)["a.weight"]}
    return checkpoint.save(out, step, HEADER, some(step, size), state, average, keep)


def test_everything_comes_back(tmp_path: Path) -> None:
    path = write(tmp_path, 20)
    assert path == tmp_path / "checkpoint-000020" == checkpoint.latest(tmp_path)
    header = checkpoint.read_header(tmp_path)
    assert HEADER.items() <= header.items()
    assert header["step"] == 20 and header["format"] == 1 and header["library"][0].isdigit()
    weights = checkpoint.load_weights(path)
    assert all(torch.equal(weights[n], t) for n, t in some(20).items()) and len(weights) == 2
    average = checkpoint.load_weights(path / "ema.safetensors")
    assert torch.equal(average["a.weight"], some(120)["a.weight"])
    assert torch.equal(average["b.weight"], some(20)["b.weight"])
    assert checkpoint.read_header(path / "ema.safetensors")["average"] is True
    state = checkpoint.load_state(path)
    assert (state["step"], state["skipped"]) == (20, 1)
    assert torch.equal(state["optimizer"]["a.weight"]["exp_avg"], some(20)["a.weight"])
    torch.load(path / "state.pt", weights_only=True)
    with safe_open(path / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"  # what transformers asks for


def test_newest_ones_are_kept_and_found(tmp_path: Path) -> None:
    for step in (8, 9, 10, 999_999, 1_000_000):
        write(tmp_path, step, keep=3)
    names = [path.name for path in checkpoint.checkpoints(tmp_path)]
    assert names == ["checkpoint-000010", "checkpoint-999999", "checkpoint-1000000"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    newest = tmp_path / names[-1]
    for given in (tmp_path, newest, newest / "model.safetensors"):
        assert checkpoint.find(given) == newest / "model.safetensors"
    (newest / "state.pt").unlink()  # usable, but training cannot go on from it
    assert checkpoint.latest(tmp_path) == tmp_path / names[1]
    (tmp_path / "checkpoint-final").mkdir()
    assert checkpoint.find(tmp_path) == newest / "model.safetensors"
    write(tmp_path, 1_000_000)
    assert checkpoint.latest(tmp_path) == newest


def test_leftovers_of_a_kill_are_no_checkpoints(tmp_path: Path) -> None:
    for name in (".checkpoint-000030.begun", ".checkpoint-000010.gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"begun")
    assert checkpoint.latest(tmp_path) is None
    path = write(tmp_path, 30)
    assert list(tmp_path.iterdir()) == [path]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        if kind == "save_tensors":  # as safetensors 0.8 tells it
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        if kind == "torch.save":  # as torch 2.13 tells it
            try:
                raise FULL
            except OSError:
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")  # noqa: B904
        raise FULL

    where = {"torch.save": torch, "save_tensors": checkpoint}.get(kind, os)
    monkeypatch.setattr(where, kind.rpartition(".")[2], fail)


@pytest.mark.parametrize("kind", ["save_tensors", "torch.save", "fsync", "rename", "mkdir"])
def test_full_disk_leaves_the_one_before(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(tmp_path, 10, keep=1)
    with monkeypatch.context() as patch, pytest.raises(TubeletError) as error:
        full_disk(kind, patch)
        write(tmp_path, 20, keep=1)
    said = str(error.value)
    assert said.startswith(f"The checkpoint of step 20 could not be written to {tmp_path}: ")
    assert "No space left on device" in said and "GB free" in said and "--resume" in said
    assert f"The newest checkpoint, {before}, is whole" in said
    assert list(tmp_path.iterdir()) == [before]
    assert checkpoint.load_state(before)["step"] == 10 and len(checkpoint.load_weights(before)) == 2
    assert write(tmp_path, 20, keep=1) == checkpoint.latest(tmp_path)


@pytest.mark.parametrize("limit", [1_000, 70_000, 130_000])
def test_files_that_the_system_cuts_short(limit: int, tmp_path: Path) -> None:
    """Without simulation: the system refuses to let a file grow over a limit."""
    before = write(tmp_path, 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(TubeletError, match="step 20 could not be written") as error:
            write(tmp_path, 20, size=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert f"{before}, is whole" in str(error.value)
    assert list(tmp_path.iterdir()) == [before]


def test_first_checkpoint_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk("fsync", monkeypatch)
    with pytest.raises(TubeletError, match="No checkpoint was written before"):
        write(tmp_path, 10)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 10)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, 20)
    (path / "state.pt").write_bytes((path / "state.pt").read_bytes()[:-40])
    with pytest.raises(TubeletError, match=r"state\.pt cannot be read.*damaged"):
        checkpoint.load_state(path)
    (path / "model.safetensors").write_bytes(b"not a checkpoint at all")
    for read in (checkpoint.load_weights, checkpoint.read_header):
        with pytest.raises(TubeletError, match=r"model\.safetensors cannot be read"):
            read(tmp_path)
    with pytest.raises(TubeletError, match="does not exist"):
        checkpoint.load_weights(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TubeletError, match="holds no checkpoint"):
        checkpoint.load_weights(tmp_path / "empty")


def test_files_of_others_and_of_the_future(tmp_path: Path) -> None:
    save_file(some(0), tmp_path / "theirs.safetensors")
    with pytest.raises(TubeletError, match="not written by tubelet"):
        checkpoint.read_header(tmp_path / "theirs.safetensors")
    assert len(checkpoint.load_weights(tmp_path / "theirs.safetensors")) == 2
    later = tmp_path / "later.safetensors"
    checkpoint.write_weights(later, some(0), {"format": 2, "library": "9.0"})
    with pytest.raises(TubeletError, match=r"format 2, written by tubelet 9\.0"):
        checkpoint.read_header(later)


def test_weights_of_another_model(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    weights = {name: torch.zeros_like(t) for name, t in model.state_dict().items()}
    checkpoint.apply_weights(model, weights, "here")
    assert not any(t.any() for t in model.state_dict().values())
    weights["0.weight"] = torch.ones(5, 3)
    weights["2.bias"] = weights.pop("1.bias")
    with pytest.raises(TubeletError) as error:
        checkpoint.apply_weights(model, weights, "there")
    said = str(error.value)
    for part in ("in there", "0.weight is 5x3, the model's is 4x3", "1.bias is missing"):
        assert part in said
    assert "2.bias is not in the model" in said
    assert not any(t.any() for t in model.state_dict().values())  # nothing was changed
    with pytest.raises(TubeletError, match=re.escape("and 4 more")):
        checkpoint.apply_weights(model, some(0) | {"c": torch.ones(1), "d": torch.ones(1)}, "x")


def test_weights_may_be_read_by_whom_other_new_files_may(tmp_path: Path) -> None:
    """safetensors by itself makes files that only their owner may read."""
    (tmp_path / "other").touch()
    checkpoint.write_weights(tmp_path / "a.safetensors", {"a": torch.zeros(3)}, {})
    mode = (tmp_path / "other").stat().st_mode
    assert (tmp_path / "a.safetensors").stat().st_mode == mode
