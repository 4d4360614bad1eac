"""The word table: an open-addressing hash table from byte strings to a 64-bit value, for the kernels.

A slot is four 64-bit integers, half a cache line: the word's first eight bytes, the next eight, its length
and number (length * 2**32 + number + 1, zero in an empty slot), and the value. A word of up to 16 bytes, as
nearly all are, is compared inside its slot; longer ones go on in the arena, where all words lie one after
another: word k is arena[starts[k] : starts[k + 1]].
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .memory import INLINE, OPTIONS, load
from .pages import pages

FIRST, SECOND, IDENTITY, VALUE = 0, 1, 2, 3

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio (Knuth, vol. 3, section 6.4)
_MULTIPLIER_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_29 = np.uint64(29)


@njit(**INLINE)
def _hash(text: np.ndarray, start: int, length: int, first: int, second: int) -> np.uint64:
    h = (first ^ np.uint64(length)) * _MULTIPLIER
    h = ((h ^ (h >> _32)) + second) * _MULTIPLIER_2
    for offset in range(16, length, 8):
        h = ((h ^ (h >> _29)) + load(text, start + offset, min(8, length - offset))) * _MULTIPLIER
    return h ^ (h >> _29)


@njit(**INLINE)
def _same(text: np.ndarray, start: int, arena: np.ndarray, other: int, length: int) -> bool:
    for offset in range(16, length, 8):
        n = min(8, length - offset)
        if load(text, start + offset, n) != load(arena, other + offset, n):
            return False
    return True


@njit(**INLINE)
def find(
    text: np.ndarray, start: int, length: int, slots: np.ndarray, arena: np.ndarray, starts: np.ndarray
) -> int:
    """The slot of text[start : start + length], or -k - 1 where k is the empty slot where it belongs."""
    first = load(text, start, min(8, length))
    second = load(text, start + 8, min(8, length - 8)) if length > 8 else np.uint64(0)
    mask = slots.shape[0] - 1
    k = np.int64(_hash(text, start, length, first, second)) & mask
    while True:
        identity = slots[k, IDENTITY]
        if identity == 0:
            return -k - 1
        if slots[k, FIRST] == first and slots[k, SECOND] == second and np.int64(identity >> _32) == length:
            if length <= 16:
                return k
            number = np.int64(identity & _LOW) - 1
            if _same(text, start, arena, starts[number], length):
                return k
        k = (k + 1) & mask


@njit(**INLINE)
def has_room(n_words: int, length: int, slots: np.ndarray, arena: np.ndarray, starts: np.ndarray) -> bool:
    """Whether one more word of this length fits: at most half the slots are ever taken."""
    return (
        2 * (n_words + 1) <= slots.shape[0]
        and n_words + 1 < starts.size
        and starts[n_words] + length <= arena.size
    )


@njit(**INLINE)
def add(
    text: np.ndarray,
    start: int,
    length: int,
    k: int,
    value: int,
    n_words: int,
    slots: np.ndarray,
    arena: np.ndarray,
    starts: np.ndarray,
) -> None:
    """Put a word that `find` did not find into the empty slot k, as word number n_words."""
    slots[k, FIRST] = load(text, start, min(8, length))
    slots[k, SECOND] = load(text, start + 8, min(8, length - 8)) if length > 8 else np.uint64(0)
    slots[k, IDENTITY] = np.uint64(length) << _32 | np.uint64(n_words + 1)
    slots[k, VALUE] = np.uint64(value)
    offset = starts[n_words]
    for i in range(length):
        arena[offset + i] = text[start + i]
    starts[n_words + 1] = offset + length


@njit(**OPTIONS)
def rehash(old: np.ndarray, slots: np.ndarray, arena: np.ndarray, starts: np.ndarray) -> None:
    """Move every word of `old` into the larger, empty `slots`."""
    mask = slots.shape[0] - 1
    for i in range(old.shape[0]):
        identity = old[i, IDENTITY]
        if identity == 0:
            continue
        number = np.int64(identity & _LOW) - 1
        length = np.int64(identity >> _32)
        k = np.int64(_hash(arena, starts[number], length, old[i, FIRST], old[i, SECOND])) & mask
        while slots[k, IDENTITY] != 0:
            k = (k + 1) & mask
        for j in range(4):
            slots[k, j] = old[i, j]


class WordTable:
    """The arrays of one table; the kernels fill them, `grow` makes room when a kernel asks for it."""

    def __init__(self, n_slots: int) -> None:
        self.slots = pages((n_slots, 4), np.uint64)
        self.arena = pages(n_slots * 4, np.uint8)
        self.starts = pages(n_slots // 2 + 2, np.int64)
        self.n_words = 0

    def grow(self, length: int) -> None:
        """Make room for at least one more word of `length` bytes."""
        used = int(self.starts[self.n_words])
        if used + length > self.arena.size:
            arena = pages(2 * self.arena.size + length, np.uint8)
            arena[:used] = self.arena[:used]
            self.arena = arena
        if 2 * (self.n_words + 1) > self.slots.shape[0]:
            slots = pages((2 * self.slots.shape[0], 4), np.uint64)
            rehash(self.slots, slots, self.arena, self.starts)
            self.slots = slots
            starts = pages(slots.shape[0] // 2 + 2, np.int64)
            starts[: self.n_words + 1] = self.starts[: self.n_words + 1]
            self.starts = starts

    def clear(self) -> None:
        """Forget all words, keep the memory."""
        self.slots[:] = 0
        self.n_words = 0
