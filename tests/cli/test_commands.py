"""Whole commands on small videos: what they print, write, and leave for one another."""

import csv
import json
from pathlib import Path

import pytest
import torch
from small import TINY, TINY_DECODER, TINY_NET, write_video

import tubelet as library
from tubelet.errors import TubeletError
from tubelet.model import Classifier, MaskedModel
from tubelet.train import checkpoint

PRETRAIN = ["pretrain", "videomae:small_k400", "--data", "videos"]
SIZES = [*TINY, *TINY_NET, *TINY_DECODER, "--mask-ratio", "0.75", "--batch-size", "2"]


def test_help_lists_the_verbs_and_each_verb_has_help(tubelet) -> None:
    code, out, _ = tubelet("--help")
    assert code == 0
    for verb in ("pretrain", "finetune", "evaluate", "predict", "reconstruct", "check", "doctor"):
        assert f"  {verb} " in out
        code, shown, _ = tubelet(verb, "--help")
        assert code == 0
        assert "usage: tubelet" in shown
    assert tubelet("--version")[1].startswith("tubelet 0.")


def test_pretraining_leaves_a_model_that_loads(tubelet, inside: Path) -> None:
    model = library.load("runs/pre")
    assert isinstance(model, MaskedModel)
    assert not model.training
    assert model.card.clip.size == (32, 32)
    header = checkpoint.read_header("runs/pre")
    assert header["run"]["mask_ratio"] == 0.75
    assert header["run"]["type"] == "tubelet.methods.videomae:VideoMAE"
    assert header["library"] == library.__version__
    weights = checkpoint.load_weights("runs/pre")
    assert all(torch.equal(weights[n], t) for n, t in model.state_dict().items())


def test_config_json_repeats_a_run_bit_for_bit(tubelet, inside: Path) -> None:
    code, _, err = tubelet("pretrain", "--from", "runs/pre/config.json", "--out", "runs/again")
    assert code == 0, err
    first, again = (checkpoint.load_weights(f"runs/{name}") for name in ("pre", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_resume_goes_on_and_a_finished_run_stays(tubelet, inside: Path) -> None:
    whole = [*PRETRAIN, *SIZES, "--steps", "4", "--save-every-steps", "2"]
    assert tubelet(*whole, "--out", "runs/whole")[0] == 0
    assert tubelet(*whole, "--out", "runs/parts")[0] == 0
    newest = checkpoint.latest(inside / "runs/parts")
    assert newest is not None
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert tubelet(*whole, "--out", "runs/parts", "--resume")[0] == 0
    one, other = (checkpoint.load_weights(f"runs/{name}") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert tubelet(*whole, "--out", "runs/parts", "--resume")[0] == 0


def test_finetuning_keeps_class_names_and_drops_what_is_published(tubelet, inside: Path) -> None:
    model = library.load("runs/fine")
    assert isinstance(model, Classifier)
    assert model.card.classes == ("left", "right")
    assert model.card.label_kind == "single"
    metrics = [
        json.loads(line) for line in Path("runs/fine/metrics.jsonl").read_text().splitlines()
    ]
    assert any("top1" in json.dumps(row) for row in metrics), "val/ was not scored"


@pytest.mark.parametrize(
    ("lines", "kind", "outputs"),
    [
        ("videos/{} 0 2\n", "multi", 3),
        ("videos/{} 0.25 1.5\n", "regression", 2),
    ],
)
def test_several_labels_and_numbers(
    tubelet, inside: Path, lines: str, kind: str, outputs: int
) -> None:
    rows = [lines.format(f"{i}.mp4") for i in range(4)]
    if kind == "multi":
        rows[1] = "videos/1.mp4 1\n"
    Path(f"{kind}.csv").write_text("".join(rows))
    options = ["--steps", "1", "--batch-size", "4", "--workers", "0", "--device", "cpu"]
    out = f"runs/{kind}"
    code, _, err = tubelet(
        "finetune", "--weights", "runs/pre", "--data", f"{kind}.csv", "--out", out, *options
    )
    assert code == 0, err
    model = library.load(out)
    assert isinstance(model, Classifier)
    assert (model.card.label_kind, model.num_classes) == (kind, outputs)
    code, shown, err = tubelet("evaluate", out, f"{kind}.csv", "--workers", "0", "--crops", "1")
    assert code == 0, err
    assert ("mAP" if kind == "multi" else "R2") in shown


def test_finetuning_begins_with_the_pretrained_weights(tubelet, inside: Path) -> None:
    options = ["--steps", "1", "--batch-size", "4", "--workers", "0", "--lr", "0", "--min-lr", "0"]
    code, _, err = tubelet(
        *("finetune", "--weights=runs/pre", "--data", "labelled", "--out", "runs/still", *options)
    )
    assert code == 0, err
    before, after = (checkpoint.load_weights(f"runs/{name}") for name in ("pre", "still"))
    trunk = [name for name in after if name.startswith("backbone.")]
    assert len(trunk) > 20
    assert all(torch.equal(before[name], after[name]) for name in trunk)
    dropped = {n for n in before if n not in after}
    assert {n.split(".")[0] for n in dropped} == {"branches", "backbone"}
    assert {n for n in dropped if n.startswith("backbone.")} == {
        "backbone.norm.weight",
        "backbone.norm.bias",
    }


def test_options_may_come_before_the_run(tubelet, inside: Path) -> None:
    code, _, err = tubelet(
        *("finetune", "videomae:small_ssv2_finetune", "--data", "labelled", "--out", "runs/ss"),
        *("--steps", "1", "--batch-size", "4", *TINY, *TINY_NET),
    )
    assert code == 0, err
    code, _, err = tubelet(
        *("evaluate", "--workers", "0", "--out", "runs/ss/test", "runs/ss", "labelled")
    )
    assert code == 0, err
    assert json.loads(Path("runs/ss/test/evaluation.json").read_text())["views"] == "4x2x3"


def test_a_folder_with_only_a_train_split_is_not_scored_by_accident(tubelet, inside: Path) -> None:
    for label in ("left", "right"):
        write_video(inside / f"only/train/{label}/0.mp4")
    code, _, err = tubelet("evaluate", "runs/fine", "only", "--workers", "0")
    assert code == 1
    assert "--split train" in err
    assert tubelet("evaluate", "runs/fine", "only", "--workers", "0", "--split", "train")[0] == 0


def test_resuming_on_another_list_is_noticed(tubelet, inside: Path) -> None:
    for i in range(4):
        write_video(inside / f"growing/{i}.mp4", seed=i)
    options = ["pretrain", "videomae:small_k400", "--data", "growing", *SIZES, "--out", "runs/grow"]
    assert tubelet(*options, "--steps", "1")[0] == 0
    write_video(inside / "growing/9.mp4")
    code, _, err = tubelet(*options, "--steps", "2", "--resume")
    assert code == 0, err
    assert "header.list.videos: 5, was 4" in err


def test_a_run_is_named_or_repeated_not_both(tubelet, inside: Path) -> None:
    code, _, err = tubelet(*PRETRAIN, "--from", "runs/pre/config.json", "--out", "runs/new")
    assert code == 1
    assert "choose one" in err
    code, _, err = tubelet("pretrain", "videomae:base_k400_finetune", "--out", "runs/new")
    assert code == 1
    assert err.strip().endswith("is a run for `tubelet finetune`.")
    code, _, err = tubelet("pretrain", "videomae:VideoMAE", "--out", "runs/new")
    assert code == 1
    assert "has no run 'VideoMAE'" in err


def test_a_run_class_of_a_users_file_can_be_loaded_again(tubelet, inside: Path) -> None:
    Path("own_runs.py").write_text(
        "from dataclasses import dataclass\n"
        "from tubelet.methods.videomae import VideoMAE\n"
        "@dataclass(frozen=True)\n"
        "class Mine(VideoMAE):\n"
        "    extra: int = 3\n"
        "run = Mine(source='ours')\n"
    )
    code, _, err = tubelet(
        *("pretrain", "./own_runs.py:run", "--data", "videos", "--out", "runs/own"),
        *SIZES,
        *("--steps", "1"),
    )
    assert code == 0, err
    model = library.load("runs/own", trust_code=True)
    assert model.card.run["extra"] == 3
    code, _, err = tubelet("reconstruct", "runs/own", "videos/0.mp4")
    assert code == 1
    assert "loading it runs that code" in err


def test_from_scratch_with_an_encoder_of_any_size(tubelet, inside: Path) -> None:
    options = ["--steps", "1", "--batch-size", "4", *TINY, *TINY_NET]
    code, _, err = tubelet("finetune", "--data", "labelled", "--out", "runs/scratch", *options)
    assert code == 0, err
    assert library.load("runs/scratch").backbone.dim == 32


def test_finetuning_at_another_size_keeps_the_trained_positions(tubelet, inside: Path) -> None:
    options = ["--steps", "1", "--batch-size", "4", "--workers", "0", "--size", "48", "40"]
    code, _, err = tubelet(
        *("finetune", "--weights", "runs/pre", "--data", "labelled", "--out", "runs/larger"),
        *options,
    )
    assert code == 0, err
    assert "resized from the trained grid 2x4x4 to 2x6x5" in err
    model = library.load("runs/larger")
    assert model.backbone.trained == (4, 32, 32)
    assert model.card.clip.size == (48, 40)


def test_evaluate_takes_the_test_split_and_writes_a_report(tubelet, inside: Path) -> None:
    code, out, err = tubelet(
        "evaluate", "runs/fine", "labelled", "--out", "runs/report", "--workers", "0"
    )
    assert code == 0, err
    report = json.loads(Path("runs/report/evaluation.json").read_text())
    assert report["views"] == "4x5x3"
    assert report["list"] == "labelled/val"
    assert report["videos"] == 4
    assert "top-1 (video)" in out


def test_predict_writes_json_and_csv(tubelet, inside: Path) -> None:
    write_video(inside / "long.mp4", frames=60)
    code, out, err = tubelet("predict", "runs/fine", "long.mp4", "videos", "--out", "answers.json")
    assert code == 0, err
    files = json.loads(Path("answers.json").read_text())["files"]
    assert len(files) == 7
    assert len(files[0]["windows"]) >= 7
    assert "long.mp4" in out
    assert tubelet("predict", "runs/fine", "long.mp4", "--out", "answers.csv")[0] == 0
    rows = list(csv.DictReader(Path("answers.csv").read_text().splitlines()))
    assert {row["class"] for row in rows} == {"left", "right"}


def test_predict_names_what_it_cannot_read_and_goes_on(tubelet, inside: Path) -> None:
    Path("notes.mp4").write_text("no video")
    code, out, _ = tubelet("predict", "runs/fine", "notes.mp4", "videos/0.mp4")
    assert code == 1
    assert "notes.mp4" in out
    assert "0.mp4" in out


def test_reconstruct_draws_with_the_masks_of_the_run(tubelet, inside: Path) -> None:
    code, out, err = tubelet("reconstruct", "runs/pre", "videos/0.mp4", "--out", "pictures")
    assert code == 0, err
    for line in out.split():
        assert Path(line).stat().st_size > 1000
    code, _, err = tubelet("reconstruct", "runs/fine", "videos/0.mp4")
    assert code == 1
    assert "no decoder" in err


def test_doctor_and_list(tubelet, inside: Path) -> None:
    code, out, _ = tubelet("doctor", "--json", "doctor.json")
    assert code == 0
    assert "torch" in out
    assert json.loads(Path("doctor.json").read_text())["ok"] is True
    code, out, _ = tubelet("list")
    assert code == 0
    assert "videomae:base_k400" in out


def test_the_python_functions_mirror_the_verbs(inside: Path) -> None:
    out = library.pretrain(
        "videomae:small_k400", data="videos", out="runs/python", steps=1, batch_size=2, workers=0,
        num_frames=4, size=(32, 32), mask_ratio=0.75,
        encoder=library.load("runs/pre").backbone.shape,
    )  # fmt: skip
    assert isinstance(library.load(out), MaskedModel)
    with pytest.raises(TubeletError, match="is a run for `tubelet finetune`"):
        library.pretrain("videomae:base_k400_finetune", data="videos", out="runs/wrong")
    with pytest.raises(TubeletError, match="has no labels"):
        library.finetune(data="videos", out="runs/wrong")


def test_create_by_published_names_and_by_run() -> None:
    model = library.create("vit_small_patch16_224", num_classes=7, num_frames=4, img_size=32)
    assert model(torch.rand(1, 3, 4, 32, 32)).shape == (1, 7)
    pooled = library.create("vit_small_patch16_224", num_classes=0, num_frames=4, img_size=32)
    assert pooled(torch.rand(1, 3, 4, 32, 32)).shape == (1, 384)
    grey = library.create("pretrain_videomae_small_patch16_224", img_size=(32, 64), in_chans=1)
    assert isinstance(grey, MaskedModel)
    assert grey.branches["pixels"].target.width == 2 * 16 * 16
    assert "vit_huge_patch16_224" in library.list_models()
    other = library.create("vit_small_patch16_224", in_chans=4, mean=(0.5,) * 4, std=(0.2,) * 4)
    assert other.backbone.in_chans == 4
    with pytest.raises(TubeletError, match="in_chans=4 has no usual statistics"):
        library.create("vit_small_patch16_224", in_chans=4)
    assert library.create("videomae:small_ssv2").card.clip.sampling_rate == 2
    with pytest.raises(TubeletError, match="There is no model 'resnet50'"):
        library.create("resnet50")


def test_create_with_the_weights_of_a_checkpoint(inside: Path) -> None:
    with pytest.raises(TubeletError, match="of another network: width 32 where"):
        library.create("vit_small_patch16_224", num_classes=2, checkpoint_path="runs/fine")


def test_an_unexpected_error_is_said_to_be_ours(tubelet, monkeypatch: pytest.MonkeyPatch) -> None:
    from tubelet import cli

    def broken(args: list[str]) -> int:
        raise ValueError("something odd")

    monkeypatch.setitem(cli.VERBS, "list", broken)
    code, _, err = tubelet("list")
    assert code == 70
    assert "ValueError: something odd" in err
    assert "--debug" in err
    with pytest.raises(ValueError, match="odd"):
        tubelet("list", "--debug")


def test_similarity_of_models_side_by_side(tubelet, inside: Path) -> None:
    args = ["similarity", "runs/pre", "videos", "--with", "runs/fine", "--out", "runs/alike"]
    code, out, err = tubelet(*args, "--device", "cpu")
    assert code == 0, err
    assert "pre" in out
    assert "fine" in out
    result = json.loads((inside / "runs/alike/similarity.json").read_text())
    assert result["clip"]["num_frames"] == 4  # as the run
    assert result["clip"]["sampling_rate"] == 2
    assert [model["name"] for model in result["models"]] == ["pre", "fine"]
    assert len(result["videos"]) == 6
    code, out, _ = tubelet(
        *("similarity", "runs/pre", "videos/0.mp4", "--out", "runs/alike", "--num-frames", "8"),
        *("--device", "cpu", "--sampling-rate", "1"),
    )
    assert code == 0
    assert json.loads((inside / "runs/alike/0.json").read_text())["models"][0]["grid"][0] == 4
    for name in ("0.png", "0.csv", "similarity.png", "similarity.csv"):
        assert (inside / "runs/alike" / name).stat().st_size > 0


def test_what_similarity_leaves_out_is_said(tubelet, inside: Path) -> None:
    write_video(inside / "brief/short.mp4", frames=3)
    code, out, _ = tubelet(
        *("similarity", "runs/pre", "videos/0.mp4", "brief/short.mp4", "--device", "cpu"),
        *("--out", "runs/left"),
    )
    assert code == 0
    assert "left out: brief/short.mp4" in out
