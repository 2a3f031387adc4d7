"""Fixtures for the whole suite: small networks, one thread, fixed seeds."""

from __future__ import annotations

import pytest
import torch

from tubelet.backbones.vit import ViT, ViTShape
from tubelet.data import isolate
from tubelet.decoders import DecoderShape, Joint
from tubelet.losses import mse
from tubelet.model import Branch, MaskedModel
from tubelet.targets.pixels import Pixels


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def imported_once() -> None:
    """By the server that processes come from, and not by each: what torch's optimizers import, for
    seconds. Not more: whoever forks again and again pays for all that is there."""
    isolate.IMPORTED.append("torch._dynamo")


@pytest.fixture
def tiny_shape() -> ViTShape:
    return ViTShape(width=32, depth=3, heads=2, patch=8)


@pytest.fixture
def tiny_vit(tiny_shape: ViTShape) -> ViT:
    return ViT(tiny_shape, trained=(8, 32, 32))


@pytest.fixture
def tiny_model(tiny_vit: ViT) -> MaskedModel:
    target = Pixels(tiny_vit.patch)
    decoder = Joint(tiny_vit.dim, target.width, DecoderShape(16, 2, 2), trained=tiny_vit.grid)
    return MaskedModel(tiny_vit, [Branch("pixels", decoder, target, mse)])
