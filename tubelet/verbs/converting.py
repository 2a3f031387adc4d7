"""From one layout of weights into another: convert."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from tubelet import heads, stored
from tubelet.backbones import Encoder
from tubelet.backbones.mvit import MViTShape
from tubelet.backbones.positions import PositionMode
from tubelet.data.labels import numbered
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.interop.found import NOTHING, Found, Told, Unsaid
from tubelet.interop.layouts import LAYOUTS
from tubelet.interop.names import some
from tubelet.interop.report import Report
from tubelet.methods.records import record, value_of
from tubelet.model import Classifier, VideoModel

OURS = "tubelet"
SUFFIXES = (".pth", ".pt", ".pyth", ".bin", ".safetensors")
Precision = Literal["as-read", "float32", "float16", "bfloat16"]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: str,
    told: Told = NOTHING,
    head_map: str | Path = "",
    classes: Sequence[str] | str | Path = (),
    num_frames: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    positions: PositionMode | None = None,
    precision: Precision = "as-read",
    overwrite: bool = False,
    **said: Any,
) -> Report:
    """Weights of whatever layout -> a file (or Hugging Face's folder) of another; what became of
    each tensor.

    What was written is read again and compared tensor by tensor before it bears the name `out`.

    Args:
        source: whatever `tubelet.load` takes, with `told` and `said` as there.
        out: a file, .safetensors for "tubelet"; a new folder for "hf".
        to: "tubelet", or one of `tubelet.interop.layouts.LAYOUTS`.
        head_map: keep the rows of the head for one set of those merged for it: a map of
            `merge_labels`, or row numbers.
        classes: names for a head that has numbers; or a file of them (see `read_classes`).
        num_frames, img_size, positions: of a model for clips of another size; see `load`.
        precision: of the tensors in a file of others; "as-read": as in the source, where its values
            still fit.
        overwrite: replace what `out` names.

    Raises:
        TubeletError: weights that cannot be loaded whole, or that the layout has no place for; an
            `out` that exists.
    """
    out = Path(out)
    told = record(Told, {**told.said(), **said})
    _check(Path(source), out, to, overwrite)
    opened = stored.opened(source, told)
    found = stored.resized(opened, num_frames, img_size, positions)
    _check_size(opened, found, to)
    found = _found(source, found, told, head_map, classes)
    found = _in_precision(found, to, precision)
    begun = out.with_name(f".begun-{out.name}")
    _remove(begun)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        (stored.write if to == OURS else _written_as(to))(found, begun)
        back, say = _compare(found, begun, to, out)
        _move(begun, out)
    except (OSError, RuntimeError, SafetensorError) as error:  # the latter of the writers of files
        why = str(getattr(error, "strerror", "") or error).splitlines()[0].rstrip(".")
        raise TubeletError(f"{out} cannot be written: {why}.") from error
    finally:
        _remove(begun)
    found.report.notes += _notes(found, back, out, to, say)
    return found.report


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Names of classes, that of 0 first: one in each line, or the json of a list, of {number: name},
    or with these as `id2label` (Hugging Face's config.json)."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        parsed = json.loads(text) if Path(path).suffix == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise TubeletError(f"{path} cannot be read as names of classes: {error}.") from error
    if isinstance(parsed, dict):
        parsed = parsed.get("id2label", parsed)
    if isinstance(parsed, dict) and all(key.isdecimal() for key in parsed):
        order = sorted(parsed, key=int)
        if [int(key) for key in order] != list(range(len(order))):
            raise TubeletError(f"{path} does not name each class from 0 to {len(order) - 1} once.")
        parsed = [parsed[key] for key in order]
    if not isinstance(parsed, list):
        raise TubeletError(
            f"{path} holds no names of classes. Expected one in each line, or json: a list, or "
            '{"0": name, ...}, on its own or as "id2label".'
        )
    names = tuple(str(name).strip() for name in parsed)
    return names[:-1] if names and not names[-1] else names


def _check(source: Path, out: Path, to: str, overwrite: bool) -> None:
    """TubeletError for a layout that is not known, and for an `out` that is not to be written."""
    known = [OURS, *LAYOUTS]
    if to not in known:
        near = difflib.get_close_matches(to, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TubeletError(f"There is no layout {to!r}.{hint} Known: {', '.join(known)}.")
    as_folder = to != OURS and LAYOUTS[to].folder is not None
    ends = (".safetensors",) if to == OURS else SUFFIXES
    if as_folder and out.suffix in SUFFIXES:
        raise TubeletError(f"{out} is the name of a file, and {to} is a folder: name a folder.")
    if not as_folder and out.suffix not in ends:
        raise TubeletError(
            f"{out} is no name for a file of the layout {to}: expected one that ends with "
            f"{' or '.join(ends)}."
        )
    if out.exists() and source.exists() and out.samefile(source):
        raise TubeletError(f"{out} is what is to be converted: name another.")
    if out.exists() and (not overwrite or out.is_dir() != as_folder):
        say = "" if out.is_dir() != as_folder else ", or replace it with --overwrite"
        raise TubeletError(f"{out} exists already: name another{say}. Nothing was changed.")


def _check_size(opened: Found, found: Found, to: str) -> None:
    """TubeletError for a size or a kind of positions that no tensor of the layout would show."""
    backbone = found.header["backbone"]
    fixed = to not in (OURS, "hf") and backbone["trained"] == opened.header["backbone"]["trained"]
    if fixed and found.header != opened.header:
        raise TubeletError(
            f"Files of the layout {to} do not say for which clips a model is, nor how its positions are "
            "made for others: leave --num-frames, --img-size and --positions out, and give them when "
            f"it is loaded. Files of tubelet say it: --to {OURS}."
        )


def _found(
    source: str | Path,
    found: Found,
    told: Told,
    head_map: str | Path,
    classes: Sequence[str] | str | Path,
) -> Found:
    """What is to be written: of a whole model, so that nothing missing and no NaN goes unseen."""
    found = heads.part(found, head_map) if head_map else found
    model = stored.made(found, told, source)
    if classes:
        _name(_classifier(model, source, "--classes"), classes)
    return stored.found_of(model)


def _classifier(model: VideoModel, source: str | Path, flag: str) -> Classifier:
    if not isinstance(model, Classifier):
        raise TubeletError(f"{source} has no head of classes: leave {flag} out.")
    return model


def _name(model: Classifier, classes: Sequence[str] | str | Path) -> None:
    """Gives a head names for its numbers."""
    card = model.card
    names = read_classes(classes) if isinstance(classes, (str, Path)) else tuple(classes)
    if len(names) != model.num_classes:
        raise TubeletError(
            f"{len(names)} names of classes were given ({some(names)}), and the head has "
            f"{model.num_classes} outputs: it is of another set of classes."
        )
    if card.classes != names and not numbered(card.classes):
        raise TubeletError(
            f"The head has names already ({some(card.classes)}), and others were given "
            f"({some(names)}): leave --classes out."
        )
    model.card = replace(card, classes=names)


def _in_precision(found: Found, to: str, precision: Precision) -> Found:
    """The tensors rounded, and written so; TubeletError where one of them does not fit."""
    if precision == "as-read":
        return found
    if to == OURS:
        raise TubeletError(
            f"Files of tubelet are float32, and --precision {precision} was asked for: leave it out."
        )
    dtype: torch.dtype = getattr(torch, precision)
    weights = {name: value.to(dtype) for name, value in found.weights.items()}
    wrong = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if wrong:
        raise TubeletError(
            f"{len(wrong)} tensors hold numbers too large for {precision}: {some(wrong)}. bfloat16 has "
            "the range of float32."
        )
    origin = found.origin
    if origin is not None:
        origin = replace(origin, dtypes=dict.fromkeys(origin.names, precision))
    return replace(found, weights=weights, origin=origin)


def _written_as(to: str) -> Callable[[Found, Path], None]:
    def write(found: Found, path: Path) -> None:
        try:
            layouts.write(found, to, path)
        except TubeletError as error:
            raise TubeletError(
                f"The layout {to} cannot be written: {error} {_others(found, to)}"
            ) from error

    return write


def _others(found: Found, to: str) -> str:
    """The layouts that could hold the model: all are asked, but nothing is written."""
    able = [OURS]
    for name in LAYOUTS:
        try:
            layouts.state_of(found, name)
        except TubeletError:
            continue
        able.append(name)
    return f"Layouts that can: {', '.join(name for name in able if name != to)}."


def _compare(found: Found, begun: Path, to: str, out: Path) -> tuple[Found, dict[str, Any]]:
    """Reads what was written -> that, and what it does not say; TubeletError unless it is the same
    model."""
    back, say = _read_again(found, begun)
    wrong = [name for name in found.weights if name not in back.weights]
    wrong += [name for name in back.weights if name not in found.weights]
    wrong += [
        name
        for name, value in found.weights.items()
        if name in back.weights and not torch.equal(value.float(), back.weights[name].float())
    ]
    if wrong or back.kind != found.kind or answers(back) != answers(found):
        raise TubeletError(
            f"{out} was not written: in the layout {to} it would be read as another model "
            f"({back.kind}, where the source is {found.kind}; {len(wrong)} tensors differ: "
            f"{some(wrong) or 'none'}). This is a fault of tubelet's: please report it."
        )
    return back, say


def _read_again(found: Found, begun: Path) -> tuple[Found, dict[str, Any]]:
    """What a reader makes of it -> that, and what it has to be told: of what it asks, and of what it
    would take as published and is not."""
    truth, told = answers(found), {}
    while True:  # an answer can lead to further questions
        try:
            back = stored.opened(begun, record(Told, told))
        except Unsaid as unsaid:
            new = {question.name for question in unsaid.questions} - set(told)
            if not new or new - set(truth):
                raise
        else:
            taken = answers(back)
            new = {name for name, value in truth.items() if taken[name] != value} - set(told)
            if not new:
                return back, told
        told |= {name: truth[name] for name in truth if name in new}


def answers(found: Found) -> dict[str, Any]:
    """What a file may not say of a model, by the names of `Told`."""
    backbone, run = found.header["backbone"], found.header["run"]
    shape: Encoder = value_of(Encoder, backbone["shape"], "backbone")
    trained = tuple(backbone["trained"])
    if isinstance(shape, MViTShape):
        pooled = tuple(at for at, row in enumerate(shape.rows) if row.pool_q > 1)
        return {"trained": trained, "pooled": pooled, "pool_kv": shape.pool_kv}
    if shape.positions == "rebuild":  # then they are those of its clips
        trained = (found.header["clip"]["num_frames"], *found.header["clip"]["size"])
    return {
        "position": shape.position,
        "heads": shape.heads,
        "decoder_heads": (run.get("decoder") or {}).get("heads"),
        "trained": trained,
    }


def _notes(found: Found, back: Found, out: Path, to: str, say: dict[str, Any]) -> list[str]:
    notes = [f"{out}, in the layout {to}: written, read again, and equal in all tensors"]
    if say:
        flags = (f"--{name.replace('_', '-')} {_said(value)}" for name, value in say.items())
        notes.append(f"the new file does not say all: read it with {' '.join(flags)}")
    if to == OURS:
        return notes
    as_folder = LAYOUTS[to].folder is not None
    names = found.header["classes"]
    if names and not as_folder and not numbered(names):
        notes.append(f"the names of the {len(names)} classes have no place in the new file")
    lost = _unsaid(found, back)
    if lost and not as_folder:
        notes.append(f"of which clips the model is has no place in the new file: {lost}")
    return notes


def _unsaid(found: Found, back: Found) -> str:
    """How the clips are that the model takes, where its reader will think otherwise."""
    own, other = found.header["clip"], back.header["clip"]
    names = ("num_frames", "sampling", "sampling_rate", "size")
    odd = [name for name in names if _said(own[name]) != _said(other[name])]
    return ", ".join(f"{name} {_said(own[name])}" for name in odd)


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _move(begun: Path, out: Path) -> None:
    """A file in one move; of a folder, each of its files, beside what else is there."""
    if not begun.is_dir() or not out.exists():
        os.replace(begun, out)
        return
    for path in sorted(begun.iterdir()):
        os.replace(path, out / path.name)


def _remove(begun: Path) -> None:
    if begun.is_dir():
        shutil.rmtree(begun)
    else:
        begun.unlink(missing_ok=True)
