"""Stories of the micro-world: a small simulation that tells what happens.

Notable:
- The teller keeps the state of the scene (who is where, who holds what, who is glad about what) and every
  sentence follows from it. Choices cost bits; consequences do not: the answer to "Where is the red kite?"
  or the last paragraph's summary can be predicted exactly by a reader who kept track.
- An event is chosen among those that are possible now, from a table of declared probabilities.
- A pronoun stands exactly where the sentence before had the same subject.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmlib.data import words
from lmlib.data.dice import Dice, Table
from lmlib.data.world import Place, Resident, syllable_name, with_article, world

FEWEST_EVENTS = 7
MOST_EVENTS = 20
MOST_PEOPLE = 4


def templates(*texts: str, before: str = " ") -> Table[str]:
    """A table of equally likely sentences; {x} marks a slot, `before` goes ahead of each."""
    return Table([before + text.replace("{", "%(").replace("}", ")s") for text in texts], bits=8)


class Actor:
    """Somebody in the scene. `reason` is a feeling with its cause, until it has been told."""

    __slots__ = ("She", "her", "him", "holds", "name", "place", "reason", "resident", "she")

    def __init__(self, resident: Resident, place: Place) -> None:
        self.resident = resident
        self.name = resident.name
        self.she = resident.she
        self.She = "She" if resident.she == "she" else "He"
        self.her = resident.her
        self.him = "her" if resident.she == "she" else "him"
        self.place = place
        self.holds: list[Item] = []
        self.reason = ""


class Item:
    """A thing with a unique name within its story, held by somebody or lying at a place."""

    __slots__ = ("holder", "name", "place", "the")

    def __init__(self, name: str, place: Place) -> None:
        self.name = name
        self.the = "the " + name
        self.place = place
        self.holder: Actor | None = None

    def whereabouts(self) -> str:
        """Where it lies, as an answer: "in the barn, under the hay"."""
        return f"{self.place.at}, {self.place.spot}"


class Story:
    """One story being told: `tell()` appends its sentences to `out`, drawing choices from `dice`."""

    __slots__ = ("dice", "gone", "hero", "items", "last", "nouns", "out", "people")

    def __init__(self, dice: Dice, out: list[str]) -> None:
        self.dice = dice
        self.out = out
        self.people: list[Actor] = []
        self.gone: list[Actor] = []  # those who went home
        self.items: list[Item] = []
        self.nouns = words.OBJECTS.copy()
        self.last: Actor | None = None

    def tell(self) -> None:
        """The whole story."""
        goal = self.open()
        for count in range(MOST_EVENTS):
            if count >= FEWEST_EVENTS and self.dice.pick(_ENDS):
                break
            self.happen()
        self.close(goal)

    def ending(self) -> dict[str, Any]:
        """Labels of a story that has been told.

        `people`: name -> where that person is after the last event, before the closing paragraph takes the
        hero to the goal. `holders` and `lying`: each thing is in one of the two, as the closing paragraph
        says; thing -> name of its holder, thing -> where it lies.
        """
        return {
            "hero": self.hero.name,
            "people": {actor.name: actor.place.at for actor in (*self.people, *self.gone)},
            "holders": {item.name: item.holder.name for item in self.items if item.holder is not None},
            "lying": {item.name: item.place.at for item in self.items if item.holder is None},
        }

    # What sentences are made of

    def say(self, table: Table[str], **values: Any) -> None:
        """One sentence from a table of templates."""
        self.out.append(self.dice.pick(table) % values)

    def lead(self, actor: Actor) -> str:
        """The subject that opens a sentence: a pronoun if the sentence before had the same subject."""
        if self.last is actor:
            return actor.She
        self.last = actor
        return actor.name

    def new_item(self, place: Place) -> Item:
        """A thing that the story has not had yet."""
        adjective = self.dice.pick(_ADJECTIVES)
        noun = self.dice.choose(self.nouns, str)
        self.nouns.remove(noun)
        item = Item(f"{adjective} {noun}", place)
        self.items.append(item)
        return item

    def lying(self, place: Place) -> list[Item]:
        """What lies at a place."""
        return [item for item in self.items if item.holder is None and item.place is place]

    def company(self, actor: Actor) -> list[Actor]:
        """Everybody else at the same place."""
        return [other for other in self.people if other.place is actor.place and other is not actor]

    def hold(self, actor: Actor, item: Item) -> None:
        """The item passes into somebody's hands."""
        if item.holder is not None:
            item.holder.holds.remove(item)
        item.holder = actor
        actor.holds.append(item)

    def put(self, item: Item, place: Place) -> None:
        """The item lies down at a place."""
        if item.holder is not None:
            item.holder.holds.remove(item)
        item.holder = None
        item.place = place

    def somebody(self) -> Resident:
        """A resident who is not in the story yet."""
        known = [actor.resident for actor in self.people + self.gone]
        return self.dice.pick_except(world().by_fame, known)

    # Beginning, middle and end

    def open(self) -> str:
        """Introduce the hero, a companion, the place and what it is about; returns the goal."""
        dice = self.dice
        resident = dice.pick(world().by_fame)
        hero = Actor(resident, resident.home)
        self.hero = hero
        self.people.append(hero)
        being = f"{resident.trait} {resident.being}"
        self.say(
            _OPENINGS,
            a=hero.name,
            being=with_article(being),
            at=resident.home.at,
            At=_capital(resident.home.at),
            bare=being,
        )
        self.last = hero
        fact = dice.pick(_FACT_KINDS)
        self.say(_FACTS[fact], A=self.lead(hero), **_fact_words(resident))
        weather = dice.pick(_WEATHERS)[0]
        place = dice.pick(world().place_table)
        time = dice.choose(words.TIMES, str)
        friend = Actor(self.companion(resident), place)
        hero.place = place
        self.people.append(friend)
        self.say(_SCENES, One=f"One {weather} {time}", a=hero.name, b=friend.name, at=place.at)
        self.last = None
        if friend.resident.index >= 0:
            who = f"{friend.resident.trait} {friend.resident.being}"
            self.say(_COMPANIONS, b=self.lead(friend), who=with_article(who), at=friend.resident.home.at)
        goal = dice.pick(_GOALS)
        return goal + ":" + getattr(self, "_want_" + goal)(hero, friend)

    def companion(self, resident: Resident) -> Resident:
        """The hero's best friend, anybody, or a passing stranger."""
        kind = self.dice.pick(_COMPANION_KINDS)
        if kind == "friend":
            return world().friend(resident)
        if kind == "anybody":
            return self.dice.pick_except(world().by_fame, (resident, world().friend(resident)))
        she = self.dice.choose(("she", "he"))
        name = syllable_name(self.dice, words.STRANGER_STARTS, she)
        return Resident(
            -1, name, she, "her" if she == "she" else "his", "", "", resident.home, "", "", -1, 0, ""
        )

    def happen(self) -> None:
        """One event: somebody, then what is possible for them, then the telling of it."""
        actor = self.dice.choose(self.people)
        others = self.company(actor)
        state = (
            (1 if others else 0)
            | (2 if actor.holds else 0)
            | (4 if self.lying(actor.place) else 0)
            | (8 if any(other.holds for other in others) else 0)
            | (16 if len(self.items) > len(actor.holds) else 0)
            | (32 if actor.reason else 0)
            | (64 if len(self.people) < MOST_PEOPLE else 0)
            | (128 if len(self.people) > 2 and actor is not self.hero and actor.resident.index >= 0 else 0)
            | (256 if len(self.items) < 6 else 0)
        )
        self.dice.pick(_EVENTS[state])(self, actor, others)

    def close(self, goal: str) -> None:
        """How the goal ended, where everything is, and a moral."""
        kind, _, detail = goal.partition(":")
        self.last = None
        getattr(self, "_end_" + kind)(detail)
        for item in self.items:
            if item.holder is None:
                self.out.append(f" The {item.name} lay {item.place.at}.")
            else:
                self.out.append(f" {item.holder.name} had {item.the}.")
        self.say(_MORAL_FRAMES, a=self.hero.name, moral=self.dice.choose(words.MORALS, str))

    # Goals: what the hero wants at first, and how it ends

    def _want_lost(self, hero: Actor, friend: Actor) -> str:
        color, treasure = self.dice.pick(_ADJECTIVES), hero.resident.treasure
        self.say(_LOST, a=hero.name, her=hero.her, it=f"{color} {treasure}")
        if treasure in self.nouns:
            self.nouns.remove(treasure)
        return f"{color} {treasure}"

    def _end_lost(self, detail: str) -> None:
        self.say(_FOUND_AGAIN, a=self.hero.name, her=self.hero.her, it=detail, at=self.hero.place.at)

    def _want_present(self, hero: Actor, friend: Actor) -> str:
        guest = self.somebody()
        item = self.new_item(hero.place)
        self.hold(hero, item)
        self.say(_PRESENT, a=hero.name, c=guest.name, it=with_article(item.name))
        return f"{guest.name}:{item.name}"

    def _end_present(self, detail: str) -> None:
        name, _, item_name = detail.partition(":")
        guest = world().by_name[name]
        item = next(item for item in self.items if item.name == item_name)
        hero, at = self.hero, guest.home.at
        if item.holder is hero:
            self.say(_PRESENT_GIVEN, a=hero.name, c=name, at=at, the=item.the)
            self.hold(Actor(guest, guest.home), item)
        else:
            self.say(_PRESENT_MISSING, a=hero.name, c=name, at=at, the=item.the)

    def _want_letter(self, hero: Actor, friend: Actor) -> str:
        guest = self.somebody()
        self.say(_LETTER, a=hero.name, c=guest.name)
        return guest.name

    def _end_letter(self, detail: str) -> None:
        guest = world().by_name[detail]
        who = f"the {guest.trait} {guest.being}"
        self.say(_LETTER_END, a=self.hero.name, c=detail, at=guest.home.at, who=who)

    def _want_cake(self, hero: Actor, friend: Actor) -> str:
        need, have = self.dice.number(6, 15), self.dice.number(1, 5)
        food = friend.resident.food or "plums"
        self.say(_CAKE, a=hero.name, b=friend.name, food=food, n=need, m=have, k=need - have)
        return f"{food}:{need}"

    def _end_cake(self, detail: str) -> None:
        food, _, need = detail.partition(":")
        self.say(_CAKE_END, a=self.hero.name, food=food, n=need)

    def _want_walk(self, hero: Actor, friend: Actor) -> str:
        place = self.dice.pick(world().place_table)
        self.say(_WALK, a=hero.name, b=friend.name, at=place.at)
        return str(place.index)

    def _end_walk(self, detail: str) -> None:
        self.say(_WALK_END, a=self.hero.name, at=world().places[int(detail)].at)

    # Events. Each is told in one sentence or a short exchange, and changes the state.

    def go(self, a: Actor, others: list[Actor]) -> None:
        place = self.dice.choose(world().neighbours[a.place.index])
        A = a.name
        a.place = place
        self.last = a
        self.say(_GO, A=A, q=place.name, at=place.at)

    def go_together(self, a: Actor, others: list[Actor]) -> None:
        b = self.dice.choose(others)
        place = self.dice.choose(world().neighbours[a.place.index])
        a.place = b.place = place
        self.last = None
        self.say(_GO_TOGETHER, a=a.name, b=b.name, q=place.name)

    def find(self, a: Actor, others: list[Actor]) -> None:
        item = self.new_item(a.place)
        self.say(_FIND, A=self.lead(a), it=with_article(item.name), spot=a.place.spot, at=a.place.at)
        self.hold(a, item)

    def pick_up(self, a: Actor, others: list[Actor]) -> None:
        item = self.dice.choose(self.lying(a.place))
        self.say(_PICK_UP, A=self.lead(a), the=item.the)
        self.hold(a, item)

    def give(self, a: Actor, others: list[Actor]) -> None:
        item, b = self.dice.choose(a.holds), self.dice.choose(others)
        self.say(_GIVE, A=self.lead(a), b=b.name, the=item.the)
        self.hold(b, item)
        b.reason = f"happy because {a.name} had parted with {item.the}"

    def swap(self, a: Actor, others: list[Actor]) -> None:
        b = self.dice.choose([other for other in others if other.holds])
        mine, yours = self.dice.choose(a.holds), self.dice.choose(b.holds)
        self.say(_SWAP, A=self.lead(a), b=b.name, mine=mine.the, yours=yours.the)
        self.hold(b, mine)
        self.hold(a, yours)

    def borrow(self, a: Actor, others: list[Actor]) -> None:
        b = self.dice.choose([other for other in others if other.holds])
        item = self.dice.choose(b.holds)
        self.say(_BORROW, a=a.name, b=b.name, the=item.the)
        self.last = b
        self.hold(a, item)
        a.reason = f"grateful because {b.name} was so generous"

    def put_down(self, a: Actor, others: list[Actor]) -> None:
        item = self.dice.choose(a.holds)
        self.say(_PUT_DOWN, A=self.lead(a), the=item.the, spot=a.place.spot)
        self.put(item, a.place)

    def drop(self, a: Actor, others: list[Actor]) -> None:
        item = self.dice.choose(a.holds)
        self.say(_DROP, a=a.name, the=item.the, at=a.place.at)
        self.last = a
        self.put(item, a.place)
        a.reason = f"sad because {item.the} was lost"

    def play(self, a: Actor, others: list[Actor]) -> None:
        self.say(_PLAY, A=self.lead(a), the=self.dice.choose(a.holds).the)

    def show(self, a: Actor, others: list[Actor]) -> None:
        item, b = self.dice.choose(a.holds), self.dice.choose(others)
        self.say(_SHOW, A=self.lead(a), b=b.name, the=item.the, noun=item.name)
        self.last = b

    def ask_where(self, a: Actor, others: list[Actor]) -> None:
        item = self.dice.choose([item for item in self.items if item.holder is not a])
        b = self.dice.choose(others)
        if item.holder is None:
            answer = f"It is {item.whereabouts()}"
        else:
            answer = "I have it" if item.holder is b else f"{item.holder.name} has it"
        self.say(_ASK_WHERE, a=a.name, b=b.name, the=item.the, answer=answer)
        self.last = b

    def ask_person(self, a: Actor, others: list[Actor]) -> None:
        b = self.dice.choose(others)
        c = self.dice.choose([person for person in (*self.people, *self.gone) if person not in (a, b)] or [a])
        where = "You are right here" if c is a else f"{c.She} is {c.place.at}"
        who = "am I" if c is a else f"is {c.name}"
        self.say(_ASK_PERSON, a=a.name, b=b.name, who=who, answer=where)
        self.last = b

    def feel(self, a: Actor, others: list[Actor]) -> None:
        self.say(_FEEL, A=self.lead(a), reason=a.reason)
        a.reason = ""

    def meet(self, a: Actor, others: list[Actor]) -> None:
        b = Actor(self.somebody(), a.place)
        self.people.append(b)
        resident = b.resident
        self.say(_MEET, a=a.name, b=b.name, who=f"{resident.trait} {resident.being}", at=a.place.at)
        self.last = b

    def leave(self, a: Actor, others: list[Actor]) -> None:
        home = a.resident.home
        self.say(_LEAVE, A=self.lead(a), her=a.her, home=home.at)
        a.place = home
        self.people.remove(a)
        self.gone.append(a)
        self.last = None

    def count(self, a: Actor, others: list[Actor]) -> None:
        food = self.dice.choose(words.FOODS, str)
        n, m = self.dice.number(2, 20), self.dice.number(2, 20)
        self.say(_COUNT, A=self.lead(a), n=n, m=m, sum=n + m, food=food)

    def share(self, a: Actor, others: list[Actor]) -> None:
        b, food = self.dice.choose(others), self.dice.choose(words.FOODS, str)
        n = self.dice.number(4, 20)
        m = self.dice.number(2, n - 2)
        self.say(_SHARE, A=self.lead(a), b=b.name, n=n, m=m, rest=n - m, food=food)
        if b.resident.food == food:
            self.out.append(f" {b.name} was delighted, because {b.she} loved {food} more than anything.")
            self.last = b

    def beast(self, a: Actor, others: list[Actor]) -> None:
        self.last = None
        beast, deed = self.dice.choose(words.BEASTS, str), self.dice.choose(words.BEAST_DEEDS, str)
        self.say(_BEAST, a=a.name, beast=with_article(beast), deed=deed, at=a.place.at)

    def weather_turns(self, a: Actor, others: list[Actor]) -> None:
        _, going_on, adjective = self.dice.pick(_WEATHERS)
        self.last = None
        self.say(_WEATHER_TURNS, a=a.name, going_on=going_on[0].lower() + going_on[1:], was=adjective)

    def gossip(self, a: Actor, others: list[Actor]) -> None:
        b = self.dice.choose(others)
        c = self.dice.pick(world().by_fame)
        fact = self.dice.pick(_FACT_KINDS)
        tells = self.dice.pick(_GOSSIP)
        told = (self.dice.pick(_FACTS[fact]) % {"A": c.name, **_fact_words(c)})[1:-1]
        self.out.append(tells % {"a": a.name, "b": b.name, "told": told})
        self.last = a

    def point(self, a: Actor, others: list[Actor]) -> None:
        sides = world().sides[a.place.index]
        side = self.dice.choose(list(sides))
        self.say(_POINT, A=self.lead(a), side=side, q=sides[side].name, p=a.place.name)

    def rest(self, a: Actor, others: list[Actor]) -> None:
        self.say(_REST, A=self.lead(a), at=a.place.at)

    def praise(self, a: Actor, others: list[Actor]) -> None:
        b = self.dice.choose(others)
        self.say(_PRAISE, a=a.name, b=b.name, trait=b.resident.trait or "far from home")
        self.last = b


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _fact_words(resident: Resident) -> dict[str, Any]:
    return {
        "her": resident.her,
        "food": resident.food,
        "color": resident.color,
        "friend": world().friend(resident).name,
        "age": resident.age,
        "treasure": with_article(resident.treasure),
        "home": resident.home.at,
    }


_ENDS = Table([False, True], [7, 1], bits=8)
_ADJECTIVES = Table(words.ADJECTIVES, shown=str)
_WEATHERS = Table(words.WEATHERS)
_COMPANION_KINDS = Table(["friend", "anybody", "stranger"], [5, 4, 1])
_GOALS = Table(["lost", "present", "letter", "cake", "walk"], [3, 3, 2, 2, 2])
_FACT_KINDS = Table(["food", "color", "friend", "age", "treasure"])
_FACTS = {
    "food": templates("{A} loved {food} more than anything.", "{A} could never say no to {food}."),
    "color": templates(
        "{A} thought that {color} was the finest color of all.", "{A} always wore something {color}."
    ),
    "friend": templates(
        "{A} had been best friends with {friend} for years.",
        "{A} told {friend} everything, as best friends do.",
    ),
    "age": templates("{A} was {age} years old.", "{A} had just turned {age}."),
    "treasure": templates(
        "{A} had always dreamed of owning {treasure}.", "{A} kept {treasure} beside {her} bed."
    ),
}
_OPENINGS = templates(
    "Once upon a time there was {being} called {a}, who lived {at}.",
    "{a} was {being} and lived {at}.",
    "{At} lived {being} named {a}.",
    "There once lived {being} {at}, and everyone called the little soul {a}.",
    "This is the story of {a}, the {bare} who lived {at}.",
    "Everybody knew {a}, the {bare} who lived {at}.",
)
_SCENES = templates(
    "{One}, {a} met {b} {at}.",
    "{One}, {a} and {b} were together {at}.",
    "{One}, {b} was waiting for {a} {at}.",
    "{One} found {a} and {b} {at}, with nothing to do.",
    before="\n\n",
)
_COMPANIONS = templates("{b} was {who} and lived {at}.", "{b}, as you may know, was {who} from a house {at}.")
_LOST = templates(
    'But {a} looked worried. "My {it} is gone!"',
    "{a} had searched all day for {her} {it}.",
    '"Have you seen my {it}?" asked {a}.',
    "{a} could not find {her} {it} anywhere.",
)
_FOUND_AGAIN = templates(
    "And what was that? Right there, {at}, was the {it} of {a}.",
    "Then {a} saw something {at}. It was {her} {it}!",
    "At last {a} found {her} {it}. It had been {at} all along.",
    before="\n\n",
)
_PRESENT = templates(
    "{a} had {it}. It was a present for {c}.",
    "It was the birthday of {c}, and {a} carried {it} as a present.",
    '"I must bring {c} a present," said {a}, and held up {it}.',
)
_PRESENT_GIVEN = templates(
    "In the end {a} went to see {c} {at} and handed over {the}.",
    '{c} was waiting {at}. "This is for you," said {a}, and gave away {the}.',
    "At last {a} knocked at the door of {c}, {at}, and brought {the}.",
    before="\n\n",
)
_PRESENT_MISSING = templates(
    "In the end {a} went to see {c} {at}, but without {the}.",
    '{c} was waiting {at}. "I am sorry," said {a}, "I no longer have {the}."',
    before="\n\n",
)
_LETTER = templates(
    "{a} had a letter in one pocket. It was for {c}.",
    '"This letter must reach {c} today," said {a}.',
    "There was a letter to deliver, and the name on it was {c}. {a} had promised to bring it.",
)
_LETTER_END = templates(
    "In the end {a} brought the letter to {c}, {who}, {at}.",
    "{c} lived {at}, so that is where {a} took the letter at last.",
    "{a} reached {c}, {who}, before it grew dark. The letter was read aloud {at}.",
    before="\n\n",
)
_CAKE = templates(
    "They wanted to bake a pie. It took {n} {food}, and {a} had only {m}. So {k} were missing.",
    '"We need {n} {food} for the feast," said {b}. {a} had {m} of them, so they had to find {k} more.',
    '{a} had {m} {food}, but the recipe asked for {n}. "Then we need {k} more," said {b}.',
)
_CAKE_END = templates(
    "In the end {a} had all {n} {food}, and the kitchen smelled wonderful.",
    "When the {n} {food} were in the oven, {a} sat down and was content.",
    before="\n\n",
)
_WALK = templates(
    '"Shall we be {at} before the day is over?" asked {b}. "Yes," said {a}.',
    "{a} had promised {b} to end the day {at}.",
    "They made a plan. {a} wanted to be {at} by the evening.",
)
_WALK_END = templates(
    "In the end {a} arrived {at}, just as planned.",
    "The lamps were being lit when {a} stood {at} and kept the promise.",
    before="\n\n",
)
_MORAL_FRAMES = templates(
    "And {a} had learned that {moral}.",
    '"You see," said {a}, "{moral}."',
    "That night {a} thought: {moral}.",
    "For {moral}.",
)
_GO = templates(
    "{A} walked to {q}.",
    "{A} went on to {q}.",
    "After a while {A} set off for {q}.",
    "{A} ran all the way to {q}.",
    "Soon {A} was {at}.",
    "{A} took the path to {q} and whistled a tune.",
    before="\n\n",
)
_GO_TOGETHER = templates(
    "{a} and {b} walked to {q} together.",
    '"Come with me to {q}," said {a}, and {b} came along.',
    "Side by side, {a} and {b} went to {q}.",
    "{b} followed {a} to {q}.",
    before="\n\n",
)
_FIND = templates(
    "{A} found {it} {spot}.",
    "{A} looked around and saw {it} {spot}. Nobody seemed to own it, so it went into a pocket.",
    "{A} almost stepped on {it} that lay {spot}, and picked it up.",
    "{A} bought {it} from a traveler {at}.",
    "{A} pulled out {it} that had been hidden {spot}.",
)
_PICK_UP = templates(
    "{A} picked up {the}.", "{A} saw {the} lying there and took it.", "{A} bent down and lifted {the}."
)
_GIVE = templates(
    "{A} gave {the} to {b}.",
    "{A} handed {the} to {b} with a smile.",
    "{A} said that {b} should have {the}, and {b} took it gladly.",
    '{A} held out {the}. "Thank you!" said {b}, and took it.',
    "{A} made {b} a gift of {the}.",
)
_SWAP = templates(
    "{A} gave {b} {mine} and got {yours} in return.",
    "{A} traded {mine} for {yours}, and {b} was pleased with the bargain.",
    "{A} liked {yours} of {b} so much that {mine} was given for it.",
)
_BORROW = templates(
    '"May I have {the}?" asked {a}. "Of course," said {b}, and handed it over.',
    "{a} asked {b} for {the}. {b} gave it at once.",
    "{b} saw that {a} needed {the} more, and let it go.",
)
_PUT_DOWN = templates(
    "{A} put {the} {spot}.",
    "{A} was tired of carrying {the} and left it {spot}.",
    "{A} hid {the} {spot}.",
    "{A} laid {the} {spot} for later.",
)
_DROP = templates(
    "Nobody noticed how {a} dropped {the} {at}.",
    "Then {the} slipped out of the hands of {a} {at} and was forgotten.",
    "There was a hole in the pocket of {a}, and so {the} was lost {at}.",
)
_PLAY = templates(
    "{A} looked at {the} from all sides.",
    "{A} cleaned {the} until it looked like new.",
    "{A} held {the} tight.",
    "{A} wondered who had made {the}.",
    "{A} turned {the} over and over and thought of home.",
    "{A} counted the scratches on {the}.",
)
_SHOW = templates(
    '{A} showed {the} to {b}. "What a fine {noun}!" said {b}.',
    '{A} let {b} hold {the} for a moment. "I wish I had one like it," said {b}.',
    '{A} asked {b} what {the} was good for. "I have no idea," said {b}.',
)
_ASK_WHERE = templates(
    '"Where is {the}?" asked {a}. "{answer}," said {b}.',
    '{a} asked about {the}. "{answer}," answered {b}.',
    '"Tell me, where is {the} now?" said {a}. "{answer}," whispered {b}.',
)
_ASK_PERSON = templates(
    '"Where {who}?" asked {a}. "{answer}," said {b}.',
    '{a} looked around. "Where {who}?" "{answer}," answered {b}.',
)
_FEEL = templates("{A} was {reason}.", "{A} felt {reason}.", "{A} was quiet for a moment, and {reason}.")
_MEET = templates(
    "{a} heard footsteps. It was {b}, the {who}.",
    "Just then {b} came along, the {who} whom everyone knew.",
    '"Hello, {a}!" called somebody. It was the {who}, {b}.',
    'The {who} came by. "Good day, {b}," said {a}.',
)
_LEAVE = templates(
    "{A} said goodbye and went home, for {her} bed was {home}.",
    "{A} had to go home now. It was not far to the house {home}.",
    "{A} yawned, waved and went back to the little house {home}.",
)
_COUNT = templates(
    "{A} counted {n} {food} in one basket and {m} in another. That made {sum} {food}.",
    "{A} saw {n} {food}, and then {m} more, so there were {sum} in all.",
    "{A} packed {n} {food}, added {m}, and carried {sum} {food} home.",
)
_SHARE = templates(
    "{A} had {n} {food} and gave {m} to {b}. Then {rest} were left.",
    "{A} shared {n} {food} with {b}: {m} for {b}, and {rest} to keep.",
    "{A} brought {n} {food}. {b} ate {m} of them, so {rest} remained.",
)
_BEAST = templates(
    "{a} met {beast} {at}. It {deed}.",
    "{a} saw {beast}, which {deed}.",
    "Not far from {a}, {beast} {deed}.",
    '"Look, {beast}!" said {a}. The animal {deed}.',
)
_WEATHER_TURNS = templates(
    "{a} saw how the weather changed: {going_on}.",
    "By now {going_on}, and {a} thought that it was {was}.",
    '"How {was} it is!" said {a}, for {going_on}.',
)
_GOSSIP = templates(
    '"Did you know that {told}?" {a} asked {b}.',
    "{a} told {b} a secret: {told}.",
    '"I have heard that {told}," said {a} to {b}.',
)
_POINT = templates(
    "{A} pointed {side}, to {q}.",
    "{A} knew that {q} was {side} of {p}.",
    "{A} looked {side}. There, behind the trees, was {q}.",
)
_REST = templates(
    "{A} sat down and rested {at}.",
    "{A} sang a song about the sea.",
    "{A} told a long joke about a goat.",
    "{A} took a deep breath and listened.",
    "{A} hummed and looked at the sky.",
    "{A} ate a piece of bread and was silent.",
    "{A} closed both eyes and counted to ten.",
    "{A} jumped over a puddle and laughed.",
)
_PRAISE = templates(
    '"You are so {trait}, {b}," said {a}. "That is what they all say," said {b}.',
    "{a} said that nobody was as {trait} as {b}. {b} smiled.",
)

_Event = Callable[[Story, Actor, list[Actor]], None]
# event, weight, what must hold: 1 company, 2 holds something, 4 something lies here, 8 company holds
# something, 16 something is not in the own hands, 32 has a reason to tell, 64 room for one more,
# 128 may leave, 256 room for one more thing
_EVENT_LIST: tuple[tuple[_Event, int, int], ...] = (
    (Story.go, 6, 0),
    (Story.go_together, 6, 1),
    (Story.find, 10, 256),
    (Story.pick_up, 10, 4),
    (Story.give, 8, 1 | 2),
    (Story.swap, 5, 1 | 2 | 8),
    (Story.borrow, 5, 1 | 8),
    (Story.put_down, 5, 2),
    (Story.drop, 3, 2),
    (Story.play, 4, 2),
    (Story.show, 4, 1 | 2),
    (Story.ask_where, 12, 1 | 16),
    (Story.ask_person, 4, 1),
    (Story.feel, 12, 32),
    (Story.meet, 5, 64),
    (Story.leave, 3, 128),
    (Story.count, 3, 0),
    (Story.share, 3, 1),
    (Story.beast, 4, 0),
    (Story.weather_turns, 2, 0),
    (Story.gossip, 6, 1),
    (Story.point, 3, 0),
    (Story.rest, 4, 0),
    (Story.praise, 2, 1),
)


class _EventTables(dict[int, Table[_Event]]):
    """The table of possible events for each state of a scene, made when first needed."""

    def __missing__(self, state: int) -> Table[_Event]:
        possible = [(event, weight) for event, weight, needs in _EVENT_LIST if needs & state == needs]
        self[state] = table = Table(
            [event for event, _ in possible], [weight for _, weight in possible], bits=8
        )
        return table


_EVENTS = _EventTables()
