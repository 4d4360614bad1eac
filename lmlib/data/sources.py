"""`load(name)`: one way to real corpora, to local files and to the micro-world.

Hub names go through Hugging Face `datasets`; nothing is asked of the network before a short test of the
connection, so that without one the answer comes within seconds and says how to go on.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from lmlib.data.document import Document
from lmlib.data.microworld import micro_world

END_OF_TEXT = "<|endoftext|>"
PATIENCE_SECONDS = 3.0
_CHUNK = 1 << 20  # characters read at a time from a text file


@dataclass(frozen=True)
class Hub:
    """Where a corpus lies on the Hugging Face hub, and how a row becomes a text."""

    id: str
    config: str | None
    text: Callable[[dict[str, Any]], str]
    splits: tuple[tuple[str, str], ...] = ()  # our name of a split -> the hub's


def _text(row: dict[str, Any]) -> str:
    return row["text"]


def _gsm8k(row: dict[str, Any]) -> str:
    return f"Question: {row['question']}\nAnswer: {row['answer']}"


def _mmlu(row: dict[str, Any]) -> str:
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    return f"Question: {row['question']}\n{choices}\nAnswer: {'ABCD'[row['answer']]}"


HUB: dict[str, Hub] = {
    "tinystories": Hub("roneneldan/TinyStories", None, _text, (("valid", "validation"),)),
    "openwebtext": Hub("Skylion007/openwebtext", None, _text),
    "gsm8k": Hub("openai/gsm8k", "main", _gsm8k),
    "mmlu": Hub("cais/mmlu", "all", _mmlu, (("train", "auxiliary_train"), ("valid", "validation"))),
    "wikitext": Hub("Salesforce/wikitext", "wikitext-103-raw-v1", _text, (("valid", "validation"),)),
    "fineweb-edu": Hub("HuggingFaceFW/fineweb-edu", "sample-10BT", _text),
}


def load(
    name: str = "micro-world",
    split: str = "train",
    *,
    streaming: bool = True,
    path: str | os.PathLike[str] | None = None,
    seed: int = 0,
    size: int | None = None,
    kind: str = "story",
) -> Iterator[Document]:
    """Documents of a corpus.

    `path` (a file, or a folder whose files are read in order of their names) comes first; then `name`:
    "micro-world" (with `seed` and `kind`), or one of `HUB`. `size`: at most so many documents. The
    micro-world is endless, so it needs a `size`; `MicroWorld` also takes bytes. `split` picks the hub's or
    the micro-world's split, and has no meaning for a path.

    Raises ValueError for an unknown name or a bad file, FileNotFoundError for a missing path,
    ConnectionError where the hub is out of reach, ImportError without `datasets`.
    """
    if size is not None and size < 0:
        raise ValueError(f"size must be a whole number from 0, or None for all, got {size!r}")
    if path is not None:
        return islice(_from_path(Path(path)), size)
    if name == "micro-world":
        if size is None:
            raise ValueError('size must be given for the endless "micro-world", for instance size=10_000')
        return micro_world(seed, split=split, kind=kind, n_documents=size).documents()
    if name not in HUB:
        raise ValueError(f'name must be "micro-world" or one of {", ".join(HUB)}, got {name!r}')
    return islice(_from_hub(name, split, streaming), size)


def _from_hub(name: str, split: str, streaming: bool) -> Iterator[Document]:
    hub = HUB[name]
    way_on = f'give a local copy with load("{name}", path=...), or use load("micro-world", size=...)'
    if any(os.environ.get(flag, "").upper() in {"1", "TRUE", "YES", "ON"} for flag in ("HF_HUB_OFFLINE",)):
        raise ConnectionError(f"{name} is on the Hugging Face hub and HF_HUB_OFFLINE is set: {way_on}.")
    if not _reachable():
        raise ConnectionError(f"{name} is on the Hugging Face hub, which cannot be reached: {way_on}.")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f'{name} needs `pip install "datasets>=3"`; without it, {way_on}.') from error
    rows = load_dataset(hub.id, hub.config, split=dict(hub.splits).get(split, split), streaming=streaming)
    return (Document(hub.text(row), f"{name}/{split}/{i}") for i, row in enumerate(rows))


def _reachable() -> bool:
    """Whether the hub, or the proxy on the way to it, takes a connection within a few seconds."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    proxy = getproxies().get(hub.scheme)
    target = urlsplit(proxy) if proxy else hub
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        socket.create_connection((target.hostname or "", port), PATIENCE_SECONDS).close()
    except OSError:
        return False
    return True


def _from_path(path: Path) -> Iterator[Document]:
    if not path.exists():
        raise FileNotFoundError(f"path must be a file or a folder, got {str(path)!r}, which does not exist")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    readers = [(file, _reader(file)) for file in files]  # refuse a bad name before reading anything
    return (
        Document(text, f"{file.name}/{i}") for file, reader in readers for i, text in enumerate(reader(file))
    )


def _reader(file: Path) -> Callable[[Path], Iterable[str]]:
    suffixes = [suffix for suffix in file.suffixes if suffix not in (".gz", ".xz")]
    suffix = suffixes[-1] if suffixes else ".txt"
    if suffix not in _READERS:
        raise ValueError(f"path must end in {', '.join(_READERS)} (and .gz or .xz), got {str(file)!r}")
    return _READERS[suffix]


def _open(file: Path) -> IO[str]:
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix, open)
    return opener(file, "rt", encoding="utf-8", newline="")


def _read_txt(file: Path) -> Iterator[str]:
    """Documents between <|endoftext|> marks, in constant memory but for the longest document."""
    rest = ""
    try:
        with _open(file) as stream:
            while chunk := stream.read(_CHUNK):
                *whole, rest = (rest + chunk).split(END_OF_TEXT)
                yield from (text for text in map(_trim, whole) if text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not UTF-8: {error}") from error
    if _trim(rest):
        yield _trim(rest)


def _trim(text: str) -> str:
    return text.strip("\r\n")


def _read_jsonl(file: Path) -> Iterator[str]:
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {str(file)!r} is not JSON: {error}") from error
            yield _column(row, file)


def _read_csv(file: Path) -> Iterator[str]:
    with _open(file) as stream:
        for row in csv.DictReader(stream):
            yield _column(row, file)


def _read_parquet(file: Path) -> Iterator[str]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError(f"reading {str(file)!r} needs pyarrow: pip install pyarrow") from error
    for batch in ParquetFile(file).iter_batches():
        for row in batch.to_pylist():
            yield _column(row, file)


def _column(row: Any, file: Path) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f'every row of {str(file)!r} must have a "text", got {found}')
    return row["text"]


_READERS: dict[str, Callable[[Path], Iterable[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
