"""The update: parameter groups by rule, AdamW, gradient scale and norm, averaged weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.train.parallel import Place, local, split_like, sum_over_processes, whole

Named = dict[str, Tensor]


def param_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """The trained parameters, each in one group: `params`, `names`, `weight_decay`, `lr_scale`.

    No decay for 1-D parameters, biases, and the names in `model.no_weight_decay()`. With a
    `layer_decay` below 1 a layer learns at `layer_decay ** (layers above it)`, by
    `model.layer_of(name)`, from 0 to `model.num_layers` - 1. As published with BEiT and VideoMAE;
    pinned by tests/golden/videomae_finetune_param_groups.json.
    """
    listed: Callable[[], set[str]] | None = getattr(model, "no_weight_decay", None)
    undecayed = set(listed()) if listed else set()
    named = dict(model.named_parameters())
    unknown = sorted(undecayed - set(named))
    if unknown:
        raise TubeletError(
            f"{type(model).__name__}.no_weight_decay() names {', '.join(unknown)}, "
            f"which it does not have. Parameters: {', '.join(list(named)[:8])}, ..."
        )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named.items():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(".bias") or name in undecayed
        decay = 0.0 if plain else weight_decay
        scale = layer_decay ** _layers_above(model, name) if layer_decay < 1 else 1.0
        group = groups.setdefault(
            (decay, scale), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    grouped = [name for group in groups.values() for name in group["names"]]
    trained = [name for name, parameter in named.items() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trained), "every trained parameter is in exactly one group"
    if not trained:
        raise TubeletError(f"{type(model).__name__} has no parameter that is trained.")
    return list(groups.values())


def _layers_above(model: nn.Module, name: str) -> int:
    layer_of: Callable[[str], int] | None = getattr(model, "layer_of", None)
    layers: int | None = getattr(model, "num_layers", None)
    if layer_of is None or layers is None:
        raise TubeletError(
            f"layer_decay below 1 needs `layer_of(name)` and `num_layers`, which "
            f"{type(model).__name__} does not have: add them, or pass --layer-decay 1."
        )
    layer = layer_of(name)
    assert 0 <= layer < layers, f"{name}: layer {layer} of {layers}"
    return layers - 1 - layer


class Updater:
    """Turns the summed gradients of a global step into an update, without waiting for the device.

    AdamW's fused kernel updates weights and moments in one pass, and leaves all of them as they
    are where its `found_inf` is 1: so the check for finite values stays on the device. It is used
    on the CPU too (measured there: 3 times as fast as the loop over tensors, equal results).
    """

    def __init__(
        self,
        model: nn.Module,
        place: Place,
        *,
        weight_decay: float,
        betas: tuple[float, float],
        layer_decay: float = 1.0,
        clip_grad: float | None = None,
        split: bool = False,
    ) -> None:
        groups = param_groups(model, weight_decay, layer_decay)
        self.named: Named = {
            name: parameter
            for group in groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
        }
        wrong = [name for name, p in self.named.items() if p.dtype != torch.float32]
        if wrong:
            raise TubeletError(
                f"Weights are trained in float32, but {wrong[0]} is {self.named[wrong[0]].dtype}: "
                "call model.float() first; --precision bf16 computes in bf16 by itself."
            )
        self.place = place
        self.clip_grad = clip_grad
        self.split = split
        self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=1e-8, fused=True)
        # Made now, and not at the first update: so moments lie side by side, and what a step takes and
        # gives back is not cut to pieces by them.
        for parameter in self.named.values():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def apply(self, lr: float, loss: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """loss [] and weight of this process's share of the step -> skipped [] bool, norm [].

        The gradients are of sums: they are divided by the weight of all processes (which have
        averaged them, so they are multiplied by their number), clipped, and applied unless the
        loss or the norm is not finite. Also forgets them.
        """
        exact = self.place.exact
        grads = [local(p.grad) for p in self.named.values() if p.grad is not None]
        norms = torch._foreach_norm(grads)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        square = torch.stack(norms).to(exact).square().sum()
        total = torch.stack([loss.to(exact), torch.full_like(square, weight), square])
        loss, divisor, square = sum_over_processes(total).unbind()
        scale = self.place.world / divisor
        norm = (square if self.split else square / self.place.world).sqrt() * scale
        skipped = ~torch.isfinite(loss + norm)
        if self.clip_grad is not None:
            scale = scale * (self.clip_grad / (norm + 1e-6)).clamp(max=1)
        torch._foreach_mul_(grads, scale.float())  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.found_inf = skipped.float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return skipped, norm

    def state(self) -> dict[str, Named]:
        """parameter name -> its moments and step, as `parallel.whole` gives them."""
        of = self.optimizer.state
        return {
            name: {key: whole(value, self.place) for key, value in of[parameter].items()}
            for name, parameter in self.named.items()
        }

    def load(self, state: dict[str, Named]) -> None:
        """Takes what `state` gave, in any number of processes."""
        if set(state) != set(self.named):
            raise TubeletError(
                "The saved optimizer state is of other parameters: "
                + _difference(set(self.named), set(state))
            )
        for name, parameter in self.named.items():
            self.optimizer.state[parameter] = {
                key: split_like(value, parameter) if value.ndim else value.to(parameter.device)
                for key, value in state[name].items()
            }


class Averaged:
    """An exponential moving average of the trained weights; moves with applied updates only."""

    def __init__(self, named: Named, decay: float) -> None:
        self.decay = decay
        self.named = named
        self.average: Named = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def move(self, skipped: Tensor) -> None:
        """average <- decay * average + (1 - decay) * weights, unless skipped ([] bool)."""
        share = (~skipped).float() * (1 - self.decay)
        weights = [local(p) for p in self.named.values()]
        average = [local(a) for a in self.average.values()]
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            average, weights, [share] * len(weights)
        )

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """The model computes with the average for the time of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.named.items():
            mine, other = local(parameter), local(self.average[name])
            kept = mine.clone()
            mine.copy_(other)
            other.copy_(kept)

    def state(self, place: Place) -> Named:
        """The average, as `parallel.whole` gives it."""
        return {name: whole(value, place) for name, value in self.average.items()}

    def load(self, state: Named) -> None:
        """Takes what `state` gave, in any number of processes."""
        if not set(self.named) <= set(state):
            raise TubeletError(
                "The saved average is of other parameters: "
                + _difference(set(self.named), set(state))
            )
        self.average = {name: split_like(state[name], p) for name, p in self.named.items()}


def _difference(here: set[str], there: set[str]) -> str:
    """Some of the names that are in one set only, numbers in order."""
    ordered = [
        sorted(names, key=lambda n: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", n)])
        for names in (here - there, there - here)
    ]
    parts = [
        f"{len(names)} {where} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, where in zip(ordered, ("only in the model", "only in the file"), strict=True)
        if names
    ]
    return "; ".join(parts) + "."
