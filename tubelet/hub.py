"""Models on the Hugging Face hub: pushed with a card that is filled from their header, and fetched.

Everything but the upload and the download themselves works on a local folder, without a network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from tubelet import stored
from tubelet.errors import TubeletError
from tubelet.interop import layouts
from tubelet.interop.found import Found
from tubelet.model import VideoModel

To = Literal["tubelet", "hf"]
README, CONFIG, WEIGHTS = "README.md", "config.json", "model.safetensors"
# Of a repository: what a model is read from. Torch's files only where there are no others.
SAFE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
TORCH = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?")
CONFIGS = (CONFIG, "preprocessor_config.json")
TAGS = {
    "pretraining": "masked-video-modelling",
    "classifier": "video-classification",
    "encoder": "video-feature-extraction",
}


def push_to_hub(
    model: VideoModel | str | Path,
    repo_id: str,
    *,
    to: To = "tubelet",
    private: bool | None = None,
    token: str | None = None,
    folder: str | Path | None = None,
    license: str = "",
) -> str:
    """A model, with a card -> a repository of the Hugging Face hub, made where it is new; its address.

    A card (README.md) that is in the repository already is left as it is.

    Args:
        model: a model, or anything that `tubelet.load` takes.
        repo_id: owner/name.
        to: "tubelet", one file that holds all that is known of the model; "hf", a folder for
            transformers' `from_pretrained`, where their networks can hold the model.
        private: whether a new repository is; None: as the owner's settings say.
        token: of the owner; None: the one that `hf auth login` has saved.
        folder: where the files are made, and stay, to look at them; None: nowhere that lasts.
        license: for the card, by its name on the hub, as in "cc-by-nc-4.0".

    Raises:
        TubeletError: huggingface_hub is not installed; the model does not fit; the hub refuses.
    """
    hub = _library()
    with TemporaryDirectory() as temporary:
        made = save_for_hub(model, folder or temporary, repo_id=repo_id, to=to, license=license)
        api = hub.HfApi(token=token)
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            there = api.file_exists(repo_id, README)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=made,
                commit_message="Weights by tubelet",
                allow_patterns=[WEIGHTS, *CONFIGS, *([] if there else [README])],
            )
        except (OSError, ValueError) as error:
            raise TubeletError(
                f"{repo_id} cannot be written on the hub: {_first_line(error)} Expected owner/name, and "
                "a token that may write there (`hf auth login`, or token=...)."
            ) from error
    return str(address)


def save_for_hub(
    model: VideoModel | str | Path,
    folder: str | Path,
    *,
    repo_id: str = "",
    to: To = "tubelet",
    license: str = "",
) -> Path:
    """What `push_to_hub` uploads -> a folder: weights, configs, and the card.

    A README.md that is there already stays. Absolute paths in the recipe (of videos, of teachers)
    are cut to their last part, as others will read them.
    """
    if to not in get_args(To):
        raise TubeletError(f"to is {to!r}: expected {' or '.join(map(repr, get_args(To)))}.")
    model = model if isinstance(model, VideoModel) else stored.load(model)
    found = stored.found_of(model)
    found = replace(found, header={**found.header, "run": _without_places(found.header["run"])})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if to == "hf":
        layouts.write(found, to, folder)
    else:
        stored.write(found, folder / WEIGHTS)
        said = {"library_name": "tubelet", **found.header}
        (folder / CONFIG).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    if not (folder / README).exists():
        (folder / README).write_text(card(found, repo_id or folder.name, to, license))
    return folder


def from_hub(
    repo_id: str | Path,
    *,
    file: str = "",
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> VideoModel:
    """A repository of the hub, or a local folder like one -> its model, as `tubelet.load` gives it.

    Args:
        repo_id: owner/name: pushed by tubelet, or a model of transformers; or a folder.
        file: the one to read, in a repository that holds files of others, as in "vit_g.pth".
        revision: a branch, tag or commit; None: the newest.
        token, cache_dir: as huggingface_hub takes them.
        options: of `tubelet.load`.

    Raises:
        TubeletError: huggingface_hub is not installed; nothing is there; it cannot be loaded.
    """
    local = Path(repo_id)
    if not local.exists():
        local = _fetched(str(repo_id), file, revision=revision, token=token, cache_dir=cache_dir)
    return stored.load(local / file if file else local, **options)


def _fetched(repo_id: str, file: str, **options: Any) -> Path:
    """The folder of a repository's files, downloaded where they are not yet."""
    hub = _library()
    try:
        of = {"revision": options["revision"]}
        wanted = (
            [file]
            if file
            else _wanted(hub.HfApi(token=options["token"]).list_repo_files(repo_id, **of), repo_id)
        )
        return Path(hub.snapshot_download(repo_id, allow_patterns=wanted, **options))
    except (OSError, ValueError) as error:
        raise TubeletError(
            f"{repo_id} cannot be fetched from the hub: {_first_line(error)} Expected owner/name of a "
            "repository, or a local folder."
        ) from error


def _wanted(files: Sequence[str], repo_id: str) -> list[str]:
    """The files of a repository that a model is read from."""
    weights = [name for name in files if SAFE.fullmatch(name)]
    weights = weights or [name for name in files if TORCH.fullmatch(name)]
    if not weights:
        held = [
            name
            for name in files
            if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".pyth"))
        ]
        raise TubeletError(
            f"{repo_id} holds no {WEIGHTS}. Name the file to read, file=...: it has "
            f"{', '.join(held[:8]) or 'no weights'}."
        )
    return weights + [name for name in files if name in CONFIGS]


def card(found: Found, repo_id: str, to: To = "tubelet", license: str = "") -> str:
    """A checkpoint in our terms -> its README.md on the hub."""
    header = found.header
    front = {
        **({"license": license} if license else {}),
        "library_name": "transformers" if to == "hf" else "tubelet",
        **({"pipeline_tag": "video-classification"} if found.kind == "classifier" else {}),
        "tags": ["tubelet", "video", TAGS[found.kind]],
    }
    rows = [f"| {name} | {value} |" for name, value in _rows(found).items()]
    parts = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in front.items()),
        "---",
        "",
        f"# {repo_id.rpartition('/')[2]}",
        "",
        "| | |\n|---|---|",
        *rows,
        "",
        "## How to load it",
        "",
        _loading(found, repo_id, to),
    ]
    if header["run"]:
        # What its paper reached is no result of these weights.
        recipe = {name: value for name, value in header["run"].items() if name != "published"}
        said = json.dumps(recipe, indent=2, ensure_ascii=False)
        parts += ["## Recipe", "", f"```json\n{said}\n```", ""]
    if header["classes"]:
        names = "\n".join(f"{i}. {name}" for i, name in enumerate(header["classes"]))
        parts += ["## Classes", "", names, ""]
    if not license:
        parts += [
            "## License",
            "",
            "Not stated yet. Whoever publishes these weights says it, with a line `license: ...` at the top "
            "of this page. Weights that were trained from others', or on data with terms of its own, may "
            "be bound by them.",
            "",
        ]
    return "\n".join(parts)


def _rows(found: Found) -> dict[str, str]:
    """What the header says, in words: the table of the card."""
    header = found.header
    backbone, clip, run = header["backbone"], header["clip"], header["run"]
    shape = backbone["shape"]
    counts = {"all": sum(value.numel() for value in found.weights.values())}
    counts["encoder"] = sum(
        v.numel() for n, v in found.weights.items() if n.startswith("backbone.")
    )
    what = {"pretraining": "pretrained: encoder and decoder", "encoder": "encoder"}
    rows = {
        "what": what.get(found.kind, f"classifier of videos, {header['outputs']} outputs"),
        "method": run["type"].rpartition(":")[2] if "type" in run else "not known",
        "encoder": "vision transformer, width {width}, {depth} blocks, {heads} heads, patch "
        "{patch}, tubelet {tubelet_size}".format_map(shape)
        if "width" in shape
        else f"multiscale vision transformer, {sum(shape['depths'])} blocks",
        "clip": f"{clip['num_frames']} frames of {'x'.join(map(str, clip['size']))} pixels, "
        f"{clip['sampling']}, every {clip['sampling_rate']}. frame, {clip['in_chans']} channels",
        "parameters": f"{counts['all']:,}, of these {counts['encoder']:,} of the encoder",
    }
    if run.get("source"):
        rows["recipe after"] = str(run["source"])
    if found.origin is not None:
        rows["converted from"] = f"weights in the layout {found.origin.layout}"
    return {name: value.replace("|", "/") for name, value in rows.items()}


def _loading(found: Found, repo_id: str, to: To) -> str:
    """Code that loads the model and says what it takes and gives."""
    clip = found.header["clip"]
    size = ", ".join(str(n) for n in (clip["in_chans"], clip["num_frames"], *clip["size"]))
    call = "model(clip)" if found.kind == "classifier" else "model.forward_features(clip)"
    lines = [
        "```python",
        "import torch",
        "import tubelet",
        "",
        f'model = tubelet.from_hub("{repo_id}")',
        f"clip = torch.rand(1, {size})  # [B,C,T,H,W], pixels in [0,1]: the model normalises them",
        f"result = {call}",
        "```",
        "",
    ]
    if to == "hf":
        lines += [
            "Or with transformers: `AutoModel.from_pretrained` and its kin, and its processor.",
            "",
        ]
    return "\n".join(lines)


def _without_places(value: Any) -> Any:
    """A recipe, its absolute paths cut to their last part."""
    if isinstance(value, Mapping):
        return {name: _without_places(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(one) for one in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute():
                return kind(value).name
    return value


def _first_line(error: BaseException) -> str:
    return f"{(str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')}."


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise TubeletError(
            "The hub needs huggingface_hub, which is not installed: pip install 'tubelet[hf]'."
        ) from error
    return huggingface_hub
