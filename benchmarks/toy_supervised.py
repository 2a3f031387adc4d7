"""Is the middle difficulty of the built-in videos solvable? Supervised training from scratch.

    python benchmarks/toy_supervised.py [--steps 5000] [--train 20000] [--difficulty middle]

One ViT of the demo's shape with one attentive head for each label, *what* and *how*, learns from all
labels. Prints the accuracy on test clips (disjoint digits) as it goes; docs/toy.md has the result.
Clips are rendered into memory, without compression.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.data import toy
from tubelet.demo.runs import VIDEO
from tubelet.probes.attentive import AttentiveProbe
from tubelet.train.optim import param_groups
from tubelet.train.schedule import cosine

LABELS = {"what": len(toy.WHAT), "how": len(toy.HOW)}


def clips(options: toy.Options, split: str, count: int) -> tuple[Tensor, Tensor]:
    """-> uint8 [n,C,T,H,W], int64 [n,2]."""
    pixels = np.stack([toy.clip(options, split, i) for i in range(count)])
    labels = np.array([toy.labels(options, split, i) for i in range(count)])
    return torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).contiguous(), torch.from_numpy(labels)


class Both(nn.Module):
    """An encoder with a head for each label."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = VIDEO.model().backbone
        self.heads = nn.ModuleList(AttentiveProbe(self.encoder.dim, n) for n in LABELS.values())

    def forward(self, clip: Tensor) -> list[Tensor]:
        tokens = self.encoder(clip.float() / 255).x
        return [head(tokens) for head in self.heads]


@torch.no_grad()
def accuracies(model: Both, clip: Tensor, labels: Tensor) -> list[float]:
    outputs = [model(part) for part in clip.split(200)]
    return [
        float((torch.cat([o[i] for o in outputs]).argmax(1) == labels[:, i]).float().mean())
        for i in range(len(LABELS))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--train", type=int, default=20000)
    parser.add_argument("--test", type=int, default=1600)
    parser.add_argument("--difficulty", default="middle")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    args = parser.parse_args()
    options = toy.Options(difficulty=args.difficulty)
    train, test = clips(options, "train", args.train), clips(options, "test", args.test)
    torch.manual_seed(0)
    model = Both()
    optimizer = torch.optim.AdamW(param_groups(model, 0.05), fused=True)
    started, total = time.monotonic(), 0.0
    for step in range(args.steps):
        lr = cosine(step, total_steps=args.steps, warmup_steps=200, peak=args.lr, final=0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        chosen = torch.randint(len(train[0]), (64,))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            outputs = model(train[0][chosen])
        y = train[1][chosen]
        losses = [F.cross_entropy(o.float(), y[:, i]) for i, o in enumerate(outputs)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        total += float(torch.stack(losses).detach().sum())
        if (step + 1) % args.every == 0:
            scores = zip(LABELS, accuracies(model, *test), strict=True)
            said = "  ".join(f"{name} {100 * score:.1f} %" for name, score in scores)
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}  loss {total / args.every:.3f}  {said}  {seconds:.0f} s",
                flush=True,
            )
            total = 0.0


if __name__ == "__main__":
    main()
