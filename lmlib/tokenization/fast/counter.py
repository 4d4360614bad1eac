"""Counting the words (pretokens) of texts, and of files larger than memory: blocks, scanner, table, threads.

Notable:
- A file is read in blocks. What the scanner can't decide yet at a block's end is carried over to the next
  one, so that block borders never change a count.
- With several workers, threads count parts of the files (the kernel holds no lock), cut between a letter or
  digit and the white space after it: a pretoken border in both patterns, whatever stands around it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import regex
from numba import njit

from lmlib.tokenization.stream import utf8

from .blocks import SpecialTokens
from .classes import code_point_classes
from .memory import OPTIONS
from .pages import pages
from .scan import pretoken_end
from .table import IDENTITY, VALUE, WordTable, add, find, has_room

BLOCK = 1 << 22  # bytes read at a time
_WINDOW = 1 << 16  # bytes searched for a place to cut the file
_SMALLEST_PART = 1 << 22  # bytes of a file that a thread takes at a time
_DONE, _FULL, _INVALID = 0, 1, 2
_CUT = regex.compile(r"[\p{L}\p{N}](?=\s)")


Advance = Callable[[int], object]


class _Range(NamedTuple):
    """The bytes start..end of a file."""

    path: Path
    start: int
    end: int


@dataclass(frozen=True)
class WordCounts:
    """Distinct words and how often each occurs, without a Python object per word.

    data: uint8 (n_bytes,), all words one after another; starts: int64 (n_words + 1,), word k is
    data[starts[k] : starts[k + 1]]; counts: int64 (n_words,).
    """

    data: np.ndarray
    starts: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, counts: dict[bytes, int]) -> WordCounts:
        """The same as a dictionary, word -> count."""
        lengths = np.fromiter(map(len, counts), dtype=np.int64, count=len(counts))
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
        data = np.frombuffer(bytearray(b"".join(counts)), dtype=np.uint8)
        return cls(data, starts, np.fromiter(counts.values(), dtype=np.int64, count=len(counts)))

    def items(self) -> Iterator[tuple[bytes, int]]:
        """(word, count), in order of first appearance."""
        data, starts = self.data.tobytes(), self.starts.tolist()
        for k, count in enumerate(self.counts.tolist()):
            yield data[starts[k] : starts[k + 1]], count

    def __len__(self) -> int:
        return int(self.counts.size)


@njit(**OPTIONS)
def count_kernel(
    text: np.ndarray,
    segments: np.ndarray,
    accept: int,
    classes: np.ndarray,
    kind: int,
    slots: np.ndarray,
    arena: np.ndarray,
    starts: np.ndarray,
    state: np.ndarray,
) -> int:
    """Count the pretokens of text[a:b] for every (a, b, _) in segments; a pretoken must end by `accept`.

    Where nothing more may follow the last segment, `accept` is its end. state: the segment and the position
    to go on from, the number of words, and the length of the word that there was no room for.
    """
    while state[0] < segments.shape[0]:
        end = segments[state[0], 1]
        sure = min(end, accept) if state[0] == segments.shape[0] - 1 else end
        i = max(state[1], segments[state[0], 0])
        while i < end:
            stop = pretoken_end(text, i, end, sure, classes, kind)
            if stop < 0:
                state[1] = -stop - 1
                return _INVALID
            if stop > sure:
                break
            k = find(text, i, stop - i, slots, arena, starts)
            if k >= 0:
                slots[k, VALUE] += np.uint64(1)
            else:
                if not has_room(state[2], stop - i, slots, arena, starts):
                    state[1] = i
                    state[3] = stop - i
                    return _FULL
                add(text, i, stop - i, -k - 1, 1, state[2], slots, arena, starts)
                state[2] += 1
            i = stop
        state[1] = i
        if i < end:
            return _DONE
        state[0] += 1
    return _DONE


@njit(**OPTIONS)
def _add_all(
    arena: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    slots: np.ndarray,
    into: np.ndarray,
    into_starts: np.ndarray,
    state: np.ndarray,
) -> int:
    """Add the words of one table to another one. state: next word, -, the other's number of words."""
    for word in range(state[0], counts.size):
        start, length = starts[word], starts[word + 1] - starts[word]
        k = find(arena, start, length, slots, into, into_starts)
        if k >= 0:
            slots[k, VALUE] += np.uint64(counts[word])
        else:
            if not has_room(state[2], length, slots, into, into_starts):
                state[0], state[3] = word, length
                return _FULL
            add(arena, start, length, -k - 1, counts[word], state[2], slots, into, into_starts)
            state[2] += 1
    return _DONE


class _Counter:
    """Word counts of a stream of blocks."""

    def __init__(self, kind: int, special_tokens: Sequence[str]) -> None:
        self.kind = kind
        self.name = "the text"  # what errors call the stream
        self.table = WordTable(1 << 16)
        self.specials = SpecialTokens({special.encode(): 0 for special in special_tokens})

    def count(self, block: np.ndarray, final: bool, offset: int) -> int:
        """Count block, which starts at byte `offset` of the stream; return how many bytes are done with.

        The rest must come again at the start of the next block. If `final`, nothing is left over.
        """
        segments, accept = self.specials.segments(block, final)
        state = np.array([0, 0, self.table.n_words, 0], dtype=np.int64)
        table, classes = self.table, code_point_classes()
        block.flags.writeable = False
        while True:
            status = count_kernel(
                block, segments, accept, classes, self.kind, table.slots, table.arena, table.starts, state
            )
            table.n_words = int(state[2])
            if status != _FULL:
                break
            table.grow(int(state[3]))
        if status == _INVALID:
            raise _not_utf8(block, int(state[1]), self.name, offset)
        return int(state[1])

    def count_text(self, text: str) -> None:
        """Count a whole text; lone surrogates count as U+FFFD."""
        self.count(np.frombuffer(utf8(text), dtype=np.uint8), final=True, offset=0)

    def absorb(self, other: WordCounts) -> None:
        """Add another counter's words."""
        state = np.array([0, 0, self.table.n_words, 0], dtype=np.int64)
        table = self.table
        while _add_all(other.data, other.starts, other.counts, table.slots, table.arena, table.starts, state):
            table.n_words = int(state[2])
            table.grow(int(state[3]))
        table.n_words = int(state[2])

    def result(self) -> WordCounts:
        """What was counted; the counter is empty afterwards."""
        table, n = self.table, self.table.n_words
        taken = table.slots[:, IDENTITY] != 0
        counts = np.empty(n, dtype=np.int64)
        numbers = (table.slots[taken, IDENTITY] & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1
        counts[numbers] = table.slots[taken, VALUE].astype(np.int64)
        starts = table.starts[: n + 1].copy()
        words = WordCounts(table.arena[: starts[-1]].copy(), starts, counts)
        self.table = WordTable(2)
        return words


def _not_utf8(block: np.ndarray, at: int, name: str, offset: int) -> ValueError:
    return ValueError(f"{name} is not valid UTF-8: byte 0x{block[at]:02x} at offset {offset + at}")


def _count_range(counter: _Counter, part: _Range, advance: Advance, block: int) -> None:
    """Count the bytes start..end of a file."""
    counter.name = str(part.path)
    buffer = pages(block, np.uint8)
    kept, position = 0, part.start  # bytes carried over; offset of buffer[0] in the file
    with part.path.open("rb", buffering=0) as file:
        file.seek(part.start)
        while True:
            wanted = min(buffer.size - kept, part.end - position - kept)
            got = file.readinto(memoryview(buffer.data)[kept : kept + wanted]) if wanted else 0
            filled = kept + got
            final = got == 0 or position + filled == part.end
            done = counter.count(buffer[:filled], final, position)
            advance(got)
            if final:
                return
            position += done
            kept = filled - done
            longer = buffer
            if 2 * kept > buffer.size:  # one word fills half the buffer
                longer = pages(2 * buffer.size, np.uint8)
            longer[:kept] = buffer[done:filled]
            buffer = longer


def _ranges(path: Path, n_parts: int, specials: Sequence[str]) -> list[_Range]:
    """About equal parts of a file, cut where it can't change a word; fewer where there is no such place."""
    size = path.stat().st_size
    encoded = [special.encode() for special in specials]
    longest = max(map(len, encoded), default=0)
    cuts = [0]
    with path.open("rb") as file:
        for part in range(1, n_parts):
            target = max(size * part // n_parts, cuts[-1])
            file.seek(target)
            around = file.read(_WINDOW)
            first = next((i for i, b in enumerate(around) if b & 0xC0 != 0x80), 0)  # a character's first byte
            text = around[first:].decode("utf-8", "replace")
            for found in islice(_CUT.finditer(text, longest), 100):
                cut = first + len(text[: found.end()].encode())
                # No special token may lie across the cut. (Invalid bytes shift it; they are reported later.)
                if all(around.find(s, max(0, cut - len(s) + 1), cut + len(s) - 1) < 0 for s in encoded):
                    cuts.append(target + cut)
                    break
    return [_Range(path, start, end) for start, end in pairwise([*cuts, size])]


def _parts(sources: Iterable[str | Path], specials: Sequence[str], n_workers: int) -> Iterator[str | _Range]:
    for source in sources:
        if isinstance(source, str):
            yield source
        elif n_workers == 1:
            yield _Range(source, 0, source.stat().st_size)
        else:
            n_parts = min(4 * n_workers, source.stat().st_size // _SMALLEST_PART)
            yield from _ranges(source, max(1, n_parts), specials)


def count_words(
    sources: Iterable[str | Path],
    kind: int,
    special_tokens: Sequence[str] = (),
    *,
    n_workers: int = 1,
    advance: Advance = lambda n: None,
    block: int = BLOCK,
) -> WordCounts:
    """Distinct pretokens of texts (str) and files (Path), and their counts. Special tokens aren't counted.

    kind: `scan.GPT2` or `scan.CL100K`. n_workers: threads. advance: is told of the characters (texts) or
    bytes (files) counted since the last call. block: bytes read at a time, per worker.
    Raises ValueError naming file and offset if a file is not UTF-8, OSError if it can't be read.
    """
    # Each counter is with one thread at a time; there are as many as threads.
    counters = [_Counter(kind, special_tokens) for _ in range(n_workers)]
    free: SimpleQueue[_Counter] = SimpleQueue()
    for counter in counters:
        free.put(counter)

    def count(part: str | _Range, advance: Advance) -> int:
        counter = free.get()
        try:
            if isinstance(part, str):
                counter.count_text(part)
                advance(len(part))
                return len(part)
            _count_range(counter, part, advance, block)
            return part.end - part.start
        finally:
            free.put(counter)

    parts = _parts(sources, special_tokens, n_workers)
    if n_workers == 1:
        for part in parts:
            count(part, advance)
        return counters[0].result()
    with ThreadPoolExecutor(n_workers) as pool:
        running: deque[Future[int]] = deque()
        try:
            for part in parts:
                if len(running) >= 4 * n_workers:
                    advance(running.popleft().result())
                running.append(pool.submit(count, part, lambda n: None))
            while running:
                advance(running.popleft().result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    first, *others = sorted(counters, key=lambda counter: -counter.table.n_words)
    for other in others:
        first.absorb(other.result())
    return first.result()
