"""Cosines between moments: against loops, on clips whose answer is known, and as pictures."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tubelet
from tubelet import verbs
from tubelet.analysis.similarity import (
    SimilarityConfig,
    matrix,
    over_distance,
    similarity,
    without_mean,
)
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.errors import TubeletError
from tubelet.probes.interval import bootstrap, student
from tubelet.shapes import ClipSpec, Patch
from tubelet.targets.features import Sees, Teacher
from tubelet.teachers import teacher_of

SPEC = ClipSpec(num_frames=8, sampling_rate=2, size=(32, 48))
HERE = SimilarityConfig(device="cpu")


def vit(frames: int = 8, *, tubelet_size: int = 2, in_chans: int = 3, patch: int = 8) -> ViT:
    torch.manual_seed(frames + patch)
    shape = ViTShape(width=32, depth=2, heads=2, patch=patch, tubelet_size=tubelet_size)
    return ViT(shape, trained=(frames, 32, 48), in_chans=in_chans, final_norm=False)


def clips(**options: int) -> Teacher:
    return teacher_of(vit(**options), name="runs/clips")


def images(**options: int) -> Teacher:
    return teacher_of(vit(1, tubelet_size=1, **options), name="runs/images")


def write(path: Path, pixels: np.ndarray) -> Path:
    """uint8 [T,H,W,3] -> a lossless file, 10 frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(10))
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "bgr0"
        for image in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def moving(seed: int, frames: int = 16) -> np.ndarray:
    """A texture that drifts over 32x48 pixels."""
    rng = np.random.default_rng(seed)
    tile = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([np.roll(tile, shift, axis=1) for shift in range(frames)])


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    return [write(folder / f"{i}.mkv", moving(i)) for i in range(5)]


# --- the numbers --------------------------------------------------------------------------------


def slow(features: Tensor) -> Tensor:
    """[t,h,w,D] -> [t,t], by its definition."""
    t, h, w, _ = features.shape
    found = torch.zeros(t, t)
    for a in range(t):
        for b in range(t):
            cosines = []
            for i in range(h):
                for j in range(w):
                    x, y = features[a, i, j].double(), features[b, i, j].double()
                    cosines.append(float(x @ y / (x.norm() * y.norm())))
            found[a, b] = sum(cosines) / len(cosines)
    return found


def test_the_matrix_is_the_mean_of_cosines_at_each_position() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 2, 3, 5, generator=generator) + 0.7
    fast = matrix(features)
    assert fast.shape == (3, 4, 4)
    for one, clip in zip(fast, features, strict=True):
        assert torch.allclose(one, slow(clip), atol=1e-6)


def test_the_mean_that_is_removed_is_that_of_all_tokens_of_the_clip() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 2, 2, 4, generator=generator) + 5
    for clip, less in zip(features, without_mean(features), strict=True):
        total = torch.zeros(4)
        for token in clip.reshape(-1, 4):
            total += token
        assert torch.allclose(less, clip - total / 12, atol=1e-5)
    assert float(over_distance(matrix(features)).min()) > 0.9  # the common part, not the frames
    assert float(over_distance(matrix(without_mean(features))).abs().max()) < 0.9


def test_distances_are_means_over_diagonals() -> None:
    one = torch.arange(16.0).view(1, 4, 4)
    assert over_distance(one).tolist() == [[(1 + 6 + 11) / 3, (2 + 7) / 2, 3]]


def test_features_are_the_last_block_s_without_its_norm(films: list[Path]) -> None:
    model = clips()
    found = similarity({"a": model}, films[:1], SPEC, HERE)
    features = model.module(found.frames[None].float() / 255, layers=[-1], norm=False).layers[0]
    features = features.detach().unflatten(1, (4, 4, 6))
    assert torch.allclose(found.models[0].kept[0], slow(features[0]), atol=1e-5)
    centred = features[0] - features[0].mean((0, 1, 2))
    assert torch.allclose(found.models[0].removed[0], slow(centred), atol=1e-5)


def test_layer_and_norm_choose_other_features(films: list[Path]) -> None:
    def kept(**changes: object) -> Tensor:
        return similarity({"a": clips()}, films[:1], SPEC, replace(HERE, **changes)).models[0].kept

    assert torch.equal(kept(layer=1), kept())
    assert not torch.allclose(kept(layer=0), kept(), atol=1e-3)
    assert not torch.allclose(kept(norm=True), kept(), atol=1e-4)
    with pytest.raises(TubeletError, match="blocks 0 to 1"):
        kept(layer=7)


def test_a_still_clip_is_alike_at_every_distance(tmp_path: Path) -> None:
    still = write(tmp_path / "still.mkv", moving(0, 1).repeat(16, 0))
    for every_frame, slots in ((False, 4), (True, 8)):
        config = replace(HERE, every_frame=every_frame)
        both = similarity({"images": images(), "clips": clips()}, [still], SPEC, config)
        found = both.models[0]
        assert found.grid.t == slots
        for result in (found.kept, found.removed):
            assert torch.allclose(result, torch.ones(1, slots, slots), atol=1e-5)


def test_images_are_the_first_frames_of_tubelets(films: list[Path]) -> None:
    """What differs only in other frames is the same to a model of images, not to one of clips."""
    models = {"clips": clips(), "images": images()}
    pixels = moving(0)
    pixels[2::4] = 255 - pixels[2::4]  # the second frames of the tubelets, at every second frame
    changed = write(films[0].parent / "changed.mkv", pixels)
    found = similarity(models, [films[0], changed], SPEC, HERE)
    assert [m.grid.t for m in found.models] == [4, 4]
    assert [m.frames_per_slot for m in found.models] == [2, 2]
    assert torch.allclose(found.models[1].kept[0], found.models[1].kept[1], atol=1e-6)
    assert not torch.allclose(found.models[0].kept[0], found.models[0].kept[1], atol=1e-3)
    alone = similarity({"images": images()}, films[:1], SPEC, HERE)
    assert alone.models[0].grid.t == 8


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_batch_changes_nothing(films: list[Path], batch_size: int) -> None:
    models = {"clips": clips(), "images": images()}
    whole = similarity(models, films, SPEC, replace(HERE, batch_size=5))
    cut = similarity(models, films, SPEC, replace(HERE, batch_size=batch_size))
    assert cut.paths == whole.paths
    for a, b in zip(cut.models, whole.models, strict=True):
        assert a.kept.shape == (5, 4, 4)
        assert torch.allclose(a.kept, b.kept, atol=1e-6)
        assert torch.allclose(a.removed, b.removed, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_distances_are_over_pairs_and_clips_with_intervals(films: list[Path], count: int) -> None:
    paths = [films[i % 5] for i in range(count)]
    found = similarity({"a": clips(), "b": images()}, paths, SPEC, HERE)
    rows = found.distances()
    assert len(rows) == 2 * 2 * 3
    row = next(r for r in rows if (r.model, r.mean_removed, r.slots) == ("b", True, 2))
    assert row.frames == 4
    values = np.array([(float(m[0, 2]) + float(m[1, 3])) / 2 for m in found.models[1].removed])
    assert row.value == pytest.approx(values.mean(), abs=1e-6)
    if count == 1:
        assert (row.low, row.high) == (None, None)
    else:
        wanted = student(values.tolist()) if count <= 10 else bootstrap(values, seed=0)
        assert (row.low, row.high) == pytest.approx(wanted, abs=1e-6)


def test_unequal_grids_and_channels_side_by_side(films: list[Path]) -> None:
    models = {
        "fine": clips(),
        "coarse": clips(patch=16),
        "long": clips(tubelet_size=4),
        "grey": images(in_chans=1),
        "other size": Teacher(
            vit(), width=32, patch=Patch(2, 8, 8), sees="clip", mean=(0,) * 3, std=(1,) * 3,
            read=lambda module, x, _: module(x, norm=False).x, size=(16, 16),
        ),
    }  # fmt: skip
    found = similarity(models, films[:2], SPEC, HERE)
    grids = [tuple(m.grid) for m in found.models]
    assert grids == [(4, 4, 6), (4, 2, 3), (2, 4, 6), (4, 4, 6), (4, 2, 2)]
    assert {row.frames for row in found.distances() if row.model == "long"} == {4}
    assert found.table().row_count == 3


# --- what cannot be read, or compared -----------------------------------------------------------


def test_videos_without_a_clip_are_left_out_and_named(films: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    short = write(tmp_path / "short.mkv", moving(1, 9))
    told: list[tuple[int, int]] = []
    found = similarity(
        {"a": clips()},
        [text, films[0], tmp_path / "gone.mp4", films[1], short],
        SPEC,
        replace(HERE, batch_size=2),
        progress=lambda done, of: told.append((done, of)),
    )
    assert found.paths == (str(films[0]), str(films[1]))
    assert [path for path, _ in found.left_out] == [
        str(text), str(tmp_path / "gone.mp4"), str(short),
    ]  # fmt: skip
    assert "it has 5 of the 8 frames" in found.left_out[2][1]
    assert told == [(i, 5) for i in range(1, 6)]
    plain = found.to_json()
    assert len(plain["left_out"]) == 3
    assert len(plain["videos"]) == 2
    with pytest.raises(TubeletError, match=r"None of the 2 videos .*text\.mp4"):
        similarity({"a": clips()}, [text, short], SPEC, HERE)
    with pytest.raises(TubeletError, match="too short"):
        similarity({"a": clips()}, [short], SPEC, HERE)
    with pytest.raises(TubeletError, match="No videos were given"):
        similarity({"a": clips()}, [], SPEC, HERE)


def test_models_that_cannot_be_compared_say_why(films: list[Path]) -> None:
    def refused(model: Teacher, spec: ClipSpec = SPEC, **changes: int) -> pytest.ExceptionInfo:
        with pytest.raises(TubeletError) as caught:
            similarity({"mine": model}, films[:1], spec, replace(HERE, **changes))
        return caught

    assert "mine sees a clip of 8 frames as one slot" in str(refused(clips(tubelet_size=8)).value)
    assert "at least 16 frames" in str(refused(clips(tubelet_size=8)).value)
    assert "one slot" in str(refused(images(), replace(SPEC, num_frames=1)).value)
    assert "mine cannot take this clip" in str(refused(clips(), replace(SPEC, size=(36, 48))).value)
    assert "batch_size" in str(refused(clips(), batch_size=0).value)
    broken = clips()
    broken.module.patch_embed.proj.bias.data.fill_(float("nan"))
    assert "not finite" in str(refused(broken).value)

    def says(sees: Sees, layout: Literal["BCTHW", "BCHW"], prefix: int) -> Teacher:
        return Teacher(
            vit(), width=32, patch=Patch(2, 8, 8), sees=sees, mean=(0,) * 3, std=(1,) * 3,
            read=lambda module, x, _: module(x, norm=False).x, layout=layout, prefix=prefix,
        )  # fmt: skip

    assert "state its patch, size and prefix" in str(refused(says("clip", "BCTHW", 1)).value)


# --- names, clips, files ------------------------------------------------------------------------


def test_names_are_the_ends_of_paths_that_differ() -> None:
    def named(*names: str) -> list[str]:
        teachers = [clips() for _ in names]
        for teacher, name in zip(teachers, names, strict=True):
            teacher.name = name
        return list(verbs.compared(teachers))

    assert named("runs/a", "runs/b") == ["a", "b"]
    assert named("x/last", "y/last", "z") == ["x/last", "y/last", "z"]
    with pytest.raises(TubeletError, match="x/a was given twice"):
        named("x/a", "y", "x/a")


def test_the_clip_is_that_of_the_first_model_of_clips() -> None:
    assert verbs.compared_clip({"i": images(), "c": clips()}).num_frames == 8
    assert verbs.compared_clip({"i": images(), "c": clips()}).size == (32, 48)
    alone = verbs.compared_clip({"i": images()})
    assert (alone.num_frames, alone.sampling_rate, alone.size) == (16, 4, (32, 48))
    fixed = Teacher(
        vit(), width=32, patch=Patch(2, 8, 8), sees="clip", mean=(0,) * 3, std=(1,) * 3,
        num_frames=12, size=(64, 64),
    )  # fmt: skip
    assert verbs.compared_clip({"f": fixed}) == ClipSpec(num_frames=12, size=(64, 64))


def test_one_video_gives_maps_and_all_pairs(films: list[Path], tmp_path: Path) -> None:
    found = tubelet.similarity(
        {"clips": clips(), "images": images()},
        films[0],
        out=tmp_path / "new",
        clip=SPEC,
        config=HERE,
    )
    plain = json.loads((tmp_path / "new/0.json").read_text())
    assert np.allclose(plain["models"][1]["matrix"]["mean_removed"], found.models[1].removed[0])
    with (tmp_path / "new/0.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * 6
    last = lines[-1]
    assert (last["model"], last["mean_removed"], last["slot_a"], last["slot_b"]) == (
        "images", "True", "2", "3",
    )  # fmt: skip
    assert float(last["similarity"]) == pytest.approx(float(found.models[1].removed[0, 2, 3]))
    assert float(last["seconds_b"]) == pytest.approx(float(found.seconds[0, 6]), abs=1e-3)
    shown = np.asarray(Image.open(tmp_path / "new/0.png").convert("RGB"))
    yellow = (np.abs(shown.astype(int) - (253, 231, 36)).max(-1) < 3).sum()
    # A cosine of 1 is drawn in the last colour: at least 4 cells on each of 4 diagonals.
    assert yellow > 16 * 60 * 60
    again = tubelet.similarity(clips(), films[0], out=tmp_path, clip=SPEC, config=HERE)
    assert torch.allclose(again.models[0].kept, found.models[0].kept, atol=1e-6)
    assert again.models[0].name == "clips"


def test_many_videos_give_lines_over_distance(films: list[Path], tmp_path: Path) -> None:
    found = tubelet.similarity(
        [clips(), images()], films[0].parent, out=tmp_path, clip=SPEC, config=HERE
    )
    assert len(found.paths) >= 5
    with (tmp_path / "similarity.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["slots"] for line in lines] == ["1", "2", "3"] * 4
    first = lines[0]
    assert first["model"] == "clips"
    assert float(first["low"]) < float(first["value"]) < float(first["high"])
    plain = json.loads((tmp_path / "similarity.json").read_text())
    assert plain["distances"][0]["value"] == pytest.approx(float(first["value"]))
    assert Image.open(tmp_path / "similarity.png").size[0] > 1000
    (tmp_path / "file").write_text("")
    with pytest.raises(TubeletError, match="cannot be written"):
        found.write(tmp_path / "file")
