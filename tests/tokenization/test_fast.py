"""The fast path against the readable one, `regex`, a brute-force trainer, and tiktoken."""

import os
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlib.tokenization import fast, naive
from lmlib.tokenization.merging import merge_ids
from lmlib.tokenization.patterns import PATTERNS

pytest.importorskip("numba", reason="the fast path needs Numba (pip install numba)")
np = pytest.importorskip("numpy")
tiktoken = pytest.importorskip("tiktoken")

from lmlib.tokenization.fast import compiled, counter, encoder  # noqa: E402
from lmlib.tokenization.fast.classes import code_point_classes  # noqa: E402

KINDS = ["gpt2", "cl100k"]
EOT = "<|endoftext|>"
# Letters, digits, contractions, all kinds of spaces and breaks, combining marks, the long s, characters that
# `re` and `regex` take differently, and characters of two, three and four bytes.
ALPHABET = "abstlvreSTMD1٣Ⅷ'’ \t\n\r\x0b\x1c\x85\xa0\u2003\u3000.,!-_ſſé\u0301жßあ漢😀🏽\u200d\ufeff"
TEXTS = st.text(st.sampled_from(ALPHABET), max_size=60)
# fmt: off
FRAGMENTS = st.lists(st.sampled_from([
    "the", " the", "'ll", "'LL", "'s", "'S", "'ſ", " ", "  ", "\n", "\r\n", "\n\n ", "1234", " 12", "!!",
    "!\n\n", " a" * 9, "supercalifragilisticexpialidocious", "supercalifragilistic", EOT, "<|end", "|>",
    "naïve", "漢字", "😀😀", "\u2003", "x" * 70, "\xa0y", ".\r\n\t",
]), max_size=25).map("".join)
NEARLY_UTF8 = st.lists(st.sampled_from([
    b"ab ", "é".encode(), "漢".encode(), "😀".encode(), b"\n ", b"\xc3", b"\xe6\xbc", b"\xf0\x9f\x98",
    b"\x80", b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe0\x80\x80",
]), max_size=12).map(b"".join)
# fmt: on
SPECIALS = st.sets(st.sampled_from([EOT, "<|end", " the", "a", "\n\n", "!\n\n", "漢字"]))
WORDS = st.dictionaries(
    st.text(st.sampled_from("abé"), min_size=1, max_size=12).map(str.encode), st.integers(1, 3), max_size=12
)
quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    if not fast.is_compiled():
        fast.compile_kernels()


def expected_counts(text: str, pattern: str, specials=()) -> Counter:
    """Word counts by `regex` alone."""
    if specials:
        longest_first = sorted(specials, key=len, reverse=True)
        parts = regex.split("|".join(map(regex.escape, longest_first)), text)
    else:
        parts = [text]
    return Counter(w.encode() for part in parts for w in regex.findall(PATTERNS[pattern], part))


def counted(text, pattern, specials=(), **options) -> dict:
    sources = [text] if isinstance(text, str | Path) else text
    words = fast.count_words(sources, fast.kind_of(pattern), specials, **options)
    result = dict(words.items())
    assert len(result) == len(words)  # no word twice
    return result


def byte_merges(text: str, n_merges: int, pattern="gpt2"):
    return fast.train(fast.count_words([text], fast.kind_of(pattern)), n_merges)


def vocabulary(merges) -> dict[bytes, int]:
    tokens = [bytes([b]) for b in range(256)] + [left + right for left, right in merges]
    return {token: number for number, token in enumerate(tokens)}


def make_encoder(merges, pattern):
    ids = vocabulary(merges)
    return fast.Encoder(range(256), [(ids[a], ids[b], ids[a + b]) for a, b in merges], fast.kind_of(pattern))


def readable_ids(text: str, merges, pattern) -> list[int]:
    ids = vocabulary(merges)
    ranks = {(ids[a], ids[b]): rank for rank, (a, b) in enumerate(merges)}
    made = [ids[a + b] for a, b in merges]
    words = regex.findall(PATTERNS[pattern], text)
    return [id_ for word in words for id_ in merge_ids(list(word.encode()), ranks, made)]


def sample_text() -> str:
    """A few hundred kilobytes of varied text: this package's own sources, and words in other scripts."""
    import lmlib.tokenization

    folder = Path(lmlib.tokenization.__file__).parent
    sources = "\n\n".join(path.read_text() for path in sorted(folder.rglob("*.py")))
    return sources + "Die Straße führt über die Brücke. Всё течёт. 吾輩は猫である。 ١٢٣ 😀👍🏽\n" * 20


@pytest.fixture(scope="module")
def merges():
    return {pattern: byte_merges(sample_text(), 1500, pattern) for pattern in KINDS}


# -- scanning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", KINDS)
@quick
@given(text=TEXTS | FRAGMENTS)
def test_words_are_those_of_the_pattern(pattern, text):
    assert counted(text, pattern) == expected_counts(text, pattern)


@pytest.mark.parametrize("pattern", KINDS)
def test_every_code_point_is_classified_as_the_pattern_does(pattern):
    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    text = "".join(f"b{c}a" for c in every[0x80:]) + "".join(f" {c}\n{c}{c}'{c}" for c in every[:0x3000])
    assert counted(text, pattern) == expected_counts(text, pattern)


def test_classes_agree_with_regex():
    classes = code_point_classes()
    for name, value in ((r"\p{L}", 1), (r"\p{N}", 2), (r"\s", 3)):
        for c in [*range(0x3100), 0x1D7CE, 0x1F600, 0x20000, 0x10FFFF]:
            if not 0xD800 <= c <= 0xDFFF:
                assert (classes[c] == value) == bool(regex.fullmatch(name, chr(c))), hex(c)


@quick
@given(data=st.binary(max_size=40) | NEARLY_UTF8)
def test_utf8_is_checked_as_python_does(data, tmp_path):
    path = tmp_path / "text"
    path.write_bytes(data)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        for pattern in KINDS:
            with pytest.raises(ValueError, match=f"{path} is not valid UTF-8: .* offset {error.start}$"):
                counted(path, pattern)
            with pytest.raises(ValueError, match=f"not valid UTF-8: .* offset {error.start}$"):
                make_encoder([], pattern).encode(data)
    else:
        assert counted(path, "gpt2") == expected_counts(data.decode(), "gpt2")


# -- counting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", KINDS)
@pytest.mark.parametrize("n_workers", [1, 3])
@quick
@given(text=TEXTS | FRAGMENTS, block=st.integers(32, 80), specials=SPECIALS)
def test_blocks_threads_and_special_tokens_change_no_count(
    pattern, n_workers, text, block, specials, tmp_path, monkeypatch
):
    monkeypatch.setattr(counter, "_SMALLEST_PART", 16)
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    specials = sorted(specials)
    found = counted(path, pattern, specials, block=block, n_workers=n_workers)
    assert found == expected_counts(text, pattern, specials)


def test_texts_and_files_are_documents_of_their_own(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one two")
    found = counted(["th", "e", path, path, "", "\ud83d\ude00\ud800"], "gpt2", n_workers=2)
    assert found == {b"th": 1, b"e": 1, b"one": 2, b" two": 2, "😀\ufffd".encode(): 1}


def test_many_and_long_words():
    words = [f"w{n}{'x' * (n % 40)}" for n in range(70_000)]
    text = " ".join(words + words[::3])
    assert counted(text, "gpt2") == expected_counts(text, "gpt2")


def test_words_that_share_sixteen_bytes_are_told_apart():
    text = " ".join("abcdefghijklmnop" + end for end in ["q", "qr", "r", "qrstuvwxy", "qrstuvwxz", "q"])
    assert counted(text, "gpt2") == expected_counts(text, "gpt2")


def test_counts_take_64_bits():
    words = counter.WordCounts.of({b"ab": 3_000_000_000, b"bc": 5_000_000_000, b"ca": 2**40})
    assert fast.train(words, 3) == [(b"c", b"a"), (b"b", b"c"), (b"a", b"b")]


def test_a_word_longer_than_a_block(tmp_path):
    path = tmp_path / "long.txt"
    text = "a" * 5000 + " b" + "\n" * 3000 + "é" * 2000
    path.write_text(text)
    assert counted(path, "gpt2", block=64) == expected_counts(text, "gpt2")


def test_progress_adds_up_to_the_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("some words " * 1000)
    for n_workers in (1, 2):
        seen: list[int] = []
        counted([path, "xyz"], "gpt2", block=256, n_workers=n_workers, advance=seen.append)
        assert sum(seen) == path.stat().st_size + 3


# -- training --------------------------------------------------------------------------------------


def brute_force(words: dict[bytes, int], n_merges: int):
    """Recount every pair after every merge, over tuples of byte strings."""
    split = {tuple(bytes([b]) for b in word): n for word, n in words.items()}
    merges = []
    while len(merges) < n_merges:
        pairs: Counter = Counter()
        for word, n in split.items():
            for pair in pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged: Counter = Counter()
        for word, n in split.items():
            merged[tuple(naive.merge(word, best, best[0] + best[1]))] += n
        split = merged
    return merges


@quick
@given(words=WORDS)
def test_merges_equal_brute_force(words):
    assert fast.train(counter.WordCounts.of(words), 40) == brute_force(words, 40)


@pytest.mark.parametrize("pattern", KINDS)
def test_merges_equal_the_readable_trainer(pattern):
    from lmlib.tokenization.trainer import learn_merges

    words = expected_counts(sample_text(), pattern)
    assert byte_merges(sample_text(), 1200, pattern) == learn_merges(words, 1200)


def test_training_stops_when_no_pair_is_left_and_reports_progress():
    seen: list[int] = []
    words = counter.WordCounts.of({b"abc": 2, b"z": 1})
    assert fast.train(words, 10, seen.append) == [(b"b", b"c"), (b"a", b"bc")]
    assert seen[-1] == 2
    assert fast.train(counter.WordCounts.of({}), 5) == []
    assert fast.train(words, 0) == []


# -- encoding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", KINDS)
@quick
@given(text=TEXTS | FRAGMENTS | st.text(max_size=40))
def test_ids_equal_the_readable_ones(pattern, text, merges):
    text = text.encode("utf-8", "replace").decode()
    ids = make_encoder(merges[pattern], pattern).encode(text.encode())
    assert ids.dtype == np.uint32
    assert ids.tolist() == readable_ids(text, merges[pattern], pattern)


@pytest.mark.parametrize("pattern", KINDS)
def test_ids_equal_tiktoken(pattern, merges):
    ours = make_encoder(merges[pattern], pattern)
    ranks = vocabulary(merges[pattern])
    theirs = tiktoken.Encoding("test", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={})
    text = sample_text()
    for _ in range(2):  # with an empty table of words, and a filled one
        assert np.array_equal(ours.encode(text.encode()), theirs.encode_to_numpy(text))


@pytest.mark.parametrize("pattern", KINDS)
def test_long_words_merge_as_short_ones_do(pattern, merges, monkeypatch):
    rng = np.random.default_rng(0)
    for length in (63, 64, 65, 200, 3000):
        for text in (
            "a" * length,
            "".join(map(chr, rng.integers(97, 123, length))),
            "ab" * length,
            "😀" * length,
        ):
            ids = make_encoder(merges[pattern], pattern).encode(text.encode())
            assert ids.tolist() == readable_ids(text, merges[pattern], pattern)


def test_special_tokens_are_found_longest_first(merges):
    ours = make_encoder(merges["gpt2"], "gpt2")
    specials = {b"<|a|>": 9000, b"<|a|><|a|>": 9001, b" ": 9002}
    ids = ours.encode(b"<|a|><|a|><|a|>x y", specials).tolist()
    assert ids == [9001, 9000, ord("x"), 9002, ord("y")]
    assert ours.encode(b"", specials).tolist() == []
    assert ours.encode(b"<|a|>").tolist() == readable_ids("<|a|>", merges["gpt2"], "gpt2")


@pytest.mark.parametrize("pattern", KINDS)
@quick
@given(
    text=TEXTS | FRAGMENTS, cuts=st.lists(st.integers(0, 200)), block=st.integers(1, 50), specials=SPECIALS
)
def test_chunks_change_no_id(pattern, text, cuts, block, specials, merges):
    data = text.encode()
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    ids = {special.encode(): 9000 + number for number, special in enumerate(sorted(specials))}
    ours = make_encoder(merges[pattern], pattern)
    chunks = [data[start:end] for start, end in pairwise(borders)]
    found = np.concatenate(list(ours.encode_stream(chunks, ids, block=block)))
    assert np.array_equal(found, ours.encode(data, ids))


def test_an_invalid_byte_is_reported_by_its_place_in_the_stream(merges):
    ours = make_encoder(merges["gpt2"], "gpt2")
    chunks = [b"some words ", b"more words \xc3", b"( and more"]
    with pytest.raises(ValueError, match="byte 0xc3 at offset 22"):
        list(ours.encode_stream(chunks, block=4))


def test_a_full_table_is_emptied_without_changing_ids(merges, monkeypatch):
    text = " ".join(f"word{n}" for n in range(90_000))
    expected = make_encoder(merges["gpt2"], "gpt2").encode(text.encode())
    monkeypatch.setattr(encoder, "_MOST_WORDS", 1000)
    assert np.array_equal(make_encoder(merges["gpt2"], "gpt2").encode(text.encode()), expected)


def test_one_encoder_serves_several_threads(merges):
    from concurrent.futures import ThreadPoolExecutor

    ours = make_encoder(merges["gpt2"], "gpt2")
    texts = [sample_text()[n * 997 :] for n in range(16)]
    expected = [make_encoder(merges["gpt2"], "gpt2").encode(text.encode()) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(lambda t: ours.encode(t.encode()), texts), expected, strict=True):
            assert np.array_equal(found, wanted)


# -- time ------------------------------------------------------------------------------------------


DEGENERATE = {
    "letters a": lambda n: "a" * n,
    "spaces": lambda n: " " * n,
    "line breaks": lambda n: "\n" * n,
    "random letters": lambda n: "".join(map(chr, np.random.default_rng(0).integers(97, 123, n))),
    "emoji": lambda n: "😀" * (n // 4),
    "marks": lambda n: "\u0301" * (n // 2),
    "alternating": lambda n: "' " * (n // 2),
}


def seconds(function) -> float:
    """Of the processor, one thread: other programs on the machine don't count."""
    start = time.process_time()
    function()
    return time.process_time() - start


@pytest.mark.parametrize("pattern", KINDS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_text_takes_linear_time(name, pattern, merges):
    """1 MB of anything in under a second, and eight times the text in far less than 64 times the time."""
    ours = make_encoder(merges[pattern], pattern)
    small, large = (DEGENERATE[name](n).encode() for n in (125_000, 1_000_000))
    ours.encode(small)
    times = [(seconds(lambda: ours.encode(small)), seconds(lambda: ours.encode(large))) for _ in range(2)]
    least_small, least_large = (min(column) for column in zip(*times, strict=True))
    assert least_large < 1.0
    assert least_large < 30 * least_small + 0.02


def test_training_on_degenerate_words_takes_linear_time():
    def train_on(n):
        text = "".join(DEGENERATE[name](n) + " x" for name in DEGENERATE)
        return seconds(lambda: fast.train(fast.count_words([text], 0), 300))

    train_on(1000)
    assert min(train_on(400_000), train_on(400_000)) < 30 * min(train_on(50_000), train_on(50_000)) + 0.02


# -- compiling -------------------------------------------------------------------------------------


def test_only_known_patterns_and_large_texts_are_worthwhile(monkeypatch):
    assert not fast.worthwhile("gpt2", 100_000)
    assert not fast.worthwhile("o200k", 10**9)
    assert fast.worthwhile("cl100k", 10**7)  # compiled by now
    monkeypatch.setattr(fast, "is_compiled", lambda: False)
    assert not fast.worthwhile("cl100k", 10**7)
    assert fast.worthwhile("cl100k", 10**9)
    monkeypatch.setattr(fast, "available", lambda: False)
    assert not fast.worthwhile("cl100k", 10**9)


def test_changed_sources_count_as_not_compiled(monkeypatch):
    assert fast.is_compiled()
    monkeypatch.setattr(compiled, "_fingerprint", lambda: "other")
    assert not fast.is_compiled()


def test_nothing_is_compiled_twice():
    """A new process finds all machine code on disk, whatever path it takes through the kernels."""
    code = (
        "from lmlib.tokenization import fast\n"
        "words = fast.count_words([' '.join(f'w{n}' for n in range(70000)), 'a'], 0, n_workers=2)\n"
        "fast.train(words, 20)\n"
        "fast.Encoder(range(256), [(97, 98, 256)], 1).encode(b'ab ' + b'c' * 99)\n"
        "from lmlib.tokenization.fast import counter, encoder, trainer, table\n"
        "for k in (counter.count_kernel, counter._add_all, encoder.encode_kernel, encoder._fill_pairs,\n"
        "          trainer.merge_kernel, trainer._lay_out, table.rehash):\n"
        "    assert not sum(k.stats.cache_misses.values()), k\n"
        "    assert sum(k.stats.cache_hits.values()) == 1, k\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_command_line_says_what_it_does():
    command = [sys.executable, "-m", "lmlib.tokenization.fast"]
    done = subprocess.run([*command, "compile"], capture_output=True, text=True, check=True)
    assert done.stdout == "compiled already\n"
    wrong = subprocess.run(command, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "usage" in wrong.stderr
