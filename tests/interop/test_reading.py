"""What is taken out of the files of others: state dicts, settings, and what lay beside."""

from __future__ import annotations

import argparse
import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_files import asked, pickled, tensor, text, whole
from safetensors.torch import save_file

from tubelet.errors import TubeletError
from tubelet.interop.opening import DEEPSPEED, is_deepspeed
from tubelet.interop.pickles import Walk
from tubelet.interop.reading import Raw, read_cfg, read_raw
from tubelet.interop.report import Dropped

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def read(folder: Path, saved: Any, wrapper: str = "", **options: Any) -> Raw:
    torch.save(saved, folder / "w.pth", **options)
    return read_raw(folder / "w.pth", wrapper)


def walked(contents: bytes, folder: Path) -> dict[str, int]:
    """-> the bytes that each storage is said to have."""
    claims: dict[str, int] = {}
    Walk(folder / "w.pth", claims.__setitem__).run(io.BytesIO(contents))
    return claims


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_are_plain_values_of_every_kind(tmp_path: Path, zipped: bool) -> None:
    args = argparse.Namespace(
        lr=1.5e-4, betas=[0.9, 0.95], out=Path("runs/a"), inner=argparse.Namespace(b=1), none=None
    )
    numbers = {"best": np.float64(81.25), "seen": np.int64(-3), "good": np.bool_(True)}
    numbers |= {"half": np.float16(0.5), "big_endian": np.array(7, ">i4")[()]}
    saved = {"model": STATE, "epoch": 799, "args": args, "random": np.arange(3), **numbers}
    raw = read(tmp_path, saved, _use_new_zipfile_serialization=zipped)
    assert raw.settings == {
        "lr": 1.5e-4,
        "betas": [0.9, 0.95],
        "out": "runs/a",
        "none": None,
        "epoch": 799,
        "best": 81.25,
        "seen": -3,
        "good": True,
        "half": 0.5,
        "big_endian": 7,
    }
    assert type(raw.settings["best"]) is float
    assert type(raw.settings["good"]) is bool
    assert raw.wrapper == "model"
    assert Dropped("random", "training state") in raw.dropped
    assert Dropped("args", "settings") in raw.dropped


def test_order_dtype_and_values_are_kept(tmp_path: Path) -> None:
    state = {"z": torch.randn(2).half(), "a": torch.randn(3, dtype=torch.float64)}
    raw = read(tmp_path, state)
    assert list(raw.state) == ["z", "a"]
    assert all(
        torch.equal(raw.state[n], v) and raw.state[n].dtype == v.dtype for n, v in state.items()
    )


@pytest.mark.parametrize("wrapper", ["model", "module", "model_state", "state_dict"])
def test_usual_wrappers(tmp_path: Path, wrapper: str) -> None:
    raw = read(tmp_path, {wrapper: STATE, "optimizer_state": {"a": torch.ones(1)}})
    assert (raw.wrapper, list(raw.state)) == (wrapper, list(STATE))
    assert raw.dropped == (Dropped("optimizer_state", "training state"),)


def test_wrappers_within_wrappers_and_their_settings(tmp_path: Path) -> None:
    raw = read(tmp_path, {"epoch": 1, "model": {"epoch": 2, "step": 5, "module": STATE}})
    assert raw.wrapper == "model.module"
    assert raw.settings == {"epoch": 1, "step": 5}  # what lies further out holds
    assert read_raw(raw.path, "model.module").wrapper == "model.module"


@pytest.mark.parametrize("wanted", ["model_ema", "teacher", "model"])
def test_a_named_wrapper_is_taken(tmp_path: Path, wanted: str) -> None:
    sets = {
        name: {n: v + i for n, v in STATE.items()} for i, name in enumerate(("model", "teacher"))
    }
    sets["model_ema"] = {n: v + 9 for n, v in STATE.items()}
    raw = read(tmp_path, sets, wanted)
    assert raw.wrapper == wanted
    assert torch.equal(raw.state["a.bias"], sets[wanted]["a.bias"])


@pytest.mark.parametrize(
    ("saved", "wrapper", "says"),
    [
        ({"model": STATE}, "module", r"no entry 'module' .*Leave --wrapper out"),
        ({"ema": STATE}, "", "--wrapper ema "),
        ({**STATE, "module": STATE}, "", "^$"),
        ({**STATE, "teacher": {"model": STATE}}, "", r"by themselves and under teacher"),
        ({"x": 3}, "", r"it holds x \(int\)"),
        (3, "", "it holds a int"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "", "."),
        ({"a": torch.arange(3)}, "", "a is of int64"),
        ({"a": torch.ones(2, device="meta")}, "", "."),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, saved: Any, wrapper: str, says: str) -> None:
    if says == "^$":  # what lies in an entry goes before what lies beside it
        assert read(tmp_path, saved, wrapper).wrapper == "module"
        return
    with pytest.raises(TubeletError, match=says):
        read(tmp_path, saved, wrapper)


def test_counters_are_left_out_and_said(tmp_path: Path) -> None:
    counters = {"bn.num_batches_tracked": torch.tensor(3), "e.position_ids": torch.arange(4)[None]}
    raw = read(tmp_path, {**STATE, **counters})
    assert list(raw.state) == list(STATE)
    assert [one.name for one in raw.dropped] == list(counters)


CFG = """\
AUG:
  AA_TYPE: rand-m7-n4-mstd0.5-inc1
  ENABLE: true
DATA:
  MEAN:
  - 0.45
  - -0.5
  NUM_FRAMES: 16
  PATH_PREFIX: ''
  SIZES: [224, 256]
  TRAIN_CROP_SIZE: 224
MVIT:
  DIM_MUL:
  - - 1
    - 2.0
  - - 3
    - 2.0
  DROPPATH_RATE: 1.0e-1
  NORM_STEM: null
NUM_GPUS: 8
OUTPUT_DIR: .
"""


def test_pyslowfasts_settings(tmp_path: Path) -> None:
    found = read(tmp_path, {"epoch": 299, "model_state": STATE, "cfg": CFG}).settings
    assert found == {
        "epoch": 299,
        "AUG.AA_TYPE": "rand-m7-n4-mstd0.5-inc1",
        "AUG.ENABLE": True,
        "DATA.MEAN": [0.45, -0.5],
        "DATA.NUM_FRAMES": 16,
        "DATA.PATH_PREFIX": "",
        "DATA.SIZES": [224, 256],
        "DATA.TRAIN_CROP_SIZE": 224,
        "MVIT.DIM_MUL": [1, 2.0, 3, 2.0],  # joined
        "MVIT.DROPPATH_RATE": 0.1,
        "MVIT.NORM_STEM": None,
        "NUM_GPUS": 8,
        "OUTPUT_DIR": ".",
    }


@pytest.mark.parametrize(
    "text", ["", "!!python/object/apply:os.system ['x']", "- a: b\n", "a: &x [*x]", "\0"]
)
def test_other_text_is_no_settings(text: str) -> None:
    assert all(isinstance(value, (str, list)) for value in read_cfg(text).values())


def test_a_folder_by_its_tag_and_no_way_out_of_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "step3").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    torch.save({"module": STATE}, run / "step3" / DEEPSPEED)
    torch.save({"module": STATE}, tmp_path / "elsewhere" / DEEPSPEED)
    assert not is_deepspeed(run)
    for tag, is_one in (("../elsewhere", False), ("step4", False), ("", False), ("step3\n", True)):
        (run / "latest").write_text(tag)
        assert is_deepspeed(run) is is_one, tag
    assert read_raw(run).path == run / "step3" / DEEPSPEED
    (run / "step3" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()  # ZeRO 1 and 2
    assert list(read_raw(run).state) == list(STATE)


def test_safetensors_whose_length_begins_as_a_pickle(tmp_path: Path) -> None:
    """Its header has 640 bytes, which are written as 80 02."""
    path = tmp_path / "a.safetensors"
    for long in range(700):
        save_file({"w": torch.ones(2)}, path, {"note": "x" * long})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert list(read_raw(path).state) == ["w"]


def test_safetensors_are_mapped(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1 << 20)}, tmp_path / "w.bin")
    mapped = read_raw(tmp_path / "w.bin").state["a"]
    assert torch.equal(mapped, torch.ones(1 << 20))
    places = [
        line.split()[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "w.bin" in line
    ]
    assert any(int(a, 16) <= mapped.data_ptr() < int(b, 16) for a, b in places)


# --- the walk


def test_the_walk_allows_what_torch_writes(tmp_path: Path) -> None:
    claims = walked(pickled(tensor(6, (2, 3), (3, 1))), tmp_path)
    assert claims == {"0": 24}
    for protocol in (0, 1, 3, 4, 5):
        with pytest.raises(TubeletError, match=r"protocol|does not write"):
            walked(pickle.dumps({"a": [1.5, None, True, "x"]}, protocol), tmp_path)
    assert (
        walked(pickle.dumps({"a": [1.5, None, True, "x", (), {}, -(1 << 40)]}, 2), tmp_path) == {}
    )


@pytest.mark.parametrize(
    ("size", "stride", "fits"),
    [
        ((6,), (1,), True),
        ((2, 3), (1, 2), True),  # transposed
        ((), (), True),
        ((0, 1 << 30), (1, 1), True),  # nothing at all
        ((7,), (1,), False),
        ((2, 3), (4, 1), False),  # the last lies beyond
        ((2, 4), (0, 1), False),  # more than are stored
        ((6,), (1, 1), False),
        ((-2,), (1,), False),
        ((1,) * 17, (1,) * 17, False),
        ((1 << 50,), (0,), False),
    ],
)
def test_shapes_within_their_storage(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], fits: bool
) -> None:
    contents = pickled(tensor(6, size, stride))
    if fits:
        walked(contents, tmp_path)
        return
    with pytest.raises(TubeletError, match=r"refused|damaged"):
        walked(contents, tmp_path)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("torch", "load")),
        *(("torch", "Tensor"), ("torch.storage", "UntypedStorage"), ("numpy", "load")),
        *(("torch._utils", "_rebuild_qtensor"), ("torch.hub", "load"), ("a", "c; rm -rf")),
    ],
)
def test_all_other_names_are_refused(tmp_path: Path, module: str, name: str) -> None:
    said = re.escape(re.sub(r"[^\w.]", "?", f"{module}.{name}"))
    with pytest.raises(TubeletError, match=rf"asks to run {said} .*nothing was run"):
        walked(b"\x80\x02" + asked(module, name) + b".", tmp_path)
    strings = text(module) + b"\x94" + text(name) + b"\x94\x93."  # as protocol 4 asks
    with pytest.raises(TubeletError, match=rf"asks to run {said} "):
        walked(b"\x80\x04" + strings, tmp_path)


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (asked("torch", "FloatStorage") + whole(9) + b"\x85R.", "calls torch.FloatStorage"),
        (asked("torch", "float32") + b")R.", "calls torch.float32"),
        (text("x") + b")R.", "nothing to call"),
        (asked("_codecs", "encode") + text("x") + text("zlib") + b"\x86R.", "encodes text"),
        (b"])" + b"b.", "sets the state of a list"),
        (asked("builtins", "set") + b"])a\x85R.", "not named by text"),
        (b"}" + b")Ns.", "not named by text"),
        (b"N)a.", "no list"),
        (b"h\x05.", "damaged"),
        (b"t.", "damaged"),
        (b"X\xff\xff\xff\x7fab.", "damaged"),
        (b"N", "damaged"),
        (b"N0.", "POP"),
        (b"N" * (1 << 20) + b".", "lists more than any checkpoint"),
    ],
)
def test_other_ways_to_harm(tmp_path: Path, contents: bytes, says: str) -> None:
    with pytest.raises(TubeletError, match=says):
        walked(b"\x80\x02" + contents, tmp_path)


def test_numpy_values_that_are_no_numbers_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(TubeletError, match="numpy"):
        read(tmp_path, {"model": STATE, "x": np.dtype("O")})
    with pytest.raises(TubeletError, match=r"asks to run|numpy"):
        read(tmp_path, {"model": STATE, "x": np.datetime64("2020-01-01")})


def test_every_byte_may_be_wrong(tmp_path: Path) -> None:
    """A file with a byte changed is read, or gives one error of ours."""
    torch.save({"model": STATE, "args": argparse.Namespace(a=1)}, tmp_path / "good.pth")
    good = (tmp_path / "good.pth").read_bytes()
    end = good.index(b"PK\x07\x08")  # of the record that lists the contents
    rng = np.random.default_rng(0)
    errors = 0
    for at in [*range(0, end, 3), *rng.integers(end, len(good), 60)]:
        data = bytearray(good)
        data[at] ^= int(rng.integers(1, 256))
        (tmp_path / "w.pth").write_bytes(data)
        try:
            read_raw(tmp_path / "w.pth")
        except TubeletError:
            errors += 1
    assert errors > 100
