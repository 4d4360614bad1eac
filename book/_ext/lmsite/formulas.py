"""Formulas are set by MathJax when the book is built, so a page loads fonts for them and no script.

One Node process answers for the whole build. Each formula is HTML for the eye and MathML for a screen
reader; TeX that MathJax does not understand is a warning, which fails the build.
"""

import json
import os
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number, wrap_displaymath

from .assets import node_modules

LOGGER = logging.getLogger(__name__)
STYLES = "math.css"
FONTS_FROM_STYLES = "mathjax/fonts"


class Setter:
    """The Node process that sets formulas, started with the first one."""

    def __init__(self, mathjax: Path) -> None:
        self.mathjax = mathjax
        self.process: subprocess.Popen[str] | None = None
        self.known: dict[tuple[str, bool], dict[str, str]] = {}

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """Send one request and wait for its answer."""
        if self.process is None:
            node = shutil.which(
                "node", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
            )
            if node is None:
                raise ExtensionError("no `node` to set formulas with: install lmlib with the extra `book`")
            command = [node, str(Path(__file__).with_suffix(".js")), str(self.mathjax), FONTS_FROM_STYLES]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise ExtensionError("the process that sets formulas ended early; its message is above")
        answer: dict[str, str] = json.loads(line)
        return answer

    def html(self, tex: str, display: bool, where: nodes.Node) -> str:
        """HTML of a formula; a warning at `where` if MathJax refuses it."""
        key = (tex, display)
        if key not in self.known:
            self.known[key] = self.ask({"tex": tex, "display": display})
        if self.known[key]["error"]:
            LOGGER.warning("formula %r: %s", tex, self.known[key]["error"], location=where)
        return self.known[key]["html"]

    def close(self) -> str:
        """End the process; returns the style rules of all formulas set, or nothing if there were none."""
        if self.process is None:
            return ""
        css = self.ask({"styles": True})["css"]
        self.process.communicate(timeout=30)
        self.process = None
        return css


def start(app: Sphinx) -> None:
    if app.builder.format == "html":
        app.builder.lm_formulas = Setter(node_modules(Path(app.srcdir)) / "mathjax")  # type: ignore[attr-defined]


def finish(app: Sphinx, error: Exception | None) -> None:
    setter: Setter | None = getattr(app.builder, "lm_formulas", None)
    css = setter.close() if setter else ""
    if css and not error:
        (Path(app.outdir) / "_static" / STYLES).write_text(css, encoding="utf-8")


def visit_inline(writer: Any, node: nodes.math) -> None:
    html = writer.builder.lm_formulas.html(node.astext(), False, node)
    writer.body.append(f'<span class="math notranslate">{html}</span>')
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    tex = node.astext() if node["nowrap"] else wrap_displaymath(node.astext(), None, False).strip()
    tex = tex.removeprefix("\\[").removesuffix("\\]")
    html = writer.builder.lm_formulas.html(tex, True, node)
    writer.body.append(writer.starttag(node, "div", CLASS="math notranslate"))
    writer.body.append(html)
    if node["number"]:
        number = escape(str(get_node_equation_number(writer, node)))
        writer.body.append(f'<span class="eqno">({number})')
        writer.add_permalink_ref(node, "Link to this equation")
        writer.body.append("</span>")
    writer.body.append("</div>\n")
    raise nodes.SkipNode


def link_styles(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Only pages with formulas load their style sheet."""
    if doctree is not None and next(
        doctree.findall(lambda n: isinstance(n, nodes.math | nodes.math_block)), None
    ):
        app.add_css_file(STYLES)


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathjax_at_build", (visit_inline, None), (visit_block, None))
    app.connect("builder-inited", start)
    app.connect("html-page-context", link_styles)
    app.connect("build-finished", finish)
