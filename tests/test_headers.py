"""A header of ours that someone else made: each wrong value is one clear error, and runs nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from foreign import DECODED, TOLD, classifier_model, save, theirs, videomae_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tubelet
from tubelet import stored
from tubelet.errors import TubeletError

WRONG: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("format",), "x", "header that cannot be read"),
    (("kind",), "program", "'pretraining' or 'classifier' or 'encoder' is expected"),
    (("backbone",), "x", "backbone is 'x', where a record is expected"),
    (("backbone", "shape", "width"), "x", r"shape\.width is 'x', where a whole number is expected"),
    (("backbone", "shape", "heads"), 0, "must be above 0"),
    (("backbone", "shape", "depth"), -1, "must be above 0"),
    (("backbone", "shape", "depth"), 10**12, "would make a network of"),
    (("backbone", "shape", "mlp_ratio"), float("nan"), "must be above 0"),
    (("backbone", "shape", "mean"), [[]], r"mean is \(\[\],\), where a list, each a number"),
    (("backbone", "trained"), [8, 32], "3 values, each a whole number"),
    (("backbone", "trained"), [8, 32, 32000000], "would be more than 65536 tokens"),
    (("backbone", "in_chans"), 10**9, "would make a network of"),
    (("backbone", "final_norm"), "yes", "true or false is expected"),
    (("outputs",), 10**9, "would make a network of"),
    (("outputs",), -5, "no sizes of a model"),
    (("backbone",), {"trained": [8, 32, 32]}, "backbone lacks shape, in_chans"),
    (("backbone", "shape"), {}, "weights .* are of another model"),  # all of it has defaults
    (("clip", "crop_pct"), "all", r"clip\.crop_pct is 'all', where a number is expected"),
    (("clip", "num_frames"), 10**30, "would be more than 65536 tokens"),
    (("clip", "size"), None, "2 values, each a whole number"),
    (("classes",), [1, 2, 3, 4, 5], "a list, each text"),
    (("label_kind",), "x", "'unlabelled' or 'single'"),
    (("run",), [], "run"),
    (("origin",), {"layout": "hf", "names": {}, "dtypes": {"a": "load"}, "wrapper": ""}, "dtypes"),
]


def with_header(path: Path, at: Sequence[str | int], value: Any) -> Path:
    """The file with one value of its header changed."""
    with safe_open(path, framework="pt") as file:
        header = deepcopy(json.loads(file.metadata()["tubelet"]))
    inner = header
    for part in at[:-1]:
        inner = inner[part]
    inner[at[-1]] = value
    save_file(load_file(path), path, metadata={"tubelet": json.dumps(header)})
    return path


@pytest.mark.parametrize(("at", "value", "says"), WRONG, ids=lambda part: str(part)[:40])
def test_a_wrong_value_is_one_error(tmp_path: Path, at: Any, value: Any, says: str) -> None:
    path = tmp_path / "model.safetensors"
    stored.save(classifier_model(), path)
    with_header(path, at, value)
    with pytest.raises(TubeletError, match=says) as raised:
        tubelet.load(path)
    assert len(str(raised.value)) < 600
    if (
        "network" not in says and "another" not in says
    ):  # that many parameters are seen where it is made
        with pytest.raises(TubeletError, match=says):
            tubelet.inspect(path)


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (("run", "decoder"), "x", "VideoMAE.decoder is 'x', where a record is expected"),
        (("run", "decoder", "width"), "x", "decoder.width is 'x', where a whole number"),
        (("run", "decoder", "heads"), 0, "must be above 0"),
        (("run", "encoder", "depth"), 10**9, "would make a network of"),
        (("run", "encoder", "mlp_ratio"), 1e9, "would make a network of"),
        (("run", "clip", "size"), [32, 10**9], "would be more than 65536 tokens"),
        (("run", "clips"), 1, "has no field 'clips'"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_wrong_value_of_the_run_that_makes_the_decoder(
    tmp_path: Path, at: Any, value: Any, says: str
) -> None:
    path, ours = tmp_path / "theirs.pth", tmp_path / "model.safetensors"
    save(path, theirs(videomae_model(), "videomae"))
    tubelet.convert(path, ours, to="tubelet", **DECODED)
    tubelet.load(ours)
    with_header(ours, at, value)
    with pytest.raises(TubeletError, match=says):
        tubelet.load(ours)


@pytest.mark.parametrize(
    "said", ["", "[]", "{}", "null", "[" * 100_000, '{"format": {}}', '{"format": 1}']
)
def test_a_header_that_is_none(tmp_path: Path, said: str) -> None:
    path = tmp_path / "model.safetensors"
    stored.save(videomae_model(), path)
    save_file(load_file(path), path, metadata={"tubelet": said})
    with pytest.raises(TubeletError, match="header"):
        tubelet.load(path)


def test_a_run_under_the_name_of_our_methods_is_not_taken_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tubelet.methods./evil.py` begins as our modules do, and can be a file of the folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tubelet.methods."
    folder.mkdir()
    (folder / "evil_run.py").write_text("import pathlib\npathlib.Path('canary').touch()\n")
    path = tmp_path / "model.safetensors"
    stored.save(videomae_model(), path)
    with_header(path, ("run", "type"), "tubelet.methods./evil_run.py:Evil")
    with pytest.raises(TubeletError, match="trust-code"):
        tubelet.load(path)
    assert not (tmp_path / "canary").exists()


def test_what_has_a_default_may_be_missing(tmp_path: Path) -> None:
    """Fields that are newer than the file."""
    path = tmp_path / "model.safetensors"
    stored.save(classifier_model(), path)
    with_header(path, ("clip",), {"size": [32, 32], "num_frames": 8})
    assert tubelet.load(path, num_frames=4).card.clip.num_frames == 4


def test_values_of_another_kind_than_their_options_are_said(tmp_path: Path) -> None:
    with pytest.raises(TubeletError, match="heads is '3', where a whole number"):
        tubelet.load(tmp_path, heads="3")
    with pytest.raises(TubeletError, match=r"allow_missing is 'head\.', where a list, each text"):
        tubelet.load(tmp_path, allow_missing="head.")


@pytest.mark.parametrize("said", [{"heads": 0}, {"heads": -3}, {"trained": (8, 0, 32)}])
def test_what_is_told_is_never_taken_as_not_said(tmp_path: Path, said: dict[str, Any]) -> None:
    path = save(tmp_path / "theirs.pth", theirs(classifier_model(), "videomae"))
    with pytest.raises(TubeletError, match="numbers from 1 on are expected"):
        tubelet.load(path, **{"position": "sinusoid_1d", **TOLD, **said})
    with pytest.raises(TubeletError, match="of 0x32x32"):
        tubelet.load(path, position="sinusoid_1d", **TOLD, num_frames=0)


def test_a_file_of_the_first_version_still_loads(tmp_path: Path) -> None:
    """Its header says nothing of a last norm, nor of class tokens in time slots."""
    path = tmp_path / "model.safetensors"
    stored.save(classifier_model(), path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["tubelet"])
    del header["backbone"]["final_norm"], header["backbone"]["shape"]["class_token_of"]
    save_file(load_file(path), path, metadata={"tubelet": json.dumps(header)})
    assert tubelet.load(path).backbone.shape.class_token_of == "clip"
    assert stored.encoder_of(path)[0].dim == 48
