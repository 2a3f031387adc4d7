"""Teachers' features on disk: training from them is training with the teachers on fixed crops."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import write_video

import tubelet
from tubelet import feature_cache, masks, verbs
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.data.cache import FILE, Layout, layout_of, open_cache
from tubelet.data.clips import ClipDataset, Key, collate
from tubelet.data.lists import read_list
from tubelet.data.transforms import Augment
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.methods.mae import image
from tubelet.methods.mvd import MVD, Distilled, Further
from tubelet.methods.run import changed
from tubelet.shapes import ClipSpec
from tubelet.targets.features import Teacher
from tubelet.tasks.pretrain import Pretrain
from tubelet.teachers import teacher_of
from tubelet.train.config import TrainConfig

NET = ViTShape(16, 2, 2, patch=8, position="sincos_3d")
RUN = MVD(
    clip=ClipSpec(num_frames=4, sampling_rate=2, size=(32, 32)),
    augment=Augment(flip=0.5),
    encoder=NET,
    decoder=DecoderShape(16, 1, 2),
    mask_ratio=0.75,
    train=TrainConfig(
        steps=6,
        batch_size=4,
        micro_batch=2,
        lr=0.05,
        workers=0,
        device="cpu",
        progress=False,
        log_every_steps=1,
    ),
)
TOKENS = 2 * 4 * 4


def image_teacher(width: int = 24, patch: int = 8, seed: int = 5) -> Teacher:
    torch.manual_seed(seed)
    shape = replace(image(NET), width=width, patch=patch)
    return teacher_of(ViT(shape, trained=(1, 32, 32)), name=f"image {seed}")


def video_teacher(seed: int = 6) -> Teacher:
    torch.manual_seed(seed)
    shape = replace(NET, width=32, position="sinusoid_1d")
    return teacher_of(ViT(shape, trained=(4, 32, 32)), name=f"video {seed}")


def both() -> dict[str, Teacher]:
    return {"image": image_teacher(), "video": video_teacher()}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(8):
        write_video(folder / f"{seed}.mp4", seed=seed)
    return folder


@pytest.fixture(scope="module")
def cached(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both teachers, two crops, in shards of 5 clips: 5, 5, 5, 1."""
    out = tmp_path_factory.mktemp("cache") / "cache"
    return tubelet.cache(RUN, data=videos, out=out, crops=2, shard_clips=5, teachers=both())


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


# --- the same training -----------------------------------------------------------------------


def test_training_from_the_cache_is_training_with_the_teachers(videos, cached, tmp_path) -> None:
    # Two updates an epoch, so these are the first two epochs: the crops are the live run's.
    live = tubelet.pretrain(RUN, data=videos, out=tmp_path / "live", steps=4, teachers=both())
    read = tubelet.pretrain(RUN, data=videos, out=tmp_path / "read", steps=4, feature_cache=cached)
    rounding = np.abs(np.array(losses(live)) / losses(read) - 1).max()
    assert 0 < rounding < 1e-3
    for name, one in tubelet.load(live).state_dict().items():
        other = tubelet.load(read).state_dict()[name]
        assert torch.allclose(one, other, atol=2e-3), name


def test_later_epochs_use_the_crops_again_with_other_masks(videos, cached) -> None:
    run = changed(RUN, data=str(videos)).fitted({"image": 24, "video": 32})
    listed = read_list(videos, kind="unlabelled")
    draw = functools.partial(
        ClipDataset, listed, run.clip, run.augment, seed=0, mask=run.draw_hidden
    )
    read, live = draw(features=open_cache(cached)), draw()
    for epoch, index in ((2, 1), (3, 1), (5, 7)):
        (one,), (fixed,) = read[Key(epoch, index)], live[Key(epoch % 2, index)]
        assert torch.equal(one.views["clip"], fixed.views["clip"])
        assert not torch.equal(one.hidden, fixed.hidden)
        assert one.seed == live[Key(epoch, index)][0].seed
        for name, teacher in both().items():
            with torch.no_grad():
                expected = teacher(one.views["clip"][None].float() / 255, 2)[0]
            features = one.views[f"features_{name}"]
            assert features.dtype == torch.float16 and features.shape == (TOKENS, teacher.width)
            assert torch.allclose(features.float(), expected, rtol=1e-3, atol=1e-4)


def test_features_flow_through_the_batch_and_the_teacher_is_not_called(videos, cached) -> None:
    run = changed(RUN, data=str(videos), feature_cache=str(cached))
    listed = read_list(videos, kind="unlabelled")
    features = feature_cache.opened(run)
    run = run.fitted(feature_cache.widths(features))
    model = run.model()
    assert feature_cache.attach(features, run, listed, model, {}) == {}
    dataset = ClipDataset(
        listed, run.clip, run.augment, seed=0, mask=run.draw_hidden, features=features
    )
    batch = collate([dataset[Key(0, i)] for i in range(3)], pack=masks.pack)
    assert batch.views["features_image"].shape == (3, TOKENS, 24)
    before, _ = Pretrain(model)(batch)["image"]
    batch.views["features_image"] += 1.0
    assert Pretrain(model)(batch)["image"][0] != before
    del batch.views["features_image"]
    with pytest.raises(TubeletError, match="This model has no teacher"):
        Pretrain(model)(batch)


@pytest.mark.parametrize("cache_workers", [0, 2])
def test_workers_change_nothing(videos, cached, tmp_path, cache_workers) -> None:
    out = tmp_path / "cache"
    verbs.cache(
        RUN,
        data=videos,
        out=out,
        crops=2,
        shard_clips=5,
        teachers=both(),
        workers=cache_workers,
    )
    for path in sorted(cached.iterdir()):
        assert (out / path.name).read_bytes() == path.read_bytes()
    if cache_workers:
        runs = [
            tubelet.pretrain(
                RUN, data=videos, out=tmp_path / f"{n}", feature_cache=out, workers=n, steps=3
            )
            for n in (0, 2)
        ]
        assert losses(runs[0]) == losses(runs[1])


def test_one_branch_from_the_cache_and_one_from_a_live_teacher(videos, tmp_path) -> None:
    alone = changed(RUN, video=Distilled(weight=0.0))
    teachers = {"image": image_teacher()}
    out = tubelet.cache(alone, data=videos, out=tmp_path / "cache", crops=2, teachers=teachers)
    mixed = tubelet.pretrain(
        RUN,
        data=videos,
        out=tmp_path / "mixed",
        feature_cache=out,
        teachers={"video": video_teacher()},
        steps=4,
    )
    live = tubelet.pretrain(RUN, data=videos, out=tmp_path / "live", teachers=both(), steps=4)
    assert losses(mixed) == pytest.approx(losses(live), rel=1e-3)
    sources = json.loads((mixed / "config.json").read_text())["header"]["teachers"]
    assert [sources[name]["name"] for name in ("image", "video")] == ["image 5", "video 6"]


def test_features_are_kept_at_the_students_tokens_and_normalised_when_read(
    videos, tmp_path
) -> None:
    run = changed(
        RUN,
        image=Distilled(norm_feature=True, size=(48, 48), layer=0),
        video=Distilled(weight=0.0),
    )
    teachers = {"image": image_teacher(patch=16)}  # 3x3 tokens an image, the student's are 4x4
    out = tubelet.cache(run, data=videos, out=tmp_path / "cache", crops=2, teachers=teachers)
    stored = np.load(out / "000000.features_image.npy")
    assert stored.shape == (16, TOKENS, 24)
    assert np.abs(stored.astype(np.float32).mean(-1)).max() > 1e-2  # raw
    read = tubelet.pretrain(run, data=videos, out=tmp_path / "read", feature_cache=out, steps=4)
    live = tubelet.pretrain(run, data=videos, out=tmp_path / "live", teachers=teachers, steps=4)
    assert losses(read) == pytest.approx(losses(live), rel=1e-3)


def test_k_masks_a_clip_and_a_pixel_branch_beside_the_cache(videos, cached, tmp_path) -> None:
    out = tubelet.pretrain(
        RUN,
        data=videos,
        out=tmp_path / "run",
        feature_cache=cached,
        masks_per_clip=3,
        pixel_weight=1.0,
        decoder_mask_ratio=0.5,
        steps=2,
    )
    assert {"image", "video", "pixels"} <= set(json.loads(_last(out / "metrics.jsonl")))


def _last(path: Path) -> str:
    return path.read_text().splitlines()[-1]


# --- the files -------------------------------------------------------------------------------


def test_cache_json_and_the_run_say_what_was_used(videos, cached, tmp_path) -> None:
    header = json.loads((cached / FILE).read_text())
    listed = read_list(videos, kind="unlabelled")
    assert header["list"] == {"videos": 8, "fingerprint": listed.fingerprint()[:16]}
    assert (header["seed"], header["crops"], header["dtype"]) == (0, 2, "float16")
    assert header["grid"] == [2, 4, 4] and header["clip"]["num_frames"] == 4
    assert header["augment"]["flip"] == 0.5
    teachers = {name: (one["name"], one["digest"]) for name, one in header["teachers"].items()}
    assert teachers == {name: (one.name, one.digest) for name, one in both().items()}
    assert header["teachers"]["image"]["width"] == 24
    assert header["teachers"]["image"]["layer"] == -1
    out = tubelet.pretrain(RUN, data=videos, out=tmp_path / "a", feature_cache=cached, steps=2)
    said = json.loads((out / "config.json").read_text())["header"]
    assert said["teachers"]["video"] == {"name": "video 6", "digest": both()["video"].digest}
    assert said["run"]["image"]["width"] == 24


def test_what_only_evaluation_reads_is_not_asked_of_a_cache(videos, cached, tmp_path) -> None:
    """A cache made before clips had these fields goes on serving."""
    names = set(json.loads((cached / FILE).read_text())["clip"])
    assert names == {"num_frames", "sampling", "sampling_rate", "seconds", "size", "in_chans"}
    train(videos, cached, tmp_path, crop_pct=0.8, interpolation="bicubic", target_fps=25.0)


def test_the_predicted_size_is_the_size(cached, caplog) -> None:
    layout = layout_of(json.loads((cached / FILE).read_text()))
    assert layout.shards == 4 and [len(layout.entries(s)) for s in range(4)] == [5, 5, 5, 1]
    files = list(cached.glob("*.npy"))
    assert len(files) == 4 * 3
    size = sum(path.stat().st_size for path in files)
    assert layout.size_bytes(range(4)) == size
    assert size == 12 * 128 + 16 * (TOKENS * (24 + 32) * 2 + 8)
    assert np.load(cached / "000001.index.npy").tolist() == [5, 6, 7, 0, 1]


def test_what_the_documentation_says_of_size() -> None:
    vit_b = Layout(videos=240_000, crops=1, tokens=1568, widths={"image": 768, "video": 768},
                   shard_clips=64)  # fmt: skip
    assert vit_b.size_bytes([0]) / 64 == pytest.approx(1568 * 2 * 768 * 2, rel=1e-4)
    assert pytest.approx(1.156e12, rel=1e-3) == 240_000 * 1568 * 2 * 768 * 2
    assert [feature_cache._size(n) for n in (12, 4_816_896, 1_156_055_040_000)] == [
        "12 B",
        "4.82 MB",
        "1.16 TB",
    ]


class Stopped(Exception):
    pass


def test_a_stopped_command_goes_on_and_computes_nothing_twice(
    videos, cached, tmp_path, caplog, monkeypatch
) -> None:
    out = tmp_path / "cache"
    make = functools.partial(
        verbs.cache, RUN, data=videos, out=out, crops=2, shard_clips=5, micro_batch=5
    )

    def stop(done: int, of: int) -> None:
        assert of == 16
        if done == 15:  # the third shard has its clips, and is not whole yet
            raise Stopped

    with pytest.raises(Stopped):
        make(teachers=both(), progress=stop)
    assert len(list(out.glob("*.npy"))) == 2 * 3 and not list(out.glob(".*"))
    with pytest.raises(TubeletError, match=r"not complete: 2 of 4 shards are missing.*goes on"):
        tubelet.pretrain(RUN, data=videos, out=tmp_path / "run", feature_cache=out)
    (out / "000000.features_video.npy").unlink()  # half a shard is no shard
    untouched = (out / "000001.index.npy").stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO, "tubelet"):
        make(teachers=both(), progress=lambda *at: calls.append(at))
    assert "1 of 4 shards are there already: going on with the other 3" in caplog.text
    assert "2 crops of 8 videos, 32 tokens x 24 (image) + 32 (video) as float16: 59" in caplog.text
    assert calls == [(5, 11), (10, 11), (11, 11)]
    assert (out / "000001.index.npy").stat().st_mtime_ns == untouched
    for path in cached.iterdir():
        if path.name != FILE:
            assert (out / path.name).read_bytes() == path.read_bytes()
    calls.clear()
    make(teachers=both(), progress=lambda *at: calls.append(at))
    assert calls == []


def test_several_processes_share_the_shards(videos, cached, tmp_path, monkeypatch) -> None:
    for rank in (1, 0):
        place = feature_cache.parallel.Place(torch.device("cpu"), rank, 2)
        monkeypatch.setattr(feature_cache.parallel, "place", lambda device, place=place: place)
        verbs.cache(RUN, data=videos, out=tmp_path / "c", crops=2, shard_clips=5, teachers=both())
        there = sorted(path.name[:6] for path in (tmp_path / "c").glob("*.index.npy"))
        assert there == (["000001", "000003"] if rank else [f"{s:06d}" for s in range(4)])
        assert (tmp_path / "c" / FILE).exists() == (rank == 0)


# --- errors ----------------------------------------------------------------------------------


def test_no_room_on_the_disk(videos, tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 10_000))
    with pytest.raises(TubeletError, match=r"needs 5\d\.\d\d kB on the disk.*10\.00 kB are free"):
        verbs.cache(RUN, data=videos, out=tmp_path / "c", crops=2, teachers=both())
    assert not (tmp_path / "c").exists()


def test_a_disk_that_fills_up(videos, tmp_path, monkeypatch) -> None:
    def full(handle: int) -> None:
        if (tmp_path / "c" / FILE).exists() or not room:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    room = True
    with pytest.raises(TubeletError, match=r"Shard 0 .* No space left .* same command again"):
        verbs.cache(RUN, data=videos, out=tmp_path / "c", teachers=both())
    assert [path.name for path in (tmp_path / "c").iterdir()] == [FILE]
    room = False
    with pytest.raises(TubeletError, match=r"cannot be begun in .*: No space left on device"):
        verbs.cache(RUN, data=videos, out=tmp_path / "other", teachers=both())
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("value", [70000.0, float("inf"), float("nan")])
def test_features_beyond_float16_are_an_error(videos, tmp_path, value) -> None:
    teachers = both()
    with torch.no_grad():
        teachers["video"].module.blocks[-1].mlp.fc2.bias[3] = value
    with pytest.raises(TubeletError, match=r"video teacher's features of .*\.mp4 reach.*65504"):
        verbs.cache(RUN, data=videos, out=tmp_path / "c", teachers=teachers)
    assert not list((tmp_path / "c").glob("*.npy"))


def train(videos: Path, cached: Path, tmp_path: Path, run: MVD = RUN, **changes: object) -> Path:
    values: dict[str, object] = {"data": videos, "feature_cache": cached, "steps": 2}
    return tubelet.pretrain(run, out=tmp_path / "run", **(values | changes))


WRONG = {
    "seed": ({"seed": 3}, "seed: 0 in the cache, 3 here"),
    "frames": ({"sampling_rate": 3}, "clip.sampling_rate: 2 in the cache, 3 here"),
    "augment": ({"augment": Augment()}, "augment.flip: 0.5 in the cache, 0.0 here"),
    "grid": (
        {"encoder": replace(NET, patch=16)},
        "grid: [2, 4, 4] in the cache, [2, 2, 2] here",
    ),
    "width": (
        {"image": Distilled(width=20)},
        "teachers.image.width: 24 in the cache, 20 here",
    ),
    "layer": ({"video": Distilled(layer=0)}, "teachers.video.layer: -1 in the cache, 0 here"),
    "size": (
        {"image": Distilled(size=(16, 16))},
        "teachers.image.size: None in the cache, [16, 16] here",
    ),
    "positions": (
        {"image": Distilled(positions="rebuild")},
        "teachers.image.positions: None in the cache, rebuild here",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_cache_for_another_run_names_both_sides(videos, cached, tmp_path, what) -> None:
    changes, said = WRONG[what]
    with pytest.raises(TubeletError) as caught:
        train(videos, cached, tmp_path, **changes)
    assert said in str(caught.value) and "is not for this run" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_cache_for_another_list_names_both_sides(videos, cached, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(videos, other)
    train(other, cached, tmp_path, steps=1)  # the same list elsewhere is the same list
    shutil.rmtree(tmp_path / "run")
    (other / "7.mp4").unlink()
    with pytest.raises(TubeletError) as caught:
        train(other, cached, tmp_path)
    message = str(caught.value)
    assert "list.videos: 8 in the cache, 7 here" in message and "list.fingerprint" in message
    assert f"made from {videos}" in message and f"this run on {other}" in message


def test_a_cache_of_another_teacher_names_both(videos, cached, tmp_path) -> None:
    given = {"image": image_teacher(seed=9)}
    with pytest.raises(TubeletError, match=r"image teacher: image 5 \(weights .* image 9 \(weig"):
        train(videos, cached, tmp_path, teachers=given)
    out = train(videos, cached, tmp_path, teachers={"image": image_teacher()})
    assert losses(out)


def test_a_cache_without_the_runs_teachers(videos, cached, tmp_path) -> None:
    further = (Further(name="third", teacher=""),)
    run = replace(RUN, image=Distilled(weight=0), video=Distilled(weight=0), further=further)
    with pytest.raises(TubeletError, match=r"holds features of image, video.*learns from third"):
        train(videos, cached, tmp_path, run)
    run = replace(RUN, further=further)
    with pytest.raises(TubeletError, match="The third teacher is missing"):
        train(videos, cached, tmp_path, run)


def test_repeated_augmentation_has_no_cache(videos, cached, tmp_path) -> None:
    with pytest.raises(TubeletError, match="num_sample is 2, and a feature cache has one crop"):
        train(videos, cached, tmp_path, num_sample=2)
    with pytest.raises(TubeletError, match="num_sample is 2"):
        verbs.cache(RUN, data=videos, out=tmp_path / "c", num_sample=2, teachers=both())


def test_a_folder_that_holds_another_cache_is_left_alone(videos, cached) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in cached.iterdir()}
    make = functools.partial(verbs.cache, RUN, data=videos, out=cached, shard_clips=5)
    with pytest.raises(TubeletError, match=r"something else: crops: 2 in the cache, 1 here"):
        make(teachers=both())
    with pytest.raises(TubeletError, match=r"teachers\.video\.digest: "):
        make(crops=2, teachers={"image": image_teacher(), "video": video_teacher(7)})
    with pytest.raises(TubeletError, match=r"branches: \['image', 'video'\] in the cache"):
        make(crops=2, video=Distilled(weight=0.0), teachers={"image": image_teacher()})
    assert before == {path.name: path.stat().st_mtime_ns for path in cached.iterdir()}


def test_what_cannot_be_cached(videos, tmp_path) -> None:
    make = functools.partial(verbs.cache, data=videos, out=tmp_path / "c")
    with pytest.raises(TubeletError, match="learns from no frozen network"):
        make("videomae:base_k400")
    with pytest.raises(TubeletError, match="0 crops in shards of 64 clips"):
        make(RUN, crops=0, teachers=both())
    with pytest.raises(TubeletError, match="The image teacher is missing"):
        make(RUN)
    (tmp_path / "c").write_text("")
    with pytest.raises(TubeletError, match="is a file"):
        make(RUN, teachers=both())


def test_a_folder_that_is_no_cache_or_a_damaged_one(videos, cached, tmp_path) -> None:
    with pytest.raises(TubeletError, match=r"is no feature cache: it has no cache\.json"):
        train(videos, tmp_path / "nowhere", tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(cached, copy)
    path = copy / "000000.features_image.npy"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TubeletError, match=r"features_image\.npy cannot be read.*anew"):
        train(videos, copy, tmp_path)
    np.save(path, np.zeros((5, TOKENS, 23), np.float16))
    with pytest.raises(TubeletError, match=r"holds float16 \[5, 32, 23\], not \[5, 32, 24\]"):
        train(videos, copy, tmp_path, resume=True)
    (copy / FILE).write_text('{"format": 1}')
    with pytest.raises(TubeletError, match=r"cache\.json describes no feature cache"):
        train(videos, copy, tmp_path, resume=True)
    header = json.loads((cached / FILE).read_text()) | {"format": 2}
    (copy / FILE).write_text(json.dumps(header))
    with pytest.raises(TubeletError, match=r"of format 2.*Upgrade"):
        train(videos, copy, tmp_path, resume=True)


def test_an_unreadable_video_is_replaced_by_the_same_one_in_both(videos, tmp_path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    whole = (folder / "3.mp4").read_bytes()
    (folder / "3.mp4").write_text("no video")
    out = verbs.cache(RUN, data=folder, out=tmp_path / "c", crops=2, teachers=both())
    index = np.load(out / "000000.index.npy")
    assert (index != np.tile(np.arange(8), 2)).nonzero()[0].tolist() == [3, 11]
    live = tubelet.pretrain(RUN, data=folder, out=tmp_path / "live", steps=4, teachers=both())
    read = tubelet.pretrain(RUN, data=folder, out=tmp_path / "read", steps=4, feature_cache=out)
    assert losses(read) == pytest.approx(losses(live), rel=1e-3)
    (folder / "3.mp4").write_bytes(whole)
    with pytest.raises(TubeletError, match=r"features of .*\.mp4 where now .*3\.mp4 is shown"):
        train(folder, out, tmp_path)
