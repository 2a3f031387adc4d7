"""Each bad input gets one clear message, an exit code, and no traceback; docs/errors.md shows them.

`UPDATE_DOCS=1 pytest tests/cli/test_bad_input.py` writes the page anew.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from bad_checkpoints import CHECKPOINTS
from bad_features import EMBEDDED
from bad_input import CASES, FULL_DISK, Case, pretrain
from bad_labels import LABELLED
from bad_prepare import PREPARED
from bad_sources import MIXED
from bad_teachers import TAUGHT

from tubelet.train import checkpoint

ALL = [*CASES, *TAUGHT, *MIXED, *LABELLED, *PREPARED, *EMBEDDED, *CHECKPOINTS]
PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.title.replace(" ", "-"))
def test_bad_input_gets_one_clear_message(case: Case, tubelet, inside: Path) -> None:
    case.prepare(inside)
    before = files(inside / "runs")
    code, out, err = tubelet(*case.args)
    said = out + err
    assert code == case.code, said
    assert "Traceback" not in said
    flat = re.sub(r"[\s│]+", " ", said)
    for part in case.says:
        assert part in flat, said
    assert before.items() <= files(inside / "runs").items(), "something of an earlier run was lost"


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "new" not in p.parts
    }


@contextmanager
def full_disk_at_save(number: int) -> Iterator[None]:
    """The disk is full in the middle of that save."""
    real, calls = checkpoint.save_tensors, []

    def save_tensors(tensors: Any, path: Path, metadata: Any) -> None:
        calls.append(path)
        if len(calls) == number:
            Path(path).write_bytes(b"the first part")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path, metadata=metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", save_tensors)
        yield


def test_a_full_disk_while_saving_keeps_the_checkpoint_before(tubelet, inside: Path) -> None:
    with full_disk_at_save(2):
        code, out, err = tubelet(*pretrain("videos", "runs/full", "--save-every-steps", "1"))
    assert code == 1
    assert "No space left on device" in err
    assert "checkpoint-000001, is whole" in err
    assert "--resume" in err
    assert "Traceback" not in out + err
    folders = [path.name for path in (inside / "runs/full").iterdir() if path.is_dir()]
    assert folders == ["checkpoint-000001"]
    code, out, err = tubelet(*pretrain("videos", "runs/full", "--resume"))
    assert code == 0, err


def test_debug_shows_the_traceback(tubelet) -> None:
    from tubelet.errors import TubeletError

    with pytest.raises(TubeletError):
        tubelet("pretrain", "videomae:smal_k400", "--debug")


def test_the_page_of_errors_is_true(
    tubelet, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_world = tmp_path / "world"  # without what other tests left in it
    for part in ("videos", "labelled", "runs/pre", "runs/fine"):
        shutil.copytree(inside / part, clean_world / part)
    monkeypatch.chdir(clean_world)
    page = ["# What goes wrong, and what is said about it", "", INTRODUCTION]
    for case in [*ALL, FULL_DISK]:
        case.prepare(clean_world)
        with full_disk_at_save(2) if "disk" in case.title else nullcontext():
            code, out, err = tubelet(*case.args)
        text = out + err
        wanted = [line.rstrip() for line in clean(text).splitlines() if line.strip()]
        page += [f"## {case.title[0].upper()}{case.title[1:]}", "", "```console", f"$ {case.shown}"]
        page += [*wanted[-14:], "```", "", f"Exit code {code}.", ""]
    text = "\n".join(page)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(text)
    assert narrow(PAGE.read_text()) == narrow(text)


def narrow(text: str) -> str:
    """Without the width of tables, which follows from how many digits a speed has."""
    return re.sub(r" +", " ", re.sub(r"([─━])\1+", r"\1", text))


INTRODUCTION = textwrap.dedent(
    """\
    Made by `tests/cli/test_bad_input.py`, which runs each command and compares this page. Every
    error is one message with what is wrong, where, and what to do; the exit code is 1 (2 for
    options that do not exist), and nothing that an earlier run wrote is lost. `--debug` shows the
    traceback. Options that make the runs small are left out below.
    """
)


def clean(text: str) -> str:
    """Without what changes from machine to machine: absolute folders, free space, trained weights."""
    text = re.sub(r"\(weights [0-9a-f]{16}\)", "(weights ...)", text)
    text = re.sub(r"(?m)^\r?Loading weights: .*\n", "", text)  # how Hugging Face's library reads
    text = re.sub(r"[\d.]+ GB free", "N GB free", text)
    text = re.sub(r"(?m)^step \d+/.*\n", "", text)  # the progress of training
    text = re.sub(r"'?/[^\s:']*/(?=world\d*)world\d*'?", "the working folder", text)
    return re.sub(r"[\d.]+ (frames/s|training clips/s)", r"N \1", text)
