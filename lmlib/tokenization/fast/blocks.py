"""A block of bytes from a stream, and what of it can be decided before the next block is there."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from .scan import LOOK_AHEAD

Block = bytes | np.ndarray


class SpecialTokens:
    """Finds special tokens in blocks; of those that begin at one place the longest counts."""

    def __init__(self, ids: Mapping[bytes, int]) -> None:
        longest_first = sorted(ids, key=len, reverse=True)
        self._ids = ids
        self._pattern = re.compile(b"|".join(map(re.escape, longest_first))) if ids else None
        self._longest = len(longest_first[0]) if ids else 0

    def segments(self, block: Block, final: bool) -> tuple[np.ndarray, int]:
        """The stretches between special tokens, and the position by which a pretoken must end to be certain.

        Stretches: int64 (n, 3), start, end, and the id of the special token behind it, or -1. A block that is
        not final may end inside a character, a special token or a pretoken; only the last stretch depends on
        what follows.
        """
        end = len(block) if final else _whole_characters(block)
        # Whatever starts after `certain` may yet turn out to be a special token, or a longer one.
        certain = end if final else end - self._longest
        found, start = [], 0
        searched = memoryview(block)[:end]  # type: ignore[arg-type]  # arrays are buffers, their type hints lag
        for match in self._pattern.finditer(searched) if self._pattern else ():
            if match.start() > certain:
                break
            found.append((start, match.start(), self._ids[bytes(match.group())]))
            start = match.end()
        found.append((start, end, -1))
        return np.array(found, dtype=np.int64), end if final else max(0, certain - LOOK_AHEAD)


def _whole_characters(block: Block) -> int:
    """Length of the block without the incomplete character at its end, if there is one."""
    for back in range(1, min(LOOK_AHEAD, len(block)) + 1):
        b = int(block[-back])
        if b < 0x80:
            break
        if b >= 0xC0:
            size = 2 if b < 0xE0 else 3 if b < 0xF0 else 4
            return len(block) - back if size > back else len(block)
    return len(block)
