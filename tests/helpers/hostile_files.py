"""The files of `hostile`: how each is made, from a small VideoMAE of random weights."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from foreign import DECODED, SHAPE, theirs, videomae_model
from safetensors.torch import save_file
from torch import Tensor, nn

from tubelet.interop.opening import DEEPSPEED

GIB = 1 << 30


@dataclass
class World:
    """Where a case makes its file, and of what."""

    folder: Path
    patch: int = 8
    told: dict[str, Any] = field(default_factory=lambda: dict(DECODED))

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = videomae_model(shape=replace(SHAPE, patch=self.patch))
        self.state = theirs(self.model, "videomae")
        self.canary = self.folder / "canary"

    def save(self, saved: Any, name: str = "w.pth", **options: Any) -> Path:
        path = self.folder / name
        torch.save(saved, path, **options)
        return path

    def write(self, data: bytes, name: str = "w.pth") -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def saved(self) -> bytes:
        """A good file."""
        return self.save({"model": self.state}).read_bytes()

    def evil(self) -> Evil:
        return Evil(f"touch {self.canary}")

    def archive(self, contents: bytes, **records: bytes) -> Path:
        """What torch.save writes, around a pickle made by hand."""
        path = self.folder / "w.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", contents)
            archive.writestr("w/version", b"3\n")
            for name, record in records.items():
                archive.writestr(f"w/data/{name}", record)
        return path


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


# --- pickles by hand: protocol 2's operations


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def asked(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()


def storage(count: int, key: str = "0") -> bytes:
    kind = asked("torch", "FloatStorage")
    return b"(" + text("storage") + kind + text(key) + text("cpu") + whole(count) + b"tQ"


def tensor(count: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    sizes, strides = (b"(" + b"".join(map(whole, n)) + b"t" for n in (size, stride))
    hooks = asked("collections", "OrderedDict") + b")R"
    called = asked("torch._utils", "_rebuild_tensor_v2") + b"("
    return called + storage(count) + whole(0) + sizes + strides + b"\x89" + hooks + b"tR"


def pickled(*values: bytes) -> bytes:
    """A dict of them, named a, b, ..."""
    entries = b"".join(text(chr(97 + at)) + value for at, value in enumerate(values))
    return b"\x80\x02}(" + entries + b"u."


# --- right models


def changed_names(world: World, new: Callable[[str, int], str]) -> Path:
    return world.save({new(n, at): v for at, (n, v) in enumerate(world.state.items())})


def converted(dtype: torch.dtype) -> Callable[[World], Path]:
    return lambda world: world.save({"model": {n: v.to(dtype) for n, v in world.state.items()}})


def with_args(world: World) -> Path:
    args = argparse.Namespace(lr=1e-3, out=pathlib.Path("/runs/a"), inner=argparse.Namespace(a=1))
    best = {"max_accuracy": np.float64(81.5), "seen": np.int64(3), "random": np.arange(4)}
    return world.save({"model": world.state, "args": args, "epoch": 799, **best})


def with_optimizer(world: World) -> Path:
    networks = nn.ParameterList(v.clone() for v in world.state.values())
    optimizer = torch.optim.AdamW(networks)
    sum(p.sum() for p in networks).backward()
    optimizer.step()
    saved = {"model": world.state, "optimizer": optimizer.state_dict(), "scaler": {"scale": 128.0}}
    return world.save(saved)


def joined_biases(world: World) -> Path:
    state = dict(world.state)
    for name in [n for n in state if n.endswith("q_bias")]:
        q, v = state.pop(name), state.pop(name.replace("q_bias", "v_bias"))
        state[name.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.randn_like(q), v])
    return world.save({"model": state})


def views(world: World) -> Path:
    """Tensors that are parts of one large storage, one of them transposed."""
    flat = torch.cat([value.flatten() for value in world.state.values()])
    state, at = OrderedDict(), 0
    for name, value in world.state.items():
        state[name] = flat[at : at + value.numel()].view(value.shape)
        at += value.numel()
    turned = "encoder.blocks.0.mlp.fc1.weight"
    state[turned] = state[turned].T.contiguous().T
    return world.save({"model": state})


def deepspeed(world: World) -> Path:
    (world.folder / "run" / "global_step9").mkdir(parents=True)
    (world.folder / "run" / "latest").write_text("global_step9")
    world.save({"module": world.state, "dp_world_size": 8}, f"run/global_step9/{DEEPSPEED}")
    return world.folder / "run"


def as_safetensors(world: World) -> Path:
    save_file({n: v.contiguous() for n, v in world.state.items()}, world.folder / "w.pth")
    return world.folder / "w.pth"


def with_counter(world: World) -> Path:
    return world.save({**world.state, "encoder.num_batches_tracked": torch.tensor(7)})


# --- damaged


def cut(world: World) -> Path:
    data = world.saved()
    return world.write(data[: len(data) // 2])


def cut_legacy(world: World) -> Path:
    path = world.save({"model": world.state}, _use_new_zipfile_serialization=False)
    return world.write(path.read_bytes()[:-4000])


def cut_safetensors(world: World) -> Path:
    return world.write(as_safetensors(world).read_bytes()[:-4000])


def lying_safetensors(world: World) -> Path:
    said = {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    header = json.dumps(said).encode()
    return world.write(struct.pack("<Q", len(header)) + header + bytes(64))


def changed(name: str, new: Callable[[Tensor], Tensor]) -> Callable[[World], Path]:
    """A file in which one tensor is another."""
    return lambda world: world.save({"model": {**world.state, name: new(world.state[name])}})


def without(part: str) -> Callable[[World], Path]:
    return lambda world: world.save(
        {"model": {n: v for n, v in world.state.items() if part not in n}}
    )


def filled(value: float) -> Callable[[Tensor], Tensor]:
    def new(of: Tensor) -> Tensor:
        of = of.clone()
        of.view(-1)[-1] = value
        return of

    return new


def packed_folder(world: World) -> Path:
    world.saved()
    with zipfile.ZipFile(world.folder / "z.pth", "w") as archive:
        archive.write(world.folder / "w.pth", "VideoMAE/w.pth")
    return world.folder / "z.pth"


def tarred(world: World) -> Path:
    world.saved()
    with tarfile.open(world.folder / "t.pth", "w") as archive:
        archive.add(world.folder / "w.pth", "w.pth")
    return world.folder / "t.pth"


def parts(pattern: str) -> Callable[[World], Path]:
    def make(world: World) -> Path:
        (world.folder / "run").mkdir()
        for rank in range(2):
            world.save({"module": world.state}, f"run/{pattern.format(rank)}")
        return world.folder / "run"

    return make


def no_weights(world: World) -> Path:
    (world.folder / "run").mkdir()
    (world.folder / "run" / "log.txt").write_text("{}")
    return world.folder / "run"


def scripted(world: World) -> Path:
    path = world.folder / "w.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    return path


# --- hostile


def evil_beside(world: World) -> Path:
    return world.save({"model": world.state, "args": argparse.Namespace(hook=world.evil())})


def evil_legacy(world: World) -> Path:
    return world.save({"model": world.evil()}, _use_new_zipfile_serialization=False)


def namespace_trick(world: World) -> Path:
    """A Namespace that is given a __setstate__, which the next state would be passed to."""
    made = asked("argparse", "Namespace") + b")\x81"
    trick = b"}" + text("__setstate__") + asked("builtins", "set") + b"s"
    return world.archive(b"\x80\x02" + made + trick + b"b}b.")


def attribute_trick(world: World) -> Path:
    """An OrderedDict whose `items` is something to call."""
    made = asked("collections", "OrderedDict") + b")R"
    return world.archive(
        b"\x80\x02" + made + b"}" + text("items") + asked("torch", "Size") + b"sb."
    )


def bytes_bomb(world: World) -> Path:
    return world.archive(b"\x80\x02" + asked("builtins", "bytearray") + whole(64 * GIB) + b"\x85R.")


def deep_key(world: World) -> Path:
    """To hash this key takes more of C's stack than there is."""
    return world.archive(b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.")


def deep_dicts(world: World) -> Path:
    saved: Any = world.state
    for _ in range(300):
        saved = {"model": saved}
    return world.save(saved)


def copies(world: World) -> Path:
    """One long dict, copied into many Namespaces."""
    items = b"".join(text(f"{n:05}") + b"N" for n in range(50_000))
    one = asked("argparse", "Namespace") + b")\x81h\x00b"
    return world.archive(b"\x80\x02}(" + items + b"uq\x00" + one * 20_000 + b".")


def legacy_claim(world: World) -> Path:
    begin = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
    kind, hooks = asked("torch", "FloatStorage"), asked("collections", "OrderedDict") + b")R"
    told = text("storage") + kind + text("0") + text("cpu") + whole(16 * GIB) + b"N"
    made = asked("torch._utils", "_rebuild_tensor_v2") + b"((" + told + b"tQ" + whole(0)
    made += b"(" + whole(16 * GIB) + b"t(" + whole(1) + b"t\x89" + hooks + b"tR"
    return world.write(begin + pickled(made) + pickle.dumps(["0"], 2) + struct.pack("<q", 16 * GIB))


def zip_bomb(world: World) -> Path:
    path = world.folder / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", pickled(tensor(1 << 24, (1 << 24,), (1,))))
        with archive.open("w/data/0", "w") as record:
            for _ in range(64):
                record.write(bytes(1 << 20))
    return path


def wide(world: World) -> Path:
    """A patch embedding of a network of 65536 numbers a token: 600 GB by its 10 MB."""
    width = 1 << 16
    kernel = torch.zeros(1).expand(width, 3, 2, 2, 2).contiguous()
    hidden = torch.zeros(4 * width, 1)
    state = {
        "encoder.patch_embed.proj.weight": kernel,
        "encoder.patch_embed.proj.bias": hidden[:width, 0],
    }
    for block in range(3):
        state[f"encoder.blocks.{block}.mlp.fc1.weight"] = hidden
    return world.save({"model": {n: v.clone() for n, v in state.items()}})


def many_views(world: World) -> Path:
    """One storage of 4 MB under a thousand names."""
    big = torch.zeros(1 << 20)
    return world.save({f"blocks.{n}.a": big for n in range(1000)})
