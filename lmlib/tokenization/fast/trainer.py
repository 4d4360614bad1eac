"""The trainer: merge the most frequent pair, again and again, touching only what each merge changes.

Notable:
- The corpus is its distinct words, laid out byte by byte, one empty place between two words. A symbol is
  written at the first and at the last place of its bytes: both neighbours are found without links.
- Every symbol belongs to the list of the pair that starts there: a merge walks one list and touches nothing
  else. A pair needs no hash table, because all places of a new pair arise in the one merge that makes its
  newer symbol: one array from neighbour to pair, used for one merge, finds it.
- The heap is lazy: a pair enters it once, with the count it then had. Counts only fall after that, so a pair
  that comes out with an old count goes back with its present one.
- Equal counts: the lexicographically greatest pair of byte strings first. No two symbols hold the same bytes
  (inside one stretch of bytes that becomes a symbol, the merges always run the same way).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

from .counter import WordCounts
from .memory import INLINE, OPTIONS
from .pages import pages

_MERGES_AT_ONCE = 512  # merges between two looks at the clock and the keyboard
_EMPTY = -1  # the place between two words


@njit(**OPTIONS)
def _compare_symbols(a: int, b: int, text: np.ndarray, where: np.ndarray, lengths: np.ndarray) -> np.int64:
    """Above zero if the bytes of symbol a come after those of b, zero if they are the same."""
    if a == b:
        return np.int64(0)
    start, other = where[a], where[b]
    for i in range(min(lengths[a], lengths[b])):
        difference = np.int64(text[start + i]) - np.int64(text[other + i])
        if difference:
            return difference
    return np.int64(lengths[a]) - np.int64(lengths[b])


@njit(**INLINE)
def _before(
    p: int,
    p_count: int,
    q: int,
    q_count: int,
    pairs: np.ndarray,
    text: np.ndarray,
    where: np.ndarray,
    lengths: np.ndarray,
) -> bool:
    """Whether pair p is to be merged before pair q."""
    if p_count != q_count:
        return p_count > q_count
    order = _compare_symbols(pairs[p, 0], pairs[q, 0], text, where, lengths)
    if order == 0:
        order = _compare_symbols(pairs[p, 1], pairs[q, 1], text, where, lengths)
    return order > 0


@njit(**OPTIONS)
def _sift_up(
    i: int,
    heap: np.ndarray,
    heap_counts: np.ndarray,
    pairs: np.ndarray,
    text: np.ndarray,
    where: np.ndarray,
    lengths: np.ndarray,
) -> None:
    p, count = heap[i], heap_counts[i]
    while i > 0:
        up = (i - 1) >> 1
        if not _before(p, count, heap[up], heap_counts[up], pairs, text, where, lengths):
            break
        heap[i], heap_counts[i] = heap[up], heap_counts[up]
        i = up
    heap[i], heap_counts[i] = p, count


@njit(**OPTIONS)
def _sift_down(
    size: int,
    heap: np.ndarray,
    heap_counts: np.ndarray,
    pairs: np.ndarray,
    text: np.ndarray,
    where: np.ndarray,
    lengths: np.ndarray,
) -> None:
    """Put the root where it belongs."""
    i, p, count = 0, heap[0], heap_counts[0]
    while 2 * i + 1 < size:
        child = 2 * i + 1
        right = child + 1
        if right < size and _before(
            heap[right], heap_counts[right], heap[child], heap_counts[child], pairs, text, where, lengths
        ):
            child = right
        if not _before(heap[child], heap_counts[child], p, count, pairs, text, where, lengths):
            break
        heap[i], heap_counts[i] = heap[child], heap_counts[child]
        i = child
    heap[i], heap_counts[i] = p, count


@njit(**INLINE)
def _join(
    place: int,
    pair: int,
    weight: int,
    pair_at: np.ndarray,
    chain: np.ndarray,
    lists: np.ndarray,
    pair_counts: np.ndarray,
) -> None:
    """Append a place to a pair's list (which keeps the order of the places in a word)."""
    last = lists[pair, 1]
    pair_at[place] = pair
    chain[place, 0], chain[place, 1] = last, -1
    if last >= 0:
        chain[last, 1] = place
    else:
        lists[pair, 0] = place
    lists[pair, 1] = place
    pair_counts[pair] += weight


@njit(**INLINE)
def _leave(
    place: int,
    weight: int,
    pair_at: np.ndarray,
    chain: np.ndarray,
    lists: np.ndarray,
    pair_counts: np.ndarray,
) -> None:
    """Take a place out of the list it is in."""
    pair, before, after = pair_at[place], chain[place, 0], chain[place, 1]
    if before >= 0:
        chain[before, 1] = after
    else:
        lists[pair, 0] = after
    if after >= 0:
        chain[after, 0] = before
    else:
        lists[pair, 1] = before
    pair_counts[pair] -= weight


@njit(**INLINE)
def _new_pair(
    left: int, right: int, pairs: np.ndarray, lists: np.ndarray, pair_counts: np.ndarray, state: np.ndarray
) -> int:
    pair = state[0]
    state[0] += 1
    pairs[pair, 0], pairs[pair, 1] = left, right
    lists[pair, 0], lists[pair, 1] = -1, -1
    pair_counts[pair] = 0
    return pair


@njit(**OPTIONS)
def _lay_out(
    data: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    symbols: np.ndarray,
    word_at: np.ndarray,
    pair_at: np.ndarray,
    chain: np.ndarray,
    lists: np.ndarray,
    pair_counts: np.ndarray,
    pairs: np.ndarray,
    pair_of: np.ndarray,
    state: np.ndarray,
) -> None:
    """Bytes as symbols, and the list of every pair of bytes. Word k begins at place starts[k] + k + 1.

    pair_of: int32 (65536,), all -1; where the pair of two bytes will be found.
    """
    symbols[0] = _EMPTY
    for word in range(counts.size):
        shift = word + 1
        for i in range(starts[word], starts[word + 1]):
            symbols[i + shift] = data[i]
            word_at[i + shift] = word
            if i + 1 < starts[word + 1]:
                key = np.int64(data[i]) << 8 | np.int64(data[i + 1])
                if pair_of[key] < 0:
                    pair_of[key] = _new_pair(key >> 8, key & 255, pairs, lists, pair_counts, state)
                _join(i + shift, pair_of[key], counts[word], pair_at, chain, lists, pair_counts)
        symbols[starts[word + 1] + shift] = _EMPTY


@njit(**INLINE)
def _pair_with(
    left: int,
    right: int,
    new: int,
    known: np.ndarray,
    pairs: np.ndarray,
    lists: np.ndarray,
    pair_counts: np.ndarray,
    state: np.ndarray,
) -> int:
    """The pair (left, right), one of which is the new symbol; made if it isn't known yet."""
    row, other = (0, right) if left == new else (1, left)
    if known[row, other] < 0:
        known[row, other] = _new_pair(left, right, pairs, lists, pair_counts, state)
    return known[row, other]


@njit(**OPTIONS)
def _apply(
    pair: int,
    new: int,
    counts: np.ndarray,
    symbols: np.ndarray,
    lengths: np.ndarray,
    word_at: np.ndarray,
    pair_at: np.ndarray,
    chain: np.ndarray,
    lists: np.ndarray,
    pair_counts: np.ndarray,
    pairs: np.ndarray,
    known: np.ndarray,
    state: np.ndarray,
) -> None:
    """Merge every place of one pair into the new symbol."""
    while lists[pair, 0] >= 0:
        place = np.int64(lists[pair, 0])
        weight = counts[word_at[place]]
        second = place + lengths[symbols[place]]
        after = place + lengths[new]
        left, right = symbols[place - 1], symbols[after]
        _leave(place, weight, pair_at, chain, lists, pair_counts)
        if right != _EMPTY:
            _leave(second, weight, pair_at, chain, lists, pair_counts)
            joined = _pair_with(new, right, new, known, pairs, lists, pair_counts, state)
            _join(place, joined, weight, pair_at, chain, lists, pair_counts)
        if left != _EMPTY:
            before = place - lengths[left]
            _leave(before, weight, pair_at, chain, lists, pair_counts)
            joined = _pair_with(left, new, new, known, pairs, lists, pair_counts, state)
            _join(before, joined, weight, pair_at, chain, lists, pair_counts)
        symbols[place] = new
        symbols[after - 1] = new


@njit(**OPTIONS)
def merge_kernel(
    n_merges: int,
    counts: np.ndarray,
    symbols: np.ndarray,
    lengths: np.ndarray,
    word_at: np.ndarray,
    pair_at: np.ndarray,
    chain: np.ndarray,
    lists: np.ndarray,
    pair_counts: np.ndarray,
    pairs: np.ndarray,
    known: np.ndarray,
    heap: np.ndarray,
    heap_counts: np.ndarray,
    text: np.ndarray,
    where: np.ndarray,
    merges: np.ndarray,
    state: np.ndarray,
) -> None:
    """Up to n_merges merges more.

    state: pairs made, pairs in the heap, merges done, pairs ever considered for the heap.
    """
    target = state[2] + n_merges
    while True:
        for pair in range(state[3], state[0]):  # the pairs that the last merge made
            if pairs[pair, 0] >= 256 or pairs[pair, 1] >= 256:
                new = 255 + state[2]
                row = 0 if pairs[pair, 0] == new else 1
                known[row, pairs[pair, 1 - row]] = -1
            if pair_counts[pair] > 0:
                heap[state[1]], heap_counts[state[1]] = pair, pair_counts[pair]
                _sift_up(state[1], heap, heap_counts, pairs, text, where, lengths)
                state[1] += 1
        state[3] = state[0]
        while state[1] > 0 and heap_counts[0] != pair_counts[heap[0]]:
            count = pair_counts[heap[0]]
            if count > 0:
                heap_counts[0] = count
            else:
                state[1] -= 1
                heap[0], heap_counts[0] = heap[state[1]], heap_counts[state[1]]
            _sift_down(state[1], heap, heap_counts, pairs, text, where, lengths)
        if state[2] == target or state[1] == 0:
            return
        pair = heap[0]
        state[1] -= 1
        heap[0], heap_counts[0] = heap[state[1]], heap_counts[state[1]]
        _sift_down(state[1], heap, heap_counts, pairs, text, where, lengths)
        new = 256 + state[2]
        lengths[new] = lengths[pairs[pair, 0]] + lengths[pairs[pair, 1]]
        # Where text holds the symbol's bytes: at its first place, less the empty places before, plus 256.
        where[new] = 255 + lists[pair, 0] - word_at[lists[pair, 0]]
        merges[state[2], 0], merges[state[2], 1] = pairs[pair, 0], pairs[pair, 1]
        _apply(
            pair,
            new,
            counts,
            symbols,
            lengths,
            word_at,
            pair_at,
            chain,
            lists,
            pair_counts,
            pairs,
            known,
            state,
        )
        state[2] += 1


def train(
    words: WordCounts, n_merges: int, progress: Callable[[int], object] | None = None
) -> list[tuple[bytes, bytes]]:
    """Up to n_merges merges, in order, as pairs of byte strings; fewer when no pair is left.

    progress is called with the number of merges done, every few hundred merges.
    Raises ValueError if the distinct words take 2 GiB or more (positions are 32-bit).
    """
    n = int(words.starts[-1]) + len(words) + 1  # places
    if n >= 2**31:
        raise ValueError(
            f"the distinct words take {n:,} bytes; the fast trainer takes less than 2 GiB of them"
        )
    symbols, word_at, pair_at = (pages(n, np.int32) for _ in range(3))
    chain = pages((n, 2), np.int32)
    # Each place merges less often than it has bytes, and makes two pairs at most: room for all of them. What
    # isn't touched takes no memory.
    room = 65536 + 2 * n
    pairs, lists = (pages((room, 2), np.int32) for _ in range(2))
    pair_counts, heap_counts = (pages(room, np.int64) for _ in range(2))
    heap = pages(room, np.int32)
    # The bytes of every symbol: text[where[symbol] :][: lengths[symbol]].
    text = np.concatenate([np.arange(256, dtype=np.uint8), words.data])
    where, lengths = (np.empty(256 + n_merges, dtype=np.int32) for _ in range(2))
    where[:256], lengths[:256] = np.arange(256), 1
    known = np.full((2, 256 + n_merges), -1, dtype=np.int32)
    merges = np.empty((n_merges, 2), dtype=np.int32)
    state = np.zeros(4, dtype=np.int64)
    pair_of = np.full(65536, -1, dtype=np.int32)
    _lay_out(
        words.data, words.starts, words.counts, symbols, word_at, pair_at, chain, lists, pair_counts, pairs,
        pair_of, state,
    )  # fmt: skip
    while True:
        done = int(state[2])
        merge_kernel(
            min(_MERGES_AT_ONCE, n_merges - done), words.counts, symbols, lengths, word_at, pair_at, chain,
            lists, pair_counts, pairs, known, heap, heap_counts, text, where, merges, state,
        )  # fmt: skip
        if progress:
            progress(int(state[2]))
        if state[2] == n_merges or state[2] == done:
            break
    tokens = [bytes([b]) for b in range(256)]
    result = []
    for left, right in merges[: int(state[2])].tolist():
        result.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return result
