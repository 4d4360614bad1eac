"""Units, and how their quantities are written.

- A quantity carries one of a closed set of units, or a quotient of two of them (``bytes/token``).
- Decimal prefixes and binary ones never mix: 1 GB = 10^9 bytes, 1 GiB = 2^30 bytes (IEC 80000-13).
- A refused argument names its field, so that a form can show the message beside that field.
"""

from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

Number = int | float | Fraction

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

LARGEST_COUNT = 10**18  # of tokens, sequences or parameters: beyond any run, and still exact

_MEASURED = ("parameters", "values", "tokens", "bytes", "FLOPs", "operations", "seconds", "hours", "days")
_PRICED = ("joules", "watts", "kWh", "USD", "GPUs", "GPU-hours", "ratio")
_PER_ONE = ("token", "step", "second", "hour", "GPU", "byte", "parameter", "layer", "sequence")
UNITS = frozenset(_MEASURED + _PRICED + _PER_ONE)

DTYPE_BYTES: dict[str, int | Fraction] = {
    "fp32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "int4": Fraction(1, 2),
}

_DECIMAL = ((10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
_BINARY = ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))
_WORDS = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"))


class ArgumentError(ValueError):
    """A refused argument: ``field`` is its name, ``message`` says what came and what is allowed."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


def check_integer(field: str, value: object, minimum: int, maximum: int) -> int:
    """Return ``value`` if it is an integer within the bounds.

    Raises:
        ArgumentError: for any other type (``True`` and ``4.0`` included) or a value out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentError(field, f"must be an integer from {minimum:,} to {maximum:,}, got {value!r}")
    if not minimum <= value <= maximum:
        raise ArgumentError(field, f"must be from {minimum:,} to {maximum:,}, got {value:,}")
    return value


def check_number(field: str, value: object, minimum: Number, maximum: Number) -> Number:
    """Return ``value`` if it is a finite number within the bounds.

    Raises:
        ArgumentError: for any other type (``True`` included), NaN, or a value out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction):
        raise ArgumentError(field, f"must be a number from {minimum:g} to {maximum:g}, got {value!r}")
    if not minimum <= value <= maximum:
        raise ArgumentError(field, f"must be from {minimum:g} to {maximum:g}, got {float(value):g}")
    return value


def check_choice(field: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ArgumentError unless ``value`` is one of ``allowed``."""
    options = tuple(allowed)
    if value not in options:
        raise ArgumentError(field, f"must be one of {', '.join(options)}; got {value!r}")


def check_bool(field: str, value: object) -> None:
    """Raise ArgumentError unless ``value`` is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise ArgumentError(field, f"must be true or false, got {value!r}")


@lru_cache(maxsize=1024)
def check_unit(unit: str) -> str:
    """Return ``unit`` if it is known, alone or as a quotient ``a/b`` of two known ones."""
    parts = unit.split("/")
    if len(parts) > 2 or any(part not in UNITS for part in parts):
        raise ArgumentError("unit", f"{unit!r} is not a known unit or a quotient of two: {sorted(UNITS)}")
    return unit


def magnitude(value: Number) -> Number:
    """The absolute value, of the same type."""
    return -value if value < 0 else value


def exact(value: Number) -> str:
    """Write a number in full: ``8,030,261,248``, ``7/3``, ``0.38``."""
    if isinstance(value, Fraction):
        return (
            f"{value.numerator:,}/{value.denominator:,}" if value.denominator != 1 else f"{value.numerator:,}"
        )
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.12g}"


def _scaled(value: Number, steps: tuple[tuple[int, str], ...], digits: int) -> tuple[str, str]:
    for size, prefix in steps:
        if magnitude(value) >= size:
            return f"{float(value / size):.{digits}g}", prefix
    return f"{float(value):.{digits}g}", ""


def format_bytes(value: Number, binary: bool = False, digits: int = 4) -> str:
    """Write bytes with a prefix: ``16.06 GB``, or ``14.96 GiB`` if ``binary``."""
    if magnitude(value) < 1000:
        return f"{exact(value)} bytes"
    number, prefix = _scaled(value, _BINARY if binary else _DECIMAL[1:], digits)
    return f"{number} {prefix}B" if prefix else f"{exact(value)} bytes"


def format_quantity(value: Number, unit: str, digits: int = 4) -> str:
    """Write a quantity to be read at a glance: ``16.06 GB``, ``3.143e+23 FLOPs``."""
    check_unit(unit)
    head, _, per = unit.partition("/")
    tail = f"/{per}" if per else ""
    if head == "bytes":
        return format_bytes(value, digits=digits) + tail
    if head in ("FLOPs", "operations", "watts", "joules"):
        if magnitude(value) >= 10**21:
            return f"{float(value):.{digits - 1}e} {head}{tail}"
        number, prefix = _scaled(value, _DECIMAL, digits)
        return f"{number} {prefix}{head}{tail}"
    if head in ("parameters", "values", "tokens"):
        number, word = _scaled(value, _WORDS, digits)
        return f"{number} {word} {head}{tail}" if word else f"{exact(value)} {head}{tail}"
    if head == "ratio":
        return f"{float(value):.{digits}g}{tail}"
    return f"{float(value):,.{digits}g} {head}{tail}"
