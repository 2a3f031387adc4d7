"""What published files hold and our state dicts do not: fixed position tables, biases of keys.

Both can be left out without a loss, and are only left out after a look: a table has to be the
one that we compute, and a key bias cannot change a softmax over keys, whatever it is. They are kept
for the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tubelet.backbones.positions import TABLES
from tubelet.errors import TubeletError
from tubelet.shapes import Patch

POSITIONS = "backbone.positions.table"  # of an encoder that has learned them
FIXED = "a fixed table: it is computed"


def check_table(name: str, theirs: Tensor, ours: Tensor) -> None:
    """theirs [R+N,D], ours [N,D]: an error unless they are equal, after R rows of zeros."""
    rows = len(theirs) - len(ours)
    if rows < 0 or theirs.shape[1] != ours.shape[1]:
        raise TubeletError(
            f"The position table {name} is {list(theirs.shape)}, where this network has "
            f"{list(ours.shape)}: it was trained on clips of another size."
        )
    own = torch.cat([ours.new_zeros(rows, ours.shape[1]), ours])
    error = float((theirs.float() - own).abs().max())
    if error > tolerance(theirs.dtype):
        raise TubeletError(
            f"The position table {name} is not the fixed one of this layout: it differs by {error:.2g}. "
            "It was learned, or the file is of another method."
        )


def tolerance(dtype: torch.dtype) -> float:
    """By how much a fixed table in a file may differ from ours: sines of another library differ by
    some 1e-7, and numbers up to 1 are rounded by up to a quarter of the precision's epsilon."""
    return 1e-5 + torch.finfo(dtype).eps / 4


def fixed_table(header: Mapping[str, Any], width: int, prefix: int = 0) -> Tensor:
    """The table [1,R+N,D] of this width that the model of a header has: R = `prefix` rows of zeros for
    class tokens, then N of its encoder's kind, for the clips of its training."""
    shape = header["backbone"]["shape"]
    patch = Patch(shape["tubelet_size"], shape["patch"], shape["patch"])
    table = TABLES[shape["position"]](patch.grid_for(*header["backbone"]["trained"]), width)
    return torch.cat([table.new_zeros(prefix, width), table])[None]


JOINED = "attn.qkv.bias"
KEYS = ":keys"  # after the name of a joined bias: no tensor of a file is called so


def key_bias(joined: str) -> str:
    """The name under which the keys' part of a joined bias is kept for the way back."""
    return joined + KEYS


def join_biases(
    state: Mapping[str, Tensor], kept: Mapping[str, Tensor], *, always: bool = False
) -> dict[str, Tensor]:
    """`q_bias` and `v_bias` [D] -> `qkv.bias` [3D] of a 12-key block, where the keys' part was kept;
    `always`: with zeros for keys where it was not."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        joined = name.replace("attn.q_bias", JOINED).replace("attn.v_bias", JOINED)
        keys = kept.get(key_bias(joined))
        if joined == name or (keys is None and not always):
            found[name] = value
        elif name.endswith("q_bias"):
            keys = torch.zeros_like(value) if keys is None else keys.to(value.dtype)
            found[joined] = torch.cat([value, keys, state[name.replace("q_bias", "v_bias")]])
    return found
