"""The commands and the Python of README and docs run, in order, page by page.

Blocks marked `bash` and `python` are run; of `bash`, only lines that call tubelet. What is
pretrained or fine-tuned is made small by options added at the end, everything else is as written.
Blocks marked `sh` are not run here: they set up machines (make, pip, torchrun, slurm), take hours, or
measure the machine.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image
from small import TINY, TINY_DECODER, TINY_MVIT, TINY_NET, write_frames, write_video

from tubelet.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STEPS = ["--steps", "2", "--save-every-steps", "1", "--no-progress"]
RATIO = ["--mask-ratio", "0.75"]
NET = [*TINY_NET, *TINY_DECODER, *RATIO]
SMALL = {
    "pretrain": [*TINY, *STEPS, "--batch-size", "2"],
    "finetune": ["--workers", "0", "--device", "cpu", *STEPS, "--batch-size", "4"],
    "distil": ["--workers", "0", "--device", "cpu", *STEPS, "--batch-size", "4"],
    "toy": ["--train", "12", "--val", "8", "--test", "8"],
    "evaluate": ["--workers", "0"],
    "cache": TINY,
    "check": ["--num-frames", "4", "--sampling-rate", "2"],
}
OF_METHOD = {  # what a method's runs (or photos) need to be made small, beside
    "photos": ["--num-frames", "1"],
    "mae": ["--num-frames", "1", "--sampling-rate", "1"],
    "mvd": ["--image.width", "0", "--video.width", "0"],  # that of the small teachers
    "./three.py": ["--image.width", "0", "--video.width", "0"],
}
NETS = {"maskfeat": TINY_MVIT}  # of methods whose encoder is not a plain transformer
NOT_RUN = (
    "make",
    "pip",
    "python -m pip",
    "python benchmarks/",
    "tubelet bench",
    "torchrun",
    "git",
    "srun",
    "cd",
    "#",
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each block, lines that go on joined."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.S | re.M)
    return [(language, re.sub(r"\\\n\s*", "", text)) for language, text in found]


@pytest.fixture
def folder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages take for granted: videos/, images/, labelled/, photos/, new_video.mp4, runs;
    ssv2/ and ssv2.csv, folders of frames."""
    for name in ("videos", "labelled"):
        shutil.copytree(world / name, tmp_path / name)
    for name in ("pre", "fine"):
        shutil.copytree(world / "runs" / name, tmp_path / "runs" / name)
    write_video(tmp_path / "new_video.mp4", frames=40)
    for i in range(2):
        write_frames(tmp_path / f"ssv2/{i}", seed=i)
    (tmp_path / "ssv2.csv").write_text("ssv2/0 1 12\nssv2/1 1 12\n")
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (48, 40), (60 * i, 0, 0)).save(tmp_path / f"images/{i}.jpg")
    for i, place in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (48, 40), (0, 60 * i, 99 * j)).save(
                tmp_path / f"photos/{place}/{j}.jpg"
            )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(
    page: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = 0
    names = {"__name__": "page"}  # blocks of a page go on from one another
    for language, text in blocks(page):
        if language == "bash":
            for line in filter(None, text.splitlines()):
                ran += run_command(shlex.split(line, comments=True), folder, capsys)
        elif file := re.match(r"# (\w+\.(py|toml))\n", text):
            (folder / file[1]).write_text(text)
        elif language == "python":
            exec(compile(text, page.name, "exec"), names)
            ran += 1
    assert ran or page.name in PROSE, f"{page.name} shows nothing that runs"


def run_command(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Runs a line of a page -> 1, or 0 for one that is run elsewhere."""
    if words[:1] != ["tubelet"] or words[1] == "demo":  # the demo has a test of its own
        return 0
    out = words[words.index("--out") + 1] if "--out" in words else ""
    if out and words[1] in ("pretrain", "finetune", "distil") and "--resume" not in words:
        shutil.rmtree(folder / out, ignore_errors=True)
    try:
        method = words[2].partition(":")[0] if len(words) > 2 else ""
        net = NETS.get(method, NET) if words[1] in ("pretrain", "cache") else []
        small = [*SMALL.get(words[1], []), *net, *OF_METHOD.get(method, [])]
        code = main([*words[1:], *small])
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    assert code == 0, f"{' '.join(words)}\n{said.out}\n{said.err}"
    return 1


PROSE = {
    "errors.md",
    "log.md",
    "maskfeat-study.md",
    "mvd-study.md",
    "performance.md",
    "toy.md",
}  # errors.md is checked by test_bad_input.py


def test_what_is_not_run_sets_up_machines() -> None:
    for page in PAGES:
        for language, text in blocks(page):
            for line in filter(None, text.splitlines() if language == "sh" else ()):
                assert line.startswith(NOT_RUN), f"{page.name}: {line}"


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
