"""Checkpoints that are whole at any moment, and the files within.

A checkpoint is a folder `checkpoint-000020` (the number of updates done) of `model.safetensors`,
`ema.safetensors` where an average is kept, and `state.pt`. It is written under another name,
flushed to the disk and then renamed: so a kill at any moment leaves the one before, and what bears
the name is complete. All tensors are whole ones (of no process in particular), on the CPU.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.files import flush, save_tensors

FORMAT = 1  # of the header and of state.pt; a higher one is of a later tubelet
WEIGHTS, AVERAGE, STATE = "model.safetensors", "ema.safetensors", "state.pt"
_NAME = re.compile(r"checkpoint-(\d+)")


def save(
    out: Path,
    step: int,
    header: dict[str, Any],
    weights: dict[str, Tensor],
    state: dict[str, Any],
    average: dict[str, Tensor] | None = None,
    keep: int = 1,
) -> Path:
    """Writes `out`/checkpoint-<step> and, once it is whole, removes all but the newest `keep`.

    `header`: anything JSON can hold; `format`, `library` and `step` are added. `average`: the
    tensors of `weights` that an average replaces. Where a file cannot be written (a full disk),
    what was begun is removed and a TubeletError tells what is left.
    """
    final = out / f"checkpoint-{step:06d}"
    with writing(f"The checkpoint of step {step}", out):
        tidy(out)
        begun = out / f".{final.name}.begun"
        begun.mkdir()
        try:
            write_weights(begun / WEIGHTS, weights, header | {"step": step})
            if average is not None:
                of = header | {"step": step, "average": True}
                write_weights(begun / AVERAGE, weights | average, of)
            with open(begun / STATE, "wb") as file:
                torch.save({"format": FORMAT, "step": step, **state}, file)
            for path in [*begun.iterdir(), begun]:
                flush(path)
            _discard(final)
            os.rename(begun, final)
        except BaseException:
            shutil.rmtree(begun, ignore_errors=True)
            raise
        flush(out)
        for old in checkpoints(out)[:-keep]:
            _discard(old)
    return final


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints in a run's folder, oldest first."""
    found = [(int(m[1]), p) for p in out.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found) if (path / WEIGHTS).is_file()]


def latest(out: Path) -> Path | None:
    """The newest checkpoint in a run's folder that training can go on from."""
    return next((p for p in reversed(checkpoints(out)) if (p / STATE).is_file()), None)


def find(path: str | Path) -> Path:
    """A weights file, a checkpoint or a run's folder (its newest checkpoint) -> the weights file."""
    path = Path(path)
    if path.is_file():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    if path.is_dir():
        found = checkpoints(path)
        if found:
            return found[-1] / WEIGHTS
        raise TubeletError(
            f"{path} holds no checkpoint: expected {WEIGHTS}, or folders named checkpoint-000020. "
            f"A run that was stopped before its first checkpoint has none. {_listing(path)}"
        )
    raise TubeletError(f"{path} does not exist. Pass a run's folder, a checkpoint, or a file.")


def write_weights(path: Path, weights: dict[str, Tensor], header: dict[str, Any]) -> None:
    """One safetensors file with the JSON header under the key `tubelet` of its metadata."""
    stamped = {"format": FORMAT, "library": version("tubelet")} | header
    save_tensors(weights, path, {"format": "pt", "tubelet": json.dumps(stamped)})


def read_header(path: str | Path) -> dict[str, Any]:
    """What `save` was given to say about the weights; TubeletError for a file that says nothing."""
    path = find(path)
    with _reading(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "tubelet" not in metadata:
        raise TubeletError(
            f"{path} was not written by tubelet: its metadata lacks the key 'tubelet'. Weights in "
            "another layout are renamed first: tubelet.interop has tables for it."
        )
    try:
        header = json.loads(metadata["tubelet"])
        later = header["format"] > FORMAT
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise TubeletError(
            f"{path} has a header that cannot be read ({type(error).__name__}): it is damaged, or was "
            "not written by tubelet."
        ) from error
    if later:
        raise TubeletError(
            f"{path} is of format {header['format']}, written by tubelet {header.get('library', '?')}; "
            f"this one reads up to {FORMAT}. Upgrade: pip install -U tubelet."
        )
    return header


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, a checkpoint or a run's folder, by name, on the CPU."""
    path = find(path)
    with _reading(path):
        return load_file(path)


def load_state(path: str | Path) -> dict[str, Any]:
    """The training state of a checkpoint folder: `step`, `optimizer`, and what the loop counts."""
    path = Path(path) / STATE
    with _reading(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if state["format"] > FORMAT:
        raise TubeletError(f"{path} is of a later tubelet. Upgrade: pip install -U tubelet.")
    return state


def apply_weights(model: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Copies the tensors into the model; TubeletError unless names and shapes all agree."""
    own = model.state_dict()
    wrong = [
        f"{name} is {_shape(weights[name])}, the model's is {_shape(own[name])}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    wrong += [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is not in the model" for name in weights if name not in own]
    if wrong:
        shown = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise TubeletError(
            f"The weights in {source} are of another model than this {type(model).__name__}: "
            f"{shown}. Build the model as the checkpoint's run did (its config.json says how)."
        )
    model.load_state_dict(weights, strict=True)


def tidy(out: Path) -> None:
    """Removes what a killed process had begun to write, or to remove."""
    for path in out.glob(".checkpoint-*"):
        shutil.rmtree(path)


@contextmanager
def writing(what: str, out: Path) -> Generator[None, None, None]:
    """Failures to write within the block become one TubeletError that says what is left."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason, full = _reason(error)
        newest = latest(out)
        left = "No checkpoint was written before"
        if newest is not None:
            left = f"The newest checkpoint, {newest}, is whole"
        advice = "Free some space" if full else "Make the folder writable"
        free = f" ({shutil.disk_usage(out).free / 1e9:.2f} GB free)" if out.is_dir() else ""
        raise TubeletError(
            f"{what} could not be written to {out}: {reason}{free}. {left}. "
            f"{advice}, then go on with --resume."
        ) from error


@contextmanager
def _reading(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except (OSError, EOFError, RuntimeError, SafetensorError, KeyError, ValueError) as error:
        raise TubeletError(
            f"{path} cannot be read: {_reason(error)[0]}. It is damaged or no such file; an older "
            "checkpoint of the run may serve: remove the damaged one's folder to resume from it."
        ) from error


def _reason(error: BaseException) -> tuple[str, bool]:
    """-> what the system said, and whether the disk is full."""
    said = str(error)
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OSError) and cause.strerror:
            said = cause.strerror
    full = os.strerror(errno.ENOSPC) in said or os.strerror(errno.EDQUOT) in said
    return (os.strerror(errno.ENOSPC) if full else said.split("\n", 1)[0]), full


def _discard(path: Path) -> None:
    """Removes a checkpoint: first its name, so that a half-removed one is never taken for whole."""
    if path.exists():
        gone = path.with_name(f".{path.name}.gone")
        os.rename(path, gone)
        shutil.rmtree(gone)


def _listing(folder: Path) -> str:
    """What else lies in a folder that was taken for a checkpoint."""
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "It is empty."
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"It holds {', '.join(names[:4])}{more}: name the file that you mean."


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
