"""The demo on a few clips and updates: its stages, stopping and going on, and its honesty."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import tubelet
from tubelet.data import toy
from tubelet.data.clips import Key
from tubelet.data.decode import Video
from tubelet.data.lists import read_list
from tubelet.data.remembered import Remembered, decode_all
from tubelet.demo import Demo, DemoConfig, demo, lab
from tubelet.demo import stages as module
from tubelet.demo.lab import Lab
from tubelet.demo.runs import BOTH, CLIP, IMAGE, VIDEO
from tubelet.errors import TubeletError
from tubelet.teachers import load_teacher
from tubelet.train import checkpoint

TINY: dict[str, Any] = {
    "image_steps": 3,
    "video_steps": 4,
    "student_steps": 2,
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
def done(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo(tmp_path_factory.mktemp("demo") / "out", DemoConfig(**TINY), console=quiet())


def test_it_leaves_a_table_a_picture_and_runs_that_can_be_used(done: Demo) -> None:
    text = io.StringIO()
    Console(file=text, width=100).print(done.table())
    for part in ("what: 10 digits", "how: 8 motions", "12.5%", "image teacher", "student of both"):
        assert part in text.getvalue()
    assert Image.open(done.picture).size[0] > 800
    assert len(list((done.out / "reconstructions").glob("*.png"))) == 3
    model = tubelet.load(done.runs["student of both"])
    assert model.card.run["image_teacher"] == str(done.out / "seed-0" / "image-teacher")
    assert model.forward_features(torch.rand(1, 3, 8, 32, 32)).shape == (1, 64, 128)


def test_results_hold_what_the_table_says(done: Demo) -> None:
    results = json.loads(done.results.read_text())["seeds"][0]
    for encoder, scores in done.scores.items():
        for label, score in scores.items():
            own, random = (results[name][label]["accuracy"] for name in (encoder, "random"))
            assert score.accuracies == (own,)
            assert score.gain == pytest.approx(100 * (own - random))
            assert score.low <= score.gain <= score.high
            tried, of_random = (results[name][label]["tried"] for name in (encoder, "random"))
            # The same settings were tried for every encoder.
            same = [[(t["lr"], t["weight_decay"]) for t in each] for each in (tried, of_random)]
            assert same[0] == same[1] and len(tried) == 6


def test_students_learn_from_the_teachers_that_they_are_named_after(done: Demo) -> None:
    folder = done.out / "seed-0"
    learned = {name: tubelet.load(path).card.run for name, path in done.runs.items()}
    weights = {
        name: (learned[name]["image"]["weight"], learned[name]["video"]["weight"])
        for name in learned
        if name.startswith("student")
    }
    assert weights == {
        "student of image": (0.2, 0.0),
        "student of video": (0.0, 1.0),
        "student of both": (0.2, 1.0),
    }
    # What the student is given of a clip is what its teachers make of it, to half precision.
    made = Lab(folder, CLIP)
    clips = made.clips("train")[:3]
    model = BOTH.model()
    teachers = {n: load_teacher(folder / f"{n}-teacher") for n in ("image", "video")}
    lab.connect(model, teachers)
    stored = lab.stored_features(model, teachers, clips)
    with torch.no_grad():
        video = tubelet.load(folder / "video-teacher").backbone(
            clips.float() / 255, layers=[-1], norm=False
        )
        frames = clips[:, :, ::2].float().transpose(1, 2).flatten(0, 1)[:, :, None] / 255
        image = tubelet.load(folder / "image-teacher").backbone(frames, layers=[-1], norm=False)
    made_of = {
        "video": video.layers[0],
        "image": image.layers[0].unflatten(0, (3, 4)).flatten(1, 2),
    }
    for name, raw in made_of.items():
        normed = torch.nn.functional.layer_norm(raw, (128,), eps=1e-6)
        torch.testing.assert_close(stored[f"features_{name}"], normed.half())


def test_the_random_encoder_is_the_one_that_training_began_with(
    done: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = module._stages(Lab(done.out / "seed-0", CLIP), done.out / "new", DemoConfig(**TINY), 0)
    begun: dict[str, torch.Tensor] = {}

    def fit(task: Any, *_: Any, **__: Any) -> None:
        begun.update({k: v.clone() for k, v in task.model.backbone.state_dict().items()})

    probed: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(lab, "fit", fit)
    monkeypatch.setattr(lab, "probes", lambda _l, m, _n: probed.append(m.backbone.state_dict()))
    module.train_stage(stages["video teacher"])
    module.probe_stage(stages["random"])
    assert begun.keys() == probed[0].keys()
    assert all(torch.equal(probed[0][name], value) for name, value in begun.items())
    trained = tubelet.load(done.runs["video teacher"]).backbone.state_dict()
    assert not torch.equal(trained["blocks.0.mlp.fc1.weight"], begun["blocks.0.mlp.fc1.weight"])


def test_again_costs_nothing_and_says_the_same(done: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("fit", "probe", "decode_all"):
        monkeypatch.setattr(lab, stage, None)
    monkeypatch.setattr(toy, "render", None)
    again = demo(done.out, DemoConfig(**TINY), console=quiet())
    assert again.scores == done.scores


def test_a_stopped_demo_goes_on_and_ends_the_same(
    done: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save
    out = tmp_path / "out"

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)  # all updates done, and none of them kept
    with pytest.raises(KeyboardInterrupt):
        demo(out, DemoConfig(**TINY), console=quiet())
    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(lab, "probe", killed)
    with pytest.raises(KeyboardInterrupt):
        demo(out, DemoConfig(**TINY), console=quiet())
    monkeypatch.undo()
    assert demo(out, DemoConfig(**TINY), console=quiet()).scores == done.scores


def test_processes_side_by_side_end_the_same(done: Demo, tmp_path: Path) -> None:
    config = DemoConfig(**(TINY | {"workers": 2}))
    beside = demo(tmp_path / "out", config, console=quiet())
    own, theirs = (
        np.array([[s.mean for s in of.values()] for of in one.scores.values()])
        for one in (done, beside)
    )
    # Other numbers of threads round otherwise: of 80 clips, some may be read otherwise.
    assert np.abs(own - theirs).max() < 0.06


def test_more_seeds_keep_the_first(done: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads((done.out / "seed-0" / "result.json").read_text())
    other = json.loads(json.dumps(record))
    other["student of both"]["how"]["accuracy"] += 0.25
    (done.out / "seed-1").mkdir()
    (done.out / "seed-1" / "result.json").write_text(json.dumps(other))
    monkeypatch.setattr(lab, "fit", None)
    both = demo(done.out, DemoConfig(**TINY, seeds=2), console=quiet())
    score = both.scores["student of both"]["how"]
    assert len(score.accuracies) == 2
    assert score.gain == pytest.approx(done.scores["student of both"]["how"].gain + 12.5)
    half = 12.706 * (25 / 2**0.5) / 2**0.5  # Student's t, one degree of freedom
    assert score.high - score.gain == pytest.approx(half)
    text = io.StringIO()
    Console(file=text, width=100).print(both.table())
    assert "mean of 2 seeds" in " ".join(text.getvalue().split())


def test_other_options_in_the_same_folder_are_refused(done: Demo) -> None:
    with pytest.raises(TubeletError, match=r"other options \(video_steps was 4, now 5\)"):
        demo(done.out, DemoConfig(**(TINY | {"video_steps": 5})), console=quiet())


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
    done: Demo,
) -> None:
    videos = read_list(done.out / "seed-0" / "videos" / "val_what.csv")
    clips = decode_all(videos, CLIP, workers=0)
    assert clips.shape == (80, 3, 8, 32, 32)
    with Video(videos.entries[7].path) as video:
        assert torch.equal(clips[7], video.frames(range(8)).permute(3, 0, 1, 2))
    kept = [
        Remembered(videos, clips, CLIP, seed=seed, mask=VIDEO.draw_hidden) for seed in (0, 0, 1)
    ]
    drawn = [
        torch.stack([data[Key(epoch, i)][0].hidden for epoch in (0, 1) for i in range(20)])  # type: ignore[misc]
        for data in kept
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][:20], drawn[0][20:])
    assert (drawn[0].sum(-1) == 32).all()
    (plain,) = Remembered(videos, clips, CLIP, seed=0)[Key(0, 7)]
    assert plain.hidden is None and plain.label == videos.entries[7].label


def test_an_unreadable_video_is_no_clip_to_remember(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(TubeletError, match=r"a\.mp4"):
        decode_all(read_list([str(tmp_path / "a.mp4")]), CLIP, workers=0)


def test_an_image_is_a_frame_of_the_clip_drawn_by_seed_epoch_and_index(done: Demo) -> None:
    made = Lab(done.out / "seed-0", CLIP)
    clips = made.clips("val")
    videos = made.videos("val")
    data = Remembered(videos, clips, IMAGE.clip, seed=0, mask=IMAGE.draw_hidden)
    drawn = [data[Key(epoch, 3)][0].views["clip"] for epoch in range(30)]
    found = {
        next(t for t in range(8) if torch.equal(image[:, 0], clips[3][:, t])) for image in drawn
    }
    assert drawn[0].shape == (3, 1, 32, 32) and len(found) > 4
    assert torch.equal(data[Key(5, 3)][0].views["clip"], drawn[5])
