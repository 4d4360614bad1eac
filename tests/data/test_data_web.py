"""Planted duplicates are where the list says and nowhere else; labels are what a reader finds."""

from __future__ import annotations

import hashlib
import re
from itertools import combinations

import pytest

from lmlib.data import micro_world, planted_duplicates, truth

N = 1500
PAGES = list(micro_world(4, kind="web", n_documents=N))


def _shingles(text):
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[i : i + 3]) for i in range(len(found) - 2)}


def _jaccard(one, other):
    return len(one & other) / len(one | other)


def test_equal_texts_are_exactly_the_planted_exact_copies():
    first_with = {}
    found = set()
    for index, page in enumerate(PAGES):
        text = " ".join(page.text.split())
        if text in first_with:
            found.add((first_with[text], index))
        else:
            first_with[text] = index
    planted = planted_duplicates(N, 4)
    assert found == {(copy.root, copy.index) for copy in planted if copy.kind == "exact"}
    assert len(found) > N // 20


def test_similar_texts_are_exactly_the_planted_near_copies():
    # Every pair of 600 pages: similar ones have one root, and every near copy is similar to its root.
    shingles = [_shingles(page.text) for page in PAGES[:600]]
    root = {copy.index: copy.root for copy in planted_duplicates(600, 4)}
    unrelated = 0.0
    for i, j in combinations(range(600), 2):
        if root.get(i, i) != root.get(j, j):
            unrelated = max(unrelated, _jaccard(shingles[i], shingles[j]))
    near = [
        _jaccard(shingles[copy.root], shingles[copy.index])
        for copy in planted_duplicates(600, 4)
        if copy.kind == "near"
    ]
    assert len(near) > 30
    assert unrelated < 0.4 < 0.65 < min(near) < max(near) < 1


def test_the_list_agrees_with_the_labels_and_roots_are_originals():
    planted = {copy.index: copy for copy in planted_duplicates(N, 4)}
    for index, page in enumerate(PAGES):
        copy = planted.get(index)
        assert page.labels["duplicate_of"] == (copy.root if copy else None)
        assert page.labels["duplicate_kind"] == (copy.kind if copy else "")
    assert all(copy.root < copy.index and copy.root not in planted for copy in planted.values())
    assert planted_duplicates(500, 4) == [copy for copy in planted.values() if copy.index < 500]


def test_personal_data_is_marked_and_nothing_else_looks_like_it():
    patterns = {
        "email": r"[\w.]+@[\w.]+\.example",
        "phone": r"\(?\d{3}\)?[-. ]555[-. ]01\d\d",
        "ip": r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}",
    }
    seen = 0
    for page in PAGES:
        found = sorted(
            (match.start(), match.end(), kind)
            for kind, pattern in patterns.items()
            for match in re.finditer(pattern, page.text)
        )
        assert found == page.labels["pii"]
        seen += len(found)
    assert seen > 200


def test_boilerplate_is_whole_lines_shared_by_many_pages():
    for page in PAGES:
        lines = page.text.split("\n")
        marked = [page.text[start:end] for start, end in page.labels["boilerplate"]]
        assert marked == [lines[0], *lines[-2:]]
    menus = {page.text.partition("\n")[0] for page in PAGES}
    assert len(menus) < N // 5


def test_quality_is_visible_in_the_text():
    of = {
        quality: [page for page in PAGES if page.labels["quality"] == quality] for quality in ("high", "low")
    }
    assert all("BUY" not in page.text and "construction" not in page.text for page in of["high"])
    assert min(map(len, of.values())) > N // 10
    spam = [page for page in PAGES if page.labels["type"] == "spam"]
    assert all(page.text.count("!!!") >= 4 for page in spam)


def test_a_page_needs_no_other_page_and_shards_make_the_corpus():
    corpus = micro_world(4, kind="web")
    assert [corpus.document(i) for i in reversed(range(40))] == PAGES[:40][::-1]
    shard = list(micro_world(4, kind="web", n_documents=10, shard=(1, 3)))
    assert shard == PAGES[1:30:3]


def test_pages_have_no_known_probability_and_the_truth_refuses_them():
    assert PAGES[0].log2_probability is None
    with pytest.raises(ValueError, match=r"kind.*'web'"):
        truth.bits_per_byte(0, 3, kind="web")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1,), r"n_documents.*-1"),
        ((1.5,), r"n_documents.*1\.5"),
        ((3, -2), r"seed.*-2"),
        ((3, 0, "dev"), r"split.*'dev'"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        planted_duplicates(*arguments)


def test_pages_are_the_same_everywhere_and_for_ever():
    whole = "<|endoftext|>".join(micro_world(0, kind="web", n_documents=100).texts())
    assert (
        hashlib.sha256(whole.encode()).hexdigest()
        == "213d6cccfed5bd78e7263762f2b9e07436ebac3c5c52bc1b52548becf91759af"
    )
