"""The account of a file's tensors while its layout is read: none is lost unseen.

A reader takes each tensor out of `left`: into our weights, among what is kept for the way back, or
away. What is left over at the end is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.interop.found import Found, Origin, Told
from tubelet.interop.names import Table, some
from tubelet.interop.reading import Raw
from tubelet.interop.report import Dropped, Renamed, Report
from tubelet.interop.sizes import DEPTHS
from tubelet.interop.tables import JOINED, KEYS, key_bias

FRONT = ("module.", "_orig_mod.", "backbone.", "encoder.")  # what wrappers put before names


class Ledger:
    """Of one file: `left` is what is not yet accounted for, under plain names."""

    def __init__(self, raw: Raw, told: Told, plain_of: Callable[[str], str] | None = None):
        """`plain_of`: how this layout's names are made plain, where not by wrappers' prefixes."""
        self.raw, self.told = raw, told
        self.left: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.names: dict[str, str] = {}  # in the file: plain
        self.report = Report(path=str(raw.path), dropped=list(raw.dropped), notes=list(raw.notes))
        for name, value in raw.state.items():
            plain = (plain_of or plain_name)(name)
            if not value.dim() and plain.endswith((".weight", ".bias")):
                raise TubeletError(
                    f"{raw.path}: {name} is a single number, where no layer has one: the file is damaged."
                )
            if plain in self.left:
                twice = next(old for old, one in self.names.items() if one == plain)
                raise TubeletError(
                    f"{raw.path} holds {plain} twice, as {twice} and as {name}: two sets of weights lie "
                    "in it under different prefixes. Save the one that you want by itself."
                )
            self.names[name] = plain
            self.left[plain] = value
        self._theirs = {plain: name for name, plain in self.names.items()}

    def has(self, *prefixes: str) -> bool:
        """Whether any tensor that is left begins so."""
        return any(name.startswith(prefixes) for name in self.left)

    def was(self, prefix: str) -> bool:
        """Whether names in the file bore this prefix, which plain names have not."""
        return any(f".{name}".find(f".{prefix}") >= 0 for name in self.names)

    def move(self, table: Table, *, split: bool = True) -> None:
        """Takes what the table has a name for; `split`: one bias of queries, keys and values becomes
        the two that ours have."""
        for name, value in list(self.left.items()):
            row = next((row for row in table if name.startswith(row[0])), None)
            if row is None:
                continue
            own = row[1] + name.removeprefix(row[0])
            if split and own.endswith(JOINED):
                if value.dim() != 1 or len(value) % 3:
                    raise TubeletError(
                        f"{self.raw.path}: {self._theirs[name]} is {list(value.shape)}, where one row "
                        "of queries, keys and values is expected: the file is damaged."
                    )
                q, k, v = value.chunk(3)
                self.kept[key_bias(name)] = k
                block = own.removesuffix("qkv.bias")
                self.put({f"{block}q_bias": q, f"{block}v_bias": v}, name)
            else:
                self.put({own: value}, name)

    def put(self, ours: Mapping[str, Tensor], *theirs: str) -> None:
        """These tensors of the file have become those of ours."""
        for name in theirs:
            del self.left[name]
            for own in ours:
                if self._theirs[name] == own:
                    self.report.matched.append(own)
                else:
                    self.report.renamed.append(Renamed(self._theirs[name], own))
        self.weights |= ours

    def keep(self, name: str, why: str) -> None:
        """A tensor has no place in our model; it is kept for the way back."""
        self.kept[name] = self.left.pop(name)
        self.report.dropped.append(Dropped(self._theirs[name], why))

    def keep_all(self, prefixes: tuple[str, ...], why: str) -> None:
        """All that begin so."""
        for name in [name for name in self.left if name.startswith(prefixes)]:
            self.keep(name, why)

    def drop_all(self, prefixes: tuple[str, ...], why: str) -> None:
        """All that begin so are left out, on the way back too."""
        for name in [name for name in self.left if name.startswith(prefixes)]:
            self.report.dropped.append(Dropped(self._theirs[name], why))
            del self.left[name], self.names[self._theirs[name]]

    def done(self, layout: str, what: str, header: dict[str, Any]) -> Found:
        """The result, once all is accounted for; TubeletError for what is not."""
        allowed = self.told.allow_extra
        idle = [p for p in allowed if not any(self._theirs[n].startswith(p) for n in self.left)]
        if idle:
            raise TubeletError(
                f"allow_extra names {', '.join(map(repr, idle))}, and {self.raw.path} has nothing of "
                "that name beyond what is read: leave it out."
            )
        for name in list(self.left):
            if self._theirs[name].startswith(allowed) and allowed:
                self.keep(name, "named in allow_extra")
        if self.left:
            extra = [self._theirs[name] for name in self.left]
            raise TubeletError(
                f"{self.raw.path} ({what}) holds {len(extra)} tensors that this layout has no place for: "
                f"{some(extra)}. If they are not needed, name them: --allow-extra "
                f"{extra[0]} (in Python: allow_extra=[...])."
            )
        self.report.layout, self.report.what = layout, what
        dtypes = {
            name: str(value.dtype).removeprefix("torch.")
            for name, value in self.raw.state.items()
            if name in self.names and str(value.dtype) != "torch.float32"
        }
        self._note_precision(dtypes)
        keys = [name for name in self.kept if name.endswith(KEYS)]
        if keys:
            self.report.notes.append(
                f"the keys' part of {len(keys)} biases is left out: it changes no softmax"
            )
        shape = header["backbone"]["shape"]
        usual = DEPTHS.get(shape.get("width"))
        if usual not in (None, shape.get("depth")):
            self.report.notes.append(
                f"{shape['depth']} blocks, where published models of width {shape['width']} have {usual}"
            )
        origin = Origin(layout, self.names, dtypes, self.raw.wrapper, self.kept, self.raw.settings)
        return Found(header, self.weights, origin, self.report)

    def _note_precision(self, dtypes: Mapping[str, str]) -> None:
        for kind in sorted(set(dtypes.values())):
            count = list(dtypes.values()).count(kind)
            self.report.notes.append(
                f"{count} of {len(self.names)} tensors are {kind}: read as float32"
                f"{', rounded, and so on the way back' if kind == 'float64' else ''}"
            )


def plain_name(name: str) -> str:
    """A name without what wrappers put before it (DDP, torch.compile, DeepSpeed, MMAction), and
    without an old spelling of PySlowFast's."""
    name = name.replace("_orig_mod.", "").replace("patch_embed.project.", "patch_embed.proj.")
    while name.startswith(FRONT):
        name = name.removeprefix(next(front for front in FRONT if name.startswith(front)))
    return name
