"""Lighter pages: less markup in code, and style sheets without the rules that no page of the book can match.

The theme's style sheets serve every site that is made with it; of their rules this book uses a part. A rule
is kept if for one of its selectors every class occurs in some page or, as a word, in some script.
"""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

# Names, punctuation and white space have the colour of plain code in both of the book's styles; operators
# get it, since a colour on every dot and sign tells nothing.
PLAIN = re.compile(r'<span class="[npwo]">([^<]*)</span>')
# A string comes in pieces: its prefix, quotes, text and escapes, all of one colour; so do kinds of numbers.
PIECES = {"s": "sa|s1|s2|sb|sc|se|sh|sd|si|dl", "m": "mi|mf|mh|mb|mo|il", "k": "kn|kc|kd|kr|ow"}
SHEETS = ("styles/pydata-sphinx-theme.css", "sphinx-design.min.css", "mystnb.*.css", "proof.css")


def without_plain_spans(body: str) -> str:
    """The page's HTML without the marks on those parts of code that look like all the rest, or like the part
    before."""
    body = PLAIN.sub(r"\1", body)
    for whole, parts in PIECES.items():
        body = re.sub(rf'<span class="(?:{parts})">', f'<span class="{whole}">', body)
        mark = f'<span class="{whole}">'
        run = re.compile(rf"{mark}[^<]*</span>(?:{mark}[^<]*</span>)+")
        body = run.sub(lambda found, mark=mark: mark + re.sub("<[^<>]*>", "", found[0]) + "</span>", body)
    return body


def lighten_body(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Called by Sphinx for each page before it is written."""
    if "body" in context:
        context["body"] = without_plain_spans(context["body"])


def words_of(site: Path) -> set[str]:
    """Every class that a page names and every word of a script: what a selector may meet."""
    words: set[str] = set()
    for page in site.rglob("*.html"):
        for classes in re.findall(r'class="([^"]*)"', page.read_text(encoding="utf-8")):
            words.update(classes.split())
    for script in site.rglob("*.js"):
        if script.name != "plotly.min.js":
            words.update(re.findall(r"[\w-]+", script.read_text(encoding="utf-8", errors="ignore")))
    return words


def pruned(css: str, words: set[str]) -> str:
    """The style sheet without the rules that can match nothing; at-rules stay, as do their frames."""
    css = re.sub(r"/\*(?!!).*?\*/", "", css, flags=re.DOTALL)
    out: list[str] = []
    at = 0
    while (brace := css.find("{", at)) >= 0:
        head = css[at:brace]
        # Statements such as @charset, and the end of an @media block, stand before the next selector.
        cut = max(head.rfind(";"), head.rfind("}")) + 1
        out.append(head[:cut])
        selector = head[cut:]
        if selector.lstrip().startswith(("@media", "@supports", "@layer", "@container")):
            out.append(selector + "{")
            at = brace + 1
            continue
        end = _closing(css, brace)
        if selector.lstrip().startswith("@") or _may_match(selector, words):
            out.append(css[at + cut : end])
        at = end
    return "".join(out) + css[at:]


def _closing(css: str, brace: int) -> int:
    """Position behind the brace that closes the one at `brace`."""
    depth, position = 0, brace
    while True:
        found = re.compile(r"[{}]").search(css, position)
        if found is None:
            return len(css)
        depth += 1 if found.group() == "{" else -1
        position = found.end()
        if depth == 0:
            return position


def _may_match(selector: str, words: set[str]) -> bool:
    # Inside :not(...) a class excludes; it need not exist.
    plain = re.sub(r":not\([^()]*\)", "", selector)
    return any(
        all(name.replace("\\", "") in words for name in re.findall(r"\.((?:[\w-]|\\.)+)", each))
        for each in plain.split(",")
    )


def lighten_styles(app: Sphinx, error: Exception | None) -> None:
    """Called by Sphinx when all pages are written."""
    if error or app.builder.format != "html":
        return
    site = Path(app.outdir)
    words = words_of(site)
    for pattern in SHEETS:
        for sheet in (site / "_static").glob(pattern):
            sheet.write_text(pruned(sheet.read_text(encoding="utf-8"), words), encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", lighten_body, priority=950)
    app.connect("build-finished", lighten_styles, priority=900)
