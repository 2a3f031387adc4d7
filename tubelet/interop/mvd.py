"""The published layout of MVD's students (arXiv 2212.04500), both ways.

Their fine-tuned models have the names of VideoMAE's: `videomae.CLASSIFIER`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tubelet.interop.names import renamed
from tubelet.interop.tables import with_tables, without_tables

PRETRAIN = (
    ("patch_embed.", "backbone.patch_embed."),
    ("blocks.", "backbone.blocks."),
    ("norm.", "backbone.norm."),
    ("cls_token", "backbone.class_token"),
    ("down_img.", "branches.image.decoder.project."),
    ("down_vid.", "branches.video.decoder.project."),
    ("mask_token_img", "branches.image.decoder.mask_token"),
    ("mask_token_vid", "branches.video.decoder.mask_token"),
    ("decoder_img.", "branches.image.decoder."),
    ("decoder_vid.", "branches.video.decoder."),
)
TABLES = {
    "pos_embed": "backbone.positions",
    "pos_embed_img": "branches.image.decoder.positions",
    "pos_embed_vid": "branches.video.decoder.positions",
}


def from_published(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A student's state dict -> that of a `MaskedModel` with branches `image` and `video`.

    The three position tables in it are compared with the model's, and not loaded.
    """
    return renamed(without_tables(state, TABLES, model), PRETRAIN)


def to_published(model: nn.Module) -> dict[str, Tensor]:
    """The inverse, position tables included."""
    return with_tables(renamed(model.state_dict(), PRETRAIN, back=True), TABLES, model)
