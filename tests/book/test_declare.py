"""The declaration of widgets: reading what people type, refusing nonsense, results that survive JSON."""

import json
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlib.book.declare import (
    Choice,
    InputError,
    LedgerTable,
    Number,
    Plot,
    Table,
    Term,
    Text,
    Toggle,
    Tokens,
    Value,
    Widget,
    get,
    registered,
)
from lmlib.book.quantities import grouped, parse_number, readable


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("1e9", 10**9),
        ("7B", 7 * 10**9),
        ("7b", 7 * 10**9),
        ("4k", 4000),
        ("128Ki", 131_072),
        ("2^30", 2**30),
        ("2**30", 2**30),
        ("1,000,000", 10**6),
        ("1_000", 1000),
        ("1 000", 1000),
        ("8*1024", 8192),
        ("8 × 1024", 8192),
        ("1.5e12", 15 * 10**11),
        ("40%", Fraction(2, 5)),
        ("1/3", Fraction(1, 3)),
        ("-0.5", Fraction(-1, 2)),
        ("1e22", 10**22),
    ],
)
def test_what_people_type_is_read_exactly(typed: str, value: object) -> None:
    assert parse_number(typed) == value


@pytest.mark.parametrize(
    "typed", ["", " ", "x", "nan", "inf", "12e", "1,00", "1e99999", "1//2", "5/0", "٣", "--3"]
)
def test_nonsense_is_refused_with_a_sentence(typed: str) -> None:
    with pytest.raises(ValueError, match=r"number|zero"):
        parse_number(typed)


def test_a_power_tower_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(ValueError, match="base of a power"):
        parse_number("10000000^999")


@given(st.integers(-(10**60), 10**60))
def test_integers_of_any_size_survive_typing(value: int) -> None:
    assert parse_number(str(value)) == value
    assert parse_number(f"{value:,}") == value


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (16_060_522_496, "B", "16.06 GB"),
        (8_030_261_248, "parameters", "8.03 billion parameters"),
        (3 * 10**24, "FLOPs", "3 × 10²⁴ FLOPs"),
        (0, "B", "0 B"),
        (0.5, "s", "0.5 s"),
        (float("inf"), "B", "∞ B"),
        (10**400, "", "10⁴⁰⁰"),
    ],
)
def test_quantities_read_well(value: float, unit: str, text: str) -> None:
    assert readable(value, unit) == text


def test_grouping_keeps_every_digit_of_an_integer() -> None:
    assert grouped(2**53 + 1) == "9,007,199,254,740,993"


def _widget(compute=lambda **values: [Value("n", values["n"], "B")]) -> Widget:
    model = Choice("model", "Model", (("a", "A"), ("custom", "Custom")), "a", presets={"a": {"n": 12}})
    number = Number("n", "N", 5, 1, 10**30)
    text = Text("text", "Text", "hi", max_length=10)
    extra = Toggle("extra", "Extra", True, visible_when=("model", ("custom",)))
    return Widget("demo/widget", "Title", "What it does", (model, number, text, extra), compute)


def test_integers_beyond_2_to_the_53_travel_as_text() -> None:
    result = json.loads(json.dumps(_widget().run({"model": "custom", "n": str(2**64 + 1)})))
    assert result["outputs"][0]["value"] == "18446744073709551617"


def test_the_default_preset_gives_the_defaults() -> None:
    assert _widget().defaults()["n"] == 12


@pytest.mark.parametrize(
    ("raw", "field", "says"),
    [
        ({"n": "0"}, "n", "0 is not allowed. Allowed is from 1 to 10³⁰."),
        ({"n": "1.5"}, "n", "whole number"),
        ({"n": "nonsense"}, "n", "Allowed is from 1"),
        ({"n": True}, "n", "not a number"),
        ({"model": "b"}, "model", "'b' is not one of A, Custom"),
        ({"text": "x" * 11}, "text", "at most 10 are allowed"),
        ({"text": "\ud800"}, "text", "surrogate"),
        ({"other": "1"}, "other", "no input 'other'"),
    ],
)
def test_a_bad_entry_is_refused_beside_its_field(raw: dict, field: str, says: str) -> None:
    result = _widget().run(raw)
    assert not result["ok"]
    assert says in result["errors"][field]


def test_a_hidden_field_counts_with_its_default_whatever_stands_in_it() -> None:
    widget = _widget(lambda **values: [Value("extra", str(values["extra"]))])
    assert widget.run({"model": "a", "extra": "garbage"})["outputs"][0]["value"] == "True"
    assert "extra" in widget.run({"model": "custom", "extra": "garbage"})["errors"]


def test_a_refusal_about_a_hidden_field_is_shown_for_the_whole_form() -> None:
    def refuse(**values: object) -> list:
        raise InputError("extra", "not together")

    assert _widget(refuse).run({"model": "a"})["errors"] == {"": "not together"}
    assert _widget(refuse).run({"model": "custom"})["errors"] == {"extra": "not together"}


def test_a_fault_in_a_formula_becomes_a_message() -> None:
    result = _widget(lambda **values: [Value("x", 1 // 0)]).run({})
    assert "ZeroDivisionError" in result["errors"][""]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(
    st.dictionaries(st.sampled_from(["model", "n", "text", "extra"]), st.text(max_size=12) | st.integers())
)
def test_run_never_raises_and_is_json(raw: dict) -> None:
    json.dumps(_widget().run(raw), allow_nan=False)


def test_declarations_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="default=9 is outside"):
        Number("n", "N", 9, 1, 5)
    with pytest.raises(ValueError, match="not among its options"):
        Choice("c", "C", (("a", "A"),), "b")
    with pytest.raises(ValueError, match=r"preset c='a': n: "):
        Widget(
            "a/b",
            "",
            "",
            (Choice("c", "C", (("a", "A"),), "a", presets={"a": {"n": 9}}), Number("n", "N", 1, 1, 5)),
            list,
        )
    with pytest.raises(ValueError, match="two inputs have one name"):
        Widget("a/b", "", "", (Toggle("t", "T", True), Toggle("t", "T", True)), list)


def test_slider_stops_reach_both_ends_and_the_default() -> None:
    stops = Number("n", "N", 50_257, 256, 10**6, scale="log", slider=True).stops
    assert (stops[0], stops[-1]) == (256, 10**6)
    assert 50_257 in stops
    assert Number("p", "P", 0.3, 0.0, 1.0, integer=False, step=0.25, slider=True).stops == (
        0.0,
        0.25,
        0.3,
        0.5,
        0.75,
        1.0,
    )


def test_every_kind_of_output_is_json() -> None:
    outputs = [
        Table("t", ["a"], [[2**60], ["x"]]),
        Plot("p", "alt", [{"y": [1]}]),
        Tokens("k", [("a", 1, "t")]),
        LedgerTable("l", [Term("n", "f", {"x": 2**60}, 2**60, "B")], "Total"),
    ]
    result = _widget(lambda **values: outputs).run({})
    assert json.loads(json.dumps(result)) == result
    assert result["outputs"][3]["terms"][0]["value"] == str(2**60)


def test_an_unknown_widget_names_those_there_are() -> None:
    with pytest.raises(KeyError, match="tokenization/merge-steps"):
        get("tokenization/nothing")
    with pytest.raises(KeyError, match=r"architecture/rope.*tokenization/merge-steps"):
        get("tokenisation/merge-steps")


def test_widgets_need_nothing_but_the_standard_library() -> None:
    program = (
        "import sys; from lmlib.book import forms; from lmlib.book.declare import get\n"
        "get('tokenization/token-view')\n"
        "sys.exit(str({'torch', 'numpy', 'regex', 'IPython', 'plotly'} & set(sys.modules) or ''))"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], check=False, stderr=subprocess.PIPE).stderr.strip()
        == b""
    )


def test_every_widget_answers_its_defaults() -> None:
    get("tokenization/token-view")
    for widget in registered():
        assert widget.run({})["ok"], widget.name
