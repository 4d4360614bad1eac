"""From text to token files: train the tokenizer, encode, and keep both under the hash of what made them.

Text is encoded in blocks, by as many processes as one likes; the result does not depend on how many.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlib.data import load, micro_world
from lmlib.data.document import Document
from lmlib.data.sources import END_OF_TEXT
from lmlib.resources.units import ArgumentError
from lmlib.tokenization import Tokenizer, formats, train_bpe
from lmlib.tokenization.processes import worker_pool
from lmlib.tokenization.storage import replacing
from lmlib.training.config import DataSettings, TokenizerSettings
from lmlib.training.dataset import FORMAT, HEADER, VERSION, TokenData, open_tokens, tokenizer_hash

RECIPE = 1  # goes into every hash: raise it when the same settings come to give other files
_STORIES = 2000  # documents of a block of the micro-world
_BLOCK = 2_000_000  # characters of a block of other text
_WITHOUT_HUB = (
    "For text on this machine give --set data.source=file --set data.train=FILE --set data.val=FILE; "
    "for text that is made here, --set data.source=micro-world --set data.train_bytes=20_000_000 "
    "--set data.val_bytes=500_000"
)
Block = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]  # ids; per document: tokens, bytes


@dataclass(frozen=True)
class Prepared:
    """What a run needs of its data; ``tokenizer`` is ``None`` for token files that came without one."""

    tokenizer: Tokenizer | None
    train: TokenData
    val: TokenData


def prepare(data: DataSettings, tokenizing: TokenizerSettings, folder: str | os.PathLike[str]) -> Prepared:
    """The tokenizer and the two token files of a run, made if they are not in ``folder`` yet.

    Raises:
        ArgumentError: for data that cannot be had under these settings, such as a file that is not there.
        ConnectionError, ImportError: for data of the hub that cannot be fetched; both say how to go on.
    """
    _check_paths(data, tokenizing)
    place = Path(folder)
    ready = [path for path in (data.train, data.val) if path is not None and path.endswith(".tokens")]
    if data.source == "file" and len(ready) == 2:
        tokenizer = None if tokenizing.path is None else formats.load_hf(tokenizing.path)
        return Prepared(tokenizer, open_tokens(ready[0]), open_tokens(ready[1]))
    tokenizer = _tokenizer(data, tokenizing, place)
    files = {
        part: place / f"{part}-{_key(data, part, tokenizer_hash(tokenizer))}.tokens"
        for part in ("train", "val")
    }
    for part, file in files.items():
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            blocks = _blocks(data, part, tokenizer)
            _write(file, blocks, tokenizer, _limit(data, part), _setting(data, part))
    return Prepared(tokenizer, open_tokens(files["train"]), open_tokens(files["val"]))


def _check_paths(data: DataSettings, tokenizing: TokenizerSettings) -> None:
    if tokenizing.path is not None and not Path(tokenizing.path).is_file():
        raise ArgumentError(
            "tokenizer.path", f"must be a tokenizer.json; there is no file {tokenizing.path!r}"
        )
    for name, path in (("data.train", data.train), ("data.val", data.val)):
        if path is not None and not os.path.exists(path):  # Path("") would be the current folder
            raise ArgumentError(
                name,
                "must be a text (.txt, .jsonl, .csv, .parquet), a folder of them or a token file (.tokens); "
                f"got {path!r}, which does not exist",
            )


# -- the tokenizer -------------------------------------------------------------------------------------------


def _tokenizer(data: DataSettings, settings: TokenizerSettings, place: Path) -> Tokenizer:
    if settings.path is not None:
        return formats.load_hf(settings.path)
    wanted = {name: value for name, value in asdict(settings).items() if name != "path"}
    file = place / f"tokenizer-{_key(data, 'train', json.dumps(wanted, sort_keys=True))}.json"
    if not file.is_file():
        texts = list(_until(_texts(data, "train"), settings.training_bytes))
        if not texts:
            raise ArgumentError(_setting(data, "train"), "holds no document")
        tokenizer = train_bpe(
            texts, settings.vocab_size, (END_OF_TEXT,), pattern=settings.pattern, n_workers=1
        )
        place.mkdir(parents=True, exist_ok=True)
        formats.save_hf(tokenizer, file)
    return formats.load_hf(file)


def _until(texts: Iterable[str], n_bytes: int) -> Iterator[str]:
    size = 0
    for text in texts:
        yield text
        size += len(text.encode())
        if size >= n_bytes:
            return


# -- the text ------------------------------------------------------------------------------------------------


def _texts(data: DataSettings, part: str) -> Iterator[str]:
    """The documents of one part, in order; endless for the micro-world."""
    if data.source == "micro-world":
        split = "train" if part == "train" else data.val_split or "valid"
        return micro_world(data.seed, split=split, kind=data.kind).texts()
    if data.source == "file":
        path = data.train if part == "train" else data.val
        if path is not None and path.endswith(".tokens"):
            raise ArgumentError("data.train", "and data.val must both be token files, or both be text")
        return (document.text for document in load(path=path))
    if data.val_split is not None:
        split = "train" if part == "train" else data.val_split
        return (document.text for document in _from_hub(data.source, split))
    if data.val_bytes is None:
        raise ArgumentError("data.val_bytes", "must be given where the source has no split to validate on")
    return _cut(_from_hub(data.source, "train"), data.val_bytes, part)


def _from_hub(source: str, split: str) -> Iterator[Document]:
    """What ``load`` gives; where it cannot, the error names settings in place of its arguments."""
    begin = f"data.source: {source!r} is on the Hugging Face hub, "
    try:
        return load(source, split)
    except ConnectionError as error:
        raise ConnectionError(
            f"{begin}which is out of reach (or HF_HUB_OFFLINE is set). {_WITHOUT_HUB}"
        ) from error
    except ImportError as error:
        raise ImportError(f'{begin}and needs `pip install "datasets>=3"`. {_WITHOUT_HUB}') from error


def _cut(documents: Iterable[Any], val_bytes: int, part: str) -> Iterator[str]:
    texts = (document.text for document in documents)
    first = _until(texts, val_bytes)
    if part == "val":
        return first
    for _ in first:  # the same documents are passed over here that validate there
        pass
    return texts


def _setting(data: DataSettings, part: str) -> str:
    """The name of what says where the text of a part is."""
    return f"data.{part}" if data.source == "file" else "data.source"


def _limit(data: DataSettings, part: str) -> int | None:
    return data.train_bytes if part == "train" else data.val_bytes


def _key(data: DataSettings, part: str, more: str) -> str:
    """A hash of everything that decides the content of a file."""
    wanted = {name: value for name, value in asdict(data).items() if name != "workers"}
    if part == "train" and data.val_split is not None:
        wanted |= {"val": None, "val_bytes": None, "val_split": None}
    elif part == "val":
        wanted |= {"train": None, "train_bytes": None}
    paths = [path for path in (wanted["train"], wanted["val"]) if path is not None]
    content = [_hash_of(Path(path)) for path in paths] if data.source == "file" else []
    if data.source == "file":
        wanted |= {"train": None, "val": None}  # what a file holds counts, not where it lies
    text = json.dumps([RECIPE, part, wanted, content, more], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hash_of(path: Path) -> str:
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


# -- encoding ------------------------------------------------------------------------------------------------


def _blocks(data: DataSettings, part: str, tokenizer: Tokenizer) -> Iterator[Block]:
    """Encoded blocks in the order of the text."""
    jobs: Iterator[Any]
    if data.source == "micro-world":  # workers make their text themselves
        split = "train" if part == "train" else data.val_split or "valid"
        jobs = ((data.seed, split, data.kind, start) for start in _count(0, _STORIES))
    else:
        jobs = _gathered(_texts(data, part))
    if data.workers == 1:
        yield from (encode(tokenizer, job) for job in jobs)
        return
    with worker_pool(data.workers, _adopt, (tokenizer,)) as pool:
        while wave := list(islice(jobs, 2 * data.workers)):
            yield from pool.map(_encode_adopted, wave)


def _count(start: int, step: int) -> Iterator[int]:
    while True:
        yield start
        start += step


def _gathered(texts: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def encode(tokenizer: Tokenizer, job: list[str] | tuple[int, str, str, int]) -> Block:
    """Encode a list of documents, or ``(seed, split, kind, first index)`` of the micro-world."""
    if isinstance(job, tuple):
        seed, split, kind, start = job
        world = micro_world(seed, split=split, kind=kind)
        texts = [world.document(index).text for index in range(start, start + _STORIES)]
    else:
        texts = job
    end = tokenizer.special_tokens[END_OF_TEXT]
    sizes = np.array([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.int64)
    if any(END_OF_TEXT in text for text in texts):  # there it is text, and no mark
        parts = [np.append(tokenizer.encode_to_numpy(text, disallowed_special=()), end) for text in texts]
        counts = np.array([len(each) for each in parts], dtype=np.int64)
        return np.concatenate(parts).astype(tokenizer.dtype), counts, sizes
    ids = tokenizer.encode_to_numpy(END_OF_TEXT.join([*texts, ""]), allowed_special="all")
    counts = np.diff(np.flatnonzero(ids == end), prepend=-1)
    return ids, counts, sizes


_tokenizer_here: Tokenizer | None = None  # of a worker process


def _adopt(tokenizer: Tokenizer) -> None:
    global _tokenizer_here
    _tokenizer_here = tokenizer


def _encode_adopted(job: Any) -> Block:
    assert _tokenizer_here is not None
    return encode(_tokenizer_here, job)


def _write(
    path: Path, blocks: Iterator[Block], tokenizer: Tokenizer, max_bytes: int | None, setting: str
) -> None:
    """A token file of whole documents, up to the one with which ``max_bytes`` bytes are reached."""
    dtype = np.dtype(tokenizer.dtype).newbyteorder("<")
    digest, tokens, documents, n_bytes = hashlib.sha256(), 0, 0, 0
    with replacing(path) as file:
        file.write(b" " * HEADER)
        for ids, counts, sizes in blocks:
            keep = len(counts)
            if max_bytes is not None:
                keep = min(keep, int(np.searchsorted(n_bytes + np.cumsum(sizes), max_bytes)) + 1)
            part = ids[: int(counts[:keep].sum())].astype(dtype, copy=False).tobytes()
            file.write(part)
            digest.update(part)
            tokens += len(part) // dtype.itemsize
            documents += keep
            n_bytes += int(sizes[:keep].sum())
            if max_bytes is not None and n_bytes >= max_bytes:
                break
        if not tokens:
            raise ArgumentError(setting, "holds no document")
        header = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": dtype.name,
            "tokens": tokens,
            "documents": documents,
            "bytes": n_bytes,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": tokenizer_hash(tokenizer),
            "sha256": digest.hexdigest(),
        }
        file.seek(0)
        file.write(json.dumps(header).encode().ljust(HEADER - 1) + b"\n")
