"""Right answers are right: each is found again from the world or from the text, not from the generator."""

from __future__ import annotations

import ast
import hashlib
import operator
import re
import time
import zlib
from fractions import Fraction
from math import log2

import pytest

from lmlib.data import micro_world, truth, words
from lmlib.data.dice import Dice
from lmlib.data.facts import fact_of, facts, relations, split_of
from lmlib.data.tasks import _wrong_values
from lmlib.data.world import world

SPLITS = ("train", "valid", "test")
N = 400


def _documents(kind, split="train", n=N):
    return list(micro_world(6, kind=kind, split=split, n_documents=n))


def _look_up(entity, relation):
    """The truth, straight from the world's residents and its grid of places."""
    if relation in words.SIDES:
        names = [place[0] for place in words.PLACES]
        row, column = divmod(names.index(entity), 6)
        down, right = {"north": (-1, 0), "south": (1, 0), "east": (0, 1), "west": (0, -1)}[relation]
        assert 0 <= row + down < 5
        assert 0 <= column + right < 6
        return names[6 * (row + down) + column + right]
    resident = next(resident for resident in world().residents if resident.name == entity)
    if relation == "friend":
        return world().residents[resident.friend_index].name
    value = getattr(resident, relation)
    return value.at if relation == "home" else str(value)


def _evaluate(node):
    """An expression of whole numbers, in fractions, so that an uneven share would show."""
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    signs = {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.FloorDiv: operator.truediv,
    }
    return signs[type(node.op)](_evaluate(node.left), _evaluate(node.right))


def test_facts_are_true():
    for document in _documents("fact"):
        labels = document.labels
        assert labels["value"] == _look_up(labels["entity"], labels["relation"])
        text = document.text.lower()
        assert labels["entity"].lower() in text
        assert labels["value"].lower() in text


@pytest.mark.parametrize("split", SPLITS)
def test_the_marked_choice_and_no_other_is_right(split):
    positions = set()
    for document in _documents("question", split):
        labels = document.labels
        right = _look_up(labels["entity"], labels["relation"])
        assert [choice == right for choice in labels["choices"]].count(True) == 1
        assert labels["choices"][labels["answer"]] == right
        assert len(set(labels["choices"])) == 4
        assert labels["entity"] not in labels["choices"]
        assert labels["entity"] in labels["question"]
        listed = re.findall(r"^([ABCD])\. (.+)$", labels["prompt"], re.MULTILINE)
        assert listed == list(zip("ABCD", labels["choices"], strict=True))
        assert document.text == f"{labels['prompt']} {'ABCD'[labels['answer']]}"
        positions.add(labels["answer"])
    assert positions == {0, 1, 2, 3}


def test_questions_and_facts_are_worth_what_counting_gives():
    # All facts are equally likely, then wrong choices one after the other, then the place of the right one.
    n_facts = 600 * 7 + 2 * (5 * 5 + 4 * 6)
    for document in _documents("fact", n=50):
        assert -document.log2_probability == pytest.approx(log2(n_facts), abs=0.1)
    foods = [d for d in _documents("question") if d.labels["relation"] == "food"]
    wrong = len(words.FOODS) - 1
    bits = [-d.log2_probability - log2(wrong * (wrong - 1) * (wrong - 2) * 4) for d in foods]
    assert len(bits) > 20
    assert all(2**bit == pytest.approx(0.8 * n_facts, rel=0.1) for bit in bits)
    assert truth.bits_per_byte(6, 20, kind="question") > 0


def test_questions_of_two_splits_ask_for_different_facts():
    for kind in ("question", "preference"):
        asked = [
            {(d.labels["entity"], d.labels["relation"]) for d in _documents(kind, split)} for split in SPLITS
        ]
        assert not (asked[0] & asked[1])
        assert not (asked[0] & asked[2])
        assert not (asked[1] & asked[2])
    for document in _documents("question", "valid"):
        key = f"micro-world 1/{document.labels['entity']}/{document.labels['relation']}"
        assert hashlib.sha256(key.encode()).digest()[0] < 26
    told = {d.labels["asked_in"] for d in _documents("fact")}
    assert told == set(SPLITS)


@pytest.mark.parametrize("split", SPLITS)
def test_word_problems_come_out_as_they_say(split):
    for document in _documents("arithmetic", split):
        labels = document.labels
        assert _evaluate(ast.parse(labels["expression"], mode="eval").body) == labels["answer"]
        assert 1 <= labels["answer"] <= 999
        for step, result in labels["steps"]:
            assert _evaluate(ast.parse(step, mode="eval").body) == result
        assert labels["steps"][-1][1] == labels["answer"]
        assert document.text.startswith(labels["prompt"] + " ")
        assert document.text.endswith(f"\n#### {labels['answer']}")


def test_word_problems_say_what_their_expression_says():
    # Read the sentences without the labels: a number and what happens with it.
    signs = {
        r"finds (\d+) more|brings (\d+) |buys another (\d+) ": operator.add,
        r"gives (\d+) of them|Then (\d+) \w+ are eaten|loses (\d+) ": operator.sub,
        r"(\d+) times as many": operator.mul,
        r"among (\d+) baskets": operator.floordiv,
    }
    for document in _documents("arithmetic"):
        first, *changes, _ = re.split(r"(?<=[.?]) ", document.labels["question"])
        value = int(re.search(r"has (\d+) ", first)[1])
        for change in changes:
            (found,) = [(match, sign) for p, sign in signs.items() if (match := re.search(p, change))]
            value = found[1](value, int(found[0][found[0].lastindex]))
        assert value == document.labels["answer"]


def test_word_problems_of_two_splits_are_different():
    seen = [{d.labels["expression"] for d in _documents("arithmetic", split)} for split in SPLITS]
    assert not (seen[0] & seen[1])
    assert not (seen[0] & seen[2])
    assert not (seen[1] & seen[2])


def test_preferences_differ_by_their_rule():
    rules = {"correct": 0, "kind": 0, "brief": 0, "honest": 0}
    names = {resident.name for resident in world().residents}
    for document in _documents("preference"):
        labels = document.labels
        chosen, rejected, rule = labels["chosen"], labels["rejected"], labels["rule"]
        rules[rule] += 1
        assert document.text == f"{labels['prompt']} {chosen}"
        assert chosen != rejected
        if rule == "honest":
            assert labels["entity"] not in names
            assert labels["entity"] in labels["prompt"]
            assert chosen == "I do not know."
            assert labels["entity"] in rejected
            continue
        right = _look_up(labels["entity"], labels["relation"])
        assert re.search(rf"\b{re.escape(right)}\b", chosen, re.IGNORECASE)
        if rule == "correct":
            assert not re.search(rf"\b{re.escape(right)}\b", rejected, re.IGNORECASE)
            assert rejected.count(".") == 1
        else:
            assert rejected.startswith(chosen + " ")
            assert ("would not know that" in rejected) == (rule == "kind")
    assert min(rules.values()) > 20


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("fact", "632e5a02ccf8f3da"),
        ("question", "c70579b753a2bafa"),
        ("arithmetic", "7d7d6bd10c8fe08c"),
        ("preference", "efc11b5ea8f51abd"),
    ],
)
def test_tasks_are_the_same_everywhere_and_for_ever(kind, expected):
    documents = list(micro_world(0, kind=kind, n_documents=100))
    whole = "\n".join(f"{document.text}\t{sorted(document.labels.items())}" for document in documents)
    assert hashlib.sha256(whole.encode()).hexdigest()[:16] == expected
    assert micro_world(0, kind=kind).document(57) == documents[57]


def test_wrong_choices_are_drawn_from_what_is_left():
    # The same draws from a list that has lost the right value, the one who is asked about, and each choice.
    for fact in facts()[::7]:
        values = list(relations()[fact.relation].values)
        rest = [value for value in values if value not in (fact.value, fact.entity)]
        ours, theirs = Dice(fact.statement), Dice(fact.statement)
        expected = [rest.pop(theirs.choose(range(len(rest)))) for _ in range(3)]
        assert _wrong_values(ours, fact, 3) == expected
        assert ours.bits == theirs.bits


def test_words_of_a_fact():
    fact = fact_of("the pond", "north", "the moon")
    assert fact.statement == "Just north of the pond is the moon."
    assert fact.question == "What is just north of the pond?"
    assert fact.split == split_of("the pond", "north")


@pytest.mark.parametrize(
    ("kind", "at_most"), [("fact", 4), ("question", 4), ("arithmetic", 7), ("preference", 6)]
)
def test_tasks_are_made_about_as_fast_as_zlib_packs_them(kind, at_most):
    # 10 MB/s is the aim. zlib -9 on the same core is the yardstick, so that a busy machine does not fail: it
    # takes 0.4 to 0.9 times as long as making them did when this was written.
    def seconds(work):
        start = time.process_time()
        result = work()
        return time.process_time() - start, result

    rounds = []
    for seed in range(3):
        made, text = seconds(
            lambda seed=seed: "\n".join(micro_world(seed, kind=kind, n_bytes=300_000).texts())
        )
        packed, _ = seconds(lambda text=text: zlib.compress(text.encode(), 9))
        rounds.append(made / packed)
    assert min(rounds) < at_most
