"""What published files hold and our state dicts do not: fixed position tables, biases of keys.

Both can be left out without a loss, and are only left out after a look: a table has to be the
one that we compute, and a key bias cannot change a softmax over keys, whatever it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tubelet.errors import TubeletError

Tables = Mapping[str, str]  # their name of a table: our module of that table


def without_tables(
    state: Mapping[str, Tensor], tables: Tables, model: nn.Module
) -> dict[str, Tensor]:
    """The state dict without its position tables [1,R+N,D]; TubeletError unless ours equal them.

    R rows of zeros in front belong to class tokens (image MAE).
    """
    for theirs, ours in tables.items():
        if theirs not in state:
            raise TubeletError(
                f"The weights lack the position table {theirs}, which files of this layout hold."
            )
        check_table(theirs, state[theirs][0], model.get_submodule(ours).table)  # pyright: ignore[reportArgumentType]
    return {name: value for name, value in state.items() if name not in tables}


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
    if error > 1e-5:  # sines of another library differ by some 1e-7
        raise TubeletError(
            f"The position table {name} is not the fixed one of this layout: it differs by {error:.2g}. "
            "It was learned, or the file is of another method."
        )


def with_tables(
    state: Mapping[str, Tensor], tables: Tables, model: nn.Module, prefix: int = 0
) -> dict[str, Tensor]:
    """The inverse: their tables, with `prefix` rows of zeros in front, beside the state dict."""
    found = dict(state)
    for theirs, ours in tables.items():
        table = model.get_submodule(ours).table
        assert isinstance(table, Tensor)
        found[theirs] = torch.cat([table.new_zeros(prefix, table.shape[1]), table])[None]
    return found


JOINED = "attn.qkv.bias"


def key_bias(joined: str) -> str:
    """The name under which the keys' part of a joined bias is kept for the way back."""
    return joined.removesuffix("qkv.bias") + "k_bias"


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


def split_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`qkv.bias` [3D] of a 12-key block -> q_bias and v_bias [D]; the keys' part is left out."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(JOINED):
            q, _, v = value.chunk(3)
            block = name.removesuffix("qkv.bias")
            found |= {f"{block}q_bias": q.clone(), f"{block}v_bias": v.clone()}
        else:
            found[name] = value
    return found


def join_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, with zeros for the keys."""
    return join_biases(state, {}, always=True)
