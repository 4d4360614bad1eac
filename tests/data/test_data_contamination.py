"""Leaked questions are found, others are not."""

from __future__ import annotations

import pytest

from lmlib.data import micro_world, overlaps


def test_leaked_questions_are_found_and_no_others():
    questions = [
        document.labels["prompt"]
        for document in micro_world(2, kind="arithmetic", split="test", n_documents=40)
    ]
    pages = list(micro_world(2, kind="web", n_documents=200).texts())
    assert overlaps(questions, pages) == [0.0] * 40
    leaked = {3: 7, 20: 150}  # question -> page
    for item, page in leaked.items():
        pages[page] += "\n" + questions[item].upper().replace(".", " ;")
    shares = overlaps(questions, pages)
    assert {item for item, share in enumerate(shares) if share == 1} == set(leaked)


def test_shares_counted_by_hand():
    assert overlaps(["a b c d", "A, b!", "", "x y"], ["Z a b c", "b c e"], n=3) == [0.5, 1.0, 0.0, 0.0]


def test_n_below_one_is_refused():
    with pytest.raises(ValueError, match=r"n must be .*0"):
        overlaps(["a"], ["a"], n=0)
