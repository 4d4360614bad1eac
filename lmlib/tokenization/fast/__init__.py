"""The fast path: counting, training and encoding compiled by Numba, with the results of the readable path.

Compiling takes some seconds, once: the machine code is kept on disk. Ahead of the first use,
`python -m lmlib.tokenization.fast compile` does it. Small inputs never wait for it: `worthwhile` says when
this path pays off.

Importing this package costs only the standard library. Using `count_words`, `train` or `Encoder` imports
Numba, and compiles first where that has not been done.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .compiled import compile_kernels, is_compiled

if TYPE_CHECKING:
    from .counter import WordCounts, count_words
    from .encoder import Encoder
    from .trainer import train

__all__ = [
    "Encoder",
    "WordCounts",
    "available",
    "check",
    "compile_kernels",
    "count_words",
    "is_compiled",
    "kind_of",
    "train",
    "worthwhile",
]

_HOME = {"Encoder": "encoder", "WordCounts": "counter", "count_words": "counter", "train": "trainer"}
_KINDS = {"gpt2": 0, "cl100k": 1}  # scan.GPT2, scan.CL100K; that module needs Numba

# Bytes of text from which this path is the faster one: loading the code takes 0.6 s, compiling it 15 s.
_REPAYS_LOADING = 4_000_000
_REPAYS_COMPILING = 100_000_000


def available() -> bool:
    """Whether Numba is installed."""
    return find_spec("numba") is not None


def kind_of(pattern: str) -> int | None:
    """The scanner's number for a pattern's name; None if it knows the pattern not."""
    return _KINDS.get(pattern)


def check(implementation: str, pattern: str) -> None:
    """Refuses an implementation that does not exist, or that can't be had for this pattern or here.

    Raises ValueError, or ImportError if Numba is asked for and not installed.
    """
    if implementation not in ("auto", "python", "numba"):
        raise ValueError(f'implementation must be "auto", "python" or "numba", got {implementation!r}')
    if implementation == "numba" and kind_of(pattern) is None:
        raise ValueError(f'implementation "numba" knows the patterns {sorted(_KINDS)}, got {pattern!r}')
    if implementation == "numba" and not available():
        raise ImportError('implementation "numba" needs Numba (pip install numba); use "auto" or "python"')


def worthwhile(pattern: str, n_bytes: int) -> bool:
    """Whether a text of this size is done sooner here than by the readable path."""
    if kind_of(pattern) is None or n_bytes < _REPAYS_LOADING or not available():
        return False
    return n_bytes >= _REPAYS_COMPILING or is_compiled()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        if not is_compiled():
            compile_kernels()
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
