"""The published VideoMAE layout of weights (spec: arXiv 2203.12602's released files)."""

from __future__ import annotations

# Pretraining: their encoder is our backbone; the pixel branch holds their decoder.
PRETRAIN = (
    ("encoder.", "backbone."),
    ("encoder_to_decoder.", "branches.pixels.decoder.project."),
    ("mask_token", "branches.pixels.decoder.mask_token"),
    ("decoder.", "branches.pixels.decoder."),
)

# Fine-tuning: no prefix for the trunk. MVD's fine-tuned models have the same names.
CLASSIFIER = (
    ("fc_norm.", "fc_norm."),
    ("head.", "head."),
    ("patch_embed.", "backbone.patch_embed."),
    ("blocks.", "backbone.blocks."),
)
