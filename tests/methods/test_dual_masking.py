"""A decoder mask beside the encoder's on MVD's two branches and on MaskFeat's histograms: the parts
are put together, and the loop trains them as it trains everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import distil
import pytest
import torch

from tubelet import masks
from tubelet.backbones.vit import ViTShape
from tubelet.data.sampling import rng_for
from tubelet.decoders import DecoderShape, Joint
from tubelet.errors import TubeletError
from tubelet.methods.maskfeat import MaskFeat
from tubelet.methods.mvd import Distilled
from tubelet.methods.run import Pretraining
from tubelet.methods.videomae_v2 import VideoMAEV2
from tubelet.model import MaskedModel
from tubelet.shapes import Batch, ClipSpec, Grid
from tubelet.targets.hog import Hog
from tubelet.tasks.pretrain import Pretrain
from tubelet.teachers import connect
from tubelet.train.config import TrainConfig, derive
from tubelet.train.loop import fit

CLIPS = 4
SPEC = ClipSpec(num_frames=8, size=(32, 32))
NET = ViTShape(32, 2, 2, patch=8)  # 4x4x4 tokens
DUAL: dict[str, Any] = {"decoder_mask_ratio": 0.5}
TWO_TEACHERS = replace(  # 2x4x4 tokens, two masks a clip
    distil.RUN, video=Distilled(width=48), video_teacher="given", drop_path=0.0, **DUAL
)
DROPPED = MaskFeat(
    clip=SPEC,
    encoder=NET,
    decoder=DecoderShape(16, 2, 2),
    mask_type="tube",
    mask_unit=(1, 1, 1),
    mask_ratio=0.5,
    **DUAL,
)
REPLACED = MaskFeat(clip=SPEC, encoder=replace(NET, hide="replace"), mask_ratio=0.5, **DUAL)
KINDS = ("running_cell", "frame", "random")
RUNS: dict[str, Pretraining] = {
    **{f"MVD, {kind}": replace(TWO_TEACHERS, decoder_mask_type=kind) for kind in KINDS},
    **{f"HOG, dropped, {kind}": replace(DROPPED, decoder_mask_type=kind) for kind in KINDS},
    **{f"HOG, replaced, {kind}": replace(REPLACED, decoder_mask_type=kind) for kind in KINDS},
    "HOG, dropped, no visible": replace(DROPPED, decode_visible=False),
    "HOG, replaced, no visible": replace(REPLACED, decode_visible=False),
}


def model_of(run: Pretraining) -> MaskedModel:
    torch.manual_seed(0)
    model = run.model()
    teachers = {"image": distil.image_teacher, "video": distil.video_teacher}
    connect(model, {name: teachers[name]() for name in run.teachers()})
    return model


def batch_of(run: Pretraining) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """-> a batch as the loader makes it; hidden and asked, bool [B,k,N]."""
    hidden, asked = [], []
    for i in range(CLIPS):
        rng = rng_for(0, 0, i)
        hidden.append(run.draw_hidden(rng))
        asked.append(run.draw_asked(rng, hidden[-1]))
    size = (CLIPS, 3, run.clip.num_frames, *run.clip.size)
    clips = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.manual_seed(3))
    both = torch.stack(hidden), torch.stack(asked)
    index = torch.arange(CLIPS)
    packed = run.pack(*both)
    names = [f"{i}.mp4" for i in range(CLIPS)]
    return Batch({"clip": clips}, names, index=index, seeds=index, masks=packed), *both


@pytest.mark.parametrize("name", RUNS)
def test_only_what_is_asked_and_hidden_carries_loss(name: str) -> None:
    """The loss is that of a loop over single tokens, and half of them are decoded."""
    run = RUNS[name]
    assert run.narrows
    batch, hidden, asked = batch_of(run)
    assert batch.masks is not None
    model = model_of(run).eval()
    longest: list[int] = []
    for branch in model.branches.values():
        if isinstance(branch.decoder, Joint):
            branch.decoder.blocks[0].register_forward_pre_hook(
                lambda _, args: longest.append(args[0].shape[1])
            )
    clip = batch.clip.float() / 255
    terms = Pretrain(model)(batch)
    predicted = {key: x.detach() for key, x in model.predict(clip, batch.masks).items()}
    counted = (hidden & asked).flatten(0, 1)
    assert terms["loss"][1] == counted.sum() == Pretrain(model).weight(batch)
    k, total = hidden.shape[1], 0.0
    for key, branch in model.branches.items():
        targets: Any = branch.target(clip)  # of all tokens
        expected = 0.0
        for row, at in enumerate(batch.masks.asked.flatten(0, 1).tolist()):
            for m, n in enumerate(at):
                if counted[row, n] and n not in at[:m]:  # not one that fills up the row
                    token = predicted[key][row, m], targets[row // k, n]
                    expected += float(branch.loss(*(x[None, None] for x in token)))
        assert float(terms[key][0].detach()) == pytest.approx(expected, rel=1e-5)
        total += branch.weight * expected
    assert float(terms["loss"][0].detach()) == pytest.approx(total, rel=1e-5)
    if run.decode_visible:
        n = run.grid.size
        assert asked.sum(-1).eq(n // 2).all() and batch.masks.asked.shape[-1] == n // 2
        visible = int((~hidden[0, 0]).sum())
        assert set(longest) <= {visible + n // 2} and bool(longest) is (run.encoder.hide == "drop")


@pytest.mark.parametrize("name", RUNS)
def test_it_is_trained_by_the_loop(name: str, tmp_path: Path) -> None:
    run = RUNS[name]
    batch, *_ = batch_of(run)
    config = TrainConfig(
        steps=16,
        warmup_epochs=0,
        batch_size=CLIPS,
        micro_batch=CLIPS,
        lr=0.3,
        log_every_steps=1,
        progress=False,
        device="cpu",
    )
    derived = derive(config, CLIPS)

    def batches(start: int) -> Iterator[Batch]:
        for _ in range(start, derived.total_steps):
            yield batch

    model = model_of(run)
    heads = {key: branch.decoder.head.weight.clone() for key, branch in model.branches.items()}
    fit(Pretrain(model), batches, config, derived, tmp_path, {})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for key, branch in model.branches.items():
        assert rows[-1][key] < 0.9 * rows[0][key]
        assert not torch.equal(branch.decoder.head.weight, heads[key])
    assert rows[-1]["skipped"] == 0 and rows[-1]["loss"] < 0.9 * rows[0]["loss"]


def test_the_runs_are_what_they_are_called() -> None:
    branches = model_of(TWO_TEACHERS).branches
    assert list(branches) == ["image", "video"] and TWO_TEACHERS.masks_per_clip == 2
    for run, hide in ((DROPPED, "drop"), (REPLACED, "replace")):
        [branch] = run.model().branches.values()
        assert isinstance(branch.target, Hog) and run.encoder.hide == hide


@pytest.mark.parametrize("ratio", [0.9, 0.2, 0.1, 0.6])
def test_running_cells_that_are_no_quarters_are_errors(ratio: float) -> None:
    """Published: 0.9 counts as 0.75 in silence."""
    with pytest.raises(TubeletError, match=r"0\.25, 0\.5 or 0\.75"):
        masks.running_cell(Grid(4, 4, 4), rng_for(0, 0, 0), mask_ratio=ratio)
    with pytest.raises(TubeletError, match=r"--decoder-mask-ratio.*0\.25, 0\.5 or 0\.75"):
        replace(DROPPED, decoder_mask_ratio=ratio).narrows  # noqa: B018


@pytest.mark.parametrize("size", [(24, 32), (32, 24), (24, 24)])
def test_running_cells_on_odd_grids_are_errors(size: tuple[int, int]) -> None:
    """Published: a mask of the wrong length in silence."""
    run: Callable[..., Pretraining] = VideoMAEV2
    odd = run(clip=replace(SPEC, size=size), encoder=NET, decoder=DecoderShape(16, 2, 2))
    with pytest.raises(TubeletError, match="grid with even sides"):
        odd.narrows  # noqa: B018
