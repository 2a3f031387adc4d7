"""Bad weights, and conversions that cannot be: see `bad_input.py`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from bad_input import Case
from foreign_files import classifier, mvd, videomae, write

ENCODER = "--heads 3 --trained 4 32 32"
WHOLE = f"{ENCODER} --decoder-heads 2"


def run(command: str) -> tuple[str, list[str]]:
    """How the page shows it, and its arguments."""
    return command, command.split()[1:]


def changed(folder: Path, change: Any) -> None:
    """A pretrained file, with this done to its tensors."""
    path = write(videomae(), "videomae", folder / "whole.pth")
    saved = torch.load(path, weights_only=True)
    torch.save({"model": change(saved["model"])}, folder / "changed.pth")


def cut_short(folder: Path) -> None:
    path = write(videomae(), "videomae", folder / "whole.pth")
    (folder / "cut.pth").write_bytes(path.read_bytes()[:100_000])


class Harmful:
    """What a hostile file holds: a call that its reader would make."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return print, ("this was run",)


def hostile(folder: Path) -> None:
    with open(folder / "hostile.pth", "wb") as file:
        pickle.dump({"model": Harmful()}, file, protocol=2)


def two_sets(folder: Path) -> None:
    state = torch.load(write(videomae(), "videomae", folder / "whole.pth"), weights_only=True)
    other = {name: value + 1 for name, value in state["model"].items()}
    torch.save({"model": state["model"], "module": other}, folder / "two.pth")


def diverged(state: dict[str, Any]) -> dict[str, Any]:
    state["encoder.norm.bias"][0] = torch.nan
    return state


CHECKPOINTS = [
    Case(
        "a conversion into no layout",
        *run("tubelet convert runs/pre new.pth"),
        ("Into which layout?", "--to", "tubelet, videomae"),
    ),
    Case(
        "a conversion into a layout that is not known",
        *run("tubelet convert runs/pre new.pth --to videomea"),
        ("no layout 'videomea'", "Did you mean 'videomae'?"),
    ),
    Case(
        "a layout that has no place for the model",
        *run("tubelet convert runs/pre new.pth --to mvd"),
        (
            "layout mvd cannot be written: 19 tensors have no name",
            "Layouts that can: tubelet, videomae",
        ),
    ),
    Case(
        "a conversion into a file that exists",
        *run("tubelet convert runs/pre taken.pth --to videomae"),
        ("taken.pth exists already", "--overwrite"),
        lambda folder: (folder / "taken.pth").write_text("mine\n"),
    ),
    Case(
        "a file's name for a folder",
        *run("tubelet convert runs/pre new.pth --to hf"),
        ("new.pth is the name of a file", "name a folder"),
    ),
    Case(
        "names for another number of classes",
        *run("tubelet convert runs/fine named.safetensors --to tubelet --classes names.txt"),
        ("3 names of classes", "2 outputs"),
        lambda folder: (folder / "names.txt").write_text("left\nright\nup\n"),
    ),
    Case(
        "weights that do not say what they are",
        *run("tubelet predict fine.pth videos/0.mp4"),
        ("its positions", "--position sinusoid_1d for VideoMAE", "--heads", "--trained"),
        lambda folder: write(classifier(), "videomae", folder / "fine.pth"),
    ),
    Case(
        "positions that a file contradicts",
        *run(
            "tubelet finetune --weights mvd.pth --data labelled --out runs/new --heads 3 --trained 8 32 32"
        ),
        ("mvd.pth has 32 positions", "64 tokens"),
        lambda folder: write(mvd(), "mvd", folder / "mvd.pth"),
    ),
    Case(
        "weights without one of their blocks",
        *run(f"tubelet embed changed.pth videos --out features {WHOLE}"),
        ("changed.pth lacks blocks", "blocks.0 is missing"),
        lambda folder: changed(
            folder, lambda s: {n: v for n, v in s.items() if not n.startswith("encoder.blocks.0.")}
        ),
    ),
    Case(
        "weights with a tensor that has no place",
        *run(f"tubelet embed changed.pth videos --out features {WHOLE}"),
        ("1 tensors", "aux.weight", "--allow-extra"),
        lambda folder: changed(folder, lambda s: s | {"aux.weight": torch.ones(3)}),
    ),
    Case(
        "weights with numbers that are not finite",
        *run(f"tubelet convert changed.pth new.safetensors --to tubelet {WHOLE}"),
        ("not finite, in 1 of 49 tensors", "earlier checkpoint"),
        lambda folder: changed(folder, diverged),
    ),
    Case(
        "weights that a download has cut short",
        *run("tubelet inspect cut.pth"),
        ("cut.pth",),
        cut_short,
    ),
    Case(
        "a file that would run code",
        *run("tubelet inspect hostile.pth"),
        ("hostile.pth",),
        hostile,
    ),
    Case(
        "a file with two sets of weights",
        *run("tubelet inspect two.pth"),
        ("several entries", "--wrapper model or module"),
        two_sets,
    ),
    Case(
        "what a run of tubelet says itself",
        *run("tubelet predict runs/fine videos/0.mp4 --position sinusoid_1d"),
        ("runs/fine says its position itself",),
    ),
]
