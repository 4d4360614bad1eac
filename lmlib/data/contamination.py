"""How much of a test set stands in a corpus, by shared n-grams of words.

The measure of Brown et al., 2020 (appendix C), who took 13 words: lower case, marks left out. An item of
fewer than n words is compared as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Gram = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """The words and numbers of a text, lower case."""
    return re.findall(r"\w+", text.lower())


def overlaps(items: Sequence[str], corpus: Iterable[str], n: int = 13) -> list[float]:
    """For each item the share of its different n-grams that occur in some text of the corpus, 0 to 1.

    Reads the corpus once; memory grows with the items only. An item without words has 0. Raises ValueError
    for n below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    wanted = [_grams(words_of(item), n) for item in items]
    sought = {gram for grams in wanted for gram in grams}
    lengths = sorted({len(gram) for gram in sought})
    seen: set[Gram] = set()
    for text in corpus:
        words = words_of(text)
        for length in lengths:
            seen |= sought & _grams(words, length)
    return [len(grams & seen) / len(grams) if grams else 0.0 for grams in wanted]


def _grams(words: list[str], n: int) -> set[Gram]:
    """The different n-grams; of fewer words than n, all of them as one."""
    if not words:
        return set()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
