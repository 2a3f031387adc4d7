"""Parameter groups against the published ones; updates and averages against slow formulas."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.train import parallel
from tubelet.train.optim import Averaged, Updater, param_groups

GOLDEN = Path(__file__).parents[1] / "golden" / "videomae_finetune_param_groups.json"


class Named(nn.Module):
    """Parameters of the given dotted names and dimensions, by the rules of a ViT of depth 2."""

    num_layers = 4
    listed: frozenset[str] | set[str] = frozenset()

    def __init__(self, shapes: dict[str, int]) -> None:
        super().__init__()
        for name, dimensions in shapes.items():
            at: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(at, part):
                    at.add_module(part, nn.Module())
                at = getattr(at, part)
            at.register_parameter(last, nn.Parameter(torch.zeros((1,) * dimensions)))

    def no_weight_decay(self) -> set[str]:
        return set(self.listed)

    def layer_of(self, name: str) -> int:
        if name.startswith("patch_embed."):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 3


def dimensions(name: str) -> int:
    if name == "patch_embed.proj.weight":
        return 5
    return 2 if name.endswith(".weight") and "norm" not in name else 1


def test_published_groups() -> None:
    golden = json.loads(GOLDEN.read_text())
    groups = param_groups(Named({name: dimensions(name) for name in golden}), 0.05, 0.75)
    found = {
        name: {"weight_decay": group["weight_decay"], "lr_scale": group["lr_scale"]}
        for group in groups
        for name in group["names"]
    }
    assert found == golden
    assert sum(len(group["params"]) for group in groups) == len(golden)


def test_listed_names_and_frozen_parameters() -> None:
    model = Named({"cls.token": 3, "cls.bias": 2, "head.weight": 2, "frozen.weight": 2})
    model.listed = {"cls.token"}
    model.get_parameter("frozen.weight").requires_grad = False
    groups = {group["weight_decay"]: group["names"] for group in param_groups(model, 0.1)}
    assert groups == {0.0: ["cls.token", "cls.bias"], 0.1: ["head.weight"]}
    model.listed = {"cls.tokem"}
    with pytest.raises(TubeletError, match=r"cls\.tokem"):
        param_groups(model, 0.1)


def test_models_that_cannot_be_grouped() -> None:
    with pytest.raises(TubeletError, match="--layer-decay 1"):
        param_groups(nn.Linear(2, 2), 0.1, 0.75)
    with pytest.raises(TubeletError, match="no parameter"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)
    with pytest.raises(TubeletError, match=r"bfloat16.*model.float\(\)"):
        updater(nn.Linear(2, 2).bfloat16())


def updater(model: nn.Module, clip: float | None = None, layer_decay: float = 1.0) -> Updater:
    return Updater(
        model,
        parallel.place("cpu"),
        weight_decay=0.1,
        betas=(0.9, 0.95),
        layer_decay=layer_decay,
        clip_grad=clip,
    )


@pytest.mark.parametrize("clip", [None, 0.3])
def test_updates_follow_the_formula(tiny: ModuleType, clip: float | None) -> None:
    """AdamW (arXiv 1711.05101, algorithm 2) in float64, of the gradient divided by the weight."""
    model = tiny.TinyModel()
    slow = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    first = {n: torch.zeros_like(p) for n, p in slow.items()}
    second = {n: torch.zeros_like(p) for n, p in slow.items()}
    update = updater(model, clip, layer_decay=0.5)
    for t in range(1, 6):
        x, lr, weight = torch.randn(4, 12), 0.01 * t, 7.0 + t
        loss = model(x).square().sum()
        loss.backward()
        grads = {n: none_is_an_error(p.grad).double() / weight for n, p in model.named_parameters()}
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
        factor = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        for name, grad in grads.items():
            grad = grad * factor
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.95 * second[name] + 0.05 * grad.square()
            rate = lr * 0.5 ** (3 - model.layer_of(name))
            decay = 0.1 if grad.ndim > 1 else 0.0
            step = (first[name] / (1 - 0.9**t)) / ((second[name] / (1 - 0.95**t)).sqrt() + 1e-8)
            slow[name] = slow[name] * (1 - rate * decay) - rate * step
        skipped, found = update.apply(lr, loss.detach(), weight)
        assert not skipped and float(found) == pytest.approx(norm, rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), slow[name], rtol=1e-5, atol=1e-6)
        assert parameter.grad is None


def none_is_an_error(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad


@pytest.mark.parametrize("where", ["loss", "gradient", "weight"])
def test_what_is_not_finite_changes_nothing(tiny: ModuleType, where: str) -> None:
    model = tiny.TinyModel()
    update, average = updater(model), Averaged(dict(model.named_parameters()), 0.5)

    def step(bad: bool) -> Tensor:
        loss = model(torch.ones(2, 12)).square().sum()
        loss.backward()
        if bad and where == "gradient":
            none_is_an_error(model.head.bias.grad)[1] = float("inf")
        told = loss.detach() * (float("nan") if bad and where == "loss" else 1.0)
        skipped, _ = update.apply(0.1, told, 0.0 if bad and where == "weight" else 2.0)
        average.move(skipped)
        return skipped

    assert not step(bad=False)
    place = update.place
    before = json_like(model.state_dict(), update.state(), average.state(place))
    assert step(bad=True)
    assert json_like(model.state_dict(), update.state(), average.state(place)) == before
    assert not step(bad=False)
    assert json_like(model.state_dict(), update.state(), average.state(place)) != before


def json_like(*states: Mapping[str, object]) -> str:
    return repr(
        [
            [(n, s.tolist() if isinstance(s, Tensor) else s) for n, s in state.items()]
            for state in states
        ]
    )


def test_average(tiny: ModuleType) -> None:
    model = tiny.TinyModel()
    named = dict(model.named_parameters())
    average = Averaged(named, 0.75)
    slow = {n: p.detach().double().clone() for n, p in named.items()}
    for _ in range(4):
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.add_(torch.randn_like(parameter))
                slow[name] = 0.75 * slow[name] + 0.25 * parameter.double()
        average.move(torch.tensor(False))
    held = {n: a.clone() for n, a in average.state(parallel.place("cpu")).items()}
    trained = {n: p.detach().clone() for n, p in named.items()}
    for name in named:
        torch.testing.assert_close(held[name].double(), slow[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert all(torch.equal(p, held[n]) for n, p in named.items())
        raise ZeroDivisionError
    assert all(torch.equal(p, trained[n]) for n, p in named.items())


def test_state_of_other_parameters_is_refused(tiny: ModuleType) -> None:
    update = updater(tiny.TinyModel())
    state = update.state()
    state["other.weight"] = state.pop("head.weight")
    with pytest.raises(TubeletError, match=r"head\.weight.*other\.weight"):
        update.load(state)
    average = Averaged(update.named, 0.5)
    with pytest.raises(TubeletError, match=r"only in the model \(head\.weight\)"):
        average.load({n: p for n, p in update.named.items() if n != "head.weight"})
