"""The widget of number formats: the bits that a typed number becomes in each of five formats."""

import math
import re
from fractions import Fraction

from lmlib.book.declare import InputError, Note, Output, Table, Text, Tokens, Value, Widget, register
from lmlib.book.quantities import grouped, parse_number
from lmlib.resources.formats import FORMATS, Format, decode, encode, fields, neighbours

_LARGEST_TYPED = 10**60  # beyond every format, and short enough to print
_WORDS = {"inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_TITLES = {
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    "fp8_e4m3": "fp8 E4M3",
    "fp8_e5m2": "fp8 E5M2",
}


def float_bits(number: str) -> list[Output]:
    """Bits, stored value, error and neighbours of a number in every format."""
    value = _read(number)
    outputs: list[Output] = []
    rows: list[list[str | int | float]] = []
    lost: list[str] = []
    for form in FORMATS.values():
        code = encode(value, form)
        kept = decode(code, form)
        outputs.append(Tokens(f"{_TITLES[form.name]}: {_in_words(code, form)}", _pieces(code, form)))
        rows.append([_TITLES[form.name], _shown(kept), *_error(value, kept), *_around(code, form)])
        lost += _fate(value, kept, form)
    outputs.insert(0, Value("Number typed", _shown(value), headline=True))
    columns = ["Format", "Stored value", "Error", "Error (%)", "Next below", "Next above"]
    outputs.append(Table("What is stored, and what its neighbours are", columns, rows))
    return outputs + [Note(text, "warning") for text in lost]


def _read(text: str) -> Fraction | float:
    cleaned = text.strip().lower().replace("−", "-")
    if cleaned in _WORDS:
        return _WORDS[cleaned]
    # 2^-24 is how small numbers are written in this chapter; parse_number knows only positive powers.
    power = re.fullmatch(r"(-?)2(?:\^|\*\*)-([0-9]{1,3})", cleaned)
    try:
        value = (-1 if power[1] else 1) / Fraction(2) ** int(power[2]) if power else parse_number(cleaned)
    except ValueError as refused:
        message = f"{refused}. Also understood are inf, nan and 2^-24."
        raise InputError("number", message[:1].upper() + message[1:]) from None
    if abs(value) > _LARGEST_TYPED:
        raise InputError("number", "At most 10^60 in absolute value: no format here reaches 10^39.")
    return value


def _pieces(code: int, form: Format) -> list[tuple[str, int, str]]:
    sign, exponent, fraction = fields(code, form)
    field = int(exponent, 2)
    power = max(field, 1) - form.bias
    return [
        (sign, int(sign), "sign: " + ("negative" if sign == "1" else "positive")),
        (exponent, field, f"exponent: {field}, the power 2^{power}"),
        (fraction, int(fraction, 2), f"fraction: {int(fraction, 2)} of {2**form.fraction_bits}"),
    ]


def _in_words(code: int, form: Format) -> str:
    """How the bits make the value: ``1.25 × 2^-4``."""
    value = decode(code, form)
    if isinstance(value, float):
        return _shown(value)
    _, exponent, fraction = fields(code, form)
    field = int(exponent, 2)
    leading = 1 if field else 0
    mantissa = leading + Fraction(int(fraction, 2), 2**form.fraction_bits)
    sign = "−" if code >> (form.bits - 1) else ""
    kind = "" if field else " (subnormal: no leading one)" if mantissa else ""
    return f"{sign}{_shown(mantissa)} × 2^{max(field, 1) - form.bias}{kind}"


def _shown(value: Fraction | float) -> str:
    """A value in at most ten significant digits; a stored number is a binary fraction, so this may round."""
    if isinstance(value, float):
        return grouped(value)
    text = f"{float(value):.10g}" if value else "0"
    return text.replace("-", "−")


def _error(value: Fraction | float, kept: Fraction | float) -> list[str | float]:
    if isinstance(value, float) or isinstance(kept, float):
        return ["", ""]
    error = kept - value
    percent = f"{float(100 * abs(error) / abs(value)):.3g}" if value else "0"
    return [_shown(error) if not error else f"{float(error):.3g}".replace("-", "−"), percent]


def _around(code: int, form: Format) -> list[str]:
    if isinstance(decode(code, form), float):
        return ["", ""]
    return [_shown(each) for each in neighbours(code, form)]


def _fate(value: Fraction | float, kept: Fraction | float, form: Format) -> list[str]:
    """What happened to a number that the format could not hold."""
    name = _TITLES[form.name]
    if isinstance(value, float) or not value:
        return []
    if isinstance(kept, float):
        what = "infinity" if form.infinities else "not-a-number (converters may also saturate at 448)"
        return [f"{name}: too large, its largest value is {_shown(form.largest)}; this became {what}."]
    if not kept:
        return [f"{name}: too small, its smallest value is {_shown(form.smallest)}; this became 0."]
    return []


register(
    Widget(
        name="resources/float-bits",
        title="A number in five formats",
        description="Type a number and see which bits each format stores, and which number that is. "
        "Below each part of the bits stands its value as an integer.",
        inputs=(
            Text(
                "number",
                "Number",
                "0.01",
                help="0.01, 1/3, 1e-8, 2^-24, 65504, 70000, inf, nan",
                max_length=60,
                rows=1,
            ),
        ),
        compute=float_bits,
        section="../chapters/04_resources.html#sec-floats",
    )
)
