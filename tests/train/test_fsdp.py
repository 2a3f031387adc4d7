"""VideoMAE V2 on two processes learns as on one, and each goes on where the other stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import dual
import pytest
import torch
from small import write_video
from spread import in_two

import tubelet
from tubelet.train import checkpoint

# Two processes add the same numbers in another order: 1e-7 of a loss. AdamW divides each gradient by
# its own size, so ten updates make up to 1e-5 of that in a tensor.
FLOAT32 = 2e-5
# A weight that differs in its last bit may be rounded to the next bf16, of 8 bits: 4e-4 at most was
# seen in a gradient's norm.
BF16 = 2e-3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process trains; two train the same, and finish a run that one had begun."""
    folder = tmp_path_factory.mktemp("dual")
    for i in range(6):
        label = "even" if i % 2 == 0 else "odd"
        video = write_video(folder / f"videos/{i}.mp4", height=64, width=64, seed=i)
        for split in ("train", "val"):
            (folder / f"labelled/{split}/{label}").mkdir(parents=True, exist_ok=True)
            shutil.copy(video, folder / f"labelled/{split}/{label}/{i}.mp4")
    dual.pretrain(dual.RUN, data=folder / "videos", out=folder / "one")
    dual.pretrain(dual.RUN, data=folder / "videos", out=folder / "one-bf16", precision="bf16")
    dual.finetune(dual.FINE, data=folder / "labelled", out=folder / "one-fine")
    dual.half_way(folder / "one", folder / "on")
    return in_two(dual.__file__, folder)


def traces(run: Path, expected: Path, tiny: ModuleType) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of each of the ten updates, of both."""
    found, wanted = ([row for row in tiny.rows(path) if "loss" in row] for path in (run, expected))
    assert [row["step"] for row in found] == [row["step"] for row in wanted] == [*range(1, 11)]
    names = ("loss", "grad_norm")
    return [row[n] for row in found for n in names], [row[n] for row in wanted for n in names]


def same_state(run: Path, expected: Path, tiny: ModuleType) -> None:
    """Weights and the optimizer's state after ten updates, each tensor by its own size."""
    found, wanted = tiny.contents(run), tiny.contents(expected)
    assert found.keys() == wanted.keys() and wanted["step"] == 10 and wanted["skipped"] == 0
    assert sum(name.endswith("/exp_avg_sq") for name in wanted) > 40
    for name, value in wanted.items():
        if name not in ("step", "skipped"):
            size = float(value.abs().max())
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=FLOAT32 * max(size, 1e-12), msg=name
            )


@pytest.mark.parametrize("way", ["fsdp", "ddp"])
def test_two_processes_leave_the_trace_of_one(way: str, runs: Path, tiny: ModuleType) -> None:
    found, wanted = traces(runs / way, runs / "one", tiny)
    assert found == pytest.approx(wanted, rel=FLOAT32)
    assert min(wanted[1::2]) > 0.02  # every update was clipped
    same_state(runs / way, runs / "one", tiny)


def test_fine_tuning_with_layer_decay_leaves_the_trace_of_one(runs: Path, tiny: ModuleType) -> None:
    found, wanted = traces(runs / "fine", runs / "one-fine", tiny)
    assert found == pytest.approx(wanted, rel=FLOAT32)
    same_state(runs / "fine", runs / "one-fine", tiny)


def test_scores_during_training_are_those_of_one(runs: Path, tiny: ModuleType) -> None:
    """Of the weights and of their average, at steps 5 and 10, and training goes on in between."""
    found, wanted = (
        [row["evaluation"] for row in tiny.rows(runs / name) if "evaluation" in row]
        for name in ("fine", "one-fine")
    )
    assert found == wanted and len(found) == 2
    assert wanted[1]["top1"] != wanted[1]["ema_top1"]


def test_two_processes_go_on_where_one_stopped(runs: Path, tiny: ModuleType) -> None:
    found, wanted = traces(runs / "on", runs / "one", tiny)
    assert found[:10] == wanted[:10] and found[10:] != wanted[10:]  # the latter by two
    assert found == pytest.approx(wanted, rel=FLOAT32)
    same_state(runs / "on", runs / "one", tiny)


def test_one_process_loads_and_goes_on_where_two_stopped(
    runs: Path, tiny: ModuleType, tmp_path: Path
) -> None:
    out = dual.half_way(runs / "fsdp", tmp_path / "on")
    model = tubelet.load(out)
    weights = checkpoint.load_weights(runs / "fsdp/checkpoint-000005")
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    dual.pretrain(dual.RUN, data=runs / "videos", out=out, resume=True)
    found, wanted = traces(out, runs / "one", tiny)
    assert found == pytest.approx(wanted, rel=FLOAT32)
    same_state(out, runs / "one", tiny)


def test_in_bf16_gradients_are_summed_in_float32(runs: Path, tiny: ModuleType) -> None:
    found, wanted = traces(runs / "fsdp-bf16", runs / "one-bf16", tiny)
    assert found == pytest.approx(wanted, rel=BF16)
    exact, _ = traces(runs / "one", runs / "one", tiny)
    assert found != pytest.approx(exact, rel=1e-5)  # it was bf16


def test_gradients_are_split_between_the_forwards_of_an_update_too(runs: Path) -> None:
    """Else each process would hold those of all weights until the last forward."""
    for rank in (0, 1):
        told = json.loads((runs / f"told{rank}.json").read_text())
        split = ["DTensor torch.float32", "none"]
        assert told == {"fsdp": split, "fsdp-bf16": split, "ddp": ["Tensor torch.float32", "none"]}
