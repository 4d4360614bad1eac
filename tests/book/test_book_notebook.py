"""The displays inside an executed notebook: static HTML for the site, the usual bundles in a kernel."""

import nbformat
import pytest
from myst_nb.ext.glue import extract_glue_data_cell
from nbclient import NotebookClient

from lmlib.book.claims import CLAIM_MIME

CELLS = (
    "from lmlib.book import at_least, check, check_claims, claim, exercise, figure, glue, show_source",
    "claim('demo/size', 'A byte has 256 values', 2**8, 256)",
    "glue('size', 50257)",
    "figure([{'x': [1, 2], 'y': [3, 4]}], title='Title', x='X (s)', y='Y (B)', alt='It rises.')",
    "exercise('tokenization/merge')",
    "check('tokenization/merge', lambda symbols, pair, new: symbols)",
    "show_source('lmlib.book.display:escape')",
    "check_claims()",
)


def executed(monkeypatch, build):
    monkeypatch.setenv("LMLIB_BOOK_BUILD", build)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    return notebook.cells


@pytest.mark.notebook
def test_a_build_emits_static_html_claims_and_glued_values(monkeypatch):
    cells = executed(monkeypatch, "1")
    assert extract_glue_data_cell(cells[2])[0][0] == "size"
    bundles = {i: cell.outputs[0].data for i, cell in enumerate(cells) if cell.outputs}
    assert set(bundles) == {1, 3, 4, 5, 6, 7}
    assert all("text/html" in bundle for bundle in bundles.values())
    assert bundles[1][CLAIM_MIME]["holds"] is True
    assert "<lm-plot" in bundles[3]["text/html"]
    assert "application/vnd.plotly.v1+json" not in bundles[3]
    assert "<lm-exercise" in bundles[4]["text/html"]
    assert 'class="highlight"' in bundles[6]["text/html"]


@pytest.mark.notebook
def test_a_kernel_shows_what_notebooks_show(monkeypatch):
    bundles = [cell.outputs[0].data if cell.outputs else {} for cell in executed(monkeypatch, "0")]
    assert bundles[2]["text/plain"] == "size: 50,257"
    assert bundles[3]["application/vnd.plotly.v1+json"]["layout"]["meta"]["alt"] == "It rises."
    assert "<lm-exercise" not in bundles[4]["text/html"]
    assert "expected: [9, 3]" in bundles[5]["text/plain"]


@pytest.mark.notebook
def test_a_claim_that_fails_stops_the_notebook(monkeypatch):
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    source = "from lmlib.book import *\nclaim('demo/size', 'It is larger', 1, at_least(2))\ncheck_claims()"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.raises(Exception, match="1 of 1 claims do not hold"):
        NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
