"""The published protocol against a slow version of it, and scores that nothing else decides."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from rich.console import Console

from tubelet.backbones.vit import ViT, ViTShape
from tubelet.data import clips
from tubelet.data.decode import Video
from tubelet.data.lists import VideoList, read_list
from tubelet.data.sampling import test_frames as frames_of_views
from tubelet.data.transforms import spatial_views
from tubelet.errors import TubeletError
from tubelet.model import Classifier
from tubelet.shapes import ClipSpec
from tubelet.tasks import evaluate as module
from tubelet.tasks.evaluate import EvaluateConfig, evaluate, validation, views_per_forward

HERE = EvaluateConfig(workers=0, device="cpu")


def make_classifier() -> Classifier:
    torch.manual_seed(7)
    vit = ViT(
        ViTShape(width=32, depth=2, heads=2, patch=8),
        trained=(4, 32, 32),
        final_norm=False,
        init="normal",
    )
    return Classifier(vit, 3, init_scale=20.0)


def slow_scores(model: Classifier, path: str, spec: ClipSpec, segments: int, crops: int):
    """One view at a time, each from a decode of its own: softmax each -> [views, classes]."""
    rows = []
    for segment in range(segments):
        for crop in range(crops):
            with Video(path) as video:
                at = frames_of_views(spec, video.info.frames, video.info.fps, segments)[segment]
                view = spatial_views(video.frames(at), spec.size, crops)[crop]
            with torch.no_grad():
                rows.append(model(view[None].float() / 255)[0].double().softmax(-1))
    return torch.stack(rows)


def test_scores_are_those_of_the_published_protocol(
    classifier: Classifier, five: VideoList, spec: ClipSpec
) -> None:
    result = evaluate(classifier, five, spec, HERE)
    classifier.eval()
    views = [slow_scores(classifier, e.path, spec, 5, 3) for e in five.entries]
    expected = torch.stack([v.mean(0) for v in views])
    assert torch.allclose(result.scores, expected, atol=1e-6)
    assert len({int(row.argmax()) for v in views for row in v}) > 1  # not one answer for all
    labels = [e.label for e in five.entries]
    right = [int(row.argmax()) == label for row, label in zip(expected, labels, strict=True)]
    assert result.metrics["top1"] == pytest.approx(100 * np.mean(right))
    alone = [
        int(row.argmax()) == label for v, label in zip(views, labels, strict=True) for row in v
    ]
    assert result.metrics["clip_top1"] == pytest.approx(100 * np.mean(alone))
    assert result.views == "4x5x3"
    assert int(result.confusion.sum()) == 5


@pytest.mark.parametrize(("segments", "crops"), [(5, 3), (1, 1)])
def test_equal_bits_for_any_batch_size_and_worker_count(
    classifier: Classifier, five: VideoList, spec: ClipSpec, segments: int, crops: int
) -> None:
    base = replace(HERE, segments=segments, crops=crops, batch_size=32)
    first = evaluate(classifier, five, spec, base)
    changes = [{"batch_size": 1}, {"batch_size": 7}, {"batch_size": 1000}, {"workers": 2}]
    for change in changes:
        again = evaluate(classifier, five, spec, replace(base, **change))
        assert torch.equal(again.scores, first.scores), change
        assert json.dumps(again.to_json()) == json.dumps(first.to_json())


def test_a_video_scores_the_same_whatever_else_is_in_the_list(
    classifier: Classifier, five: VideoList, spec: ClipSpec
) -> None:
    whole = evaluate(classifier, five, spec, HERE)
    part = replace(five, entries=five.entries[3:])
    assert torch.equal(evaluate(classifier, part, spec, HERE).scores, whole.scores[3:])


def test_forwards_are_even_and_bounded(classifier: Classifier) -> None:
    small = ClipSpec(num_frames=4, size=(32, 32))  # 32 tokens
    assert views_per_forward(classifier, small, 15) == 15
    big = ClipSpec(num_frames=4, size=(448, 448))  # 6272 tokens: two views fill a forward
    assert views_per_forward(classifier, big, 15) == 2
    assert views_per_forward(classifier, big, 1) == 1
    huge = ClipSpec(num_frames=32, size=(448, 448))
    assert views_per_forward(classifier, huge, 6) == 1


def test_split_forwards_score_as_whole_ones(
    classifier: Classifier, five: VideoList, spec: ClipSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(classifier, five, spec, HERE)
    monkeypatch.setattr(module, "TOKENS_PER_FORWARD", 4 * 32)
    split = evaluate(classifier, five, spec, HERE)
    assert split.protocol["views_per_forward"] == 4  # 15 views as 4 x 4, the last one padded
    assert torch.allclose(split.scores, whole.scores, atol=1e-6)
    again = evaluate(classifier, five, spec, replace(HERE, batch_size=5))
    assert torch.equal(again.scores, split.scores)


def test_each_video_is_opened_and_decoded_once(
    classifier: Classifier, five: VideoList, spec: ClipSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Video] = []

    class Counted(Video):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            opened.append(self)
            self.calls = 0

        def frames(self, indices):
            self.calls += 1
            return super().frames(indices)

    monkeypatch.setattr(clips, "Video", Counted)
    result = evaluate(classifier, five, spec, HERE)
    assert [video.path for video in opened] == [e.path for e in five.entries]
    assert [video.calls for video in opened] == [1] * 5
    assert all(video.decoded <= video.info.frames for video in opened)
    assert result.decoded == 5


@pytest.fixture
def broken(five: VideoList, tmp_path: Path) -> VideoList:
    bad = tmp_path / "text.mp4"
    bad.write_text("not a video")
    rows = [(e.path, five.classes[e.label]) for e in five.entries]  # pyright: ignore
    return read_list([*rows[:2], (str(bad), "a"), *rows[2:]])


def test_an_unreadable_video_ends_the_evaluation_by_name(
    classifier: Classifier, broken: VideoList, spec: ClipSpec
) -> None:
    with pytest.raises(TubeletError, match=r"text\.mp4") as error:
        evaluate(classifier, broken, spec, HERE)
    assert "--allow-missing" in str(error.value)
    assert "never replaced" in str(error.value)


def test_allowed_missing_videos_are_counted_and_change_no_other_score(
    classifier: Classifier, broken: VideoList, five: VideoList, spec: ClipSpec
) -> None:
    result = evaluate(classifier, broken, spec, replace(HERE, allow_missing=True))
    assert torch.equal(result.scores, evaluate(classifier, five, spec, HERE).scores)
    report = result.to_json()
    assert (report["videos"], len(report["missing"])) == (5, 1)
    assert report["missing"][0]["path"].endswith("text.mp4")
    assert report["missing"][0]["reason"]
    text = _text(result.table())
    assert "missing videos │ 1" in " ".join(text.replace("\n", " ").split())
    none = replace(broken, entries=broken.entries[2:3])
    with pytest.raises(TubeletError, match="None of the 1 videos"):
        evaluate(classifier, none, spec, replace(HERE, allow_missing=True))


def test_labels_that_the_model_does_not_know(
    classifier_of: Callable[[int], Classifier], five: VideoList, spec: ClipSpec
) -> None:
    with pytest.raises(TubeletError, match=r"1\.mp4 has label 2 .* knows 2 classes \(0 to 1\)"):
        evaluate(classifier_of(2), five, spec, HERE)
    with pytest.raises(TubeletError, match="no labels"):
        evaluate(classifier_of(2), replace(five, kind="unlabelled"), spec, HERE)


def test_a_shorter_list_of_classes_keeps_the_model_s_numbers(
    classifier_of: Callable[[int], Classifier], five: VideoList, spec: ClipSpec
) -> None:
    result = evaluate(classifier_of(7), five, spec, HERE)
    assert result.classes == ("a", "b", "c", "3", "4", "5", "6")
    assert result.scores.shape == (5, 7)
    assert {"top5", "clip_top5"} <= set(result.metrics)


def test_several_labels_and_numbers(
    classifier_of: Callable[[int], Classifier], five: VideoList, spec: ClipSpec, tmp_path: Path
) -> None:
    paths = [e.path for e in five.entries]
    many = read_list([(p, [i % 3, 1]) for i, p in enumerate(paths)], kind="multi")
    result = evaluate(classifier_of(3), many, spec, HERE)
    assert set(result.metrics) == {"mAP"}
    assert bool(((result.scores > 0) & (result.scores < 1)).all())
    assert tmp_path / "confusion.png" not in result.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert rows[0]["label"] == f"{many.classes[0]};{many.classes[1]}"

    numbers = read_list([(p, [0.5 * i]) for i, p in enumerate(paths)], kind="regression")
    result = evaluate(classifier_of(1), numbers, spec, HERE)
    assert set(result.metrics) == {"MAE", "R2"}
    expected = (result.scores - result.labels.double()).abs().mean()
    assert result.metrics["MAE"] == pytest.approx(float(expected))
    with pytest.raises(TubeletError, match="1 values a label and the model gives 3"):
        evaluate(classifier_of(3), numbers, spec, HERE)


def test_weights_that_are_not_finite_do_not_score(
    classifier: Classifier, five: VideoList, spec: ClipSpec
) -> None:
    with torch.no_grad():
        classifier.fc_norm.weight[0] = torch.nan
    with pytest.raises(TubeletError, match=r"0\.mp4 are not finite"):
        evaluate(classifier, five, spec, HERE)


def test_the_fingerprint_tells_what_decided_the_score(
    classifier: Classifier, five: VideoList, spec: ClipSpec
) -> None:
    def of(model=classifier, videos=five, **change: object) -> str:
        config = replace(HERE, segments=1, crops=1)
        return evaluate(model, videos, spec, replace(config, **change)).fingerprint["all"]

    first = of()
    assert of(batch_size=3) == first
    assert of(segments=2) != first
    assert of(precision="bf16") != first
    assert of(videos=replace(five, entries=five.entries[:4])) != first
    with torch.no_grad():
        classifier.head.bias += 1  # pyright: ignore
    assert of() != first


def test_bf16_scores_almost_as_float32(
    classifier: Classifier, five: VideoList, spec: ClipSpec
) -> None:
    full = evaluate(classifier, five, spec, HERE)
    half = evaluate(classifier, five, spec, replace(HERE, precision="bf16"))
    # bf16 keeps 8 bits: two to three digits of a logit, and logits here are a few units.
    assert 0 < float((full.scores - half.scores).abs().max()) < 0.1
    assert half.fingerprint["precision"] == "bf16"


def test_written_files(
    classifier: Classifier, five: VideoList, spec: ClipSpec, tmp_path: Path
) -> None:
    result = evaluate(classifier, five, spec, HERE)
    written = result.write(tmp_path / "new" / "folder")
    names = [path.name for path in written]
    assert names == ["evaluation.json", "scores.csv", "confusion.csv", "confusion.png"]
    report = json.loads(written[0].read_text())
    assert report["metrics"]["top1"] == result.metrics["top1"]
    assert sum(row["videos"] for row in report["classes"]) == 5
    rows = list(csv.DictReader(written[1].open()))
    assert [row["label"] for row in rows] == list("acbca")
    assert float(rows[2]["b"]) == float(result.scores[2, 1])
    table = list(csv.reader(written[2].open()))
    assert [[int(n) for n in row[1:]] for row in table[1:]] == result.confusion.tolist()
    assert Image.open(written[3]).size[0] > 200
    result.write_scores(tmp_path / "scores.jsonl")
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["scores"] == result.scores[1].tolist()
    with pytest.raises(TubeletError, match=r"\.csv or \.jsonl"):
        result.write_scores(tmp_path / "scores.xls")
    (tmp_path / "file").write_text("")
    with pytest.raises(TubeletError, match="cannot be written"):
        result.write(tmp_path / "file")


def test_validation_is_one_centred_view_and_leaves_the_model_in_training(
    classifier: Classifier, five: VideoList, spec: ClipSpec
) -> None:
    classifier.train()
    calls: list[tuple[int, int]] = []
    found = validation(five, spec, HERE)(classifier)
    assert classifier.training
    one = evaluate(
        classifier,
        five,
        spec,
        replace(HERE, segments=1, crops=1),
        progress=lambda done, total: calls.append((done, total)),
    )
    assert found == one.metrics
    assert calls == [(i, 5) for i in range(1, 6)]


def _text(table: object) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def _process(rank: int, store: str, videos: VideoList, spec: ClipSpec, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        model = make_classifier()
        result = evaluate(model, videos, spec, replace(HERE, allow_missing=True))
        Path(out, f"{rank}.json").write_text(json.dumps(result.to_json()))
        result.write_scores(Path(out, f"{rank}.csv"))
        with pytest.raises(TubeletError, match=r"text\.mp4"):
            evaluate(model, videos, spec, HERE)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(broken: VideoList, spec: ClipSpec, tmp_path: Path) -> None:
    arguments = (str(tmp_path / "store"), broken, spec, str(tmp_path))
    torch.multiprocessing.spawn(_process, arguments, nprocs=2)  # pyright: ignore
    alone = evaluate(make_classifier(), broken, spec, replace(HERE, allow_missing=True))
    alone.write_scores(tmp_path / "alone.csv")
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone.to_json()
        assert (tmp_path / f"{rank}.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
