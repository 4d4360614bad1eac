"""Text that arrives in chunks, cut where the cut cannot change a token.

Three things may straddle a chunk's border: a UTF-8 sequence, a special token, and a pretoken. Each is held
back until what follows has decided it, so the result does not depend on the chunks, and no more is held than
one block of text or one pretoken, whichever is longer.
"""

import codecs
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lmlib.tokenization.patterns import Pretokenizer

BLOCK = 1 << 16  # characters gathered before cutting: large enough to be fast, small enough to be nothing


def special_finder(specials: Iterable[str]) -> "re.Pattern[str] | None":
    """A pattern that finds special tokens, the longest first where one begins with another; None for none."""
    ordered = sorted(specials, key=lambda special: (-len(special), special))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def split_specials(text: str, find: "re.Pattern[str] | None") -> Iterator[tuple[str, bool]]:
    """Parts of a whole text in order: (text, False) or (special token, True). No empty parts."""
    done = 0
    for match in find.finditer(text) if find else ():
        if match.start() > done:
            yield text[done : match.start()], False
        yield match.group(), True
        done = match.end()
    if done < len(text):
        yield text[done:], False


def replace_surrogates(text: str) -> str:
    """Text that UTF-8 can carry: surrogate pairs joined, lone surrogates replaced by U+FFFD (as tiktoken)."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def utf8(text: str) -> bytes:
    """The text's bytes, lone surrogates replaced."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return replace_surrogates(text).encode()


def segments(
    chunks: Iterable[str], pretokenizer: Pretokenizer, specials: Iterable[str] = (), block: int = BLOCK
) -> Iterator[tuple[str, bool]]:
    """Parts of a stream of text in order: (text, False) or (special token, True).

    Encoding each part apart gives the ids of the whole. The parts join to the stream's text, with lone
    surrogates replaced. With a custom pattern nothing is known about safe cuts, so text is held until a
    special token or the end.
    """
    specials = tuple(specials)
    find, longest = special_finder(specials), max(map(len, specials), default=1)
    source, held, finished = without_surrogates(chunks), "", False
    while not finished:
        # At least as much again as is held, so that text without a cut is looked at only a few times.
        fresh, finished = _take(source, max(block, len(held)))
        text = held + fresh
        # A special token that begins before `known` would be visible as a whole.
        known = len(text) if finished else max(0, len(text) - longest + 1)
        done = 0
        for match in find.finditer(text) if find else ():
            if match.start() >= known:
                break
            if match.start() > done:
                yield text[done : match.start()], False
            yield match.group(), True
            done = match.end()
        cut = len(text) if finished else _cut(text, done, known, pretokenizer)
        if cut > done:
            yield text[done:cut], False
        held = text[cut:]


def _cut(text: str, start: int, known: int, pretokenizer: Pretokenizer) -> int:
    """Where text[start:known] can be cut while what follows is unknown; `start` if nowhere."""
    if known - start < 2:
        return start
    cut = pretokenizer.last_cut(text, start + 1, known)
    return cut or start + pretokenizer.settled(text[start:known])


def _take(source: Iterator[str], n_characters: int) -> tuple[str, bool]:
    """The next pieces of the stream, n_characters or more together, and whether the stream has ended."""
    pieces, length = [], 0
    for piece in source:
        pieces.append(piece)
        length += len(piece)
        if length >= n_characters:
            return "".join(pieces), False
    return "".join(pieces), True


def without_surrogates(chunks: Iterable[str]) -> Iterator[str]:
    """The chunks with surrogates replaced; a pair split over two chunks is joined first."""
    high = ""
    for chunk in chunks:
        if not isinstance(chunk, str):
            raise TypeError(f"chunks must be strings, got {type(chunk).__name__}: {chunk!r:.60}")
        chunk = high + chunk
        high = chunk[-1:] if "\ud800" <= chunk[-1:] <= "\udbff" else ""
        chunk = chunk[: len(chunk) - len(high)]
        try:
            chunk.encode()
        except UnicodeEncodeError:
            chunk = replace_surrogates(chunk)
        yield chunk
    if high:
        yield replace_surrogates(high)


def read_text(
    path: str | os.PathLike[str], start: int = 0, end: int | None = None, block: int = 1 << 20
) -> Iterator[str]:
    """The text of a UTF-8 file, or of its bytes start..end, in blocks; line ends stay as they are.

    Raises OSError if the file cannot be read and ValueError, with the byte's offset, if it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with Path(path).open("rb") as file:
        file.seek(start)
        offset, left = start, float("inf") if end is None else end - start
        while True:
            data = file.read(int(min(block, left)))
            left -= len(data)
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{os.fspath(path)} is not UTF-8: byte 0x{error.object[error.start]:02x} "
                    f"at byte offset {offset - waiting + error.start} ({error.reason})"
                ) from None
            offset += len(data)
            if text:
                yield text
            if not data:
                return
