"""From the ledgers and refusals of ``lmlib.resources`` to what a form shows."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from lmlib.book.declare import InputError, LedgerTable, Term
from lmlib.resources.ledger import Ledger
from lmlib.resources.ledger import Term as LibraryTerm
from lmlib.resources.units import ArgumentError, Number

CHAPTER = "../chapters/04_resources.html"
_UNITS = {"bytes": "B", "seconds": "s", "bytes/token": "B/token", "joules": "J", "watts": "W"}


def section(anchor: str) -> str:
    """Address of a section of chapter 4, from any page of the book."""
    return f"{CHAPTER}#{anchor}"


@contextmanager
def refused_beside(fields: Collection[str], aliases: Mapping[str, str]) -> Iterator[None]:
    """Turn the library's refusal of an argument into one of the form's field; ``aliases`` maps names that
    differ."""
    known = frozenset(fields)
    try:
        yield
    except ArgumentError as refused:
        field = aliases.get(refused.field, refused.field)
        message = refused.message if field in known else f"{refused.field}: {refused.message}"
        raise InputError(field if field in known else "", _sentence(message)) from None


def _sentence(message: str) -> str:
    """With a full stop, and a capital unless it starts with a name of the form."""
    plain_start = message.startswith(("must ", "there ", "needs ", "is "))
    return f"{message[:1].upper() if plain_start else message[:1]}{message[1:]}."


def explained(ledger: Ledger, caption: str, anchor: str, total: str = "") -> LedgerTable:
    """A ledger to open term by term; every term links to the section that derives it."""
    terms = [_explained(" · ".join(path), term, anchor) for path, term in ledger.terms()]
    return LedgerTable(caption, terms, total or f"{ledger.name[:1].upper()}{ledger.name[1:]}")


def steps(caption: str, anchor: str, *terms: LibraryTerm) -> LedgerTable:
    """Terms that explain one another and are not added up."""
    return LedgerTable(caption, [_explained(term.name, term, anchor) for term in terms])


def _explained(name: str, term: LibraryTerm, anchor: str) -> Term:
    return Term(
        name,
        term.formula,
        term.numbers,
        plain(term.value),
        _UNITS.get(term.unit, term.unit),
        term.source,
        section(anchor),
    )


def plain(value: Number) -> int | float:
    """An int as it is, anything else to ten digits: the last ones of a power depend on the machine's libm."""
    return value if isinstance(value, int) else float(f"{float(value):.10g}")
