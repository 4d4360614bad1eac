"""Counting the pretokens of a corpus: in one process or several, in memory that its size does not move.

A corpus is texts, files, or both. Every text and every file is a document of its own, and special tokens
separate documents inside them, so no token is ever learned across those borders. Large files are handed to
the workers as byte ranges that begin at a special token (or at a safe cut where none is near), and each
worker reads its range itself.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import chain, pairwise
from pathlib import Path

from lmlib.tokenization.patterns import pretokenizer
from lmlib.tokenization.processes import worker_pool
from lmlib.tokenization.stream import read_text, segments

Source = str | os.PathLike[str]  # a text is a str, a file is a Path
Part = list[str] | tuple[Path, int, int]  # texts, or a range of a file's bytes

_MOST_CHUNKS = 1 << 20  # distinct chunks held before they are broken into pretokens
_TEXT_BLOCK = 1 << 20  # characters looked at together
_LARGEST_PART = 1 << 26  # bytes of a file, or characters of text, that one task counts
_SMALLEST_PART = 1 << 20
_WINDOW = 1 << 16  # bytes read at a time when looking for a place to divide a file

_ASCII_CUT = re.compile(rb"(?<=[A-Za-z0-9]) ")  # a safe cut in every pattern of PATTERNS


def sources_of(corpus: Source | Iterable[Source]) -> Iterable[Source]:
    """The corpus as texts (str) and files (Path). Raises ValueError for a file that is named by a str."""
    if isinstance(corpus, str | os.PathLike):
        corpus = [corpus]
    return map(_checked, corpus)


def _checked(source: Source) -> Source:
    if isinstance(source, os.PathLike):
        return Path(source)
    if not isinstance(source, str):
        raise TypeError(
            f"a corpus consists of texts (str) and files (pathlib.Path), got {type(source).__name__}"
        )
    if len(source) < 1024 and "\n" not in source and "\0" not in source and os.path.isfile(source):
        raise ValueError(f"{source!r} is the name of a file; a str is a text, so pass Path({source!r})")
    return source


def count_pretokens(
    corpus: Source | Iterable[Source],
    pattern: str,
    special_tokens: Sequence[str] = (),
    *,
    n_workers: int = 1,
    advance: Callable[[int], object] = lambda n: None,
) -> Counter[str]:
    """How often each pretoken occurs; special tokens are left out.

    advance: is told of the bytes (files) or characters (texts) that have been counted since the last call.
    Raises OSError for a file that cannot be read, ValueError with file and offset for one that is not UTF-8.
    """
    specials = tuple(special_tokens)
    sources = sources_of(corpus)
    if n_workers == 1:
        counts: Counter[str] = Counter()
        for part in _parts(sources, pattern, specials, _LARGEST_PART):
            count_part(part, pattern, specials, counts, advance)
        return counts
    return _count_in_processes(sources, pattern, specials, n_workers, advance)


def count_part(
    part: Part,
    pattern: str,
    special_tokens: Sequence[str],
    counts: Counter[str] | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> Counter[str]:
    """Adds the pretokens of one part of a corpus to `counts` (or to a new one) and returns it.

    Where there are no quick pretokens, chunks are counted first and broken into pretokens afterwards, each
    distinct one only once: `patterns` says why that changes nothing.
    """
    counts = Counter() if counts is None else counts
    cut = pretokenizer(pattern)
    chunks: Counter[str] = Counter()
    for stream in [[text] for text in part] if isinstance(part, list) else [read_text(*part)]:
        for text, is_special in segments(stream, cut, special_tokens, _TEXT_BLOCK):
            for block in () if is_special else cut.blocks(text):
                pretokens = cut.quick_pretokens(block)
                if pretokens is None:
                    chunks.update(cut.chunks(block))
                else:
                    counts.update(pretokens)
            if len(chunks) > _MOST_CHUNKS:
                _break_up(chunks, counts, cut.pretokens)
            advance(len(text) if text.isascii() or isinstance(part, list) else len(text.encode()))
    _break_up(chunks, counts, cut.pretokens)
    return counts


def _break_up(chunks: Counter[str], counts: Counter[str], pretokens: Callable[[str], list[str]]) -> None:
    for chunk, n in chunks.items():
        for pretoken in pretokens(chunk):
            counts[pretoken] += n
    chunks.clear()


def _parts(
    sources: Iterable[Source], pattern: str, specials: tuple[str, ...], largest: int, n_workers: int = 1
) -> Iterator[Part]:
    """Texts gathered, and files divided, into parts of a size worth a task."""
    texts: list[str] = []
    length = 0
    for source in sources:
        if isinstance(source, str):
            texts.append(source)
            length += len(source)
            if length >= _SMALLEST_PART:
                yield texts
                texts, length = [], 0
            continue
        size = Path(source).stat().st_size
        wanted = size if n_workers == 1 else min(max(size // (4 * n_workers), _SMALLEST_PART), largest)
        borders = _borders(Path(source), size, max(wanted, 1), specials, pretokenizer(pattern).can_cut)
        for start, end in pairwise(borders):
            yield Path(source), start, end
    if texts:
        yield texts


def _borders(path: Path, size: int, wanted: int, specials: Sequence[str], can_cut: bool) -> list[int]:
    """Byte offsets that divide a file about every `wanted` bytes, at document borders where there are any."""
    encoded = [special.encode() for special in specials]
    margin = max(map(len, encoded), default=1)
    borders = [0]
    with path.open("rb") as file:
        while borders[-1] + wanted < size:
            offset = max(borders[-1] + wanted - margin, 0)
            file.seek(offset)
            border = _border(file.read(_WINDOW), margin, encoded, can_cut)
            if border is None:
                break
            borders.append(offset + border)
    return [*borders, size] if size else [0]


def _border(window: bytes, start: int, specials: Sequence[bytes], can_cut: bool) -> int | None:
    """The first place from `start` on where a special token begins; failing that, the first safe cut.

    A place inside a special token (of which one can be part of another) is none.
    """
    beginnings = sorted(
        found.start() for special in specials for found in re.finditer(re.escape(special), window)
    )
    cuts = (found.start() for found in _ASCII_CUT.finditer(window)) if can_cut else ()
    for place in chain(beginnings, cuts):
        if place >= start and all(
            window.find(special, max(0, place - len(special) + 1), place + len(special) - 1) < 0
            for special in specials
        ):
            return place
    return None


def _count_in_processes(
    sources: Iterable[Source],
    pattern: str,
    specials: tuple[str, ...],
    n_workers: int,
    advance: Callable[[int], object],
) -> Counter[str]:
    """The same count by several processes, never with more than a few parts on their way to them."""
    counts: Counter[str] = Counter()
    running: dict[Future[Counter[str]], int] = {}

    def collect() -> None:
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            counts.update(done.result())
            advance(running.pop(done))

    with worker_pool(n_workers) as pool:
        for part in _parts(sources, pattern, specials, _LARGEST_PART, n_workers):
            if len(running) >= 2 * n_workers:
                collect()
            size = sum(map(len, part)) if isinstance(part, list) else part[2] - part[1]
            running[pool.submit(count_part, part, pattern, specials)] = size
        while running:
            collect()
    return counts
