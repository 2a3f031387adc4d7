"""Folders of Hugging Face's models: VideoMAE, and the ViT and ViTMAE of images; both ways.

A folder holds config.json, weights (safetensors, torch's, or in shards) and, for whoever feeds the
model, preprocessor_config.json. They are read and written as plain files, without transformers.

What differs from its networks: ours have a `layer_norm_eps` of 1e-6, as published models were
trained; the norm that ends their video decoder has 1e-5 whatever the config says, by which
predictions differ by some 3e-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.backbones.positions import TABLES, PositionKind
from tubelet.backbones.vit import ViTShape
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop import huggingface_config as configs
from tubelet.interop import sizes
from tubelet.interop.found import Found
from tubelet.interop.ledger import Ledger
from tubelet.interop.names import Table, some
from tubelet.interop.reading import Raw, read_json, read_raw
from tubelet.interop.tables import FIXED, POSITIONS, check_table

NAME = "hf"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FRONT = ("module.", "_orig_mod.", "videomae.", "vit.")  # before names; none in a bare encoder
# Spellings of the same name, by version of transformers: as in others, as here.
SPELLINGS = (
    ("attention.attention.q_bias", "attention.attention.query.bias"),
    ("attention.attention.v_bias", "attention.attention.value.bias"),
    ("attention.q_proj.", "attention.attention.query."),
    ("attention.k_proj.", "attention.attention.key."),
    ("attention.v_proj.", "attention.attention.value."),
    ("attention.o_proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
    ("decoder.decoder_encoder.layer.", "decoder.decoder_layers."),
)
TRUNK: Table = (
    ("embeddings.patch_embeddings.projection.", "backbone.patch_embed.proj."),
    ("embeddings.cls_token", "backbone.class_token"),
    ("encoder.layer.", "backbone.blocks."),
    ("layernorm.", "backbone.norm."),
)
DECODER: Table = (
    ("encoder_to_decoder.", "branches.pixels.decoder.project."),
    ("mask_token", "branches.pixels.decoder.mask_token"),
    ("decoder.decoder_layers.", "branches.pixels.decoder.blocks."),
    ("decoder.norm.", "branches.pixels.decoder.norm."),
    ("decoder.head.", "branches.pixels.decoder.head."),
)
IMAGE_DECODER: Table = (
    ("decoder.decoder_embed.", "branches.pixels.decoder.project."),
    ("decoder.mask_token", "branches.pixels.decoder.mask_token"),
    ("decoder.decoder_layers.", "branches.pixels.decoder.blocks."),
    ("decoder.decoder_norm.", "branches.pixels.decoder.norm."),
    ("decoder.decoder_pred.", "branches.pixels.decoder.head."),
)
HEAD: Table = (("fc_norm.", "fc_norm."), ("classifier.", "head."))
# Inside a block: theirs, ours. "output.dense." ends the name of the attention's projection too.
BLOCK = (
    ("attention.output.dense.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
)
SPLIT = "attention.attention."  # holds query, key and value apart
TABLE, DECODER_TABLE = "embeddings.position_embeddings", "decoder.decoder_pos_embed"
HEADS_OF_A_TOKEN = ("classifier.", "pooler.")
BRANCH = "branches.pixels.decoder."


@dataclass(frozen=True)
class Family:
    """The models of one `model_type`."""

    front: str  # before the encoder's names, in a model that has more
    decoder: Table
    processor: str
    defaults: Mapping[str, Any]
    architectures: Mapping[str, str]  # of each kind of ours


FAMILIES = {
    "videomae": Family(
        "videomae.",
        DECODER,
        "VideoMAEImageProcessor",
        configs.DEFAULTS,
        {
            "pretraining": "VideoMAEForPreTraining",
            "classifier": "VideoMAEForVideoClassification",
            "encoder": "VideoMAEModel",
        },
    ),
    "vit": Family(
        *("vit.", (), "ViTImageProcessor", configs.IMAGE_DEFAULTS),
        {"encoder": "ViTModel"},
    ),
    "vit_mae": Family(
        *("vit.", IMAGE_DECODER, "ViTImageProcessor", configs.IMAGE_DEFAULTS),
        {"pretraining": "ViTMAEForPreTraining"},
    ),
}


def folder_of(path: Path) -> Path | None:
    """The folder of a Hugging Face model that this is, or whose weights file; else None."""
    if path.is_file() and path.name not in WEIGHTS:
        return None
    folder = path if path.is_dir() else path.parent
    config = folder / configs.CONFIG
    return folder if config.is_file() and "model_type" in read_json(config) else None


def raw_of(folder: Path) -> Raw:
    """The weights in a folder, and what lies beside them: `settings` are its config, with the
    preprocessor's as `preprocessor`."""
    config = read_json(folder / configs.CONFIG)
    kind = config["model_type"]
    if kind not in list(FAMILIES):  # by equality: JSON may hold anything
        raise TubeletError(
            f"{folder} is a Hugging Face model of type {kind!r}: known are {', '.join(FAMILIES)}. As a "
            "teacher further ones can serve, see docs/teachers.md."
        )
    stated = folder / configs.PREPROCESSOR
    settings = configs.settled(config, FAMILIES[kind].defaults, folder / configs.CONFIG)
    settings["preprocessor"] = read_json(stated) if stated.is_file() else {}
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is not None:
        return replace(read_raw(weights), path=folder, settings=settings)
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return Raw(folder, _shards(index), settings=settings)
    raise TubeletError(
        f"{folder} holds no weights: expected {' or '.join(WEIGHTS)}, or their index."
    )


def _shards(index: Path) -> dict[str, Tensor]:
    """The tensors of the files that an index names."""
    said = read_json(index).get("weight_map")
    if not isinstance(said, dict) or not said:
        raise TubeletError(f"{index} has no weight_map: expected the file of each tensor by name.")
    files = sorted({str(file) for file in said.values()})
    if any(Path(file).name != file for file in files):
        raise TubeletError(f"{index} names files outside its folder: refused.")
    state: dict[str, Tensor] = {}
    for file in files:
        part = read_raw(index.parent / file).state
        twice = [name for name in part if name in state]
        if twice:
            raise TubeletError(f"{index}: {some(twice)} lie in more than one of its files.")
        state |= part
    missing = [name for name in said if name not in state]
    if missing:
        raise TubeletError(f"{index} names tensors that its files lack: {some(missing)}.")
    return {name: state[name] for name in said} | state  # in its order, then what it does not name


def plain_name(name: str) -> str:
    """A name in one spelling, without what a model puts before its encoder's."""
    while name.startswith(FRONT):
        name = name.removeprefix(next(front for front in FRONT if name.startswith(front)))
    name = f"encoder.layer.{name.removeprefix('layers.')}" if name.startswith("layers.") else name
    for theirs, ours in SPELLINGS:
        if theirs in name:
            return name.replace(theirs, ours)
    return name


def read(ledger: Ledger) -> Found:
    """A folder's weights -> what they are, in our terms."""
    config = ledger.raw.settings
    if not ledger.raw.settings["preprocessor"] and config["model_type"] == "vit":
        raise TubeletError(
            f"{ledger.raw.path} has no {configs.PREPROCESSOR}, and models of type vit were trained with "
            "several normalisations of pixels. Put the one that came with the model there."
        )
    if not ledger.raw.settings["preprocessor"]:
        ledger.report.notes.append(
            f"pixels are normalised by ImageNet's mean and std: there is no {configs.PREPROCESSOR}"
        )
    return _read_clips(ledger) if config["model_type"] == "videomae" else _read_images(ledger)


def _read_clips(ledger: Ledger) -> Found:
    """VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel."""
    config, path = ledger.raw.settings, ledger.raw.path
    if ledger.told.encoder_only:
        fronts = tuple(theirs for theirs, _ in (*DECODER, *HEAD))
        ledger.drop_all(fronts, "only the encoder was asked for")
    if ledger.told.position not in (None, "sinusoid_1d"):
        raise TubeletError(
            f"{path} says its positions itself (sinusoid_1d): leave position {ledger.told.position!r} out."
        )
    kind = "encoder"
    if ledger.has("decoder.", "encoder_to_decoder."):
        kind = "pretraining"
    elif ledger.has("classifier.", "fc_norm."):
        kind = "classifier"
    normed = ledger.has("layernorm.")
    if (kind, normed) in (("pretraining", False), ("classifier", True)):
        does = "reads one token" if normed else "has no norm after its encoder"
        raise TubeletError(
            f"{path} (use_mean_pooling {config['use_mean_pooling']}) {does}, which ours cannot hold: take "
            "its encoder alone, with --encoder-only (in Python: encoder_only=True)."
        )
    _take(ledger, (*TRUNK, *DECODER, *HEAD))
    shape, in_chans = _shape(ledger, "sinusoid_1d")
    made: dict[str, Any] = {}
    decoder = _decoder(ledger) if kind == "pretraining" else None
    if decoder is not None:
        made["run"] = {
            "type": "tubelet.methods.videomae:VideoMAE",
            "decoder": asdict(decoder),
            "normalise_target": bool(config["norm_pix_loss"]),
        }
    configs.check(config, shape, in_chans, decoder, path)
    if kind == "classifier":
        head = ledger.weights.get("head.weight")
        made["outputs"] = 0 if head is None else len(head)
        made["classes"] = configs.classes_of(config, made["outputs"], path)
    header = _header(ledger, kind, shape, in_chans, final_norm=normed, **made)
    header["label_kind"] = configs.label_kind(config) if made.get("outputs") else "unlabelled"
    what = FAMILIES["videomae"].architectures[kind]
    return ledger.done(NAME, f"Hugging Face's {what}", header)


def _read_images(ledger: Ledger) -> Found:
    """ViTModel, ViTForImageClassification, ViTMAEForPreTraining."""
    config, path = ledger.raw.settings, ledger.raw.path
    ledger.keep_all(HEADS_OF_A_TOKEN, "it reads the class token, where heads here read the mean")
    ledger.keep_all(("embeddings.mask_token",), "a token for images with holes")
    if ledger.told.encoder_only:
        ledger.drop_all(("decoder.",), "only the encoder was asked for")
    kind = "pretraining" if ledger.has("decoder.") else "encoder"
    if TABLE not in ledger.left or not ledger.has("embeddings.cls_token"):
        raise TubeletError(f"{path} lacks {TABLE} or a class token, which models of its type have.")
    _take(ledger, (*TRUNK, *IMAGE_DECODER))
    shape, in_chans = _shape(ledger, "learned", class_token=True)
    shape = _positions(ledger, shape, kind)
    made: dict[str, Any] = {"sampling_rate": 1}
    decoder = _decoder(ledger) if kind == "pretraining" else None
    if decoder is not None:
        table = sizes.table_of(ledger.left, DECODER_TABLE, decoder.width, path)
        if table is not None:
            grid = shape.grid_for(*_trained(ledger))
            check_table(DECODER_TABLE, table, TABLES["sincos_2d"](grid, decoder.width))
            ledger.keep(DECODER_TABLE, FIXED)
        made["run"] = {
            "type": "tubelet.methods.mae:ImageMAE",
            "decoder": asdict(decoder),
            "normalise_target": bool(config["norm_pix_loss"]),
        }
    configs.check(config, shape, in_chans, decoder, path)
    header = _header(ledger, kind, shape, in_chans, final_norm=True, **made)
    return ledger.done(NAME, f"Hugging Face's {config['model_type']}, {kind}", header)


def _positions(ledger: Ledger, shape: ViTShape, kind: str) -> ViTShape:
    """The encoder's shape with the kind of its position table, which is taken or kept."""
    path = ledger.raw.path
    table = sizes.table_of(ledger.left, TABLE, shape.width, path)
    assert table is not None
    grid = shape.grid_for(*_trained(ledger))
    if len(table) != 1 + grid.size:
        raise TubeletError(
            f"The weights in {path} are not those of its {configs.CONFIG}: {TABLE} has "
            f"{len(table) - 1} positions, and an image_size of {ledger.raw.settings['image_size']} "
            f"{grid.size} tokens."
        )
    position = sizes.position_of(table, grid, ("sincos_2d",), ledger.told, path, 1)
    if position != "learned":
        ledger.keep(TABLE, FIXED)
    elif kind == "pretraining":
        raise TubeletError(
            f"{path} has a decoder and learned positions, where image MAE's are fixed: take its encoder "
            "alone, with --encoder-only (in Python: encoder_only=True)."
        )
    else:
        ledger.put({POSITIONS: table}, TABLE)
    return replace(shape, position=position)


def _take(ledger: Ledger, table: Table) -> None:
    """Moves what the table has a name for; queries, keys and values become one matrix."""
    for name in list(ledger.left):
        row = next((row for row in table if name.startswith(row[0])), None)
        if row is None:
            continue
        own = row[1] + name.removeprefix(row[0])
        block, split, part = own.partition(SPLIT)
        if not split:
            ledger.put({swap(own, 0, 1): ledger.left[name]}, name)
        elif part == "query.weight":
            three = [name.replace("query.", f"{p}.") for p in ("query", "key", "value")]
            if len({ledger.left[one].shape for one in three if one in ledger.left}) > 1:
                raise TubeletError(
                    f"{ledger.raw.path}: {some(three)} are of several shapes, where one is expected."
                )
            if all(one in ledger.left for one in three):
                joined = torch.cat([ledger.left[one] for one in three])
                ledger.put({f"{block}attn.qkv.weight": joined}, *three)
        elif part in ("query.bias", "value.bias"):
            ledger.put({f"{block}attn.{part[0]}_bias": ledger.left[name]}, name)
        elif part == "key.bias":
            ledger.keep(name, "of keys: it changes no softmax")
    joined = [name for name in ledger.weights if name.endswith("attn.qkv.weight")]
    biased = any(name.endswith(("attn.q_bias", "attn.v_bias")) for name in ledger.weights)
    said = [ledger.raw.settings.get(name) for name in ("qkv_bias", "qv_bias")]  # older, newer
    if joined and not biased and False in said:
        ledger.report.notes.append("queries and values have no biases (qkv_bias false): zeros here")
        for name in joined:
            zeros = ledger.weights[name].new_zeros(len(ledger.weights[name]) // 3)
            block = name.removesuffix("qkv.weight")
            ledger.weights |= {f"{block}q_bias": zeros, f"{block}v_bias": zeros.clone()}


def _shape(ledger: Ledger, position: PositionKind, **options: Any) -> tuple[ViTShape, int]:
    """The encoder's sizes, of tensors that are taken; heads are the config's."""
    config, told, path = ledger.raw.settings, ledger.told, ledger.raw.path
    own = {name.removeprefix("backbone."): value for name, value in ledger.weights.items()}
    told = replace(told, heads=told.heads or config["num_attention_heads"])
    patches = own.get(sizes.PATCHES)
    in_chans = patches.shape[1] if patches is not None and patches.dim() > 3 else 3
    pixels = configs.pixels_of(config["preprocessor"], in_chans, path)
    shape, in_chans = sizes.vit_shape(own, told, path, position, **options, **pixels)
    ledger.report.notes += configs.notes(config, shape.heads, shape.width)
    _as_clips(ledger.weights)
    return shape, in_chans


def _as_clips(weights: dict[str, Tensor]) -> None:
    """Kernels [D,C,p,p] of images become [D,C,1,p,p] of clips of one frame."""
    name = f"backbone.{sizes.PATCHES}"
    if weights[name].dim() == 4:
        weights[name] = weights[name].unsqueeze(2)


def _decoder(ledger: Ledger) -> DecoderShape:
    heads = ledger.told.decoder_heads or ledger.raw.settings["decoder_num_attention_heads"]
    told = replace(ledger.told, decoder_heads=heads)
    return sizes.decoder_shape(ledger.weights, f"{BRANCH}blocks.", told, ledger.raw.path)


def _trained(ledger: Ledger) -> tuple[int, int, int]:
    config = ledger.raw.settings
    size = configs.size_of(config["image_size"], ledger.raw.path)
    frames = config["num_frames"] if config["model_type"] == "videomae" else 1
    return ledger.told.trained or (frames, *size)


def _header(
    ledger: Ledger, kind: str, shape: ViTShape, in_chans: int, **made: Any
) -> dict[str, Any]:
    trained = _trained(ledger)
    grid = shape.grid_for(*trained)
    if grid.size > sizes.MOST_TOKENS:
        raise TubeletError(f"{ledger.raw.path}: clips of {trained} would be {grid.size} tokens.")
    view = configs.view_of(ledger.raw.settings["preprocessor"], trained[1:])
    return sizes.header_of(kind, shape, trained, in_chans, **view, **made)


def swap(name: str, old: int, new: int) -> str:
    """The name with its part inside a block in the other layout."""
    if ".blocks." not in name:
        return name
    for row in BLOCK:
        if row[old] in name:
            return name.replace(row[old], row[new])
    return name
