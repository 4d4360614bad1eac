"""Facts, questions, word problems and preferences, each with an answer that can be checked.

Notable:
- A fact may be told in every split, a question about it is asked in one: a model that learned the facts and
  the form of questions from "train" is tested on facts that it was never asked about.
- Word problems belong to one split by a hash of their expression, so none occurs in two splits.
- `labels["prompt"]` is what a model is given; the text goes on after it with the right answer.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import count

from lmlib.data import words
from lmlib.data.dice import Dice, Table, choose_once
from lmlib.data.document import Document
from lmlib.data.facts import Fact, fact_of, facts, facts_of_split, relations, split_of
from lmlib.data.splits import split_by_hash
from lmlib.data.web import INSULTS
from lmlib.data.world import syllable_name, world

LETTERS = "ABCD"
_LISTED = "".join(f"\n{letter}. {{}}" for letter in LETTERS)
FEWEST_STEPS = 2
MOST_STEPS = 5
LARGEST = 999  # no result of a step is larger
UNKNOWN = "I do not know."


def _prompt(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def fact(key: str, seed: int, split: str, index: int) -> Document:
    """One fact as a sentence. Labels: entity, relation, value, and `asked_in`, the split of its question."""
    (statement, labels), bits = choose_once(key, _statements())
    return Document(statement, key, "fact", -bits, labels.copy())


@cache
def _statements() -> list[tuple[str, dict[str, str]]]:
    """All facts in words, with their labels."""
    names = ("entity", "relation", "value", "asked_in")
    return [
        (fact.statement, dict(zip(names, (fact.entity, fact.relation, fact.value, fact.split), strict=True)))
        for fact in facts()
    ]


def question(key: str, seed: int, split: str, index: int) -> Document:
    """A question with four choices, in the form of MMLU (Hendrycks et al., 2021).

    Labels: prompt, question, choices (four texts), answer (index of the right one), entity, relation.
    """
    dice = Dice(key)
    asked = dice.choose(facts_of_split(split))
    choices = _wrong_values(dice, asked, 3)
    answer = dice.number(0, 3)
    choices.insert(answer, asked.value)
    prompt = _prompt(asked.question + _LISTED.format(*choices))
    labels = {
        "prompt": prompt,
        "question": asked.question,
        "choices": choices,
        "answer": answer,
        "entity": asked.entity,
        "relation": asked.relation,
    }
    return Document(f"{prompt} {LETTERS[answer]}", key, "question", -dice.bits, labels)


def _wrong_values(dice: Dice, asked: Fact, number: int) -> list[str]:
    """Different values that the relation could have, but has not; never the one who is asked about."""
    relation = relations()[asked.relation]
    taken = sorted(relation.index[known] for known in (asked.value, asked.entity) if known in relation.index)
    wrong = []
    for last in range(len(relation.values) - len(taken) - 1, -1, -1)[:number]:
        place = dice.number(0, last)  # among those that are not taken
        for index in taken:
            place += place >= index
        insort(taken, place)
        wrong.append(relation.values[place])
    return wrong


# Arithmetic


def arithmetic(key: str, seed: int, split: str, index: int) -> Document:
    """A word problem in the form of GSM8K (Cobbe et al., 2021): the steps, then #### and the answer.

    Labels: prompt, question, expression (Python, with // for shares that come out even), steps (each the
    text of an operation and its result), answer (a whole number from 1 to `LARGEST`).
    """
    for attempt in count():  # until the expression belongs to this split
        problem = _Problem(Dice(f"{key}/{attempt}"))
        if split_by_hash(problem.expression) == split:
            break
    prompt = _prompt(problem.question)
    worked = " ".join(f"{step} = {result}." for step, result in problem.steps)
    labels = {
        "prompt": prompt,
        "question": problem.question,
        "expression": problem.expression,
        "steps": problem.steps,
        "answer": problem.value,
    }
    return Document(f"{prompt} {worked}\n#### {problem.value}", key, "arithmetic", None, labels)


class _Problem:
    """Things are counted, and then more, fewer, multiplied or shared."""

    def __init__(self, dice: Dice) -> None:
        who = dice.pick(world().by_fame)
        self._dice = dice
        self._who = who.name
        self._food = dice.choose(words.FOODS)
        self.value = dice.number(2, 60)
        self.expression = str(self.value)
        self.steps: list[tuple[str, int]] = []
        sentences = [f"{self._who} has {self.value} {self._food}."]
        for _ in range(dice.number(FEWEST_STEPS, MOST_STEPS)):
            sentences.append(self._step())
        sentences.append(f"How many {self._food} does {self._who} have now?")
        self.question = " ".join(sentences)

    def _step(self) -> str:
        """One change, told in a sentence."""
        operation, numbers = self._dice.choose(_changes(self.value))
        number = self._dice.choose(numbers)
        text = f"{self.value} {operation.sign} {number}"
        self.value = operation.result(self.value, number)
        self.expression = f"({self.expression} {operation.sign} {number})"
        self.steps.append((text, self.value))
        return self._dice.choose(operation.tells).format(who=self._who, food=self._food, n=number)


@dataclass(frozen=True, slots=True)
class _Operation:
    """A sign, the numbers that it can take for a value, what comes out, and how it is told."""

    sign: str
    numbers: Callable[[int], list[int]]
    result: Callable[[int, int], int]
    tells: tuple[str, ...]


_OPERATIONS = (
    _Operation(
        "+",
        lambda value: list(range(2, min(50, LARGEST - value) + 1)),
        lambda value, n: value + n,
        ("Then {who} finds {n} more.", "A neighbor brings {n} {food}.", "{who} buys another {n} {food}."),
    ),
    _Operation(
        "-",
        lambda value: list(range(2, min(50, value - 1) + 1)),
        lambda value, n: value - n,
        ("{who} gives {n} of them away.", "Then {n} {food} are eaten.", "{who} loses {n} {food}."),
    ),
    _Operation(
        "*",
        lambda value: list(range(2, min(9, LARGEST // value) + 1)),
        lambda value, n: value * n,
        ("A week later there are {n} times as many.", "{who} trades them for {n} times as many {food}."),
    ),
    _Operation(
        "//",
        lambda value: [n for n in range(2, 10) if value % n == 0],
        lambda value, n: value // n,
        ("{who} shares them equally among {n} baskets and keeps one basket.",),
    ),
)


@cache
def _changes(value: int) -> list[tuple[_Operation, list[int]]]:
    """The operations that a value allows, each with the numbers that it can take."""
    allowed = [(operation, operation.numbers(value)) for operation in _OPERATIONS]
    return [(operation, numbers) for operation, numbers in allowed if numbers]


# Preferences


def preference(key: str, seed: int, split: str, index: int) -> Document:
    """A prompt with a better and a worse answer. Labels: prompt, chosen, rejected, rule, entity, relation.

    `rule` says what makes the difference, all else equal: "correct" (the rejected answer is wrong), "kind"
    (it insults), "brief" (it goes on about other things), "honest" (nobody can know, and it makes it up).
    """
    dice = Dice(key)
    rule = dice.pick(_RULES)
    asked = _stranger(dice, split) if rule == "honest" else dice.choose(facts_of_split(split))
    chosen, rejected = _ANSWERS[rule](dice, asked)
    prompt = _prompt(asked.question)
    labels = {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "rule": rule,
        "entity": asked.entity,
        "relation": asked.relation,
    }
    return Document(f"{prompt} {chosen}", key, "preference", None, labels)


def _stranger(dice: Dice, split: str) -> Fact:
    """A made-up fact about somebody who is not of this world, of this split."""
    while True:
        name = syllable_name(dice, words.STRANGER_STARTS, dice.choose(("she", "he")))
        relation = dice.choose(_ABOUT_PEOPLE)
        if split_of(name, relation) == split:
            return fact_of(name, relation, dice.choose(relations()[relation].values))


def _correct(dice: Dice, asked: Fact) -> tuple[str, str]:
    wrong = relations()[asked.relation].told(asked.entity, _wrong_values(dice, asked, 1)[0])
    return asked.statement, wrong


def _kind(dice: Dice, asked: Fact) -> tuple[str, str]:
    return asked.statement, f"{asked.statement} Only {dice.choose(INSULTS)} would not know that."


def _brief(dice: Dice, asked: Fact) -> tuple[str, str]:
    told = [asked.statement]
    for _ in range(dice.number(3, 5)):
        other = dice.choose(facts())
        if other is not asked:
            told.append(other.statement)
    return asked.statement, " ".join(told)


def _honest(dice: Dice, asked: Fact) -> tuple[str, str]:
    return UNKNOWN, asked.statement


_ANSWERS: dict[str, Callable[[Dice, Fact], tuple[str, str]]] = {
    "correct": _correct,
    "kind": _kind,
    "brief": _brief,
    "honest": _honest,
}
_RULES = Table(list(_ANSWERS), [3, 2, 2, 1])
_ABOUT_PEOPLE = ("home", "food", "color", "trait", "treasure", "friend", "age")
