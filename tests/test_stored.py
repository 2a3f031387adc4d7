"""Weights as they are stored: what opens them runs nothing, fills all, and says what it did."""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import tubelet
from tubelet import stored
from tubelet.backbones.vit import ViT, ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.methods.run import to_dict
from tubelet.methods.videomae import VideoMAE
from tubelet.model import Card, Classifier, MaskedModel
from tubelet.shapes import ClipSpec

CLIP = ClipSpec(num_frames=8, size=(32, 32))
RUN = VideoMAE(clip=CLIP, encoder=ViTShape(48, 2, 3, patch=8), decoder=DecoderShape(32, 1, 2))
TOLD = {"heads": 3, "decoder_heads": 2, "trained": (8, 32, 32)}


def pretrained() -> MaskedModel:
    model = RUN.model().eval()
    model.card = Card(clip=CLIP, run=to_dict(RUN))
    return model


def foreign(path: Path, model: MaskedModel, change: dict[str, Tensor] | None = None) -> Path:
    """The model as VideoMAE's code saves it; `change`: tensors of the file, None to leave one out."""
    state = layouts.state_of(stored.found_of(model), "videomae") | (change or {})
    torch.save({"model": {n: v for n, v in state.items() if v.numel()}, "epoch": 7}, path)
    return path


def equal(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("key", ["file", "type"])
def test_a_header_that_names_code_runs_nothing(tmp_path: Path, key: str) -> None:
    """A checkpoint from somewhere, whose header brings a run class of its own along."""
    path, canary = tmp_path / "model.safetensors", tmp_path / "canary"
    evil = tmp_path / f"evil_{key}.py"
    evil.write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass Evil: pass\n")
    stored.save(pretrained(), path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["tubelet"])
    value = {"file": str(evil), "type": f"{evil}:Evil"}[key]
    header["run"][key] = value
    save_file(load_file(path), path, metadata={"tubelet": json.dumps(header)})
    with pytest.raises(TubeletError, match=r"loading it runs that code.*--trust-code"):
        tubelet.load(path)
    assert not canary.exists()
    with pytest.raises(TubeletError):
        tubelet.load(path, trust_code=True)  # it is run, and is no run
    assert canary.exists()


def test_nothing_stays_random_unless_it_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = pretrained()
    name = "decoder.blocks.0.mlp.fc1.bias"
    path = foreign(tmp_path / "a.pth", model, {name: torch.empty(0)})
    with pytest.raises(TubeletError, match=r"branches\.pixels\.decoder\.blocks\.0\.mlp\.fc1\.bias"):
        tubelet.load(path, **TOLD)
    loaded = tubelet.load(path, **TOLD, allow_missing=["branches.pixels.decoder.blocks.0.mlp.fc1"])
    assert loaded.report.missing == ["branches.pixels.decoder.blocks.0.mlp.fc1.bias"]
    with pytest.raises(TubeletError, match=r"allow_missing names 'fc_norm', and nothing of that"):
        tubelet.load(path, **TOLD, allow_missing=["fc_norm"])


def test_what_is_too_much_is_named_and_comes_back(tmp_path: Path) -> None:
    model = pretrained()
    path = foreign(tmp_path / "a.pth", model, {"aux_head.weight": torch.ones(3)})
    with pytest.raises(TubeletError, match=r"no place for: aux_head\.weight.*--allow-extra"):
        tubelet.load(path, **TOLD)
    with pytest.raises(TubeletError, match=r"allow_extra names 'aux_tail'"):
        tubelet.load(path, **TOLD, allow_extra=["aux_tail", "aux_head"])
    loaded = tubelet.load(path, **TOLD, allow_extra=["aux_head"])
    assert equal(loaded, model)
    assert [one.name for one in loaded.report.dropped] == ["epoch", "aux_head.weight"]
    back = layouts.state_of(stored.found_of(loaded), "videomae")
    assert list(back) == list(torch.load(path)["model"])


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = pretrained()
    model.branches["pixels"].decoder.mask_token.data[..., 3] = float("nan")
    with pytest.raises(TubeletError, match=r"not finite, in 1 of \d+ tensors: .*mask_token"):
        tubelet.load(foreign(tmp_path / "a.pth", model), **TOLD)


def test_everything_unsaid_is_asked_for_at_once(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.pth", pretrained())
    with pytest.raises(TubeletError) as caught:
        tubelet.load(path)
    for flag in ("--heads one of 1, 2, 3", "--decoder-heads one of 1, 2, 4", "--trained FRAMES"):
        assert flag in str(caught.value)
    with pytest.raises(TubeletError, match=r"Told has no field 'haeds'\. Did you mean 'heads'"):
        tubelet.load(path, haeds=3)


def test_a_file_of_ours_says_all_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    stored.save(pretrained(), path)
    with pytest.raises(TubeletError, match="says its heads and trained itself: leave them out"):
        tubelet.load(path, heads=3, trained=(8, 32, 32))


def test_a_model_at_another_size_is_stored_and_loaded_as_it_was(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.pth", pretrained())
    clip = torch.rand(1, 3, 16, 40, 24)
    for mode in ("interpolate", "rebuild"):
        larger = tubelet.load(path, **TOLD, num_frames=16, img_size=(40, 24), positions=mode)
        assert larger.card.clip == replace(CLIP, num_frames=16, size=(40, 24))
        stored.save(larger, tmp_path / "b.safetensors")
        again = tubelet.load(tmp_path / "b.safetensors")
        assert again.card.clip == larger.card.clip
        assert torch.equal(again.forward_features(clip), larger.forward_features(clip))
        assert again.backbone.positions.mode == mode


def test_a_model_by_name_takes_weights_of_others(tmp_path: Path) -> None:
    """The name says what the file does not; what is new has to be named."""
    small = replace(RUN, encoder=ViTShape(384, 12, 6), decoder=DecoderShape(192, 4, 3))
    model = small.model()
    model.card = Card(clip=CLIP, run=to_dict(small))
    state = layouts.state_of(stored.found_of(model), "videomae")
    path = tmp_path / "a.pth"
    torch.save({"model": state, "args": argparse.Namespace(num_frames=8, input_size=32)}, path)
    make = partial(tubelet.create, num_frames=8, checkpoint_path=path)
    pretrain = make("pretrain_videomae_small_patch16_224", img_size=32)
    assert equal(pretrain, model)
    with pytest.raises(TubeletError, match=r"fc_norm\.weight is missing"):
        make("vit_small_patch16_224", img_size=32, num_classes=5)
    new = ["head", "fc_norm"]
    larger = make("vit_small_patch16_224", img_size=64, num_classes=5, allow_missing=new)
    assert larger.report.missing == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert larger.backbone.trained == (8, 32, 32)  # its positions are resized from these
    assert larger.card.clip.size == (64, 64)
    assert torch.equal(
        larger.backbone.blocks[3].mlp.fc1.weight, model.backbone.blocks[3].mlp.fc1.weight
    )
    torch.save({n: v for n, v in state.items() if n.startswith("encoder.")}, path)
    name = "pretrain_videomae_small_patch16_224"
    with pytest.raises(TubeletError, match=r"branches\.pixels\.decoder\.\S+ is missing"):
        make(name, img_size=32)


@pytest.mark.parametrize("other", [{"position": "sincos_3d"}, {"heads": 12}])
def test_a_model_by_name_refuses_weights_of_another_network(
    other: dict[str, Any], tmp_path: Path
) -> None:
    """With tensors of the same names and shapes."""
    shape = replace(ViTShape(384, 12, 6), **other)
    model = Classifier(ViT(shape, trained=(8, 32, 32), final_norm=False), 5)
    model.card = Card(clip=CLIP)
    stored.save(model, tmp_path / "a.safetensors")
    with pytest.raises(TubeletError, match=f"of another network: {next(iter(other))} "):
        create_small(tmp_path / "a.safetensors")


def test_a_model_by_name_keeps_the_statistics_of_its_weights(tmp_path: Path) -> None:
    shape = replace(ViTShape(384, 12, 6), mean=(0.5,) * 3, std=(0.5,) * 3)
    model = Classifier(ViT(shape, trained=(8, 32, 32), final_norm=False), 5).eval()
    model.card = Card(clip=CLIP)
    stored.save(model, tmp_path / "a.safetensors")
    clip = torch.rand(1, 3, 8, 32, 32)
    again = create_small(tmp_path / "a.safetensors").eval()
    assert torch.equal(again(clip), model(clip))


def create_small(path: Path) -> Any:
    size: dict[str, Any] = {"num_classes": 5, "num_frames": 8, "img_size": 32}
    return tubelet.create("vit_small_patch16_224", checkpoint_path=path, **size)


def test_the_settings_of_a_training_go_there_and_back(tmp_path: Path) -> None:
    """They answer what names do not say, so the file that is written needs no telling either."""
    path, ours, back = (tmp_path / name for name in ("a.pth", "b.safetensors", "c.pth"))
    foreign(path, pretrained())
    saved = torch.load(path)
    args = argparse.Namespace(num_frames=8, input_size=32, lr=1.5e-4, opt_betas=[0.9, 0.95])
    torch.save({**saved, "args": args}, path)
    told = {"heads": 3, "decoder_heads": 2}
    stored.save(tubelet.load(path, **told), ours)
    layouts.write(stored.opened(ours), "videomae", back)
    again = tubelet.load(back, **told)
    assert again.backbone.trained == (8, 32, 32)
    kept = {"epoch": 7, "lr": 1.5e-4, "opt_betas": [0.9, 0.95]}
    assert kept.items() <= again.origin.settings.items()
