"""Features over time against clips decoded and embedded one by one, by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import run
from small import write_frames
from torch.nn.functional import interpolate

import tubelet
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.data.decode import Video
from tubelet.data.sampling import window_frames
from tubelet.data.transforms import spatial_views
from tubelet.decoders import DecoderShape, Joint
from tubelet.errors import TubeletError
from tubelet.losses import mse
from tubelet.model import Branch, Card, Classifier, MaskedModel
from tubelet.shapes import ClipSpec
from tubelet.targets.pixels import Pixels
from tubelet.tasks.embed import EmbedConfig, embed
from tubelet.tasks.embedder import Embedder

HERE = EmbedConfig(device="cpu", batch_size=4, hop_frames=3)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory, write_video) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for i, frames in enumerate((30, 5, 9, 17)):
        write_video(folder / f"{i}.mp4", frames=frames, seed=i)
    return folder


@pytest.fixture
def model(classifier: Classifier, spec: ClipSpec) -> Classifier:
    torch.nn.init.normal_(classifier.fc_norm.weight)
    torch.nn.init.normal_(classifier.fc_norm.bias)
    classifier.card = Card(clip=spec)
    return classifier


def pretrained(spec: ClipSpec) -> MaskedModel:
    torch.manual_seed(3)
    vit = ViT(ViTShape(width=32, depth=2, heads=2, patch=8), trained=(4, 32, 32))
    torch.nn.init.normal_(vit.norm.weight)
    target = Pixels(vit.patch)
    decoder = Joint(vit.dim, target.width, DecoderShape(16, 1, 2), trained=vit.grid)
    model = MaskedModel(vit, [Branch("pixels", decoder, target, mse)]).eval()
    model.card = Card(clip=spec)
    return model


def by_hand(model, path: Path, spec: ClipSpec, **hop) -> tuple[list, torch.Tensor]:
    """Times, and the tokens of each window, one forward each."""
    with Video(path) as video, torch.no_grad():
        cuts = list(window_frames(spec, video.info.frames, video.info.fps, whole=True, **hop))
        views = [spatial_views(video.frames(at), spec.size, 1) for _, _, at in cuts]
        tokens = [model.forward_features(view.float() / 255)[0] for view in views]
    return [(start, end) for start, end, _ in cuts], torch.stack(tokens)


def test_a_classifiers_features_are_what_its_head_sees(model: Classifier, films: Path) -> None:
    model.train()
    result = embed(model, films, HERE)
    assert model.training  # as it was
    model.eval()
    assert [file.state for file in result.files] == ["made"] * 4
    for path, file in zip(sorted(films.iterdir()), result.files, strict=True):
        times, tokens = by_hand(model, path, model.card.clip, hop_frames=3)
        with torch.no_grad():
            expected = model.forward_head(tokens, pre_logits=True)
        assert file.path == str(path)
        assert file.features is not None and file.features.dtype == np.float32
        np.testing.assert_allclose(file.features, expected, rtol=1e-5, atol=1e-5)
        assert file.start_seconds is not None and file.end_seconds is not None
        assert list(zip(file.start_seconds, file.end_seconds, strict=True)) == times
        assert file.windows == len(times)
    assert [file.windows for file in result.files] == [8, 1, 1, 4]  # spans of 8 frames


def test_a_pretrained_models_features_are_its_normed_tokens(spec: ClipSpec, films: Path) -> None:
    model = pretrained(spec)
    _, tokens = by_hand(model, films / "0.mp4", spec, hop_seconds=0.5)
    config = replace(HERE, hop_frames=None, hop_seconds=0.5)
    found = {}
    for pool in ("mean", "time", "none"):
        (file,) = embed(model, films / "0.mp4", replace(config, pool=pool)).files
        found[pool] = file.features
    maps = tokens.unflatten(1, (2, 4, 4))
    for pool, expected in (
        ("none", maps),
        ("time", maps.mean((2, 3))),
        ("mean", maps.mean((1, 2, 3))),
    ):
        np.testing.assert_allclose(found[pool], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["time", "none"])
def test_pools_of_a_classifier_are_normed_last(model: Classifier, films: Path, pool) -> None:
    _, tokens = by_hand(model, films / "3.mp4", model.card.clip, hop_frames=3)
    maps = tokens.unflatten(1, (2, 4, 4))
    with torch.no_grad():
        expected = model.fc_norm(maps.mean((2, 3)) if pool == "time" else maps)
    (file,) = embed(model, films / "3.mp4", replace(HERE, pool=pool)).files
    np.testing.assert_allclose(file.features, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hop", [1, 4, 16])
def test_published_preprocessing(model: Classifier, films: Path, hop: int) -> None:
    """Against a network without mean and deviation, on frames stretched by hand."""
    plain = Classifier(
        ViT(
            ViTShape(width=32, depth=2, heads=2, patch=8, mean=(0.0,) * 3, std=(1.0,) * 3),
            trained=(4, 32, 32),
            final_norm=False,
        ),
        3,
    )
    plain.load_state_dict(model.state_dict())
    plain.eval()
    with Video(films / "0.mp4") as video, torch.no_grad():
        frames = video.frames(range(30)).permute(0, 3, 1, 2) / 255
        small = interpolate(frames, size=(32, 32), mode="bilinear", align_corners=False)
        clips = [small[at : at + 4].transpose(0, 1) for at in range(0, 30 - 3, hop)]
        expected = plain.forward_head(plain.forward_features(torch.stack(clips)), pre_logits=True)
    config = replace(HERE, hop_frames=hop, published_preprocessing=True)
    (file,) = embed(model, films / "0.mp4", config).files
    assert file.windows == (30 - 4) // hop + 1 == len(expected)
    np.testing.assert_allclose(file.features, expected, rtol=1e-4, atol=1e-4)
    (own,) = embed(model, films / "0.mp4", replace(config, published_preprocessing=False)).files
    assert own.windows != file.windows or not np.allclose(own.features, file.features, atol=0.1)


def test_a_short_video_repeats_its_last_frame(model: Classifier, films: Path) -> None:
    (file,) = embed(model, films / "1.mp4", HERE).files  # 5 frames, and a window takes 8
    with Video(films / "1.mp4") as video, torch.no_grad():
        view = spatial_views(video.frames([0, 2, 4, 4]), (32, 32), 1).float() / 255
        expected = model.forward_head(model.forward_features(view), pre_logits=True)
    np.testing.assert_allclose(file.features, expected, rtol=1e-5, atol=1e-5)
    assert file.end_seconds == pytest.approx([0.5])


def test_features_depend_on_nothing_but_their_video(model: Classifier, films: Path) -> None:
    """Bit for bit: other videos in the batch, other places in it, other batches, other threads."""
    alone = [embed(model, path, HERE).files[0].features for path in sorted(films.iterdir())]
    backwards = sorted(films.iterdir(), reverse=True)
    for sources, config in (
        (films, HERE),
        (films, replace(HERE, workers=4)),
        (backwards, replace(HERE, workers=1)),
        (films, replace(HERE, batch_size=7)),
        (films, replace(HERE, batch_size=1)),
    ):
        files = sorted(embed(model, sources, config).files, key=lambda file: file.path)
        for own, file in zip(alone, files, strict=True):
            np.testing.assert_array_equal(own, file.features)


def test_files_hold_what_is_returned_in_memory(
    model: Classifier, films: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    expected = embed(model, films, HERE).files
    for form in ("npy", "npz", "parquet"):
        result = embed(model, films, replace(HERE, format=form), out=tmp_path / form)
        assert [file.file for file in result.files] == [
            tmp_path / form / f"{i}.{form}" for i in range(4)
        ]
    for i, file in enumerate(expected):
        np.testing.assert_array_equal(np.load(tmp_path / f"npy/{i}.npy"), file.features)
        times = json.loads((tmp_path / f"npy/{i}.times.json").read_text())
        arrays = np.load(tmp_path / f"npz/{i}.npz")
        table = pq.read_table(tmp_path / f"parquet/{i}.parquet")
        np.testing.assert_array_equal(arrays["features"], file.features)
        np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), file.features)
        for key in ("start_seconds", "end_seconds"):
            seconds = getattr(file, key)
            np.testing.assert_array_equal(times[key], seconds)
            np.testing.assert_array_equal(arrays[key], seconds)
            np.testing.assert_array_equal(table[key].to_numpy(), seconds)
        assert times["fps"] == arrays["fps"] == 10
        assert times["frames"] == arrays["frames"] == (30, 5, 9, 17)[i]
    again = embed(model, films, replace(HERE, format="npz"), out=tmp_path / "npz")
    assert [file.state for file in again.files] == ["there"] * 4


def test_half_precision_files(model: Classifier, films: Path, tmp_path: Path) -> None:
    (full,) = embed(model, films / "0.mp4", HERE).files
    embed(model, films / "0.mp4", replace(HERE, dtype="float16"), out=tmp_path)
    values = np.load(tmp_path / "0.npy")
    assert values.dtype == np.float16 and full.features is not None
    np.testing.assert_array_equal(values, full.features.astype(np.float16))
    with torch.no_grad():
        model.fc_norm.bias.fill_(1e6)
    with pytest.raises(TubeletError, match=r"reach 1e\+06, and float16 ends at 65504"):
        embed(model, films / "0.mp4", replace(HERE, dtype="float16"))
    with torch.no_grad():
        model.fc_norm.bias.fill_(float("nan"))
    with pytest.raises(TubeletError, match=r"0\.mp4 are not finite"):
        embed(model, films / "0.mp4", HERE)


def test_videos_that_cannot_be_read(
    model: Classifier, films: Path, tmp_path: Path, write_video
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    write_video(videos / "good.mp4", frames=12)
    (videos / "bad.mp4").write_text("no video")
    result = embed(model, [videos, videos / "gone.mp4"], HERE, out=out)
    assert [(Path(f.path).name, f.state) for f in result.files] == [
        ("bad.mp4", "unreadable"),
        ("good.mp4", "made"),
        ("gone.mp4", "unreadable"),
    ]
    assert result.exit_code == 1
    assert "bad.mp4" in (out / "bad.error.txt").read_text()
    assert {p.name for p in out.iterdir()} == {
        *("bad.error.txt", "gone.error.txt", "features.json"),
        *("good.npy", "good.times.json"),
    }
    write_video(videos / "bad.mp4", frames=12, seed=5)
    again = embed(model, videos, HERE, out=out)
    assert [file.state for file in again.files] == ["made", "there"]
    assert not (out / "bad.error.txt").exists()
    assert again.exit_code == 0
    assert again.table().row_count == 2


def test_a_video_that_breaks_in_the_middle_leaves_no_features(
    model: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, films: Path
) -> None:
    from tubelet.data.decode import DecodeError

    frames = Video.frames

    def broken(self, indices):
        if self.path.endswith("0.mp4") and max(indices) > 20:
            raise DecodeError(self.path, "it breaks off")
        return frames(self, indices)

    monkeypatch.setattr(Video, "frames", broken)
    result = embed(model, films, HERE, out=tmp_path)
    assert [file.state for file in result.files] == ["unreadable", "made", "made", "made"]
    assert not (tmp_path / "0.npy").exists()


def test_progress_and_parts(model: Classifier, films: Path, tmp_path: Path) -> None:
    calls: list[tuple[float, int, int]] = []
    embed(model, films, HERE, out=tmp_path, progress=lambda *call: calls.append(call))
    assert calls[-1] == (4, 4, 14)
    assert [windows for _, _, windows in calls] == sorted(windows for _, _, windows in calls)
    parts = [embed(model, films, HERE, out=tmp_path / "parts", part=(i, 3)) for i in range(3)]
    assert [[Path(f.path).name for f in part.files] for part in parts] == [
        ["0.mp4", "3.mp4"],
        ["1.mp4"],
        ["2.mp4"],
    ]


def test_the_model_is_named_by_its_weights(model: Classifier, films: Path, tmp_path: Path) -> None:
    one = films / "1.mp4"
    embed(model, one, HERE, out=tmp_path, name="runs/a")
    embed(model, one, HERE, out=tmp_path, name="elsewhere/a")  # where it lies is not compared
    for wrong, said in (
        ({"config": replace(HERE, hop_frames=4)}, "hop.frames: 3 in the folder, 4 here"),
        ({"config": replace(HERE, dtype="float16")}, "dtype: float32 in the folder"),
        (
            {"clip": replace(model.card.clip, sampling_rate=1)},
            "clip.sampling_rate: 2 in the folder",
        ),
    ):
        with pytest.raises(TubeletError, match=said):
            embed(model, one, **{"config": HERE, **wrong}, out=tmp_path)
    with torch.no_grad():
        model.fc_norm.bias.add_(1)
    with pytest.raises(TubeletError, match=r"model\.digest"):
        embed(model, one, HERE, out=tmp_path)


def test_folders_of_frames(model: Classifier, tmp_path: Path) -> None:
    path = f"{write_frames(tmp_path / 'a', frames=12)}/img_{{:05}}.jpg"
    config = replace(HERE, hop_frames=None, hop_seconds=0.25)
    (file,) = embed(model, f"{path}[1:12@12]", config, out=tmp_path / "out").files
    assert file.windows == 2 and file.file == tmp_path / "out/a.npy"  # spans of 8, hops of 3 frames
    times = json.loads((tmp_path / "out/a.times.json").read_text())
    assert (times["start_seconds"], times["fps"]) == ([0, 0.25], 12)
    with pytest.raises(
        TubeletError, match=r"how many frames a second.*\[1:12@25\], or pass --hop-f"
    ):
        embed(model, f"{path}[1:12]", config)
    (file,) = embed(model, f"{path}[1:12]", HERE).files
    assert file.windows == 2 and file.fps == 1


def test_what_cannot_be(model: Classifier, films: Path) -> None:
    for wrong, said in (
        ({"hop_frames": 0}, "hop_frames is 0, and at least 1"),
        ({"hop_frames": None, "hop_seconds": 0.0}, "hop_seconds is 0.0, and it must be above 0"),
        ({"hop_seconds": 1.0}, "both given"),
        ({"format": "csv"}, "format is 'csv'; expected one of npy, npz, parquet"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": 0}, "workers is 0"),
    ):
        with pytest.raises(TubeletError, match=said):
            replace(HERE, **wrong)
    with pytest.raises(TubeletError, match="cannot be cut into"):
        embed(model, films, HERE, clip=replace(model.card.clip, size=(30, 30)))
    with pytest.raises(TubeletError, match="in_chans is 1, and the model takes clips of 3"):
        embed(model, films, HERE, clip=replace(model.card.clip, in_chans=1))
    with pytest.raises(TubeletError, match="No files"):
        embed(model, [], HERE)


def test_the_embedder_of_tubelets_public_function(model: Classifier, films: Path) -> None:
    (file,) = tubelet.embed(model, films / "0.mp4", config=HERE).files
    (own,) = embed(model, films / "0.mp4", HERE).files
    np.testing.assert_array_equal(file.features, own.features)
    assert Embedder(model.train(), "mean").training
    assert not Embedder(model.eval(), "mean").training


def test_killed_jobs_go_on_and_processes_share_a_folder(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "helpers/killed_embedding.py"
    assert run(script, tmp_path) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["kills"]) == 4
    for kill in result["kills"]:
        assert kill["killed"] and kill["equal"]
        assert kill["left"] == kill["there"] < 6
    assert max(kill["left"] for kill in result["kills"]) >= 3
    shared = result["shared"]
    assert shared["codes"] == [0, 0, 0] and shared["equal"]
    made = sorted(name for names in shared["made"] for name in names)
    assert made == [f"{i}.mp4" for i in range(6)]  # each of them once
