"""tubelet: learn video representations without labels by masked video modelling, and use them."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tubelet.hub import from_hub, push_to_hub, save_for_hub
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
    "from_hub",
    "inspect",
    "list_models",
    "load",
    "predict",
    "pretrain",
    "push_to_hub",
    "reconstruct",
    "save_for_hub",
    "similarity",
]

_HOMES = {
    "create": "zoo",
    "from_hub": "hub",
    "list_models": "zoo",
    "load": "stored",
    "push_to_hub": "hub",
    "save_for_hub": "hub",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: `import tubelet` stays quick."""
    if name not in __all__:
        raise AttributeError(f"module 'tubelet' has no attribute {name!r}")
    return getattr(import_module(f"tubelet.{_HOMES.get(name, 'verbs')}"), name)
