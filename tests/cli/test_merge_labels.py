"""merge-labels on files: lists that train heads, maps that agree with them, folders kept whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small import write_video

import tubelet as library
from tubelet import heads, stored
from tubelet.cli import main
from tubelet.data.lists import read_list
from tubelet.errors import TubeletError
from tubelet.model import Classifier
from tubelet.tasks.evaluate import EvaluateConfig
from tubelet.verbs import MergeConfig, merge_labels

Contents = dict[str, bytes]


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sets whose files are there, but hold nothing: k400 by number, k600 by name."""
    rows = {
        "k400": {"train": "aa 0 ab 1 ac 2 ad 0 va 1", "val": "ka 0 kb 2"},
        "k600": {"train": "ba,hugging baby bb,diving aa,bowling ka,diving", "val": "va,diving"},
    }
    for of, splits in rows.items():
        (tmp_path / of).mkdir()
        for split, text in splits.items():
            words = text.replace("hugging baby", "hugging_baby").split()
            pairs = [word.split(",") for word in words]
            if len(pairs[0]) == 1:
                pairs = list(zip(words[::2], words[1::2], strict=True))
            lines = [f"{a}.mp4,{b.replace('_', ' ')}\n" for a, b in pairs]
            (tmp_path / of / f"{split}.csv").write_text("".join(lines))
            for name, _ in pairs:
                (tmp_path / of / f"{name}.mp4").touch()
    (tmp_path / "k400_classes.txt").write_text("yoga\nhugging\nbowling\n\n")
    (tmp_path / "renames.csv").write_text("hugging,hugging baby\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


LISTS = {"k400": "k400/train.csv", "k600": "k600/train.csv"}
VAL = {"k400": "k400/val.csv", "k600": "k600/val.csv"}
NAMES = {"k400": "k400_classes.txt"}
RENAME = MergeConfig(rename="renames.csv")


def contents(folder: Path) -> Contents:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_written(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [*(f"{of}={path}" for of, path in LISTS.items()), "--out", "merged"]
    args += ["--val", *(f"{of}={path}" for of, path in VAL.items())]
    args += ["--classes", "k400=k400_classes.txt", "--rename", "renames.csv"]
    assert main(["merge-labels", *args]) == 0
    assert "k600 train" in capsys.readouterr().out
    rows = [
        *(("k400/aa", "yoga"), ("k400/ab", "hugging baby"), ("k400/ac", "bowling")),
        *(("k400/ad", "yoga"), ("k600/ba", "hugging baby"), ("k600/bb", "diving")),
    ]
    lines = [f"{sets / path}.mp4,{label}\n" for path, label in rows]
    assert (sets / "merged/train.csv").read_text() == "path,label\n" + "".join(lines)
    classes = ["bowling", "diving", "hugging baby", "yoga"]
    assert (sets / "merged/classes.txt").read_text().splitlines() == classes
    report = json.loads((sets / "merged/report.json").read_text())
    k600 = {"listed": 4, "in_validation": 1, "duplicates": 1, "conflicts": 2, "kept": 2}
    assert report["counts"]["train"]["k600"] == k600
    assert report["counts"]["train"]["k400"]["in_validation"] == 1
    left_out = [conflict["left_out"]["path"] for conflict in report["conflicts"]]
    assert left_out == ["k400/va.mp4", "k600/aa.mp4", "k600/ka.mp4"]
    assert report["videos"] == {"train": 6, "val": 3}


def test_names_of_other_videos_of_another_set_are_doubted(
    sets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    merge_labels(LISTS, val=VAL, classes=NAMES, out="merged", config=RENAME)
    assert "k600 train: 2 of 4 videos were left out for the names of others" in caplog.text
    caplog.clear()
    by_path = MergeConfig(rename="renames.csv", id="path")
    merged = merge_labels(LISTS, val=VAL, classes=NAMES, out="paths", config=by_path)
    assert len(merged.train) == 9 and not caplog.text


def test_maps_agree_with_the_numbers_of_a_head_trained_on_the_list(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_labels(LISTS, out="merged", val=VAL, classes=NAMES, config=RENAME)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train = read_list("../merged", split="train")
    assert train.classes == tuple(Path("../merged/classes.txt").read_text().splitlines())
    of_path = {entry.path: entry.label for entry in train.entries}
    names = Path("../k400_classes.txt").read_text().split("\n")[:3]
    for of, known in (("k400", names), ("k600", None)):
        own = read_list(f"../{of}/train.csv", labels_from=known)
        found = heads.read_head_map(f"../merged/maps/{of}.json")
        assert found.classes == own.classes
        rows = {str(Path(e.path).resolve()): e.label for e in own.entries}
        assert of_path.keys() & rows.keys(), of
        for path in of_path.keys() & rows.keys():
            label = rows[path]
            assert isinstance(label, int)
            assert found.rows[label] == of_path[path]
    val = read_list("../merged", split="val", labels_from=train)
    assert [train.classes[int(str(e.label))] for e in val.entries] == ["yoga", "bowling", "diving"]


def test_a_folder_of_splits_brings_its_validation_videos(sets: Path) -> None:
    merged = merge_labels({"k600": "k600"}, out="merged")
    assert [Path(clip.path).stem for clip in merged.val] == ["va"]
    assert merged.counts["train"]["k600"].kept == 4


def test_a_merged_folder_is_replaced_only_when_asked_to(sets: Path) -> None:
    def again(**changes: bool) -> None:
        merge_labels(LISTS, out="merged", classes=NAMES, config=MergeConfig(**changes))

    merge_labels(LISTS, out="merged", classes=NAMES, config=RENAME)
    first = contents(sets / "merged")
    merge_labels(LISTS, out="merged", classes=NAMES, config=RENAME)
    assert contents(sets / "merged") == first
    with pytest.raises(TubeletError, match=r"merged from other inputs.*--overwrite"):
        again()
    assert contents(sets / "merged") == first
    again(overwrite=True)
    assert contents(sets / "merged") != first
    assert not list(sets.glob(".merged*")), "something was left behind"
    with pytest.raises(TubeletError, match="k400 exists and holds no merged labels"):
        merge_labels(LISTS, out="k400", classes=NAMES, config=MergeConfig(overwrite=True))


def test_what_else_was_put_into_the_folder_is_not_removed(sets: Path) -> None:
    merge_labels(LISTS, val=VAL, out="merged", classes=NAMES)
    (sets / "merged/runs").mkdir()
    (sets / "merged/runs/weights").touch()
    for overwrite in (False, True):
        with pytest.raises(TubeletError, match=r"more than merged labels \(runs\)"):
            again = MergeConfig(overwrite=overwrite)
            merge_labels(LISTS, val=VAL, out="merged", classes=NAMES, config=again)
    assert (sets / "merged/runs/weights").exists()


def test_a_merge_that_fails_leaves_the_folder_before(
    sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_labels(LISTS, out="merged", classes=NAMES)
    first = contents(sets / "merged")
    real: Callable[..., int] = Path.write_text

    def full(path: Path, *args: str, **named: str) -> int:
        if path.name == "report.json":
            raise OSError(28, "No space left on device")
        return real(path, *args, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(TubeletError, match="cannot be written to merged: No space left"):
        merge_labels(LISTS, out="merged", classes=NAMES, config=MergeConfig(overwrite=True))
    assert contents(sets / "merged") == first
    assert not list(sets.glob(".merged*"))


@pytest.mark.parametrize("text", ["yoga\nyoga\nbowling\n", "yoga\n\nbowling\n", ""])
def test_files_of_class_names_that_cannot_be(sets: Path, text: str) -> None:
    (sets / "k400_classes.txt").write_text(text)
    with pytest.raises(TubeletError, match=r"k400_classes.txt has .*one name in each line"):
        merge_labels(LISTS, out="merged", classes=NAMES)


def test_sets_that_cannot_be(sets: Path) -> None:
    with pytest.raises(TubeletError, match="No lists were given"):
        merge_labels({}, out="merged")
    with pytest.raises(TubeletError, match=r"A set is called '\.\./k400'"):
        merge_labels({"../k400": "k600/train.csv"}, out="merged")
    assert not Path("merged").exists()


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: Path) -> Path:
    """A run on a merged set of two; runs/merged and merged/ in the working folder."""
    monkeypatch.chdir(tmp_path)
    for of, names in (("one", ("left", "right")), ("two", ("aside", "down"))):
        lines = []
        for i in range(4):
            write_video(tmp_path / f"{of}{i}.mp4", seed=i)
            lines.append(f"{of}{i}.mp4,{names[i % 2]}\n")
        (tmp_path / f"{of}.csv").write_text("".join(lines))
    (tmp_path / "renames.csv").write_text("aside,left\n")
    config = MergeConfig(rename="renames.csv")
    merge_labels({"one": "one.csv", "two": "two.csv"}, out="merged", config=config)
    args = [
        "finetune",
        "--weights",
        str(world / "runs/pre"),
        "--data",
        "merged",
        "--out",
        "runs/merged",
    ]
    assert main([*args, *STEPS, "--init-scale", "20"]) == 0
    return tmp_path


STEPS = ["--steps", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--no-progress"]
MAP = ["--head-map", "merged/maps/two.json"]


def test_a_run_goes_on_with_the_rows_of_its_set(trained: Path) -> None:
    args = ["finetune", "--weights", "runs/merged", "--data", "two.csv", "--out", "runs/two"]
    assert main([*args, "--head", "rows", *MAP, *STEPS, "--lr", "0"]) == 0
    merged, two = library.load("runs/merged"), library.load("runs/two")
    assert isinstance(merged, Classifier)
    assert isinstance(two, Classifier)
    assert merged.card.classes == ("down", "left", "right")
    assert two.card.classes == ("aside", "down")
    merged_weights, weights = merged.state_dict(), two.state_dict()
    for name, value in weights.items():  # at a rate of 0 nothing was learned
        wanted = merged_weights[name][[1, 0]] if name.startswith("head.") else merged_weights[name]
        assert value.equal(wanted), name


def test_a_merged_model_is_scored_on_one_set(trained: Path) -> None:
    config = EvaluateConfig(segments=1, crops=1, workers=0, device="cpu")
    result = library.evaluate("runs/merged", "two.csv", config, head_map="merged/maps/two.json")
    assert result.classes == ("aside", "down")
    assert result.labels.tolist() == [0, 1, 0, 1]
    whole = library.evaluate("runs/merged", [("two0.mp4", "left"), ("two1.mp4", "down")], config)
    # Softmax over all classes, then over these alone: their shares are the same.
    share = whole.scores[:, [1, 0]] / whole.scores[:, [1, 0]].sum(1, keepdim=True)
    assert (result.scores[:2] - share).abs().max() < 1e-6
    assert (
        main(["evaluate", "runs/merged", "two.csv", *MAP, "--workers", "0", "--out", "found"]) == 0
    )
    assert json.loads(Path("found/evaluation.json").read_text())["videos"] == 4
    part = heads.gathered(stored.load("runs/merged"), "merged/maps/two.json")  # pyright: ignore[reportArgumentType]
    stored.save(part, "two.safetensors")
    again = library.evaluate("two.safetensors", "two.csv", config)
    assert again.scores.equal(result.scores)
