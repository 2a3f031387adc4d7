"""Weights of Hugging Face's VideoMAE models (transformers 5), both ways.

`VideoMAEForPreTraining` must be configured with `use_mean_pooling=False` (else it has no final
LayerNorm in the encoder) and both models with `layer_norm_eps=1e-6` (its default is 1e-12). The
norm that ends its decoder keeps an eps of 1e-5 all the same, where published is 1e-6: predictions
differ by some 3e-6.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.interop.names import renamed

PRETRAIN = (
    ("videomae.embeddings.patch_embeddings.projection.", "backbone.patch_embed.proj."),
    ("videomae.encoder.layer.", "backbone.blocks."),
    ("videomae.layernorm.", "backbone.norm."),
    ("encoder_to_decoder.", "branches.pixels.decoder.project."),
    ("mask_token", "branches.pixels.decoder.mask_token"),
    ("decoder.decoder_layers.", "branches.pixels.decoder.blocks."),
    ("decoder.norm.", "branches.pixels.decoder.norm."),
    ("decoder.head.", "branches.pixels.decoder.head."),
)
CLASSIFIER = (
    ("videomae.embeddings.patch_embeddings.projection.", "backbone.patch_embed.proj."),
    ("videomae.encoder.layer.", "backbone.blocks."),
    ("fc_norm.", "fc_norm."),
    ("classifier.", "head."),
)
# Inside a block: theirs, ours. "output.dense." ends the name of the attention's projection too.
BLOCK = (
    ("attention.output.dense.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
)
SPLIT = "attention.attention."  # holds query, key and value apart


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of theirs -> ours; queries, keys and values become one matrix."""
    theirs = renamed(state, PRETRAIN if "mask_token" in state else CLASSIFIER)
    ours: dict[str, Tensor] = {}
    for name, value in theirs.items():
        block, split, part = name.partition(SPLIT)
        if not split:
            ours[_swap(name, 0, 1)] = value
        elif part == "query.weight":
            qkv = [theirs[block + SPLIT + p + ".weight"] for p in ("query", "key", "value")]
            ours[block + "attn.qkv.weight"] = torch.cat(qkv)
        elif part in ("query.bias", "value.bias"):
            ours[f"{block}attn.{part[0]}_bias"] = value
        elif part not in ("key.weight", "value.weight"):
            raise TubeletError(f"{name} is not a parameter of Hugging Face's VideoMAE attention.")
    return ours


def to_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours (`MaskedModel` with a pixel branch, or `Classifier`) -> theirs."""
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        block, _, part = name.partition("attn.")
        if part == "qkv.weight":
            for key, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                split[f"{block}{SPLIT}{key}.weight"] = rows.clone()
        elif part in ("q_bias", "v_bias"):
            split[f"{block}{SPLIT}{'query' if part == 'q_bias' else 'value'}.bias"] = value
        else:
            split[_swap(name, 1, 0)] = value
    table = PRETRAIN if any(name.startswith("branches.") for name in state) else CLASSIFIER
    return renamed(split, table, back=True)


def _swap(name: str, old: int, new: int) -> str:
    """The name with its part inside a block in the other layout."""
    if ".blocks." not in name:
        return name
    for row in BLOCK:
        if row[old] in name:
            return name.replace(row[old], row[new])
    return name
