"""Files of others, opened without trust: what they hold is data, and nothing in them is run.

The kind of a file is read from its first bytes, not from its name. Before anything is unpacked the
sizes that it claims are held against the size that it has.
"""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.interop.names import some
from tubelet.interop.report import Dropped

DEEPSPEED = "mp_rank_00_model_states.pt"  # in a folder checkpoint-<epoch>
WRAPPERS = ("model", "module", "model_state", "state_dict")
AVERAGES = ("model_ema",)  # taken where asked for by name
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Raw:
    """What a file holds: tensors by name, in its order, mapped from it and not yet in memory."""

    path: Path
    state: dict[str, Tensor]
    wrapper: str = ""  # the entries in which they lay, as in "model" or "model.module"
    settings: dict[str, Any] = field(default_factory=dict)  # of the training that wrote it
    notes: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()  # what lay beside the weights


def read_raw(path: Path, wrapper: str = "") -> Raw:
    """A weights file, or DeepSpeed's folder -> its state dict and the settings saved with it.

    TubeletError for what is damaged, would run code, or claims more than it holds.
    """
    path = path / DEEPSPEED if path.is_dir() else path
    if begin(path)[:2] in (b"PK", b"\x80\x02"):
        return _unwrapped(path, _unpickled(path), wrapper)
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    return Raw(path, _checked(state, path))


def begin(path: Path) -> bytes:
    """The first bytes of a file."""
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unpickled(path: Path) -> Any:
    """What torch.save wrote. Only tensors, plain values and an `argparse.Namespace` are read."""
    zipped = begin(path)[:2] == b"PK"
    try:
        if zipped:
            _check_zip(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error
    except pickle.UnpicklingError as error:
        raise _unreadable(path, error) from error


def _check_zip(path: Path) -> None:
    """TubeletError for an archive that unpacks to more than it is."""
    with zipfile.ZipFile(path) as archive:
        size = path.stat().st_size
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise TubeletError(f"{path} would unpack to more than its {size} bytes: refused.")


def _unwrapped(path: Path, found: Any, wanted: str) -> Raw:
    """Takes the weights out of the entries that training scripts put them into."""
    settings: dict[str, Any] = {}
    dropped: list[Dropped] = []
    names: list[str] = []
    while isinstance(found, Mapping) and not _is_state(found):
        if isinstance(found.get("args"), argparse.Namespace):
            settings |= vars(found["args"])
        have = [w for w in (*WRAPPERS, *AVERAGES) if isinstance(found.get(w), Mapping)]
        if wanted and wanted not in names and wanted not in have and have:
            raise TubeletError(f"{path} has no entry {wanted!r}: it has {', '.join(have)}.")
        usual = [w for w in have if w in WRAPPERS] or have
        if not usual:
            break
        if len(usual) > 1 and wanted not in have:
            raise TubeletError(
                f"{path} holds weights in several entries. Say which: --wrapper "
                f"{' or '.join(usual)} (in Python: wrapper=...)."
            )
        chosen = wanted if wanted in have else usual[0]
        why = "training state" if chosen else ""
        dropped += [Dropped(str(k), why) for k in found if k not in (chosen, "args")]
        names.append(chosen)
        found = found[chosen]
    if not isinstance(found, Mapping) or not found or not _is_state(found):
        raise TubeletError(
            f"{path} holds no state dict: expected tensors by name, or a dict with them under "
            f"{', '.join(map(repr, WRAPPERS))}; it holds {_held(found)}."
        )
    return Raw(
        path,
        _checked({str(k): v for k, v in found.items()}, path),
        ".".join(names),
        settings,
        dropped=tuple(dropped),
    )


def _is_state(found: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in found.values())


def _checked(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """TubeletError for tensors that claim more than the file holds, or are no floats."""
    for name, value in state.items():
        if value.dtype not in FLOATS:
            raise TubeletError(f"{path}: {name} is of {value.dtype}, where weights are floats.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise TubeletError(
                f"{path}: {name} claims {list(value.shape)}, more than the file holds: refused."
            )
    return state


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TubeletError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise TubeletError(f"{path} holds a {type(found).__name__}, where an object is expected.")
    return found


def _unreadable(path: Path, error: BaseException) -> TubeletError:
    return TubeletError(
        f"{path} cannot be read as weights: {(str(error).splitlines() or ['?'])[0]}. Expected a file of "
        "tensors, written by torch.save or safetensors."
    )


def _held(found: Any) -> str:
    if isinstance(found, Mapping):
        return some([f"{k} ({type(v).__name__})" for k, v in found.items()]) or "an empty dict"
    return f"a {type(found).__name__}"
