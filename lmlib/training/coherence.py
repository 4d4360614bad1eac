"""How coherent stories of the micro-world are, held against what is known about that world.

- ``check_story``: of any text, how many sentences are ones that the world's grammar has, how many of the
  facts told are true, how many sums come out, how many sentences about two people name two people (nobody
  asks or meets themselves), how many of those who act have been introduced, and whether a story ends with
  what its hero wanted.
- ``closing_accuracy``: a story ends with where everything is, which follows from all that happened: how often
  does a model's likeliest continuation say so, word for word?
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch

from lmlib.architecture import TransformerLM
from lmlib.data import stories
from lmlib.data.dice import Table
from lmlib.data.document import Document
from lmlib.data.world import Resident, with_article, world
from lmlib.tokenization import Tokenizer

_SLOT = re.compile(r"%\((\w+)\)s")
_BREAK = re.compile(r"(?<=[.!?\"])\s+")


@dataclass(frozen=True)
class Report:
    """Counts; add them up over stories. Every second one counts those of the one before that are right."""

    sentences: int = 0
    grammatical: int = 0
    facts: int = 0
    true_facts: int = 0
    sums: int = 0
    right_sums: int = 0
    pairs: int = 0  # somebody does something to somebody, both by name
    distinct_pairs: int = 0
    actors: int = 0  # names that do something, each once a story
    introduced_actors: int = 0
    goals: int = 0  # stories whose hero wants something
    kept_goals: int = 0

    def __add__(self, other: Report) -> Report:
        return Report(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def check_story(text: str) -> Report:
    """Grammar, facts, sums and people of one story."""
    sentences = [each for each in _BREAK.split(text.strip()) if each]
    known = _grammar()
    facts = list(_facts(text))
    sums = [holds(match) for pattern, holds in _sums() for match in pattern.finditer(text)]
    return Report(
        len(sentences),
        sum(known.fullmatch(each) is not None for each in sentences),
        len(facts),
        sum(facts),
        len(sums),
        sum(sums),
        *_people(text),
        *_goals(text),
    )


def check_stories(texts: Iterable[str]) -> Report:
    """The sum of their reports."""
    return sum((check_story(text) for text in texts), Report())


def _texts(table: Table[Any]) -> list[str]:
    return [value for value, _ in table.outcomes if isinstance(value, str)]


def _regex(template: str, wide: str = r"[^.!?\"\n]+?") -> str:
    """A template as a regular expression; a slot that comes twice must say the same twice."""
    parts, seen, end = [], set[str](), 0
    for slot in _SLOT.finditer(template):
        parts.append(re.escape(template[end : slot.start()]))
        name = slot[1]
        parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{wide})")
        seen.add(name)
        end = slot.end()
    return "".join([*parts, re.escape(template[end:])])


@cache
def _grammar() -> re.Pattern[str]:
    """One expression for every sentence that a story can have."""
    tables = [each for each in vars(stories).values() if isinstance(each, Table)]
    tables += list(stories._FACTS.values())
    whole = [text for table in tables for text in _texts(table) if _SLOT.search(text)]
    pieces = {piece for text in whole for piece in _BREAK.split(text.strip())}
    pieces |= {"The %(item)s lay %(at)s.", "%(name)s had the %(item)s."}
    pieces |= {"%(b)s was delighted, because %(she)s loved %(food)s more than anything."}
    return re.compile("|".join(sorted(map(_plain, pieces))))


def _plain(piece: str) -> str:
    """A sentence with its slots open and without names, which an alternative could not repeat."""
    return "".join(
        r"[^.!?\"\n]+?" if index % 2 else re.escape(part) for index, part in enumerate(_SLOT.split(piece))
    )


@cache
def _fact_patterns() -> list[tuple[str, re.Pattern[str]]]:
    word = r"[A-Z][a-z]+"
    found = []
    for kind, table in stories._FACTS.items():
        for text in _texts(table):
            pattern = _regex(text.strip(), r"[\w' -]+?").replace("(?P<A>[\\w' -]+?)", f"(?P<A>{word})")
            found.append((kind, re.compile(pattern)))
    return found


def _facts(text: str) -> Iterable[bool]:
    """Whether each fact told about a resident is true."""
    people = world().by_name
    hero = next((word for word in re.findall(r"[A-Z][a-z]+", text) if word in people), "")
    for kind, pattern in _fact_patterns():
        for match in pattern.finditer(text):
            name = hero if match["A"] in ("He", "She") else match["A"]
            resident = people.get(name)
            if resident is not None:
                yield match[kind] == _truth(resident, kind)


def _truth(resident: Resident, kind: str) -> str:
    if kind == "friend":
        return world().friend(resident).name
    if kind == "treasure":
        return with_article(resident.treasure)
    return str(getattr(resident, kind))


@cache
def _sums() -> list[tuple[re.Pattern[str], Any]]:
    rules = (
        (stories._COUNT, lambda m: int(m["n"]) + int(m["m"]) == int(m["sum"])),
        (stories._SHARE, lambda m: int(m["n"]) - int(m["m"]) == int(m["rest"])),
        (stories._CAKE, lambda m: int(m["n"]) - int(m["m"]) == int(m["k"])),
    )
    numbers = ("n", "m", "sum", "rest", "k")
    found = []
    for table, right in rules:
        for text in _texts(table):
            pattern = _regex(text.strip(), r"[^.!?\"\n]+?")
            for name in numbers:
                pattern = pattern.replace(f'(?P<{name}>[^.!?\\"\\n]+?)', f"(?P<{name}>\\d+)")
            found.append((re.compile(pattern), right))
    return found


_INTRODUCES = {
    "a": (stories._OPENINGS, stories._SCENES),
    "b": (stories._SCENES, stories._COMPANIONS, stories._MEET),
}


@cache
def _acts() -> list[tuple[re.Pattern[str], list[str]]]:
    """What somebody (slots a, A and b) can do, from the start of a sentence; and which slots introduce.

    Without feelings: "It was ..." would fit.
    """
    tables = [
        each for each in vars(stories).values() if isinstance(each, Table) and each is not stories._FEEL
    ]
    found = []
    for table in tables:
        introducing = [slot for slot, those in _INTRODUCES.items() if table in those]
        for text in _texts(table):
            if {"a", "A", "b"} & set(_SLOT.findall(text)):
                pattern = _regex(text.strip())
                for slot in "aAb":
                    pattern = pattern.replace(f'(?P<{slot}>[^.!?\\"\\n]+?)', f"(?P<{slot}>[A-Z][a-z]+)")
                found.append((re.compile(r"(?:\A|(?<=[.!?\"]\s)|(?<=\n))" + pattern), introducing))
    return found


def _people(text: str) -> tuple[int, int, int, int]:
    """(pairs, distinct pairs, actors, introduced actors) of a story. Pronouns are left out."""
    pairs = dict[int, bool]()  # where -> whether it names two; templates overlap
    actors, introduced = dict[str, int](), dict[str, int]()  # name -> where first
    for pattern, introducing in _acts():
        for match in pattern.finditer(text):
            named = {slot: name for slot, name in match.groupdict().items() if slot in ("a", "A", "b")}
            named = {slot: name for slot, name in named.items() if name not in ("He", "She", "They")}
            if len(named) == 2:
                pairs[match.start()] = len(set(named.values())) == 2
            for slot, name in named.items():
                for seen in (actors, introduced) if slot in introducing else (actors,):
                    seen[name] = min(match.start(), seen.get(name, match.start()))
    known = sum(name in introduced and introduced[name] <= at for name, at in actors.items())
    return len(pairs), sum(pairs.values()), len(actors), known


@cache
def _goal_patterns() -> list[tuple[list[re.Pattern[str]], list[re.Pattern[str]]]]:
    """Of each goal, how a story says it at first, and how it says what came of it."""
    ends = {
        stories._LOST: (stories._FOUND_AGAIN,),
        stories._PRESENT: (stories._PRESENT_GIVEN, stories._PRESENT_MISSING),
        stories._LETTER: (stories._LETTER_END,),
        stories._CAKE: (stories._CAKE_END,),
        stories._WALK: (stories._WALK_END,),
    }
    return [
        (
            [re.compile(_regex(text.strip())) for text in _texts(want)],
            [re.compile(_regex(text.strip())) for table in tables for text in _texts(table)],
        )
        for want, tables in ends.items()
    ]


def _goals(text: str) -> tuple[int, int]:
    """(1, 1) for a story that ends with what its hero wanted, and with nothing else."""
    wanted, came = (
        [any(pattern.search(text) for pattern in both[side]) for both in _goal_patterns()] for side in (0, 1)
    )
    return int(any(wanted)), int(any(wanted) and wanted == came)


@torch.no_grad()
def closing_accuracy(
    model: TransformerLM, tokenizer: Tokenizer, documents: Iterable[Document], device: str = "cpu"
) -> tuple[int, int]:
    """(right, all) closing lines of true stories that the model's likeliest tokens spell out exactly.

    Each line is judged after the true text before it. Stories beyond the model's context are cut off.
    """
    right = total = 0
    end = tokenizer.special_tokens["<|endoftext|>"]
    for document in documents:
        ids = [end, *tokenizer.encode_ordinary(document.text)][: model.config.context_length]
        tokens = torch.tensor([ids], device=device)
        likeliest = model(tokens)[0].argmax(-1).tolist()
        ends = list(accumulate(len(tokenizer.token_bytes(each)) for each in ids[1:]))
        for start, stop in _closing_lines(document):
            places = [i for i, at in enumerate(ends) if at > start and (ends[i - 1] if i else 0) < stop]
            if not places or ends[-1] < stop:
                continue
            total += 1
            right += all(likeliest[i] == ids[i + 1] for i in places)
    return right, total


def _closing_lines(document: Document) -> Iterable[tuple[int, int]]:
    """Where the closing lines lie, in bytes."""
    lines = [f" {name} had the {item}." for item, name in document.labels["holders"].items()]
    lines += [f" The {item} lay {at}." for item, at in document.labels["lying"].items()]
    for line in lines:
        at = document.text.rfind(line)
        if at >= 0:
            start = len(document.text[:at].encode())
            yield start, start + len(line.encode())
