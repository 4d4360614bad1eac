"""`{lm-widget} name`: the static form of a live widget, on a page that is not a notebook."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from lmlib.book.declare import get
from lmlib.book.forms import form_html


class LiveWidget(SphinxDirective):
    """Show the widget of this name as in a chapter: filled in at build time, alive once its script runs."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        try:
            widget = get(self.arguments[0])
        except KeyError as error:
            raise self.error(str(error.args[0])) from error
        return [nodes.raw("", form_html(widget), format="html")]


def setup(app: Sphinx) -> None:
    app.add_directive("lm-widget", LiveWidget)
