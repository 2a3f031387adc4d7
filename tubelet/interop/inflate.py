"""A vision transformer of images becomes one of clips.

Its patch embedding is inflated over time, and its positions are those of an image in each time
slot. On a still clip it has the features of the image model in all slots: there every slot of
keys is the same, so a softmax over t of them is the softmax over one, as long as the class token
too stands there t times (`ViTShape.class_token_of`).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.interop.found import Found, Inflation
from tubelet.interop.report import Dropped, Report, Resized
from tubelet.shapes import ClipSpec, Patch

HOW = ("mean", "centre")
SLOTS = 8  # of a clip, where its frames are not said: those of 16 frames in pairs
PATCHES = "backbone.patch_embed.proj.weight"
TABLE = "backbone.positions.table"
LEFT_OUT = ("branches.", "backbone.mask_token")


def inflated(
    found: Found, how: Inflation, *, tubelet_size: int = 2, num_frames: int | None = None
) -> Found:
    """A ViT of images -> one of clips, with the same features on a still clip.

    Decoders are left out; a classifier keeps its head.

    Args:
        how: what becomes of a kernel. "mean": the same in each frame of a tubelet, divided by their
            number (as I3D, arXiv 1705.07750). "centre": whole in the frame number
            `tubelet_size // 2` from 0, zeros in the others (arXiv 2103.15691, section 3.4): of two
            frames the second.
        tubelet_size: frames of a tubelet.
        num_frames: of a clip; None: 8 tubelets.

    Raises:
        TubeletError: for a model that is of clips already or no plain ViT, and for frames that do
            not divide into tubelets.
    """
    _check(found, how, tubelet_size)
    frames = SLOTS * tubelet_size if num_frames is None else num_frames
    header = _header(found, tubelet_size, frames)
    shape = header["backbone"]["shape"]
    weights = {n: v for n, v in found.weights.items() if not n.startswith(LEFT_OUT)}
    report = _without_decoders(found)
    report.what = f"{report.what or found.kind}, inflated ({how})"
    before = {name: weights[name] for name in (PATCHES, TABLE) if name in weights}
    weights[PATCHES] = _kernel(before[PATCHES], how, tubelet_size)
    how_of = {PATCHES: f"inflated ({how})", TABLE: "repeated in each time slot"}
    if TABLE in before:
        first = int(shape["class_token"])
        slots = frames // tubelet_size
        weights[TABLE] = torch.cat([before[TABLE][:first], *[before[TABLE][first:]] * slots])
    report.resized += [
        Resized(name, str(list(value.shape)), str(list(weights[name].shape)), how_of[name])
        for name, value in before.items()
    ]
    if shape["class_token"]:
        report.notes.append("the class token stands in front of each time slot")
    if TABLE not in before:
        report.notes.append("its fixed positions are those of an image: they do not tell time")
    return Found(header, weights, None, report)


def _check(found: Found, how: str, tubelet_size: int) -> None:
    """TubeletError for what cannot be inflated."""
    if how not in HOW or tubelet_size < 1:
        raise TubeletError(
            f"inflate={how!r} with tubelets of {tubelet_size} frames: expected one of "
            f"{' and '.join(map(repr, HOW))}, and at least 1 frame."
        )
    path, backbone = found.report.path or "the model", found.header["backbone"]
    shape = backbone["shape"]
    if "width" not in shape:
        raise TubeletError(f"{path} is no plain ViT: only those can be inflated from images.")
    if backbone["trained"][0] != 1:
        raise TubeletError(
            f"{path} is a model of clips already, of {backbone['trained'][0]} frames in tubelets of "
            f"{shape['tubelet_size']}: only models of images are inflated. Leave inflate out."
        )
    if shape["position"] not in ("sincos_2d", "learned"):
        raise TubeletError(
            f"{path} has positions of the kind {shape['position']}, which are others in each time slot: "
            "a model of images with sincos_2d or learned positions can be inflated."
        )


def _header(found: Found, tubelet_size: int, frames: int) -> dict[str, Any]:
    """Of the model of clips; a run of images does not tell how frames are sampled."""
    header = deepcopy(found.header)
    backbone, clip, usual = header["backbone"], header["clip"], ClipSpec(num_frames=frames)
    shape, (_, *size) = backbone["shape"], backbone["trained"]
    Patch(tubelet_size, shape["patch"], shape["patch"]).grid_for(frames, *size)
    shape |= {"tubelet_size": tubelet_size, "class_token_of": "slot"}
    backbone["trained"] = [frames, *size]
    # Of a pretrained model its run says it, which is left out here.
    backbone["final_norm"] = "backbone.norm.weight" in found.weights
    temporal = ("num_frames", "sampling", "sampling_rate", "target_fps", "seconds")
    header["clip"] = clip | {name: getattr(usual, name) for name in temporal}
    kind = "classifier" if header["kind"] == "classifier" else "encoder"
    return header | {"kind": kind, "run": {}}


def _kernel(kernel: Tensor, how: Inflation, size: int) -> Tensor:
    """[D,C,1,p,p] -> [D,C,size,p,p], of which the frames of a still tubelet add up to the same."""
    kernel = kernel.float()
    if how == "mean":
        return kernel.repeat(1, 1, size, 1, 1) / size
    wide = kernel.new_zeros(*kernel.shape[:2], size, *kernel.shape[3:])
    wide[:, :, size // 2] = kernel[:, :, 0]
    return wide


def _without_decoders(found: Found) -> Report:
    """The report of the load, in which what was read and is not used is dropped."""
    report = deepcopy(found.report)
    gone = [(one.theirs, one.ours) for one in report.renamed]
    gone += [(name, name) for name in report.matched]
    report.dropped += [
        Dropped(theirs, "it predicts what is hidden in images")
        for theirs, ours in gone
        if ours.startswith(LEFT_OUT)
    ]
    report.renamed = [one for one in report.renamed if not one.ours.startswith(LEFT_OUT)]
    report.matched = [name for name in report.matched if not name.startswith(LEFT_OUT)]
    return report
