"""Characters, bytes, words, Unigram, byte fallback, and BPE dropout."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.tokenization import Tokenizer
from lmlib.tokenization.alternatives import (
    ByteTokenizer,
    CharacterTokenizer,
    Codec,
    UnigramTokenizer,
    WordTokenizer,
)
from lmlib.tokenization.dropout import encode_with_dropout

plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=200, deadline=None, database=None)
@given(plain)
def test_nothing_is_lost_by_bytes_and_by_byte_fallback(text: str) -> None:
    for codec in (ByteTokenizer(), CharacterTokenizer("abc \u00e9", byte_fallback=True)):
        assert codec.decode(codec.encode(text)) == text
        assert all(0 <= id_ < codec.vocab_size for id_ in codec.encode(text))


def test_characters() -> None:
    codec = CharacterTokenizer("hello")
    assert codec.vocab_size == 5
    assert codec.encode("hole!") == [2, 4, 3, 1, 0]
    assert codec.decode([2, 4, 3, 1, 0]) == "hole\ufffd"
    fallback = CharacterTokenizer("hello", byte_fallback=True)
    assert fallback.vocab_size == 260
    assert fallback.encode("h\u00e9") == [257, 0xC3, 0xA9]
    assert fallback.decode([257, 0xC3]) == "h\ufffd"
    with pytest.raises(ValueError, match="id 5 is not"):
        codec.decode([5])
    with pytest.raises(ValueError, match="text is empty"):
        CharacterTokenizer("")


def test_words() -> None:
    codec = WordTokenizer("to be or not to be", 4)
    assert codec.words == [
        "\ufffd",
        " be",
        " not",
        " or",
    ]  # " be" twice; "to" and " to" once each, later in order
    assert codec.encode("to be or else") == [0, 1, 3, 0]
    assert codec.decode([1, 3, 0]) == " be or\ufffd"
    with pytest.raises(ValueError, match="got 1"):
        WordTokenizer("x", 1)
    with pytest.raises(ValueError, match="id -1 is not"):
        codec.decode([-1])


def test_unigram_loses_nothing(sample: str) -> None:
    codec: Codec = UnigramTokenizer([sample] * 3, 400)
    assert codec.vocab_size <= 400
    for text in (sample, "unseen \u4e16\u754c \U0001f680"):
        assert codec.decode(codec.encode(text)) == text
    with pytest.raises(ValueError, match="at least 256"):
        UnigramTokenizer(["x"], 100)
    with pytest.raises(ValueError, match="no text"):
        UnigramTokenizer([""], 300)


def test_dropout_between_its_two_ends(small: Callable[[str], Tokenizer], sample: str) -> None:
    tokenizer = small("gpt2")
    assert encode_with_dropout(tokenizer, sample, 0, Random(0)) == tokenizer.encode_ordinary(sample)
    assert encode_with_dropout(tokenizer, sample, 1, Random(0)) == tokenizer.byte_ids(sample.encode())
    lengths = []
    for p in (0.0, 0.1, 0.5, 1.0):
        ids = encode_with_dropout(tokenizer, sample, p, Random(1))
        assert tokenizer.decode(ids) == sample
        lengths.append(len(ids))
    assert lengths == sorted(lengths)
    some = {tuple(encode_with_dropout(tokenizer, "lighthouse keeper", 0.3, Random(n))) for n in range(20)}
    assert len(some) > 3
    with pytest.raises(ValueError, match=r"got 1\.5"):
        encode_with_dropout(tokenizer, "x", 1.5, Random(0))
