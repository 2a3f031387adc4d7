"""Files of others, opened: what a file is is read from its first bytes, not from its name, and the
sizes that it claims are held against the size that it has, before anything is unpacked.
"""

from __future__ import annotations

import mmap
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tubelet.errors import TubeletError
from tubelet.interop.names import some
from tubelet.interop.pickles import MOST_BYTES, STAND_INS, Walk

DEEPSPEED = (
    "mp_rank_00_model_states.pt"  # in a folder checkpoint-<epoch>, or in the one `latest` names
)
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's number for it, pickled
SHARDS = ("mp_rank_*_model_states.pt", "zero_pp_rank_*_model_states.pt", "bf16_zero_pp_rank_*")
BROKEN = (  # what reading of a damaged file raises
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, AssertionError, MemoryError, struct.error),
    *(pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError),
)
# First bytes of what is often taken for weights: what it is, and what to do.
OTHERS: tuple[tuple[str, str], ...] = (
    (r"version https://git-lfs", "a pointer of git-lfs, not the file itself: run `git lfs pull`"),
    (r"(\xef\xbb\xbf)?\s*<", "a web page: the download failed, or its link leads to a page"),
    (r"\s*[{\[]", "text (JSON), not weights: a download may have saved an error message"),
    (r"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "an archive: unpack it first"),
    (r"\x89HDF", "an HDF5 file (TensorFlow, Keras), which tubelet does not read"),
    (r"\x93NUMPY", "a numpy array, which tubelet does not read"),
    (r"\x00{16}", "nothing but zeros where it begins: its copy or download was interrupted"),
)


def contents(path: Path) -> Any:
    """What a file of torch.save or of safetensors holds, mapped from it where its format allows.

    TubeletError for what is neither, is damaged, would run code or claims more than it holds.
    """
    begin = _begin(path)
    if begin.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return _loaded(path, mapped=True)
    # First its header's length, which may begin as a pickle does.
    if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < path.stat().st_size:
        return _safetensors(path)
    if re.match(rb"\x80[\x00-\x05]", begin):
        _check_legacy(path)
        return _loaded(path, mapped=False)
    if begin[8:9] == b"{":
        return _safetensors(path)  # which says what is wrong with it
    for pattern, what in OTHERS:
        if re.match(pattern.encode("latin1"), begin, re.IGNORECASE):
            raise _unreadable(path, f"it is {what}")
    if tarfile.is_tarfile(path):
        raise _unreadable(path, "it is an archive: unpack it first")
    raise _unreadable(path, f"it begins with {begin[:8]!r}")


def _begin(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            begin = file.read(32)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not begin:
        raise _unreadable(path, "it is empty (0 bytes): its copy or download failed")
    return begin


def _loaded(path: Path, *, mapped: bool) -> Any:
    """By torch, once the file was checked; in the place of foreign classes are stand-ins."""
    if path.suffix == ".safetensors":  # torch goes by the name
        raise _unreadable(path, "torch.save has written it: rename it to end in .pth")
    try:
        with torch.serialization.safe_globals(cast(list[Any], STAND_INS)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except BROKEN as error:
        raise _unreadable(path, error) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except BROKEN as error:
        raise _unreadable(path, error) from error


def _check_zip(path: Path) -> None:
    """TubeletError for an archive that torch.save has not written, or that claims more than it has."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.comment:
                raise zipfile.BadZipFile("it has a comment, or is two files in one")
            sizes = _entries(path, archive)
            listed = _listed(path, sizes)
            packed = [e.filename for e in archive.infolist() if e.compress_type or e.flag_bits & 1]
            if packed:
                raise TubeletError(
                    f"{path} is packed ({some(packed)}), which torch.save never does: refused. Save "
                    "it again."
                )
            claims = _Claims(path, sizes, f"{listed.removesuffix('data.pkl')}data/")
            with archive.open(listed) as contents:
                Walk(path, claims.of_record).run(cast(BinaryIO, contents))
    except zipfile.BadZipFile as error:
        raise _unreadable(path, f"it is cut short or damaged ({error}): fetch it again") from error
    except BROKEN as error:
        raise _unreadable(path, error) from error


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, int]:
    """The sizes of an archive's records, by name, none of them twice."""
    entries, has = archive.infolist(), path.stat().st_size
    sizes = {entry.filename: entry.file_size for entry in entries}
    total = sum(entry.file_size for entry in entries)
    if total > has or len(sizes) < len(entries):
        raise TubeletError(
            f"{path} has {has} bytes and would unpack to {total}, where torch.save packs nothing: "
            "refused, before memory is taken for it."
        )
    return sizes


def _listed(path: Path, sizes: dict[str, int]) -> str:
    """The name of the record that lists an archive's contents."""
    top = {name.partition("/")[2]: name for name in sizes if name.count("/") == 1}
    if "constants.pkl" in top:
        raise TubeletError(
            f"{path} is a TorchScript program, which would be run: refused. Save its state_dict()."
        )
    if "data.pkl" not in top:
        raise _unreadable(
            path,
            f"it is a zip archive that torch.save has not written ({some(list(sizes)) or 'empty'}): "
            "unpack it first",
        )
    if sizes[top["data.pkl"]] > MOST_BYTES:
        raise TubeletError(
            f"{path} lists its contents in {sizes[top['data.pkl']]} bytes, more than any checkpoint: "
            "refused."
        )
    return top["data.pkl"]


class _Claims:
    """What storages are said to have, held against what there is."""

    def __init__(self, path: Path, sizes: dict[str, int], folder: str = ""):
        self.path, self.sizes, self.folder = path, sizes, folder
        self.claimed: dict[str, int] = {}

    def of_record(self, key: str, size: int) -> None:
        """In an archive: a record for each storage."""
        has = self.sizes.get(self.folder + key)
        if has is None or size > has:
            raise TubeletError(
                f"{self.path} claims {size} bytes for its record {key[:40]!r}, which has {has or 0}: "
                "damaged, refused."
            )

    def of_file(self, key: str, size: int) -> None:
        """In one stream: memory is taken for all before it is read."""
        self.claimed[key] = max(size, self.claimed.get(key, 0))
        total, has = sum(self.claimed.values()), self.path.stat().st_size
        if total > has:
            raise TubeletError(
                f"{self.path} claims {total} bytes of numbers and has {has} in all: it is cut short or "
                "damaged, refused."
            )


def _check_legacy(path: Path) -> None:
    """The format before torch 1.6: pickles one after the other (a number, a version, of the system,
    the contents, the storages' keys), then the storages."""
    if tarfile.is_tarfile(path):  # torch would unpack it
        raise _unreadable(path, "it is a tar archive, of torch before 0.2: save it again")
    claims = _Claims(path, {})
    try:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream,
        ):
            legacy = stream[: len(LEGACY)] == LEGACY
            for _ in range(5 if legacy else 1):
                Walk(path, claims.of_file).run(cast(BinaryIO, stream))
    except BROKEN as error:
        raise _unreadable(path, error) from error
    if not legacy:
        raise _unreadable(path, "it is a pickle that torch.save has not written")


def weights_in(folder: Path) -> Path:
    """The weights' file in a folder that DeepSpeed wrote; TubeletError where they are in parts."""
    folder = _tagged(folder)
    whole = sorted(folder.glob(SHARDS[0]))
    parts = sorted({p.name for pattern in SHARDS[1:] for p in folder.glob(pattern)})
    if len(whole) == 1 and whole[0].name == DEEPSPEED:
        return whole[0]
    if whole or parts:
        raise TubeletError(
            f"{folder} holds weights in parts ({some([p.name for p in whole] or parts)}), as DeepSpeed "
            "leaves them. Merge them first: python zero_to_fp32.py FOLDER OUT, which DeepSpeed puts "
            "beside them, and load what it writes."
        )
    raise TubeletError(
        f"{folder} holds no weights: expected {DEEPSPEED}; {listing(folder.iterdir())}."
    )


def is_deepspeed(folder: Path) -> bool:
    """Whether DeepSpeed wrote the folder, whole or in parts."""
    folder = _tagged(folder)
    return any(next(folder.glob(pattern), None) is not None for pattern in SHARDS)


def _tagged(folder: Path) -> Path:
    """The folder that a file `latest` names, if there is one."""
    latest = folder / "latest"
    if (folder / DEEPSPEED).exists() or not latest.is_file() or latest.stat().st_size > 255:
        return folder
    tag = latest.read_text(encoding="utf-8", errors="replace").strip()
    inside = tag and Path(tag).name == tag and (folder / tag).is_dir()
    return folder / tag if inside else folder


def listing(paths: Iterable[Path]) -> str:
    """What a folder has, in words."""
    return f"it has {some(sorted(path.name for path in paths)) or 'nothing'}"


def _unreadable(path: Path, why: object) -> TubeletError:
    said = (str(why).splitlines() or [type(why).__name__])[0][:300].rstrip(".")
    return TubeletError(
        f"{path} cannot be read as weights: {said}. Expected a file of tensors, written by torch.save or "
        "safetensors."
    )
