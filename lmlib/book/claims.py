"""Claims: a sentence of the book, the value measured for it, and the bound that it must keep.

    claim("tokenization/bytes-per-token", "BPE shortens English at least threefold",
          value=ratio, expected=at_least(3), unit="bytes per token")
    ...
    check_claims()      # the chapter's last cell: fails the run if one does not hold

Bounds are written before the run. Each claim is also stored in the cell's output as JSON under
`application/vnd.lmlib.claim+json`, from which the site's Claims page is made.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from lmlib.book.display import building, emit, escape, number

CLAIM_MIME = "application/vnd.lmlib.claim+json"
# What myst-nb reads back as a glued value; the prefix hides it in the page.
_GLUE_PREFIX = "application/papermill.record/"
_NAME = re.compile(r"[a-z0-9]+(?:[-_/.][a-z0-9]+)*")
THIS_RUN = "this run"


class ClaimError(AssertionError):
    """A claim of the chapter does not hold, or the chapter made none."""


@dataclass(frozen=True)
class Bound:
    """What a value is held against: `low` ≤ value ≤ `high`, or `equal` to something. `text` says it."""

    kind: str
    text: str
    low: float | None = None
    high: float | None = None
    equal: Any = None

    def holds(self, value: Any) -> bool:
        """Whether `value` keeps the bound. Not-a-number keeps none."""
        if self.kind == "equals":
            return bool(value == self.equal)
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        measured = float(value)
        return (self.low is None or measured >= self.low) and (self.high is None or measured <= self.high)


def between(low: float, high: float) -> Bound:
    """`low` ≤ value ≤ `high`.

    Raises:
        ValueError: `low` above `high`, or either not a finite number.
    """
    _finite("low", low)
    _finite("high", high)
    if low > high:
        raise ValueError(f"between(low, high): low must not exceed high, got {low} and {high}")
    return Bound("between", f"between {number(low)} and {number(high)}", low, high)


def at_least(low: float) -> Bound:
    """value ≥ `low`."""
    _finite("low", low)
    return Bound("at least", f"at least {number(low)}", low=low)


def at_most(high: float) -> Bound:
    """value ≤ `high`."""
    _finite("high", high)
    return Bound("at most", f"at most {number(high)}", high=high)


def close_to(value: float, rel: float) -> Bound:
    """Within the fraction `rel` of `value`: `close_to(2.0, rel=0.05)` accepts 1.9 to 2.1.

    Raises:
        ValueError: `value` is 0 (a relative bound would accept nothing else), or `rel` is not in (0, 1).
    """
    _finite("value", value)
    if value == 0 or not 0 < rel < 1:
        raise ValueError(f"close_to needs value ≠ 0 and 0 < rel < 1, got value={value}, rel={rel}")
    margin = abs(value) * rel
    return Bound(
        "close to", f"within {number(rel * 100)} % of {number(value)}", value - margin, value + margin
    )


def equals(value: Any) -> Bound:
    """Exactly `value`: for counts, texts and truth values."""
    value = _plain(value)
    return Bound("equals", f"exactly {number(value)}", equal=value)


@dataclass(frozen=True)
class Claim:
    """One claim with its measured value. `where` is "this run" or names a dated record."""

    name: str
    statement: str
    value: Any
    bound: Bound
    unit: str
    where: str

    @property
    def holds(self) -> bool:
        """Whether the value keeps its bound."""
        return self.bound.holds(self.value)

    @property
    def shown(self) -> str:
        """The value with its unit, as the book writes it."""
        return number(self.value, unit=self.unit)

    def to_json(self) -> dict[str, Any]:
        """What the Claims page needs: plain JSON without not-a-number or infinity."""
        bound = {key: _json(value) for key, value in asdict(self.bound).items() if value is not None}
        return {
            "name": self.name,
            "statement": self.statement,
            "value": _json(self.value),
            "shown": self.shown,
            "unit": self.unit,
            "bound": bound,
            "holds": self.holds,
            "where": self.where,
        }


_claims: dict[str, Claim] = {}
_glued: set[str] = set()


def claim(
    name: str,
    statement: str,
    value: Any,
    expected: Any,
    *,
    unit: str = "",
    where: Any = None,
) -> None:
    """Make a claim: show it with its value and a mark, and remember it for `check_claims`.

    Args:
        name: `chapter/short-name`, lower case; one name is one claim.
        statement: the sentence, in the reader's words.
        value: what was measured: a number (numpy and torch scalars too), text or truth value.
        expected: a bound (`between`, `at_least`, `at_most`, `close_to`, `equals`), or a plain value, which
            stands for `equals` of it.
        where: None for a value measured in this run, otherwise a `lmlib.book.records.Record` or a sentence.

    Raises:
        ValueError: an unusable name, an empty statement, or a name that another claim of this run has.
        TypeError: a value that is neither number, text nor truth value.
    """
    _check_name("name", name)
    if not statement.strip():
        raise ValueError(f"statement of claim {name!r} is empty; it must be a sentence")
    known = _claims.get(name)
    if known is not None and (building() or known.statement != statement):
        raise ValueError(
            f"claim name {name!r} is taken by: {known.statement!r}; give each claim its own name"
        )
    bound = expected if isinstance(expected, Bound) else equals(expected)
    made = Claim(name, statement, _plain(value), bound, unit, _where(where))
    _claims[name] = made
    emit(_claim_html(made), _claim_text(made), {CLAIM_MIME: made.to_json()})


def claims() -> list[Claim]:
    """The claims made so far in this run, in order."""
    return list(_claims.values())


def reset() -> None:
    """Forget all claims and glued names, as a fresh kernel has."""
    _claims.clear()
    _glued.clear()


def check_claims() -> None:
    """Show all claims of the chapter in a table; for its last cell.

    Raises:
        ClaimError: a claim does not hold (all of them are named), or none was made.
    """
    made = claims()
    if not made:
        raise ClaimError("this chapter made no claim: call claim(...) before check_claims()")
    emit(_table_html(made), "\n".join(_claim_text(each) for each in made))
    broken = [each for each in made if not each.holds]
    if broken:
        lines = "\n".join(f"  {_claim_text(each)}" for each in broken)
        raise ClaimError(f"{len(broken)} of {len(made)} claims do not hold:\n{lines}")


def glue(name: str, value: Any, digits: int = 4, unit: str = "") -> None:
    """Keep a value for the prose: ``{glue:text}`name` `` in a Markdown cell prints it in the built page.

    Text is taken as it is, numbers are formatted by `lmlib.book.number`. In a live kernel one line shows
    name and value, since Markdown cells there cannot.

    Raises:
        ValueError: an unusable name, or one glued twice while the site is built.
        TypeError: a value that is neither number, text nor truth value.
    """
    _check_name("name", name)
    if building() and name in _glued:
        raise ValueError(f"{name!r} is glued twice in this notebook; prose could not tell which is meant")
    _glued.add(name)
    text = number(_plain(value), digits, unit)
    if not building():
        emit(f'<div class="lm-glue"><code>{escape(name)}</code>: {escape(text)}</div>', f"{name}: {text}")
        return
    from IPython.display import display

    # As a Python literal: myst-nb evaluates the text, and would read "50,257" as a pair.
    bundle = {_GLUE_PREFIX + "text/plain": repr(text), _GLUE_PREFIX + "text/html": escape(text)}
    display(bundle, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": _GLUE_PREFIX}})


def _finite(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def _check_name(argument: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{argument} {name!r} is not usable: lower-case words joined by '-', '_', '.' or '/' are allowed"
        )


def _plain(value: Any) -> Any:
    """The value as a Python number, text or truth value; numpy and torch scalars have `item`."""
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError, TypeError):
            raise TypeError(f"value must be one number, got an array of shape {tuple(value.shape)}") from None
    if isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"value must be a number, text or truth value, got {type(value).__name__}: {value!r}")


def _json(value: Any) -> Any:
    return number(value) if isinstance(value, float) and not math.isfinite(value) else value


def _where(where: Any) -> str:
    if where is None:
        return THIS_RUN
    return where if isinstance(where, str) else str(where.where)


def _mark(made: Claim) -> str:
    return "✓ holds" if made.holds else "✗ does not hold"


def _claim_text(made: Claim) -> str:
    return (
        f"{_mark(made)}: {made.statement}: {made.shown} "
        f"(expected {made.bound.text}; {made.where}) [{made.name}]"
    )


def _claim_html(made: Claim) -> str:
    state = "holds" if made.holds else "fails"
    style = "" if building() else ' style="border-left:4px solid #767676;padding:.2em .8em;margin:.4em 0"'
    return (
        f'<div class="lm-claim lm-claim-{state}" role="note" data-claim="{escape(made.name)}"{style}>'
        f'<strong class="lm-claim-mark">Claim {_mark(made)}</strong>: {escape(made.statement)}: '
        f'<strong class="lm-claim-value">{escape(made.shown)}</strong> '
        f'<span class="lm-claim-bound">(expected {escape(made.bound.text)}; {escape(made.where)})</span>'
        "</div>"
    )


def _elsewhere_html(made: Claim) -> str:
    """A line below the statement that says where its value is from; a column for it would be too narrow."""
    return "" if made.where == THIS_RUN else f'<div class="lm-claim-where">{escape(made.where)}</div>'


def _table_html(made: list[Claim]) -> str:
    headers = ("Claim", "Value", "Expected", "Result")
    head = "".join(f'<th scope="col">{header}</th>' for header in headers)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{cell}</td>"
            for cell in (
                escape(each.statement) + _elsewhere_html(each),
                *map(escape, (each.shown, each.bound.text, _mark(each))),
            )
        )
        + "</tr>"
        for each in made
    )
    return (
        '<table class="lm-table lm-claims">'
        "<caption>What this chapter claimed, measured in this run where nothing else is named</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )
