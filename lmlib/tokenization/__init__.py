"""Tokenization: from strings to bytes to tokens.

Importing this package costs only the standard library; each name below is loaded when it is first used.
`naive` needs nothing else even then, which is why it runs in the book's pages.

>>> from lmlib.tokenization import train_bpe
>>> tokenizer = train_bpe(["low low low lower lowest"], vocab_size=261)
>>> tokenizer.decode(tokenizer.encode("lower"))
'lower'
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmlib.tokenization import alternatives, dropout, fast, formats, naive, patterns
    from lmlib.tokenization.patterns import PATTERNS
    from lmlib.tokenization.tokenizer import Tokenizer
    from lmlib.tokenization.trainer import train_bpe

_HOME = {"PATTERNS": "patterns", "Tokenizer": "tokenizer", "train_bpe": "trainer"}
_MODULES = ("alternatives", "dropout", "fast", "formats", "naive", "patterns")

__all__ = [
    "PATTERNS",
    "Tokenizer",
    "alternatives",
    "dropout",
    "fast",
    "formats",
    "naive",
    "patterns",
    "train_bpe",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
