"""The report of a load, in every layout: no tensor of the file and none of the model is left out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import (
    CLIP,
    DECODED,
    TOLD,
    classifier_model,
    encoder_model,
    mae_model,
    student_model,
    theirs,
    videomae_model,
)
from foreign_files import maskfeat, videomae
from torch import Tensor

from tubelet import stored
from tubelet.backbones.backbone import KINETICS_MEAN, KINETICS_STD
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.model import VideoModel

Case = tuple[Callable[[], VideoModel], str, dict[str, Any]]


def slots() -> VideoModel:
    """As MAE-ST's."""
    pixels = {"mean": KINETICS_MEAN, "std": KINETICS_STD}
    return encoder_model(clip=CLIP, tubelet_size=2, **pixels)


SINUSOID = {"position": "sinusoid_1d", **TOLD}
CASES: dict[str, Case] = {
    "videomae": (videomae_model, "videomae", DECODED),
    "its encoder": (videomae_model, "videomae", {**TOLD, "encoder_only": True}),
    "fine-tuned": (classifier_model, "videomae", SINUSOID),
    "mvd": (student_model, "mvd", DECODED),
    "mae": (mae_model, "mae", {"heads": 3, "decoder_heads": 2}),
    "timm": (encoder_model, "mae", {"heads": 3}),
    "maskfeat": (maskfeat, "maskfeat", {"pool_kv": 4}),
    "mae_st": (slots, "maskfeat", TOLD),
    "hf": (videomae, "hf", {}),
    "hf, images": (encoder_model, "hf", {}),
}


def state_of(name: str) -> dict[str, Tensor]:
    make, layout, _ = CASES[name]
    return theirs(make(), layout)


def written(name: str, folder: Path, state: dict[str, Tensor]) -> Path:
    """The case's file, or folder, with these tensors."""
    if CASES[name][1] != "hf":
        torch.save({"model": state, "epoch": 3}, folder / "a.pth")
        return folder / "a.pth"
    if not (folder / "hf").exists():
        layouts.write(stored.found_of(CASES[name][0]()), "hf", folder / "hf")
    (folder / "hf" / "model.safetensors").unlink(missing_ok=True)
    torch.save(state, folder / "hf" / "pytorch_model.bin")
    return folder / "hf"


@pytest.mark.parametrize("name", CASES)
def test_each_tensor_has_one_fate(name: str, tmp_path: Path) -> None:
    state = state_of(name)
    model = stored.load(written(name, tmp_path, state), **CASES[name][2])
    report = model.report
    fates = [set(report.matched), {one.theirs for one in report.renamed}]
    fates.append({one.name for one in report.dropped} - {"epoch"})
    assert sum(map(len, fates)) == len(state)
    assert set.union(*fates) == set(state)
    ours = [*report.matched, *(one.ours for one in report.renamed), *report.missing]
    assert set(ours) == set(model.state_dict())
    assert f"{len(fates[1])} renamed" in report.line()


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("videomae", "mvd", "mae_st")),
        *("mae", "timm", "hf, images"),
    ],
)
def test_no_shape_crashes_a_reader(name: str, tmp_path: Path) -> None:
    """Each tensor in turn is of another shape: one error, that names the file."""
    state = state_of(name)
    # A bias of keys changes nothing, and is kept as it is.
    for wrong in [n for n in state if ".1." not in n and not n.endswith("key.bias")]:
        for shape in ((4,) if wrong.endswith("weight") else (), (2, 3, 4, 4)):
            path = written(name, tmp_path, state | {wrong: torch.ones(shape)})
            with pytest.raises(TubeletError, match=str(path)):
                stored.load(path, **CASES[name][2])
