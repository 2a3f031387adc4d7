"""tubelet: learn video representations without labels by masked video modelling, and use them."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tubelet.stored import load
    from tubelet.verbs import (
        cache,
        convert,
        distil,
        embed,
        evaluate,
        finetune,
        inspect,
        predict,
        pretrain,
        reconstruct,
        similarity,
    )
    from tubelet.zoo import create, list_models

__version__ = metadata.version("tubelet")
__all__ = [
    "cache",
    "convert",
    "create",
    "distil",
    "embed",
    "evaluate",
    "finetune",
    "inspect",
    "list_models",
    "load",
    "predict",
    "pretrain",
    "reconstruct",
    "similarity",
]

_HOMES = {"create": "zoo", "list_models": "zoo", "load": "stored"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: `import tubelet` stays quick."""
    if name not in __all__:
        raise AttributeError(f"module 'tubelet' has no attribute {name!r}")
    return getattr(import_module(f"tubelet.{_HOMES.get(name, 'verbs')}"), name)
