"""The pre-tokenization patterns as a scanner over UTF-8 bytes: where does the pretoken that starts here end?

Counting and encoding share it. It returns what `regex` matches from this position on, and checks on the way
that the bytes are valid UTF-8 (shortest form, no surrogates, at most U+10FFFF). A negative answer -k - 1 says
that byte k begins no valid character.

A match never depends on what lies before its start, and looks ahead by at most one character past its end,
except that a run of white space is read whole. So a text may be read in blocks: what ends early enough before
the block's end is certain, the rest waits for more bytes. `sure` is the position up to which the bytes are
certain to be followed by the bytes that the scanner sees; `sure == end` says that the text ends there.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .classes import LETTER, NUMBER, OTHER, SPACE
from .memory import INLINE, ascii_letters

GPT2, CL100K = 0, 1
LOOK_AHEAD = 4  # bytes of the longest character

_APOSTROPHE, _BLANK, _LF, _CR = 39, 32, 10, 13


@njit(**INLINE)
def _character(text: np.ndarray, i: int, end: int, classes: np.ndarray) -> int:
    """The character at i: its size in bytes times 8, plus its class; 0 if it isn't valid UTF-8."""
    b = np.int64(text[i])
    if b < 0x80:
        return 8 | classes[b]
    if b < 0xC2 or b > 0xF4:  # a continuation byte, an overlong form, or beyond U+10FFFF
        return 0
    if b < 0xE0:
        size, code, least = 2, b & 0x1F, 0x80
    elif b < 0xF0:
        size, code, least = 3, b & 0x0F, 0x800
    else:
        size, code, least = 4, b & 0x07, 0x10000
    if i + size > end:
        return 0
    for k in range(i + 1, i + size):
        c = np.int64(text[k])
        if c & 0xC0 != 0x80:
            return 0
        code = code << 6 | (c & 0x3F)
    if code < least or code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        return 0
    return size << 3 | classes[code]


@njit(**INLINE)
def _run(text: np.ndarray, i: int, end: int, classes: np.ndarray, wanted: int) -> int:
    """The end of the run of characters of one class from i on."""
    while i < end:
        b = text[i]
        if b < 0x80:  # the usual case, without a call
            if classes[b] != wanted:
                return i
            i += 1
        else:
            character = _character(text, i, end, classes)
            if character == 0:
                return -i - 1
            if character & 7 != wanted:
                return i
            i += character >> 3
    return i


@njit(**INLINE)
def _letters(text: np.ndarray, i: int, end: int, classes: np.ndarray) -> int:
    """The end of the run of letters from i on, eight ASCII letters at a time."""
    while i + 8 <= end:
        n = ascii_letters(text, i)
        i += n
        if n < 8:
            if text[i] < 0x80:
                return i
            break
    return _run(text, i, end, classes, LETTER)


@njit(**INLINE)
def _white_space(text: np.ndarray, i: int, end: int, sure: int, classes: np.ndarray, kind: int) -> int:
    r"""The end of the pretoken at i, where i begins white space that no word takes as its prefix.

    GPT-2: `\s+(?!\S)|\s+`, that is, all but the last character when a non-space follows.
    GPT-4: the same, but up to the run's last line break if it has one. At the end of the text both take all.
    """
    start, last, break_end = i, i, -1
    while i < end:
        character = _character(text, i, end, classes)
        if character == 0:
            return -i - 1
        if character & 7 != SPACE:
            break
        last = i
        i += character >> 3
        if text[last] == _LF or text[last] == _CR:
            break_end = i
    if sure < end and i >= sure:  # the run may go on: undecided
        return end
    if i == end:
        return end
    if kind == CL100K and break_end >= 0:
        return break_end
    return i if last == start else last


@njit(**INLINE)
def _contraction(text: np.ndarray, i: int, end: int, any_case: bool) -> int:
    """Length of 's 't 're 've 'm 'll 'd at i, where an apostrophe stands; 0 if none."""
    if i + 1 >= end:
        return 0
    fold = 0x20 if any_case else 0
    b = text[i + 1] | fold
    if b == 115 or b == 116 or b == 109 or b == 100:  # s t m d
        return 2
    if i + 2 >= end:
        return 0
    if any_case and text[i + 1] == 0xC5 and text[i + 2] == 0xBF:  # U+017F, the long s, folds to s
        return 3
    c = text[i + 2] | fold
    if (b == 114 and c == 101) or (b == 118 and c == 101) or (b == 108 and c == 108):  # re ve ll
        return 3
    return 0


@njit(**INLINE)
def _gpt2(text: np.ndarray, i: int, end: int, sure: int, classes: np.ndarray) -> int:
    if text[i] == _APOSTROPHE:
        length = _contraction(text, i, end, False)
        if length:
            return i + length
    first = i + 1 if text[i] == _BLANK and i + 1 < end else i
    character = _character(text, first, end, classes)
    if character == 0:
        return -first - 1
    if character & 7 == SPACE:
        return _white_space(text, i, end, sure, classes, GPT2)
    if character & 7 == LETTER:
        return _letters(text, first + (character >> 3), end, classes)
    return _run(text, first + (character >> 3), end, classes, character & 7)


@njit(**INLINE)
def _cl100k(text: np.ndarray, i: int, end: int, sure: int, classes: np.ndarray) -> int:
    if text[i] == _APOSTROPHE:
        length = _contraction(text, i, end, True)
        if length:
            return i + length
    character = _character(text, i, end, classes)
    if character == 0:
        return -i - 1
    after, own = i + (character >> 3), character & 7
    if own == LETTER:
        return _letters(text, after, end, classes)
    if own == NUMBER:  # at most three digits together
        for _ in range(2):
            if after < end:
                character = _character(text, after, end, classes)
                if character == 0:
                    return -after - 1
                if character & 7 == NUMBER:
                    after += character >> 3
                else:
                    break
        return after
    following = -1
    if after < end:
        character = _character(text, after, end, classes)
        if character == 0:
            return -after - 1
        following = character & 7
    if following == LETTER and text[i] != _LF and text[i] != _CR:  # one sign or space belongs to the word
        return _letters(text, after + (character >> 3), end, classes)
    if own == OTHER or (text[i] == _BLANK and following == OTHER):
        stop = _run(text, after, end, classes, OTHER)
        while 0 <= stop < end and (text[stop] == _LF or text[stop] == _CR):
            stop += 1
        return stop
    return _white_space(text, i, end, sure, classes, CL100K)


@njit(**INLINE)
def pretoken_end(text: np.ndarray, i: int, end: int, sure: int, classes: np.ndarray, kind: int) -> int:
    """End of the pretoken that starts at i < end, or -k - 1 if byte k begins no valid character."""
    if kind == GPT2:
        return _gpt2(text, i, end, sure, classes)
    return _cl100k(text, i, end, sure, classes)
