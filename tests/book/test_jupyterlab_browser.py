"""A notebook in JupyterLab itself: its widgets are live there, and its own styles leave ours legible."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytestmark = pytest.mark.browser

WRONG = "def my_merge(symbols, pair, new):\n    return symbols\n\n\ncheck('tokenization/merge', my_merge)"
CELLS = ["from lmlib.book import check, show", "show('tokenization/vocabulary-size')", WRONG]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """Address of a notebook of three cells in a JupyterLab of its own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "few.ipynb")
    options = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=secret"]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", str(tmp_path), *options, "--LabApp.news_url=None"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        said = []
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"http://(?:localhost|127\.0\.0\.1):\d+/lab", line):
                yield f"{found[0]}/tree/few.ipynb?token=secret&reset"
                break
        else:
            pytest.fail(f"JupyterLab did not start:\n{''.join(said)}")
    finally:
        server.terminate()
        server.communicate(timeout=60)


@pytest.mark.timeout(600)
def test_widgets_and_checks_live_in_jupyterlab(browser: Any, lab: str) -> None:
    errors: list[str] = []
    page = browser.new_page(viewport={"width": 1400, "height": 1200})
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.goto(lab)
    page.locator(".jp-NotebookPanel .jp-Cell").nth(2).wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    page.locator(".jp-Cell").nth(2).get_by_text("0 of 9 checks passed").wait_for()
    widget = page.locator(".jp-Cell").nth(1)
    card = widget.locator(".lm-card")
    card.wait_for()
    size = widget.locator("input[type=text]").first
    size.fill("64Ki")
    size.press("Enter")
    card.get_by_text("65,536").first.wait_for()
    assert widget.locator(".js-plotly-plot").count() == 1
    label, value = (card.locator(f".lm-values {name}").first.bounding_box() for name in ("dt", "dd"))
    assert label["y"] + label["height"] <= value["y"] + 1, "a label runs into its value"

    size.fill("-3")
    size.press("Enter")
    widget.locator(".lm-error", has_text="-3 is not allowed").wait_for()
    assert errors == []
    page.close()
