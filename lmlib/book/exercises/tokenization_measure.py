"""Exercises on measuring a tokenizer: compression across domains, time for a large corpus, storage."""

import statistics
from collections.abc import Callable

from lmlib.book.exercises.machinery import Case, Exercise, Wrong

# ---- tokenization/compression


def compression(encode: Callable[[str], list], domains: dict[str, list[str]]) -> dict[str, float]:
    ratios = {}
    for domain, texts in domains.items():
        n_bytes = sum(len(text.encode("utf-8")) for text in texts)
        n_tokens = sum(len(encode(text)) for text in texts)
        ratios[domain] = n_bytes / n_tokens
    return ratios


def _characters(encode: Callable[[str], list], domains: dict[str, list[str]]) -> dict[str, float]:
    return {
        domain: sum(map(len, texts)) / sum(len(encode(text)) for text in texts)
        for domain, texts in domains.items()
    }


def _mean_of_ratios(encode: Callable[[str], list], domains: dict[str, list[str]]) -> dict[str, float]:
    return {
        domain: statistics.fmean(len(text.encode()) / len(encode(text)) for text in texts)
        for domain, texts in domains.items()
    }


def _upside_down(encode: Callable[[str], list], domains: dict[str, list[str]]) -> dict[str, float]:
    return {domain: 1 / ratio for domain, ratio in compression(encode, domains).items()}


def by_words(text: str) -> list[str]:
    """The tokenizer of the cases: words between spaces."""
    return text.split(" ")


def _domains(**texts: list[str]) -> tuple:
    return by_words, texts


COMPRESSION = Exercise(
    name="tokenization/compression",
    title="Compression, domain by domain",
    task="""
Write `compression(encode, domains)`: for each domain, how many bytes of UTF-8 one token stands for, over
all its texts together. `encode` turns a text into the list of its tokens; `domains` maps a name to texts.

Then measure: sample ten documents each of two corpora, and encode both with a tokenizer trained on the
first and with one trained on the second. What does each lose away from home? What do Chinese, source code
and digits give?
""",
    difficulty=2,
    minutes=20,
    starter="""
from collections.abc import Callable


def compression(encode: Callable[[str], list], domains: dict[str, list[str]]) -> dict[str, float]:
    raise NotImplementedError
""",
    hints=(
        'Bytes, not characters: `len(text.encode("utf-8"))`.',
        "Add up the bytes of all texts and the tokens of all texts, then divide once.",
        "The mean of each text's ratio would let a short text count as much as a long one.",
    ),
    solution=compression,
    remark="""
A tokenizer compresses best what it was trained on; away from home its long tokens do not occur and words
fall into pieces. Bytes and not characters are counted because bytes are what is stored, and because per
character a Chinese text would look three times as expensive as it is.
""",
    cases=(
        Case(
            "one text",
            _domains(prose=["the cat sat"]),
            {"prose": 11 / 3},
            "Bytes per token: more is better compressed.",
            call="compression(by_words, {'prose': ['the cat sat']})",
        ),
        Case(
            "bytes, not characters",
            _domains(chinese=["你好 吗"]),
            {"chinese": 10 / 2},
            "Count the bytes of the UTF-8 encoding, not characters.",
            call="compression(by_words, {'chinese': ['你好 吗']})",
        ),
        Case(
            "a long and a short text",
            _domains(mixed=["a b c d e f g h", "internationalization"]),
            {"mixed": 35 / 9},
            "Divide the sums: the mean of the texts' ratios gives a short text the weight of a long one.",
            call="compression(by_words, {'mixed': ['a b c d e f g h', 'internationalization']})",
        ),
        Case(
            "two domains",
            _domains(prose=["one two"], digits=["3.14159265"]),
            {"prose": 3.5, "digits": 10.0},
            call="compression(by_words, {'prose': ['one two'], 'digits': ['3.14159265']})",
        ),
    ),
    wrong=(
        Wrong(_characters, "not characters"),
        Wrong(_mean_of_ratios, "Divide the sums"),
        Wrong(_upside_down, "more is better compressed"),
    ),
)

# ---- tokenization/throughput


def hours_for(corpus_bytes: float, runs: list[tuple[int, float]], n_workers: int = 1) -> float:
    rates = [n_bytes / seconds for n_bytes, seconds in runs]
    return corpus_bytes / (statistics.median(rates) * n_workers) / 3600


def _mean_rate(corpus_bytes: float, runs: list[tuple[int, float]], n_workers: int = 1) -> float:
    rate = statistics.fmean(n_bytes / seconds for n_bytes, seconds in runs)
    return corpus_bytes / (rate * n_workers) / 3600


def _in_seconds(corpus_bytes: float, runs: list[tuple[int, float]], n_workers: int = 1) -> float:
    return corpus_bytes / statistics.median(n_bytes / seconds for n_bytes, seconds in runs) / n_workers


def _one_worker(corpus_bytes: float, runs: list[tuple[int, float]], n_workers: int = 1) -> float:
    return hours_for(corpus_bytes, runs)


THROUGHPUT = Exercise(
    name="tokenization/throughput",
    title="How long for 825 GB?",
    task="""
The Pile holds 825 GB of text. Write `hours_for(corpus_bytes, runs, n_workers=1)`: the hours that encoding
a corpus takes, estimated from measured runs, each `(bytes encoded, seconds taken)`. Take the median of
the runs' bytes per second, since one run that the machine disturbed should not move the estimate, and
assume that `n_workers` processes encode that many times as fast.

Then measure the tokenizer of this chapter on your machine, on text that it has not seen, and fill it in.
""",
    difficulty=2,
    minutes=15,
    starter="""
import statistics


def hours_for(corpus_bytes: float, runs: list[tuple[int, float]], n_workers: int = 1) -> float:
    raise NotImplementedError
""",
    hints=(
        "First the bytes per second of each run, then their median: `statistics.median`.",
        "Seconds are bytes divided by bytes per second; an hour has 3,600.",
        "825 GB are 825 × 10⁹ bytes. (In GiB, of 2³⁰ bytes, it would be a smaller number.)",
    ),
    solution=hours_for,
    remark="""
At 4 MB/s on one process, 825 GB take 57 hours; with 64 processes under one. That workers scale perfectly
is an assumption: measure two before you count on sixty-four.
""",
    cases=(
        Case("one run", (3.6e9, [(1_000_000, 1.0)]), 1.0, "Hours, not seconds."),
        Case("a corpus of 825 GB", (825e9, [(8_000_000, 2.0)]), 825e9 / 4e6 / 3600),
        Case(
            "one disturbed run",
            (3.6e9, [(1_000_000, 1.0), (1_000_000, 10.0), (1_000_000, 1.0)]),
            1.0,
            "Take the median of the rates: a run that was disturbed should not count.",
        ),
        Case("runs of several sizes", (3.6e9, [(1_000_000, 1.0), (4_000_000, 2.0), (600, 0.0002)]), 0.5),
        Case(
            "four workers", (3.6e9, [(1_000_000, 1.0)], 4), 0.25, "n_workers encode that many times as fast."
        ),
    ),
    wrong=(
        Wrong(_mean_rate, "Take the median"),
        Wrong(_in_seconds, "Hours, not seconds"),
        Wrong(_one_worker, "that many times as fast"),
    ),
)

# ---- tokenization/token-file


def token_file(vocab_size: int, n_tokens: int) -> tuple[str, int]:
    for width in (8, 16, 32):
        if vocab_size <= 2**width:
            return f"uint{width}", n_tokens * width // 8
    raise ValueError(f"vocab_size {vocab_size} does not fit into 32 bits")


def _one_less(vocab_size: int, n_tokens: int) -> tuple[str, int]:
    for width in (8, 16, 32):
        if vocab_size < 2**width:
            return f"uint{width}", n_tokens * width // 8
    raise ValueError("too large")


def _size_in_bits(vocab_size: int, n_tokens: int) -> tuple[str, int]:
    dtype, n_bytes = token_file(vocab_size, n_tokens)
    return dtype, 8 * n_bytes


def _always_two_bytes(vocab_size: int, n_tokens: int) -> tuple[str, int]:
    return "uint16", 2 * n_tokens


TOKEN_FILE = Exercise(
    name="tokenization/token-file",
    title="Why uint16",
    task="""
An encoded corpus is stored as one unsigned integer a token. Write `token_file(vocab_size, n_tokens)`: the
narrowest of `"uint8"`, `"uint16"` and `"uint32"` that holds every id from 0 to `vocab_size - 1`, and the
file's size in bytes. Raise ValueError if none does.

Why are the data files of so many courses uint16? For which of today's vocabularies would that be a bug,
and how would you notice?
""",
    difficulty=1,
    minutes=10,
    starter="""
def token_file(vocab_size: int, n_tokens: int) -> tuple[str, int]:
    raise NotImplementedError
""",
    hints=(
        "Unsigned, `width` bits hold the numbers from 0 to `2**width - 1`.",
        "So the largest id, `vocab_size - 1`, must be at most `2**width - 1`.",
        "A byte is 8 bits: 16 bits a token are 2 bytes a token.",
    ),
    solution=token_file,
    remark="""
GPT-2's 50,257 tokens and the 10,000 and 32,000 of this book's vocabularies fit into 16 bits: half the
disk, and half of what is read during training, compared with 32. Vocabularies beyond 65,536 do not fit,
and storing them so wraps ids around without an error: the file decodes to other text. Store the
vocabulary size beside the ids and check it.
""",
    cases=(
        Case("GPT-2", (50_257, 1_000), ("uint16", 2_000), "The size is in bytes, of 8 bits each."),
        Case("bytes", (256, 10), ("uint8", 10), "256 ids, from 0 to 255, fit into 8 bits."),
        Case("one more than a byte", (257, 10), ("uint16", 20)),
        Case("a full uint16", (65_536, 7), ("uint16", 14), "The largest id is vocab_size - 1 = 65,535."),
        Case(
            "a large vocabulary",
            (128_256, 3),
            ("uint32", 12),
            "Ids above 65,535 would wrap around in 16 bits.",
        ),
        Case(
            "too large",
            (2**32 + 1, 1),
            raises=ValueError,
            message="No width holds these ids: raise ValueError.",
        ),
    ),
    wrong=(
        Wrong(_one_less, "from 0 to 255"),
        Wrong(_size_in_bits, "in bytes"),
        Wrong(_always_two_bytes, "fit into 8 bits"),
    ),
)
