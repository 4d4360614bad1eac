"""Pages beside the book's own: 404, the redirect at the root, notebooks to download without outputs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent


def collect_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """404.html: complete in itself, since it is shown at any depth below an unknown root."""
    yield "404", {"lm_home": app.builder.get_target_uri(app.config.root_doc)}, "404.html"


def write_redirect(app: Sphinx, error: Exception | None) -> None:
    """The site's first address shows the landing page; without this it would be a page with no title."""
    if error or app.builder.format != "html" or app.config.root_doc == "index":
        return
    home = app.builder.get_target_uri(app.config.root_doc)
    html = app.builder.templates.render("redirect.html", {"home": home, "title": app.config.html_title})  # type: ignore[attr-defined]
    (Path(app.outdir) / "index.html").write_text(html, encoding="utf-8")


def strip_downloads(app: Sphinx, error: Exception | None) -> None:
    """Offer notebooks as they are in the repository: no outputs, no cell injected by the pipeline."""
    if error or app.builder.format != "html":
        return
    for path in (Path(app.outdir) / "_sources").rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        kept = []
        for cell in notebook["cells"]:
            if "injected-parameters" in cell["metadata"].get("tags", ()):
                continue
            cell["metadata"] = {
                k: v for k, v in cell["metadata"].items() if k not in ("papermill", "execution")
            }
            if cell["cell_type"] == "code":
                cell.update(outputs=[], execution_count=None)
            kept.append(cell)
        notebook["cells"] = kept
        notebook["metadata"].pop("papermill", None)
        path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("html-collect-pages", collect_pages)
    app.connect("build-finished", write_redirect, priority=900)
    app.connect("build-finished", strip_downloads)
