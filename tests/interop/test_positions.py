"""Positions of others' models at other sizes: 16 frames of 224 pixels at more frames, more pixels, and
no square; in every layout of a plain encoder and in both modes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from foreign import DECODER, carded, same_state
from torch import Tensor

from tubelet import stored
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.masks import pack
from tubelet.methods.mae import ImageMAE, image
from tubelet.methods.mvd import MVD, Distilled
from tubelet.methods.run import to_dict
from tubelet.methods.videomae import VideoMAE
from tubelet.methods.videomae_v2 import VideoMAEV2
from tubelet.model import Classifier, MaskedModel
from tubelet.shapes import ClipSpec, Grid

SHAPE = ViTShape(32, 1, 2)
CLIP = ClipSpec()
FRAME = ClipSpec(num_frames=1, sampling_rate=1)
TAUGHT: dict[str, Any] = {"image": Distilled(width=32), "video": Distilled(width=32)}
SEPARATE = replace(SHAPE, position="sincos_3d")
ENCODER = {"heads": 2, "trained": (16, 224, 224)}
IMAGE = {"heads": 2}
DECODED = {"decoder_heads": 2}
STATED: dict[str, Any] = {}  # a folder of Hugging Face says all


class Case(NamedTuple):
    layout: str
    make: Callable[[], Any]
    told: dict[str, Any]
    frames: int = 16


def tuned(shape: ViTShape, clip: ClipSpec) -> Classifier:
    trained = (clip.num_frames, *clip.size)
    return carded(Classifier(ViT(shape, trained=trained, final_norm=False), 3), clip)


def pretrained(run: Any) -> MaskedModel:
    model = carded(run.model(), run.clip)
    model.card = replace(model.card, run=to_dict(run))
    return model


def timm() -> MaskedModel:
    learned = replace(image(SHAPE), position="learned")
    return carded(MaskedModel(ViT(learned, trained=(1, 224, 224)), []), FRAME)


def videomae() -> MaskedModel:
    return pretrained(VideoMAE(encoder=SHAPE, decoder=DECODER))


def student() -> MaskedModel:
    return pretrained(MVD(encoder=SEPARATE, decoder=DECODER, **TAUGHT))


CASES = {
    "videomae": Case("videomae", videomae, ENCODER | DECODED),
    "videomae fine-tuned": Case(
        "videomae", lambda: tuned(SHAPE, CLIP), {**ENCODER, "position": "sinusoid_1d"}
    ),
    "videomae-v2": Case(
        "videomae-v2",
        lambda: pretrained(VideoMAEV2(encoder=SHAPE, decoder=DECODER)),
        ENCODER | DECODED,
    ),
    "mvd": Case("mvd", student, ENCODER | DECODED),
    "mvd fine-tuned": Case(
        "mvd", lambda: tuned(SEPARATE, CLIP), {**ENCODER, "position": "sincos_3d"}
    ),
    "mae": Case(
        "mae",
        lambda: pretrained(ImageMAE(clip=FRAME, encoder=image(SHAPE), decoder=DECODER)),
        IMAGE | DECODED,
        1,
    ),
    "timm": Case("mae", timm, IMAGE, 1),
    "hf": Case("hf", videomae, STATED),
    "hf fine-tuned": Case("hf", lambda: tuned(SHAPE, CLIP), STATED),
}
SIZES = {"frames": (32, 224, 224), "pixels": (16, 320, 320), "no square": (16, 160, 288)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """A case's name -> its file and the model that it was written from; each is made once."""
    made: dict[str, tuple[Path, Any]] = {}
    folder = tmp_path_factory.mktemp("files")

    def of(name: str) -> tuple[Path, Any]:
        if name not in made:
            torch.manual_seed(0)
            case, path = CASES[name], folder / name.replace(" ", "_")
            path = path if case.layout == "hf" else path.with_suffix(".safetensors")
            model = case.make()
            layouts.write(stored.found_of(model), case.layout, path)
            made[name] = path, model
        return made[name]

    return of


def outputs(model: Any, clip: Tensor) -> dict[str, Tensor]:
    """What a model makes of a clip: tokens, and what its branches or its head say."""
    with torch.no_grad():
        found = {"tokens": model.backbone(clip).x}
        if isinstance(model, Classifier):
            return found | {"logits": model(clip)}
        grid = model.grid_for(*clip.shape[2:])
        hidden = (torch.arange(grid.h * grid.w) % 10 > 0).repeat(grid.t)
        return found | model.predict(clip, pack(hidden[None, None]))


def by_axes(table: Tensor, trained: Grid, grid: Grid) -> Tensor:
    """[N,D] over `trained` -> [N',D]: each cell's centre looked up between its 8 neighbours."""
    cells, rows = table.view(*trained, -1), []
    for at in ((t, h, w) for t in range(grid.t) for h in range(grid.h) for w in range(grid.w)):
        near = []  # by axis: (index, share) of the two neighbours
        for place, size, before in zip(at, grid, trained, strict=True):
            where = min(max((place + 0.5) * before / size - 0.5, 0.0), before - 1.0)
            low = math.floor(where)
            near.append([(low, 1 - where + low), (min(low + 1, before - 1), where - low)])
        rows.append(
            sum(
                a * b * c * cells[t, h, w]
                for t, a in near[0]
                for h, b in near[1]
                for w, c in near[2]
                if a * b * c
            )
        )
    return torch.stack(rows)


def numbered(grid: Grid, dim: int) -> Tensor:
    """VideoMAE's sinusoid over the flattened index, anew."""
    rows = [
        [(math.sin, math.cos)[j % 2](p / 10000 ** (2 * (j // 2) / dim)) for j in range(dim)]
        for p in range(grid.size)
    ]
    return torch.tensor(rows)


def tokens_by_hand(model: Any, clip: Tensor, table: Tensor) -> Tensor:
    """The last norm's tokens of an encoder of one block, by formula, with these positions."""
    backbone = model.backbone
    state, block = backbone.state_dict(), "blocks.0."
    x = (clip - backbone.mean) / backbone.std
    x = F.conv3d(
        x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=(2, 16, 16)
    )
    x = x.flatten(2).transpose(1, 2) + table

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{block}{name}.weight"].T + state[f"{block}{name}.bias"]

    bias = [state[f"{block}attn.q_bias"], torch.zeros(32), state[f"{block}attn.v_bias"]]
    qkv = norm(x, f"{block}norm1") @ state[f"{block}attn.qkv.weight"].T + torch.cat(bias)
    q, k, v = qkv.unflatten(-1, (3, 2, 16)).unbind(2)
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) / 4
    x = x + linear(torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v).flatten(2), "attn.proj")
    x = x + linear(F.gelu(linear(norm(x, f"{block}norm2"), "mlp.fc1")), "mlp.fc2")
    return norm(x, "norm")


@pytest.mark.parametrize("name", CASES)
def test_at_the_size_of_its_training_nothing_changes(name: str, files) -> None:
    path, model = files(name)
    case = CASES[name]
    clip = torch.rand(1, 3, case.frames, 224, 224)
    expected = outputs(model, clip)
    size = {"num_frames": case.frames, "img_size": 224}
    for mode in ("interpolate",) if name == "timm" else ("interpolate", "rebuild"):
        found = stored.load(path, positions=mode, **size, **case.told)
        assert found.report.resized == []
        same_state(outputs(found, clip), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_at_other_sizes(name: str, size: str, files, tmp_path: Path) -> None:
    """It says what it resized, from which grid to which; and a file of ours keeps all of it."""
    path, case = files(name)[0], CASES[name]
    frames, height, width = SIZES[size]
    frames = min(frames, case.frames) if case.frames == 1 else frames
    if (frames, height, width) == (1, 224, 224):
        return  # images have no frames to add
    asked = {"num_frames": frames, "img_size": (height, width)}
    clip, found = torch.rand(1, 3, frames, height, width), {}
    for mode in ("interpolate",) if name == "timm" else ("interpolate", "rebuild"):
        model = stored.load(path, positions=mode, **asked, **case.told)
        slots = max(1, frames // 2)
        expected = f"{slots}x{height // 16}x{width // 16}"
        parts = ["backbone", *(f"branches.{n}.decoder" for n in getattr(model, "branches", ()))]
        assert [one.name for one in model.report.resized] == [f"{p}.positions" for p in parts]
        before = "1x14x14" if case.frames == 1 else "8x14x14"
        how = "interpolated" if mode == "interpolate" else "rebuilt"
        assert {tuple(one)[1:] for one in model.report.resized} == {(before, expected, how)}
        assert (model.card.clip.num_frames, *model.card.clip.size) == (frames, height, width)
        for part in parts:  # of the trained grid, from which they are resized
            assert model.get_submodule(f"{part}.positions").trained == model.backbone.grid
        assert "x".join(map(str, model.backbone.grid)) == before
        found[mode] = outputs(model, clip)
        assert found[mode]["tokens"].shape[1] == slots * height * width // 256
        assert all(value.isfinite().all() for value in found[mode].values())
        stored.save(model, tmp_path / f"{mode}.safetensors")
        again = stored.load(tmp_path / f"{mode}.safetensors")
        same_state(outputs(again, clip), found[mode])
        assert again.card.clip == model.card.clip
    if len(found) == 2 and size != "frames":  # separate axes of time go on in the same steps
        assert not torch.allclose(found["rebuild"]["tokens"], found["interpolate"]["tokens"])


@pytest.mark.parametrize("name", ["videomae", "mvd"])
def test_resized_features_by_a_slow_formula(name: str, files) -> None:
    path, model = files(name)
    clip = torch.rand(1, 3, 20, 160, 288)
    trained, grid = Grid(8, 14, 14), Grid(10, 10, 18)
    asked = {"num_frames": 20, "img_size": (160, 288), **CASES[name].told}
    table = by_axes(model.backbone.positions.table, trained, grid)
    found = stored.load(path, **asked)
    expected = tokens_by_hand(found, clip, table)
    torch.testing.assert_close(found.backbone(clip).x, expected, rtol=1e-4, atol=1e-5)
    decoder = found.branches["pixels" if name == "videomae" else "video"].decoder
    slow = by_axes(decoder.positions.table, trained, grid)
    torch.testing.assert_close(decoder.positions(grid), slow, rtol=1e-5, atol=1e-5)


def test_rebuilt_features_by_a_slow_formula(files) -> None:
    """VideoMAE's way: every position gets another number."""
    clip, grid = torch.rand(1, 3, 16, 160, 288), Grid(8, 10, 18)
    asked = {"img_size": (160, 288), "positions": "rebuild", **CASES["videomae"].told}
    found = stored.load(files("videomae")[0], **asked)
    expected = tokens_by_hand(found, clip, numbered(grid, 32))
    torch.testing.assert_close(found.backbone(clip).x, expected, rtol=1e-4, atol=1e-5)
    decoder = found.branches["pixels"].decoder
    torch.testing.assert_close(decoder.positions(grid), numbered(grid, 32), rtol=1e-5, atol=1e-5)


def test_learned_positions_are_not_rebuilt(files) -> None:
    with pytest.raises(TubeletError, match="learned positions, which cannot be rebuilt"):
        stored.load(files("timm")[0], positions="rebuild", **IMAGE)
    found = stored.load(files("timm")[0], img_size=(160, 288), **IMAGE)
    table = found.backbone.positions.table.detach()
    slow = by_axes(table[1:], Grid(1, 14, 14), Grid(1, 10, 18))
    torch.testing.assert_close(found.backbone.positions(Grid(1, 10, 18)), slow)
    assert torch.equal(found.backbone.positions.prefix(), table[:1])
