"""Plots carry alternative text and their numbers, in colours that keep their contrast on either ground."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from lmlib.book import plots
from lmlib.book.plots import COLOURS, INK, figure, page_html, template_script

LABELS = {
    "title": "Bytes per token",
    "x": "Vocabulary size (tokens)",
    "y": "Bytes per token",
    "alt": "It rises.",
}


class _Page(HTMLParser):
    """Collects attributes, script text and table cells, and checks that elements are closed in order."""

    def __init__(self, markup):
        super().__init__()
        self.open, self.attributes, self.scripts, self.cells, self.captions = [], {}, [], [], []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.attributes.setdefault(tag, dict(attributes))
        {"script": self.scripts, "td": self.cells, "caption": self.captions}.get(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        kept = {"script": self.scripts, "td": self.cells, "caption": self.captions}.get(
            self.open[-1] if self.open else ""
        )
        if kept is not None:
            kept[-1] += data


def rendered(made):
    return _Page(page_html(made.to_dict()))


def test_the_page_holds_the_figure_its_alternative_text_and_its_numbers():
    page = rendered(figure([{"x": [256, 32_000], "y": [1.0, 4.26871], "name": "English"}], **LABELS))
    assert page.attributes["lm-plot"]["role"] == "img"
    assert page.attributes["lm-plot"]["aria-label"] == "It rises."
    (script,) = page.scripts
    shown = json.loads(script)
    assert shown["data"][0]["y"] == [1.0, 4.26871]
    assert shown["layout"]["xaxis"]["title"]["text"] == "Vocabulary size (tokens)"
    assert page.cells == ["256", "1", "32,000", "4.269"]


def test_series_that_share_x_share_a_table_and_others_do_not():
    xs = [1, 2]
    shared = rendered(
        figure([{"x": xs, "y": [3, 4], "name": "a"}, {"x": xs, "y": [5, 6], "name": "b"}], **LABELS)
    )
    assert shared.cells == ["1", "3", "5", "2", "4", "6"]
    apart = rendered(figure([{"x": [1], "y": [3], "name": "a"}, {"x": [2], "y": [5], "name": "b"}], **LABELS))
    assert apart.captions == ["a", "b"]


def test_nothing_in_the_data_can_leave_the_script():
    nasty = "</script><img src=x onerror=alert(1)>"
    markup = page_html(figure([{"x": [nasty], "y": [1], "name": nasty, "type": "bar"}], **LABELS).to_dict())
    assert markup.count("</script>") == 1
    assert "<img" not in markup
    assert json.loads(_Page(markup).scripts[0])["data"][0]["name"] == nasty


def test_the_template_is_named_and_its_script_holds_it():
    page = rendered(figure([{"x": [1], "y": [1]}], **LABELS))
    assert json.loads(page.scripts[0])["layout"]["template"] == "book"
    held = json.loads(template_script().removeprefix("globalThis.lmTemplate = ").removesuffix(";\n"))
    assert go.layout.Template(held) == pio.templates["book"]
    assert len(held["data"]["scatter"]) == len(COLOURS)
    other = figure([{"x": [1], "y": [1]}], layout={"template": "plotly_white"}, **LABELS)
    assert "layout" in json.loads(rendered(other).scripts[0])["layout"]["template"]


def test_arrays_become_plain_numbers_and_gaps_stay_gaps():
    values = np.array([1.23456789, np.nan, np.inf])
    page = rendered(go.Figure(figure([{"x": np.arange(3), "y": values}], **LABELS)))
    assert json.loads(page.scripts[0])["data"][0]["y"] == [1.23457, None, None]
    packed = go.Figure([go.Scatter(x=np.arange(3), y=values)], layout={"meta": {"alt": "x"}})
    trace = json.loads(rendered(packed).scripts[0])["data"][0]
    assert (trace["x0"], trace["dx"]) == (0, 1)
    assert "x" not in trace
    assert trace["y"] == [1.23457, None, None]


@pytest.mark.parametrize("x", [[5, 15, 25], [3, 2, 1]])
def test_evenly_spaced_places_are_counted(x):
    page = rendered(figure([{"x": x, "y": [1, 2, 3]}], **LABELS))
    trace = json.loads(page.scripts[0])["data"][0]
    assert [trace["x0"] + trace["dx"] * place for place in range(3)] == x
    assert page.cells[::2] == [str(value) for value in x]


@pytest.mark.parametrize("x", [[1, 2, 4], [0.5, 1, 1.5], ["a", "b", "c"], [1, 2], [0, 0, 0]])
def test_other_places_stay_as_they_are(x):
    assert json.loads(rendered(figure([{"x": x, "y": x}], **LABELS)).scripts[0])["data"][0]["x"] == x


def test_a_grid_and_error_bars_have_their_numbers_in_the_table():
    grid = rendered(
        figure([{"type": "heatmap", "z": [[1, 2], [3, 4]], "x": ["p", "q"], "y": ["r", "s"]}], **LABELS)
    )
    assert grid.cells == ["r", "1", "2", "s", "3", "4"]
    bars = rendered(figure([{"x": [1], "y": [2], "error_y": {"type": "data", "array": [0.5]}}], **LABELS))
    assert bars.cells == ["1", "2", "0.5"]


def test_a_long_series_is_thinned_in_the_table_and_says_so():
    page = rendered(figure([{"x": list(range(1000)), "y": list(range(1000))}], **LABELS))
    assert page.cells[:2] == ["0", "0"]
    assert page.cells[-1] == "999"
    assert len(page.cells) == 120
    assert "60 of 1000 points" in page.captions[0]


@pytest.mark.parametrize("missing", ["title", "x", "y", "alt"])
def test_labels_and_alternative_text_are_required(missing):
    with pytest.raises(ValueError, match=f"figure needs {missing}"):
        figure([{"x": [1], "y": [1]}], **{**LABELS, missing: " "})


def test_no_traces_and_impossible_logarithms_are_refused():
    with pytest.raises(ValueError, match="at least one trace"):
        figure([], **LABELS)
    with pytest.raises(ValueError, match="'loss': y holds 0"):
        figure([{"x": [1, 2], "y": [1, 0], "name": "loss"}], y_log=True, **LABELS)


def test_a_figure_without_alternative_text_does_not_reach_the_page():
    with pytest.raises(ValueError, match="'Bare' has no alternative text"):
        page_html(go.Figure(layout_title_text="Bare").to_dict())


def test_a_build_renders_through_the_book_and_a_kernel_through_plotly():
    code = "import lmlib.book.plots, plotly.io as pio; print(pio.renderers.default)"
    for build, renders in (("1", True), ("0", False)):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "LMLIB_BOOK_BUILD": build},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (run.stdout.strip() == "book") == renders


def test_the_renderer_emits_html_only():
    bundle = plots.BookRenderer().to_mimebundle(figure([{"x": [1], "y": [1]}], **LABELS).to_dict())
    assert set(bundle) == {"text/html", "text/plain"}
    assert bundle["text/plain"] == "Bytes per token"


def test_series_differ_by_more_than_colour():
    series = pio.templates["book"].data.scatter
    assert len({(each.line.dash, each.marker.symbol) for each in series}) == len(COLOURS)


def luminance(colour):
    """Relative luminance, WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#121212", "#1f2630"])
def test_every_colour_keeps_its_contrast_on_light_and_dark(ground):
    for colour in COLOURS:
        assert re.fullmatch("#[0-9a-f]{6}", colour)
        assert contrast(colour, ground) >= 3, colour  # WCAG 2.2, 1.4.11: graphics
    assert contrast(INK, ground) >= 3
