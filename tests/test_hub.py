"""Pushing to the hub and fetching from it, by a hub that is a local folder: nothing is sent."""

import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers as hf

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
SHAPE = ViTShape(48, 2, 4, patch=8)
NAMES = ("jump", "run | walk", "sit")


class Hub:
    """Stands for huggingface_hub: repositories are folders under `root`."""

    def __init__(self, root: Path):
        self.root = root
        self.asked: list[Any] = []

    def HfApi(self, token: str | None = None) -> Any:
        self.asked.append(("token", token))
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
        if "/" not in repo_id:
            raise ValueError("Repo id must be in the form owner/name")
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        self.asked.append(("private", private))
        return f"https://huggingface.co/{repo_id}"

    def file_exists(self, repo_id: str, name: str) -> bool:
        return (self.root / repo_id / name).exists()

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, allow_patterns: list[str]
    ) -> None:
        for name in allow_patterns:
            if (folder_path / name).exists():
                shutil.copy(folder_path / name, self.root / repo_id / name)

    def list_repo_files(self, repo_id: str, *, revision: str | None) -> list[str]:
        if not (self.root / repo_id).is_dir():
            raise OSError(f"404: {repo_id} not found\nsecond line")
        return sorted(path.name for path in (self.root / repo_id).iterdir())

    def snapshot_download(
        self, repo_id: str, *, allow_patterns: list[str], revision: Any, token: Any, cache_dir: Any
    ) -> str:
        fetched = self.root / "cache" / repo_id
        fetched.mkdir(parents=True)
        for name in allow_patterns:
            shutil.copy(self.root / repo_id / name, fetched / name)
        self.asked.append(("fetched", sorted(allow_patterns)))
        return str(fetched)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    for name in ("HfApi", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(found, name))
    return found


def classifier() -> Classifier:
    model = Classifier(ViT(SHAPE, trained=(8, 32, 32), final_norm=False), 3, init_scale=1)
    model.card = Card(clip=CLIP, classes=NAMES, label_kind="single")
    return model.eval()


def pretrained(**options: Any) -> MaskedModel:
    run = VideoMAE(clip=CLIP, encoder=SHAPE, decoder=DecoderShape(32, 1, 2), **options)
    model = run.model()
    model.card = Card(clip=CLIP, run=to_dict(run))
    return model.eval()


def front(readme: str) -> dict[str, Any]:
    """The lines between the dashes; each value is JSON, which is YAML."""
    lines = readme.split("---")[1].strip().splitlines()
    return {line.partition(":")[0]: json.loads(line.partition(":")[2]) for line in lines}


def test_the_stand_in_takes_what_the_library_does() -> None:
    real = huggingface_hub.HfApi
    for name in ("create_repo", "file_exists", "upload_folder", "list_repo_files"):
        asked = set(inspect.signature(getattr(Hub, name)).parameters) - {"name"}
        assert asked <= set(inspect.signature(getattr(real, name)).parameters), name
    asked = set(inspect.signature(Hub.snapshot_download).parameters) - {"self"}
    assert asked <= set(inspect.signature(huggingface_hub.snapshot_download).parameters)


@pytest.mark.parametrize("to", ["tubelet", "hf"])
@pytest.mark.parametrize("make", [classifier, pretrained])
def test_there_and_back(make, to: Any, hub: Hub, tmp_path: Path) -> None:
    model = make()
    address = tubelet.push_to_hub(model, "me/moves", to=to, private=True, token="secret")
    assert address == "https://huggingface.co/me/moves"
    assert ("token", "secret") in hub.asked and ("private", True) in hub.asked
    back = tubelet.from_hub("me/moves")
    assert back.card.clip == model.card.clip and back.card.classes == model.card.classes
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in back.state_dict().items())
    assert ("README.md" in dict(hub.asked)["fetched"]) is False


def test_a_path_is_pushed_and_the_files_stay_to_look_at(hub: Hub, tmp_path: Path) -> None:
    stored.save(classifier(), tmp_path / "ours.safetensors")
    tubelet.push_to_hub(tmp_path / "ours.safetensors", "me/moves", folder=tmp_path / "made")
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == names
    assert json.loads((tmp_path / "made/config.json").read_text())["library_name"] == "tubelet"


def test_the_card_says_what_the_header_does(tmp_path: Path) -> None:
    model = classifier()
    readme = (
        tubelet.save_for_hub(model, tmp_path / "a", repo_id="me/moves") / "README.md"
    ).read_text()
    assert front(readme) == {
        "library_name": "tubelet",
        "pipeline_tag": "video-classification",
        "tags": ["tubelet", "video", "video-classification"],
    }
    assert "# moves\n" in readme
    assert "width 48, 2 blocks, 4 heads, patch 8, tubelet 2" in readme
    assert "8 frames of 32x32 pixels" in readme
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,}, of these" in readme
    assert "1. run | walk" in readme and "## License" in readme
    model = pretrained(source="arXiv 2203.12602", published="K400 80.0")
    readme = (
        tubelet.save_for_hub(model, tmp_path / "b", license="cc-by-nc-4.0") / "README.md"
    ).read_text()
    assert front(readme)["license"] == "cc-by-nc-4.0" and "pipeline_tag" not in front(readme)
    assert "| method | VideoMAE |" in readme and '"mask_ratio": 0.9' in readme
    assert "80.0" not in readme  # the paper's, not of these weights
    assert "## License" not in readme and "## Classes" not in readme


def test_the_code_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for model in (classifier(), pretrained()):
        shutil.rmtree(tmp_path / "moves", ignore_errors=True)
        readme = (tubelet.save_for_hub(model, "moves") / "README.md").read_text()
        names: dict[str, Any] = {}
        exec(readme.partition("```python\n")[2].partition("```")[0], names)
        assert names["result"].shape == ((1, 3) if isinstance(model, Classifier) else (1, 64, 48))


def test_places_of_the_recipe_are_not_published(tmp_path: Path) -> None:
    model = pretrained(data="/home/someone/secret/videos.csv", root="C:\\someone\\secret")
    made = tubelet.save_for_hub(model, tmp_path / "made")
    for file in made.iterdir():
        assert b"someone" not in file.read_bytes(), file.name
    back = tubelet.from_hub(made)
    assert back.card.run["data"] == "videos.csv"
    assert model.card.run["data"] == "/home/someone/secret/videos.csv"


def test_a_card_that_is_there_stays(hub: Hub, tmp_path: Path) -> None:
    tubelet.push_to_hub(classifier(), "me/moves")
    card = hub.root / "me/moves/README.md"
    card.write_text("mine")
    tubelet.push_to_hub(classifier(), "me/moves")
    assert card.read_text() == "mine"
    (tmp_path / "made").mkdir()
    (tmp_path / "made/README.md").write_text("also mine")
    tubelet.save_for_hub(classifier(), tmp_path / "made")
    assert (tmp_path / "made/README.md").read_text() == "also mine"


def test_hugging_face_loads_what_was_pushed_for_it(hub: Hub) -> None:
    model = classifier()
    tubelet.push_to_hub(model, "me/moves", to="hf")
    place = hub.root / "me/moves"
    assert front((place / "README.md").read_text())["library_name"] == "transformers"
    theirs = hf.AutoModelForVideoClassification.from_pretrained(place).eval()
    clip = torch.rand(1, 3, 8, 32, 32)
    pixels = ((clip - model.backbone.mean) / model.backbone.std).transpose(1, 2)
    torch.testing.assert_close(theirs(pixels).logits, model(clip), rtol=1e-5, atol=1e-5)


def test_a_repository_of_others_files(hub: Hub) -> None:
    place = hub.root / "them/files"
    place.mkdir(parents=True)
    found = stored.found_of(classifier())
    layouts.write(found, "videomae", place / "vit.pth")
    told = {"position": "sinusoid_1d", "heads": 4, "trained": (8, 32, 32)}
    back = tubelet.from_hub("them/files", file="vit.pth", **told)
    assert torch.equal(back.head.weight, found.weights["head.weight"])
    with pytest.raises(TubeletError, match=r"Name the file to read, file=\.\.\.: it has vit\.pth"):
        tubelet.from_hub("them/files")


def test_torchs_file_is_fetched_only_where_there_is_no_other(hub: Hub) -> None:
    tubelet.push_to_hub(classifier(), "me/moves")
    (hub.root / "me/moves/pytorch_model.bin").write_bytes(b"not wanted")
    tubelet.from_hub("me/moves")
    assert dict(hub.asked)["fetched"] == ["config.json", "model.safetensors"]


def test_what_the_hub_refuses_is_one_error(hub: Hub) -> None:
    with pytest.raises(
        TubeletError, match=r"moves cannot be written on the hub: Repo id must.*token"
    ):
        tubelet.push_to_hub(classifier(), "moves")
    with pytest.raises(
        TubeletError, match=r"me/none cannot be fetched from the hub: 404: me/none not"
    ):
        tubelet.from_hub("me/none")
    with pytest.raises(TubeletError, match="to is 'onnx': expected 'tubelet' or 'hf'"):
        tubelet.push_to_hub(classifier(), "me/moves", to="onnx")  # pyright: ignore


def test_without_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(TubeletError, match=r"pip install 'tubelet\[hf\]'"):
        tubelet.push_to_hub(classifier(), "me/moves")
    with pytest.raises(TubeletError, match=r"pip install 'tubelet\[hf\]'"):
        tubelet.from_hub("me/moves")
    made = tubelet.save_for_hub(classifier(), tmp_path / "made")  # needs none, nor does this
    assert tubelet.from_hub(made).card.classes == NAMES
