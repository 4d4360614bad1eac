"""Chunk borders never change the result: not inside words, special tokens, surrogate pairs or long runs."""

import io
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlib.tokenization import Tokenizer
from lmlib.tokenization.patterns import pretokenizer
from lmlib.tokenization.stream import segments, special_finder, split_specials
from lmlib.tokenization.trainer import from_merges

Small = Callable[[str], Tokenizer]
NAMES = ("gpt2", "cl100k", "o200k")
SPECIALS = ("<|endoftext|>", "<|end", "<|endoftext|><|endoftext|>", " sp")
PIECES = [
    *(
        "a",
        "B",
        "aB",
        "ABc",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t ",
        "'",
        "'l",
        "'ll",
        "'LL",
        "'s",
        "!",
        "!\n",
        "/\n",
        "1",
        "1234",
    ),
    *(
        "\u6f22",
        "\u6f22A",
        "\u0301",
        "\u02b0",
        "\u00e9",
        "\U0001f600",
        "\u3000",
        "\u0663",
        "\ud83d",
        "\ude00",
    ),
    *SPECIALS,
    *("<|endoftext|", "<|endo", "<|", "s", "sp"),
]
stream_text = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


def cut_up(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


@pytest.mark.parametrize("name", NAMES)
def test_any_chunks_any_block_same_parts(name: str) -> None:
    cut, find = pretokenizer(name), special_finder(SPECIALS)

    @settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(stream_text, st.integers(1, 12), st.integers(1, 12))
    def check(text: str, size: int, block: int) -> None:
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        expected = [
            (piece, is_special)
            for part, is_special in split_specials(whole, find)
            for piece in ([part] if is_special else cut.pretokens(part))
        ]
        streamed = [
            (piece, is_special)
            for part, is_special in segments(cut_up(text, size), cut, SPECIALS, block)
            for piece in ([part] if is_special else cut.pretokens(part))
        ]
        assert streamed == expected

    check()


def test_a_run_of_spaces_is_not_cut_at_its_end() -> None:
    # Cut before "aaaa", the part " \r\n" would be one pretoken; in the text it is two.
    parts = [part for part, _ in segments(cut_up(" \r\naaaa<|x|>", 1), pretokenizer("gpt2"), ["<|x|>"], 1)]
    assert [word for part in parts[:-1] for word in pretokenizer("gpt2").pretokens(part)] == [
        " \r",
        "\n",
        "aaaa",
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "unit", ["a", "aA", "\u6f22A", " ", "\n", "!", "1", "a1", "\U0001f600", "it's", "x" * 9000 + "!"]
)
def test_long_runs_without_a_coarse_cut(name: str, unit: str, small: Small) -> None:
    tokenizer = small(name)
    text = unit * (200_000 // len(unit))
    assert list(tokenizer.encode_iterable(cut_up(text, 5000))) == tokenizer.encode(text)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_held_is_bounded_where_pretokens_are_short(name: str) -> None:
    # camelCase and mixed runs have no coarse cut, yet their pretokens end soon: nothing may pile up.
    unit = "aB1!" if name != "gpt2" else "aB1!?"
    longest = max(len(part) for part, _ in segments((unit * 250 for _ in range(2000)), pretokenizer(name)))
    assert longest < 200_000  # the stream has 2,000,000 characters


def test_memory_of_a_long_stream_is_constant(small: Small, sample: str) -> None:
    tokenizer = small("gpt2")

    def peak(n: int) -> int:
        tokenizer._forget()
        tracemalloc.start()
        count = sum(1 for _ in tokenizer.encode_iterable((sample for _ in range(n)), disallowed_special=()))
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count > n
        return top

    assert peak(2000) < 1.5 * peak(400)


def test_open_files_and_bad_chunks(tmp_path: Path, small: Small, sample: str) -> None:
    tokenizer = small("gpt2")
    assert list(tokenizer.encode_iterable(io.StringIO(sample))) == tokenizer.encode(sample)
    with pytest.raises(TypeError, match="chunks must be strings, got bytes"):
        list(tokenizer.encode_iterable([b"x"], disallowed_special=()))  # type: ignore[list-item]


def test_a_custom_pattern_streams_too(small: Small, sample: str) -> None:
    tokenizer = from_merges(small("gpt2").merges, ["<|x|>"], r"\w+|\W")
    text = sample + "<|x|>" + sample
    whole = tokenizer.encode(text, allowed_special="all")
    assert list(tokenizer.encode_iterable(cut_up(text, 7), allowed_special="all")) == whole
    assert tokenizer.decode(whole) == text


def test_disallowed_special_tokens_are_found_over_chunk_borders(small: Small) -> None:
    tokenizer = small("gpt2")
    for size in range(1, 20):
        with pytest.raises(ValueError, match="special token"):
            list(tokenizer.encode_iterable(cut_up("hello<|endoftext|>", size)))


@pytest.mark.parametrize("implementation", ["python", "numba"])
def test_encode_file(tmp_path: Path, small: Small, sample: str, implementation: str) -> None:
    known = small("gpt2")
    specials = dict(known.special_tokens)
    ordinary = {id_: token for id_, token in known.vocab.items() if id_ not in specials.values()}
    tokenizer = Tokenizer(ordinary, known.merges, specials, implementation=implementation)  # type: ignore[arg-type]
    text = (sample + "<|endoftext|>") * 50
    source, target = tmp_path / "text.txt", tmp_path / "ids.npy"
    source.write_bytes(text.encode())
    count = tokenizer.encode_file(source, target, allowed_special="all")
    ids = np.load(target, mmap_mode="r")
    assert ids.dtype == np.uint16
    assert ids.tolist() == known.encode(text, allowed_special="all")
    assert len(ids) == count
    assert tokenizer.encode_to_numpy(text, allowed_special="all").tolist() == ids.tolist()


def test_a_failing_run_leaves_the_old_file(tmp_path: Path, small: Small) -> None:
    source, target = tmp_path / "text.txt", tmp_path / "ids.npy"
    target.write_bytes(b"what was there")
    source.write_bytes(b"good text, then \xff\xfe")
    with pytest.raises(ValueError, match=r"text\.txt is not UTF-8: byte 0xff at byte offset 16"):
        small("gpt2").encode_file(source, target)
    assert target.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npy", "text.txt"]


def test_decoding_as_tokens_arrive(small: Small, sample: str) -> None:
    tokenizer = small("gpt2")
    ids = tokenizer.encode(sample)
    assert "".join(tokenizer.decode_iterable(ids)) == sample
    smile = tokenizer.byte_ids("\U0001f600".encode())
    assert list(tokenizer.decode_iterable(smile)) == ["\U0001f600"]
    assert list(tokenizer.decode_iterable(smile[:2])) == ["\ufffd"]
    assert tokenizer.decode(smile[:3]) == "\ufffd"
    assert tokenizer.decode_bytes(smile[:3]) == b"\xf0\x9f\x98"
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode(smile[:3], errors="strict")
