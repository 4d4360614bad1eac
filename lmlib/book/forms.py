"""The HTML front of a widget: a form with its answer filled in, which the page's script brings to life.

``form_html`` is called when the book is built, ``answer`` in the page by the worker; both give the same
markup for the same values. Standard library only.
"""

import html
import json
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from lmlib.book import render
from lmlib.book.declare import Choice, Input, Number, Text, Toggle, Widget, get
from lmlib.book.display import script_json
from lmlib.book.quantities import grouped


def answer(name: str, raw: str) -> str:
    """The worker's one question: JSON of the form's texts in, JSON of what to show out.

    Out come ``ok``, ``html``, ``summary``, ``errors`` by field, ``read`` (how a typed number was understood,
    where that differs from what was typed) and ``visible`` (names of the fields that are shown).
    """
    return json.dumps(_answer(get(name), json.loads(raw)), ensure_ascii=False)


def _answer(widget: Widget, raw: Mapping[str, object]) -> dict[str, Any]:
    outputs, values, errors = widget.outputs(raw)
    return {
        "ok": not errors,
        "html": render.outputs_html(outputs),
        "summary": "" if errors else render.summary(outputs),
        "errors": errors,
        "read": {
            one.name: understood
            for one in widget.inputs
            if isinstance(one, Number)
            and (understood := _understood(one, raw.get(one.name), values.get(one.name)))
        },
        "visible": sorted(widget.visible({**widget.defaults(), **raw})),
    }


def prepare(name: str, base: str) -> str:
    """Compute once, for the entries at first and for the widget's rehearsal, so that later answers are quick.

    Returns JSON of the fields that ``form_html`` left empty because they do not show at first: markup by
    name.
    """
    widget = get(name)
    texts = _default_texts(widget)
    state = _answer(widget, texts)
    if widget.rehearsal:
        _answer(widget, {**texts, **widget.rehearsal})
    hidden = [one for one in widget.inputs if one.name not in state["visible"]]
    return json.dumps({one.name: _inside(one, base, texts[one.name], state) for one in hidden})


def _default_texts(widget: Widget) -> dict[str, str]:
    defaults = widget.defaults()
    return {one.name: one.text(defaults[one.name]) for one in widget.inputs}


def _understood(one: Number, raw: object, value: int | float | None) -> str:
    """``= 7,000,000,000`` beside a field that says 7B; nothing where the field already says it plainly."""
    if value is None or not isinstance(raw, str):
        return ""
    plain = raw.strip().replace(",", "").replace("_", "")
    return (
        f"= {grouped(value)}"
        if plain != one.text(value) or (isinstance(value, int) and value >= 10**6)
        else ""
    )


def form_html(widget: Widget, element_id: str = "") -> str:
    """The widget as an ``<lm-widget>``: readable without JavaScript, alive with it.

    ``element_id`` tells two copies on one page apart; it is derived from the name if not given.
    """
    base = element_id or widget.name.replace("/", "-")
    texts = _default_texts(widget)
    state = _answer(widget, texts)
    if not state["ok"]:
        raise ValueError(f"widget {widget.name!r} refuses its own defaults: {state['errors']}")
    fields = "".join(
        _fieldset(group, "".join(_field(one, base, texts[one.name], state) for one in members))
        for group, members in groupby(widget.inputs, key=lambda one: one.group)
    )
    link = (
        f'<a class="lm-section" href="{html.escape(widget.section)}">How this is derived</a>'
        if widget.section
        else ""
    )
    return (
        f'<lm-widget id="{base}" data-name="{html.escape(widget.name)}">'
        f'<form class="lm-card" aria-labelledby="{base}-title" autocomplete="off" novalidate>'
        f'<div class="lm-head"><p class="lm-title" id="{base}-title">{render.inline(widget.title)}</p>'
        f'<div class="lm-tools"><button type="reset">Reset</button>'
        f'<button type="button" data-copy-link>Copy link</button></div></div>'
        f'<p class="lm-description">{render.inline(widget.description)} {link}</p>'
        f'<div class="lm-inputs">{fields}</div>'
        f'<p class="lm-error lm-overall" id="{base}--error" role="alert" hidden></p>'
        f'<div class="lm-outputs">{state["html"]}</div>'
        f'<output class="lm-summary" aria-live="polite"></output>'
        f'<p class="lm-status">{STATIC_STATUS}</p>'
        f'<script type="application/json">{script_json(_spec(widget, texts))}</script>'
        "</form></lm-widget>"
    )


STATIC_STATUS = (
    "Shown for the values above. With JavaScript, and the book served over HTTP, the answer follows them."
)


def _spec(widget: Widget, texts: Mapping[str, str]) -> dict[str, Any]:
    """What the script must know: defaults, presets and stops, all as texts for the form."""
    presets = {
        choice.name: {
            option: {name: widget.input(name).text(value) for name, value in filled.items()}
            for option, filled in choice.presets.items()
        }
        for choice in widget.inputs
        if isinstance(choice, Choice) and choice.presets
    }
    stops = {
        one.name: [one.text(stop) for stop in one.stops] for one in widget.inputs if isinstance(one, Number)
    }
    return {
        "defaults": dict(texts),
        "presets": presets,
        "stops": {name: texts_ for name, texts_ in stops.items() if texts_},
    }


def _fieldset(group: str, fields: str) -> str:
    return f"<fieldset><legend>{html.escape(group)}</legend>{fields}</fieldset>" if group else fields


def _field(one: Input, base: str, text: str, state: Mapping[str, Any]) -> str:
    """One field; empty while it does not show, because without Python in the page it cannot come to show."""
    shows = one.name in state["visible"]
    wide = " lm-wide" if isinstance(one, Text) else ""
    inside = _inside(one, base, text, state) if shows else ""
    hidden = "" if shows else " hidden"
    return f'<div class="lm-field{wide}" data-field="{one.name}"{hidden}>{inside}</div>'


def _inside(one: Input, base: str, text: str, state: Mapping[str, Any]) -> str:
    """Label, control, unit, help and a place for the error, tied together for screen readers."""
    key = f"{base}-{one.name}"
    described = (
        f'aria-describedby="{key}-help {key}-error"' if one.help else f'aria-describedby="{key}-error"'
    )
    attributes = f'id="{key}" name="{one.name}" {described} aria-errormessage="{key}-error"'
    help_ = f'<p class="lm-help" id="{key}-help">{render.inline(one.help)}</p>' if one.help else ""
    return (
        f'<label for="{key}">{render.inline(one.label)}</label>'
        f'<div class="lm-control">{_control(one, attributes, text, state)}</div>'
        f'{help_}<p class="lm-error" id="{key}-error" role="alert" hidden></p>'
    )


def _control(one: Input, attributes: str, text: str, state: Mapping[str, Any]) -> str:
    match one:
        case Choice():
            options = "".join(
                f'<option value="{html.escape(value)}"{" selected" if value == text else ""}>'
                f"{html.escape(label)}</option>"
                for value, label in one.options
            )
            return f"<select {attributes}>{options}</select>"
        case Text():
            # The browser drops one newline behind <textarea>; so one is put there.
            return (
                f'<textarea {attributes} rows="{one.rows}" spellcheck="false" autocapitalize="off">'
                f"\n{html.escape(text)}</textarea>"
            )
        case Toggle():
            return f'<input type="checkbox" {attributes}{" checked" if text == "true" else ""}>'
        case Number():
            return _number_control(one, attributes, text, state["read"].get(one.name, ""))


def _number_control(one: Number, attributes: str, text: str, understood: str) -> str:
    unit = f'<span class="lm-unit">{html.escape(one.unit)}</span>' if one.unit else ""
    typed = (
        f'<input type="text" inputmode="decimal" spellcheck="false" {attributes} '
        f'value="{html.escape(text)}">{unit}'
        f'<span class="lm-read" aria-hidden="true">{understood}</span>'
    )
    if not one.slider:
        return typed
    texts = [one.text(stop) for stop in one.stops]
    label = html.escape(one.label)
    return (
        f'<span class="lm-slider"><button type="button" data-step="-1" aria-label="Less: {label}">−</button>'
        f'<input type="range" min="0" max="{len(texts) - 1}" '
        f'value="{texts.index(text) if text in texts else 0}" '
        f'aria-label="{label}" aria-valuetext="{html.escape(text)} {html.escape(one.unit)}">'
        f'<button type="button" data-step="1" aria-label="More: {label}">+</button></span>{typed}'
    )
