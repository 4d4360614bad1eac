"""Live source: what is shown is the file's own text, highlighted, and the link appears with a repository."""

import html
import re

import pytest

from lmlib.book import records, settings
from lmlib.book.source import SourceError, highlighted, link, show_source, source_of

TAG = re.compile(r"<[^>]+>")


class Shelf:
    """A shelf.

    It has one method.
    """

    def count(self, n_books: int) -> int:
        """How many."""
        return n_books + 1


def only_words():
    """Nothing but this."""


def test_the_source_shown_is_the_source_that_runs():
    scope: dict = {}
    exec(
        source_of(records.Samples.median.fget).replace("@property\n", ""),
        {"statistics": __import__("statistics")},
        scope,
    )
    assert scope["median"](records.Samples("s", (3.0, 1.0, 2.0))) == 2.0


def test_methods_are_dedented_and_docstrings_leave():
    assert source_of(Shelf.count).startswith("def count")
    assert source_of(Shelf.count, docstring=False) == (
        "def count(self, n_books: int) -> int:\n    return n_books + 1"
    )
    assert source_of(Shelf, docstring=False).startswith("class Shelf:\n    def count")
    assert "Nothing but this" in source_of(only_words, docstring=False)  # an empty body would not be Python


@pytest.mark.parametrize("build", ["0", "1"])
def test_highlighting_keeps_the_text_and_escapes_it(monkeypatch, build):
    monkeypatch.setenv("LMLIB_BOOK_BUILD", build)
    code = 'def f(x):\n    return x < 1 and "</pre><script>" or "&amp;"\n'
    markup = highlighted(code, [2])
    assert html.unescape(TAG.sub("", markup)).strip() == code.strip()
    assert "<script>" not in markup
    assert ('class="k"' in markup) == (build == "1")  # in the page the site's style sheet colours
    assert "hll" in markup or "background-color" in markup


def test_show_by_name(capsys):
    show_source("lmlib.book.records:Samples.median")
    shown = capsys.readouterr().out
    assert re.match(r"# lmlib/book/records\.py, line \d+\n@property\ndef median", shown)


def test_a_whole_module(capsys):
    show_source("lmlib.book.exercises")
    assert capsys.readouterr().out.startswith("# lmlib/book/exercises/__init__.py\n")


@pytest.mark.parametrize(
    ("target", "lines", "named"),
    [
        ("lmlib.nowhere:x", (), "no module 'lmlib.nowhere'"),
        ("lmlib.book.records:nothing", (), "lmlib.book.records has no 'nothing'"),
        (len, (), "no source for"),
        (only_words, (1, 9), r"\[9\], but the source shown has lines 1 to 2"),
    ],
)
def test_what_has_no_source_is_refused(target, lines, named):
    with pytest.raises(SourceError, match=named):
        show_source(target, highlight=lines)


def test_the_link_is_there_only_with_a_repository(monkeypatch):
    monkeypatch.setattr(settings, "REPOSITORY", "")
    assert link("lmlib/book/source.py", 3) == ""
    monkeypatch.setattr(settings, "REPOSITORY", "https://example.org/owner/book.git")
    assert link("lmlib/book/source.py", 3) == (
        f"https://example.org/owner/book/blob/{settings.BRANCH}/lmlib/book/source.py#L3"
    )
