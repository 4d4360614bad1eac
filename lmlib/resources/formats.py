"""Floating-point formats, bit by bit: what a number becomes when it is stored.

- A format is a sign bit, exponent bits and fraction bits; every finite value is an exact fraction.
- ``encode`` rounds to nearest, ties to even, as IEEE 754-2019, section 4.3.1, and PyTorch do.
- FP8 as in Micikevicius et al. 2022, arXiv:2209.05433, table 1: E4M3 gives infinity up and keeps a single
  not-a-number, so that it reaches 448. A value too large becomes that not-a-number; converters may
  saturate at 448 instead, as PyTorch does from some version on (2.13 does).
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from lmlib.resources.units import ArgumentError, check_choice, check_integer

_IEEE = "IEEE 754-2019, table 3.5"
_FP8 = "arXiv:2209.05433, table 1"


@dataclass(frozen=True)
class Format:
    """A binary floating-point format.

    Args:
        name: the short name, as in ``FORMATS``.
        torch_name: its dtype in PyTorch.
        exponent_bits, fraction_bits: their widths; one sign bit comes on top.
        infinities: whether the largest exponent is kept for infinities and not-a-number (IEEE), or, as in
            E4M3, only its last code for not-a-number.
        source: where the format is defined.
    """

    name: str
    torch_name: str
    exponent_bits: int
    fraction_bits: int
    infinities: bool = True
    source: str = _IEEE

    @property
    def bits(self) -> int:
        """Width of a stored number in bits."""
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent field: 127 for 8 bits."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def smallest_exponent(self) -> int:
        """Exponent of the smallest normal number, and of all subnormal ones."""
        return 1 - self.bias

    @property
    def first_special(self) -> int:
        """The smallest code, sign left out, that is not a finite number."""
        top = (2**self.exponent_bits - 1) << self.fraction_bits
        return top if self.infinities else top + 2**self.fraction_bits - 1

    @property
    def largest(self) -> Fraction:
        """The largest finite value."""
        return _finite(self, self.first_special - 1)

    @property
    def smallest_normal(self) -> Fraction:
        """The smallest positive value with all its fraction bits."""
        return _power(self.smallest_exponent)

    @property
    def smallest(self) -> Fraction:
        """The smallest positive value, a subnormal."""
        return _power(self.smallest_exponent - self.fraction_bits)

    @property
    def epsilon(self) -> Fraction:
        """Distance from 1 to the next larger value."""
        return _power(-self.fraction_bits)


FORMATS = {
    each.name: each
    for each in (
        Format("fp32", "float32", 8, 23),
        Format("bf16", "bfloat16", 8, 7, source="arXiv:1905.12322, section 2"),
        Format("fp16", "float16", 5, 10),
        Format("fp8_e4m3", "float8_e4m3fn", 4, 3, infinities=False, source=_FP8),
        Format("fp8_e5m2", "float8_e5m2", 5, 2, source=_FP8),
    )
}


def by_name(name: str) -> Format:
    """The format of that name.

    Raises:
        ArgumentError: for a name that is not in ``FORMATS``.
    """
    check_choice("format", name, FORMATS)
    return FORMATS[name]


def encode(value: Fraction | int | float, form: Format) -> int:
    """The code, an integer of ``form.bits`` bits, of the representable number nearest to ``value``.

    Beyond the largest value by half a step or more, IEEE formats give infinity and E4M3 not-a-number.
    """
    if isinstance(value, float) and not math.isfinite(value):
        sign = math.copysign(1, value) < 0
        # All ones is not-a-number in every format. The first special code is infinity where there is one.
        code = form.first_special if math.isinf(value) else _all_ones(form)
        return _signed(code, sign, form)
    negative = math.copysign(1, value) < 0 if isinstance(value, float) else value < 0
    magnitude = abs(Fraction(value))
    exponent = max(_floor_log2(magnitude), form.smallest_exponent) if magnitude else form.smallest_exponent
    steps = round(magnitude / _power(exponent - form.fraction_bits))  # of Fractions: ties to even
    # Counting on from the codes of the smaller exponents: a carry into the next exponent comes for free,
    # and subnormals need no case of their own.
    code = ((exponent - form.smallest_exponent) << form.fraction_bits) + steps
    return _signed(min(code, form.first_special), negative, form)


def decode(code: int, form: Format) -> Fraction | float:
    """The exact value of a code; infinities and not-a-number as floats.

    Raises:
        ArgumentError: for a code that does not fit into the format's bits.
    """
    check_integer("code", code, 0, 2**form.bits - 1)
    negative, magnitude = bool(code >> (form.bits - 1)), code & _all_ones(form)
    if magnitude >= form.first_special:
        if not form.infinities or magnitude > form.first_special:
            return math.nan
        return -math.inf if negative else math.inf
    value = _finite(form, magnitude)
    return -value if negative else value


def stored(value: Fraction | int | float, form: Format) -> Fraction | float:
    """What ``value`` becomes when it is stored in the format and read again."""
    return decode(encode(value, form), form)


def fields(code: int, form: Format) -> tuple[str, str, str]:
    """The bits of sign, exponent and fraction as text."""
    text = f"{code:0{form.bits}b}"
    return text[0], text[1 : 1 + form.exponent_bits], text[1 + form.exponent_bits :]


def neighbours(code: int, form: Format) -> tuple[Fraction | float, Fraction | float]:
    """The next smaller and the next larger value that the format holds.

    Raises:
        ArgumentError: for the code of infinity or not-a-number.
    """
    value = decode(code, form)
    if isinstance(value, float):
        raise ArgumentError("code", f"{value} has no neighbours")
    magnitude = code & _all_ones(form)
    away = decode(magnitude + 1, form)
    toward = decode(magnitude - 1, form) if magnitude else -form.smallest
    return (toward, away) if not code >> (form.bits - 1) else (-away, -toward)


def _all_ones(form: Format) -> int:
    return int(2 ** (form.bits - 1) - 1)


def _signed(magnitude: int, negative: bool, form: Format) -> int:
    return magnitude | (int(negative) << (form.bits - 1))


def _finite(form: Format, magnitude: int) -> Fraction:
    exponent, fraction = magnitude >> form.fraction_bits, magnitude & (2**form.fraction_bits - 1)
    leading = 2**form.fraction_bits if exponent else 0  # subnormals have no leading one
    return (leading + fraction) * _power(max(exponent, 1) - 1 + form.smallest_exponent - form.fraction_bits)


def _power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def _floor_log2(value: Fraction) -> int:
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if value >= _power(guess) else guess - 1
