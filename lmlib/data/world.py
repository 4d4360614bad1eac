"""The micro-world itself: who lives where, who likes what, what lies north of what.

The world is the same for every seed of the text: a seed only chooses which documents are told about it.
What a document says about a resident or a place is looked up here, never drawn, so it costs a reader who
knows the world no bits, and a model has to learn it. Residents are met with Zipf's law: the first ones in
nearly every text, the last ones so rarely that only a large model with much text has room for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from lmlib.data import words
from lmlib.data.dice import Dice, Table, zipf_weights

WORLD_KEY = "micro-world 1"  # a new world is a new key: every truth and every recorded number changes
RESIDENTS = 600
GRID_COLUMNS = 6


def with_article(noun: str) -> str:
    """The noun with its indefinite article: an old drum, a red kite."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A spot on the map. `at` is how one is there ("in the barn"), `spot` is where things lie there."""

    index: int
    name: str
    at: str
    spot: str


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """Somebody who lives in the world (or a passing stranger, whose index is -1 and who has no facts)."""

    index: int
    name: str
    she: str  # subject pronoun
    her: str  # possessive pronoun
    being: str  # girl, boy, baker, fox, ...
    trait: str
    home: Place
    food: str
    color: str
    friend_index: int
    age: int
    treasure: str  # the kind of thing that they collect


@dataclass(frozen=True, slots=True)
class World:
    """All residents and places, with the tables that texts draw them from."""

    places: tuple[Place, ...]
    neighbours: tuple[tuple[Place, ...], ...]  # of each place, in the order of words.SIDES where they exist
    sides: tuple[dict[str, Place], ...]  # of each place: side -> the place on that side
    residents: tuple[Resident, ...]
    by_name: dict[str, Resident]
    by_fame: Table[Resident]  # Zipf
    place_table: Table[Place]

    def friend(self, resident: Resident) -> Resident:
        """The best friend of a resident: in pairs, so that it is mutual."""
        return self.residents[resident.friend_index]


def _places() -> tuple[Place, ...]:
    return tuple(Place(i, *entry) for i, entry in enumerate(words.PLACES))


def _sides(places: tuple[Place, ...]) -> tuple[dict[str, Place], ...]:
    """The places lie on a grid, six to a row, row after row from north to south."""
    steps = {"north": (-1, 0), "east": (0, 1), "south": (1, 0), "west": (0, -1)}
    rows = len(places) // GRID_COLUMNS
    result = []
    for place in places:
        row, column = divmod(place.index, GRID_COLUMNS)
        result.append(
            {
                side: places[(row + down) * GRID_COLUMNS + column + right]
                for side, (down, right) in steps.items()
                if 0 <= row + down < rows and 0 <= column + right < GRID_COLUMNS
            }
        )
    return tuple(result)


def _names(dice: Dice) -> list[tuple[str, str]]:
    """(name, pronoun) of every resident: the usual first names, then names made of syllables."""
    pairs = zip(words.FIRST_NAMES["she"], words.FIRST_NAMES["he"], strict=True)
    names = [named for girl, boy in pairs for named in ((girl, "she"), (boy, "he"))]
    taken = {name for name, _ in names}
    while len(names) < RESIDENTS:
        she = "she" if len(names) % 2 == 0 else "he"
        name = syllable_name(dice, words.NAME_STARTS, she)
        if name not in taken:
            taken.add(name)
            names.append((name, she))
    return names


def syllable_name(dice: Dice, starts: Sequence[str], she: str) -> str:
    """A name of three syllables."""
    return dice.choose(starts) + dice.choose(words.NAME_MIDDLES) + dice.choose(words.NAME_ENDS[she])


def _being(dice: Dice, she: str) -> tuple[str, int]:
    """What somebody is, and how old they are."""
    kind = dice.number(0, 9)
    if kind < 4:
        return "girl" if she == "she" else "boy", dice.number(5, 12)
    if kind < 8:
        return dice.choose(words.JOBS), dice.number(20, 79)
    return dice.choose(words.ANIMALS), dice.number(1, 9)


@cache
def world() -> World:
    """The one world, made once per process (about 10 ms)."""
    dice = Dice(WORLD_KEY)
    places = _places()
    sides = _sides(places)
    residents = []
    for index, (name, she) in enumerate(_names(dice)):
        being, age = _being(dice, she)
        residents.append(
            Resident(
                index=index,
                name=name,
                she=she,
                her="her" if she == "she" else "his",
                being=being,
                trait=dice.choose(words.TRAITS),
                home=dice.choose(places),
                food=dice.choose(words.FOODS),
                color=dice.choose(words.COLORS),
                friend_index=index ^ 1,  # the two of a pair are each other's friends
                age=age,
                treasure=dice.choose(words.OBJECTS),
            )
        )
    return World(
        places=places,
        neighbours=tuple(tuple(s.values()) for s in sides),
        sides=sides,
        residents=tuple(residents),
        by_name={resident.name: resident for resident in residents},
        by_fame=Table(residents, zipf_weights(len(residents)), bits=16, shown=lambda r: r.name),
        place_table=Table(places, zipf_weights(len(places), 8), shown=lambda p: p.at),
    )
