"""convert and inspect: what is written is what was read, and what is not known is said."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import DECODER
from foreign_files import CLASSES, CLIP, classifier, mae, maskfeat, mvd, pretrained, videomae, write

import tubelet as library
from tubelet import stored
from tubelet.backbones.vit import ViTShape
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.interop.found import Found
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Classifier, MaskedModel

TOLD: dict[str, Any] = {"heads": 3, "trained": (4, 32, 32)}
DECODED = TOLD | {"decoder_heads": 2}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(one: Any, other: Any) -> bool:
    """The same names in the same order, and the same bits."""
    return list(one) == list(other) and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


@pytest.mark.parametrize(
    ("make", "to", "told"),
    [
        (videomae, "videomae", DECODED),
        (videomae, "videomae-v2", DECODED),
        (classifier, "videomae", TOLD | {"position": "sinusoid_1d"}),
        (mvd, "mvd", DECODED),
        (mae, "mae", DECODED | {"trained": None}),
        (maskfeat, "maskfeat", {"trained": (8, 64, 64), "pool_kv": 8}),
    ],
)
def test_there_and_back_is_bit_identical(here: Path, make: Any, to: str, told: Any) -> None:
    first = write(make(), to, here / "first.pth")
    library.convert(first, "ours.safetensors", to="tubelet", **told)
    library.convert("ours.safetensors", "again.pth", to=to)
    held, again = (torch.load(f, weights_only=True) for f in ("first.pth", "again.pth"))
    (wrapper,) = held
    assert list(again) == [wrapper]
    assert same(held[wrapper], again[wrapper])
    assert same(library.load("ours.safetensors").state_dict(), make().state_dict())


def test_order_prefixes_and_precision_of_a_file_come_back(here: Path) -> None:
    write(videomae(), "videomae", here / "plain.pth")
    state = torch.load("plain.pth", weights_only=True)["model"]
    odd = OrderedDict((f"module.{n}", state[n].half()) for n in sorted(state, reverse=True))
    torch.save({"module": odd}, "odd.pt")
    report = library.convert("odd.pt", "ours.safetensors", to="tubelet", **DECODED)
    assert any("float16" in note for note in report.notes)
    library.convert("ours.safetensors", "back.pt", to="videomae")
    assert same(torch.load("back.pt", weights_only=True)["module"], odd)


def test_a_hugging_face_folder_there_and_back(here: Path) -> None:
    model = classifier(3, ("up", "down", "still"))
    stored.save(model, "ours.safetensors")
    library.convert("ours.safetensors", "theirs", to="hf")
    assert json.loads(Path("theirs/config.json").read_text())["id2label"]["2"] == "still"
    library.convert("theirs", "back.safetensors", to="tubelet")
    back = library.load("back.safetensors")
    assert same(back.state_dict(), model.state_dict())
    assert back.card.classes == model.card.classes
    with pytest.raises(TubeletError, match="theirs exists already"):
        library.convert("ours.safetensors", "theirs", to="hf")
    Path("theirs/notes.txt").write_text("mine")
    library.convert("ours.safetensors", "theirs", to="hf", overwrite=True)
    assert Path("theirs/notes.txt").read_text() == "mine"
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_what_a_reader_would_take_as_published_is_told(here: Path) -> None:
    run = VideoMAE(clip=CLIP, encoder=ViTShape(384, 1, 12, patch=8), decoder=DECODER)
    stored.save(pretrained(run), "ours.safetensors")
    report = library.convert("ours.safetensors", "theirs.pth", to="videomae")
    says = "read it with --decoder-heads 2 --heads 12 --trained 4 32 32"
    assert any(note.endswith(says) for note in report.notes)
    assert library.inspect("theirs.pth").encoder["heads"] == 6


def test_positions_that_hugging_face_makes_anew(here: Path) -> None:
    stored.save(classifier(), "ours.safetensors")
    larger: dict[str, Any] = {"num_frames": 8, "img_size": 48}
    with pytest.raises(TubeletError, match="positions='rebuild'"):
        library.convert("ours.safetensors", "theirs", to="hf", **larger)
    library.convert("ours.safetensors", "theirs", to="hf", positions="rebuild", **larger)
    clip = torch.rand(1, 3, 8, 48, 48)
    ours = library.load("ours.safetensors", positions="rebuild", **larger)
    assert torch.allclose(library.load("theirs")(clip), ours(clip), atol=1e-6)


def test_what_would_be_read_as_another_model_is_not_written(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored.save(classifier(), "ours.safetensors")
    real = layouts.state_of

    def wrong(found: Found, to: str) -> dict[str, torch.Tensor]:
        state = real(found, to)
        state["blocks.1.mlp.fc1.bias"] = state["blocks.1.mlp.fc1.bias"] + 1e-7
        return state

    monkeypatch.setattr(layouts, "state_of", wrong)
    with pytest.raises(
        TubeletError, match=r"1 tensors differ: backbone\.blocks\.1\.mlp\.fc1\.bias"
    ):
        library.convert("ours.safetensors", "out.pth", to="videomae")
    assert [path.name for path in here.iterdir()] == ["ours.safetensors"]


@pytest.mark.parametrize("damage", ["missing block", "missing tensor", "NaN"])
def test_a_damaged_file_is_not_converted(here: Path, damage: str) -> None:
    write(videomae(), "videomae", here / "whole.pth")
    state = torch.load("whole.pth", weights_only=True)["model"]
    if damage == "NaN":
        state["encoder.norm.bias"][3] = torch.nan
    else:
        gone = "encoder.blocks.0." if damage == "missing block" else "encoder.blocks.1.norm2.bias"
        state = {name: value for name, value in state.items() if not name.startswith(gone)}
    torch.save({"model": state}, "bad.pth")
    says = {"missing block": r"blocks\.0", "missing tensor": r"norm2\.bias is missing"}
    with pytest.raises(TubeletError, match=says.get(damage, r"not finite.*norm\.bias")):
        library.convert("bad.pth", "out.safetensors", to="tubelet", **DECODED)
    assert not Path("out.safetensors").exists()


def test_the_new_file_is_read_with_what_the_report_says(tubelet, inside: Path) -> None:
    code, out, err = tubelet(
        *("convert", "runs/pre", "new/pre.pth", "--to", "videomae", "--report", "new/report.json")
    )
    assert code == 0, err
    assert out.splitlines()[-2:] == ["new/pre.pth", "new/report.json"]
    report = json.loads(Path("new/report.json").read_text())
    assert report["layout"] == "tubelet"
    assert len(report["matched"]) == len(library.load("runs/pre").state_dict())
    note = next(note for note in report["notes"] if "read it with" in note)
    flags = note.partition("read it with ")[2].split()
    code, out, err = tubelet("inspect", "new/pre.pth", *flags)
    assert code == 0, err
    assert "asked for" not in out
    code, _, err = tubelet(
        "convert", "new/pre.pth", "new/back.safetensors", "--to", "tubelet", *flags
    )
    assert code == 0, err
    back = library.load("new/back.safetensors").state_dict()
    assert same(back, library.load("runs/pre").state_dict())


def test_names_for_a_head_of_numbers(here: Path) -> None:
    write(classifier(), "videomae", here / "two.pth")
    told = TOLD | {"position": "sinusoid_1d"}
    Path("names.txt").write_text("left\nright\n")
    Path("config.json").write_text(json.dumps({"id2label": {"1": "right", "0": "left"}}))
    for i, names in enumerate((CLASSES, "names.txt", "config.json")):
        library.convert("two.pth", f"{i}.safetensors", to="tubelet", classes=names, **told)
        assert library.load(f"{i}.safetensors").card.classes == CLASSES
    with pytest.raises(TubeletError, match=r"3 names of classes.*2 outputs"):
        library.convert("two.pth", "3.safetensors", to="tubelet", classes=tuple("abc"), **told)
    with pytest.raises(TubeletError, match=r"names already \(left, right\)"):
        library.convert("0.safetensors", "4.safetensors", to="tubelet", classes=("right", "left"))


def test_part_of_a_merged_head(here: Path) -> None:
    model = classifier(5)
    write(model, "videomae", here / "five.pth")
    Path("map.json").write_text(json.dumps({"rows": [4, 0, 2], "classes": ["a", "b", "c"]}))
    told = TOLD | {"position": "sinusoid_1d", "head_map": "map.json"}
    library.convert("five.pth", "three.pth", to="videomae-v2", **told)
    state = torch.load("three.pth", weights_only=True)["model"]
    assert torch.equal(state["head.weight"], model.head.weight[[4, 0, 2]])
    assert torch.equal(state["head.bias"], model.head.bias[[4, 0, 2]])
    library.convert("five.pth", "three.safetensors", to="tubelet", **told)
    assert library.load("three.safetensors").card.classes == ("a", "b", "c")


def test_half_precision_is_written_where_numbers_fit(here: Path) -> None:
    model = videomae()
    write(model, "videomae", here / "full.pth")
    library.convert("full.pth", "half.pth", to="videomae", precision="float16", **DECODED)
    half = torch.load("half.pth", weights_only=True)["model"]
    assert {value.dtype for value in half.values()} == {torch.float16}
    back = library.load("half.pth", **DECODED).state_dict()
    assert all(torch.equal(back[n], v.half().float()) for n, v in model.state_dict().items())
    with torch.no_grad():
        model.backbone.blocks[0].mlp.fc1.bias[0] = 1e6
    stored.save(model, "large.safetensors")
    with pytest.raises(TubeletError, match=r"too large for float16: .*fc1\.bias"):
        library.convert("large.safetensors", "x.pth", to="videomae", precision="float16")
    library.convert("large.safetensors", "x.pth", to="videomae", precision="bfloat16")


def test_clips_of_another_size_are_of_our_files_and_hugging_faces(here: Path) -> None:
    write(classifier(), "videomae", here / "small.pth")
    told = TOLD | {"position": "sinusoid_1d", "num_frames": 8, "img_size": 48}
    report = library.convert("small.pth", "larger.safetensors", to="tubelet", **told)
    assert [(r.before, r.after) for r in report.resized] == [("2x4x4", "4x6x6")]
    larger = library.load("larger.safetensors")
    assert (larger.card.clip.num_frames, larger.card.clip.size) == (8, (48, 48))
    assert larger.backbone.trained == (4, 32, 32)
    with pytest.raises(TubeletError, match="do not say for which clips"):
        library.convert("small.pth", "larger.pth", to="videomae", **told)


def test_out_is_kept_and_never_the_source(here: Path) -> None:
    stored.save(videomae(), "ours.safetensors")
    before = Path("ours.safetensors").read_bytes()
    Path("taken.pth").write_text("mine")
    with pytest.raises(TubeletError, match=r"taken\.pth exists already.*--overwrite"):
        library.convert("ours.safetensors", "taken.pth", to="videomae")
    assert Path("taken.pth").read_text() == "mine"
    library.convert("ours.safetensors", "taken.pth", to="videomae", overwrite=True)
    assert "model" in torch.load("taken.pth", weights_only=True)
    for to in ("tubelet", "videomae"):
        with pytest.raises(TubeletError, match="is what is to be converted"):
            library.convert("ours.safetensors", "ours.safetensors", to=to, overwrite=True)
    assert Path("ours.safetensors").read_bytes() == before


@pytest.mark.parametrize("to", ["videomae", "tubelet", "hf"])
def test_an_out_that_cannot_be_written_is_one_error(here: Path, to: str) -> None:
    """torch's and safetensors' writers have errors of their own."""
    write(videomae(), "videomae", here / "a.pth")
    folder = Path("/proc/self")  # nobody may write there
    name = {"videomae": "w.pth", "tubelet": "w.safetensors", "hf": "w"}[to]
    with pytest.raises(TubeletError, match=r"/proc/self/w.* cannot be written: "):
        library.convert(here / "a.pth", folder / name, to=to, **DECODED)


def test_inspect_tells_what_is_asked_for_and_what_is_wrong(tubelet, inside: Path) -> None:
    model = classifier()
    with torch.no_grad():
        model.head.weight[1, 5] = torch.inf
        model.fc_norm.bias[:] = torch.nan
    write(
        model, "videomae", inside / "diverged.pth", lr=1e-3, epochs=100, data_set="SSV2", junk=[1]
    )
    code, out, err = tubelet("inspect", "diverged.pth", "--tensors", "--json", "d.json")
    assert code == 1, err
    shown = " ".join(out.split())
    assert "--position sinusoid_1d" in shown
    assert "not finite in 2 of 32 tensors: fc_norm.bias, head.weight" in shown
    assert "epoch 799, epochs 100, lr 0.001" in shown
    found = json.loads(Path("d.json").read_text())
    assert [asked["flag"] for asked in found["asked"]] == ["--position", "--heads", "--trained"]
    assert found["not_finite"] == ["fc_norm.bias", "head.weight"]
    assert found["encoder"]["width"] == 48
    assert not {"heads", "position"} & set(found["encoder"])
    by_name = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert by_name["fc_norm.bias"]["least"] is None
    assert by_name["head.weight"]["not_finite"] == 1
    rest = torch.load("diverged.pth", weights_only=False)["model"]["head.weight"].flatten()
    rest = rest[rest.isfinite()]
    assert by_name["head.weight"]["most"] == pytest.approx(float(rest.max()))
    assert by_name["head.weight"]["mean"] == pytest.approx(float(rest.mean()), rel=1e-5)


def test_inspect_of_a_run_and_of_others(tubelet, inside: Path) -> None:
    found = library.inspect("runs/fine")
    assert found.usable
    assert (found.kind, found.step, found.classes) == ("classifier", 2, ("left", "right"))
    assert found.trained_on["videos"] == 4
    assert found.recipe["batch_size"] == 4
    model = library.load("runs/fine")
    assert isinstance(model, Classifier)
    assert found.parameters["total"] == sum(p.numel() for p in model.parameters())
    assert found.parameters["head"] == 2 * 32 + 2 * 32 + 2
    students = write(mvd(), "mvd", inside / "students.pth")
    found = library.inspect(students, **DECODED)
    assert (found.layout, found.wrapper, found.asked) == ("mvd", "model", ())
    assert set(found.decoders) == {"image", "video"}
    assert found.decoders["image"]["width"] == 32
    assert isinstance(library.load(students, **DECODED), MaskedModel)


def test_inspect_of_what_is_in_no_known_layout(tubelet, inside: Path) -> None:
    state = {f"stages.{i}.conv.weight": torch.zeros(8, 8, 3, 3) for i in range(4)}
    torch.save({"state_dict": state | {"stem.bias": torch.ones(8)}}, "conv.pth")
    code, out, _ = tubelet("inspect", "conv.pth")
    assert code == 1
    assert "stages.*.conv.weight [8, 8, 3, 3] (4)" in " ".join(out.split())
    assert "none of the layouts that are known" in " ".join(out.replace("│", " ").split())


def test_inspect_shows_brackets_and_steering_letters_as_they_are(tubelet, inside: Path) -> None:
    held = {"[/nope]": torch.ones(2), "b[red]": torch.ones(2)}
    torch.save({"model": held, "opt": "\x1b[2J[/x]\ud800"}, inside / "odd.pth")
    code, out, err = tubelet("inspect", "odd.pth", "--tensors")
    assert code == 1, err
    assert "[/nope]" in out and "b[red]" in out and "\x1b" not in out and "[/x]" in out


def test_a_config_of_endless_brackets_is_one_error(tubelet, inside: Path) -> None:
    (inside / "folder").mkdir()
    (inside / "folder/config.json").write_text("[" * 200_000)
    for verb in (["inspect", "folder"], ["convert", "folder", "new.pth", "--to", "videomae"]):
        code, _, err = tubelet(*verb)
        assert code == 1 and "config.json cannot be read as JSON" in err, err


def test_help_has_one_group_for_weights_of_others(tubelet, inside: Path) -> None:
    for verb in ("convert", "inspect", "evaluate", "predict", "embed", "finetune", "similarity"):
        code, out, _ = tubelet(verb, "--help")
        assert code == 0
        assert out.count("weights-of-others options") == 1
        assert len(re.findall(r"--position\b", out)) == 1
    out = tubelet("distil", "--help")[1]
    assert "--teacher.position" in out
