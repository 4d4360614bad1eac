"""The trainer against a brute-force one and Hugging Face's, by texts and files, by one process and by two."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlib.tokenization import PATTERNS, formats, train_bpe
from lmlib.tokenization.counting import count_pretokens
from lmlib.tokenization.trainer import learn_merges

Merges = list[tuple[bytes, bytes]]
Tie = Callable[[tuple[bytes, bytes]], Any]


def brute_force(words: dict[bytes, int], n_merges: int, tie: Tie = lambda pair: pair) -> Merges:
    """BPE by its definition, on tuples of byte strings, recounting everything; no code is the library's.

    tie: of equally frequent pairs the one with the greatest key is merged; by default the greatest pair.
    """
    state = {word: [bytes([byte]) for byte in word] for word in words}
    merges: Merges = []
    while len(merges) < n_merges:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, tokens in state.items():
            for pair in pairwise(tokens):
                pairs[pair] += words[word]
        if not pairs:
            break
        highest = max(pairs.values())
        best = max((pair for pair, count in pairs.items() if count == highest), key=tie)
        merges.append(best)
        for tokens in state.values():
            at = 0
            while at < len(tokens) - 1:
                if (tokens[at], tokens[at + 1]) == best:
                    tokens[at : at + 2] = [best[0] + best[1]]
                at += 1
    return merges


def test_brute_force_by_hand() -> None:
    # "aaaa": a+a twice (the pair stands there 3 times), then aa+aa.
    assert brute_force({b"aaaa": 1}, 5) == [(b"a", b"a"), (b"aa", b"aa")]
    # "lo" and "ow" are equally frequent: the greater pair of byte strings goes first.
    assert brute_force({b"low": 5}, 5) == [(b"o", b"w"), (b"l", b"ow")]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.dictionaries(
        st.one_of(
            st.text("ab", min_size=1, max_size=12).map(str.encode),
            st.text("abc \u00e9", min_size=1, max_size=9).map(str.encode),
            st.binary(min_size=1, max_size=8),
        ),
        st.integers(1, 50),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 40),
)
def test_merges_equal_brute_force(words: dict[bytes, int], n_merges: int) -> None:
    assert learn_merges(words, n_merges) == brute_force(words, n_merges)


def test_text_equals_brute_force(sample: str) -> None:
    for name, pattern in PATTERNS.items():
        words = Counter(word.encode() for word in regex.findall(pattern, sample))
        tokenizer = train_bpe(sample, 256 + 150, (), pattern=name)
        assert list(tokenizer.merges) == brute_force(words, 150)


def test_equals_hugging_face_up_to_its_ties(texts: list[str]) -> None:
    # Hugging Face takes the smallest pair of ids among equals, its bytes being numbered by their characters.
    # The definition with that rule gives its merges exactly; the definition with ours gives ours.
    text = texts[-1][:20_000]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + 150, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([text], trainer)
    entries = json.loads(theirs.to_str())["model"]
    learned = [tuple(formats.from_characters(part, "merge") for part in pair) for pair in entries["merges"]]

    numbers = {bytes([byte]): entries["vocab"][formats.to_characters(bytes([byte]))] for byte in range(256)}

    def smallest_ids(pair: tuple[bytes, bytes]) -> tuple[int, int]:
        for token in pair:  # a token is numbered when it is made, so before it can be part of a pair
            numbers.setdefault(token, entries["vocab"][formats.to_characters(token)])
        return -numbers[pair[0]], -numbers[pair[1]]

    words = Counter(word.encode() for word in regex.findall(PATTERNS["gpt2"], text))
    assert learned == brute_force(words, 150, smallest_ids)
    assert learn_merges(words, 150) == brute_force(words, 150)


def merge_counts(words: dict[bytes, int], n_merges: int) -> list[int]:
    """How often each merged pair stood in the corpus when it was merged, by replaying the merges."""
    merges = learn_merges(words, n_merges)
    state = {word: [bytes([byte]) for byte in word] for word in words}
    counts = []
    for left, right in merges:
        count = 0
        for word, tokens in state.items():
            at = 0
            count += words[word] * sum(pair == (left, right) for pair in pairwise(tokens))
            while at < len(tokens) - 1:
                if (tokens[at], tokens[at + 1]) == (left, right):
                    tokens[at : at + 2] = [left + right]
                at += 1
        counts.append(count)
    return counts


def test_each_merge_was_the_most_frequent_pair(sample: str) -> None:
    counts = merge_counts(Counter(word.encode() for word in sample.split(" ")), 100)
    assert counts == sorted(counts, reverse=True)


def test_texts_files_and_workers_learn_the_same(tmp_path: Path, sample: str) -> None:
    documents = [f"{sample} number {n}" for n in range(1200)]
    text = "<|endoftext|>".join(documents)
    path = tmp_path / "corpus.txt"
    path.write_bytes(text.encode())
    expected = train_bpe(documents, 500)
    assert train_bpe(text, 500) == expected
    assert train_bpe(path, 500) == expected
    assert train_bpe([path], 500, n_workers=2) == expected
    assert train_bpe(iter(documents), 500, n_workers=2) == expected
    assert train_bpe(path, 500, implementation="python") == expected


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k"])
def test_dividing_a_file_changes_no_count(
    pattern: str, tmp_path: Path, sample: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmlib.tokenization import counting

    monkeypatch.setattr(counting, "_SMALLEST_PART", 100)
    specials = ["<|end|>", "<|end|><|end|>", "a b"]
    text = (sample * 3 + "<|end|><|end|>" + sample + "a ba b<|end|>x") * 4
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    parts = list(counting._parts([path], pattern, tuple(specials), 1 << 20, n_workers=30))
    assert len(parts) > 5
    divided: Counter[str] = Counter()
    for part in parts:
        counting.count_part(part, pattern, specials, divided)
    expected: Counter[str] = Counter()
    for document in regex.split("|".join(map(regex.escape, sorted(specials, key=len, reverse=True))), text):
        expected.update(regex.findall(PATTERNS[pattern], document))
    assert divided == expected
    assert count_pretokens(text, pattern, specials) == expected


def test_counts_beyond_32_bits() -> None:
    assert learn_merges({b"ab": 2**40, b"bc": 2**40 + 1}, 1) == [(b"b", b"c")]


def test_one_long_word_is_not_visited_once_an_occurrence() -> None:
    # 100,000 occurrences of a pair in one word: visiting it for each would take minutes.
    assert learn_merges({b"ab" * 100_000 + b"c": 1}, 3) == [(b"a", b"b"), (b"ab", b"ab"), (b"abab", b"abab")]


def test_more_merges_than_there_are_characters_is_refused() -> None:
    with pytest.raises(ValueError, match="n_merges must be at most 1,113,855, got 1,113,856"):
        learn_merges({b"ab": 1}, 1_113_856)


def test_a_script_without_a_main_guard_can_use_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from lmlib.tokenization import train_bpe\n"
        "print('once')\n"
        "t = train_bpe(['some words and more words'] * 1000, 270, n_workers=2)\n"
        "print(t.encode_batch(['words'] * 3, n_workers=2) == [t.encode('words')] * 3)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["once", "True"], done.stderr


def test_running_out_of_pairs_is_said() -> None:
    with pytest.warns(UserWarning, match="no pair left to merge after 2 merges"):
        assert train_bpe("abc", 1000).vocab_size == 259


def test_special_tokens_come_last_and_are_no_part_of_merges() -> None:
    tokenizer = train_bpe("ab<|x|>ab<|x|>ab", 258, ["<|x|>"])
    assert tokenizer.vocab[257] == b"<|x|>"
    assert tokenizer.merges == ((b"a", b"b"),)
    assert tokenizer.encode("ab<|x|>", allowed_special="all") == [256, 257]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vocab_size": 256}, ValueError, "at least 257 .* got 256"),
        ({"vocab_size": "big"}, ValueError, "got 'big'"),
        ({"corpus": ""}, ValueError, "corpus is empty"),
        ({"corpus": []}, ValueError, "corpus is empty"),
        ({"corpus": "<|endoftext|>"}, ValueError, "corpus is empty"),
        ({"corpus": [b"bytes"]}, TypeError, "got bytes"),
        ({"special_tokens": ["<a>", ""]}, ValueError, r"special_tokens\[1\] is empty"),
        ({"special_tokens": ["<a>", "<a>"]}, ValueError, r"special_tokens\[1\], '<a>', is repeated"),
        ({"special_tokens": "<a>"}, TypeError, "got the string '<a>'"),
        ({"special_tokens": [3]}, TypeError, "must be a string, got 3"),
        ({"pattern": "("}, ValueError, r"pattern '\(' is neither"),
        ({"pattern": ""}, ValueError, "pattern is empty"),
        ({"n_workers": 0}, ValueError, "n_workers .* got 0"),
        ({"implementation": "rust"}, ValueError, "got 'rust'"),
        ({"corpus": Path("no such file.txt")}, FileNotFoundError, "no such file.txt"),
    ],
)
def test_bad_input(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"corpus": "some text", "vocab_size": 260, **change}
    with pytest.raises(error, match=message):
        train_bpe(**arguments)  # type: ignore[arg-type]


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("fine so far, \u00e9t\u00e9".encode("latin-1"))
    for n_workers in (1, 2):
        with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8: byte 0xe9 at byte offset 13"):
            train_bpe(path, 300, n_workers=n_workers)


def test_a_file_name_as_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("some text")
    with pytest.raises(ValueError, match=r"pass Path\("):
        train_bpe(os.fspath(path), 300)


def test_bars_appear_only_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    train_bpe("some text", 258, progress=False)
    assert capfd.readouterr().err == ""


def test_a_pattern_that_is_no_name_is_named_as_what_it_was_taken_for() -> None:
    with pytest.raises(ValueError, match=r"'gpt3', as a regular expression since it is none of \['cl100k'"):
        train_bpe("hello", 300, pattern="gpt3")


def test_a_single_text_is_no_batch() -> None:
    with pytest.raises(TypeError, match="got a single one"):
        train_bpe("hello", 300).encode_batch("hello")
