r"""Pre-tokenization: the regular expressions that cut text into pretokens, and where text may be cut safely.

BPE never merges across a pretoken's border, so the pattern decides what a token can be. The three patterns
here are those of OpenAI's models, written as tiktoken writes them (`tiktoken_ext/openai_public.py`, MIT): the
possessive quantifiers (`++`) change no match, they only forbid useless backtracking.

Three facts make long texts cheap, and all are tested against the patterns themselves:

* *Coarse cuts.* No GPT-2 alternative holds a non-space followed by a space, and the only look-around looks
  ahead from spaces. So every border between a non-space and a space is a pretoken border, whatever stands
  around it, and `re` can cut there quickly before `regex` looks at the (far fewer) distinct pieces. In the
  cl100k and o200k patterns a punctuation mark keeps the line breaks that follow it
  (` ?[^\s\p{L}\p{N}]++[\r\n]*`), so there the cut needs a space that is no line break, or a letter or digit
  before the line break.
* *Text without characters beyond U+FFFF* (emoji, rare scripts) is cut by `re` as by `regex`, and twice as
  fast. `re` has no \p{L}, but takes a class of characters spelled out, and looks those up to U+FFFF up in a
  bitmap; only beyond would it search range after range.
* *Settled pretokens.* A matcher that goes from left to right has settled a pretoken once nothing that might
  follow the text can change it. `Pretokenizer.settled` says how far that is, for text that has no coarse cut.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import regex

# The GPT-2 pattern: contractions, then letters, digits and the rest, each with at most one space in front.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# GPT-4: case-insensitive contractions, digits by threes, a word may take any one non-letter in front.
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)

# GPT-4o: words also end where the case changes (camelCase), and contractions stay with their word.
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

PATTERNS = MappingProxyType({"gpt2": GPT2, "cl100k": CL100K, "o200k": O200K})

# Unicode's White_Space, spelled out: `re` also counts U+001C..U+001F as spaces, `regex` and tiktoken do not.
SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_SPACES_ON_A_LINE = SPACES.replace("\n", "").replace("\r", "")

# GPT-2's own pattern with its three kinds of characters taken for one.
_COARSE_GPT2 = rf" ?[^{SPACES}]++|[{SPACES}]+(?![^{SPACES}])|[{SPACES}]"
# From one safe cut to the next: after non-spaces, a line break is taken along unless a letter or digit of
# ASCII stands before it.
_COARSE_GPT4_TAIL = rf"(?:[^{SPACES}]++(?:(?<![A-Za-z0-9])[\r\n][{SPACES}]*+)?+)"
_COARSE_GPT4 = rf"[{SPACES}]++{_COARSE_GPT4_TAIL}*+|{_COARSE_GPT4_TAIL}++"

# GPT-2's pattern, what is frequent tried first; no two alternatives that swap can begin alike.
_FREQUENT_FIRST = (
    r" \p{L}++|\p{L}++|'(?:[sdmt]|ll|ve|re)|[^\s\p{L}\p{N}]++| ?\p{N}++| [^\s\p{L}\p{N}]++"
    r"|\s++$|\s+(?!\S)|\s"
)

_CUT_GPT2 = rf"(?r)(?<=[^{SPACES}])[{SPACES}]"
_CUT_GPT4 = rf"(?r)(?<=[^{SPACES}])[{_SPACES_ON_A_LINE}]|(?<=[A-Za-z0-9])[\r\n]"

# What a match may have read beyond its own end: all of a run of spaces, or (o200k, which tries upper case
# first) all of a run of upper-case letters, caseless letters and marks.
_READ_AHEAD = rf"[{SPACES}]++|[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]++"
_NON_SPACE = re.compile(f"[^{SPACES}]")
_BEYOND = re.compile("[\U00010000-\U0010ffff]")
_LONGEST_CONTRACTION = 3  # characters of 'll, 've, 're

# Characters that are pretokenized together. So few, because one emoji anywhere in a block decides for the
# slower way, and because their pretokens are looked up while they are still in the processor's cache.
BLOCK = 1 << 11


@dataclass(frozen=True)
class Pretokenizer:
    """One pattern, compiled, with what is known about where its text may be cut.

    name: the pattern's name in PATTERNS, or "custom".
    source: the regular expression, in the syntax of the `regex` package.
    pretokens: text -> its pretokens, which join to the text again.
    chunks: text -> pieces cut at some of its pretoken borders only, but much faster. Cutting each chunk into
        pretokens gives the pretokens of the text.
    """

    name: str
    source: str
    pretokens: Callable[[str], list[str]]
    chunks: Callable[[str], list[str]]
    _quick: Callable[[str], list[str]]
    _iterate: Callable[..., Iterable["regex.Match[str]"]]
    _last_cut: Callable[..., "regex.Match[str] | None"] | None

    def quick_pretokens(self, text: str) -> list[str] | None:
        """The pretokens of a text twice as fast; None if it has a character beyond U+FFFF."""
        return self._quick(text) if text.isascii() or not _BEYOND.search(text) else None

    @property
    def can_cut(self) -> bool:
        """Whether text can be cut before its end is known: true for PATTERNS, not for custom patterns."""
        return self._last_cut is not None

    def last_cut(self, text: str, start: int, end: int) -> int:
        """Position of the last safe cut in text[start:end], or 0: the two sides can be pretokenized apart.

        A cut is the position of the character after it; it stands between two characters of text[:end].
        """
        found = self._last_cut(text, start, end) if self._last_cut else None
        return found.start() if found else 0

    def blocks(self, text: str, size: int = BLOCK) -> Iterator[str]:
        """The text cut at safe cuts into blocks of at most `size` characters, longer where it has no cut."""
        start, width = 0, size
        while start + width < len(text):
            cut = self.last_cut(text, start + 1, start + width) if self.can_cut else 0
            if cut:
                yield text[start:cut]
                start, width = cut, size
            else:
                width *= 2
        if start < len(text):
            yield text[start:]

    def settled(self, text: str) -> int:
        """How far the pretokens of `text` can no longer change, whatever follows it; 0 if none is settled.

        Never just after a space: there the end of the text itself would change the pretokens before it.
        """
        if not self.can_cut:
            return 0
        ends = [match.end() for match in self._iterate(text)]
        for end in reversed(ends):
            if end + _LONGEST_CONTRACTION <= len(text) and _NON_SPACE.match(text, end - 1):
                ahead = _read_ahead().match(text, end)
                if ahead is None or ahead.end() < len(text):
                    return end
        return 0


@lru_cache(maxsize=1)
def _read_ahead() -> "regex.Pattern[str]":
    return regex.compile(_READ_AHEAD)


@lru_cache(maxsize=64)
def pretokenizer(pattern: str) -> Pretokenizer:
    """The compiled pattern of that name ("gpt2", "cl100k", "o200k"), or of a regular expression of your own.

    A pattern of your own must match every character: text that it would drop is refused when it comes.
    Raises ValueError if the expression is empty or does not compile.
    """
    name = next((key for key, source in PATTERNS.items() if pattern in (key, source)), "custom")
    source = PATTERNS.get(name, pattern)
    if not source:
        raise ValueError(f"pattern is empty; use one of {sorted(PATTERNS)} or a regular expression")
    try:
        fine = regex.compile(source)
    except regex.error as error:
        raise ValueError(
            f"pattern {pattern!r} is neither one of {sorted(PATTERNS)} nor a regular expression: {error}"
        ) from None
    if name == "custom":
        whole = _whole_matches(fine)
        return Pretokenizer(name, source, whole, whole, whole, fine.finditer, None)
    coarse = re.compile(_COARSE_GPT2 if name == "gpt2" else _COARSE_GPT4)
    cut = regex.compile(_CUT_GPT2 if name == "gpt2" else _CUT_GPT4)
    quick = _compiled_later(_FREQUENT_FIRST if name == "gpt2" else source)
    return Pretokenizer(name, source, fine.findall, coarse.findall, quick, fine.finditer, cut.search)


def spelled_out(source: str) -> str:
    r"""The pattern in the syntax of `re`, right for characters up to U+FFFF: \p{...}, \s and \S as ranges."""

    def in_brackets(match: "re.Match[str]") -> str:
        return re.sub(r"\\p\{(\w+)\}", lambda kind: _members(kind[1]), match[0]).replace(r"\s", SPACES)

    source = re.sub(r"\[[^\]]*\]", in_brackets, source)
    source = re.sub(r"\\p\{(\w+)\}", lambda kind: f"[{_members(kind[1])}]", source)
    return source.replace(r"\s", f"[{SPACES}]").replace(r"\S", f"[^{SPACES}]")


@lru_cache(maxsize=16)
def _members(category: str) -> str:
    """The characters up to U+FFFF of a Unicode category, as `regex` knows it, as ranges for `re`."""
    ranges: list[list[int]] = []
    for character in regex.findall(rf"\p{{{category}}}", "".join(map(chr, range(0x10000)))):
        if ranges and ranges[-1][1] == ord(character) - 1:
            ranges[-1][1] += 1
        else:
            ranges.append([ord(character)] * 2)
    return "".join(rf"\u{first:04x}-\u{last:04x}" for first, last in ranges)


def _compiled_later(source: str) -> Callable[[str], list[str]]:
    """`findall` of the pattern spelled out, which takes some 30 ms to compile: when it is first used."""

    @lru_cache(maxsize=1)
    def find_all() -> Callable[[str], list[str]]:
        return re.compile(spelled_out(source)).findall

    return lambda text: find_all()(text)


def _whole_matches(fine: "regex.Pattern[str]") -> Callable[[str], list[str]]:
    def pretokens(text: str) -> list[str]:  # not findall, which returns the groups of a pattern with groups
        pieces = [match.group() for match in fine.finditer(text)]
        if sum(map(len, pieces)) != len(text):
            raise ValueError(
                f"pattern {fine.pattern!r}, as a regular expression since it is none of {sorted(PATTERNS)}, "
                f"does not match every character of {text!r:.80}"
            )
        return [piece for piece in pieces if piece]

    return pretokens
