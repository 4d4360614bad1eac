"""The encoder: scanner, a table of the words met so far with their ids, and merges for the others.

Notable:
- A word's ids are found once; the table remembers them. It is bounded, and emptied when full.
- Short words: the rank of every adjacent pair in an array, its minimum again and again. Long ones: a heap
  over a linked list, n log n. Equal ranks: the leftmost pair first.
- A pair's rank and the id it becomes are one integer, rank * 2**32 + id, so that comparing and looking up are
  one step.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numba import njit

from .blocks import SpecialTokens
from .classes import code_point_classes
from .memory import INLINE, OPTIONS
from .pages import pages
from .scan import pretoken_end
from .table import VALUE, WordTable, add, find, has_room

_DONE, _FULL, _LONG, _INVALID = 0, 1, 2, 3
_SHORT = 64  # bytes: longer words go through the heap and aren't remembered
BLOCK = 1 << 22  # bytes gathered from a stream before they are encoded
_MOST_WORDS = 1 << 20  # remembered at a time, in about 130 MB
_NEVER = np.int64(2**63 - 1)  # the rank of a pair that doesn't merge
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_32 = np.uint64(32)
_ID = np.int64(0xFFFFFFFF)
_GONE = np.uint32(0xFFFFFFFF)


@njit(**INLINE)
def _pair_slot(left: int, right: int, pairs: np.ndarray) -> np.int64:
    """Where the pair is in the hash table, or the empty slot where it belongs.

    pairs: (key, rank * 2**32 + id) per slot.
    """
    mask = pairs.shape[0] - 1
    key = np.int64(left) << 32 | np.int64(right)
    h = np.uint64(key) * _MULTIPLIER
    k = np.int64((h ^ (h >> _32)) & np.uint64(mask))
    while pairs[k, 0] != key and pairs[k, 0] != -1:
        k = (k + 1) & mask
    return k


@njit(**INLINE)
def _rank(left: int, right: int, pairs: np.ndarray) -> int:
    return pairs[_pair_slot(left, right, pairs), 1]


@njit(**OPTIONS)
def _fill_pairs(merges: np.ndarray, pairs: np.ndarray) -> None:
    """merges: left id, right id, id that they become, in the order learned. Empty slots: key -1, _NEVER."""
    for rank in range(merges.shape[0]):
        k = _pair_slot(merges[rank, 0], merges[rank, 1], pairs)
        if pairs[k, 0] == -1:
            pairs[k, 0] = np.int64(merges[rank, 0]) << 32 | np.int64(merges[rank, 1])
            pairs[k, 1] = np.int64(rank) << 32 | np.int64(merges[rank, 2])


@njit(**OPTIONS)
def _merge_short(ids: np.ndarray, first: int, n: int, ranks: np.ndarray, pairs: np.ndarray) -> int:
    """Merge ids[first : first + n] in place; how many are left."""
    for i in range(n - 1):
        ranks[i] = _rank(ids[first + i], ids[first + i + 1], pairs)
    while n > 1:
        at, best = 0, ranks[0]
        for i in range(1, n - 1):
            if ranks[i] < best:
                at, best = i, ranks[i]
        if best == _NEVER:
            break
        n -= 1
        ids[first + at] = best & _ID
        for i in range(at + 1, n):
            ids[first + i] = ids[first + i + 1]
        for i in range(at, n - 1):
            ranks[i] = ranks[i + 1]
        if at < n - 1:
            ranks[at] = _rank(ids[first + at], ids[first + at + 1], pairs)
        if at > 0:
            ranks[at - 1] = _rank(ids[first + at - 1], ids[first + at], pairs)
    return n


@njit(**INLINE)
def _push(heap: np.ndarray, size: int, entry: int) -> int:
    i = size
    while i > 0 and entry < heap[(i - 1) >> 1]:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = entry
    return size + 1


@njit(**INLINE)
def _pop(heap: np.ndarray, size: int) -> int:
    """Take the smallest entry out; the new size."""
    size -= 1
    entry, i = heap[size], 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if entry <= heap[child]:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = entry
    return size


@njit(**OPTIONS)
def _merge_long(
    ids: np.ndarray, first: int, n: int, links: np.ndarray, heap: np.ndarray, pairs: np.ndarray
) -> int:
    """The same for long words. links: before and after, (n, 2); heap: rank and place, 3 n entries."""
    size = 0
    for i in range(n):
        links[i, 0], links[i, 1] = i - 1, i + 1
        if i + 1 < n:
            rank = _rank(ids[first + i], ids[first + i + 1], pairs)
            if rank != _NEVER:
                size = _push(heap, size, (rank >> 32) << 32 | i)
    while size > 0:
        entry = heap[0]
        size = _pop(heap, size)
        at = entry & _ID
        right = links[at, 1]
        if ids[first + at] == _GONE or right == n:
            continue
        rank = _rank(ids[first + at], ids[first + right], pairs)
        if rank == _NEVER or rank >> 32 != entry >> 32:  # one of the two has merged with another since
            continue
        ids[first + at], ids[first + right] = rank & _ID, _GONE
        after, before = links[right, 1], links[at, 0]
        links[at, 1] = after
        if after < n:
            links[after, 0] = at
            rank = _rank(ids[first + at], ids[first + after], pairs)
            if rank != _NEVER:
                size = _push(heap, size, (rank >> 32) << 32 | at)
        if before >= 0:
            rank = _rank(ids[first + before], ids[first + at], pairs)
            if rank != _NEVER:
                size = _push(heap, size, (rank >> 32) << 32 | before)
    left = 0
    for i in range(n):
        if ids[first + i] != _GONE:
            ids[first + left] = ids[first + i]
            left += 1
    return left


@njit(**OPTIONS)
def encode_kernel(
    text: np.ndarray,
    segments: np.ndarray,
    accept: int,
    classes: np.ndarray,
    kind: int,
    byte_ids: np.ndarray,
    pairs: np.ndarray,
    slots: np.ndarray,
    arena: np.ndarray,
    starts: np.ndarray,
    known: np.ndarray,
    ranks: np.ndarray,
    links: np.ndarray,
    heap: np.ndarray,
    out: np.ndarray,
    state: np.ndarray,
) -> int:
    """Ids of text[a:b], and the id c behind it if c >= 0, for every (a, b, c) in segments.

    In the last segment, a pretoken must end by `accept`; where nothing more may follow, that is its end.
    known: the ids of the words in the table, those of word k at VALUE // 2**8, VALUE % 2**8 of them.
    state: segment and position to go on from, words in the table, ids in `known`, ids in `out`, length of the
    word that stopped us.
    """
    while state[0] < segments.shape[0]:
        end = segments[state[0], 1]
        sure = min(end, accept) if state[0] == segments.shape[0] - 1 else end
        i = max(state[1], segments[state[0], 0])
        n_out = state[4]
        while i < end:
            stop = pretoken_end(text, i, end, sure, classes, kind)
            if stop < 0:
                state[1], state[4] = -stop - 1, n_out
                return _INVALID
            if stop > sure:
                break
            length = stop - i
            slot = find(text, i, length, slots, arena, starts) if length <= _SHORT else np.int64(0)
            if length <= _SHORT and slot >= 0:
                value = np.int64(slots[slot, VALUE])
                offset = value >> 8
                for k in range(value & 255):
                    out[n_out] = known[offset + k]
                    n_out += 1
                i = stop
                continue
            room = 3 * length <= heap.size
            if length <= _SHORT:
                room = has_room(state[2], length, slots, arena, starts) and state[3] + length <= known.size
            if not room:
                state[1], state[4], state[5] = i, n_out, length
                return _FULL if length <= _SHORT else _LONG
            for k in range(length):
                out[n_out + k] = byte_ids[text[i + k]]
            if length <= _SHORT:
                n = _merge_short(out, n_out, length, ranks, pairs)
                add(text, i, length, -slot - 1, state[3] << 8 | n, state[2], slots, arena, starts)
                for k in range(n):
                    known[state[3] + k] = out[n_out + k]
                state[2] += 1
                state[3] += n
            else:
                n = _merge_long(out, n_out, length, links, heap, pairs)
            n_out += n
            i = stop
        if i == end and segments[state[0], 2] >= 0:
            out[n_out] = segments[state[0], 2]
            n_out += 1
        state[1], state[4] = i, n_out
        if i < end:
            return _DONE
        state[0] += 1
    return _DONE


class Encoder:
    """Encodes UTF-8 text with the merges of one tokenizer. Safe to share between threads, which take turns.

    byte_ids: the ids of the 256 bytes. merges: (left id, right id, id that they become), as learned.
    kind: `scan.GPT2` or `scan.CL100K`.
    """

    def __init__(self, byte_ids: Sequence[int], merges: Sequence[tuple[int, int, int]], kind: int) -> None:
        self._kind = kind
        self._byte_ids = np.asarray(byte_ids, dtype=np.uint32)
        table = np.asarray(merges, dtype=np.int64).reshape(-1, 3)
        self._pairs = np.full((1 << (2 * len(table) + 1).bit_length(), 2), -1, dtype=np.int64)
        self._pairs[:, 1] = _NEVER
        _fill_pairs(table, self._pairs)
        self._ranks = np.empty(_SHORT, dtype=np.int64)
        self._lock = threading.Lock()
        self._table, self._known, self._n_known = WordTable(1 << 16), pages(1 << 17, np.uint32), 0

    def encode(self, text: bytes, special_tokens: Mapping[bytes, int] | None = None) -> np.ndarray:
        """Token ids: uint32 (n_tokens,). Of special tokens that begin at one place the longest counts.

        Raises ValueError with the offset of the first byte that is not UTF-8.
        """
        return self._encode_block(text, SpecialTokens(special_tokens or {}), final=True, offset=0)[0]

    def encode_stream(
        self, chunks: Iterable[bytes], special_tokens: Mapping[bytes, int] | None = None, block: int = BLOCK
    ) -> Iterator[np.ndarray]:
        """The ids of a text that arrives in chunks, in arrays; where the chunks end changes nothing.

        block: bytes gathered before encoding. What can't be decided yet waits for the next block.
        """
        specials = SpecialTokens(special_tokens or {})
        waiting, n_waiting, offset = [], 0, 0
        for chunk in chunks:
            waiting.append(chunk)
            n_waiting += len(chunk)
            if n_waiting < block:
                continue
            text = b"".join(waiting)
            ids, done = self._encode_block(text, specials, final=False, offset=offset)
            yield ids
            offset += done
            waiting, n_waiting = [text[done:]], len(text) - done
            block = max(block, 2 * n_waiting)  # a pretoken of any length is looked at a few times only
        yield self._encode_block(b"".join(waiting), specials, final=True, offset=offset)[0]

    def _encode_block(
        self, text: bytes, specials: SpecialTokens, final: bool, offset: int
    ) -> tuple[np.ndarray, int]:
        """The ids of a block, and how many of its bytes they stand for. offset: where it is in the stream."""
        data = np.frombuffer(text, dtype=np.uint8)
        segments, accept = specials.segments(text, final)
        # Room for the worst case, an id per byte (special tokens are at least a byte long): what isn't used
        # is never touched.
        out = pages(data.size, np.uint32)
        links, heap = np.empty((0, 2), dtype=np.int32), np.empty(0, dtype=np.int64)
        with self._lock:
            table = self._table
            state = np.array([0, 0, table.n_words, self._n_known, 0, 0], dtype=np.int64)
            while True:
                status = encode_kernel(
                    data, segments, accept, code_point_classes(), self._kind, self._byte_ids, self._pairs,
                    table.slots, table.arena, table.starts, self._known, self._ranks, links, heap, out, state,
                )  # fmt: skip
                table.n_words, self._n_known = int(state[2]), int(state[3])
                if status == _FULL:
                    self._make_room(int(state[5]))
                    state[2], state[3] = table.n_words, self._n_known
                elif status == _LONG:
                    links, heap = pages((int(state[5]), 2), np.int32), pages(3 * int(state[5]), np.int64)
                else:
                    break
        at = int(state[1])
        if status == _INVALID:
            raise ValueError(f"the text is not valid UTF-8: byte 0x{data[at]:02x} at offset {offset + at}")
        return out[: int(state[4])].copy(), at

    def _make_room(self, length: int) -> None:
        """Grow the table of words; empty it when it has reached its bound."""
        table = self._table
        if table.n_words >= _MOST_WORDS:
            table.clear()
            self._n_known = 0
            return
        if self._n_known + length > self._known.size:
            known = pages(2 * self._known.size, np.uint32)
            known[: self._n_known] = self._known[: self._n_known]
            self._known = known
        table.grow(length)
