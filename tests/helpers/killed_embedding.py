"""Embeds videos in processes that kill themselves, and in several at a time; compares the files.

    python killed_embedding.py FOLDER

Writes FOLDER/result.json: for each kill, whether the files in the end are those of a job that was
never stopped; and how many videos each of three processes made that ran side by side.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from killing import killing
from small import write_video

from tubelet.backbones.vit import ViT, ViTShape
from tubelet.model import Card, Classifier
from tubelet.shapes import ClipSpec
from tubelet.tasks import embed as task
from tubelet.tasks.embed import EmbedConfig, embed


def model() -> Classifier:
    torch.manual_seed(0)
    shape = ViTShape(width=32, depth=2, heads=2, patch=8)
    classifier = Classifier(ViT(shape, trained=(4, 32, 32), final_norm=False, init="normal"), 3)
    classifier.card = Card(clip=ClipSpec(num_frames=4, sampling_rate=1, size=(32, 32)))
    return classifier.eval()


def job(folder: Path, out: Path, **more: Any) -> task.Embeddings:
    config = EmbedConfig(hop_frames=3, batch_size=4, format="npz", device="cpu")
    return embed(model(), folder / "videos", config, out=out, **more)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def in_child(act: Callable[[], Any]) -> int:
    """Runs it in a process of its own -> its id."""
    if child := os.fork():
        return child
    act()
    os._exit(0)


def killed(folder: Path, out: Path, count: int, after: bool) -> dict[str, Any]:
    """A job that dies, and one that goes on."""

    def die() -> None:
        os.replace = killing(count, after)
        job(folder, out)

    _, status = os.waitpid(in_child(die), 0)
    left = len(list(out.rglob("*.npz")))
    again = job(folder, out)
    return {
        "killed": os.WIFSIGNALED(status),
        "left": left,
        "there": len(again.of("there")),
        "equal": contents(out) == contents(folder / "whole"),
    }


def side_by_side(folder: Path) -> dict[str, Any]:
    def act(number: int) -> Callable[[], None]:
        def run() -> None:
            made = [Path(f.path).name for f in job(folder, folder / "shared").of("made")]
            (folder / f"made{number}.json").write_text(json.dumps(made))

        return run

    children = [in_child(act(i)) for i in range(3)]
    codes = [os.waitpid(child, 0)[1] for child in children]
    made = [json.loads((folder / f"made{i}.json").read_text()) for i in range(3)]
    equal = contents(folder / "shared") == contents(folder / "whole")
    return {"codes": codes, "made": made, "equal": equal}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for i in range(6):
        write_video(folder / f"videos/{i % 2}/{i}.mp4", frames=10 + 3 * i, seed=i)
    job(folder, folder / "whole")
    places = [(1, False), (2, True), (4, False), (5, True)]  # features.json is the first
    kills = [killed(folder, folder / f"killed{n}", *at) for n, at in enumerate(places)]
    result = {"kills": kills, "shared": side_by_side(folder)}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
