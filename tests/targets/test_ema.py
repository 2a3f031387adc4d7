"""The student's own average as a teacher: its formula, its features, its state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tubelet.backbones.vit import ViT, ViTShape
from tubelet.model import Branch, MaskedModel
from tubelet.targets.ema import Bootstrap


def nudge(vit: ViT) -> None:
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_it_moves_by_the_formula(momentum: float, tiny_vit: ViT) -> None:
    average = Bootstrap(tiny_vit, 32, momentum=momentum)
    slow = {name: value.clone().double() for name, value in tiny_vit.named_parameters()}
    for _ in range(4):
        nudge(tiny_vit)
        average.move(tiny_vit)
        for name, value in tiny_vit.named_parameters():
            slow[name] = momentum * slow[name] + (1 - momentum) * value.double()
    for name, value in average.network.named_parameters():
        torch.testing.assert_close(value.double(), slow[name], rtol=1e-5, atol=1e-6, msg=name)
        assert not value.requires_grad


@pytest.mark.parametrize("norm_feature", [True, False])
@pytest.mark.parametrize("layer", [-1, 1])
def test_its_features_are_those_of_a_block_on_the_whole_clip(
    layer: int, norm_feature: bool, tiny_shape: ViTShape
) -> None:
    vit = ViT(tiny_shape, trained=(8, 32, 32), drop_path=0.5).train()
    average = Bootstrap(vit, 32, layer=layer, norm_feature=norm_feature).train()
    clip, asked = torch.rand(2, 3, 8, 32, 32), torch.tensor([[3, 60, 5], [0, 1, 63]])
    expected = vit.eval()(clip, layers=[layer], norm=False).layers[0]
    if norm_feature:
        expected = F.layer_norm(expected, (32,), eps=1e-6)
    torch.testing.assert_close(average(clip), expected)
    for b in range(2):
        torch.testing.assert_close(average(clip, asked)[b], expected[b, asked[b]])


def test_it_computes_in_bf16_where_asked_also_in_a_float32_part_of_the_step(tiny_vit: ViT) -> None:
    clip = torch.rand(1, 3, 8, 32, 32)
    exact, low = (Bootstrap(tiny_vit, 32, precision=p) for p in ("auto", "bf16"))
    with torch.autocast("cpu", enabled=False):
        error = (low(clip) - exact(clip)).norm() / exact(clip).norm()
    assert low(clip).dtype == torch.float32
    assert 0 < error < 0.02  # bf16 has 8 bits of precision


def test_it_is_state_but_is_not_trained(tiny_vit: ViT) -> None:
    model = MaskedModel(
        tiny_vit, [Branch("ema", torch.nn.Identity(), Bootstrap(tiny_vit, 32), F.mse_loss)]
    )
    average = {n: p for n, p in model.named_parameters() if n.startswith("branches.ema.target.")}
    assert len(average) == len(list(tiny_vit.parameters()))
    assert not any(p.requires_grad for p in average.values())
    assert set(average) <= set(model.state_dict())
    nudge(tiny_vit)  # which leaves the copy as it is
    first = next(iter(tiny_vit.parameters()))
    assert not torch.equal(next(iter(average.values())), first)


def test_it_stays_in_eval_mode(tiny_vit: ViT) -> None:
    model = MaskedModel(
        tiny_vit, [Branch("ema", torch.nn.Identity(), Bootstrap(tiny_vit, 32), F.mse_loss)]
    )
    model.train()
    assert model.backbone.training
    assert not any(part.training for part in model.branches["ema"].target.modules())
