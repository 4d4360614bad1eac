"""The HTML front: markup that reads without a script, survives hostile text, and copies exactly."""

import json
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmlib.book import forms, page_files, plots, render
from lmlib.book.declare import LedgerTable, Note, Plot, Table, Term, Tokens, Value, get

NAMES = [
    "tokenization/vocabulary-size",
    "tokenization/merge-steps",
    "tokenization/token-view",
    "resources/layout",
]
VOID = {"input", "br", "meta", "link"}


class Page(HTMLParser):
    """Elements with their attributes; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _completed(name: str) -> str:
    """The form with the fields that do not show at first, as the page's script completes it."""
    html = forms.form_html(get(name))
    for field, inside in json.loads(forms.prepare(name, name.replace("/", "-"))).items():
        empty = f'data-field="{field}" hidden></div>'
        assert empty in html
        html = html.replace(empty, f'data-field="{field}" hidden>{inside}</div>')
    return html


@pytest.mark.parametrize("name", NAMES)
def test_only_fields_that_show_are_in_the_built_form(name: str) -> None:
    widget = get(name)

    def named(html: str) -> set[str | None]:
        return {
            a["name"]
            for tag, a in Page(html).elements
            if tag in ("input", "select", "textarea") and "name" in a
        }

    assert named(_completed(name)) == {one.name for one in widget.inputs}
    assert named(forms.form_html(widget)) == widget.visible(widget.defaults())


@pytest.mark.parametrize("name", NAMES)
def test_every_control_has_a_label_and_every_reference_its_element(name: str) -> None:
    elements = Page(_completed(name)).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for tag, attributes in elements if tag == "label"}
    controls = [a for tag, a in elements if tag in ("input", "select", "textarea") and "name" in a]
    assert {control["id"] for control in controls} == labelled
    for control in controls:
        assert set((control["aria-describedby"] or "").split()) <= set(ids)
    for tag, attributes in elements:
        if tag == "button" or attributes.get("type") == "range":
            assert attributes.get("type") in ("button", "reset", "range")


@pytest.mark.parametrize("name", NAMES)
def test_built_form_shows_what_the_page_would_compute(name: str) -> None:
    widget = get(name)
    texts = {one.name: one.text(widget.defaults()[one.name]) for one in widget.inputs}
    answer = json.loads(forms.answer(name, json.dumps(texts)))
    assert answer["ok"]
    assert answer["html"] in forms.form_html(widget)


def test_answer_says_how_a_number_was_read_and_what_is_wrong() -> None:
    answer = json.loads(forms.answer(NAMES[0], '{"vocab_size": "64Ki", "n_heads": "5"}'))
    assert answer["read"]["vocab_size"] == "= 65,536"
    assert "768 / 5 leaves 3" in answer["errors"]["n_heads"]


def test_hostile_text_stays_text() -> None:
    bad = "</script><img src=x onerror=alert(1)>\"'&"
    outputs = [
        Value(bad, bad, bad, help=bad),
        Note(bad),
        Tokens(bad, [(bad, 1, bad)]),
        Table(bad, [bad], [[bad]]),
        LedgerTable(bad, [Term(bad, bad, {bad: bad}, 1, "B", bad, bad)], bad),
        Plot(bad, bad, [{"y": [1], "name": bad}], {}),
    ]
    elements = Page(render.outputs_html(outputs)).elements
    assert not [tag for tag, _ in elements if tag == "img"]


def test_numbers_carry_every_digit_for_whoever_copies_the_table() -> None:
    text = render.outputs_html([Table("t", ["name", "value"], [["a|b", 2**60 + 1], ["c", 1 / 3]])])
    assert f'<data value="{2**60 + 1}">1.153 × 10¹⁸</data>' in text
    assert f'<data value="{1 / 3!r}">0.3333</data>' in text


def test_a_ledger_adds_up_exactly() -> None:
    terms = [Term("a", "f", "n", 2**60, "B"), Term("b", "f", "n", 1, "B")]
    assert str(2**60 + 1) in render.outputs_html([LedgerTable("l", terms, "Total")])


def test_plots_in_the_page_wear_the_style_of_the_book() -> None:
    assert plots.COLOURS == render._COLOURS
    assert plots._DASHES == render._DASHES


def test_archive_holds_the_sources_byte_for_byte(tmp_path: Path) -> None:
    with zipfile.ZipFile(page_files.write_archive(tmp_path)) as archive:
        names = archive.namelist()
        for name in names:
            assert archive.read(name) == (page_files.ROOT / name).read_bytes()
    assert {
        "lmlib/book/forms.py",
        "lmlib/tokenization/naive.py",
        "lmlib/book/widgets/tokenization.json",
    } <= set(names)
    first = (tmp_path / page_files.ARCHIVE).read_bytes()
    assert page_files.write_archive(tmp_path).read_bytes() == first


def test_a_module_with_foreign_imports_is_refused_with_the_way_to_it() -> None:
    with pytest.raises(page_files.PageImportError, match=r"lmlib\.book\.plots imports (numpy|plotly)"):
        page_files._collect("lmlib.book.plots", ("lmlib.book.plots",), {})


def test_exercises_that_say_so_can_be_solved_in_the_page() -> None:
    from lmlib.book.exercises import machinery

    for name in machinery.names("tokenization"):
        if machinery.get(name).in_page:
            module = machinery.get(name).solution.__module__.replace(".", "/") + ".py"
            assert module in page_files.page_files(), name


def test_only_terms_that_are_added_up_have_shares() -> None:
    """Days, dollars and kilowatt-hours have no sum; what is subtracted has a negative share."""
    room = [Term("memory", "m", {}, 80, "B"), Term("weights", "w", {}, -30, "B")]
    summed = render.outputs_html([LedgerTable("l", room, "Room")])
    assert "160.0 %" in summed
    assert "-60.0 %" in summed
    assert "--share:0.0%" in summed
    apart = render.outputs_html(
        [LedgerTable("l", [Term("time", "t", {}, 5, "s"), Term("price", "p", {}, 9, "USD")])]
    )
    assert "%" not in apart
