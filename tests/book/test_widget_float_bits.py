"""The widget of number formats: right bits, refusals beside the field, and warnings about what got lost."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlib.book.declare import Note, Table, Tokens, get

WIDGET = get("resources/float-bits")


def _outputs(text, kind):
    outputs, _, errors = WIDGET.outputs({"number": text})
    assert not errors
    return [output for output in outputs if isinstance(output, kind)]


@given(st.floats(-60000, 60000, allow_subnormal=False, width=32))
def test_the_bits_of_fp16_are_those_of_struct(value):
    pieces = next(each for each in _outputs(repr(value), Tokens) if each.caption.startswith("fp16")).pieces
    bits = "".join(text for text, _, _ in pieces)
    # A typed "-0.0" is the number zero, which has no sign.
    assert int(bits, 2) == int.from_bytes(struct.pack(">e", value + 0.0), "big")


def test_every_format_has_its_row_and_its_bits():
    (table,) = _outputs("0.01", Table)
    assert [row[0] for row in table.rows] == ["fp32", "bf16", "fp16", "fp8 E4M3", "fp8 E5M2"]
    assert table.rows[1][1] == "0.01000976562"
    assert len(_outputs("0.01", Tokens)) == 5


@pytest.mark.parametrize(
    ("typed", "formats"),
    [("70000", 3), ("2^-24", 2), ("1e-46", 5), ("0", 0), ("inf", 0), ("nan", 0), ("1/3", 0)],
)
def test_what_a_format_cannot_hold_is_said(typed, formats):
    assert len(_outputs(typed, Note)) == formats


@pytest.mark.parametrize("typed", ["", "abc", "1/0", "1e61", "9^999", "2^-9999"])
def test_what_is_no_number_is_refused_beside_the_field(typed):
    answer = WIDGET.run({"number": typed})
    assert not answer["ok"]
    assert list(answer["errors"]) == ["number"]
