"""Our model and a published formulation on one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tubelet.bench.steps import as_published
from tubelet.shapes import Batch


def backward_of_both(ours: Any, plain: nn.Module, batch: Batch) -> None:
    """Asserts that their losses are equal, and leaves the gradients of both."""
    total, weight = ours(batch.clip / 255, batch.masks)["loss"]
    loss = plain(*as_published(ours, batch))
    torch.testing.assert_close(loss, total / weight, rtol=1e-5, atol=0)
    (total / weight).backward()
    loss.backward()
