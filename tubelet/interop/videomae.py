"""VideoMAE's and VideoMAE V2's layout (arXiv 2203.12602, 2303.16727; their code), both ways.

Pretraining: `encoder.`, `decoder.`, `encoder_to_decoder.`, `mask_token`. Fine-tuning: the trunk
without a prefix, `fc_norm.`, `head.`; MVD's fine-tuned models have the same names, and other
positions, which are in no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from tubelet.backbones.positions import PositionKind
from tubelet.errors import TubeletError
from tubelet.interop import sizes
from tubelet.interop.found import Found, ask
from tubelet.interop.ledger import Ledger
from tubelet.interop.names import Table, renamed
from tubelet.interop.tables import join_biases

NAME = "videomae"
TRUNK: Table = (
    ("patch_embed.", "backbone.patch_embed."),
    ("blocks.", "backbone.blocks."),
    ("cls_token", "backbone.class_token"),  # never VideoMAE's: an option of MVD's script
)
NORM: Table = (("norm.", "backbone.norm."),)
DECODER: Table = (
    ("encoder_to_decoder.", "branches.pixels.decoder.project."),
    ("mask_token", "branches.pixels.decoder.mask_token"),
    ("decoder.", "branches.pixels.decoder."),
)
HEAD: Table = (("fc_norm.", "fc_norm."), ("head.", "head."))
PRETRAIN = (*TRUNK, *NORM, *DECODER)
CLASSIFIER = (*TRUNK, *HEAD)
DECODERS = ("decoder.", "encoder_to_decoder.", "mask_token")
HEADS = ("head.", "fc_norm.")
# Options that only one system's fine-tuning script has, as its settings are saved.
MARKS: dict[str, PositionKind] = {
    "remove_pos_emb": "sincos_3d",
    "with_checkpoint": "sinusoid_1d",
}


def read(ledger: Ledger) -> Found:
    """A file of clips without position tables: pretrained, fine-tuned, or an encoder alone."""
    settings, told, path = ledger.raw.settings, ledger.told, ledger.raw.path
    position = _position(ledger)
    if told.encoder_only:
        ledger.drop_all((*DECODERS, *HEADS), "only the encoder was asked for")
    token = "cls_token" in ledger.left
    shape, in_chans = sizes.vit_shape(ledger.left, told, path, position, class_token=token)
    trained = sizes.trained_on(shape, told, settings, path, ledger.report.notes)
    ledger.move(TRUNK)
    if ledger.has("decoder."):
        decoder = sizes.decoder_shape(ledger.left, "decoder.blocks.", told, path)
        ledger.move((*NORM, *DECODER))
        run = {**_method(shape.patch, settings), "decoder": asdict(decoder)}
        header = sizes.header_of("pretraining", shape, trained, in_chans, settings, run=run)
        return ledger.done(NAME, "VideoMAE, pretrained: encoder and decoder", header)
    whose = "MVD" if position == "sincos_3d" else "VideoMAE"
    layout = "mvd" if position == "sincos_3d" else NAME
    if ledger.has(*HEADS):
        return read_classifier(ledger, layout, f"{whose}, fine-tuned", shape, trained, in_chans)
    normed = ledger.has("norm.")
    ledger.move(NORM)
    header = sizes.header_of("encoder", shape, trained, in_chans, settings, final_norm=normed)
    return ledger.done(layout, f"{whose}, the encoder alone", header)


def read_classifier(
    ledger: Ledger,
    layout: str,
    what: str,
    shape: Any,
    trained: tuple[int, int, int],
    in_chans: int,
) -> Found:
    """The head of a fine-tuned model: a mean over tokens, a norm, a linear layer."""
    if ledger.has("norm."):
        raise TubeletError(
            f"{ledger.raw.path} has a head that reads one token (norm. in the place of fc_norm.), "
            "where ours reads the mean of all: take its encoder alone, with --encoder-only (in "
            "Python: encoder_only=True)."
        )
    weight = ledger.left.get("head.weight")
    ledger.move(HEAD)
    outputs = 0 if weight is None else len(weight)
    header = sizes.header_of(
        *("classifier", shape, trained, in_chans, ledger.raw.settings), outputs=outputs
    )
    return ledger.done(layout, f"{what}: {outputs} classes", header)


def _position(ledger: Ledger) -> PositionKind:
    """Which table: names tell that for VideoMAE's pretraining alone."""
    told = ledger.told.position
    if told is not None:
        return told
    if ledger.has(*DECODERS):
        return "sinusoid_1d"
    # VideoMAE's pretrained encoder, by its prefix: which a wrapper of one's own may have put there.
    if ledger.was("encoder.") and not ledger.has(*HEADS, "cls_token"):
        ledger.report.notes.append(
            "positions taken as VideoMAE's, sinusoid_1d, by the prefix encoder. of its names (--position "
            "says otherwise)"
        )
        return "sinusoid_1d"
    if "cls_token" in ledger.left:
        return "sincos_3d"
    marks: set[PositionKind] = {k for mark, k in MARKS.items() if mark in ledger.raw.settings}
    if len(marks) == 1:
        return marks.pop()
    raise ask(
        ledger.raw.path,
        "its positions, and VideoMAE's and MVD's encoders have the same names",
        "--position",
        "sinusoid_1d for VideoMAE and V2, sincos_3d for MVD",
        "sinusoid_1d",
    )


def _method(patch: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The run's type, and the options of its masks and target that the settings name."""
    two = bool(settings.get("decoder_mask_ratio")) or patch == 14  # V2's giant
    found: dict[str, Any] = {
        "type": "tubelet.methods.videomae_v2:VideoMAEV2"
        if two
        else "tubelet.methods.videomae:VideoMAE"
    }
    names = {"mask_ratio": "mask_ratio", "normlize_target": "normalise_target"}
    names |= {"decoder_mask_ratio": "decoder_mask_ratio"} if two else {}
    for theirs, ours in names.items():
        value = settings.get(theirs)
        if isinstance(value, (bool, float)):
            found[ours] = value
    return found


def write(found: Found) -> dict[str, Tensor]:
    """A model of ours -> its tensors under plain names; TubeletError for what has no place."""
    require(found, "VideoMAE's layout", position="sinusoid_1d", class_token=False)
    kept = {} if found.origin is None else found.origin.kept
    table = CLASSIFIER if found.kind == "classifier" else PRETRAIN
    return join_biases(renamed(found.weights, table, back=True), kept)


def spell(found: Found, name: str) -> str:
    """The name of a new file: in pretraining the encoder has a prefix."""
    trunk = name.startswith(("patch_embed.", "blocks.", "norm."))
    return f"encoder.{name}" if trunk and found.kind != "classifier" else name


def require(found: Found, layout: str, **shape: Any) -> None:
    """TubeletError for a model that this layout cannot hold: of other shape, or other branches."""
    own = {"class_token_of": "clip", **found.header["backbone"]["shape"]}
    wrong = [
        f"{name} {own.get(name)!r} (it has {value!r})"
        for name, value in {"hide": "drop", "class_token_of": "clip", **shape}.items()
        if own.get(name) != value
    ]
    if "width" not in own:
        wrong = ["a multiscale encoder"]
    if wrong:
        raise TubeletError(f"{layout} has no place for this model: {'; '.join(wrong)}.")
