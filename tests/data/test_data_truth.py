"""Declared probabilities are what happens, and what the text is worth."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from math import inf, isclose

import pytest
from scipy.stats import chisquare

from lmlib.data import micro_world, stories, truth
from lmlib.data.dice import UNIFORM_COSTS, Dice, Table, choose_once, zipf_weights
from lmlib.data.ngrams import NGram, as_bytes, as_words
from lmlib.data.report import report


def test_draws_are_the_bytes_of_shake_128():
    dice = Dice("a key")
    blocks = [hashlib.shake_128(f"a key/{block}".encode()).digest(512) for block in range(3)]
    expected = [number for block in blocks for number in struct.unpack("<256H", block)]
    assert [dice.number(0, 65535) for _ in expected] == expected
    assert dice.bits == 16 * len(expected)


def test_choosing_once_is_the_first_choice():
    for n in (1, 2, 3, 600, 4298):
        for key in map(str, range(50)):
            dice = Dice(key)
            assert choose_once(key, range(n)) == (dice.choose(range(n)), dice.bits)


@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [7, 1], zipf_weights(40), [10**9, *[1] * 100]])
def test_a_table_declares_what_it_does(weights):
    table = Table(range(len(weights)), weights)
    assert isclose(sum(2.0**-cost for _, cost in table.outcomes), 1)
    dice = Dice("frequencies")
    seen = Counter(dice.pick(table) for _ in range(20_000))
    expected = [20_000 * 2.0**-cost for _, cost in table.outcomes]
    assert len(weights) == 1 or chisquare([seen[k] for k in range(len(weights))], expected).pvalue > 1e-4


def test_choices_among_the_free_have_the_declared_probabilities():
    table = Table(range(6), [6, 5, 4, 3, 2, 1])
    dice = Dice("except")
    seen, bits = Counter(), {}
    for _ in range(20_000):
        before = dice.bits
        value = dice.pick_except(table, (0, 1, 4, 5))
        seen[value] += 1
        bits[value] = dice.bits - before
    assert set(seen) == {2, 3}
    assert isclose(sum(2.0**-cost for cost in bits.values()), 1)
    assert chisquare([seen[k] for k in (2, 3)], [20_000 * 2.0 ** -bits[k] for k in (2, 3)]).pvalue > 1e-4


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50, 600])
def test_uniform_choices_sum_to_one(n):
    assert isclose(sum(2.0**-cost for cost in UNIFORM_COSTS[n]), 1)
    dice = Dice("uniform")
    seen = Counter(dice.choose(range(n)) for _ in range(20_000))
    assert n == 1 or chisquare([seen[k] for k in range(n)]).pvalue > 1e-4


@pytest.mark.parametrize("index", [4])
def test_a_short_story_is_worth_the_bits_of_its_choices(index, monkeypatch):
    # The search adds up every series of choices that gives the text: equality means there is no second one.
    # Short stories, because the search takes up to a minute for a long one.
    monkeypatch.setattr(stories, "FEWEST_EVENTS", 3)
    monkeypatch.setattr(stories, "MOST_EVENTS", 3)
    document = micro_world(5).document(index)
    assert truth.surprisal(document.text) == pytest.approx(-document.log2_probability, abs=1e-6)


def test_what_is_no_story_has_no_probability(monkeypatch):
    monkeypatch.setattr(stories, "FEWEST_EVENTS", 1)
    monkeypatch.setattr(stories, "MOST_EVENTS", 1)
    text = micro_world(5).document(2).text
    assert truth.surprisal(text + " And so on.") == inf


def test_the_truth_is_far_below_what_counting_reaches():
    bits = {row["model"]: row["bits_per_byte"] for row in report(300_000, 50_000)}
    assert bits["truth"] < 0.5 * bits["3-gram of words"] < bits["3-gram of bytes"] < bits["1-gram of bytes"]
    assert bits["truth"] == pytest.approx(truth.bits_per_byte(0, 300), rel=0.05)


@pytest.mark.parametrize("units", [as_bytes, as_words])
def test_ngrams_are_probabilities(units):
    model = NGram(3).fit([units("a cat sat. a dog sat."), units("a cat ran.")])
    vocabulary = {*units("a cat sat. a dog sat. ran."), None} if units is as_words else {*range(256), None}
    context = tuple(units("a cat"))[-2:]
    total = sum(model._probability(context, unit) for unit in vocabulary)
    assert total == pytest.approx(1) if units is as_bytes else 0.5 < total <= 1


def test_words_lose_nothing():
    text = micro_world(0).document(0).text
    assert "".join(as_words(text)) == text
