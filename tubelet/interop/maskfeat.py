"""Names of MaskFeat's models in PySlowFast's layout (specified names; arXiv 2112.09133).

The multiscale networks keep their names. `hogs` in front of fixed filters, which we compute without,
are dropped. The image networks have one bias for queries, keys and values, and their patch
embedding in two dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.interop.names import renamed
from tubelet.interop.tables import join_bias, split_bias

ENCODER = (
    ("patch_embed.", "backbone.patch_embed."),
    ("blocks.", "backbone.blocks."),
    ("cls_token", "backbone.class_token"),
)
PRETRAIN = (
    *ENCODER,
    ("mask_token", "backbone.mask_token"),
    ("pos_embed", "backbone.positions.table"),
    ("pred_head.transforms.0.0.", "branches.hog.decoder.norm."),
    ("pred_head.projections.0.", "branches.hog.decoder.head."),
)
CLASSIFIER = (
    *ENCODER,
    ("pos_embed", "backbone.positions.table"),
    ("norm.", "fc_norm."),
    ("head.projection.", "head."),
)
FILTERS = "hogs."
PATCHES = "patch_embed.proj.weight"
TABLE = "pos_embed"


def from_published(
    state: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    """A published state dict -> ours; `table`: `PRETRAIN` or `CLASSIFIER`. Unknown names are errors."""
    kept = {
        name.replace("patch_embed.project.", "patch_embed.proj."): value  # as some files spell it
        for name, value in state.items()
        if not name.startswith(FILTERS)
    }
    if PATCHES not in kept:
        raise TubeletError(f"These are no weights of this layout: they have no {PATCHES}.")
    if kept[PATCHES].dim() == 4:  # of images
        kept[PATCHES] = kept[PATCHES].unsqueeze(2)
        kept[TABLE] = kept[TABLE][0]
        kept = split_bias(kept)
    return renamed(kept, table)


def names_back(
    state: Mapping[str, Tensor], table: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    """Our tensors (weights or gradients) -> under the published names, without fixed filters."""
    found = renamed(state, table, back=True)
    if TABLE in found:
        found[PATCHES] = found[PATCHES].squeeze(2)
        found[TABLE] = found[TABLE][None]
        found = join_bias(found)
    return found


def filters() -> dict[str, Tensor]:
    """The fixed filters that published pretraining files hold: Sobel's, for each colour."""
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).expand(3, 1, 3, 3)
    return {
        f"{FILTERS}0.weight_x": across.clone(),
        f"{FILTERS}0.weight_y": across.transpose(2, 3).clone(),
    }
