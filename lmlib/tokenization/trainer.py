"""Training byte-level BPE: count the pretokens once, then merge, touching only what a merge changes.

The naive trainer (`naive.train`) recounts every pair after every merge. This one learns the same merges with
four ideas: each distinct pretoken is kept once with its count; an index from pair to words finds the few
words that a merge changes; words are strings of one character a token, so that C code replaces a pair; and a
heap of the frequent pairs, whose outdated entries are corrected when they come up, finds the next pair
without looking at all of them.

Sennrich, Haddow and Birch (2016), section 3.2, for BPE on words; Radford et al. (2019), section 2.2, on
bytes.
"""

import gc
import heapq
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lmlib.tokenization import fast
from lmlib.tokenization.counting import Source, count_pretokens, sources_of
from lmlib.tokenization.patterns import pretokenizer
from lmlib.tokenization.tokenizer import Implementation, Tokenizer, check_specials

Merge = tuple[bytes, bytes]

_EDGE = chr(256)  # no byte; the tokens that merges make are the characters after it
_INVERTED = bytes(255 - byte for byte in range(256))


def train_bpe(
    corpus: Source | Iterable[Source],
    vocab_size: int,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    *,
    pattern: str = "gpt2",
    n_workers: int = 1,
    implementation: Implementation = "auto",
    progress: bool | None = None,
) -> Tokenizer:
    """Learns a byte-level BPE vocabulary from texts and files.

    corpus: a text (str), a file (pathlib.Path), or an iterable of either. Each is a document of its own.
    vocab_size: tokens in all: 256 bytes, the merges, and the special tokens, whose ids come last.
    special_tokens: they separate documents inside a text and are never part of a merge.
    pattern: pre-tokenization, a name of `PATTERNS` or a regular expression for `regex`.
    n_workers: processes that count (threads if the implementation is "numba").
    implementation: "python", "numba" (same result; patterns "gpt2" and "cl100k"), or "auto": Numba where it
        is installed and the corpus so large that loading it (or compiling, once) does not matter.
    progress: show progress bars for what takes over two seconds; by default unless the environment says CI.

    The most frequent pair is merged first; of equally frequent ones the lexicographically greatest pair of
    byte strings. If the corpus runs out of pairs the vocabulary stays smaller, with a warning. Raises
    ValueError for an empty corpus, a vocab_size below 256 plus special tokens, an empty or repeated special
    token, a file that is not UTF-8; OSError for a file that cannot be read.
    """
    specials = check_specials(special_tokens)
    least = 256 + len(specials)
    if not isinstance(vocab_size, int) or vocab_size < least:
        raise ValueError(
            f"vocab_size must be an integer of at least {least} (256 bytes + {len(specials)} special "
            f"tokens), got {vocab_size!r}"
        )
    if not isinstance(n_workers, int) or n_workers < 1:
        raise ValueError(f"n_workers must be an integer of at least 1, got {n_workers!r}")
    name = pretokenizer(pattern).name  # refuses a bad pattern before anything is read
    fast.check(implementation, name)
    sources: Iterable[Source] = sources_of(corpus)
    if not isinstance(corpus, Iterable) or isinstance(corpus, str | os.PathLike | Sequence):
        sources = list(sources)
    show = "CI" not in os.environ and "LMLIB_BOOK_BUILD" not in os.environ if progress is None else progress
    sizes = _sizes(sources)
    compiled = implementation == "numba" or (implementation == "auto" and fast.worthwhile(name, sum(sizes)))
    with _bar(show, sum(sizes) or None, "counting", "B") as bar:
        words: Any = (
            _count_fast(sources, name, specials, n_workers, bar.update)
            if compiled
            else _count(sources, pattern, specials, n_workers, bar.update)
        )
    if not words:
        raise ValueError(f"the corpus is empty: {corpus!r:.200} holds no text besides special tokens")
    n_merges = vocab_size - least
    with _bar(show, n_merges, "merges", "merge") as bar:
        learn = fast.train if compiled else learn_merges
        merges = learn(words, n_merges, lambda n: bar.update(n - bar.n))
    if len(merges) < n_merges:
        warnings.warn(
            f"the corpus has no pair left to merge after {len(merges)} merges: the vocabulary has "
            f"{least + len(merges)} tokens, not {vocab_size}",
            stacklevel=2,
        )
    return from_merges(merges, specials, pattern)


def from_merges(
    merges: Sequence[Merge], special_tokens: Sequence[str] = (), pattern: str = "gpt2"
) -> Tokenizer:
    """The tokenizer of these merges: ids 0..255 are the bytes, then the merges, then special tokens."""
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    specials = {special: len(tokens) + number for number, special in enumerate(special_tokens)}
    return Tokenizer(dict(enumerate(tokens)), merges, specials, pattern=pattern)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Training makes millions of tuples and no cycles: walking them again and again finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_garbage_collection()
def learn_merges(
    words: Mapping[bytes, int], n_merges: int, progress: Callable[[int], object] = lambda done: None
) -> list[Merge]:
    """The first n_merges merges of a corpus, given how often each of its words (pretokens) occurs.

    progress: is called with the number of merges learned so far.

    While it learns, a token is one character and a word a string of them, so that C code finds and replaces
    a pair; `_EDGE` at both ends gives every pair two neighbours. Raises ValueError if n_merges is larger than
    the number of characters that Python has for new tokens, 1,113,855.
    """
    if n_merges > sys.maxunicode - ord(_EDGE):
        raise ValueError(f"n_merges must be at most {sys.maxunicode - ord(_EDGE):,}, got {n_merges:,}")
    texts = [_EDGE + word.decode("latin-1") + _EDGE for word in words]
    times = list(words.values()).__getitem__
    # The words in which a pair occurs, or once did, one entry an occurrence: a merge finds nothing to do in
    # some, which is cheaper than keeping the lists exact.
    found_in: defaultdict[str, list[int]] = defaultdict(list)
    for word, text in enumerate(texts):
        for pair in map(add, text[1:-2], text[2:-1]):
            found_in[pair].append(word)
    counts = {pair: sum(map(times, occurrences)) for pair, occurrences in found_in.items()}
    frequent = _Frequent(counts)
    token = {chr(byte): bytes([byte]) for byte in range(256)}
    merges: list[Merge] = []
    while len(merges) < n_merges and (best := frequent.pop()):
        left, right = best[0], best[1]
        new = chr(ord(_EDGE) + 1 + len(merges))
        merges.append((token[left], token[right]))
        token[new] = token[left] + token[right]
        frequent.add_token(new, token[new])
        before, after = _replace(texts, found_in.pop(best), best, new)
        # First what follows: where two merged pairs touch, what precedes corrects it.
        changes = [(right + other, new + other, places) for other, places in after.items()]
        changes += [(other + left, other + new, places) for other, places in before.items()]
        for gone, made, places in changes:
            count = sum(map(times, places))
            counts[gone] -= count
            counts[made] = count
            found_in[made] = places
            frequent.push(made)
        del counts[best]
        progress(len(merges))
    return merges


def _replace(
    texts: list[str], words: list[int], pair: str, new: str
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Replaces the pair by the new token in these words.

    Returns what stood before and after the pair when, from left to right, its turn came: neighbour -> words,
    one entry an occurrence.
    """
    before: defaultdict[str, list[int]] = defaultdict(list)
    after: defaultdict[str, list[int]] = defaultdict(list)
    for word in dict.fromkeys(words):
        if pair in texts[word]:
            parts = texts[word].split(pair)
            texts[word] = new.join(parts)
            for head, tail in pairwise(parts):
                before[head[-1] if head else new].append(word)
                after[tail[0] if tail else pair[0]].append(word)
    before.pop(_EDGE, None)
    after.pop(_EDGE, None)
    return before, after


class _Frequent:
    """Gives the most frequent pair first; of equals the lexicographically greatest pair of byte strings.

    A heap of the pairs that occur at least `floor` times. Most pairs never do, and are never put in; when the
    heap is empty the floor is halved. The count of a pair only falls, so an outdated entry comes up too early
    and never too late: it is corrected then.
    """

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts  # the caller's, kept up to date there
        self._order = {chr(byte): _descending(bytes([byte])) for byte in range(256)}
        self._floor = max(counts.values(), default=0) + 1
        self._heap: list[tuple[int, str, str, str]] = []

    def add_token(self, character: str, token: bytes) -> None:
        self._order[character] = _descending(token)

    def push(self, pair: str) -> None:
        if self._counts[pair] >= self._floor:
            heapq.heappush(self._heap, self._entry(pair))

    def pop(self) -> str | None:
        """The next pair; None if no pair is left."""
        while self._heap or self._floor > 1:
            if not self._heap:
                self._floor //= 2
                self._heap = [self._entry(pair) for pair, n in self._counts.items() if n >= self._floor]
                heapq.heapify(self._heap)
                continue
            negative, _, _, pair = heapq.heappop(self._heap)
            if self._counts[pair] == -negative:
                return pair
            self.push(pair)
        return None

    def _entry(self, pair: str) -> tuple[int, str, str, str]:
        return -self._counts[pair], self._order[pair[0]], self._order[pair[1]], pair


def _descending(token: bytes) -> str:
    """A key that sorts byte strings the other way round, so that a min-heap gives the greatest first.

    The end mark is above every inverted byte: of "lo" and "low", the longer comes first.
    """
    return token.translate(_INVERTED).decode("latin-1") + "\u0100"


def _sizes(sources: Iterable[Source]) -> list[int]:
    """Characters of the texts and bytes of the files, if looking does not use up the sources."""
    if not isinstance(sources, list):
        return []
    return [len(source) if isinstance(source, str) else Path(source).stat().st_size for source in sources]


def _count(
    sources: Iterable[Source],
    pattern: str,
    specials: list[str],
    n_workers: int,
    advance: Callable[[int], object],
) -> dict[bytes, int]:
    counts = count_pretokens(sources, pattern, specials, n_workers=n_workers, advance=advance)
    return {word.encode(): n for word, n in counts.items()}


def _count_fast(
    sources: Iterable[Source],
    name: str,
    specials: list[str],
    n_workers: int,
    advance: Callable[[int], object],
) -> "fast.WordCounts":
    kind = fast.kind_of(name)
    assert kind is not None  # `fast.check` and `fast.worthwhile` let no other pattern pass
    files_as_paths = (source if isinstance(source, str) else Path(source) for source in sources)
    return fast.count_words(files_as_paths, kind, specials, n_workers=n_workers, advance=advance)


def _bar(show: bool, total: int | None, label: str, unit: str) -> Any:
    return tqdm(
        total=total, desc=label, unit=unit, unit_scale=unit == "B", delay=2, disable=not show, leave=False
    )
