"""One declarative description of a widget: what goes in, how the answer is computed, what comes out.

The same declaration drives the form of the rendered page (``lmlib.book.forms``, computing in the page with
this very source) and ipywidgets in a notebook (``lmlib.book.notebook``). Standard library only.

A widget in full::

    register(
        Widget(
            name="tokenization/vocabulary-size",
            title="What does a larger vocabulary cost?",
            description="Bytes per token against embedding parameters.",
            inputs=(Number("vocab_size", "Vocabulary size", 50_257, 257, 10**7, unit="tokens"),),
            compute=lambda vocab_size: [Value("Embedding", vocab_size * 768, "parameters")],
        )
    )

Values travel as text, both ways: an int of Python has no largest value, a number of JavaScript does (2^53).
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

from lmlib.book.quantities import Exact, exact_text, grouped, parse_number

# --------------------------------------------------------------------------------------------------- inputs


class InputError(ValueError):
    """An input that ``compute`` refuses: ``field`` names the input ("" for all together), ``message`` says
    why."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


@dataclass(frozen=True)
class _Input:
    name: str
    label: str


@dataclass(frozen=True)
class Number(_Input):
    """A number that is typed, and with ``slider`` also dragged or stepped through ``stops``.

    ``compute`` gets an ``int``, or a ``float`` if not ``integer``. ``step`` is the distance between the stops
    of a linear slider; on a log scale the stops are 1, 1.5, 2, 3, 5, 7 times powers of ten. ``stops``
    overrides both. ``visible_when=("model", ("custom",))`` shows the field only while input *model* is
    *custom*; a field that is not shown counts with its default. ``group`` is the heading under which the
    field stands.
    """

    default: Exact
    minimum: Exact
    maximum: Exact
    unit: str = ""
    help: str = ""
    integer: bool = True
    step: Exact | None = None
    scale: str = "linear"
    slider: bool = False
    stops: tuple[Exact, ...] = ()
    group: str = ""
    visible_when: tuple[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if self.scale not in ("linear", "log"):
            raise ValueError(f"Number {self.name!r}: scale={self.scale!r} is neither 'linear' nor 'log'")
        if not self.minimum <= self.default <= self.maximum:
            raise ValueError(
                f"Number {self.name!r}: default={self.default} is outside {self.minimum} to {self.maximum}"
            )
        if self.slider and self.scale == "log" and self.minimum <= 0:
            raise ValueError(f"Number {self.name!r}: minimum={self.minimum}, a log scale starts above 0")
        if self.slider and not self.stops:
            object.__setattr__(self, "stops", tuple(self._derived_stops()))

    def allowed(self) -> str:
        """The range for the reader: ``from 1 to 10,000``."""
        return f"from {grouped(self.minimum)} to {grouped(self.maximum)}"

    def read(self, raw: object) -> int | float:
        """The value of what was typed; InputError names the range where it is refused."""
        try:
            exact = parse_number(raw if isinstance(raw, str) else exact_text(_number(raw)), self.unit)
        except ValueError as refused:
            raise InputError(self.name, _sentence(f"{refused}. Allowed is {self.allowed()}")) from None
        if self.integer and exact.denominator != 1:
            raise InputError(self.name, f"A whole number is needed here, {self.allowed()}.")
        if not _as_typed(self.minimum) <= exact <= _as_typed(self.maximum):
            raise InputError(self.name, f"{grouped(exact)} is not allowed. Allowed is {self.allowed()}.")
        return int(exact) if self.integer else float(exact)

    def text(self, value: Any) -> str:
        """The value as it stands in the field: exact, and short where that reads better."""
        return (
            f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else exact_text(value)
        )

    def _derived_stops(self) -> Iterable[Exact]:
        if self.scale == "log":
            decades = range(-12, 40)
            marks = (
                Fraction(mark, 10) * Fraction(10) ** ten
                for ten in decades
                for mark in (10, 15, 20, 30, 50, 70)
            )
            inner = {mark for mark in marks if self.minimum <= mark <= self.maximum}
        else:
            step = Fraction(self.step or Fraction(self.maximum - self.minimum) / 100)
            if self.integer:
                step = Fraction(max(1, round(step)))
            count = int((Fraction(self.maximum) - Fraction(self.minimum)) / step)
            inner = {Fraction(self.minimum) + index * step for index in range(count + 1)}
        ends = {Fraction(self.minimum), Fraction(self.default), Fraction(self.maximum)}
        for stop in sorted(inner | ends):
            if not self.integer:
                yield float(stop)
            elif stop.denominator == 1:
                yield int(stop)


@dataclass(frozen=True)
class Choice(_Input):
    """One of a few options, each ``(value, label)``.

    ``presets`` maps an option's value to values of other inputs: choosing the option fills them in, and
    changing one of them by hand moves the choice to the first option without a preset, if there is one
    ("custom").
    """

    options: tuple[tuple[str, str], ...]
    default: str
    help: str = ""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    group: str = ""
    visible_when: tuple[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        values = [value for value, _ in self.options]
        unknown = {self.default, *self.presets} - set(values)
        if unknown:
            raise ValueError(f"Choice {self.name!r}: {sorted(unknown)} are not among its options {values}")

    def read(self, raw: object) -> str:
        """The option's value, or InputError with the labels that can be chosen."""
        if raw not in [value for value, _ in self.options]:
            labels = ", ".join(label for _, label in self.options[:12])
            more = f" and {len(self.options) - 12} more" if len(self.options) > 12 else ""
            raise InputError(self.name, f"{str(raw)[:40]!r} is not one of {labels}{more}.")
        return str(raw)

    def text(self, value: Any) -> str:
        """The value as the form carries it."""
        return str(value)


@dataclass(frozen=True)
class Text(_Input):
    """Text of the reader's own, at most ``max_length`` characters, in a field of ``rows`` lines."""

    default: str
    help: str = ""
    max_length: int = 2000
    rows: int = 4
    group: str = ""
    visible_when: tuple[str, tuple[str, ...]] | None = None

    def read(self, raw: object) -> str:
        """The text, or InputError if it is too long or has half of a surrogate pair in it."""
        text = str(raw).replace("\r\n", "\n")  # a browser may submit either
        if len(text) > self.max_length:
            raise InputError(
                self.name, f"{len(text):,} characters are too many; at most {self.max_length:,} are allowed."
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(self.name, "Half of a surrogate pair is not a character; it has no UTF-8 bytes.")
        return text

    def text(self, value: Any) -> str:
        """The value as the form carries it."""
        return str(value)


@dataclass(frozen=True)
class Toggle(_Input):
    """Yes or no."""

    default: bool
    help: str = ""
    group: str = ""
    visible_when: tuple[str, tuple[str, ...]] | None = None

    def read(self, raw: object) -> bool:
        """True or False, from a bool or from the form's ``"true"`` and ``"false"``."""
        if raw in (True, "true"):
            return True
        if raw in (False, "false"):
            return False
        raise InputError(self.name, f"{str(raw)[:40]!r} is neither true nor false.")

    def text(self, value: Any) -> str:
        """The value as the form carries it."""
        return "true" if value else "false"


Input = Number | Choice | Text | Toggle


def _as_typed(bound: Exact) -> Exact:
    """A bound as it reads: the float 0.001 is a little more than 1/1000, which may be typed."""
    return Fraction(repr(bound)) if isinstance(bound, float) else bound


def _number(raw: object) -> Exact:
    if isinstance(raw, bool) or not isinstance(raw, int | float | Fraction):
        raise ValueError(f"{str(raw)[:40]!r} is not a number")
    return raw


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


# -------------------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True)
class Value:
    """One number or word of the answer. ``text`` overrides how the value is shown; ``headline`` shows it
    large."""

    label: str
    value: Exact | str
    unit: str = ""
    text: str = ""
    help: str = ""
    headline: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words. Numbers stay numbers: they are shown grouped and copied with all their
    digits."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Exact | str]]


@dataclass(frozen=True)
class Plot:
    """A figure as plain plotly JSON. ``alt`` says what is to be seen; the numbers also stand in another
    output."""

    title: str
    alt: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tokens:
    """A text cut into coloured pieces: ``(text, id, title)`` each, the title shown on hover and to screen
    readers."""

    caption: str
    pieces: Sequence[tuple[str, int, str]]


class TermLike(Protocol):
    """One term of a ledger; ``lmlib.resources.ledger.Term`` is one."""

    @property
    def name(self) -> str: ...
    @property
    def formula(self) -> str: ...
    @property
    def numbers(self) -> Any: ...
    @property
    def value(self) -> Exact: ...
    @property
    def unit(self) -> str: ...
    @property
    def source(self) -> str: ...


@dataclass(frozen=True)
class Term:
    """A term that explains itself: the formula, the numbers put in, where it comes from, the section deriving
    it."""

    name: str
    formula: str
    numbers: Mapping[str, Exact | str] | str
    value: Exact
    unit: str
    source: str = ""
    section: str = ""


@dataclass(frozen=True)
class LedgerTable:
    """Terms that each open to formula, numbers, source and section. ``total`` names their sum, of which each
    shows its share; without it they explain one another and are not added up."""

    caption: str
    terms: Sequence[TermLike]
    total: str = ""


@dataclass(frozen=True)
class Note:
    """A sentence beside the answer; ``kind`` is info, good, warning or bad."""

    text: str
    kind: str = "info"


@dataclass(frozen=True)
class Group:
    """Outputs under one heading; ``folded`` hides them until the heading is opened."""

    title: str
    outputs: "Sequence[Output]"
    folded: bool = False


Output = Value | Table | Plot | Tokens | LedgerTable | Note | Group


def as_json(output: Output) -> dict[str, Any]:
    """The output as JSON-able data; numbers outside of plots become text with all their digits."""
    kind = type(output).__name__.lower()
    match output:
        case Value(label, value, unit, text, help_, headline):
            return {"kind": kind, "label": label, "value": _cell(value), "unit": unit, "text": text} | (
                {"help": help_, "headline": headline}
            )
        case Table(caption, columns, rows):
            cells = [[_cell(cell) for cell in row] for row in rows]
            return {"kind": kind, "caption": caption, "columns": list(columns), "rows": cells}
        case Plot(title, alt, data, layout):
            return {"kind": kind, "title": title, "alt": alt, "data": list(data), "layout": dict(layout)}
        case Tokens(caption, pieces):
            return {"kind": kind, "caption": caption, "pieces": [list(piece) for piece in pieces]}
        case LedgerTable(caption, terms, total):
            return {
                "kind": kind,
                "caption": caption,
                "total": total,
                "terms": [_term(term) for term in terms],
            }
        case Note(text, note_kind):
            return {"kind": kind, "text": text, "note": note_kind}
        case Group(title, outputs, folded):
            inner = [as_json(one) for one in outputs]
            return {"kind": kind, "title": title, "outputs": inner, "folded": folded}
    raise TypeError(f"a widget's outputs are {Output}, not {type(output).__name__}")


def _cell(value: Exact | str) -> str:
    return value if isinstance(value, str) else exact_text(value)


def _term(term: TermLike) -> dict[str, Any]:
    numbers = term.numbers
    if isinstance(numbers, Mapping):
        numbers = {str(name): _cell(value) for name, value in numbers.items()}
    return {
        "name": term.name,
        "formula": term.formula,
        "numbers": numbers if isinstance(numbers, dict) else str(numbers),
        "value": exact_text(term.value),
        "unit": term.unit,
        "source": term.source,
        "section": getattr(term, "section", ""),
    }


# -------------------------------------------------------------------------------------------------- widgets


@dataclass(frozen=True)
class Widget:
    """A calculator or demonstration; ``name`` is ``<chapter's word>/<what>``.

    ``compute(**values)`` gets one value for each input and returns outputs; it raises InputError for a
    combination that it refuses. ``section`` links to where the book derives the answer. ``modules`` names
    modules that ``compute`` imports only when called, so that they go into the page too. ``rehearsal`` is an
    entry, by input, that the page works out once before it says that it is ready: the first time through a
    way of computing takes longest, and no reader should wait for it.
    """

    name: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    compute: Callable[..., Sequence[Output]]
    section: str = ""
    modules: tuple[str, ...] = ()
    rehearsal: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [one.name for one in self.inputs]
        self._check_preset("rehearsal", "", self.rehearsal)
        if len(set(names)) < len(names):
            raise ValueError(f"widget {self.name!r}: two inputs have one name in {names}")
        for one in self.inputs:
            if one.visible_when and one.visible_when[0] not in names:
                raise ValueError(
                    f"widget {self.name!r}: {one.name!r} waits for {one.visible_when[0]!r}, not an input"
                )
        for choice in self.inputs:
            if isinstance(choice, Choice):
                for option, filled in choice.presets.items():
                    self._check_preset(choice.name, option, filled)

    def _check_preset(self, choice: str, option: str, filled: Mapping[str, Any]) -> None:
        for name, value in filled.items():
            try:
                self.input(name).read(value)
            except (InputError, KeyError) as refused:
                raise ValueError(
                    f"widget {self.name!r}: preset {choice}={option!r}: {name}: {refused}"
                ) from None

    def input(self, name: str) -> Input:
        """The input of this name; KeyError if there is none."""
        for one in self.inputs:
            if one.name == name:
                return one
        raise KeyError(
            f"widget {self.name!r} has no input {name!r}, only {[one.name for one in self.inputs]}"
        )

    def defaults(self) -> dict[str, Any]:
        """What every input stands at before the reader touches it: its default, or the default preset's
        value."""
        values = {one.name: one.default for one in self.inputs}
        for choice in self.inputs:
            if isinstance(choice, Choice):
                values |= choice.presets.get(choice.default, {})
        return values

    def visible(self, raw: Mapping[str, object]) -> set[str]:
        """Names of the inputs that are shown while the form stands at ``raw`` (as text or as values)."""
        shown: set[str] = set()
        for one in self.inputs:
            if one.visible_when is None:
                shown.add(one.name)
            else:
                name, values = one.visible_when
                now = raw.get(name)
                text = self.input(name).text(now) if isinstance(now, bool) else str(now)
                if name in shown and text in values:
                    shown.add(one.name)
        return shown

    def read(self, raw: Mapping[str, object]) -> tuple[dict[str, Any], dict[str, str]]:
        """Values for ``compute`` and, by field, why an entry is refused. What ``raw`` leaves out is at its
        default."""
        defaults = self.defaults()
        shown = self.visible({**defaults, **raw})
        values: dict[str, Any] = {}
        errors = {str(name): f"there is no input {name!r}" for name in raw if name not in defaults}
        for one in self.inputs:
            given = raw.get(one.name, defaults[one.name]) if one.name in shown else defaults[one.name]
            try:
                values[one.name] = one.read(given)
            except InputError as refused:
                errors[refused.field] = refused.message
        return values, errors

    def outputs(self, raw: Mapping[str, object]) -> tuple[Sequence[Output], dict[str, Any], dict[str, str]]:
        """Outputs, the values they were computed from, and errors by field; never raises."""
        values, errors = self.read(raw)
        if errors:
            return [], values, errors
        try:
            return self.compute(**values), values, {}
        except InputError as refused:
            shown = self.visible({**self.defaults(), **raw})
            return [], values, {refused.field if refused.field in shown else "": refused.message}
        except Exception as fault:  # the page must go on whatever a formula does with absurd numbers
            return [], values, {"": f"This could not be computed ({type(fault).__name__}: {fault})."}

    def run(self, raw: Mapping[str, object]) -> dict[str, Any]:
        """``{"ok": True, "outputs": [...]}`` or ``{"ok": False, "errors": {field: message}}``, ready for
        JSON."""
        outputs, _, errors = self.outputs(raw)
        if errors:
            return {"ok": False, "errors": errors}
        return {"ok": True, "outputs": [as_json(output) for output in outputs]}


_WIDGETS: dict[str, Widget] = {}


def register(widget: Widget) -> Widget:
    """Make a widget known by its name; a later one of the same name replaces it (a cell that is run
    again)."""
    word, slash, what = widget.name.partition("/")
    if not (word and slash and what):
        raise ValueError(f"a widget's name is '<word>/<what>', not {widget.name!r}")
    _WIDGETS[widget.name] = widget
    return widget


def registered() -> list[Widget]:
    """All widgets declared so far, by name."""
    return [_WIDGETS[name] for name in sorted(_WIDGETS)]


def get(name: str) -> Widget:
    """The widget of this name, from ``lmlib.book.widgets.<word>``; KeyError lists the names there are."""
    if name not in _WIDGETS:
        module = f"lmlib.book.widgets.{name.partition('/')[0]}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as missing:
            if missing.name != module:
                raise
    if name not in _WIDGETS:
        widgets = importlib.import_module("lmlib.book.widgets")
        for found in pkgutil.iter_modules(widgets.__path__):
            importlib.import_module(f"{widgets.__name__}.{found.name}")
        raise KeyError(f"no widget is called {name!r}; there are {sorted(_WIDGETS)}")
    return _WIDGETS[name]
