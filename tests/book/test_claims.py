"""Claims hold or fail as their bounds say, reach the notebook's output, and stop a run that broke one."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from lmlib.book import claims
from lmlib.book.claims import (
    CLAIM_MIME,
    ClaimError,
    at_least,
    at_most,
    between,
    check_claims,
    claim,
    close_to,
    equals,
    glue,
)
from lmlib.book.records import Record, Samples


@pytest.fixture(autouse=True)
def fresh_run():
    claims.reset()
    yield
    claims.reset()


@pytest.fixture
def outputs():
    """Displays as a notebook's output cells would hold them."""
    InteractiveShell.instance()
    with capture_output(stdout=False) as captured:
        yield lambda: [(each.data, each.metadata) for each in captured.outputs]
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("bound", "kept", "broken"),
    [
        (between(1, 2), [1, 1.5, 2, np.float64(2)], [0.999, 2.001, math.nan, "1.5"]),
        (at_least(3), [3, 3.1, math.inf], [2.999, math.nan, -math.inf]),
        (at_most(3), [3, -math.inf], [3.001, math.nan]),
        (close_to(200, rel=0.05), [190, 210, 200], [189.9, 210.1, -200]),
        (close_to(-2.0, rel=0.1), [-1.8, -2.2], [-1.79, 2.0]),
        (equals(257), [257], [256, 258]),
        (equals("héllo"), ["héllo"], ["hello"]),
        (equals(True), [True], [False]),
    ],
)
def test_bounds_accept_their_range_and_nothing_else(bound, kept, broken):
    for value in kept:
        claim("bounds/kept", "a value inside", value, bound)
    assert claims.claims()[0].holds
    for value in broken:
        claims.reset()
        claim("bounds/broken", "a value outside", value, bound)
        assert not claims.claims()[0].holds, value


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: between(2, 1), "low must not exceed high"),
        (lambda: between(math.nan, 1), "low must be a finite number"),
        (lambda: at_least("3"), "'3'"),
        (lambda: close_to(0, rel=0.1), "value=0"),
        (lambda: close_to(5, rel=2), "rel=2"),
        (lambda: claim("Bad Name", "s", 1, 1), "Bad Name"),
        (lambda: claim("a/b", "  ", 1, 1), "empty"),
        (lambda: glue("two words", 1), "two words"),
    ],
)
def test_unusable_input_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("value", [None, [1, 2], np.arange(3)])
def test_only_numbers_texts_and_truth_values_are_claimed(value):
    with pytest.raises(TypeError):
        claim("a/b", "a statement", value, at_least(0))


def test_a_claim_is_shown_and_stored_in_the_output(outputs):
    claim("words/ratio", "A <b>token</b> is long & wide", np.float32(4.5), at_least(3), unit="bytes")
    ((data, _),) = outputs()
    stored = json.loads(json.dumps(data[CLAIM_MIME], allow_nan=False))
    assert stored["name"] == "words/ratio"
    assert stored["value"] == 4.5
    assert stored["shown"] == "4.5 bytes"
    assert stored["bound"] == {"kind": "at least", "text": "at least 3", "low": 3}
    assert (stored["holds"], stored["where"]) == (True, "this run")
    assert "&lt;b&gt;token&lt;/b&gt;" in data["text/html"]
    assert "✓ holds" in data["text/html"]
    assert "<b>" not in data["text/html"].replace("<br>", "")


def test_not_a_number_is_stored_as_valid_json_and_fails(outputs):
    claim("loss/finite", "The loss stays finite", float("nan"), at_most(10))
    ((data, _),) = outputs()
    assert json.loads(json.dumps(data[CLAIM_MIME], allow_nan=False))["value"] == "not a number"
    assert data[CLAIM_MIME]["holds"] is False
    assert "✗ does not hold" in data["text/html"]


def test_a_record_says_where_a_claim_was_measured():
    made = Record(
        "NVIDIA H200", "570", "2.11", "3.6", "2026-11-24", "abc", "bench", {"t": Samples("s", (1.0,))}
    )
    claim("kernels/time", "It is fast", made["t"].median, at_most(2), unit="s", where=made)
    assert claims.claims()[0].where == "record of 2026-11-24 on NVIDIA H200"


def test_the_table_names_a_record_below_its_claim_and_this_run_once(outputs):
    claim("a/here", "Here", 1, 1)
    claim("a/there", "There", 1, 1, where="a <record>")
    check_claims()
    table = outputs()[-1][0]["text/html"]
    assert '<td>There<div class="lm-claim-where">a &lt;record&gt;</div></td>' in table
    assert "<td>Here</td>" in table
    assert table.count("this run") == 1


def test_check_claims_passes_fails_with_the_list_and_refuses_none(outputs):
    with pytest.raises(ClaimError, match="made no claim"):
        check_claims()
    claim("a/one", "First", 1, 1)
    check_claims()
    claim("a/two", "Second", 5, at_most(4))
    claim("a/three", "Third", "x", "y")
    with pytest.raises(ClaimError, match=r"2 of 3 claims do not hold:\n.*Second.*\n.*Third") as error:
        check_claims()
    assert "First" not in str(error.value)
    assert "Second" in outputs()[-1][0]["text/html"]  # the table is shown before the run stops


def test_a_cell_run_again_replaces_its_claim_but_a_second_claim_needs_its_own_name(monkeypatch):
    claim("a/one", "First", 5, at_most(4))
    claim("a/one", "First", 3, at_most(4))
    assert [each.value for each in claims.claims()] == [3]
    with pytest.raises(ValueError, match="taken by: 'First'"):
        claim("a/one", "Another", 3, at_most(4))
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")  # a built chapter runs each cell once
    with pytest.raises(ValueError, match="taken"):
        claim("a/one", "First", 3, at_most(4))


def test_glued_values_are_read_back_by_myst_nb(outputs, monkeypatch):
    from myst_nb.core.variables import format_plain_text
    from myst_nb.ext.glue import extract_glue_data_cell
    from nbformat.v4 import new_code_cell, new_output

    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    glue("ratio", 4.26871, unit="bytes per token")
    glue("size", 50257)
    cells = [new_output("display_data", data, metadata=metadata) for data, metadata in outputs()]
    cell = new_code_cell("glue(...)", outputs=cells)
    found = {
        name: format_plain_text(output["data"]["text/plain"], "")
        for name, output in extract_glue_data_cell(cell)
    }
    assert found == {"ratio": "4.269 bytes per token", "size": "50,257"}
    assert cell.outputs == []  # nothing shows in the page where it was glued
    with pytest.raises(ValueError, match="glued twice"):
        glue("ratio", 1)


def test_glue_in_a_live_kernel_shows_name_and_value(outputs, monkeypatch):
    monkeypatch.delenv("LMLIB_BOOK_BUILD", raising=False)
    glue("share", "7 <of> 8")
    ((data, _),) = outputs()
    assert data["text/plain"] == "share: 7 <of> 8"
    assert "&lt;of&gt;" in data["text/html"]


@pytest.mark.parametrize("build", ["0", "1"])
def test_the_markup_is_well_formed(outputs, monkeypatch, build):
    monkeypatch.setenv("LMLIB_BOOK_BUILD", build)
    claim("a/one", 'Quote " and <tag>', 1, 1)
    check_claims()
    for data, _ in outputs():
        assert_balanced(data["text/html"])


class _Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def assert_balanced(markup):
    parser = _Balance()
    parser.feed(markup)
    parser.close()
    assert parser.open == []
