"""What a file of weights is, whoever wrote it: inspect."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from tubelet import stored
from tubelet.data.labels import numbered
from tubelet.errors import TubeletError
from tubelet.interop import huggingface, layouts
from tubelet.interop.found import NOTHING, Found, Question, Told, Unsaid
from tubelet.interop.names import some
from tubelet.interop.reading import read_raw
from tubelet.interop.report import cell
from tubelet.methods.records import record
from tubelet.train import checkpoint

PARTS = {"backbone.": "encoder", "branches.": "decoders", "fc_norm.": "head", "head.": "head"}
# Of a training's settings, ours or of others: what its recipe is, in this order.
RECIPE = (
    *("model", "data_set", "data", "epoch", "epochs", "steps", "batch_size", "opt", "lr", "min_lr"),
    *("warmup_epochs", "weight_decay", "opt_betas", "betas", "clip_grad", "layer_decay"),
    *("drop_path", "mask_type", "mask_ratio", "decoder_mask_ratio", "decoder_depth"),
    *("normlize_target", "normalise_target", "mixup", "cutmix", "smoothing", "reprob"),
    *("teacher", "weights"),
)
CLIP = ("num_frames", "sampling", "sampling_rate", "size")
SHOWN, MOST = 6, 40


class Numbers(NamedTuple):
    """Of one tensor, as it lies in the file; least, most and mean are of its finite numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    least: float
    most: float
    mean: float
    not_finite: int


@dataclass(frozen=True)
class Inspection:
    """What was found. `problem`: why the weights cannot be loaded; "": they can, once told what was
    `asked`."""

    path: str
    layout: str
    what: str
    bytes: int
    wrapper: str = ""
    kind: str = ""
    encoder: dict[str, Any] = field(default_factory=dict)
    decoders: dict[str, Any] = field(default_factory=dict)
    trained: tuple[int, ...] = ()  # frames, height, width
    clip: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)  # all that is plain
    classes: tuple[str, ...] = ()
    library: str = ""
    step: int | None = None
    trained_on: dict[str, Any] = field(default_factory=dict)  # videos and fingerprint of the list
    origin: str = ""
    asked: tuple[Question, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()
    tensors: tuple[Numbers, ...] = ()

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Tensors with NaN or infinite numbers."""
        return tuple(tensor.name for tensor in self.tensors if tensor.not_finite)

    @property
    def usable(self) -> bool:
        """Whether `load` takes it, told what is asked for."""
        return not self.problem and not self.not_finite

    @property
    def precision(self) -> dict[str, int]:
        """Tensors of each precision."""
        kinds = [tensor.dtype for tensor in self.tensors]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def to_json(self) -> dict[str, Any]:
        """JSON values; a number that is not finite is null."""
        found = asdict(self)
        found["asked"] = [
            {"flag": q.flag, "what": q.what, "choices": q.choices} for q in self.asked
        ]
        found["tensors"] = [_plain(tensor._asdict()) for tensor in self.tensors]
        derived = {"precision": self.precision, "not_finite": list(self.not_finite)}
        return json.loads(json.dumps(found | derived | {"usable": self.usable}, default=str))

    def table(self) -> Table:
        """A row for each thing that is known."""
        table = Table("", "", title=cell(self.path), title_justify="left", show_header=False)
        for name, value in self._rows():
            if value:
                table.add_row(cell(name), cell(value))
        return table

    def _rows(self) -> list[tuple[str, str]]:
        frames = "x".join(map(str, self.trained))
        numbers = [f"{name} {count:,}" for name, count in self.parameters.items()]
        named = not numbered(self.classes)
        shown = some(self.classes, SHOWN) if named else "known by number alone"
        rows = [
            ("what", f"{self.what}{f' ({self.kind})' if self.kind else ''}"),
            ("layout", self.layout + (f", in the entry {self.wrapper!r}" if self.wrapper else "")),
            ("encoder", _told(_beyond_usual(self.encoder))),
            *((f"decoder {name}", _told(sizes)) for name, sizes in self.decoders.items()),
            ("trained on", f"clips of {frames}" if frames else ""),
            ("clip", _told({name: self.clip[name] for name in CLIP if name in self.clip})),
            ("parameters", ", ".join(numbers)),
            ("precision", ", ".join(f"{kind} ({n})" for kind, n in self.precision.items())),
            ("size", f"{self.bytes:,} bytes, {len(self.tensors)} tensors"),
            ("recipe", _told({k: self.recipe[k] for k in RECIPE if k in self.recipe})),
            ("list", _told(self.trained_on)),
            ("classes", f"{len(self.classes)}: {shown}" if self.classes else ""),
            ("written by", self.library),
            ("step", "" if self.step is None else str(self.step)),
            ("came from", self.origin),
            *(("asked for", f"{q.flag} {q.choices}: {q.what}") for q in self.asked),
            *(("note", note) for note in self.notes),
        ]
        wrong = self.not_finite
        finite = f"not finite in {len(wrong)} of {len(self.tensors)} tensors: {some(wrong)}"
        rows.append(("numbers", finite if wrong else "all are finite"))
        held = "\n".join(_gathered(self.tensors)) if self.problem and not self.kind else ""
        return [*rows, ("cannot be loaded", self.problem), ("it holds", held)]

    def tensor_table(self) -> Table:
        """A row for each tensor."""
        table = Table("tensor", "shape", "precision")
        for name in ("least", "most", "mean", "not finite"):
            table.add_column(name, justify="right")
        for t in self.tensors:
            shape = "x".join(map(str, t.shape)) or "a number"
            values = [f"{value:.4g}" for value in (t.least, t.most, t.mean)]
            table.add_row(cell(t.name), shape, t.dtype, *values, str(t.not_finite or ""))
        return table


def inspect(path: str | Path, told: Told = NOTHING, **said: Any) -> Inspection:
    """A run's folder, a checkpoint, or weights of others -> what is known of them.

    Reads what `load` refuses too: numbers that are not finite are listed, what the file does not
    say is in `asked`, and why its layout is not known in `problem`. Of a run's folder the newest
    checkpoint is read. `told`, `said`: see `load`.

    Raises:
        TubeletError: what is damaged, would run code, or is no file of weights.
    """
    path, told = Path(path), record(Told, {**told.said(), **said})
    return _of_ours(path, told) if stored.is_ours(path) else _of_others(path, told)


def _of_ours(path: Path, told: Told) -> Inspection:
    file = checkpoint.find(path)
    found = stored.opened(file, told)
    header = found.header
    state = checkpoint.load_weights(file)
    run = header["run"]
    name = str(run.get("type", "")).rpartition(":")[2]
    origin = found.origin
    average = ", averaged weights" if header.get("average") else ""
    return replace(
        Inspection(str(file), "tubelet", f"{name or 'tubelet'}{average}", file.stat().st_size),
        **_sized(found),
        recipe={**run, **run.get("train", {}), **_resized_of(run)},
        library=f"tubelet {header.get('library', '?')}",
        step=header.get("step"),
        trained_on=header.get("list", {}),
        origin="" if origin is None else f"a file of the layout {origin.layout}",
        tensors=_numbers(state),
    )


def _resized_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Options that lie in other records of a run than that of its training."""
    return {k: v for part in ("mixing", "augment") for k, v in (run.get(part) or {}).items()}


def _of_others(path: Path, told: Told) -> Inspection:
    folder = huggingface.folder_of(path)
    raw = read_raw(path, told.wrapper) if folder is None else huggingface.raw_of(folder)
    found, asked, problem = None, (), ""
    try:
        found = layouts.read(path, told)
    except Unsaid as unsaid:
        asked = unsaid.questions
        guesses = record(Told, {**told.said(), **{q.name: q.guess for q in asked}})
        found, problem = _guessed(path, guesses)
    except TubeletError as error:
        problem = str(error)
    known = {} if found is None else _sized(found, asked)
    report = None if found is None else found.report
    return replace(
        Inspection(
            str(path),
            "unknown" if report is None else report.layout,
            "weights of others" if report is None else report.what,
            _bytes(path),
            wrapper=raw.wrapper,
        ),
        **known,
        recipe=raw.settings,
        asked=asked,
        problem=problem,
        notes=() if report is None else tuple(report.notes),
        tensors=_numbers(raw.state),
    )


def _guessed(path: Path, told: Told) -> tuple[Found | None, str]:
    """What a file is as far as it says so, read on with guesses for the rest."""
    try:
        return layouts.read(path, told), ""
    except TubeletError as error:
        return None, str(error)


def _sized(found: Found, asked: tuple[Question, ...] = ()) -> dict[str, Any]:
    """The fields of an Inspection that a header tells; what is asked for is not among them."""
    header, unknown = found.header, {question.name for question in asked}
    shape = {**header["backbone"]["shape"], "in_chans": header["backbone"]["in_chans"]}
    decoder = header["run"].get("decoder") or {}
    if "decoder_heads" in unknown:
        decoder = {name: value for name, value in decoder.items() if name != "heads"}
    branches = {n.split(".")[1]: {} for n in found.weights if n.startswith("branches.")}
    clip = dict(header["clip"])
    for name in ("num_frames", "size") if "trained" in unknown else ():
        del clip[name]
    return {
        "kind": header["kind"],
        "encoder": {name: value for name, value in shape.items() if name not in unknown},
        "decoders": dict.fromkeys(branches, decoder),
        "trained": () if "trained" in unknown else tuple(header["backbone"]["trained"]),
        "clip": clip,
        "parameters": _counted(found.weights),
        "classes": tuple(header.get("classes", ())),
    }


def _counted(weights: Mapping[str, Tensor]) -> dict[str, int]:
    counts = dict.fromkeys(["encoder", "decoders", "head"], 0)
    for name, value in weights.items():
        part = next(part for prefix, part in PARTS.items() if name.startswith(prefix))
        counts[part] += value.numel()
    counts = {part: count for part, count in counts.items() if count}
    return counts | {"total": sum(counts.values())}


def _numbers(state: Mapping[str, Tensor]) -> tuple[Numbers, ...]:
    return tuple(_of(name, value) for name, value in state.items())


def _of(name: str, value: Tensor) -> Numbers:
    finite = torch.isfinite(value)
    wrong = value.numel() - int(finite.sum())
    numbers = (value[finite] if wrong else value).float()
    some_left = numbers.numel() > 0
    least, most = numbers.aminmax() if some_left else (math.nan, math.nan)
    mean = numbers.mean(dtype=torch.float64) if some_left else math.nan
    dtype = str(value.dtype).removeprefix("torch.")
    return Numbers(name, tuple(value.shape), dtype, float(least), float(most), float(mean), wrong)


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }


def _gathered(tensors: tuple[Numbers, ...]) -> list[str]:
    """Names and shapes; those of blocks, which differ by a number alone, are one."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        parts = ("*" if part.isdigit() else part for part in tensor.name.split("."))
        line = f"{'.'.join(parts)} {list(tensor.shape)}"
        counts[line] = counts.get(line, 0) + 1
    lines = [f"{line}  ({count})" if count > 1 else line for line, count in counts.items()]
    more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return [*lines[:MOST], *more]


def _beyond_usual(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is off or empty, and what belongs to that."""
    on = {n: v for n, v in sizes.items() if v is not None and v is not False and v not in ((), [])}
    return on if on.get("class_token") else {n: v for n, v in on.items() if n != "class_token_of"}


def _told(values: Mapping[str, Any]) -> str:
    """name value, name value: of plain values, and lists of them."""
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        sizes = all(type(one) is int for one in value)
        return ("x" if sizes else " ").join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
