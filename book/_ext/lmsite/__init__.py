"""The site of the book: what the theme and Jupyter Book leave open, each in a module of its own.

- `assets`: JavaScript, fonts and styles that the site serves itself, staged from installed packages
- `page`: head, scripts and buttons of every page
- `formulas`: mathematics set when the book is built
- `terms`: definitions shown when a glossary term is pointed at or focused
- `widgets`: a directive that puts a live widget on a page that is not a notebook
- `weight`: what pages and style sheets can do without
- `extras`: the pages beside the book's own, 404 and the first page's redirect
"""

from typing import Any

from sphinx.application import Sphinx

from . import assets, extras, formulas, page, terms, weight, widgets


def setup(app: Sphinx) -> dict[str, Any]:
    """Register every part; called by Sphinx."""
    for part in (assets, page, formulas, terms, widgets, extras, weight):
        part.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
