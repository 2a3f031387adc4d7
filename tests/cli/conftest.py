"""A working folder with small videos and small trained runs, for tests of whole commands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small import TINY, TINY_DECODER, TINY_NET, write_video

from tubelet.cli import main


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos/ (6), labelled/{train,val}/{left,right}/ (4 each), runs/pre and runs/fine."""
    folder = tmp_path_factory.mktemp("world")
    for i in range(6):
        write_video(folder / f"videos/{i}.mp4", seed=i)
    for split in ("train", "val"):
        for label in ("left", "right"):
            for i in range(2):
                seed = hash_of(split, label, i)
                write_video(folder / f"labelled/{split}/{label}/{i}.mp4", seed=seed)
    here = os.getcwd()
    os.chdir(folder)
    try:
        pre = ["pretrain", "videomae:small_k400", "--data", "videos", "--out", "runs/pre"]
        sizes = [*TINY, *TINY_NET, *TINY_DECODER, "--mask-ratio", "0.75"]
        assert main([*pre, "--steps", "2", "--batch-size", "2", *sizes]) == 0
        fine = ["finetune", "--weights", "runs/pre", "--data", "labelled", "--out", "runs/fine"]
        steps = ["--steps", "2", "--batch-size", "4", "--workers", "0", "--device", "cpu"]
        assert main([*fine, *steps]) == 0
    finally:
        os.chdir(here)
    return folder


def hash_of(*parts: object) -> int:
    return sum(ord(c) for c in "".join(map(str, parts)))


@pytest.fixture(scope="module")
def copied(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world for the tests of one file, so that what those of another leave is not in their way."""
    return Path(shutil.copytree(world, tmp_path_factory.mktemp("copied") / "world"))


@pytest.fixture
def inside(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder is that world."""
    monkeypatch.chdir(copied)
    return copied


@pytest.fixture
def tubelet(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """tubelet("verb", ...) -> exit code, what it printed, what it said on stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(list(args))
        except SystemExit as ended:  # how the parser of options ends
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
