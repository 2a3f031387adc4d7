"""MAE-ST's layout in PySlowFast: masked autoencoders on clips (arXiv 2205.09113), both ways.

A plain encoder with a class token and learned positions, which are separate in the file: one table for
places, one for time slots, a row for the class token. Ours is their sum. The decoder predicts the
pixels of every second frame alone, which no target here does: it is kept for the way back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tubelet.backbones.backbone import KINETICS_MEAN, KINETICS_STD
from tubelet.errors import TubeletError
from tubelet.interop import sizes
from tubelet.interop.found import Found
from tubelet.interop.ledger import Ledger
from tubelet.interop.names import Table, renamed
from tubelet.interop.sizes import PATCHES
from tubelet.interop.slowfast import (
    HEAD,
    HEADS,
    NAME,
    clip_of,
    drop_all_but_encoder,
    integer,
    read_classifier,
    require_statistics,
    statistics,
)
from tubelet.interop.tables import POSITIONS, join_biases
from tubelet.interop.videomae import NORM, TRUNK, require

WHOSE = "MAE-ST's ViT of clips"
JOINT = "pos_embed"
SEPARATE = ("pos_embed_class", "pos_embed_spatial", "pos_embed_temporal")
DECODER = ("decoder_embed.", "decoder_pos_embed", "mask_token", "pred_head.")
WHY = "of a decoder that predicts pixels of every second frame, which no target here does"


def is_one(ledger: Ledger) -> bool:
    """Whether positions are separate; or of clips, with a class token, and heads of this layout or a
    row of the table for it: slots and places make an even number, where no axis is odd."""
    patches, table = ledger.left.get(PATCHES), ledger.left.get(JOINT)
    clips = patches is not None and patches.dim() == 5 and "cls_token" in ledger.left
    row = table is not None and table.dim() == 3 and table.shape[1] % 2 == 1
    return ledger.has(*SEPARATE) or (
        clips and (row or ledger.has("head.projection.", *DECODER[:2]))
    )


def read(ledger: Ledger) -> Found:
    """The encoder of a pretrained file, which alone has a place here, or a fine-tuned model."""
    told, path, settings = ledger.told, ledger.raw.path, ledger.raw.settings
    if told.encoder_only:
        drop_all_but_encoder(ledger, DECODER)
    shape, in_chans = sizes.vit_shape(
        *(ledger.left, told, path, "learned"),
        class_token=True,
        **{"mean": KINETICS_MEAN, "std": KINETICS_STD}
        | statistics(settings, KINETICS_MEAN, KINETICS_STD),
    )
    separate = ledger.has(*SEPARATE)
    names = SEPARATE if separate else (JOINT,)
    parts = [sizes.table_of(ledger.left, name, shape.width, path) for name in names]
    tables = [table for table in parts if table is not None]
    if len(tables) < len(names):
        raise TubeletError(f"{path} lacks one of {', '.join(names)}: its positions are incomplete.")
    table, frames = tables[0], integer(settings, "DATA.NUM_FRAMES")
    if separate:
        table, frames = summed(*tables), len(tables[2]) * shape.tubelet_size
    trained = sizes.trained_on(
        *(shape, told, {"num_frames": frames}, path, ledger.report.notes, table), prefix=1
    )
    if separate and trained[0] != frames:
        raise TubeletError(
            f"{path} has positions of {len(tables[2])} time slots, which are {frames} frames, where "
            f"--trained says {trained[0]}."
        )
    ledger.kept |= {name: ledger.left[name] for name in names if separate}
    ledger.put({POSITIONS: table}, *names)
    ledger.move(TRUNK)
    ledger.keep_all(DECODER, WHY)
    if ledger.has(*HEADS):
        return read_classifier(ledger, WHOSE, shape, trained, in_chans)
    normed = ledger.has("norm.")
    ledger.move(NORM)
    clip = clip_of(settings, trained[0])
    header = sizes.header_of("encoder", shape, trained, in_chans, final_norm=normed, **clip)
    return ledger.done(NAME, f"{WHOSE}, the encoder alone", header)


def summed(first: Tensor, places: Tensor, slots: Tensor) -> Tensor:
    """[R,D], [hw,D], [t,D] -> float32 [R+t*hw,D]: of each token the sum of its place's and slot's."""
    both = slots.float()[:, None] + places.float()
    return torch.cat([first.float(), both.flatten(0, 1)])


def write(found: Found) -> dict[str, Tensor]:
    """A model of ours -> its tensors under plain names, with the positions of its file, or else in
    one table; TubeletError for what has no place."""
    require(found, "MAE-ST's layout", position="learned", class_token=True)
    if found.kind == "pretraining":
        raise TubeletError(
            "MAE-ST's layout has no place for this decoder: convert its encoder alone (finetune, or "
            "the backbone), or to --to tubelet."
        )
    require_statistics(found, KINETICS_MEAN, KINETICS_STD)
    weights = dict(found.weights)
    table = weights.pop(POSITIONS)
    rest: Table = HEAD if found.kind == "classifier" else NORM
    origin = found.origin
    kept = origin.kept if origin is not None and origin.layout == NAME else {}
    state = join_biases(renamed(weights, (*TRUNK, *rest), back=True), kept, always=True)
    if not all(name in kept for name in SEPARATE):
        return {JOINT: table[None], **state}
    before = summed(*(kept[name][0] for name in SEPARATE))
    if before.shape != table.shape or not torch.equal(before, table.float()):
        raise TubeletError(
            "The positions of this model were trained on since it was read, and MAE-ST's layout has "
            "them as sums of places and time slots, into which they cannot be taken apart: convert it "
            "--to tubelet."
        )
    return state
