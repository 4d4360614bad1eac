"""Byte-level BPE in its plainest form: nothing but the standard library, and nothing but the idea.

A text is cut into pretokens, a pretoken is its UTF-8 bytes, and training asks again and again: which two
neighbours stand together most often? That pair becomes one new token. Encoding repeats the merges in the
order in which they were learned. Everything is recounted at every step, so this is the lesson and not the
tool: that is `lmlib.tokenization.train_bpe`, which learns the same merges.

Sennrich, Haddow and Birch (2016), algorithm 1; on bytes: Radford et al. (2019), section 2.2.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

Pair = tuple[int, int]


def pretokenize(text: str) -> list[str]:
    """Cuts a text as GPT-2 does: into words, numbers and the rest, each with the space before it.

    The pieces join to the text again. No token will ever cross from one piece into the next.
    """
    return gpt2_pattern().findall(text)


@lru_cache(maxsize=1)
def gpt2_pattern() -> "re.Pattern[str]":
    r"""GPT-2's pattern for `re`, which does not know \p{L} (letters) and \p{N} (numbers)."""
    letters, numbers = unicode_class("L"), unicode_class("N")
    spaces = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # \s of `re` has four more
    return re.compile(
        r"'(?:[sdmt]|ll|ve|re)"
        rf"| ?[{letters}]+| ?[{numbers}]+| ?[^{spaces}{letters}{numbers}]+"
        rf"|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
    )


@lru_cache(maxsize=8)
def unicode_class(category: str) -> str:
    """All characters of a Unicode category ("L": letters, "N": numbers) as ranges for `re`."""
    ranges: list[list[int]] = []
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)).startswith(category):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in ranges)


def count_pairs(words: Mapping[tuple[int, ...], int]) -> Counter[Pair]:
    """How often each two ids stand side by side, in words (tuples of ids) that occur so many times each."""
    pairs: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            pairs[pair] += count
    return pairs


def merge(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replaces each occurrence of the pair by new_id, from left to right.

    >>> merge([1, 2, 1, 2, 2], (1, 2), 9)
    [9, 9, 2]
    """
    merged: list[int] = []
    i = 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def best_pair(pairs: Mapping[Pair, int], vocab: Mapping[int, bytes]) -> Pair:
    """The most frequent pair; of equally frequent ones the one whose bytes come last in the dictionary."""
    return max(pairs, key=lambda pair: (pairs[pair], vocab[pair[0]], vocab[pair[1]]))


def train(
    text: str, vocab_size: int, special_tokens: Iterable[str] = ()
) -> tuple[dict[int, bytes], list[Pair]]:
    """Learns a vocabulary: id -> bytes, and the merges as pairs of ids, in order.

    Ids 0 to 255 are the single bytes, merge number i makes id 256 + i, special tokens come last. If the text
    runs out of pairs there are fewer. Raises ValueError if vocab_size is below 256 plus special tokens.
    """
    specials = list(special_tokens)
    n_merges = vocab_size - 256 - len(specials)
    if n_merges < 0:
        raise ValueError(
            f"vocab_size is {vocab_size}, but 256 bytes and {len(specials)} special tokens need more"
        )
    documents = re.split("|".join(map(re.escape, specials)), text) if specials else [text]
    words = Counter(tuple(word.encode()) for document in documents for word in pretokenize(document))
    vocab = {byte: bytes([byte]) for byte in range(256)}
    merges: list[Pair] = []
    while len(merges) < n_merges and (pairs := count_pairs(words)):
        pair, new_id = best_pair(pairs, vocab), len(vocab)
        words = Counter({tuple(merge(word, pair, new_id)): count for word, count in words.items()})
        vocab[new_id] = vocab[pair[0]] + vocab[pair[1]]
        merges.append(pair)
    for special in specials:
        vocab[len(vocab)] = special.encode()
    return vocab, merges


def encode(text: str, merges: Sequence[Pair]) -> list[int]:
    """Token ids of a text: in each pretoken, the merge that was learned first is applied first."""
    new_ids = {pair: 256 + i for i, pair in enumerate(merges)}
    ids: list[int] = []
    for word in pretokenize(text):
        tokens = list(word.encode())
        while len(tokens) > 1:
            pair = min(pairwise(tokens), key=lambda p: new_ids.get(p, sys.maxsize))
            if pair not in new_ids:
                break
            tokens = merge(tokens, pair, new_ids[pair])
        ids += tokens
    return ids


def decode(ids: Iterable[int], vocab: Mapping[int, bytes]) -> str:
    """The text of token ids. Bytes that do not form a character, such as half of one, become U+FFFD."""
    return b"".join(vocab[i] for i in ids).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class MergeStep:
    """One step of training on a small text, with all that a reader wants to see of it.

    pair, new_id: what was merged into what; bytes of the three tokens are in `vocab`.
    count: how often the pair stood there. ties: the other pairs that occurred as often.
    pairs: every pair with its count, most frequent first, before the merge.
    words: the pretokens of the text, in order, as ids after the merge.
    vocab: id -> bytes after the merge.
    """

    number: int
    pair: Pair
    new_id: int
    count: int
    ties: tuple[Pair, ...]
    pairs: tuple[tuple[Pair, int], ...]
    words: tuple[tuple[int, ...], ...]
    vocab: Mapping[int, bytes]

    @property
    def n_tokens(self) -> int:
        """Tokens that the text takes after this merge."""
        return sum(map(len, self.words))


def merge_steps(text: str, max_steps: int | None = None) -> Iterator[MergeStep]:
    """Trains on a text one merge at a time, until no pair is left that occurs twice, or for max_steps."""
    words = [tuple(word.encode()) for word in pretokenize(text)]
    vocab = {byte: bytes([byte]) for byte in range(256)}
    number = 0
    while max_steps is None or number < max_steps:
        pairs = count_pairs(Counter(words))
        if not pairs:
            return
        pair, new_id = best_pair(pairs, vocab), len(vocab)
        if pairs[pair] < 2:
            return
        words = [tuple(merge(word, pair, new_id)) for word in words]
        vocab = {**vocab, new_id: vocab[pair[0]] + vocab[pair[1]]}
        number += 1
        yield MergeStep(
            number,
            pair,
            new_id,
            pairs[pair],
            tuple(other for other, count in pairs.items() if count == pairs[pair] and other != pair),
            tuple(pairs.most_common()),
            tuple(words),
            vocab,
        )
