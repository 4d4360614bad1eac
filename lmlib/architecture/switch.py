"""The switch to this book's Triton kernels, which are looked up when a model is built."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def kernel(name: str) -> Callable[..., Any]:
    """The function ``name`` of ``kernels``.

    Raises:
        ImportError: where the package lacks it, with what to choose instead.
    """
    try:
        found = getattr(import_module("kernels"), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"kernels='triton' needs kernels.{name}; choose kernels='sdpa' instead") from error
    return found
