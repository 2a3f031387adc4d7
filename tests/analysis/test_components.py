"""Colours of features: the strongest directions first, one scale for all that is compared."""

import numpy as np
import torch

from tubelet.analysis.components import Components


def features(n: int = 400, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(n, width, generator=generator) * torch.tensor([9.0, 5, 2, 0.5, 0.3, 0.1])
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    return mixed @ turn + 3


def test_colours_are_the_principal_components() -> None:
    x = features()
    got = Components.fitted(x).colours(x).numpy()
    values = x.double().numpy()
    _, vectors = np.linalg.eigh(np.cov(values.T))
    for colour in range(3):
        axis = vectors[:, -1 - colour]
        axis = axis * np.sign(axis[np.abs(axis).argmax()])
        along = (values - values.mean(0)) @ axis
        low, high = np.quantile(along, [0.02, 0.98])
        np.testing.assert_allclose(
            got[:, colour], np.clip((along - low) / (high - low), 0, 1), atol=1e-4
        )


def test_a_colour_does_not_depend_on_what_else_is_shown() -> None:
    x = features()
    components = Components.fitted(x)
    torch.testing.assert_close(components.colours(x[7:9]), components.colours(x)[7:9])
    assert not torch.allclose(components.colours(x * 0.5), components.colours(x), atol=0.1)


def test_features_that_do_not_differ_and_those_of_two_numbers_have_colours_too() -> None:
    assert torch.isfinite(Components.fitted(torch.ones(8, 5)).colours(torch.ones(8, 5))).all()
    flat = features(width=6)[:, :2]
    colours = Components.fitted(flat).colours(flat)
    assert torch.equal(colours[:, 2], torch.full((400,), 0.5))
    assert colours[:, :2].std(0).min() > 0.1
