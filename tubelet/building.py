"""How a network is made that a file's weights shall fill: of a size that they bear out, and fast."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from tubelet.errors import TubeletError

SMALL = 1 << 27  # parameters that any file may ask for


class Zeros(TorchFunctionMode):
    """New parameters are zero instead of random, which takes longer: a file's replace them all."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name not in ("normal_", "uniform_", "kaiming_uniform_"):
            return func(*args, **given)
        tensor: Tensor = args[0] if args else given["tensor"]
        if name != "kaiming_uniform_":  # torch's own for nn.Linear: ours follows
            tensor.detach().zero_()
        return tensor


def check_size(header: Mapping[str, Any], weights: Mapping[str, Tensor], path: str | Path) -> None:
    """TubeletError, before memory is taken, where a few tensors would make a huge network."""
    run = {name: value for name, value in header["run"].items() if name != "encoder"}
    encoders = [header["backbone"]["shape"], header["run"].get("encoder")]  # of one network
    shape = header["backbone"]["shape"]
    size = max(map(_numbers_of, encoders)) + _numbers_of(run) + _ends_of(header, shape)
    held = sum(value.numel() for value in weights.values())
    if size > max(SMALL, 2 * held):
        raise TubeletError(
            f"{path} would make a network of {size:.3g} parameters by its shapes, and holds {held}: "
            "refused. It is damaged, or incomplete."
        )


def _ends_of(header: Mapping[str, Any], shape: Mapping[str, Any]) -> float:
    """About how many the first and the last layer have: the patches', and the head's."""
    width = shape.get("width") or max(shape["widths"])
    pixels = shape.get("patch", 1) ** 2 * shape.get("tubelet_size", 1)
    return width * (header["backbone"].get("in_chans", 1) * pixels + header.get("outputs", 0))


def _numbers_of(told: Any) -> float:
    """About how many parameters the blocks have whose sizes are told in here: of a block of width D,
    4 D^2 in its attention and 2 * mlp_ratio * D^2 in its MLP."""
    if isinstance(told, (list, tuple)):
        return sum(map(_numbers_of, told))
    if not isinstance(told, Mapping):
        return 0
    ratio = told.get("mlp_ratio", 0)
    if "depth" in told and "width" in told:
        return told["depth"] * told["width"] ** 2 * (4 + 2 * ratio)
    if "depths" in told and "widths" in told:
        stages = zip(told["depths"], told["widths"], strict=False)
        return sum(depth * width**2 * (4 + 2 * ratio) for depth, width in stages)
    if "width" in told:  # of what a teacher gives: a layer
        return told["width"] * 4096
    return sum(map(_numbers_of, told.values()))
