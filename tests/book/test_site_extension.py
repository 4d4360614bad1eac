"""The site's Sphinx extension, part by part: no book is built here."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docutils import nodes
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lmsite() -> Any:
    sys.path.insert(0, str(ROOT / "book" / "_ext"))
    try:
        yield importlib.import_module("lmsite")
    finally:
        sys.path.remove(str(ROOT / "book" / "_ext"))


def test_no_launch_links_without_a_repository(lmsite: Any) -> None:
    assert lmsite.page.launch_links("chapters/01_tokenization", "", "main") == []


@pytest.mark.parametrize(
    "repository", ["https://github.com/o/r", "https://github.com/o/r.git", "https://github.com/o/r/"]
)
def test_launch_links_of_a_github_repository(lmsite: Any, repository: str) -> None:
    links = {
        link["label"]: link["url"] for link in lmsite.page.launch_links("chapters/01_x", repository, "main")
    }
    assert links == {
        "Colab": "https://colab.research.google.com/github/o/r/blob/main/chapters/01_x.ipynb",
        "Binder": "https://mybinder.org/v2/gh/o/r/main?urlpath=lab/tree/chapters/01_x.ipynb",
    }


def test_launch_links_elsewhere_offer_binder_only(lmsite: Any) -> None:
    (link,) = lmsite.page.launch_links("chapters/01_x", "https://git.example.org/o/r", "a/b")
    assert link["url"] == (
        "https://mybinder.org/v2/git/https%3A%2F%2Fgit.example.org%2Fo%2Fr/a%2Fb?urlpath=lab/tree/chapters/01_x.ipynb"
    )


def test_doubled_and_remote_scripts_are_dropped(lmsite: Any) -> None:
    files = [
        SimpleNamespace(filename="site.js", attributes={}),
        SimpleNamespace(filename="https://unpkg.com/thebe@0.8.2/lib/index.js", attributes={}),
        SimpleNamespace(filename=None, attributes={"body": "let x = 1;"}),
        SimpleNamespace(filename="site.js", attributes={}),
        SimpleNamespace(filename=None, attributes={"body": "let x = 1;"}),
    ]
    assert lmsite.page.tidy(files) == [files[0], files[2]]


def test_description_is_the_first_paragraph_cut_at_a_word(lmsite: Any) -> None:
    paragraph = nodes.paragraph("", "word " * 100)
    document = nodes.document(None, None)
    document += nodes.section("", nodes.title("", "Title"), paragraph, nodes.paragraph("", "second"))
    text = lmsite.page.description_of(document)
    assert text.startswith("word word")
    assert text.endswith("word …")
    assert len(text) <= lmsite.page.DESCRIPTION_LENGTH + 2
    assert lmsite.page.description_of(None) == ""


def test_icon_font_rules_go_and_others_stay(lmsite: Any) -> None:
    css = (
        ".a{color:red}.fa-x:before{content:'x'}.fa-y:before,.fa-z:before{content:'y'}"
        "@font-face{font-family:Font Awesome 6 Free;src:url(f.woff2)}"
        "@font-face{font-family:Other;src:url(o.woff2)}.navbar .fa-x{margin:0}.fast{color:blue}"
    )
    assert lmsite.assets.without_icon_font(css) == (
        ".a{color:red}@font-face{font-family:Other;src:url(o.woff2)}.navbar .fa-x{margin:0}.fast{color:blue}"
    )


def test_missing_packages_name_the_command(
    lmsite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmsite.assets, "find_spec", lambda name: None)
    with pytest.raises(lmsite.assets.ExtensionError, match=r"npm ci.*book/"):
        lmsite.assets.node_modules(tmp_path)


def test_downloads_carry_no_outputs(lmsite: Any, tmp_path: Path) -> None:
    folder = tmp_path / "_sources"
    folder.mkdir()
    code = {
        "cell_type": "code",
        "execution_count": 3,
        "metadata": {"papermill": {"duration": 1}, "tags": ["parameters"]},
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}],
        "source": "1",
    }
    injected = {**code, "metadata": {"tags": ["injected-parameters"]}}
    text = {"cell_type": "markdown", "metadata": {}, "source": "# T"}
    notebook = {
        "cells": [text, code, injected],
        "metadata": {"papermill": {}, "kernelspec": {}},
        "nbformat": 4,
    }
    (folder / "a.ipynb").write_text(json.dumps(notebook))
    app = SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path)
    lmsite.extras.strip_downloads(app, None)
    stripped = json.loads((folder / "a.ipynb").read_text())
    assert [cell["cell_type"] for cell in stripped["cells"]] == ["markdown", "code"]
    assert stripped["cells"][1]["outputs"] == []
    assert stripped["cells"][1]["execution_count"] is None
    assert stripped["cells"][1]["metadata"] == {"tags": ["parameters"]}
    assert stripped["metadata"] == {"kernelspec": {}}


def test_lock_file_pins_hashes_and_no_addresses() -> None:
    lock = json.loads((ROOT / "book" / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert {"node_modules/pyodide", "node_modules/mathjax"} <= set(packages)
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert not [name for name, entry in packages.items() if "resolved" in entry]


@pytest.mark.notebook
def test_formulas_become_glyphs_and_mathml(lmsite: Any) -> None:
    """The formula keeps its meaning for a screen reader; TeX that MathJax refuses is reported."""
    setter = lmsite.formulas.Setter(lmsite.assets.node_modules(ROOT) / "mathjax")
    html = setter.html(r"\frac{V}{D} < 2", True, nodes.math_block())
    assert "<mfrac>" in html
    assert "<mo>&lt;</mo>" in html
    assert 'aria-hidden="true"' in html
    assert setter.ask({"tex": r"\nosuchmacro", "display": False})["error"]
    css = setter.close()
    assert "mathjax/fonts/MathJax_Math-Italic.woff" in css
    assert setter.process is None


def test_style_rules_that_no_page_can_match_are_dropped(lmsite: Any) -> None:
    css = (
        '@charset "UTF-8";.used{a:b}.unused{a:b}.used .unused{a:b}.unused,.used{c:d}p{e:f}'
        "@media (min-width:1px){.unused{a:b}.used:not(.unused){g:h}}"
        "@keyframes k{from{a:b}to{a:b}}.sm\\:used{a:b}.in-script{a:b}@font-face{f:g}"
    )
    assert lmsite.weight.pruned(css, {"used", "in-script"}) == (
        '@charset "UTF-8";.used{a:b}.unused,.used{c:d}p{e:f}'
        "@media (min-width:1px){.used:not(.unused){g:h}}"
        "@keyframes k{from{a:b}to{a:b}}.in-script{a:b}@font-face{f:g}"
    )


def test_code_keeps_its_text_and_its_colours(lmsite: Any) -> None:
    html = (
        '<span class="n">a</span><span class="w"> </span><span class="o">+</span><span class="p">(</span>'
        '<span class="sa">f</span><span class="s2">&quot;</span><span class="si">{</span>'
        '<span class="n">b</span><span class="si">}</span><span class="s2">&quot;</span>'
        '<span class="mi">1</span><span class="nb">len</span>'
    )
    assert lmsite.weight.without_plain_spans(html) == (
        'a +(<span class="s">f&quot;{</span>b<span class="s">}&quot;</span><span class="m">1</span>'
        '<span class="nb">len</span>'
    )


@pytest.mark.parametrize("style", ["pygments_light_style", "pygments_dark_style"])
def test_parts_of_code_that_are_joined_have_one_colour(lmsite: Any, style: str) -> None:
    rules = HtmlFormatter(style=lmsite.page.THEME_OPTIONS[style]).get_style_defs("")
    colours = dict(re.findall(r"^\.(\w+) \{ (.*?) \}", rules, re.MULTILINE))
    for whole, parts in lmsite.weight.PIECES.items():
        assert {colours[part] for part in (whole, *parts.split("|"))} == {colours[whole]}
    assert colours["n"] == colours["p"] == colours["w"]
