"""Ledgers: numbers that explain themselves.

- A ``Term`` is one number with its formula, the numbers put into it, its unit and its source.
- ``derive`` computes a term from its formula, so formula, numbers and value cannot disagree.
- A ``Ledger`` is an ordered tree of terms of one unit. Integers stay integers, and a quotient of
  integers stays an exact fraction.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from math import ceil, floor
from typing import Any

from lmlib.resources.sources import DEFINITION
from lmlib.resources.units import ArgumentError, Number, check_unit, exact, format_quantity, magnitude

_FUNCTIONS: dict[str, Callable[..., Number]] = {"min": min, "max": max, "ceil": ceil, "floor": floor}
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPLIT = re.compile(r"([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Term:
    """One explained number: ``formula`` is symbolic, ``numbers`` is the formula with values put in."""

    name: str
    formula: str
    numbers: str
    value: Number
    unit: str
    source: str = ""

    def __post_init__(self) -> None:
        check_unit(self.unit)

    def scale(self, factor: Number, symbol: str = "") -> "Term":
        """This term times ``factor``, which the formula calls ``symbol``."""
        number = _inserted(factor)
        return replace(
            self,
            formula=f"{symbol or number} × {_parenthesised(self.formula)}",
            numbers=f"{number} × {_parenthesised(self.numbers)}",
            value=_settle(self.value * factor),
        )

    def divide(self, divisor: Number, symbol: str = "", unit: str = "") -> "Term":
        """This term over ``divisor``, exactly; ``unit`` replaces the unit if it changes."""
        if divisor == 0:
            raise ArgumentError("divisor", "must not be 0")
        number = _inserted(divisor)
        return replace(
            self,
            formula=f"{_parenthesised(self.formula)} / {symbol or number}",
            numbers=f"{_parenthesised(self.numbers)} / {number}",
            value=_quotient(self.value, divisor),
            unit=unit or self.unit,
        )

    def to_json(self) -> dict[str, Any]:
        """The term as JSON-able values; ``exact`` keeps the digits that a float would lose."""
        return {
            "name": self.name,
            "formula": self.formula,
            "numbers": self.numbers,
            "value": _plain(self.value),
            "exact": exact(self.value),
            "text": format_quantity(self.value, self.unit),
            "unit": self.unit,
            "source": self.source,
        }


def derive(name: str, formula: str, unit: str, source: str, **symbols: Number) -> Term:
    """Compute a term from its formula.

    Args:
        formula: arithmetic on the names of ``symbols`` with ``+ - * / // **``, parentheses and
            ``min``, ``max``, ``ceil``, ``floor``.
        source: where the formula comes from, or the figures in it.

    Raises:
        ArgumentError: if the formula is not such an expression, or uses a name without a value.
    """
    compiled = _compiled(formula)
    value = compiled.value(symbols)
    return Term(name, compiled.shown, compiled.put_in(symbols), value, unit, source)


def evaluate(formula: str, **symbols: Number) -> Number:
    """The value of a formula, in the notation of ``derive`` or as a term displays it.

    A displayed ``numbers`` string evaluates to its term's value (to the digits shown, for floats).
    """
    return _compiled(formula).value(symbols)


@dataclass(frozen=True)
class _Formula:
    """A formula made ready once: a page computes the same few hundred again and again.

    Args:
        text: as it was written. shown: as it is displayed.
        names: of the values it needs, in order. function: what computes it from them.
        pieces: of ``shown``, every second one a name.
    """

    text: str
    shown: str
    names: tuple[str, ...]
    function: Callable[..., Number]
    pieces: tuple[str, ...]

    def value(self, symbols: Mapping[str, Number]) -> Number:
        """Computed with the values of ``symbols``, which may hold more."""
        try:
            given = [symbols[name] for name in self.names]
        except KeyError as missing:
            message = f"{self.text!r} uses {missing.args[0]!r}, which was given no value"
            raise ArgumentError("formula", message) from None
        return _settle(self.function(*given))

    def put_in(self, symbols: Mapping[str, Number]) -> str:
        """The formula with the values in place of their names."""
        parts = list(self.pieces)
        for place in range(1, len(parts), 2):
            if parts[place] not in _FUNCTIONS:
                parts[place] = _inserted(symbols[parts[place]])
        return "".join(parts)


@lru_cache(maxsize=4096)
def _compiled(formula: str) -> _Formula:
    text = _THOUSANDS.sub("", formula.replace("×", "*").replace("^", "**"))
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ArgumentError("formula", f"{text!r} is not an expression ({error.msg})") from None
    _check(node, formula)
    calls = {call.func for call in ast.walk(node) if isinstance(call, ast.Call)}
    used = [each for each in ast.walk(node) if isinstance(each, ast.Name) and each not in calls]
    names = tuple(dict.fromkeys(each.id for each in used))
    parameters = ast.arguments(
        posonlyargs=[], args=[ast.arg(name) for name in names], kwonlyargs=[], kw_defaults=[], defaults=[]
    )
    whole = ast.Expression(ast.Lambda(parameters, _Quotients().visit(node)))
    code = compile(ast.fix_missing_locations(whole), "formula", "eval")
    # What reaches eval is arithmetic only: _check has refused everything else.
    function = eval(code, {"__builtins__": {}, "_quotient": _quotient, **_FUNCTIONS})
    shown = formula.replace("**", "^").replace("*", "×")
    return _Formula(formula, shown, names, function, tuple(_SPLIT.split(shown)))


def _check(node: ast.expr, formula: str) -> None:
    """Refuse everything but numbers, names, arithmetic and the few functions."""
    match node:
        case ast.Constant(value=int() | float()) | ast.Name():
            return
        case ast.UnaryOp(op=ast.USub()):
            _check(node.operand, formula)
        case ast.BinOp():
            if not isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.FloorDiv | ast.Pow):
                raise ArgumentError("formula", f"{formula!r} uses an operator other than + - * / // **")
            _check(node.left, formula)
            _check(node.right, formula)
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            for argument in node.args:
                _check(argument, formula)
        case _:
            message = f"{formula!r} holds something other than arithmetic: {ast.unparse(node)}"
            raise ArgumentError("formula", message)


class _Quotients(ast.NodeTransformer):
    """Every division becomes an exact one."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """``a / b`` as ``_quotient(a, b)``."""
        self.generic_visit(node)
        if isinstance(node.op, ast.Div):
            return ast.Call(ast.Name("_quotient", ast.Load()), [node.left, node.right], [])
        return node


def _quotient(left: Number, right: Number) -> Number:
    if isinstance(left, float) or isinstance(right, float):
        return left / right
    return _settle(Fraction(left) / right)


def _settle(value: Number) -> Number:
    """A whole fraction becomes the integer it is."""
    if type(value) is int:
        return value
    return value.numerator if isinstance(value, Fraction) and value.denominator == 1 else value


def _plain(value: Number) -> int | float:
    return value if isinstance(value, int) else float(value)


def _inserted(value: Number) -> str:
    """A number as it stands inside a formula: a fraction or a negative number needs parentheses."""
    if type(value) is int and value >= 0:
        return f"{value:,}"
    return f"({exact(value)})" if value < 0 or isinstance(_settle(value), Fraction) else exact(value)


def _parenthesised(text: str) -> str:
    """Parentheses around a text that is not a lone number, name or call."""
    return text if re.fullmatch(r"[\w.,]+", text) else f"({text})"


@dataclass(frozen=True)
class Ledger:
    """An ordered tree of terms of one unit.

    Raises:
        ArgumentError: if a unit differs, or two entries of one level share a name.
    """

    name: str
    unit: str
    entries: "tuple[Term | Ledger, ...]" = ()
    source: str = ""

    def __post_init__(self) -> None:
        check_unit(self.unit)
        names = set()
        for entry in self.entries:
            if entry.unit != self.unit:
                raise ArgumentError(
                    "unit", f"{entry.name!r} is in {entry.unit}, the ledger {self.name!r} in {self.unit}"
                )
            if entry.name in names:
                raise ArgumentError("entries", f"{entry.name!r} appears twice in {self.name!r}")
            names.add(entry.name)

    @cached_property
    def total(self) -> Number:
        """The sum of all terms."""
        return _settle(sum(_value(entry) for entry in self.entries))

    @property
    def value(self) -> Number:
        """The total, so that a ledger stands where a term can."""
        return self.total

    def terms(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Term]]:
        """All terms in order, each with the names that lead to it."""
        for entry in self.entries:
            here = (*path, entry.name)
            if isinstance(entry, Ledger):
                yield from entry.terms(here)
            else:
                yield here, entry

    def dominant(self) -> Term:
        """The term of largest absolute value, the first of equals."""
        if not any(True for _ in self.terms()):
            raise ArgumentError("entries", f"the ledger {self.name!r} is empty")
        return max((term for _, term in self.terms()), key=lambda term: magnitude(term.value))

    def __getitem__(self, name: str) -> "Term | Ledger":
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(
            f"{self.name!r} has no entry {name!r}; it has {[entry.name for entry in self.entries]}"
        )

    def __contains__(self, name: str) -> bool:
        return any(entry.name == name for entry in self.entries)

    def __iter__(self) -> "Iterator[Term | Ledger]":
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __add__(self, other: "Term | Ledger") -> "Ledger":
        """Append a term, or the entries of a ledger."""
        more = other.entries if isinstance(other, Ledger) else (other,)
        return replace(self, entries=self.entries + more)

    def __truediv__(self, divisor: Number) -> "Ledger":
        return self.per(divisor)

    def scale(self, factor: Number, symbol: str = "") -> "Ledger":
        """Every term times ``factor``, which the formulas call ``symbol``."""
        return replace(self, entries=tuple(entry.scale(factor, symbol) for entry in self.entries))

    def divide(self, divisor: Number, symbol: str = "", unit: str = "") -> "Ledger":
        """Every term over ``divisor``, exactly; ``unit`` replaces the unit if it changes."""
        entries = tuple(entry.divide(divisor, symbol, unit) for entry in self.entries)
        return replace(self, entries=entries, unit=unit or self.unit)

    def per(self, count: Number, unit: str = "", symbol: str = "") -> "Ledger":
        """Divide by ``count``; with ``unit="token"`` a ledger of FLOPs becomes one of FLOPs/token."""
        return self.divide(count, symbol, f"{self.unit}/{unit}" if unit else "")

    def diff(self, other: "Ledger") -> "Ledger":
        """What to add to ``other`` to get this ledger: one term for each path whose value differs."""
        if self.unit != other.unit:
            raise ArgumentError("unit", f"cannot compare {self.unit} with {other.unit}")
        mine, theirs = dict(self.terms()), dict(other.terms())
        changes = []
        for path in [*mine, *(path for path in theirs if path not in mine)]:
            left = mine[path].value if path in mine else 0
            right = theirs[path].value if path in theirs else 0
            if left != right:
                name = " / ".join(path)
                changes.append(derive(name, "this - other", self.unit, DEFINITION, this=left, other=right))
        return Ledger(f"{self.name} - {other.name}", self.unit, tuple(changes))

    def table(self) -> list[dict[str, Any]]:
        """Rows for a table: depth, name, formula, numbers, value, text, share of the total, unit, source."""
        return list(self._rows(0, self.total))

    def _rows(self, depth: int, whole: Number) -> Iterator[dict[str, Any]]:
        for entry in self.entries:
            nested = isinstance(entry, Ledger)
            yield {
                "depth": depth,
                "name": entry.name,
                "formula": "" if isinstance(entry, Ledger) else entry.formula,
                "numbers": "" if isinstance(entry, Ledger) else entry.numbers,
                "value": entry.value,
                "text": format_quantity(entry.value, entry.unit),
                "share": float(entry.value / whole) if whole else 0.0,
                "unit": entry.unit,
                "source": entry.source,
                "group": nested,
            }
            if isinstance(entry, Ledger):
                yield from entry._rows(depth + 1, whole)

    def to_json(self) -> dict[str, Any]:
        """The tree as JSON-able values; groups have ``terms``, leaves have ``formula`` and ``numbers``."""
        return {
            "name": self.name,
            "unit": self.unit,
            "value": _plain(self.total),
            "exact": exact(self.total),
            "text": format_quantity(self.total, self.unit),
            "source": self.source,
            "terms": [entry.to_json() for entry in self.entries],
        }

    def to_markdown(self) -> str:
        """A Markdown table with one row a term or group, and the total."""
        lines = [f"| {self.name} | formula | numbers | {self.unit} |", "|---|---|---|--:|"]
        for row in self.table():
            name = "&nbsp;&nbsp;" * row["depth"] + (f"**{row['name']}**" if row["group"] else row["name"])
            lines.append(f"| {name} | {row['formula']} | {row['numbers']} | {exact(row['value'])} |")
        lines.append(f"| **total** | | | **{exact(self.total)}** |")
        return "\n".join(lines)


def _value(entry: Term | Ledger) -> Number:
    return entry.total if isinstance(entry, Ledger) else entry.value
