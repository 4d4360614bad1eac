"""How the book's own displays reach the reader: HTML, its escaping, and figures written for people.

Standard library only; IPython is asked for only when something is really shown. While the site is built
(`LMLIB_BOOK_BUILD=1`) displays emit static HTML styled by the site; in a live kernel the same HTML carries
the few inline styles that it needs, with colours that can be read on light and on dark ground.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from lmlib.book.quantities import readable

BUILD_VARIABLE = "LMLIB_BOOK_BUILD"


def building() -> bool:
    """Whether this notebook runs for the static site rather than for a reader at a kernel."""
    return os.environ.get(BUILD_VARIABLE) == "1"


def emit(markup: str, text: str, extra: dict[str, Any] | None = None, metadata: Any = None) -> None:
    """Show `markup` (HTML) with `text` as its plain form, and carry `extra` mime types along.

    Outside a notebook the plain form is printed.
    """
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        print(text)
        return
    if get_ipython() is None:
        print(text)
        return
    bundle = {"text/html": markup, "text/plain": text, **(extra or {})}
    display(bundle, raw=True, metadata=metadata)


def escape(value: object) -> str:
    """Text made safe for HTML content and for quoted attributes."""
    return html.escape(str(value), quote=True)


def script_json(value: object) -> str:
    """JSON that may stand inside a `<script>` element: it can neither close it nor open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return re.sub("[<>&\u2028\u2029]", lambda match: escapes[match[0]], text)


def number(value: object, digits: int = 4, unit: str = "") -> str:
    """A value as the book writes it: whole numbers in full, others to at most `digits` significant digits.

    `50257` gives `50,257`; `4.26871` gives `4.269`; `6.4e9` with unit `B` gives `6.4 GB`; text stays.

    Raises:
        ValueError: `digits` outside 1 to 4.
    """
    if not 1 <= digits <= 4:
        raise ValueError(f"digits must be from 1 to 4, got {digits}")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return readable(int(value), unit)
    if isinstance(value, Real):
        return readable(float(f"{float(value):.{digits - 1}e}"), unit).replace("-", "−")
    return f"{value} {unit}".rstrip()


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    css: str = "lm-table",
) -> str:
    """An HTML table; numbers are formatted by `number`, and every cell is escaped."""
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<table class="{css}">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def show_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> None:
    """Show a table of results in a notebook or the page; outside one, print it in columns."""
    rows = [list(row) for row in rows]
    emit(table(headers, rows, caption=caption), f"{caption}\n{text_table(headers, rows)}".lstrip())


def _cell(cell: object) -> str:
    numeric = isinstance(cell, Real) and not isinstance(cell, bool)
    # Once for each number of each plot: in the page the style sheet says what class n is.
    align = (' class="n"' if building() else ' style="text-align:right"') if numeric else ""
    return f"<td{align}>{'' if cell is None else escape(number(cell))}</td>"


def text_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same table for a terminal: columns padded with spaces."""
    lines = [list(headers)] + [["" if cell is None else number(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(text: str) -> str:
    """HTML of the Markdown that tasks and hints are written in.

    A subset, so that it needs no parser: paragraphs, `-` lists, fenced code, `code`, **bold**, *emphasis*.
    """
    blocks: list[str] = []
    for index, part in enumerate(re.split(r"^```.*\n((?:.*\n)*?)```$", text.strip(), flags=re.MULTILINE)):
        if index % 2:
            blocks.append(f"<pre><code>{html.escape(part, quote=False)}</code></pre>")
        else:
            blocks += [_block(block) for block in re.split(r"\n\s*\n", part) if block.strip()]
    return "".join(blocks)


def _block(block: str) -> str:
    lines = block.strip().splitlines()
    if lines[0].startswith("- "):
        items = re.split(r"^- ", block.strip(), flags=re.MULTILINE)[1:]
        return "<ul>" + "".join(f"<li>{_inline(' '.join(item.split()))}</li>" for item in items) + "</ul>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _inline(text: str) -> str:
    pieces = re.split(r"(`[^`]+`)", text)
    return "".join(
        f"<code>{html.escape(piece[1:-1], quote=False)}</code>" if index % 2 else _emphasis(piece)
        for index, piece in enumerate(pieces)
    )


def _emphasis(text: str) -> str:
    safe = html.escape(text, quote=False)
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    return re.sub(r"\*(.+?)\*", r"<em>\1</em>", safe)
