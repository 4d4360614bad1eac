"""``show(name)``: a widget in a notebook, from the same declaration as in the page.

In a live kernel it is made of ipywidgets; while the book is built (``LMLIB_BOOK_BUILD=1``), or without
ipywidgets, it is the static form of the page.
"""

import html
import os
from collections import Counter
from pathlib import Path
from typing import Any

from lmlib.book import forms, render
from lmlib.book.declare import Choice, Input, Number, Output, Plot, Text, Toggle, Widget, get

_STYLE = Path(__file__).parents[2] / "book" / "_static" / "live" / "live.css"
_SHOWN: Counter[str] = Counter()


def show(name: str) -> None:
    """Display the widget of this name; KeyError lists the names there are."""
    from IPython.display import HTML, display

    widget = get(name)
    if os.environ.get("LMLIB_BOOK_BUILD") == "1":
        _SHOWN[name] += 1
        again = f"{name.replace('/', '-')}-{_SHOWN[name]}" if _SHOWN[name] > 1 else ""
        display(HTML(forms.form_html(widget, again)))
        return
    try:
        import ipywidgets  # noqa: F401 - only whether it is there
    except ImportError:
        display(HTML(style_html() + forms.form_html(widget)))
        return
    display(Live(widget).box)


def style_html() -> str:
    """The page's style sheet for a notebook; nothing if the package is installed without the book's files."""
    return f"<style>{_STYLE.read_text(encoding='utf-8')}</style>" if _STYLE.is_file() else ""


class Live:
    """A widget as ipywidgets: ``box`` is displayed; typing, choosing and dragging recompute in the kernel."""

    def __init__(self, widget: Widget) -> None:
        import ipywidgets

        self.widget = widget
        self.controls: dict[str, Any] = {}
        self.errors = {"": ipywidgets.HTML()}
        self._filling = False
        rows: list[Any] = []
        defaults = widget.defaults()
        for one in widget.inputs:
            self.controls[one.name] = _control(one, one.text(defaults[one.name]))
            self.errors[one.name] = ipywidgets.HTML()
            rows.append(self._row(one))
        self.rows = dict(zip(self.controls, rows, strict=True))
        self.answer = ipywidgets.HTML()
        self.plots = ipywidgets.Output()
        head = (
            f'<p class="lm-title">{render.inline(widget.title)}</p><p>{render.inline(widget.description)}</p>'
        )
        self.box = ipywidgets.VBox(
            [ipywidgets.HTML(style_html() + head), *rows, self.errors[""], self.answer, self.plots],
            layout={"max_width": "52rem"},
        )
        for name, control in self.controls.items():
            control.observe(lambda _, name=name: self._changed(name), "value")
        self.update()

    def _row(self, one: Input) -> Any:
        import ipywidgets

        control = self.controls[one.name]
        parts = [control]
        if isinstance(one, Number):
            if one.slider:
                parts.insert(0, _slider(one, control))
            parts.append(ipywidgets.HTML(html.escape(one.unit)))
        label = ipywidgets.HTML(render.inline(one.label), layout={"width": "14rem"})
        notes = ipywidgets.HTML(f'<span class="lm-help">{render.inline(one.help)}</span>')
        line = ipywidgets.HBox([label, *parts], layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([line, *([notes] if one.help else []), self.errors[one.name]])

    def raw(self) -> dict[str, object]:
        """What the controls stand at."""
        return {name: control.value for name, control in self.controls.items()}

    def _changed(self, name: str) -> None:
        if self._filling:
            return
        self._filling = True
        try:
            changed = self.widget.input(name)
            if isinstance(changed, Choice):
                for filled, value in changed.presets.get(self.controls[name].value, {}).items():
                    one = self.widget.input(filled)
                    self.controls[filled].value = value if isinstance(one, Toggle) else one.text(value)
            for choice in self.widget.inputs:
                if isinstance(choice, Choice) and name in choice.presets.get(
                    self.controls[choice.name].value, {}
                ):
                    free = [value for value, _ in choice.options if value not in choice.presets]
                    self.controls[choice.name].value = free[0] if free else self.controls[choice.name].value
        finally:
            self._filling = False
        self.update()

    def update(self) -> None:
        """Compute and show; a refused input says so beside its field and leaves the last answer standing."""
        raw = self.raw()
        outputs, _, errors = self.widget.outputs(raw)
        for name, place in self.errors.items():
            message = html.escape(errors.get(name, ""))
            place.value = f'<span class="lm-error" role="alert">{message}</span>' if message else ""
        shown = self.widget.visible({**self.widget.defaults(), **raw})
        for name, row in self.rows.items():
            row.layout.display = None if name in shown else "none"
        if errors:
            return
        plots, rest = _split(outputs)
        self.answer.value = f'<div class="lm-card lm-outputs">{render.outputs_html(rest)}</div>'
        self.plots.outputs = tuple(_plotly_output(plot) for plot in plots)


def _control(one: Input, text: str) -> Any:
    import ipywidgets

    match one:
        case Choice():
            options = [(label, value) for value, label in one.options]
            return ipywidgets.Dropdown(options=options, value=text, layout={"width": "auto"})
        case Toggle():
            return ipywidgets.Checkbox(value=text == "true", indent=False)
        case Text():
            return ipywidgets.Textarea(value=text, rows=one.rows, layout={"width": "36rem"})
        case Number():
            return ipywidgets.Text(value=text, continuous_update=False, layout={"width": "10rem"})


def _slider(one: Number, control: Any) -> Any:
    """A slider over the stops that fills the typed field; a typed value between stops leaves it where it
    is."""
    import ipywidgets

    texts = [one.text(stop) for stop in one.stops]
    slider = ipywidgets.SelectionSlider(options=texts, value=control.value, readout=False)
    slider.observe(lambda change: setattr(control, "value", change["new"]), "value")

    def follow(change: Any) -> None:
        if change["new"] in texts:
            slider.value = change["new"]

    control.observe(follow, "value")
    return slider


def _split(outputs: Any) -> tuple[list[Plot], list[Output]]:
    """Plots apart from the rest: ipywidgets' HTML runs no script, so they are displayed as plotly figures."""
    plots = [output for output in outputs if isinstance(output, Plot)]
    return plots, [output for output in outputs if not isinstance(output, Plot)]


def _plotly_output(plot: Plot) -> dict[str, Any]:
    figure = render.plotly_figure(plot)
    figure["layout"] |= {"title": {"text": plot.title}, "margin": {"t": 90}}
    data = {"application/vnd.plotly.v1+json": figure, "text/plain": plot.alt}
    return {"output_type": "display_data", "data": data, "metadata": {}}
