"""The three splits of every generated corpus."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "valid", "test")
_HELD_OUT = 26  # of the 256 values of a byte: about a tenth for each of valid and test


def split_by_hash(text: str) -> str:
    """The split of whatever `text` names, by the first byte of its SHA-256: 80, 10 and 10 percent."""
    byte = hashlib.sha256(text.encode()).digest()[0]
    if byte < _HELD_OUT:
        return "valid"
    return "test" if byte < 2 * _HELD_OUT else "train"


def check_stream(seed: int, split: str) -> None:
    """Raise ValueError unless `seed` and `split` name a stream of documents."""
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, got {seed!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
