"""Training byte-level BPE: count the pretokens once, then merge, touching only what a merge changes.

The naive trainer (`naive.train`) recounts every pair after every merge. This one learns the same merges with
three ideas: each distinct pretoken is kept once with its count; an index from pair to words finds the few
words that a merge changes; and a heap of pairs, whose outdated entries are corrected when they come up, finds
the next pair without looking at all of them.

Sennrich, Haddow and Birch (2016), section 3.2, for BPE on words; Radford et al. (2019), section 2.2, on
bytes.
"""

import gc
import heapq
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lmlib.tokenization import fast
from lmlib.tokenization.counting import Source, count_pretokens, sources_of
from lmlib.tokenization.merging import Pair
from lmlib.tokenization.patterns import pretokenizer
from lmlib.tokenization.tokenizer import Implementation, Tokenizer, check_specials

Merge = tuple[bytes, bytes]

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
    """
    sequences = [list(word) for word in words]
    frequency = list(words.values())
    tokens = [bytes([byte]) for byte in range(256)]
    order = [_descending(token) for token in tokens]
    counts: defaultdict[Pair, int] = defaultdict(int)
    # The words in which a pair occurs, or once did: a merge finds nothing to do there, which is cheaper than
    # keeping the lists exact.
    found_in: defaultdict[Pair, list[int]] = defaultdict(list)
    for word, ids in enumerate(sequences):
        for pair in pairwise(ids):
            counts[pair] += frequency[word]
            found_in[pair].append(word)
    heap = [(-count, order[a], order[b], (a, b)) for (a, b), count in counts.items()]
    heapq.heapify(heap)
    merges: list[Merge] = []
    while heap and len(merges) < n_merges:
        negative, first, second, pair = heapq.heappop(heap)
        count = counts[pair]
        if count != -negative:  # outdated: counts only fall once all words of a new pair are known
            if count:
                heapq.heappush(heap, (-count, first, second, pair))
            continue
        left, right = pair
        new = len(tokens)
        tokens.append(tokens[left] + tokens[right])
        order.append(_descending(tokens[new]))
        merges.append((tokens[left], tokens[right]))
        fresh: set[Pair] = set()
        for word in found_in.pop(pair):
            _merge_in_word(sequences[word], left, right, new, word, frequency[word], counts, found_in, fresh)
        del counts[pair]
        for made in fresh:
            if counts[made]:
                heapq.heappush(heap, (-counts[made], order[made[0]], order[made[1]], made))
        progress(len(merges))
    return merges


def _merge_in_word(
    ids: list[int],
    left: int,
    right: int,
    new: int,
    word: int,
    frequency: int,
    counts: defaultdict[Pair, int],
    found_in: defaultdict[Pair, list[int]],
    fresh: set[Pair],
) -> None:
    """Replaces left, right by new wherever they stand in the word; corrects the counts of the neighbours."""
    at = 0
    try:
        while True:
            at = ids.index(left, at)
            if ids[at + 1] == right:  # at the word's end: IndexError, nothing more to do
                ids[at : at + 2] = (new,)
                if at:
                    before = ids[at - 1]
                    counts[before, left] -= frequency
                    pair = before, new
                    counts[pair] += frequency
                    found_in[pair].append(word)
                    fresh.add(pair)
                if at + 1 < len(ids):
                    after = ids[at + 1]
                    counts[right, after] -= frequency
                    pair = new, after
                    counts[pair] += frequency
                    found_in[pair].append(word)
                    fresh.add(pair)
            at += 1
    except (ValueError, IndexError):
        return


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
