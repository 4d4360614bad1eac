"""Chapter 1's exercises: what the solutions compute, against oracles not written for this book."""

import pytest
import regex
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from lmlib.book.exercises import tokenization_bpe as bpe
from lmlib.book.exercises import tokenization_text as text


@given(st.text())
def test_code_points_are_decoded_as_python_decodes(value):
    encoded = value.encode("utf-8", "surrogatepass")
    try:
        expected = [ord(character) for character in encoded.decode("utf-8")]
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="at"):
            text.decode_utf8(encoded)
    else:
        assert text.decode_utf8(encoded) == expected


@given(st.binary(max_size=12))
def test_random_bytes_are_decoded_or_refused_as_python_does(data):
    try:
        expected = [ord(character) for character in data.decode("utf-8")]
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="at"):
            text.decode_utf8(data)
    else:
        assert text.decode_utf8(data) == expected


@given(st.text())
def test_pre_tokens_lose_nothing(value):
    assert "".join(text.pretokenize(value)) == value


@given(st.text(alphabet="ab é你12 \n\t_'strelvdm!?.", max_size=40))
def test_the_coarse_pattern_is_gpt_2s_where_digits_are_decimal(value):
    gpt2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    assert text.pretokenize(value) == regex.findall(gpt2, value)


@given(st.text(alphabet="a 'strelvdm1\n", max_size=30), st.data())
def test_a_stream_cut_anywhere_gives_the_same_tokens(value, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(value)), max_size=8)))
    pieces = [value[start:end] for start, end in zip([0, *cuts], [*cuts, len(value)], strict=True)]
    streamed = list(bpe.encode_stream(iter(pieces), lambda word: [word]))
    assert streamed == text.pretokenize(value)


def test_encoding_with_learned_merges_equals_hugging_face():
    words = {b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6, b"slow": 4, b"wider": 1}
    merges = bpe.train(words, 12)
    vocab = {bytes([byte]).decode(): byte for byte in range(128)}
    for left, right in merges:
        vocab.setdefault((left + right).decode(), len(vocab))
    pairs = [(left.decode(), right.decode()) for left, right in merges]
    oracle = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, pairs))
    for word in (*words, b"lowest", b"newer", b"sssss", b"wwidestt"):
        assert [token.decode() for token in bpe.encode(word, merges)] == oracle.encode(word.decode()).tokens
