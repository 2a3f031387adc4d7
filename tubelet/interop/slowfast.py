"""What PySlowFast's files of all models share: their configuration, and the head that classifies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tubelet.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from tubelet.errors import TubeletError
from tubelet.interop import sizes
from tubelet.interop.found import Found
from tubelet.interop.ledger import Ledger
from tubelet.interop.names import Table

NAME = "maskfeat"  # of the layout: MaskFeat's and MAE-ST's files differ by their networks alone
HEAD: Table = (("norm.", "fc_norm."), ("head.projection.", "head."))
HEADS = ("head.",)
# As both configurations cut their clips; images are of one frame.
CLIPS = {"sampling": "dense_fps", "crop_pct": 0.875}
IMAGES = {"sampling_rate": 1, "crop_pct": 0.875, "interpolation": "bicubic"}


def numbers(settings: Mapping[str, Any], key: str) -> list[float]:
    """The numbers of an entry of the configuration, as in "DATA.MEAN"; [] where there are none."""
    found = settings.get(key)
    found = found if isinstance(found, list) else [found]
    return [
        float(one) for one in found if isinstance(one, (int, float)) and not isinstance(one, bool)
    ]


def integer(settings: Mapping[str, Any], key: str) -> int | None:
    """A number alone, above 0 and no larger than anyone trains with; else None."""
    found = numbers(settings, key)
    return int(found[0]) if len(found) == 1 and 0 < found[0] <= 1 << 16 else None


def statistics(
    settings: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, tuple[float, ...]]:
    """Mean and std of its pixels as a shape's fields, where the configuration says others than the
    usual."""
    said = [tuple(numbers(settings, key)) for key in ("DATA.MEAN", "DATA.STD")]
    if len(said[0]) != len(mean) or len(said[1]) != len(std) or said == [mean, std]:
        return {}
    return {"mean": said[0], "std": said[1]}


def require_statistics(found: Found, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """TubeletError for pixels normalised by others than these, which no new file would say."""
    shape, origin = found.header["backbone"]["shape"], found.origin
    own = (tuple(shape["mean"]) or IMAGENET_MEAN, tuple(shape["std"]) or IMAGENET_STD)
    known = origin is not None and origin.layout == NAME
    if not known and found.header["backbone"]["in_chans"] == len(mean) and own != (mean, std):
        raise TubeletError(
            f"This model normalises its pixels by mean {own[0]} and std {own[1]}, and networks of "
            f"PySlowFast's layout by {mean} and {std}, which is in none of its files: convert it --to "
            "tubelet."
        )


def clip_of(settings: Mapping[str, Any], frames: int) -> dict[str, Any]:
    """Fields of the header's clip."""
    if frames == 1:
        return dict(IMAGES)
    rate = integer(settings, "DATA.SAMPLING_RATE")
    return CLIPS | ({"sampling_rate": rate} if rate else {})


def drop_all_but_encoder(ledger: Ledger, decoders: tuple[str, ...]) -> None:
    """What is no part of the encoder is left out; its last norm is the head's, where it has one."""
    rest = (*decoders, *HEADS, *(("norm.",) if ledger.has(*HEADS) else ()))
    ledger.drop_all(rest, "only the encoder was asked for")


def read_classifier(
    ledger: Ledger,
    what: str,
    shape: Any,
    trained: tuple[int, int, int],
    in_chans: int,
    *,
    doubtful: bool = False,
) -> Found:
    """The head of a fine-tuned model: a mean over tokens without the class token, a norm, a linear
    layer.

    Other models of PySlowFast have a head on the class token, with the same names. `doubtful`: such
    a network, of which the configuration has to say that its head reads the mean; so it has to
    wherever there is one.
    """
    settings, weight = ledger.raw.settings, ledger.left.get("head.projection.weight")
    mean = settings.get("MVIT.USE_MEAN_POOLING")
    doubtful = doubtful or any(key.startswith("MVIT.") for key in settings)
    if mean is False or (doubtful and mean is not True):
        raise TubeletError(
            f"{ledger.raw.path}: the head of this network {'may read' if mean is None else 'reads'} its "
            "class token (its settings have no MVIT.USE_MEAN_POOLING that is true), where ours reads "
            "the mean of all others: take its encoder alone, with --encoder-only (in Python: "
            "encoder_only=True)."
        )
    ledger.move(HEAD)
    outputs = 0 if weight is None else len(weight)
    clip = clip_of(settings, trained[0])
    header = sizes.header_of("classifier", shape, trained, in_chans, outputs=outputs, **clip)
    return ledger.done(NAME, f"{what}, fine-tuned: {outputs} classes", header)
