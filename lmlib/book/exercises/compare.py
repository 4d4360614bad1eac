"""Is this answer the one expected, and if not, where do the two part? Standard library only.

Arrays and tensors are compared through their own `tolist` and `shape`, so nothing of torch is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

_LONGEST = 160
_SHORT_TEXT = 40


def shown(value: object) -> str:
    """`repr` of a value, cut in the middle where it is long."""
    if hasattr(value, "tolist") and hasattr(value, "shape"):
        text = f"{type(value).__name__}{tuple(value.shape)} {value.tolist()}"
    else:
        text = repr(value)
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} … {text[-half:]}"


def difference(expected: Any, got: Any, tolerance: float) -> str:
    """The first place where two values part, in words; empty if they agree.

    Numbers agree within the relative `tolerance` where a float is expected, and exactly otherwise; a list is
    not a tuple, text is not bytes, and True is not 1.
    """
    return _difference(expected, got, tolerance, "")


def _difference(expected: Any, got: Any, tolerance: float, place: str) -> str:
    at = f"at {place}: " if place else ""
    if hasattr(expected, "tolist"):
        return _array_difference(expected, got, tolerance, place)
    whole_for_float = _kind(expected) == "float" and _kind(got) == "int"
    if _kind(expected) != _kind(got) and not whole_for_float:
        same = _equal_but_for_type(expected, got)
        return f"{at}expected {_a(_kind(expected))}, got {_a(_kind(got))}" + (
            " (its content is right)" if same else ""
        )
    if isinstance(expected, float) and isinstance(got, Real):
        return "" if _close(expected, float(got), tolerance) else f"{at}expected {expected!r}, got {got!r}"
    if isinstance(expected, str | bytes):
        return _text_difference(expected, got, at)
    if isinstance(expected, Mapping):
        return _mapping_difference(expected, got, tolerance, place)
    if isinstance(expected, Sequence):
        return _sequence_difference(expected, got, tolerance, place)
    return "" if expected == got else f"{at}expected {shown(expected)}, got {shown(got)}"


def _kind(value: Any) -> str:
    """Name of the kind of value that an answer must be; subclasses count as what they extend."""
    for kind in (bool, str, bytes, list, tuple, dict, set, frozenset):
        if isinstance(value, kind):
            return kind.__name__
    if isinstance(value, Integral):
        return "int"
    if isinstance(value, Real):
        return "float"
    return "None" if value is None else type(value).__name__


def _a(kind: str) -> str:
    return kind if kind == "None" else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _equal_but_for_type(expected: Any, got: Any) -> bool:
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        return list(expected) == list(got)
    return bool(expected == got)


def _close(expected: float, got: float, tolerance: float) -> bool:
    if math.isnan(expected):
        return math.isnan(got)
    return math.isclose(expected, got, rel_tol=tolerance, abs_tol=tolerance * 1e-3)


def _text_difference(expected: str | bytes, got: str | bytes, at: str) -> str:
    if expected == got:
        return ""
    if max(len(expected), len(got)) <= _SHORT_TEXT:
        return f"{at}expected {expected!r}, got {got!r}"
    same = next(
        (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b),
        min(len(expected), len(got)),
    )
    unit = "byte" if isinstance(expected, bytes) else "character"
    window = slice(max(0, same - 10), same + 10)
    return (
        f"{at}expected length {len(expected)}, got {len(got)}; first different {unit} is number {same}: "
        f"expected …{expected[window]!r}…, got …{got[window]!r}…"
    )


def _mapping_difference(
    expected: Mapping[Any, Any], got: Mapping[Any, Any], tolerance: float, place: str
) -> str:
    at = f"at {place}: " if place else ""
    for key in expected:
        if key not in got:
            return f"{at}key {shown(key)} is missing (expected with value {shown(expected[key])})"
    for key in got:
        if key not in expected:
            return f"{at}key {shown(key)} should not be there (it has value {shown(got[key])})"
    for key, value in expected.items():
        if found := _difference(value, got[key], tolerance, f"{place}[{shown(key)}]"):
            return found
    return ""


def _sequence_difference(expected: Sequence[Any], got: Sequence[Any], tolerance: float, place: str) -> str:
    for index, (wanted, came) in enumerate(zip(expected, got, strict=False)):
        if found := _difference(wanted, came, tolerance, f"{place}[{index}]"):
            return found
    if len(expected) != len(got):
        at = f"at {place}: " if place else ""
        more = expected if len(expected) > len(got) else got
        index = min(len(expected), len(got))
        what = "missing" if more is expected else "too much"
        counts = f"expected {len(expected)} items, got {len(got)}"
        return f"{at}{counts}; the first {what}, number {index}, is {shown(more[index])}"
    return ""


def _array_difference(expected: Any, got: Any, tolerance: float, place: str) -> str:
    at = f"at {place}: " if place else ""
    if not hasattr(got, "tolist"):
        return f"{at}expected {_a(type(expected).__name__)}, got {_a(type(got).__name__)}"
    if tuple(expected.shape) != tuple(got.shape):
        return f"{at}expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
    return _difference(expected.tolist(), got.tolist(), tolerance, place)
