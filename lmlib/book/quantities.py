"""Numbers as people type and read them: ``7B``, ``2^30``, ``16.06 GB``; exact on the way in.

Standard library only: it also runs in the page. Typed text is read into a ``Fraction``, so that no integer is
ever rounded; a float appears only where a widget asks for a number that is not whole.
"""

import math
import re
from decimal import Decimal
from fractions import Fraction

Exact = int | float | Fraction

_SUFFIXES = {
    "": Fraction(1),
    "%": Fraction(1, 100),
    "k": Fraction(10**3),
    "m": Fraction(10**6),
    "b": Fraction(10**9),
    "g": Fraction(10**9),
    "t": Fraction(10**12),
    "p": Fraction(10**15),
    "ki": Fraction(2**10),
    "mi": Fraction(2**20),
    "gi": Fraction(2**30),
    "ti": Fraction(2**40),
}
_LITERAL = r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?)"
_FACTOR = re.compile(_LITERAL + r"(ki|mi|gi|ti|[kmbgtp%]?)(?:\^([0-9]{1,3}))?", re.IGNORECASE)
_GROUPED = re.compile(r"(?<=[0-9])[,_ \u00a0\u202f'](?=[0-9]{3}(?![0-9]))")
_MOST_DIGITS = 400  # more than any quantity of the book; keeps 9^999^... from eating the page's memory

_PREFIXED_UNITS = frozenset(
    {
        "B",
        "FLOP",
        "FLOPs",
        "FLOP/s",
        "B/s",
        "B/token",
        "tokens",
        "tokens/s",
        "parameters",
        "FLOPs/B",
        "FLOPs/token",
        "W",
        "Wh",
        "J",
    }
)
_PREFIXES = ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"))
_COUNTED_UNITS = {"tokens", "tokens/s", "parameters"}  # nobody says gigaparameters
_TIMES = (  # from how many seconds on, in which unit of how many seconds
    (365 * 86_400, 365 * 86_400, "years"),
    (2 * 86_400, 86_400, "days"),
    (2 * 3600, 3600, "hours"),
    (600, 60, "minutes"),
    (Fraction(1, 10), 1, "s"),
    (Fraction(1, 10**3), Fraction(1, 10**3), "ms"),
    (Fraction(1, 10**6), Fraction(1, 10**6), "µs"),
    (0, Fraction(1, 10**9), "ns"),
)
_COUNTS = ((12, "trillion"), (9, "billion"), (6, "million"))


def parse_number(text: str, unit: str = "") -> Fraction:
    """Read what a person typed, exactly.

    Accepts ``1e9``, ``7B``, ``4k``, ``128Ki``, ``1,000,000``, ``1_000``, ``40%``, ``2^30``, ``8*1024``,
    ``1/3`` and the field's own unit behind the number. Suffixes are k, M, B or G, T, P (powers of 1000) and
    Ki, Mi, Gi, Ti (powers of 1024), in either case.

    Raises ValueError, with a sentence for the reader, for anything else.
    """
    cleaned = text.strip()
    if unit and cleaned.endswith(unit):
        cleaned = cleaned[: -len(unit)].rstrip()
    if not cleaned:
        raise ValueError("a number is needed here")
    if len(cleaned) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(cleaned)} characters is too long")
    cleaned = _GROUPED.sub("", cleaned).replace("**", "^").replace("×", "*").replace("−", "-")
    parts = re.split(r"\s*([*/])\s*", cleaned)
    result = _factor(parts[0], text)
    for operator, part in zip(parts[1::2], parts[2::2], strict=True):
        factor = _factor(part, text)
        if operator == "/" and not factor:
            raise ValueError(f"{text.strip()!r} divides by zero")
        result = result * factor if operator == "*" else result / factor
    return result


def _factor(part: str, text: str) -> Fraction:
    match = _FACTOR.fullmatch(part.strip().replace(" ", ""))
    if not match:
        raise ValueError(f"{_shorten(text)} is not a number: 4096, 1e9, 7B, 128Ki and 2^30 are understood")
    literal, suffix, power = match.groups()
    value = Fraction(literal) * _SUFFIXES[suffix.lower()]
    if power is None:
        return value
    if abs(value) > 10**6 or (value.denominator > 10**6):
        raise ValueError(f"{_shorten(text)}: the base of a power may be at most 10^6")
    return value ** int(power)


def _shorten(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 40 else text[:40] + "…")


def exact_text(value: Exact) -> str:
    """The value as text from which Python gets the same value back: all digits of an int, ``repr`` of a
    float."""
    if isinstance(value, Fraction):
        return str(value.numerator) if value.denominator == 1 else str(value)
    return str(value) if isinstance(value, int) else repr(value)


def grouped(value: Exact) -> str:
    """The value for reading: ``16,060,522,496``, ``0.8333``, ``1.21 × 10^24``; at most 4 digits unless an
    int."""
    if isinstance(value, Fraction) and value.denominator == 1:
        value = value.numerator
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**18 else _scientific(value)
    as_float = float(value)
    if as_float != as_float or as_float in (float("inf"), float("-inf")):
        return {"nan": "not a number", "inf": "∞", "-inf": "−∞"}[str(as_float)]
    if as_float and not 1e-4 <= abs(as_float) < 1e15:
        return _scientific(as_float)
    if abs(as_float) >= 1000:
        return f"{as_float:,.0f}"
    rounded = f"{as_float:.4g}"
    return rounded if "e" not in rounded else f"{as_float:.0f}"


def _scientific(value: int | float) -> str:
    mantissa, exponent = f"{Decimal(value):.3e}".split("e")  # Decimal: an int may be larger than any float
    mantissa = mantissa.rstrip("0").rstrip(".")
    power = f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return power if mantissa == "1" else f"{mantissa} × {power}"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def readable(value: Exact, unit: str = "") -> str:
    """Value and unit for reading: ``16.06 GB``, ``8.03 billion parameters``, ``312 TFLOP/s``, ``4.18
    bytes``."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{grouped(value)} {unit}".rstrip()
    size = abs(Fraction(value))
    if unit == "s":
        return _duration(Fraction(value))
    if unit in _COUNTED_UNITS:
        for exponent, word in _COUNTS:
            if 10**exponent <= size < 10**18:
                return f"{_four_digits(value, exponent)} {word} {unit}"
    elif unit in _PREFIXED_UNITS:
        for exponent, prefix in _PREFIXES:
            if 10**exponent <= size < 10**18:
                return f"{_four_digits(value, exponent)} {prefix}{unit}"
    if unit == "%":
        return f"{grouped(value)} %"
    return f"{grouped(value)} {unit}".rstrip()


def _duration(value: Fraction) -> str:
    """Seconds in the unit that suits their size: ``12.5 ms``, ``45 s``, ``3.5 days``."""
    size, name = next((size, name) for least, size, name in _TIMES if abs(value) >= least)
    return f"{grouped(float(value / size))} {name}" if value else "0 s"


def _four_digits(value: Exact, exponent: int) -> str:
    scaled = float(Fraction(value) / 10**exponent)
    return f"{scaled:.4g}" if abs(scaled) < 1000 else f"{scaled:.0f}"
