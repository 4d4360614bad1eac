"""Training: loss, optimizers, schedules, data, checkpoints, and the trainer that holds them together.

Names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "AdamW": "adamw",
    "CheckpointError": "checkpoint",
    "CheckpointFolder": "checkpoint",
    "LossModule": "loss",
    "Muon": "muon",
    "NonFiniteError": "trainer",
    "OptimizerSettings": "optimizers",
    "SGD": "sgd",
    "Schedule": "schedules",
    "TokenData": "dataset",
    "Trainer": "trainer",
    "TrainerSettings": "settings",
    "cross_entropy": "loss",
    "linear_cross_entropy": "loss",
    "open_tokens": "dataset",
    "write_tokens": "dataset",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *globals()]
