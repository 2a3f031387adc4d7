"""From uint8 clips to scores that do not depend on how clips were put together.

The last bits of a matrix product depend on the shape of the matrices, on a CPU as on a GPU. So
every forward here has the same number of clips, the rest filled with zeros: what a clip scores is
then a matter of that clip alone.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.train.parallel import choose_device, choose_precision, gathered

Kind = Literal["single", "multi", "regression"]
Precision = Literal["auto", "float32", "bf16"]


class Scorer:
    """Runs a classifier in evaluation mode on forwards of exactly `per_forward` clips.

    Use it in a `with` block, which gives the model back in the mode that it was in.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: Kind,
        *,
        per_forward: int,
        device: str = "auto",
        precision: Precision = "auto",
    ):
        self.kind: Kind = kind
        self.per_forward = per_forward
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.model = model.to(self.device)

    def __enter__(self) -> Scorer:
        self._was_training = self.model.training
        self.model.eval()
        return self

    def __exit__(self, *_: object) -> None:
        self.model.train(self._was_training)

    def padded(self, clips: Tensor) -> Tensor:
        """uint8 [n,...] -> [m,...], m the next multiple of `per_forward`."""
        lacking = -len(clips) % self.per_forward
        return torch.cat([clips, clips.new_zeros(lacking, *clips.shape[1:])]) if lacking else clips

    @torch.inference_mode()
    def __call__(self, clips: Tensor) -> Tensor:
        """uint8 [n,C,T,H,W], n a multiple of `per_forward` -> scores float64 [n,outputs], on the CPU.

        Scores are probabilities: softmax (single), sigmoid (multi); or the values (regression).
        """
        assert len(clips) % self.per_forward == 0, "pad first"
        clips = clips.to(self.device, non_blocking=True)
        logits: list[Tensor] = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            for some in clips.split(self.per_forward):
                logits.append(self.model(some.float() / 255).float())
        values = torch.cat(logits).cpu().double()
        if self.kind == "single":
            return values.softmax(-1)
        return values.sigmoid() if self.kind == "multi" else values


def check_finite(scores: Tensor, path: str) -> None:
    """Raises where a score is not a number: weights that went wrong must not count as an answer."""
    if not bool(scores.isfinite().all()):
        raise TubeletError(
            f"The model's scores for {path} are not finite numbers. Expected finite weights: look at "
            "the training log for a loss that was not finite, and take an earlier checkpoint."
        )


def weights_hash(model: nn.Module) -> str:
    """sha256 over names, types, shapes and values of the state dict, in the order of names.

    Of a model that is split (FSDP2) all processes must ask together.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        value = gathered(value).cpu().contiguous()
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
