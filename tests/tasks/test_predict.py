"""Windows over long files against one decode per window, in memory that does not grow."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tubelet.data.decode import Video
from tubelet.data.sampling import window_frames
from tubelet.data.transforms import spatial_views
from tubelet.errors import TubeletError
from tubelet.model import Classifier
from tubelet.shapes import ClipSpec
from tubelet.tasks.predict import (
    Answer,
    PredictConfig,
    Prediction,
    Predictions,
    Window,
    predict,
)
from tubelet.tasks.windows import FrameStream, paths_of

HERE = PredictConfig(device="cpu", batch_size=4)
NAMES = ("run", "jump", "sit, down")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_video) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "short.mp4", frames=5)
    write_video(folder / "long.mp4", frames=120, seed=1)
    return folder


def test_windows_score_as_clips_decoded_one_by_one(
    classifier: Classifier, folder: Path, spec: ClipSpec
) -> None:
    path = folder / "long.mp4"
    config = replace(HERE, hop_seconds=0.5, top=3)
    (file,) = predict(classifier, NAMES, spec, path, config).files
    classifier.eval()
    rows = []
    with Video(path) as video:
        cuts = list(window_frames(spec, video.info.frames, video.info.fps, hop_seconds=0.5))
        assert len(file.windows) == len(cuts) > 20
        for window, (start, end, at) in zip(file.windows, cuts, strict=True):
            view = spatial_views(video.frames(at), spec.size, 1)
            with torch.no_grad():
                rows.append(classifier(view.float() / 255)[0].double().softmax(-1))
            found = dict(window.top)
            expected = dict(zip(NAMES, rows[-1].tolist(), strict=True))
            assert found == pytest.approx(expected, abs=1e-6)
            assert list(found) == sorted(found, key=lambda name: -found[name])
            assert (window.start_seconds, window.end_seconds) == (start, end)
    assert dict(file.top) == pytest.approx(
        dict(zip(NAMES, torch.stack(rows).mean(0).tolist(), strict=True)), abs=1e-6
    )
    assert file.windows[-1].end_seconds == pytest.approx(file.duration_seconds)


@pytest.mark.parametrize("sampling", ["dense", "dense_fps", "uniform", "seconds"])
@pytest.mark.parametrize("hop", [1, 3, 8, 11, None])
def test_every_frame_is_decoded_once_in_order(
    folder: Path, spec: ClipSpec, sampling, hop: int | None
) -> None:
    spec = replace(spec, sampling=sampling, seconds=0.9, crop_pct=0.8)
    with Video(folder / "long.mp4") as video, Video(folder / "long.mp4") as other:
        wanted: list[int] = []

        class Recorded:
            def frames(self, indices):
                wanted.extend(int(i) for i in indices)
                return video.frames(indices)

        info = video.info
        cuts = list(window_frames(spec, info.frames, info.fps, hop_frames=hop))
        stream = FrameStream(Recorded(), spec)  # pyright: ignore
        clips = list(stream.clips(iter(cuts)))
        assert len(clips) == len(cuts)
        for (start, _, clip), (expected, _, at) in list(zip(clips, cuts, strict=True))[::7]:
            assert start == expected
            own = spatial_views(other.frames(at), spec.size, 1, crop_pct=spec.crop_pct)
            assert torch.equal(clip, own[0])
        assert wanted == sorted(set(wanted))
        # A few more than the file has: the decoder reads ahead of a seek.
        assert video.decoded <= info.frames + 16


def test_memory_does_not_grow_with_length(spec: ClipSpec) -> None:
    class Endless:
        def __init__(self) -> None:
            self.largest = 0

        def frames(self, indices):
            self.largest = max(self.largest, len(indices))
            return torch.zeros(len(indices), 32, 32, 3, dtype=torch.uint8)

    most = []
    for frames in (200, 3_000):
        video = Endless()
        stream = FrameStream(video, spec)  # pyright: ignore
        count = sum(1 for _ in stream.clips(window_frames(spec, frames, 25.0, hop_frames=3)))
        assert count == (frames - 8 + 2) // 3 + 1
        assert video.largest <= 16
        most.append(stream.most)
    # The frames of windows that overlap: 8 frames long, at most.
    assert most[0] == most[1] <= 8


def test_windows_are_cut_lazily(spec: ClipSpec) -> None:
    taken = 0

    def cuts():
        nonlocal taken
        for cut in window_frames(spec, 10_000_000, 25.0):
            taken += 1
            yield cut

    class Video:
        def frames(self, indices):
            return torch.zeros(len(indices), 32, 32, 3, dtype=torch.uint8)

    stream = FrameStream(Video(), spec)  # pyright: ignore
    next(stream.clips(cuts()))
    assert taken <= 2


def test_a_folder_with_bad_files_goes_on_and_reports_them(
    classifier: Classifier, folder: Path, spec: ClipSpec, tmp_path: Path, write_video
) -> None:
    write_video(tmp_path / "a.mp4", frames=9)
    (tmp_path / "b.mp4").write_text("not a video")
    whole = write_video(tmp_path / "whole.mkv", frames=80).read_bytes()
    (tmp_path / "c.mkv").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "whole.mkv").unlink()
    result = predict(classifier, NAMES, spec, tmp_path, HERE)
    a, b, c = result.files
    assert (a.error, len(a.windows)) == ("", 2)
    assert "b.mp4" in b.error
    assert b.windows == () == b.top
    assert {Path(f.path).name for f in result.unreadable} <= {"b.mp4", "c.mkv"}
    assert c.windows  # what could be read is kept
    assert result.exit_code == 1
    assert predict(classifier, NAMES, spec, folder, HERE).exit_code == 0
    assert result.table().row_count >= 3


def test_a_file_that_breaks_in_the_middle_keeps_what_came_before(
    classifier: Classifier, spec: ClipSpec, tmp_path: Path, write_video
) -> None:
    data = write_video(tmp_path / "film.ts", frames=120).read_bytes()
    assert len(data) > 4000
    path = write_video(tmp_path / "film.mp4", frames=120, height=64, width=96)
    data = bytearray(path.read_bytes())
    at = data.find(b"mdat")
    data[at + len(data) // 2 : at + len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    (file,) = predict(classifier, NAMES, spec, path, HERE).files
    assert file.windows
    complete = file.windows[-1].end_seconds == pytest.approx(12.0)
    assert complete == (file.error == "")


def test_lists_images_and_missing_files(
    classifier: Classifier, folder: Path, spec: ClipSpec, tmp_path: Path
) -> None:
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "still.png")
    (tmp_path / "list.csv").write_text(f"{folder / 'short.mp4'} 0\n{folder / 'long.mp4'} 1\n")
    sources = [tmp_path / "still.png", tmp_path / "list.csv", tmp_path / "gone.mp4"]
    result = predict(classifier, NAMES, spec, sources, HERE)
    assert [Path(f.path).name for f in result.files] == [
        "still.png",
        "short.mp4",
        "long.mp4",
        "gone.mp4",
    ]
    assert [bool(f.error) for f in result.files] == [False, False, False, True]
    assert len(result.files[0].windows) == 1
    for place in ("train/a", "val/a", "val/b"):
        (tmp_path / "splits" / place).mkdir(parents=True)
        (tmp_path / "splits" / place / "x.mp4").write_text("")
    found = [
        str(Path(path).relative_to(tmp_path / "splits")) for path in paths_of(tmp_path / "splits")
    ]
    assert found == ["train/a/x.mp4", "val/a/x.mp4", "val/b/x.mp4"]
    with pytest.raises(TubeletError, match="No files"):
        paths_of([])


def test_json_and_csv(classifier: Classifier, folder: Path, spec: ClipSpec, tmp_path: Path) -> None:
    sources = [folder / "short.mp4", folder / "gone.mp4"]
    result = predict(classifier, NAMES, spec, sources, replace(HERE, top=2))
    result.write(tmp_path / "new" / "a.json")
    result.write(tmp_path / "a.csv")
    files = json.loads((tmp_path / "new" / "a.json").read_text())["files"]
    assert len(files[0]["windows"]) == 1
    assert [row["class"] for row in files[0]["top"]] == [
        answer.name for answer in result.files[0].top
    ]
    assert "gone.mp4" in files[1]["error"]
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["part"] for row in rows] == ["file", "file", "window", "window", "error"]
    assert {row["class"] for row in rows[:-1]} <= set(NAMES)
    assert float(rows[2]["score"]) == pytest.approx(
        files[0]["windows"][0]["top"][0]["score"], abs=1e-6
    )
    with pytest.raises(TubeletError, match=r"\.json or \.csv"):
        result.write(tmp_path / "a.txt")


def test_multi_label_and_regression(classifier: Classifier, folder: Path, spec: ClipSpec) -> None:
    path = folder / "short.mp4"
    multi = predict(classifier, NAMES, spec, path, HERE, kind="multi").files[0].top
    assert sum(answer.score for answer in multi) != pytest.approx(1)
    values = predict(classifier, (), spec, path, HERE, kind="regression").files[0].top
    assert [answer.name for answer in values] == ["value 0", "value 1", "value 2"]
    logits = torch.tensor([dict(values)[f"value {i}"] for i in range(3)])
    assert dict(multi) == pytest.approx(
        dict(zip(NAMES, logits.sigmoid().tolist(), strict=True)), abs=1e-6
    )


def test_what_does_not_fit_is_said(classifier: Classifier, folder: Path, spec: ClipSpec) -> None:
    with pytest.raises(TubeletError, match="2 class names for a model of 3 outputs"):
        predict(classifier, ("a", "b"), spec, folder, HERE)
    with pytest.raises(TubeletError, match="top 0"):
        predict(classifier, NAMES, spec, folder, replace(HERE, top=0))
    classifier.reset_classifier(0)
    with pytest.raises(TubeletError, match="no head"):
        predict(classifier, (), spec, folder, HERE)


def test_the_timeline_joins_windows_of_one_class() -> None:
    def window(start: float, name: str, score: float) -> Window:
        return Window(start, start + 1, (Answer(name, score), Answer("other", 0.1)))

    windows = (window(0, "a", 0.5), window(1, "a", 0.7), window(2, "b", 0.6), window(3, "a", 0.9))
    file = Prediction("x.mp4", 4.0, windows, windows[0].top)
    runs = [(w.start_seconds, w.end_seconds, w.top[0].name) for w in file.timeline()]
    assert runs == [(0, 2, "a"), (2, 3, "b"), (3, 4, "a")]
    assert file.timeline()[0].top[0].score == pytest.approx(0.6)
    table = Predictions((file,), ClipSpec()).table()
    assert table.row_count == 1 + 3


def test_progress_tells_seconds(classifier: Classifier, folder: Path, spec: ClipSpec) -> None:
    calls: list[tuple[str, float, float]] = []
    path = str(folder / "long.mp4")
    predict(classifier, NAMES, spec, path, HERE, progress=lambda *call: calls.append(call))
    assert calls[-1] == (path, pytest.approx(12.0), pytest.approx(12.0))
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert len(calls) == 4  # 15 windows in batches of 4
