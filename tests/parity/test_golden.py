"""The reference numbers of tests/golden, through the same script that checks any other folder."""

import json
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tubelet import stored
from tubelet.backbones.mvit import MViT, MViTShape
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.decoders import DecoderShape
from tubelet.interop import layouts
from tubelet.masks import pack
from tubelet.methods.maskfeat import MaskFeat
from tubelet.methods.mvd import MVD, Distilled
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Card, Classifier, MaskedModel, VideoModel
from tubelet.shapes import ClipSpec

GOLDEN = Path(__file__).parents[1] / "golden"
CHECK = Path(__file__).with_name("check.py")


Done = subprocess.CompletedProcess[str]


def started(*args: object) -> Done:
    """The script as its users start it."""
    command = [sys.executable, str(CHECK), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run(*args: object) -> Done:
    """The same within this process, which has torch already."""
    out, err = StringIO(), StringIO()
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [str(CHECK), *map(str, args)])
        try:
            runpy.run_path(str(CHECK), run_name="__main__")
        except SystemExit as end:
            code = end.code
    if isinstance(code, str):  # what Python prints where a script ends with words
        err.write(code)
        code = 1
    return Done([], code or 0, out.getvalue(), err.getvalue())


def test_every_case_is_within_the_tolerance() -> None:
    cases = sorted(path.parent for path in GOLDEN.glob("*/config.json"))
    assert len(cases) >= 7
    done = started(*cases)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") >= 52
    weights = [path for case in cases for path in case.glob("*.safetensors")]
    weights = [path for path in weights if path.stem != "io"]
    assert done.stdout.count("tensors bit-identical") == len(weights) >= 10


@pytest.mark.parametrize(
    ("case", "file", "table", "said"),
    [
        ("mvd_pretrain", "weights", "pos_embed_vid", "pos_embed_vid is not the fixed one"),
        ("mvd_pretrain", "image_teacher", "pos_embed", "table that is learned, and not sincos_2d"),
        (
            "image_mae_pretrain",
            "weights",
            "decoder_pos_embed",
            "decoder_pos_embed is not the fixed one",
        ),
    ],
)
def test_a_position_table_that_is_not_ours_fails(
    tmp_path: Path, case: str, file: str, table: str, said: str
) -> None:
    copy = shutil.copytree(GOLDEN / case, tmp_path / "case")
    weights = load_file(copy / f"{file}.safetensors")
    weights[table][0, 3, 5] += 1e-3
    save_file(weights, copy / f"{file}.safetensors")
    done = run(copy)
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize("damage", ["value", "extra"])
def test_a_difference_and_an_unknown_tensor_fail(tmp_path: Path, damage: str) -> None:
    case = shutil.copytree(GOLDEN / "videomae_pretrain", tmp_path / "case")
    io = load_file(case / "io.safetensors")
    if damage == "value":
        io["pred"][0, 0, 0] += 1e-3 * io["pred"].abs().max()
    else:
        io["grad.encoder.blocks.7.norm1.weight"] = io["loss"].clone()
    save_file(io, case / "io.safetensors")
    done = run(case)
    assert done.returncode == 1
    assert done.stdout.count("FAIL") == 1


def test_a_folder_without_weights_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "has no weights.safetensors and no io.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


CONFIG: dict[str, Any] = {
    "num_frames": 12,
    "img_size": [24, 36],
    "patch_size": 12,
    "tubelet_size": 3,
    "in_chans": 1,
    "mean": [0.4],
    "std": [0.3],
    "mlp_ratio": 2.5,
    "encoder": {"dim": 80, "depth": 3, "heads": 5},
    "decoder": {"dim": 48, "depth": 2, "heads": 3},
}
SHAPE = ViTShape(80, 3, 5, 2.5, 12, 3, mean=(0.4,), std=(0.3,))
CLIP = ClipSpec(num_frames=12, size=(24, 36), in_chans=1)


def case_of(folder: Path, model: VideoModel, layout: str, io: dict[str, Any], **told: Any) -> Path:
    """A folder as golden's, of a model whose weights are far from their initialisation."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | told))
    model.card = Card(clip=CLIP)
    state = layouts.state_of(stored.found_of(model), layout)
    save_file({n: v.clone().contiguous() for n, v in state.items()}, folder / "weights.safetensors")
    save_file(
        {n: v.detach().clone().contiguous() for n, v in io.items()}, folder / "io.safetensors"
    )
    return folder


def shaken(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def test_sizes_that_golden_has_not(tmp_path: Path) -> None:
    """No square, another tubelet, one channel, other statistics, depths and heads; our own numbers,
    which the script reaches only by reading the config."""
    clip = torch.rand(2, 1, 12, 24, 36)
    given = (clip - 0.4) / 0.3
    tuned = shaken(Classifier(ViT(SHAPE, trained=(12, 24, 36), in_chans=1, final_norm=False), 3))
    names = {"method": "classifier", "num_classes": 3, "pos_embed": "sinusoid-1d-flattened"}
    io = {"clip": given, "logits": tuned(clip)}
    fine = case_of(tmp_path / "fine", tuned, "videomae", io, **names)
    pixels = shaken(VideoMAE(clip=CLIP, encoder=SHAPE, decoder=DecoderShape(48, 2, 3, 2.5)).model())
    hidden = (torch.arange(24) % 3 > 0).expand(2, -1)
    io = {
        "clip": given,
        "mask": hidden,
        "pred": pixels.predict(clip, pack(hidden[:, None]))["pixels"],
    }
    names = {"method": "videomae", "pos_embed": "sinusoid-1d-flattened"}
    pre = case_of(tmp_path / "pre", pixels, "videomae", io, **names)
    done = run(fine, pre)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("tensors bit-identical") == 2
    assert done.stdout.count("ok  ") == 4
    config = json.loads((fine / "config.json").read_text())
    (fine / "config.json").write_text(
        json.dumps(config | {"encoder": {"dim": 80, "depth": 3, "heads": 4}})
    )
    assert run(fine).returncode == 1


def test_a_multiscale_network_that_golden_has_not(tmp_path: Path) -> None:
    """Three stages of other widths, heads and depths, the last without pooling; no square."""
    shape = MViTShape((2, 1, 2), (24, 48, 96), (2, 4, 4), False, 4, 2.0, mean=(0.4,), std=(0.3,))
    spec = ClipSpec(num_frames=6, size=(32, 48), in_chans=1)
    names = {
        "num_frames": 6,
        "img_size": [32, 48],
        "pool_q_stride": [[2, 1, 2, 2]],
        "pool_kv_stride_adaptive": [1, 4, 4],
    }
    clip, grid = torch.rand(2, 1, 6, 32, 48), (3, 4, 6)
    given = (clip - 0.4) / 0.3
    tuned = shaken(
        Classifier(MViT(shape, trained=(6, 32, 48), in_chans=1, final_norm=False, masked=False), 3)
    )
    io = {"clip": given, "logits": tuned(clip)}
    fine = case_of(
        *(tmp_path / "fine", tuned, "maskfeat", io), method="classifier", dim_mul=[], **names
    )
    histograms = shaken(MaskFeat(clip=spec, encoder=shape).model())
    cells = torch.arange(2 * 3 * 2 * 3).reshape(2, 3, 2, 3) % 3 == 0
    hidden = cells.repeat_interleave(2, 2).repeat_interleave(2, 3).reshape(2, 1, -1)
    assert hidden.shape[2] == grid[0] * grid[1] * grid[2]
    masks = pack(hidden, replace=True)
    io = {"clip": given, "mask": cells, "pred": histograms.predict(clip, masks)["hog"]}
    io["pred"] = io["pred"][masks.weight[:, 0] > 0]
    pre = case_of(tmp_path / "pre", histograms, "maskfeat", io, method="maskfeat", **names)
    done = run(fine, pre)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("tensors bit-identical") == 2
    other = json.loads((fine / "config.json").read_text()) | {"pool_kv_stride_adaptive": [1, 2, 2]}
    (fine / "config.json").write_text(json.dumps(other))
    assert run(fine).returncode == 1


def test_a_student_of_clips_that_are_no_squares(tmp_path: Path) -> None:
    """With teachers of other widths; the image teacher's table does not say how it is cut."""
    shape = replace(SHAPE, position="sincos_3d")
    taught = {"image": Distilled(width=32), "video": Distilled(width=40)}
    student = shaken(
        MVD(clip=CLIP, encoder=shape, decoder=DecoderShape(48, 2, 3, 2.5), **taught).model()
    )
    heads = {"image_teacher": {"heads": 2}, "video_teacher": {"heads": 2}}
    clip, hidden = torch.rand(2, 1, 12, 24, 36), (torch.arange(24) % 3 > 0).expand(2, -1)
    found = student.predict(clip, pack(hidden[:, None]))
    io = {"clip": (clip - 0.4) / 0.3, "mask": hidden}
    io |= {f"pred_{name}": value for name, value in found.items()}
    names = {"method": "mvd", "pos_embed": "sincos-3d-separable", **heads}
    case = case_of(tmp_path / "mvd", student, "mvd", io, **names)
    image = replace(SHAPE, width=32, heads=2, tubelet_size=1, position="sincos_2d")
    for name, own, frames, layout in (
        ("image_teacher", replace(image, class_token=True), 1, "mae"),
        ("video_teacher", replace(SHAPE, width=40, heads=2), 12, "videomae"),
    ):
        model = shaken(MaskedModel(ViT(own, trained=(frames, 24, 36), in_chans=1), []))
        model.card = Card(clip=replace(CLIP, num_frames=frames))
        state = layouts.state_of(stored.found_of(model), layout)
        save_file({n: v.clone() for n, v in state.items()}, case / f"{name}.safetensors")
    done = run(case)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("tensors bit-identical") == 3
