"""Plots: one plotly template for the whole book, alternative text required, the numbers always beside it.

In the built page a figure becomes `<lm-plot>` with its data as JSON, drawn by the self-hosted plotly.js, and
a folded table of its numbers; in a live kernel it is shown as plotly shows any figure.

Colours: Okabe and Ito's order of hues (jfly.uni-koeln.de/color), shifted in lightness until each has a
contrast of 3:1 or more to white and to the site's dark ground; a series also differs in dash and marker.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer

from lmlib.book.display import building, escape, script_json, table

TEMPLATE = "book"
COLOURS = ("#0b7fc4", "#d55e00", "#009271", "#c45f96", "#a37700", "#3a8fa8", "#8b73c9", "#808080")
INK = "#767676"  # readable on white and on the dark ground, until the page recolours with the theme
GRID = "rgba(128,128,128,0.28)"
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down")
_ROWS_SHOWN = 60


def figure(
    data: Sequence[Any],
    *,
    title: str,
    x: str,
    y: str,
    alt: str,
    x_log: bool = False,
    y_log: bool = False,
    height: int = 420,
    layout: Mapping[str, Any] | None = None,
) -> go.Figure:
    """A figure in the book's template.

    Jupyter shows the value of a cell's last line only: anywhere else in a cell call the figure's `show()`.

    Args:
        data: traces: plotly objects, or dictionaries such as `{"x": sizes, "y": ratios, "name": "English"}`;
            `type` is "scatter" where it is left out. Arrays, tensors and lists are taken.
        title: what is to be seen, in words.
        x, y: axis titles with their unit in parentheses, for example "Vocabulary size (tokens)".
        alt: what a reader who does not see the plot must know: its shape and its message, not its colours.
        x_log, y_log: logarithmic axes.
        height: in CSS pixels; the width is the reader's.
        layout: anything else of plotly's layout.

    Raises:
        ValueError: no traces; a title, axis title or alternative text that is empty; a value at or below
            zero on a logarithmic axis.
    """
    for argument, text in (("title", title), ("x", x), ("y", y), ("alt", alt)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"figure needs {argument}: a sentence or label, got {text!r}")
    if not isinstance(data, Sequence) or not data:
        raise ValueError(f"data must be a list of at least one trace, got {data!r}")
    made = go.Figure([_trace(trace) for trace in data])
    for axis, is_log in (("x", x_log), ("y", y_log)):
        if is_log:
            _refuse_nonpositive(made, axis)
    made.update_layout(
        template=TEMPLATE,
        title_text=title,
        height=height,
        xaxis={"title": {"text": x}, **_axis(x_log)},
        yaxis={"title": {"text": y}, **_axis(y_log)},
        showlegend=len(data) > 1,
        meta={"alt": alt},
    )
    made.update_layout(layout or {})
    return made


def _trace(trace: Any) -> Any:
    if not isinstance(trace, Mapping):
        return trace
    return {"type": "scatter", **{key: _listed(value) for key, value in trace.items()}}


def _listed(value: Any) -> Any:
    """Plain lists from arrays, tensors, ranges and tuples, through nested dictionaries."""
    if isinstance(value, Mapping):
        return {key: _listed(each) for key, each in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, range | tuple) else value


def _axis(is_log: bool) -> dict[str, Any]:
    if not is_log:
        return {}
    return {"type": "log", "exponentformat": "power", "minor": {"ticks": "outside", "dtick": "D1"}}


def _refuse_nonpositive(made: go.Figure, axis: str) -> None:
    for trace in made.data:
        values = _decoded(trace.to_plotly_json()).get(axis) or []
        bad = [value for value in values if isinstance(value, int | float) and value <= 0]
        if bad:
            name = trace.name or trace.type
            raise ValueError(f"trace {name!r}: {axis} holds {bad[0]}, which a logarithmic axis cannot show")


def _template() -> go.layout.Template:
    axis = {
        "automargin": True,
        "color": INK,
        "gridcolor": GRID,
        "linecolor": INK,
        "ticks": "outside",
        "ticklen": 4,
        "showline": True,
        "zeroline": False,
        "exponentformat": "SI",
        "title": {"standoff": 10},
    }
    styles = list(zip(COLOURS, _DASHES, _SYMBOLS, strict=True))
    series = [
        {"line": {"color": colour, "dash": dash, "width": 2.5}, "marker": {"symbol": symbol, "size": 7}}
        for colour, dash, symbol in styles
    ]
    return go.layout.Template(
        layout={
            "colorway": COLOURS,
            "colorscale": {"sequential": "Cividis", "diverging": "RdBu"},
            "font": {"family": "system-ui, sans-serif", "size": 14, "color": INK},
            "title": {"x": 0, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 16}},
            # Below the axis title, however tall the tick labels are.
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
            },
            "margin": {"l": 60, "r": 20, "t": 48, "b": 60},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hovermode": "closest",
            "xaxis": axis,
            "yaxis": axis,
        },
        data={"scatter": series, "heatmap": [{"colorscale": "Cividis", "colorbar": {"thickness": 14}}]},
    )


class BookRenderer(MimetypeRenderer):
    """Renders figures for the static page; refuses one without alternative text."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        """HTML of the figure, and its title as plain text."""
        return {"text/html": page_html(fig_dict), "text/plain": _title(fig_dict)}


def page_html(fig_dict: Mapping[str, Any]) -> str:
    """The figure as `<lm-plot>` with its JSON, followed by the folded table of its numbers.

    Raises:
        ValueError: the figure was not made by `figure` and has no alternative text.
    """
    layout = dict(fig_dict.get("layout", {}))
    alt = (layout.get("meta") or {}).get("alt")
    if not alt:
        raise ValueError(
            f"plot {_title(fig_dict)!r} has no alternative text: make it with lmlib.book.figure(..., alt=...)"
        )
    data = [_decoded(trace) for trace in fig_dict["data"]]
    if _decoded(layout.get("template")) == _packed_template():
        layout["template"] = TEMPLATE  # once for the site, see `template_script`
    drawn = [_rounded(_counted(trace)) for trace in data]
    spec = script_json({"data": drawn, "layout": _rounded(_decoded(layout))})
    height = int(layout.get("height", 420))
    return (
        f'<figure class="lm-figure"><lm-plot role="img" aria-label="{escape(alt)}" '
        f'style="display:block;min-height:{height}px"><script type="application/json">{spec}</script>'
        "<noscript>This plot is drawn by JavaScript; its numbers are in the table below.</noscript></lm-plot>"
        f'<details class="lm-plot-numbers"><summary>Numbers of this plot</summary><p>{escape(alt)}</p>'
        f"{_tables(data, layout)}</details></figure>"
    )


def template_script() -> str:
    """JavaScript that hands the page the template that its figures name instead of carrying it."""
    return f"globalThis.lmTemplate = {script_json(_packed_template())};\n"


def _packed_template() -> dict[str, Any]:
    packed: dict[str, Any] = _decoded(pio.templates[TEMPLATE].to_plotly_json())
    return packed


def _title(fig_dict: Mapping[str, Any]) -> str:
    title = fig_dict.get("layout", {}).get("title", {})
    return str(title.get("text", "untitled") if isinstance(title, Mapping) else title)


def _decoded(value: Any) -> Any:
    """Lists where plotly packed arrays as base64 (`bdata`), and plain Python scalars."""
    if isinstance(value, Mapping):
        if "bdata" in value:
            return _unpacked(value)
        return {key: _decoded(each) for key, each in value.items()}
    if hasattr(value, "tolist"):
        return _decoded(value.tolist())
    return [_decoded(each) for each in value] if isinstance(value, list | tuple) else value


def _unpacked(packed: Mapping[str, Any]) -> Any:
    array = np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"])
    if "shape" in packed:
        array = array.reshape([int(size) for size in str(packed["shape"]).split(",")])
    return array.tolist()


def _rounded(value: Any) -> Any:
    """Six significant digits are more than a plot shows; not-a-number and infinity become gaps."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _counted(trace: Mapping[str, Any]) -> Mapping[str, Any]:
    """Evenly spaced whole numbers along x as plotly's `x0` and `dx`, which say the same in less."""
    x = trace.get("x")
    if trace.get("type") != "scatter" or not isinstance(x, list) or len(x) < 3:
        return trace
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in x):
        return trace
    first, step = x[0], x[1] - x[0]
    if not step or x != [first + step * place for place in range(len(x))]:
        return trace
    return {**{key: value for key, value in trace.items() if key != "x"}, "x0": first, "dx": step}


def _tables(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> str:
    x, y = _axis_title(layout, "xaxis", "x"), _axis_title(layout, "yaxis", "y")
    curves = [trace for trace in data if trace.get("y") is not None and trace.get("z") is None]
    parts = [_grid_table(trace, x, y) for trace in data if trace.get("z") is not None]
    if len(curves) > 1 and all(_xs(trace) == _xs(curves[0]) for trace in curves):
        names = [str(trace.get("name", f"{y}, series {place}")) for place, trace in enumerate(curves, 1)]
        rows = list(zip(_xs(curves[0]), *(trace["y"] for trace in curves), strict=True))
        parts.append(_limited_table((x, *names), rows, f"{y} by {x}"))
    else:
        parts += [_curve_table(trace, x, y) for trace in curves]
    return "".join(parts)


def _xs(trace: Mapping[str, Any]) -> list[Any]:
    xs = trace.get("x")
    return list(range(len(trace["y"]))) if xs is None else list(xs)


def _curve_table(trace: Mapping[str, Any], x: str, y: str) -> str:
    headers, columns = [x, y], [_xs(trace), list(trace["y"])]
    for axis, label in (("error_x", x), ("error_y", y)):
        error = trace.get(axis) or {}
        if error.get("array") is not None:
            headers.append(f"± {label}")
            columns.append(list(error["array"]))
    if isinstance(trace.get("text"), list):
        headers.append("label")
        columns.append(trace["text"])
    rows = list(zip(*columns, strict=True))
    return _limited_table(headers, rows, str(trace.get("name") or f"{y} by {x}"))


def _grid_table(trace: Mapping[str, Any], x: str, y: str) -> str:
    grid = trace["z"]
    xs = trace.get("x") or list(range(len(grid[0])))
    ys = trace.get("y") or list(range(len(grid)))
    rows = [(label, *row) for label, row in zip(ys, grid, strict=True)]
    return _limited_table((f"{y} \\ {x}", *map(str, xs)), rows, str(trace.get("name") or "values"))


def _limited_table(headers: Sequence[str], rows: list[tuple[Any, ...]], caption: str) -> str:
    if len(rows) > _ROWS_SHOWN:
        caption += f" ({_ROWS_SHOWN} of {len(rows)} points, evenly spaced, first and last among them)"
        places = [round(i * (len(rows) - 1) / (_ROWS_SHOWN - 1)) for i in range(_ROWS_SHOWN)]
        rows = [rows[place] for place in places]
    return table(headers, rows, caption=caption)


def _axis_title(layout: Mapping[str, Any], axis: str, fallback: str) -> str:
    title = (layout.get(axis) or {}).get("title") or {}
    return str(title.get("text") or fallback) if isinstance(title, Mapping) else str(title)


pio.templates[TEMPLATE] = _template()
pio.renderers["book"] = BookRenderer()
if building():
    pio.renderers.default = "book"
