"""Noisy web pages about the micro-world, with the truth about each: what to keep, mask, and throw away.

Notable:
- Some pages are copies of an earlier page, word for word (exact) or slightly changed (near). Whether page i
  is a copy, and of which page, is drawn from its own key: `planted_duplicates` lists all copies without
  making any text, and a shard needs no other shard.
- A copy is always made from the page at the end of the chain (the root), which is no copy itself.
- Personal data is made of addresses and numbers set aside for examples: the .example domain (RFC 2606),
  the IPv4 blocks of RFC 5737, and North American telephone numbers 555-0100 to 555-0199.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lmlib.data import words
from lmlib.data.dice import Dice, Table
from lmlib.data.document import Document
from lmlib.data.facts import facts
from lmlib.data.splits import check_stream
from lmlib.data.stories import Story
from lmlib.data.world import world

REACH = 1000  # a copy's original is at most so many pages before it
WORDS_PER_EDIT = 50  # a near copy has one changed word for each so many words, at least one

Piece = tuple[str, str]  # text, and what it is: "" or a kind of personal data


class Line(NamedTuple):
    """One line of a page; boilerplate (menus, footers) surrounds what the page is about."""

    pieces: list[Piece]
    boilerplate: bool = False


@dataclass(frozen=True, slots=True)
class Planted:
    """Page `index` is a copy of page `root`; `kind` is "exact" or "near"."""

    index: int
    root: int
    kind: str


def web_key(seed: int, split: str, index: int) -> str:
    """The key, and name, of a page."""
    return f"web/{split}/{seed}/{index}"


def plan(seed: int, split: str, index: int) -> Planted | None:
    """Whose copy a page is; None if it is an original."""
    kind, source = _copied(seed, split, index)
    if not kind:
        return None
    root = index
    while source is not None:
        root = source
        _, source = _copied(seed, split, root)
    return Planted(index, root, kind)


def planted_duplicates(n_documents: int, seed: int = 0, split: str = "train") -> list[Planted]:
    """All copies among the first `n_documents` pages, in order of their index.

    Raises ValueError for a bad number, seed or split.
    """
    check_stream(seed, split)
    if not isinstance(n_documents, int) or n_documents < 0:
        raise ValueError(f"n_documents must be a whole number from 0, got {n_documents!r}")
    plans = (plan(seed, split, index) for index in range(n_documents))
    return [planted for planted in plans if planted]


def _copied(seed: int, split: str, index: int) -> tuple[str, int | None]:
    """The kind of copy that a page is, and the page that it was copied from, which may be a copy too."""
    dice = Dice(web_key(seed, split, index) + "/plan")
    kind = dice.pick(_COPY_KINDS)
    if not kind or not index:
        return "", None
    return kind, index - dice.number(1, min(index, REACH))


def web_page(key: str, seed: int, split: str, index: int) -> Document:
    """Page `index`, with labels.

    `type` (of `TYPES`) and `quality` ("high", "medium", "low"); `duplicate_of` (index of the root page or
    None) and `duplicate_kind` ("", "exact", "near"); `pii`: spans (start, end, kind), kind one of "email",
    "phone", "ip"; `boilerplate`: spans (start, end) of lines; `rude`: whether somebody is insulted. Spans
    count characters.
    """
    copy = plan(seed, split, index)
    dice = Dice(web_key(seed, split, copy.root) if copy else key)
    kind = dice.pick(TYPES)
    make, quality = _TYPES[kind]
    lines = _framed(dice, make(dice))
    if copy and copy.kind == "near":
        lines = _edited(Dice(key), lines)
    text, pii, boilerplate = _render(lines)
    labels = {
        "type": kind,
        "quality": quality,
        "duplicate_of": copy.root if copy else None,
        "duplicate_kind": copy.kind if copy else "",
        "pii": pii,
        "boilerplate": boilerplate,
        "rude": any(insult in text for insult in INSULTS),
    }
    return Document(text, key, "web", None, labels)


def _render(lines: list[Line]) -> tuple[str, list[tuple[int, int, str]], list[tuple[int, int]]]:
    """The text of a page, the spans of its personal data, and the spans of its boilerplate."""
    parts: list[str] = []
    pii: list[tuple[int, int, str]] = []
    boilerplate: list[tuple[int, int]] = []
    at = 0
    for line in lines:
        start = at
        for text, kind in line.pieces:
            if kind:
                pii.append((at, at + len(text), kind))
            parts.append(text)
            at += len(text)
        if line.boilerplate:
            boilerplate.append((start, at))
        parts.append("\n")
        at += 1
    return "".join(parts[:-1]), pii, boilerplate


def _framed(dice: Dice, main: list[Line]) -> list[Line]:
    """A page's lines inside the menu and footer of its site.

    The two numbers keep short pages of one site from being equal by chance.
    """
    place = dice.pick(world().place_table).name.removeprefix("the ")
    menu, footer = dice.choose(_MENUS), dice.choose(_FOOTERS)
    counter = _COUNTER.format(page=dice.number(0, 65535), visits=dice.number(0, 65535))
    return [
        Line([(menu.format(place=place.title()), "")], True),
        *main,
        Line([(counter, "")], True),
        Line([(footer.format(place=place.title()), "")], True),
    ]


def _edited(dice: Dice, lines: list[Line]) -> list[Line]:
    """A near copy: another visitor, and a word in fifty misspelled. Personal data stays."""
    counted = lines[-2].pieces[0][0].rpartition(" ")[0]
    lines = [*lines[:-2], Line([(f"{counted} {dice.number(0, 65535)}", "")], True), lines[-1]]
    tokens = [
        (i, j, k)
        for i, line in enumerate(lines)
        if not line.boilerplate
        for j, (text, kind) in enumerate(line.pieces)
        if not kind
        for k, word in enumerate(text.split(" "))
        if word.isalpha()
    ]
    for _ in range(max(1, len(tokens) // WORDS_PER_EDIT)):
        i, j, k = tokens.pop(dice.choose(range(len(tokens))))
        text = lines[i].pieces[j][0].split(" ")
        letter = dice.choose(range(len(text[k])))
        text[k] = text[k][: letter + 1] + text[k][letter:]  # a letter typed twice
        pieces = lines[i].pieces.copy()
        pieces[j] = (" ".join(text), "")
        lines[i] = Line(pieces)
    return lines


# What pages are about


def _article(dice: Dice) -> list[Line]:
    """A story, a line a paragraph."""
    out: list[str] = []
    Story(dice, out).tell()
    return [Line([(paragraph, "")]) for paragraph in "".join(out)[1:].split("\n\n")]


def _guide(dice: Dice) -> list[Line]:
    """What there is to know: facts, a few to a paragraph."""
    return [
        Line([(" ".join(dice.choose(facts()).statement for _ in range(dice.number(3, 6))), "")])
        for _ in range(dice.number(2, 4))
    ]


def _forum(dice: Dice) -> list[Line]:
    """People who comment, leave their addresses, and are sometimes rude."""
    lines = []
    for _ in range(dice.number(3, 8)):
        person = dice.pick(world().by_fame).name
        pieces: list[Piece] = [(f"{person} wrote: {dice.choose(facts()).statement}", "")]
        extra = dice.pick(_EXTRAS)
        if extra == "rude":
            pieces.append((f" Only {dice.choose(INSULTS)} would not know that.", ""))
        elif extra:
            before, make = _PERSONAL[extra]
            pieces += [(f" {before} ", ""), (make(dice, person), extra), (" any time.", "")]
        lines.append(Line(pieces))
    return lines


def _spam(dice: Dice) -> list[Line]:
    """Somebody sells something, over and over."""
    noun, color = dice.choose(words.OBJECTS), dice.pick(_COLORS)
    shouts = [shout.format(it=f"{color} {noun}", n=dice.number(2, 99)) for shout in dice.shuffle(_SHOUTS)]
    return [Line([(" ".join(shouts * dice.number(2, 4)), "")])]


def _thin(dice: Dice) -> list[Line]:
    """A page with hardly anything on it."""
    known = " ".join(dice.choose(facts()).statement for _ in range(2))
    return [Line([(known, "")]), Line([(dice.choose(_NOTHING), "")])]


def _salad(dice: Dice) -> list[Line]:
    """The words of an article in no order, as a broken extractor leaves them."""
    text = " ".join(line.pieces[0][0] for line in _article(dice)).split()
    return [Line([(" ".join(dice.shuffle(text)), "")])]


def _email(dice: Dice, person: str) -> str:
    return f"{person.lower()}{dice.number(1, 999)}@{dice.choose(words.OBJECTS)}.example"


def _phone(dice: Dice, person: str) -> str:
    area, line = dice.number(201, 989), dice.number(100, 199)
    return dice.choose(("({0}) 555-0{1}", "{0}-555-0{1}", "{0}.555.0{1}", "{0} 555 0{1}")).format(area, line)


def _ip(dice: Dice, person: str) -> str:
    return f"{dice.choose(('192.0.2', '198.51.100', '203.0.113'))}.{dice.number(0, 255)}"


_COPY_KINDS = Table(["", "exact", "near"], [8, 1, 1])
_COLORS = Table(words.ADJECTIVES)
_TYPES: dict[str, tuple[Callable[[Dice], list[Line]], str]] = {
    "article": (_article, "high"),
    "guide": (_guide, "high"),
    "forum": (_forum, "medium"),
    "spam": (_spam, "low"),
    "thin": (_thin, "low"),
    "salad": (_salad, "low"),
}
TYPES = Table(list(_TYPES), [8, 4, 4, 2, 2, 1])
_EXTRAS = Table(["", "rude", "email", "phone", "ip"], [8, 2, 2, 2, 1])
_PERSONAL = {
    "email": ("Write to", _email),
    "phone": ("Call me at", _phone),
    "ip": ("My server answers at", _ip),
}
INSULTS = ("a rotten turnip", "an utter goose", "a wooden head", "a mean old boot", "a miserable toad")
_MENUS = (
    "Home | News of {place} | Maps | Contact",
    "{place} Online > Archive > Read",
    "Skip to content  Menu  Search  {place} Community",
    "Welcome to {place}! Log in or register",
)
_FOOTERS = (
    "Copyright {place}. All rights reserved.",
    "We use cookies to make {place} better. Accept / Decline",
    "Share this page | Print | Terms of use of {place}",
    "Back to top. Made with care in {place}.",
)
_COUNTER = "Page {page}, visitor {visits}"
_SHOUTS = (
    "BUY {it} NOW!!!",
    "Best {it} cheap {it} free delivery!",
    "Only {n} left, click here for your {it}!",
    "{it} {it} {it} discount {n} percent!",
    "You have won the {it}!!!",
)
_NOTHING = (
    "This page is under construction.",
    "No comments yet. Be the first!",
    "Error 404: the rest of this page was not found.",
    "Loading, please wait ...",
    "Click here to continue reading.",
)
