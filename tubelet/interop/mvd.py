"""MVD's layout (arXiv 2212.04500; its code), both ways.

Pretraining: the trunk without a prefix, for each of the branches `img` and `vid` a projection, a mask
token and a decoder, and three fixed position tables. Fine-tuned models have VideoMAE's names
(`videomae.read`). A trunk of clips with a position table beside it is read here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from tubelet.backbones.positions import TABLES, PositionKind
from tubelet.decoders import DecoderShape
from tubelet.errors import TubeletError
from tubelet.interop import sizes
from tubelet.interop.found import Found, ask
from tubelet.interop.ledger import Ledger
from tubelet.interop.names import Table, renamed
from tubelet.interop.tables import FIXED, POSITIONS, check_table, fixed_table, join_biases
from tubelet.interop.videomae import CLASSIFIER, HEADS, NORM, TRUNK, read_classifier, require
from tubelet.shapes import Grid

NAME = "mvd"
BRANCHES = {"image": "img", "video": "vid"}  # ours: theirs
MARKS = ("down_img.", "down_vid.")  # no other layout has them
DECODERS = ("down_", "decoder_", "mask_token_", "pos_embed_")
KINDS: tuple[PositionKind, ...] = ("sincos_3d", "sinusoid_1d")


def _rows(ours: str, theirs: str) -> Table:
    """The names of one branch; of its decoder those of attention alone."""
    to = f"branches.{ours}.decoder."
    parts = [(f"decoder_{theirs}.{part}.", f"{to}{part}.") for part in ("blocks", "norm", "head")]
    return (
        (f"down_{theirs}.", f"{to}project."),
        (f"mask_token_{theirs}", f"{to}mask_token"),
        *parts,
    )


PRETRAIN: Table = (*TRUNK, *NORM, *_rows("image", "img"), *_rows("video", "vid"))


def read(ledger: Ledger) -> Found:
    """A student with its decoders, or a trunk of clips whose position table is in the file."""
    settings, told, path = ledger.raw.settings, ledger.told, ledger.raw.path
    if told.encoder_only:
        ledger.drop_all((*DECODERS, *HEADS), "only the encoder was asked for")
    student = ledger.has(*DECODERS)
    options = {"class_token": "cls_token" in ledger.left}
    shape, in_chans = sizes.vit_shape(ledger.left, told, path, KINDS[0], **options)
    table = sizes.table_of(ledger.left, "pos_embed", shape.width, path)
    trained = sizes.trained_on(shape, told, settings, path, ledger.report.notes, table)
    grid = shape.grid_for(*trained)
    kind = _position(ledger, table, grid)
    shape = replace(shape, position=kind)
    if kind == "learned":
        assert table is not None
        _check_learned(ledger, student, table, grid)
        ledger.put({POSITIONS: table}, "pos_embed")
    elif table is not None:
        ledger.keep("pos_embed", FIXED)
    ledger.move(TRUNK)
    if student:
        run = _student(ledger, kind, grid)
        ledger.move((*NORM, *PRETRAIN))
        header = sizes.header_of("pretraining", shape, trained, in_chans, settings, run=run)
        return ledger.done(NAME, "MVD, pretrained: a student with its decoders", header)
    if ledger.has(*HEADS):
        return read_classifier(ledger, NAME, "fine-tuned on clips", shape, trained, in_chans)
    normed = ledger.has("norm.")
    ledger.move(NORM)
    header = sizes.header_of("encoder", shape, trained, in_chans, settings, final_norm=normed)
    return ledger.done(NAME, f"an encoder of clips with {kind} positions", header)


def _position(ledger: Ledger, table: Tensor | None, grid: Grid) -> PositionKind:
    """The kind of its positions: by the table where it has one."""
    told, path = ledger.told, ledger.raw.path
    if table is not None:
        return sizes.position_of(table, grid, KINDS, told, path)
    if told.position not in (None, *KINDS):
        raise TubeletError(
            f"{path} has no position table, and {told.position} was said: MVD's students have "
            f"{' or '.join(KINDS)}."
        )
    return told.position or KINDS[0]


def _check_learned(ledger: Ledger, student: bool, table: Tensor, grid: Grid) -> None:
    """TubeletError where a table that no formula makes cannot be what it seems."""
    path, said = ledger.raw.path, ledger.told.trained or ledger.raw.settings.get("num_frames")
    if not said:
        raise ask(
            path,
            "the size of its clips, and its position table is none of the fixed ones",
            "--trained",
            "FRAMES HEIGHT WIDTH, as in 16 224 224",
            sizes.TRAINED,
        )
    if student:  # its decoders have fixed ones: say how far it is from them
        check_table("pos_embed", table, TABLES[KINDS[0]](grid, table.shape[1]))
    if "cls_token" in ledger.left:
        raise TubeletError(
            f"{path} has a class token and a learned table without a row for it: unknown."
        )


def _student(ledger: Ledger, kind: PositionKind, grid: Grid) -> dict[str, Any]:
    """The run's type, its decoders and the widths of its teachers; the decoders' tables are kept."""
    path, left = ledger.raw.path, ledger.left
    found: dict[str, Any] = {"type": "tubelet.methods.mvd:MVD"}
    shapes: dict[str, DecoderShape] = {}
    for ours, theirs in BRANCHES.items():
        if not ledger.has(f"down_{theirs}.", f"decoder_{theirs}."):
            found[ours] = {"weight": 0.0}
            continue
        head = left.get(f"decoder_{theirs}.head.weight")
        if head is None:
            raise TubeletError(f"{path} lacks decoder_{theirs}.head.weight: it is incomplete.")
        found[ours] = {"width": len(head)}
        shape = sizes.decoder_shape(left, f"decoder_{theirs}.blocks.", ledger.told, path)
        shapes[ours] = shape
        table = sizes.table_of(left, f"pos_embed_{theirs}", shape.width, path)
        if table is not None:
            check_table(f"pos_embed_{theirs}", table, TABLES[kind](grid, shape.width))
            ledger.keep(f"pos_embed_{theirs}", FIXED)
    if len(set(shapes.values())) > 1:
        raise TubeletError(
            f"{path} has decoders of two sizes ({shapes}), where ours have one: take its encoder "
            "alone, with --encoder-only (in Python: encoder_only=True)."
        )
    ratio = ledger.raw.settings.get("mask_ratio")
    if isinstance(ratio, float):
        found["mask_ratio"] = ratio
    return found | {"decoder": asdict(next(iter(shapes.values())))} if shapes else found


def write(found: Found) -> dict[str, Tensor]:
    """A model of ours -> its tensors under plain names; TubeletError for what has no place."""
    backbone = found.header["backbone"]
    position = backbone["shape"].get("position")
    fits = {
        "pretraining": KINDS,
        "encoder": (*KINDS, "learned"),
        "classifier": (KINDS[0], "learned"),
    }
    wanted = position if position in fits[found.kind] else KINDS[0]
    require(found, "MVD's layout", position=wanted)
    weights = dict(found.weights)
    table = weights.pop(POSITIONS, None)
    names = CLASSIFIER if found.kind == "classifier" else PRETRAIN
    kept = {} if found.origin is None else found.origin.kept
    state = join_biases(renamed(weights, names, back=True), kept)
    if table is not None:
        return {"pos_embed": table[None], **state}
    known = found.origin is not None and found.origin.layout == NAME  # tables as they were
    return state if known or found.kind == "classifier" else {**_tables(found), **state}


def _tables(found: Found) -> Mapping[str, Tensor]:
    """The fixed tables of a new file."""
    width = found.header["backbone"]["shape"]["width"]
    tables = {"pos_embed": fixed_table(found.header, width)}
    for ours, theirs in BRANCHES.items():
        token = found.weights.get(f"branches.{ours}.decoder.mask_token")
        if token is not None:
            tables[f"pos_embed_{theirs}"] = fixed_table(found.header, token.shape[-1])
    return tables
