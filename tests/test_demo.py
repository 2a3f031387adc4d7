"""The demo on a few clips and updates: its stages, stopping and going on, and its honesty."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import tubelet
from tubelet import demo as module
from tubelet.data import toy
from tubelet.data.lists import read_list
from tubelet.data.remembered import Remembered, decode_all
from tubelet.demo import RUN, DemoConfig, demo
from tubelet.errors import TubeletError
from tubelet.train import checkpoint

TINY: dict[str, Any] = {
    "steps": 4,
    "train": 128,
    "labelled": 128,
    "val": 80,
    "test": 80,
    "workers": 0,
    "device": "cpu",
}


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> module.Demo:
    return demo(tmp_path_factory.mktemp("demo") / "out", DemoConfig(**TINY), console=quiet())


def test_it_leaves_a_table_a_picture_and_a_run_that_can_be_used(done: module.Demo) -> None:
    text = io.StringIO()
    Console(file=text, width=100).print(done.table())
    for part in ("what: 10 digits", "how: 8 motions", "12.5%", "interval", "frame masks"):
        assert part in text.getvalue()
    assert Image.open(done.picture).size[0] > 800
    assert len(list((done.out / "reconstructions").glob("*.png"))) == 3
    model = tubelet.load(done.runs[0])
    assert model.card.run["mask_type"] == "frame"
    clip = torch.rand(1, 3, *model.backbone.trained)
    assert model.forward_features(clip).shape == (1, 64, 128)


def test_results_hold_what_the_table_says(done: module.Demo) -> None:
    results = json.loads(done.results.read_text())
    for label, score in done.scores.items():
        one = results["seeds"][0]
        accuracies = [one[name][label]["accuracy"] for name in ("random", "pretrained")]
        assert [score.random[0], score.pretrained[0]] == accuracies
        assert score.gain == pytest.approx(100 * (accuracies[1] - accuracies[0]))
        assert score.low <= score.gain <= score.high
        # The same settings were tried for both encoders.
        tried = [
            [(t["lr"], t["weight_decay"]) for t in one[name][label]["tried"]]
            for name in ("random", "pretrained")
        ]
        assert tried[0] == tried[1] and len(tried[0]) == 6


def test_the_random_encoder_is_the_one_that_pretraining_began_with(
    tmp_path: Path, done: module.Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = done.out / "seed-0"
    run = module._run(folder, DemoConfig(**TINY), 0)
    videos = read_list(folder / "videos" / "train_what.csv")
    begun: list[dict[str, torch.Tensor]] = []

    def fit(task: Any, *_: Any, **__: Any) -> None:
        begun.append({k: v.clone() for k, v in task.model.backbone.state_dict().items()})

    monkeypatch.setattr(module, "fit", fit)
    _, random = module._pretrain(run, videos, torch.empty(0), tmp_path / "new", quiet())
    assert begun[0].keys() == random.state_dict().keys()
    assert all(torch.equal(random.state_dict()[k], v) for k, v in begun[0].items())
    trained, same = module._pretrain(run, videos, torch.empty(0), folder / "pretrain", quiet())
    assert torch.equal(same.patch_embed.proj.weight, random.patch_embed.proj.weight)
    assert not torch.equal(trained.patch_embed.proj.weight, random.patch_embed.proj.weight)


def test_again_costs_nothing_and_says_the_same(
    done: module.Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("fit", "probe", "frozen_features", "decode_all"):
        monkeypatch.setattr(module, stage, None)
    monkeypatch.setattr(toy, "render", None)
    again = demo(done.out, DemoConfig(**TINY), console=quiet())
    assert again.scores == done.scores


def test_a_stopped_demo_goes_on_and_ends_the_same(
    done: module.Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save
    out = tmp_path / "out"

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)  # all updates done, and none of them kept
    with pytest.raises(KeyboardInterrupt):
        demo(out, DemoConfig(**TINY), console=quiet())
    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(module, "probe", killed)
    with pytest.raises(KeyboardInterrupt):
        demo(out, DemoConfig(**TINY), console=quiet())
    monkeypatch.undo()
    assert demo(out, DemoConfig(**TINY), console=quiet()).scores == done.scores


def test_more_seeds_keep_the_first(done: module.Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads((done.out / "seed-0" / "result.json").read_text())
    other = json.loads(json.dumps(record))
    other["pretrained"]["how"]["accuracy"] += 0.25
    (done.out / "seed-1").mkdir()
    (done.out / "seed-1" / "result.json").write_text(json.dumps(other))
    monkeypatch.setattr(module, "fit", None)
    both = demo(done.out, DemoConfig(**TINY, seeds=2), console=quiet())
    score = both.scores["how"]
    assert len(score.random) == 2
    assert score.gain == pytest.approx(done.scores["how"].gain + 12.5)
    half = 12.706 * (25 / 2**0.5) / 2**0.5  # Student's t, one degree of freedom
    assert score.high - score.gain == pytest.approx(half)
    text = io.StringIO()
    Console(file=text, width=100).print(both.table())
    assert "mean of 2 seeds" in " ".join(text.getvalue().split())


def test_other_options_in_the_same_folder_are_refused(done: module.Demo) -> None:
    with pytest.raises(TubeletError, match=r"other options \(steps was 4, now 5\)"):
        demo(done.out, DemoConfig(**(TINY | {"steps": 5})), console=quiet())


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("")
    with pytest.raises(TubeletError, match="holds no demo"):
        demo(tmp_path, DemoConfig(**TINY), console=quiet())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds 0: at least 1"),
        ({"labelled": 200}, "labelled 200: at most train, 128"),
        ({"difficulty": "mild"}, "'mild': expected easy"),
    ],
)
def test_demos_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TubeletError, match=message):
        demo(tmp_path / "out", DemoConfig(**(TINY | changes)), console=quiet())
    assert not (tmp_path / "out").exists()


def test_remembered_clips_are_the_files_and_masks_follow_seed_epoch_and_index(
    done: module.Demo,
) -> None:
    from tubelet.data.clips import Key
    from tubelet.data.decode import Video

    videos = read_list(done.out / "seed-0" / "videos" / "val_what.csv")
    clips = decode_all(videos, RUN.clip, workers=0)
    assert clips.shape == (80, 3, 8, 32, 32)
    with Video(videos.entries[7].path) as video:
        assert torch.equal(clips[7], video.frames(range(8)).permute(3, 0, 1, 2))
    kept = [
        Remembered(videos, clips, RUN.clip, seed=seed, mask=RUN.draw_hidden) for seed in (0, 0, 1)
    ]
    drawn = [
        torch.stack([data[Key(epoch, i)][0].hidden for epoch in (0, 1) for i in range(20)])  # type: ignore[misc]
        for data in kept
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][:20], drawn[0][20:])
    assert (drawn[0].sum(-1) == 32).all()


def test_an_unreadable_video_is_no_clip_to_remember(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(TubeletError, match=r"a\.mp4"):
        decode_all(read_list([str(tmp_path / "a.mp4")]), RUN.clip, workers=0)
