"""N-gram models as yardsticks: how far does one get by counting?

Interpolated Witten-Bell smoothing (Witten and Bell, 1991, method C), trained on one text and measured on
another, which it codes completely: the bits are what an arithmetic coder driven by the model would write.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from math import log2

_WORDS = re.compile(r" ?[A-Za-z]+|\d| ?[^A-Za-z\d\s]|\s")


def as_bytes(text: str) -> Sequence[Hashable]:
    """A text as its UTF-8 bytes."""
    return text.encode()


def as_words(text: str) -> Sequence[Hashable]:
    """A text as words with the space before them, single digits and marks; nothing is lost."""
    return _WORDS.findall(text)


class NGram:
    """An n-gram model over any units; the lowest order falls back on spelling unknown units byte by byte."""

    def __init__(self, order: int) -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        self.order = order
        self._counts: list[defaultdict[tuple[Hashable, ...], Counter[Hashable]]] = [
            defaultdict(Counter) for _ in range(order)
        ]
        self._totals: list[dict[tuple[Hashable, ...], int]] = []

    def fit(self, documents: Iterable[Sequence[Hashable]]) -> NGram:
        """Count; each document starts from an empty context and ends with an end mark."""
        for document in documents:
            for context, unit in self._steps(document):
                for length in range(self.order):
                    self._counts[length][context[len(context) - length :]][unit] += 1
        self._totals = [{context: seen.total() for context, seen in level.items()} for level in self._counts]
        return self

    def bits(self, document: Sequence[Hashable]) -> float:
        """Bits that the model needs for a document and its end."""
        return sum(-log2(self._probability(context, unit)) for context, unit in self._steps(document))

    def _steps(self, document: Sequence[Hashable]) -> Iterable[tuple[tuple[Hashable, ...], Hashable]]:
        context: tuple[Hashable, ...] = (None,) * (self.order - 1)
        for unit in (*document, None):
            yield context, unit
            context = (*context, unit)[1:] if self.order > 1 else ()

    def _probability(self, context: tuple[Hashable, ...], unit: Hashable) -> float:
        # Below the unigrams: a byte is one of 256 or the end; an unknown word is spelled, 8 bits a byte,
        # after 8 bits for its length, which adds up to less than one over all words.
        probability = 2.0 ** -(8 * len(unit.encode()) + 8) if isinstance(unit, str) else 1 / 257
        for length in range(self.order):
            seen = self._counts[length].get(context[len(context) - length :])
            if seen:
                total = self._totals[length][context[len(context) - length :]]
                probability = (seen[unit] + len(seen) * probability) / (total + len(seen))
        return probability
