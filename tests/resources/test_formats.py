"""Our decoding of floats against PyTorch's dtypes and Python's struct."""

import math
import struct
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmlib.resources.formats import FORMATS, by_name, decode, encode, fields, neighbours, stored
from lmlib.resources.units import ArgumentError

NAMES = list(FORMATS)
SMALL = [name for name in NAMES if FORMATS[name].bits <= 16]
_INTEGERS = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


def _same(ours, theirs: float) -> bool:
    return math.isnan(theirs) if math.isnan(ours) else ours == theirs


def _torch_code(value: float, form) -> int:
    cast = torch.tensor(value, dtype=torch.float32).to(getattr(torch, form.torch_name))
    return cast.view(_INTEGERS[form.bits]).item() % 2**form.bits


@pytest.mark.parametrize("name", SMALL)
def test_every_code_has_the_value_that_torch_gives_it(name):
    form = by_name(name)
    codes = torch.arange(2**form.bits, dtype=torch.int32).to(_INTEGERS[form.bits])
    values = codes.view(getattr(torch, form.torch_name)).float().tolist()
    for code, theirs in enumerate(values):
        ours = decode(code, form)
        assert _same(ours, theirs), (code, ours, theirs)
        if not math.isnan(theirs) and ours != 0:
            assert encode(ours, form) == code


@pytest.mark.parametrize("name", NAMES)
def test_limits_are_torch_s(name):
    form, info = by_name(name), torch.finfo(getattr(torch, FORMATS[name].torch_name))
    assert form.largest == Fraction(info.max)
    assert form.smallest_normal == Fraction(info.tiny)
    assert form.epsilon == Fraction(info.eps)
    assert form.bits == info.bits


@given(st.floats(width=32))
def test_fp32_bits_are_those_of_struct(value):
    form = by_name("fp32")
    (code,) = struct.unpack(">I", struct.pack(">f", value))
    if math.isnan(value):
        assert math.isnan(decode(code, form))
    else:
        assert encode(value, form) == code
        assert decode(code, form) == value


@given(st.floats())
def test_doubles_are_rounded_to_fp16_as_struct_rounds_them(value):
    form = by_name("fp16")
    try:
        (theirs,) = struct.unpack(">e", struct.pack(">e", value))
    except OverflowError:  # struct refuses where the format has infinity
        theirs = math.copysign(math.inf, value)
    assert _same(stored(value, form), theirs)


@pytest.mark.parametrize("name", SMALL)
@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_fp32_is_rounded_as_torch_rounds_it(name, value):
    form = by_name(name)
    ours, theirs = encode(value, form), _torch_code(value, form)
    if not form.infinities and abs(value) > 464:  # half a step beyond the largest: versions of torch differ
        assert theirs & 127 in (form.first_special - 1, form.first_special)
        theirs = theirs | 1
    assert ours == theirs


@pytest.mark.parametrize("name", SMALL)
def test_ties_go_to_the_even_code_as_in_torch(name):
    form = by_name(name)
    for code in range(form.first_special - 1):
        below, above = decode(code, form), decode(code + 1, form)
        middle = (Fraction(below) + Fraction(above)) / 2
        if Fraction(float(middle)) == Fraction(torch.tensor(float(middle)).item()) == middle:
            assert encode(middle, form) == code + code % 2
            assert _torch_code(float(middle), form) == code + code % 2


@pytest.mark.parametrize("name", NAMES)
def test_too_large_a_value_is_infinity_or_in_e4m3_not_a_number(name):
    form = by_name(name)
    step = form.largest - Fraction(neighbours(encode(form.largest, form), form)[0])
    assert stored(form.largest + step * Fraction(2, 5), form) == form.largest
    beyond = stored(form.largest + step, form)
    assert math.isinf(beyond) if form.infinities else math.isnan(beyond)
    assert encode(-math.inf, form) == encode(-(10**400), form)


@pytest.mark.parametrize("name", NAMES)
@given(value=st.fractions(-448, 448))
def test_the_stored_value_is_the_nearest_of_the_neighbours(name, value):
    form = by_name(name)
    code = encode(value, form)
    nearest = Fraction(decode(code, form))
    for other in neighbours(code, form):
        assert not math.isfinite(other) or abs(value - nearest) <= abs(value - Fraction(other))
    assert "".join(fields(code, form)) == f"{code:0{form.bits}b}"


def test_neighbours_of_zero_are_the_smallest_numbers_of_either_sign():
    form = by_name("fp8_e5m2")
    assert neighbours(0, form) == (-form.smallest, form.smallest)
    assert neighbours(encode(-0.0, form), form) == (-form.smallest, form.smallest)


def test_bad_input_names_the_argument():
    with pytest.raises(ArgumentError, match=r"format: must be one of fp32.*got 'fp64'"):
        by_name("fp64")
    with pytest.raises(ArgumentError, match=r"code: must be from 0 to 255, got 256"):
        decode(256, by_name("fp8_e4m3"))
    with pytest.raises(ArgumentError, match=r"code: inf has no neighbours"):
        neighbours(encode(math.inf, by_name("fp16")), by_name("fp16"))
