"""Data: loaders for real corpora and the generated micro-world.

Names are imported when first used, so that importing this package needs the standard library only.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "Document": "document",
    "MicroWorld": "microworld",
    "load": "sources",
    "micro_world": "microworld",
    "overlaps": "contamination",
    "planted_duplicates": "web",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *globals()]
