"""Memory, FLOPs, time and cost of transformers: exact integers, standard library only.

Each module holds one question; the names below are loaded when they are first used.

>>> from lmlib.resources import load, parameters
>>> parameters.parameters(load("llama-3-8b")).total
8030261248
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmlib.resources.ledger import Ledger, Term, derive
    from lmlib.resources.model import MLP, Attention, LatentAttention, Layer, Model, MoE
    from lmlib.resources.presets import PRESETS, load
    from lmlib.resources.units import ArgumentError

_HOME = {
    "ArgumentError": "units",
    "Attention": "model",
    "LatentAttention": "model",
    "Layer": "model",
    "Ledger": "ledger",
    "MLP": "model",
    "MoE": "model",
    "Model": "model",
    "PRESETS": "presets",
    "Term": "ledger",
    "derive": "ledger",
    "load": "presets",
}

__all__ = [
    "MLP",
    "PRESETS",
    "ArgumentError",
    "Attention",
    "LatentAttention",
    "Layer",
    "Ledger",
    "MoE",
    "Model",
    "Term",
    "derive",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
