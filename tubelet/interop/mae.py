"""The published layout of image MAE (arXiv 2111.06377), both ways.

Theirs: a Conv2d for patches, one bias for queries, keys and values, position tables in the
file with a row of zeros for the class token. Ours: a Conv3d over one frame, no bias of keys (it
cannot change a softmax over keys), tables computed.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tubelet.interop.names import Table, renamed
from tubelet.interop.tables import join_bias, split_bias, with_tables, without_tables

ENCODER: Table = (
    ("patch_embed.", "backbone.patch_embed."),
    ("blocks.", "backbone.blocks."),
    ("norm.", "backbone.norm."),
    ("cls_token", "backbone.class_token"),
)
# The `_full` files hold the decoder too.
PRETRAIN: Table = (
    *ENCODER,
    ("mask_token", "branches.pixels.decoder.mask_token"),
    ("decoder_embed.", "branches.pixels.decoder.project."),
    ("decoder_blocks.", "branches.pixels.decoder.blocks."),
    ("decoder_norm.", "branches.pixels.decoder.norm."),
    ("decoder_pred.", "branches.pixels.decoder.head."),
)
TABLES = {
    "pos_embed": "backbone.positions",
    "decoder_pos_embed": "branches.pixels.decoder.positions",
}
PATCHES = "patch_embed.proj.weight"


def from_published(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict of a `_full` file -> that of a `MaskedModel` with a branch `pixels`.

    The two position tables in it are compared with the model's, and not loaded.
    """
    return renamed(to_frames(without_tables(state, TABLES, model)), PRETRAIN)


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """The inverse, position tables included."""
    return with_tables(names_back(model.state_dict()), TABLES, model, prefix=1)


def names_back(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> theirs, biases joined, kernels of images; for gradients too."""
    theirs = join_bias(renamed(state, PRETRAIN, back=True))
    return {k: v.squeeze(2) if k == PATCHES else v for k, v in theirs.items()}


def to_frames(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kernels [D,C,p,p] of images -> [D,C,1,p,p] of clips of one frame; joined biases split.

    What is in our form already stays as it is.
    """
    return {
        name: value.unsqueeze(2) if name == PATCHES and value.dim() == 4 else value
        for name, value in split_bias(state).items()
    }
