"""Numbers, tables and the small Markdown of the book's displays."""

import json

import numpy as np
import pytest

import lmlib.book
from lmlib.book.display import markdown, number, script_json, table, text_table


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (50257, "", "50,257"),
        (4.26871, "", "4.269"),
        (-0.5, "", "−0.5"),
        (6.4e9, "B", "6.4 GB"),
        (1.3e-7, "", "1.3 × 10⁻⁷"),
        (True, "", "yes"),
        (np.int64(1234), "tokens", "1,234 tokens"),
        (np.float32(0.25), "s", "0.25 s"),
        ("text", "", "text"),
    ],
)
def test_numbers_are_written_for_people(value, unit, shown):
    assert number(value, unit=unit) == shown


def test_fewer_digits_are_rounded_and_more_refused():
    assert number(4.26871, 2) == "4.3"
    with pytest.raises(ValueError, match="from 1 to 4, got 9"):
        number(1.0, 9)


def test_json_in_a_script_cannot_leave_it():
    nasty = {"text": "</script><!-- <script> & \u2028"}
    text = script_json(nasty)
    assert json.loads(text) == nasty
    assert not set("<>&\u2028") & set(text)


def test_tables_escape_and_align(monkeypatch):
    assert "&lt;a&gt;" in table(("h",), [("<a>",)])
    assert '<td style="text-align:right">3.5' in table(("h",), [(3.5,)])
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    assert '<td class="n">3.5' in table(("h",), [(3.5,)])
    assert text_table(("name", "n"), [("a", 1000), ("long", None)]) == "name  n\na     1,000\nlong"


def test_markdown_subset():
    prose = "One *two* **three** `a<b*c*`\ngoes on.\n\n- first\n- second\n  line\n\n"
    assert markdown(prose + "```python\nx < 1  # *no*\n```\n") == (
        "<p>One <em>two</em> <strong>three</strong> <code>a&lt;b*c*</code> goes on.</p>"
        "<ul><li>first</li><li>second line</li></ul>"
        "<pre><code>x &lt; 1  # *no*\n</code></pre>"
    )


def test_public_names_resolve_lazily():
    assert lmlib.book.claim.__module__ == "lmlib.book.claims"
    assert lmlib.book.number is number
    with pytest.raises(AttributeError, match="no 'nonsense'"):
        lmlib.book.nonsense  # noqa: B018
