"""What a pickle of torch.save asks for, found by walking its operations and running none of them.

`torch.load(weights_only=True)` runs no code of a file, but it may be made to take any amount of
memory, or to crash. So a file is walked first: it may call only what `ALLOWED` names, with arguments
that its own bytes bear out. For what `STAND_INS` names, plain data is made in the place of the object.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tubelet.errors import TubeletError

MOST_BYTES = 1 << 25  # of a pickle without its tensors; real ones have less than 2 MiB
MOST_STEPS = 1 << 20  # each may take 100 bytes or so; an optimizer's state of ViT-g has 100 000
MOST_ITEMS = 1 << 22  # copied into objects
MOST_DIMS = 16
# Bytes of a number, by the name of its storage.
STORAGES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}
LITERALS = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
        *("SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
    }
)
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
VALUES = re.compile(r"torch\.(float|bfloat|int|uint|bool|complex)\d*")  # dtypes
NUMBERS = re.compile(r"[<>|=]?[biuf](1|2|4|8)")  # numpy's names of plain dtypes
ALLOWED = frozenset(
    {
        *TENSORS,
        *("torch._utils._rebuild_parameter", "torch.Size", "torch.device", "_codecs.encode"),
        *("collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set"),
    }
)


class Namespace:
    """Stands for an `argparse.Namespace`: its values, and nothing that can be called."""

    __slots__ = ("values",)
    values: dict[Any, Any]

    def __setstate__(self, state: Any) -> None:
        self.values = dict(state) if isinstance(state, dict) else {}


class Array:
    """Stands for a numpy array: nothing of it is read."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class NumberKind:
    """Stands for a numpy dtype of plain numbers."""

    __slots__ = ("name", "order")

    def __init__(self, name: str, *_: Any):
        if not NUMBERS.fullmatch(name):
            raise ValueError(f"numpy values of type {str(name)[:40]!r} are not read")
        self.name, self.order = name.lstrip("<>|="), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if ">" in state[:2] else "<"


def _number(kind: NumberKind, raw: bytes) -> Any:
    return np.frombuffer(raw, kind.order + kind.name)[0].item()


def _array(*_: Any) -> Array:
    return Array()


def _path(*parts: str) -> str:
    return str(Path(*parts))


# Made in the place of what a file asks for, as `torch.serialization.safe_globals` takes them.
STAND_INS: list[tuple[Callable[..., Any], str]] = [
    (Namespace, "argparse.Namespace"),
    (Array, "numpy.ndarray"),
    (NumberKind, "numpy.dtype"),
    *((_number, f"numpy.{n}.multiarray.scalar") for n in ("core", "_core")),
    *((_array, f"numpy.{n}.multiarray._reconstruct") for n in ("core", "_core")),
    *((_path, f"pathlib.{n}Path") for n in ("", "Posix", "Windows", "PurePosix", "PureWindows")),
    *((_path, f"pathlib._local.{n}Path") for n in ("", "Posix", "Windows")),
]
STANDING = frozenset(name for _, name in STAND_INS)


class Asked(NamedTuple):
    """The name of something of Python's."""

    name: str


class Storage(NamedTuple):
    """So many numbers in the file."""

    numbers: int


@dataclass(slots=True)
class Group:
    """A tuple, list or dict (keys and values in turn), or what a call would make (`name`)."""

    kind: str
    items: list[Any] = field(default_factory=list)
    name: str = ""


Claim = Callable[[str, int], None]  # key of a storage, bytes that it is said to have


class Walk:
    """One pickle's operations on a stack of stand-ins; `claim` is called for each storage.

    TubeletError for a name that is not allowed, and for shapes beyond their storage.
    """

    def __init__(self, path: Path, claim: Claim):
        self.path, self.claim = path, claim
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.protocol = 0
        self.copied = self.steps = 0

    def run(self, stream: BinaryIO) -> None:
        """Walks to the end of one pickle, where it leaves the stream."""
        begin = stream.tell()
        try:
            for op, arg, at in pickletools.genops(stream):
                self.steps += 1
                if self.steps > MOST_STEPS or (at or 0) - begin > MOST_BYTES:
                    raise self._refused("lists more than any checkpoint does beside its tensors")
                self._step(op.name, arg)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise TubeletError(
                f"{self.path} is damaged: its list of contents cannot be read "
                f"({(str(error).splitlines() or ['?'])[0][:200]}). Fetch or copy it again."
            ) from error
        if self.protocol > 2:
            raise TubeletError(
                f"{self.path} was pickled with protocol {self.protocol}: only what torch.save writes "
                "by itself, protocol 2, is read without running it. Save it again without "
                "pickle_protocol."
            )

    def _step(self, op: str, arg: Any) -> None:
        """One operation, by pickletools' name of it."""
        push, pop = self.stack.append, self.stack.pop
        match op:
            case "PROTO":
                self.protocol = max(self.protocol, arg)
            case "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NEWTRUE": True, "NEWFALSE": False}.get(op))
            case _ if op in LITERALS:
                push(arg)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
                push(Group(op.removeprefix("EMPTY_").lower()))
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                items = self._to_mark()
                self.stack.append(Group("tuple", items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(Group("tuple", [pop() for _ in range(int(op[-1]))][::-1]))
            case "APPEND":
                self._fill("list", [pop()])
            case "APPENDS":
                self._fill("list", self._to_mark())
            case "SETITEM":
                self._fill("dict", [pop(), pop()][::-1])
            case "SETITEMS":
                self._fill("dict", self._to_mark())
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if arg is None else arg] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[arg])
            case "GLOBAL":
                push(self._asked(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                push(self._asked(f"{module}.{name}"))
            case "BINPERSID":
                push(self._storage(pop()))
            case "REDUCE" | "NEWOBJ":
                given, called = pop(), pop()
                push(self._call(called, given.items))
            case "BUILD":
                self._build(pop())
            case _:
                raise self._refused(f"uses {op}, which torch.save does not write")

    def _refused(self, why: str) -> TubeletError:
        return TubeletError(f"{self.path} {why}: refused; nothing was run.")

    def _to_mark(self) -> list[Any]:
        at = self.marks.pop()
        items = self.stack[at:]
        del self.stack[at:]
        return items

    def _fill(self, kind: str, items: list[Any]) -> None:
        """Into the list or dict on top."""
        onto = self.stack[-1]
        if not isinstance(onto, Group) or onto.kind != kind:
            raise ValueError(f"items are put into what is no {kind}")
        if kind == "dict":
            self._check_keys(items[::2])
        onto.items += items

    def _check_keys(self, keys: list[Any]) -> None:
        """Text and numbers alone: to hash what is deeply nested crashes Python."""
        if any(isinstance(key, Group) for key in keys):
            raise self._refused("has entries that are not named by text or numbers")

    def _asked(self, name: str) -> Asked:
        """A name that is not allowed is refused here, before anything is looked up."""
        storage = name.removeprefix("torch.") in STORAGES
        if storage or name in ALLOWED or name in STANDING or VALUES.fullmatch(name):
            return Asked(name)
        shown = re.sub(r"[^\w.]", "?", name)[:100]
        raise self._refused(f"asks to run {shown} when it is opened, which weights do not need")

    def _storage(self, told: Group) -> Storage:
        """("storage", type, key, place, count[, view]) -> the numbers that it stands for."""
        tag, kind, key, _place, count, *view = told.items
        size = STORAGES[kind.name.removeprefix("torch.")]
        if tag != "storage" or not isinstance(key, str) or any(view) or not _whole(count):
            raise ValueError("a storage is not told as torch.save does")
        self.claim(key, count * size)
        return Storage(count)

    def _call(self, called: Any, given: list[Any]) -> Group:
        name = called.name if isinstance(called, Asked) else ""
        if name not in ALLOWED and name not in STANDING:
            raise self._refused(f"calls {name or 'what is nothing to call'}")
        if name in TENSORS:
            self._check_tensor(*given)
        elif name == "_codecs.encode" and not (
            isinstance(given[0], str) and given[1:] == ["latin1"]
        ):
            raise self._refused(f"encodes text as {str(given[1:])[:40]}")
        elif name.endswith((".set", "OrderedDict", "Counter")):
            first: Any = given[0] if given else Group("list")
            held: list[Any] = first.items
            self._copy(len(held))
            if name.endswith("OrderedDict"):
                self._check_keys([pair.items[0] for pair in held])
            else:
                self._check_keys(held[:: 2 if name.endswith("Counter") else 1])
        return Group("dict" if name.endswith(("OrderedDict", "Counter")) else "", name=name)

    def _build(self, state: Any) -> None:
        """Sets what belongs to the object on top."""
        onto = self.stack[-1]
        name = onto.name if isinstance(onto, Group) else ""
        if name.endswith(("numpy.dtype", "_reconstruct")):
            return  # their stand-ins take what they know of it
        if name not in ("argparse.Namespace", "collections.OrderedDict") or state.kind != "dict":
            raise self._refused(f"sets the state of a {name or getattr(onto, 'kind', 'value')}")
        self._copy(len(state.items))
        names = state.items[::2]
        if name.endswith("OrderedDict") and names != ["_metadata"]:
            raise self._refused(f"sets {str(names)[:60]} of an OrderedDict")

    def _copy(self, count: int) -> None:
        """Counts what is copied, so that little of a file does not become much."""
        self.copied += count
        if self.copied > MOST_ITEMS:
            raise self._refused(f"copies more than {MOST_ITEMS} items")

    def _check_tensor(
        self, storage: Any, offset: Any, size: Group, step: Group, *more: Any
    ) -> None:
        """(storage, offset, size, stride[, requires grad, hooks]) must lie within the storage."""
        sizes, steps = size.items, step.items
        if len(more) > 2 or not isinstance(storage, Storage) or len(sizes) != len(steps):
            raise ValueError("a tensor is not told as torch.save does")
        if not all(_whole(n) for n in (offset, *sizes, *steps)) or len(sizes) > MOST_DIMS:
            raise ValueError("a tensor's shape is not made of whole numbers")
        count = math.prod(sizes)
        last = offset + sum((n - 1) * by for n, by in zip(sizes, steps, strict=True))
        if count > storage.numbers or (count and last >= storage.numbers):
            raise self._refused(
                f"claims a tensor of shape {sizes}, {count} numbers, where {storage.numbers} are stored"
            )


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48
