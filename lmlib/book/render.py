"""Outputs of a widget as HTML: one implementation for the built page, the running page and the notebook.

Standard library only: it also runs in the page.
"""

import html
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import groupby
from typing import Any

from lmlib.book.declare import Group, LedgerTable, Note, Output, Plot, Table, TermLike, Tokens, Value
from lmlib.book.display import script_json
from lmlib.book.quantities import Exact, exact_text, grouped, readable

_MOST_PIECES = 4000  # coloured pieces that a phone still lays out within the time an answer may take


def outputs_html(outputs: Sequence[Output]) -> str:
    """All outputs in order; neighbouring values share one list."""
    runs = [(kind, list(run)) for kind, run in groupby(outputs, key=type)]
    return "".join(_values(run) if kind is Value else "".join(map(_BLOCKS[kind], run)) for kind, run in runs)


def summary(outputs: Sequence[Output]) -> str:
    """The answer in one line of text, for those who hear the page: the headlines, or else the first value or
    note."""
    flat = list(_flat(outputs))
    values = [output for output in flat if isinstance(output, Value)]
    chosen = [value for value in values if value.headline] or values[:1]
    if chosen:
        return "; ".join(f"{value.label}: {shown(value)}" for value in chosen)
    return next((output.text for output in flat if isinstance(output, Note)), "Updated.")


def shown(value: Value) -> str:
    """How a value reads: its own text, or the number with its unit."""
    if value.text:
        return value.text
    if isinstance(value.value, str):
        return f"{value.value} {value.unit}".rstrip()
    return readable(value.value, value.unit)


def inline(text: str) -> str:
    """Escaped text in which `` `code` `` is set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _flat(outputs: Sequence[Output]) -> list[Output]:
    flat: list[Output] = []
    for output in outputs:
        flat += _flat(output.outputs) if isinstance(output, Group) else [output]
    return flat


def _values(values: Sequence[Any]) -> str:
    return '<dl class="lm-values">' + "".join(map(_value, values)) + "</dl>"


def _value(value: Value) -> str:
    text, exact = shown(value), ""
    if not isinstance(value.value, str):
        full = f"{grouped(value.value)} {value.unit}".rstrip()
        exact = f' title="{html.escape(full)}"' if full != text else ""
    help_ = f'<dd class="lm-help">{inline(value.help)}</dd>' if value.help else ""
    kind = ' class="lm-headline"' if value.headline else ""
    return f"<div{kind}><dt>{inline(value.label)}</dt><dd{exact}>{html.escape(text)}</dd>{help_}</div>"


def _table(table: Table) -> str:
    numeric = [
        bool(table.rows) and all(not isinstance(row[column], str) for row in table.rows)
        for column in range(len(table.columns))
    ]
    mark = [' class="lm-number"' if flag else "" for flag in numeric]
    head = "".join(
        f'<th scope="col"{kind}>{inline(name)}</th>' for name, kind in zip(table.columns, mark, strict=True)
    )
    body = []
    for row in table.rows:
        cells = [
            f"<td{kind}>{inline(cell) if isinstance(cell, str) else _data(cell, grouped(cell))}</td>"
            for cell, kind in zip(row, mark, strict=True)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<figure class="lm-table">{_caption(table.caption)}'
        f'<div class="lm-scroll" tabindex="0" role="region" aria-label="{html.escape(table.caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></figure>"
    )


def _ledger(ledger: LedgerTable) -> str:
    total = sum((Fraction(term.value) for term in ledger.terms), Fraction(0))
    closing = ""
    if ledger.total and ledger.terms:
        unit = ledger.terms[0].unit
        whole = float(total) if any(isinstance(term.value, float) for term in ledger.terms) else total
        closing = (
            f'<div class="lm-term lm-total"><span class="lm-name">{inline(ledger.total)}</span><span></span>'
            f'<span class="lm-amount">{_data(whole, readable(total, unit), unit)}</span></div>'
        )
    return (
        f'<figure class="lm-ledger">{_caption(ledger.caption)}'
        f"{''.join(_term(term, total if ledger.total else None) for term in ledger.terms)}{closing}</figure>"
    )


def _term(term: TermLike, total: Fraction | None) -> str:
    """One term; its share of ``total``, which terms that are not added up do not have."""
    share = "<span></span>"
    if total is not None:
        percent = float(100 * Fraction(term.value) / total) if total > 0 else 0.0
        share = f'<span class="lm-share" style="--share:{max(percent, 0):.1f}%">{percent:.1f} %</span>'
    section = getattr(term, "section", "")
    link = f' <a href="{html.escape(section)}">Where this comes from</a>' if section else ""
    source = f"<dt>Source</dt><dd data-is=source>{inline(term.source)}</dd>" if term.source else ""
    return (
        f'<details class="lm-term"><summary><span class="lm-name">{inline(term.name)}</span>'
        f"{share}"
        f'<span class="lm-amount">{html.escape(readable(term.value, term.unit))}</span></summary>'
        f"<dl><dt>Formula</dt><dd data-is=formula><code>{html.escape(term.formula)}</code></dd>"
        "<dt>Numbers put in</dt>"
        f"<dd data-is=numbers><code>{html.escape(_numbers_text(term.numbers))}</code></dd>"
        f"<dt>Exactly</dt><dd>{_data(term.value, grouped(term.value), term.unit)} "
        f"{html.escape(term.unit)}</dd>"
        f"{source}</dl>{link}</details>"
    )


def _data(value: Exact, text: str, unit: str = "") -> str:
    """A number as it reads, with all its digits for whoever copies the table."""
    of = f' data-unit="{html.escape(unit)}"' if unit else ""
    return f'<data value="{exact_text(value)}"{of}>{html.escape(text)}</data>'


def _numbers_text(numbers: Any) -> str:
    if not isinstance(numbers, Mapping):
        return str(numbers)
    return ", ".join(f"{name} = {_plain(value)}" for name, value in numbers.items())


def _plain(value: Exact | str) -> str:
    return value if isinstance(value, str) else grouped(value)


_COPIES = "".join(
    f'<button type="button" data-copy="{kind}">{kind}</button>' for kind in ("Markdown", "CSV", "JSON")
)


def _caption(caption: str) -> str:
    """Caption with buttons that copy the table; the page's script reads it from the rows themselves."""
    return (
        f'<figcaption><span>{inline(caption)}</span><span class="lm-copy">Copy {_COPIES}</span></figcaption>'
    )


def _plot(plot: Plot) -> str:
    figure = script_json(plotly_figure(plot))
    return (
        f'<figure class="lm-drawn"><figcaption>{inline(plot.title)}</figcaption>'
        f'<lm-plot role="img" aria-label="{html.escape(plot.alt)}">'
        f'<script type="application/json">{figure}</script></lm-plot></figure>'
    )


def plotly_figure(plot: Plot) -> dict[str, Any]:
    """The plot as plotly JSON, in the book's style; its title is the caption's."""
    styled = [_styled(trace, index) for index, trace in enumerate(plot.data)]
    return {"data": styled, "layout": {**_LAYOUT, **plot.layout}}


def _styled(trace: Mapping[str, Any], index: int) -> dict[str, Any]:
    if trace.get("type", "scatter") != "scatter":
        return dict(trace)
    colour, dash = _COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)]
    line, marker = {"color": colour, "dash": dash, "width": 2.5}, {"color": colour, "size": 7}
    return {"line": line, "marker": marker, **trace}


# The style of lmlib.book.plots, which needs numpy and so cannot come into the page; a test compares the two.
_COLOURS = ("#0b7fc4", "#d55e00", "#009271", "#c45f96", "#a37700", "#3a8fa8", "#8b73c9", "#808080")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")
_LAYOUT: Mapping[str, Any] = {
    "colorway": _COLOURS,
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
    "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
    "hovermode": "closest",
    "height": 340,
}


def _tokens(tokens: Tokens) -> str:
    pieces = []
    for text, number, title in tokens.pieces[:_MOST_PIECES]:
        pieces.append(
            f'<li class="lm-c{number % 8}" title="{html.escape(title)}"><span>{_visible(text)}</span>'
            f"<small>{number}</small></li>"
        )
    left = len(tokens.pieces) - _MOST_PIECES
    more = f'<p class="lm-note">and {left:,} more that are not drawn</p>' if left > 0 else ""
    return (
        f'<figure class="lm-tokens"><figcaption>{inline(tokens.caption)}</figcaption>'
        f'<ol class="lm-pieces">{"".join(pieces)}</ol>{more}</figure>'
    )


_INVISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}


def _visible(text: str) -> str:
    """Spaces and line ends drawn as marks that can be styled: a token's borders must be seen."""
    shown_text = "".join(
        f"<i>{_INVISIBLE[character]}</i>" if character in _INVISIBLE else html.escape(character)
        for character in text
    )
    return shown_text + ("<br>" if text.endswith("\n") else "")


def _note(note: Note) -> str:
    return f'<p class="lm-note lm-{html.escape(note.kind)}">{inline(note.text)}</p>'


def _group(group: Group) -> str:
    opened = "" if group.folded else " open"
    return (
        f'<details class="lm-group"{opened}><summary>{inline(group.title)}</summary>'
        f"{outputs_html(group.outputs)}</details>"
    )


_BLOCKS: Mapping[type, Any] = {
    Table: _table,
    LedgerTable: _ledger,
    Plot: _plot,
    Tokens: _tokens,
    Note: _note,
    Group: _group,
}
