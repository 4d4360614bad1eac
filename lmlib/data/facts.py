"""Every fact of the world, as a table of (entity, relation, value) with words for each relation.

Facts of the micro-world are looked up, so an answer is right or wrong without a judge. Each fact belongs to
one split by a hash of (entity, relation): questions about it occur in that split only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from lmlib.data import words
from lmlib.data.splits import split_by_hash
from lmlib.data.world import WORLD_KEY, world


@dataclass(frozen=True)
class Relation:
    """How a relation is told, how it is asked for, and all values that it can have."""

    tells: str
    asks: str
    values: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        """Value -> where it stands among the values."""
        return {value: index for index, value in enumerate(self.values)}

    def told(self, entity: str, value: str) -> str:
        """The sentence that says of an entity that it has this value."""
        return _capital(self.tells.format(who=entity, value=value))


class Fact(NamedTuple):
    """One thing that is so, with its words and the split in which questions about it may occur."""

    entity: str
    relation: str
    value: str
    statement: str  # the fact as a sentence
    question: str  # the question whose answer is `value`
    split: str


def fact_of(entity: str, relation: str, value: str) -> Fact:
    """The fact that an entity has this value, be it true or made up."""
    words_for = relations()[relation]
    question = words_for.asks.format(who=entity)
    return Fact(entity, relation, value, words_for.told(entity, value), question, split_of(entity, relation))


def split_of(entity: str, relation: str) -> str:
    """The split of a fact: about four fifths train, a tenth each valid and test."""
    return split_by_hash(f"{WORLD_KEY}/{entity}/{relation}")


@cache
def relations() -> dict[str, Relation]:
    """Name of a relation -> its words and values."""
    residents = world().residents
    homes = tuple(place.at for place in world().places)
    result = {
        "home": Relation("{who} lives {value}.", "Where does {who} live?", homes),
        "food": Relation(
            "{who} loves {value} more than anything.", "Which food does {who} love most?", tuple(words.FOODS)
        ),
        "color": Relation(
            "The favorite color of {who} is {value}.",
            "What is the favorite color of {who}?",
            tuple(words.COLORS),
        ),
        "trait": Relation(
            "Everybody says that {who} is {value}.",
            "What does everybody say that {who} is?",
            tuple(words.TRAITS),
        ),
        "treasure": Relation(
            "The thing that {who} treasures is the {value}.",
            "Which thing does {who} treasure?",
            tuple(words.OBJECTS),
        ),
        "friend": Relation(
            "The best friend of {who} is {value}.",
            "Who is the best friend of {who}?",
            tuple(resident.name for resident in residents),
        ),
        "age": Relation(
            "{who} is {value} years old.",
            "How old is {who}?",
            tuple(map(str, sorted({resident.age for resident in residents}))),
        ),
    }
    names = tuple(place.name for place in world().places)
    for side in words.SIDES:
        result[side] = Relation(
            f"Just {side} of {{who}} is {{value}}.", f"What is just {side} of {{who}}?", names
        )
    return result


@cache
def facts() -> tuple[Fact, ...]:
    """All facts: seven about each resident, two to four about each place."""
    found = []
    for resident in world().residents:
        values = {
            "home": resident.home.at,
            "food": resident.food,
            "color": resident.color,
            "trait": resident.trait,
            "treasure": resident.treasure,
            "friend": world().friend(resident).name,
            "age": str(resident.age),
        }
        found += [fact_of(resident.name, relation, value) for relation, value in values.items()]
    for place, sides in zip(world().places, world().sides, strict=True):
        found += [fact_of(place.name, side, other.name) for side, other in sides.items()]
    return tuple(found)


@cache
def facts_of_split(split: str) -> tuple[Fact, ...]:
    """The facts that questions of a split ask for."""
    return tuple(fact for fact in facts() if fact.split == split)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
