"""Which tokens are their own encoding: what recognition says is what merging gives."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.tokenization import Tokenizer
from lmlib.tokenization.merging import merge_ids
from lmlib.tokenization.recognition import own_encodings

BYTES = list(range(256))


def own(merges: list[tuple[int, int]]) -> tuple[set[int], dict[tuple[int, int], int], list[int]]:
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    made = [256 + rank for rank in range(len(merges))]
    return own_encodings(BYTES, ranks, made), ranks, made


def spelled(token: int, merges: list[tuple[int, int]]) -> list[int]:
    return [token] if token < 256 else [b for part in merges[token - 256] for b in spelled(part, merges)]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 25))
def test_made_up_merges(seed: int, n_letters: int, n_merges: int) -> None:
    """Merges in an order that no corpus would give: many tokens are not what their bytes become."""
    choose = random.Random(seed)
    alphabet: list[int] = list(range(97, 97 + n_letters))
    merges: list[tuple[int, int]] = []
    for _ in range(n_merges):
        pair = choose.choice(alphabet), choose.choice(alphabet)
        if pair not in merges and len(spelled(pair[0], merges)) + len(spelled(pair[1], merges)) <= 64:
            merges.append(pair)
            alphabet.append(255 + len(merges))
    recognized, ranks, made = own(merges)
    for token in alphabet:
        merged = merge_ids(spelled(token, merges), ranks, made)
        assert (token in recognized) == (merged == [token])


def test_a_token_that_its_bytes_never_become() -> None:
    # bc is merged before ab, so the bytes of (ab)c become a(bc).
    recognized, _, _ = own([(98, 99), (97, 98), (257, 99)])
    assert 256 in recognized
    assert 257 in recognized
    assert 258 not in recognized


@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k"])
def test_trained_vocabularies(name: str, openai: Callable[[str], Tokenizer]) -> None:
    tokenizer = openai(name)
    recognized = own_encodings(
        tokenizer.byte_ids(bytes(range(256))), tokenizer.pair_ranks, tokenizer.merged_ids
    )
    vocab = tokenizer.vocab
    for id_ in random.Random(0).sample(list(vocab), min(1000, len(vocab))):
        token = vocab[id_]
        if token.decode("utf-8", "replace") not in tokenizer.special_tokens:
            merged = merge_ids(tokenizer.byte_ids(token), tokenizer.pair_ranks, tokenizer.merged_ids)
            assert (id_ in recognized) == (merged == [id_])


def test_merges_that_training_would_not_give_are_left_to_merging() -> None:
    twice = own_encodings(BYTES, {(97, 98): 0, (98, 97): 1}, [256, 256])  # one token, two merges
    backwards = own_encodings(BYTES, {(257, 97): 0, (97, 98): 1}, [256, 257])  # a part made later
    assert twice == backwards == set()
