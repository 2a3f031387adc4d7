"""State dicts out of the files of others: what is in them is data, and nothing in them is run.

See `opening` for how a file is opened, and `pickles` for what it may ask.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.interop.names import some
from tubelet.interop.opening import contents, weights_in
from tubelet.interop.pickles import Namespace
from tubelet.interop.report import Dropped

WRAPPERS = ("model", "module", "model_state", "state_dict")
AVERAGES = ("model_ema", "ema", "ema_state_dict")  # taken where asked for by name
SETTINGS = ("args", "cfg", "config", "hyper_parameters")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MOST_LEVELS = 4  # of entries within entries
MOST_TEXT = 1 << 20
MOST_JSON = 1 << 24
MOST_NAME = 512


@dataclass(frozen=True)
class Raw:
    """What a file holds: tensors by name, in its order, mapped from it and not yet in memory."""

    path: Path
    state: dict[str, Tensor]
    wrapper: str = ""  # the entries in which they lay, as in "model" or "model.module"
    # Plain values saved beside: epoch, and those of the training that wrote it (its `args`, or its
    # `cfg` as in "DATA.NUM_FRAMES").
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()  # what lay beside the weights


def read_raw(path: Path, wrapper: str = "") -> Raw:
    """A weights file, or DeepSpeed's folder -> its state dict and the settings saved with it.

    `wrapper`: the entry to read, where several hold weights. TubeletError for what is damaged, would
    run code, claims more than it holds, or holds no weights.
    """
    path = weights_in(path) if path.is_dir() else path
    found, names = contents(path), []
    settings: dict[str, Any] = {}
    dropped: list[Dropped] = []
    wanted = wrapper.split(".") if wrapper else []
    while isinstance(found, Mapping) and len(names) < MOST_LEVELS:
        chosen = _chosen(found, wanted, path)
        settings = _settings_of(found) | settings
        if chosen is None:
            break
        dropped += [_left_out(str(key), found[key]) for key in found if key != chosen]
        names.append(chosen)
        wanted = wanted[1:] if wanted[:1] == [chosen] else wanted
        found = found[chosen]
    if wanted:
        raise TubeletError(
            f"{path} has no entry {'.'.join(wanted)!r} with weights: it holds {_held(found)}. Leave "
            "--wrapper out."
        )
    state, beside = _state(found, path)
    state, buffers = _checked(state, path)
    return Raw(path, state, ".".join(names), settings, dropped=(*dropped, *beside, *buffers))


def _chosen(found: Mapping[Any, Any], wanted: list[str], path: Path) -> str | None:
    """The entry of this level in which the weights lie; None where they lie in the level itself."""
    if wanted and _weighs(found.get(wanted[0])):
        return wanted[0]
    have = [name for name in WRAPPERS if _weighs(found.get(name))]
    averages = [name for name in AVERAGES if _weighs(found.get(name))]
    if not have and averages:
        raise TubeletError(
            f"{path} holds averaged weights alone. If they are wanted, say so: --wrapper {averages[0]} "
            f"(in Python: wrapper={averages[0]!r})."
        )
    if len(have) > 1 and not all(_same(found[have[0]], found[name]) for name in have[1:]):
        raise TubeletError(
            f"{path} holds weights in several entries. Say which: --wrapper {' or '.join(have)} (in "
            "Python: wrapper=...)."
        )
    return have[0] if have else None


def _weighs(entry: Any) -> bool:
    """Whether an entry is a dict with tensors, at once or further within."""
    for _ in range(MOST_LEVELS):
        if not isinstance(entry, Mapping) or not entry:
            return False
        if any(isinstance(value, Tensor) for value in entry.values()):
            return True
        entry = next((entry[name] for name in (*WRAPPERS, *AVERAGES) if name in entry), None)
    return False


def _same(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    """Whether two entries hold the same tensors."""
    return list(one) == list(other) and all(
        isinstance(value, Tensor)
        and isinstance(other[name], Tensor)
        and value.dtype == other[name].dtype
        and (
            (value.data_ptr(), value.shape) == (other[name].data_ptr(), other[name].shape)
            or torch.equal(value, other[name])
        )
        for name, value in one.items()
    )


def _left_out(name: str, value: Any) -> Dropped:
    if name in (*WRAPPERS, *AVERAGES) and _weighs(value):
        why = f"another set of weights: --wrapper {name} reads it"
        return Dropped(name, why if name in AVERAGES else "the same weights again")
    return Dropped(name, "settings" if name in SETTINGS or _is_plain(value) else "training state")


def _settings_of(found: Mapping[Any, Any]) -> dict[str, Any]:
    """What a level says in plain values; of its training's settings those that are plain."""
    told = {str(key): value for key, value in found.items() if _is_plain(value)}
    for name in SETTINGS:
        inner = found.get(name)
        told.pop(name, None)
        if isinstance(inner, Namespace):
            inner = getattr(inner, "values", {})
        elif isinstance(inner, str):
            inner = read_cfg(inner)
        if isinstance(inner, Mapping):
            told |= {
                str(key): value for key, value in inner.items() if _is_plain(value, lists=True)
            }
    return told


def _is_plain(value: Any, *, lists: bool = False) -> bool:
    if lists and isinstance(value, (list, tuple)):
        return len(value) <= 1024 and all(_is_plain(one) for one in value)
    if isinstance(value, str):
        return len(value) < MOST_TEXT
    return value is None or isinstance(value, (bool, int, float))


def read_cfg(text: str) -> dict[str, Any]:
    """PySlowFast's settings as it saves them -> {"DATA.NUM_FRAMES": 16, ...}.

    Of YAML only what they need: two levels of `KEY: value`, and lists of plain values, lists in them
    joined; anything else is left out.
    """
    found: dict[str, Any] = {}
    section = key = ""
    for line in text[:MOST_TEXT].splitlines():
        entry = re.fullmatch(r"(  )?([A-Za-z_]\w*):(?: (.*))?", line)
        item = re.fullmatch(r" *(?:- )+(\[[^\[\]]*\]|[^-:\[{\s][^:]*|-?[\d.]\S*)", line)
        if entry:
            inside, name, value = entry.groups()
            section = section if inside else ("" if value else name)
            key = f"{section}.{name}" if inside and section else name
            if value is not None:
                found[key] = _value(value)
        elif item and key:
            listed = found.setdefault(key, [])
            if isinstance(listed, list):
                value = _value(item[1])
                listed += value if isinstance(value, list) else [value]
        elif line.startswith("   ") or re.match(r"(  )?- ", line):
            found.pop(key, None)  # deeper than is read
            key = ""
    return found


def _value(text: str) -> Any:
    """A scalar of YAML, or a list of them in brackets."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [_value(part) for part in text[1:-1].split(",") if part.strip()]
    if text in ("true", "false", "null", "~", ""):
        return {"true": True, "false": False}.get(text)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _state(found: Any, path: Path) -> tuple[dict[str, Tensor], list[Dropped]]:
    """A dict of tensors by name, and what lay among them."""
    tensors = (
        {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors:
        raise TubeletError(
            f"{path} holds no state dict: expected tensors by name, or a dict with them under "
            f"{', '.join(map(repr, WRAPPERS))}; it holds {_held(found)}."
        )
    nested = [
        str(name) for name, value in found.items() if isinstance(value, Mapping) and _weighs(value)
    ]
    if nested:
        raise TubeletError(
            f"{path} holds tensors both by themselves and under {some(nested)}. Say --wrapper "
            f"{nested[0]} for those (in Python: wrapper=...), or save the ones that you want."
        )
    return tensors, [_left_out(str(k), v) for k, v in found.items() if not isinstance(v, Tensor)]


def _checked(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[Dropped]]:
    """The floats, and the counters among them that are left out; TubeletError for other numbers, for
    names that are none, and for tensors that claim more than the file holds."""
    odd = [name for name in state if not name.isprintable() or len(name) > MOST_NAME]
    if odd:
        raise TubeletError(f"{path} has a tensor named {odd[0][:40]!a}: damaged, refused.")
    counters = [name for name, value in state.items() if _is_counter(name, value)]
    kept = {name: value for name, value in state.items() if name not in counters}
    for name, value in kept.items():
        if value.dtype not in FLOATS:
            raise TubeletError(
                f"{path}: {name} is of {str(value.dtype).removeprefix('torch.')}, where weights are "
                "floats (float32, float16, bfloat16, float64). Quantised weights are not read: take "
                "the ones that they were made from."
            )
        if value.device.type != "cpu" or value.layout != torch.strided or not value.numel():
            raise TubeletError(
                f"{path}: {name} of shape {list(value.shape)} has no numbers. It was saved without "
                "them (as ZeRO-3 leaves them): gather the weights first."
            )
    claimed = sum(value.numel() * value.element_size() for value in kept.values())
    if claimed > 2 * path.stat().st_size:  # tied weights are counted twice
        raise TubeletError(
            f"{path} has {path.stat().st_size} bytes, and its tensors claim {claimed}: refused."
        )
    return kept, [Dropped(name, "a counter, no weight") for name in counters]


def _is_counter(name: str, value: Tensor) -> bool:
    """Whether this is a buffer of a module that counts steps, or numbers positions."""
    last = name.rpartition(".")[2]
    return not value.dtype.is_floating_point and (value.numel() == 1 or last == "position_ids")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file."""
    try:
        size = path.stat().st_size
        if size > MOST_JSON:
            raise TubeletError(f"{path} has {size} bytes of JSON, more than any model's: refused.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TubeletError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise TubeletError(f"{path} holds a {type(found).__name__}, where an object is expected.")
    return found


def _held(found: Any) -> str:
    if isinstance(found, Mapping):
        return some([f"{k} ({type(v).__name__})" for k, v in found.items()]) or "an empty dict"
    return f"a {type(found).__name__}"
