"""The micro-world as a corpus: deterministic, shardable, bounded."""

from __future__ import annotations

import hashlib

import pytest

from lmlib.data import micro_world


def _sha(corpus) -> str:
    return hashlib.sha256("<|endoftext|>".join(corpus.texts()).encode()).hexdigest()


def test_a_document_depends_on_its_own_index_only():
    corpus = micro_world(3)
    in_order = [document.text for document in micro_world(3, n_documents=20)]
    assert [corpus.document(i).text for i in reversed(range(20))] == in_order[::-1]


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_shards_together_are_the_corpus(parts):
    whole = [document.id for document in micro_world(1, n_documents=42)]
    shards = [list(micro_world(1, n_documents=42 // parts, shard=(k, parts))) for k in range(parts)]
    assert [shards[i % parts][i // parts].id for i in range(42)] == whole


def test_bounds():
    documents = list(micro_world(0, n_bytes=50_000))
    sizes = [len(document.text.encode()) for document in documents]
    assert sum(sizes) >= 50_000 > sum(sizes[:-1])
    assert not list(micro_world(0, n_documents=0))


def test_seeds_and_splits_give_other_text():
    texts = {
        micro_world(seed, split=split).document(0).text
        for seed in (0, 1)
        for split in ("train", "valid", "test")
    }
    assert len(texts) == 6


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "dev"}, "split.*'dev'"),
        ({"kind": "poem"}, "kind.*'poem'"),
        ({"seed": -1}, "seed.*-1"),
        ({"n_bytes": -5}, "n_bytes.*-5"),
        ({"shard": (2, 2)}, r"shard.*\(2, 2\)"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        micro_world(**arguments)


def test_the_text_is_the_same_everywhere_and_for_ever():
    # Recorded numbers and bundled models of the book rest on these bytes. A change of the generator is a
    # change of all of them: then renew this hash, and the records, on purpose.
    assert _sha(micro_world(0, n_documents=100)) == (
        "a8401b3d42560b176fc7476504b6b9643530d9ebce82531b6688ad765575dd17"
    )
