"""Ledgers and units: exact, strict, and able to explain themselves."""

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlib.resources.ledger import Ledger, Term, derive, evaluate
from lmlib.resources.units import GB, GIB, ArgumentError, exact, format_bytes, format_quantity


def two():
    a = derive("a", "n * d", "bytes", "section 1", n=3, d=4096)
    b = derive("b", "n + 1", "bytes", "section 2", n=-5)
    return Ledger("both", "bytes", (Ledger("inner", "bytes", (a,)), b))


def test_a_term_explains_itself():
    term = derive(
        "q_proj", "d_model * n_heads * head_dim", "parameters", "here", d_model=4096, n_heads=32, head_dim=128
    )
    assert term == Term(
        "q_proj", "d_model × n_heads × head_dim", "4,096 × 32 × 128", 16_777_216, "parameters", "here"
    )


numbers = st.integers(-(10**30), 10**30) | st.fractions(-1000, 1000)
FORMULAS = [
    "a * b + c",
    "a - b - c",
    "a / 7 * (b - c)",
    "-a * b",
    "min(a, b, c)",
    "max(a, b) * c",
    "ceil(a / 3) + b",
    "a ** 2 - c",
]


@given(st.sampled_from(FORMULAS), numbers, numbers, numbers)
def test_numbers_evaluate_to_the_value_and_match_python(formula, a, b, c):
    term = derive("t", formula, "ratio", "here", a=a, b=b, c=c)
    assert evaluate(term.numbers) == term.value
    from math import ceil

    fractions = {"a": Fraction(a), "b": Fraction(b), "c": Fraction(c), "min": min, "max": max, "ceil": ceil}
    assert term.value == eval(formula, fractions)  # the same formula in Python's own arithmetic


@given(st.lists(st.integers(0, 10**25), min_size=1, max_size=6), st.integers(1, 10**9))
def test_sums_scales_and_quotients_are_exact(values, factor):
    ledger = Ledger(
        "l", "FLOPs", tuple(derive(f"t{i}", "x", "FLOPs", "here", x=x) for i, x in enumerate(values))
    )
    assert ledger.total == sum(values)
    assert ledger.scale(factor, "k").total == factor * sum(values)
    assert (ledger / factor).total == Fraction(sum(values), factor)
    assert (ledger.scale(factor) / factor).total == sum(values)
    assert ledger.dominant().value == max(values)
    for _, term in (ledger.scale(factor, "k") / 7).terms():
        assert evaluate(term.numbers) == term.value


def test_tree():
    ledger = two()
    assert ledger.total == 3 * 4096 - 4
    assert [path for path, _ in ledger.terms()] == [("inner", "a"), ("b",)]
    assert ledger["inner"].value == 12_288
    assert "b" in ledger
    assert "a" not in ledger
    assert ledger.dominant().name == "a"
    with pytest.raises(KeyError, match="inner"):
        ledger["c"]


def test_adding():
    more = two() + derive("c", "x", "bytes", "here", x=1)
    assert more.total == two().total + 1
    with pytest.raises(ArgumentError, match="twice"):
        two() + two()
    with pytest.raises(ArgumentError, match="FLOPs"):
        two() + derive("c", "x", "FLOPs", "here", x=1)


def test_per_changes_the_unit():
    ledger = two().per(4, "token", "tokens")
    assert ledger.unit == "bytes/token"
    assert ledger["inner"]["a"].formula == "(n × d) / tokens"
    assert ledger["inner"]["a"].numbers == "(3 × 4,096) / 4"
    assert ledger.total == two().total / 4


def test_diff_names_what_changed():
    other = Ledger(
        "other", "bytes", (derive("b", "x", "bytes", "here", x=-4), derive("c", "x", "bytes", "here", x=9))
    )
    change = two().diff(other)
    assert [(term.name, term.value) for _, term in change.terms()] == [("inner / a", 12_288), ("c", -9)]
    assert other.total + change.total == two().total
    assert two().diff(two()).total == 0
    with pytest.raises(ArgumentError, match="compare"):
        two().diff(Ledger("x", "FLOPs"))


def test_json_survives_a_round_trip_and_keeps_every_digit():
    big = Ledger("big", "FLOPs", (derive("t", "x", "FLOPs", "here", x=3 * 10**25 + 1),))
    read = json.loads(json.dumps(big.to_json()))
    assert read["exact"] == "30,000,000,000,000,000,000,000,001"
    assert read["terms"][0]["formula"] == "x"
    assert json.loads(json.dumps((two() / 7).to_json()))["exact"] == "12,284/7"


def test_table_and_markdown():
    rows = two().table()
    assert [(row["depth"], row["name"], row["group"]) for row in rows] == [
        (0, "inner", True),
        (1, "a", False),
        (0, "b", False),
    ]
    assert rows[0]["share"] == pytest.approx(12_288 / 12_284)
    text = two().to_markdown()
    assert "| &nbsp;&nbsp;a | n × d | 3 × 4,096 | 12,288 |" in text
    assert text.endswith("**12,284** |")


@pytest.mark.parametrize(
    "formula",
    [
        "a +",
        "__import__('os')",
        "a.b",
        "a[0]",
        "'x'",
        "a if a else b",
        "lambda: 1",
        "a % 2",
        "a == 2",
        "(1, 2)",
        "open(a)",
    ],
)
def test_formulas_are_arithmetic_only(formula):
    with pytest.raises(ArgumentError, match="formula"):
        derive("t", formula, "bytes", "here", a=1, b=2)


def test_refused():
    with pytest.raises(ArgumentError, match="'b', which was given no value"):
        derive("t", "a * b", "bytes", "here", a=1)
    with pytest.raises(ArgumentError, match="not a known unit"):
        derive("t", "a", "parsecs", "here", a=1)
    with pytest.raises(ArgumentError, match="must not be 0"):
        two() / 0
    with pytest.raises(ArgumentError, match="empty"):
        Ledger("none", "bytes").dominant()


def test_bytes_decimal_and_binary():
    assert (GB, GIB) == (10**9, 2**30)
    assert format_bytes(16_060_522_496) == "16.06 GB"
    assert format_bytes(16_060_522_496, binary=True) == "14.96 GiB"
    assert format_bytes(999) == "999 bytes"
    assert format_bytes(2**30, binary=True) == "1 GiB"
    assert format_bytes(1023, binary=True) == "1,023 bytes"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (8_030_261_248, "parameters", "8.03 billion parameters"),
        (15 * 10**12, "tokens", "15 trillion tokens"),
        (3143 * 10**20, "FLOPs", "3.143e+23 FLOPs"),
        (989_400_000_000_000, "FLOPs/second", "989.4 TFLOPs/second"),
        (70_272, "bytes/token", "70.27 kB/token"),
        (Fraction(1, 3), "ratio", "0.3333"),
        (12, "tokens", "12 tokens"),
    ],
)
def test_quantities(value, unit, text):
    assert format_quantity(value, unit) == text


def test_exact():
    assert [exact(x) for x in (1234567, Fraction(7, 3), Fraction(4, 2), 0.25)] == [
        "1,234,567",
        "7/3",
        "2",
        "0.25",
    ]
