"""A run's folder: who may use it, and the settings and lines that it keeps."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tubelet.errors import TubeletError
from tubelet.files import replace_file
from tubelet.train import checkpoint
from tubelet.train.config import Derived, TrainConfig

CONFIG, METRICS, NONFINITE = "config.json", "metrics.jsonl", "nonfinite.jsonl"
_HOW = {  # settings of how a run computes and reports, rather than of what it learns
    *("micro_batch", "workers", "device", "compile", "checkpoint_blocks", "parallel"),
    *("save_every_steps", "save_every_epochs", "keep_checkpoints", "eval_every_epochs"),
    *("log_every_steps", "progress", "tensorboard"),
}

log = logging.getLogger("tubelet")


def check(out: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from, if any; a folder that holds a run is refused unless `resume`.

    Touches nothing.
    """
    if out.exists() and not out.is_dir():
        raise TubeletError(f"The output folder {out} is a file. Pass another folder.")
    newest = checkpoint.latest(out)
    if not resume and (newest or _has_rows(out)):
        holds = newest.name if newest else f"{METRICS}, but no checkpoint yet"
        raise TubeletError(
            f"The output folder {out} holds a run already ({holds}). "
            "Go on with it by --resume, or pass another folder; nothing was changed."
        )
    if resume and newest is None:
        log.warning("Nothing to resume in %s: starting at step 0.", out)
    return newest


def begin(
    out: Path, config: TrainConfig, derived: Derived, header: dict[str, Any], step: int
) -> None:
    """Writes config.json, and cuts off the rows of updates after `step`: they come again."""
    with checkpoint.writing("The run's settings", out):
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.tidy(out)
        record = _record(config, derived, header)
        if (out / CONFIG).exists() and _has_rows(out):
            record["resumed"] = _resumed(out / CONFIG, record, step)
        for name in (METRICS, NONFINITE):
            _cut(out / name, step)
        text = json.dumps(record, indent=1)
        replace_file(out / CONFIG, lambda path: path.write_text(text))


def _has_rows(out: Path) -> bool:
    """Whether a run got as far as a log row. A config.json alone is of one that failed before."""
    metrics = out / METRICS
    return metrics.exists() and metrics.stat().st_size > 0


def _record(config: TrainConfig, derived: Derived, header: dict[str, Any]) -> dict[str, Any]:
    versions = {
        "tubelet": version("tubelet"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    record = {"header": header, "train": asdict(config), "derived": asdict(derived)}
    return json.loads(json.dumps(record | {"versions": versions}))


def _resumed(path: Path, record: dict[str, Any], step: int) -> list[dict[str, Any]]:
    """The list of earlier resumptions and this one, with the settings that changed; warns of
    those that change what is learned."""
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise TubeletError(
            f"{path} is damaged: {error}. Remove it to resume without it."
        ) from error
    old, new = _flat(before), _flat(record)
    changed = {
        key: [old.get(key), new.get(key)]
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
        and (key.startswith("train.") or (key.startswith("header.") and ".train." not in key))
    }
    for key, (was, now) in changed.items():
        if key.removeprefix("train.") not in _HOW:
            log.warning("Resumed with another %s: %s, was %s.", key, now, was)
    return [*before.get("resumed", []), {"step": step, "changed": changed}]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {k: v for key in value for k, v in _flat(value[key], f"{prefix}{key}.").items()}


def _cut(path: Path, step: int) -> None:
    """Keeps the lines of the first `step` updates; a line that a kill cut short is dropped."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    replace_file(path, lambda begun: begun.write_text("".join(kept)))
