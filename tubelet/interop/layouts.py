"""The layouts that are known: recognised by what a file holds, read into our terms, and written."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.files import save_tensors
from tubelet.interop import huggingface, huggingface_write, mae, mae_st, maskfeat, mvd, videomae
from tubelet.interop.found import NOTHING, Found, Origin, Question, Told, Unsaid
from tubelet.interop.ledger import Ledger
from tubelet.interop.names import some
from tubelet.interop.opening import is_deepspeed
from tubelet.interop.reading import read_raw
from tubelet.interop.sizes import PATCHES
from tubelet.interop.tables import KEYS


@dataclass(frozen=True)
class Layout:
    """How others lay out the weights of one family."""

    write: Callable[[Found], dict[str, Tensor]]  # a model of ours -> tensors under plain names
    spell: Callable[[Found, str], str] = lambda _found, name: name  # plain -> as in a new file
    wrapper: str = "model"  # of a new file
    # Where the layout is a folder: writes it with the named tensors in it.
    folder: Callable[[Found, dict[str, Tensor], Path], None] | None = None


# What `convert --to` takes; a file of one is read as whichever it is.
LAYOUTS: dict[str, Layout] = {
    "videomae": Layout(videomae.write, videomae.spell),
    "videomae-v2": Layout(videomae.write, videomae.spell),
    "mvd": Layout(mvd.write),
    "mae": Layout(mae.write),
    "maskfeat": Layout(maskfeat.write, wrapper="model_state"),
    "hf": Layout(
        huggingface_write.write, huggingface_write.spell, folder=huggingface_write.write_folder
    ),
}


def read(path: Path, told: Told = NOTHING) -> Found:
    """A file or folder of others -> what it holds, in our terms, with a report.

    TubeletError for what is damaged, unknown, not safe to open, or does not say what it is.
    """
    folder = huggingface.folder_of(path)
    raw = read_raw(path, told.wrapper) if folder is None else huggingface.raw_of(folder)
    plain_of = None if folder is None else huggingface.plain_name
    questions: list[Question] = []
    while True:  # on with guesses, to ask for all that is not said at once
        ledger = Ledger(raw, told, plain_of)
        try:
            found = huggingface.read(ledger) if folder else _reader(ledger)(ledger)
        except Unsaid as unsaid:
            questions += unsaid.questions
            told = replace(told, **{question.name: question.guess for question in unsaid.questions})
        except TubeletError as error:
            if questions:
                raise Unsaid(path, questions) from error
            if str(raw.path) in str(error):
                raise
            raise TubeletError(f"{raw.path}: {error}") from error
        else:
            if questions:
                raise Unsaid(path, questions)
            return found


def _reader(ledger: Ledger) -> Callable[[Ledger], Found]:
    """The layout, by names and by the dimensions of the patch embedding."""
    for layout in (maskfeat, mae_st):
        if layout.is_one(ledger):
            return layout.read
    patches = ledger.left.get(PATCHES)
    if patches is not None and patches.dim() == 4:
        return mae.read
    if patches is not None and patches.dim() == 5:
        return mvd.read if ledger.has("pos_embed", *mvd.MARKS) else videomae.read
    raise TubeletError(
        f"{ledger.raw.path} is in none of the layouts that are known (VideoMAE and V2, MVD, image MAE "
        f"and timm's ViT, MaskFeat, MAE-ST, Hugging Face): it holds {some(sorted(ledger.left))}."
    )


def state_of(found: Found, to: str) -> dict[str, Tensor]:
    """A checkpoint in our terms -> the state dict of that layout.

    What came from a file of the same layout gets its names, their order and precision back, and
    what our model has no place for.
    """
    layout = LAYOUTS[to]
    plain = layout.write(found)
    origin = found.origin
    if origin is None or origin.layout != family(to):
        return {layout.spell(found, name): value for name, value in plain.items()}
    left = plain | {n: v for n, v in origin.kept.items() if not n.endswith(KEYS)}
    state: dict[str, Tensor] = {}
    for name, plain_name in origin.names.items():
        if plain_name in left:
            state[name] = as_before(left.pop(plain_name), origin.dtypes.get(name, "float32"))
    return state | {layout.spell(found, n): v for n, v in left.items() if n in plain}


def family(to: str) -> str:
    """videomae-v2 has VideoMAE's layout."""
    return "videomae" if to == "videomae-v2" else to


def as_before(value: Tensor, dtype: str) -> Tensor:
    """The tensor in the precision of its file, where that holds its values (training changes them)."""
    kind: torch.dtype = getattr(torch, dtype)
    narrow = value.to(kind)
    return narrow if torch.equal(narrow.to(value.dtype), value) else value


def write(found: Found, to: str, out: Path) -> None:
    """A file of that layout: .safetensors, or else as torch.save and its wrapper; or a folder."""
    state = {name: value.contiguous() for name, value in state_of(found, to).items()}
    as_folder = LAYOUTS[to].folder
    if as_folder is not None:
        as_folder(found, state, out)
        return
    if out.suffix == ".safetensors":
        save_tensors(state, out, {"format": "pt"})
        return
    origin = found.origin
    if origin is None or origin.layout != family(to):
        origin = Origin(to, {}, wrapper=LAYOUTS[to].wrapper)
    saved: Any = {n: v.clone() for n, v in state.items()}  # no views of larger storages
    for entry in reversed(origin.wrapper.split(".") if origin.wrapper else []):
        saved = {entry: saved}
    if origin.wrapper and origin.settings and LAYOUTS[to].wrapper == "model":
        saved["args"] = argparse.Namespace(**origin.settings)  # as those scripts save them
    torch.save(saved, out)


def origin_of(header: Mapping[str, Any], weights: dict[str, Tensor]) -> Origin | None:
    """Takes what was kept out of the tensors of a file of ours; see `with_origin`."""
    told = header.get("origin")
    if told is None:
        return None
    kept = {n.removeprefix(KEPT): weights.pop(n) for n in list(weights) if n.startswith(KEPT)}
    settings = told.get("settings", {})
    return Origin(told["layout"], told["names"], told["dtypes"], told["wrapper"], kept, settings)


def with_origin(found: Found) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of ours that keeps where it came from."""
    if found.origin is None:
        return found.header, found.weights
    kept = {f"{KEPT}{name}": value for name, value in found.origin.kept.items()}
    return {**found.header, "origin": found.origin.to_dict()}, {**found.weights, **kept}


KEPT = "origin."


def is_folder(path: Path) -> bool:
    """Whether a folder holds weights of others: DeepSpeed's, or a Hugging Face model."""
    return is_deepspeed(path) or huggingface.folder_of(path) is not None
