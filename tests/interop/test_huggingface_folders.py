"""Hugging Face's folders, both ways: their files, configurations, processors and labels."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from theirs import (
    CLIP,
    NAMES,
    classifier,
    config,
    folder_of,
    same,
    their_load,
    theirs_classifier,
    theirs_encoder,
    theirs_pretrained,
    vit,
    vit_classifier,
    vit_mae,
    written,
)

import tubelet
from tubelet import stored
from tubelet.backbones.vit import ViTShape
from tubelet.errors import TubeletError
from tubelet.interop import huggingface_write
from tubelet.model import Card
from tubelet.shapes import ClipSpec

MODELS: list[Callable[[], Any]] = [
    theirs_pretrained,
    theirs_classifier,
    theirs_encoder,
    vit,
    vit_classifier,
    vit_mae,
]


@pytest.mark.parametrize("spelling", ["as saved", "of transformers 5"])
@pytest.mark.parametrize("make", MODELS)
def test_a_folder_through_ours_is_bit_identical(make, spelling: str, tmp_path: Path) -> None:
    path = folder_of(model := make(), tmp_path / "theirs")
    if spelling != "as saved":
        save_file(model.state_dict(), path / "model.safetensors", {"format": "pt"})
    stored.save(tubelet.load(path), tmp_path / "ours.safetensors")
    again = written(tubelet.load(tmp_path / "ours.safetensors"), tmp_path / "again")
    before, after = load_file(path / "model.safetensors"), load_file(again / "model.safetensors")
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert config(again)["architectures"] == [type(model).__name__]
    their_load(type(model), again)


def test_half_precision_comes_back_as_it_was(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier().half(), tmp_path / "theirs")
    ours = tubelet.load(path)
    assert next(ours.parameters()).dtype == torch.float32
    assert any("float16" in note for note in ours.report.notes)
    again = written(ours, tmp_path / "again")
    assert config(again)["torch_dtype"] == "float16"
    before, after = load_file(path / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(before[n].dtype == after[n].dtype == torch.float16 for n in before)


def test_files_of_torch_and_shards_are_read(tmp_path: Path) -> None:
    path = folder_of(theirs := theirs_pretrained(), tmp_path / "theirs")
    whole = tubelet.load(path).state_dict()
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin")
    same(tubelet.load(path).state_dict(), whole)
    same(tubelet.load(path / "pytorch_model.bin").state_dict(), whole)
    (path / "pytorch_model.bin").unlink()
    theirs.save_pretrained(path, max_shard_size="100KB")
    assert len(list(path.glob("model-*.safetensors"))) > 1
    same(tubelet.load(path).state_dict(), whole)
    shards = sorted(path.glob("model-*.safetensors"))
    last = load_file(shards[-1])
    save_file(last | {"unnamed.weight": torch.ones(2)}, shards[-1])  # the index has it not
    with pytest.raises(TubeletError, match=r"no place for: unnamed\.weight"):
        tubelet.load(path)
    save_file(last | {next(iter(load_file(shards[0]))): torch.ones(2)}, shards[-1])
    with pytest.raises(TubeletError, match="more than one of its files"):
        tubelet.load(path)
    shards[0].unlink()
    with pytest.raises(TubeletError, match="cannot be read as weights"):
        tubelet.load(path)


def test_an_index_names_files_of_its_folder_alone(tmp_path: Path) -> None:
    path = folder_of(theirs_pretrained(), tmp_path / "theirs")
    weights = path / "model.safetensors"
    weights.rename(tmp_path / "outside.safetensors")
    said = {"weight_map": {"mask_token": "../outside.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(said))
    with pytest.raises(TubeletError, match="outside its folder: refused"):
        tubelet.load(path)


def test_folders_are_read_and_written_without_transformers(tmp_path: Path, monkeypatch) -> None:
    path = folder_of(theirs_classifier(), tmp_path / "theirs")
    monkeypatch.setitem(sys.modules, "transformers", None)
    written(tubelet.load(path), tmp_path / "again")
    assert (tmp_path / "again/config.json").is_file()


def test_the_weights_file_of_a_folder_is_the_folder(tmp_path: Path) -> None:
    path = folder_of(theirs_classifier(), tmp_path / "theirs")
    assert tubelet.load(path / "model.safetensors").card.classes == NAMES


def test_the_preprocessor_both_ways(tmp_path: Path) -> None:
    spec = ClipSpec(num_frames=8, size=(32, 32), crop_pct=0.8, interpolation="bicubic")
    shape = ViTShape(48, 2, 4, patch=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    path = written(classifier(shape, clip=spec), tmp_path)
    processor = hf.AutoImageProcessor.from_pretrained(path)
    assert "VideoMAEImageProcessor" in type(processor).__name__
    frames = [np.full((50, 60, 3), 255, dtype=np.uint8)] * 8
    pixels = processor(frames, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 8, 3, 32, 32)
    torch.testing.assert_close(pixels, torch.full_like(pixels, 2.0))
    assert dict(processor.size) == {"shortest_edge": 40}
    ours = tubelet.load(path)
    assert ours.card.clip == spec
    assert ours.backbone.shape == shape


def test_notes_of_what_is_not_as_published(tmp_path: Path) -> None:
    small = {"hidden_size": 384, "num_attention_heads": 16, "intermediate_size": 64}
    path = tmp_path / "model"
    theirs_classifier(**small, layer_norm_eps=1e-12).save_pretrained(path)
    told = "\n".join(tubelet.load(path).report.notes)
    assert "layer_norm_eps is 1e-12 in config.json: read as 1e-06" in told
    assert "16 heads for width 384" in told and "--heads 6" in told
    assert "no preprocessor_config.json" in told
    assert tubelet.load(path, heads=6).backbone.shape.heads == 6
    folder_of(theirs_classifier(), path)
    assert not any("eps" in note for note in tubelet.load(path).report.notes)


@pytest.mark.parametrize("kind", ["multi", "regression"])
def test_kinds_of_labels(kind: str, tmp_path: Path) -> None:
    model = classifier()
    model.card = Card(clip=CLIP, classes=NAMES, label_kind=kind)
    path = written(model, tmp_path)
    assert tubelet.load(path).card.label_kind == kind
    theirs = their_load(hf.AutoModelForVideoClassification, path)
    assert theirs.config.problem_type in ("multi_label_classification", "regression")


def test_no_name_is_lost() -> None:
    """What has no row in a table is an error, not left out."""
    found = stored.found_of(classifier())
    found.weights["backbone.other"] = torch.zeros(1)
    with pytest.raises(TubeletError, match=r"no name in the other layout: backbone\.other"):
        huggingface_write.write(found)
