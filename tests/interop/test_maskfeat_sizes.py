"""MaskFeat's files loaded for clips and images of another size than they were trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import features, theirs
from maskfeat_files import FRAME, IMAGE, clips, finetuned, pretrained, save
from torch import Tensor

from tubelet import stored
from tubelet.backbones.mvit import MViTShape
from tubelet.errors import TubeletError
from tubelet.interop.found import Told
from tubelet.shapes import ClipSpec

WIDE = MViTShape((1, 1, 1, 2), (8, 16, 16, 16), (1, 2, 2, 2), pool_last=False)
LARGE = ClipSpec(num_frames=16, size=(224, 224))


def slowly_resized(table: Tensor, rows: int) -> Tensor:
    """[n,d] -> [rows,d]: row i is read at (i + 1/2) n/rows - 1/2, between its two neighbours."""
    found, n = torch.empty(rows, table.shape[1], dtype=torch.float64), len(table)
    for i in range(rows):
        at = min(max((i + 0.5) * n / rows - 0.5, 0.0), n - 1.0)
        low, share = int(at), at - int(at)
        found[i] = (1 - share) * table[low] + share * table[min(low + 1, n - 1)]
    return found


@pytest.mark.parametrize(("frames", "size"), [(32, (224, 224)), (16, (320, 320)), (16, (160, 288))])
@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_clips_of_another_size(
    tmp_path: Path, kind: str, frames: int, size: tuple[int, int]
) -> None:
    tuned = kind == "finetuned"
    model: Any = finetuned(WIDE.finetuned(), LARGE) if tuned else pretrained(WIDE, LARGE)
    state = theirs(model, "maskfeat")
    path = save(tmp_path / "x.pyth", state)
    told: dict[str, Any] = {"pooled": (1, 2, 3) if tuned else (1, 2), "pool_kv": 8}
    loaded = stored.load(path, num_frames=frames, img_size=size, **told)
    assert loaded.backbone.trained == (frames, *size)
    # Of 5 blocks one table for time, or two for places; the first has 2 * 56 - 1 rows.
    tables = {name: value for name, value in state.items() if "rel_pos" in name}
    assert {one.name for one in loaded.report.resized} == {
        f"backbone.{name}"
        for name, value in tables.items()
        if len(value) != len(loaded.state_dict()[f"backbone.{name}"])
    }
    assert len(loaded.report.resized) == (5 if frames == 32 else 10)
    axis, rows = ("t", 31) if frames == 32 else ("h", 2 * (size[0] // 4) - 1)
    name = f"blocks.0.attn.rel_pos_{axis}"
    resized = loaded.state_dict()[f"backbone.{name}"]
    assert len(resized) == rows
    assert (
        resized - slowly_resized(state[name].double(), rows)
    ).abs().max() < 1e-5  # places up to 111 in float32
    said = next(one for one in loaded.report.resized if one.name == f"backbone.{name}")
    assert (said.before, said.after) == (f"[{len(state[name])}, 8]", f"[{rows}, 8]")
    with torch.no_grad():
        seen = features(loaded, clips(frames, *size))
    assert seen.shape[1] == loaded.backbone.grid.size
    assert seen.isfinite().all()


def test_the_original_size_is_bit_equal_and_positions_cannot_be_rebuilt(tmp_path: Path) -> None:
    model = finetuned()
    path = save(tmp_path / "x.pyth", theirs(model, "maskfeat"))
    told: dict[str, Any] = {"pooled": (1, 2, 3)}
    same = stored.load(path, num_frames=4, img_size=32, positions="interpolate", **told)
    assert not same.report.resized
    with torch.no_grad():
        assert torch.equal(same(clips()), model(clips()))
    with pytest.raises(TubeletError, match="learned positions, which cannot be rebuilt"):
        stored.load(path, positions="rebuild", **told)


def test_fine_tuning_resizes_the_tables_of_the_last_blocks(tmp_path: Path) -> None:
    """The specification, 8.3: 27 rows of S's block 15 become 13."""
    shape = replace(WIDE, depths=(1, 1, 1, 2))
    path = save(tmp_path / "x.pyth", theirs(pretrained(shape, LARGE), "maskfeat"))
    told = Told(pooled=(1, 2), pool_kv=8)
    before = stored.load(path, told=told).backbone.state_dict()
    assert len(before["blocks.4.attn.rel_pos_h"]) == 27
    encoder, card = stored.encoder_of(path, shape=shape.finetuned(), told=told)
    after = encoder.state_dict()
    assert card.clip.size == (224, 224)
    changed_ = {n for n, v in after.items() if n in before and v.shape != before[n].shape}
    assert changed_ == {"blocks.4.attn.rel_pos_h", "blocks.4.attn.rel_pos_w"}
    expected = slowly_resized(before["blocks.4.attn.rel_pos_h"].double(), 13)
    assert (after["blocks.4.attn.rel_pos_h"] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(320, 320), (160, 288)])
def test_images_of_another_size(tmp_path: Path, size: tuple[int, int]) -> None:
    shape, frame = replace(IMAGE, patch=16), replace(FRAME, size=(224, 224))
    path = save(tmp_path / "x.pyth", theirs(finetuned(shape, frame), "maskfeat"))
    loaded = stored.load(path, img_size=size, heads=3)
    ((name, before, after, how),) = loaded.report.resized
    grid = (1, size[0] // 16, size[1] // 16)
    assert (name, before, how) == ("backbone.positions", "1x14x14", "interpolated")
    assert after == "x".join(map(str, grid))
    assert features(loaded, clips(1, *size)).shape[1] == grid[1] * grid[2]
    same = stored.load(path, img_size=224, heads=3)
    assert not same.report.resized
