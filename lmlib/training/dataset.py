"""Token files: a JSON header of fixed size, then the ids, mapped into memory and never read as a whole.

``write_tokens`` makes one from documents and a tokenizer, in constant memory; it appears under its name only
when it is complete. The header says what the ids are (type, number, vocabulary, documents, bytes of text, the
tokenizer's and the ids' sha256), so that a loss per token can be turned into one per byte, and a run can say
exactly what it was trained on.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from lmlib.data.document import Document
from lmlib.data.sources import END_OF_TEXT
from lmlib.resources.units import ArgumentError, check_integer
from lmlib.tokenization.storage import replacing

if TYPE_CHECKING:
    from lmlib.tokenization import Tokenizer

FORMAT, VERSION = "lmlib-tokens", 1
HEADER = 4096  # bytes: one page, so that the ids begin on a page of their own
_TYPES = ("uint16", "uint32")


@dataclass(frozen=True)
class TokenData:
    """A text as token ids.

    Args:
        ids: (n,) unsigned or signed integers, in memory or mapped.
        vocab_size: ids are below it; ``None`` where nobody has said.
        n_documents, n_bytes: of the text, separators not counted in bytes; ``None`` where unknown.
        sha256: of the ids as they lie in the file.
        tokenizer: sha256 of the tokenizer.
        path: the file.
    """

    ids: NDArray[Any]
    vocab_size: int | None = None
    n_documents: int | None = None
    n_bytes: int | None = None
    sha256: str | None = None
    tokenizer: str | None = None
    path: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_array(cls, ids: Any, vocab_size: int | None = None, n_bytes: int | None = None) -> "TokenData":
        """Ids that are in memory: a list, an array or a tensor of one axis.

        Raises:
            ArgumentError: for anything but whole numbers from 0 in one axis, or ids beyond ``vocab_size``.
        """
        array = np.asarray(ids)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ArgumentError(
                "ids", f"must be integers in one axis, got {array.dtype} of shape {array.shape}"
            )
        if len(array) and int(array.min()) < 0:
            raise ArgumentError("ids", f"must be 0 or more, got {int(array.min())}")
        if vocab_size is not None and len(array) and int(array.max()) >= vocab_size:
            raise ArgumentError("ids", f"must be below vocab_size, {vocab_size:,}, got {int(array.max()):,}")
        digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
        return cls(array, vocab_size, n_bytes=n_bytes, sha256=digest)

    def windows(
        self, starts: NDArray[np.int64], length: int
    ) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Inputs and targets of windows: the targets are the inputs moved on by one token.

        Raises:
            ArgumentError: for a window that does not lie in the data.
        """
        if len(starts) and (starts.min() < 0 or starts.max() + length + 1 > len(self.ids)):
            raise ArgumentError("starts", f"must be from 0 to {len(self.ids) - length - 1:,}")
        rows = np.stack([self.ids[start : start + length + 1] for start in starts]).astype(np.int64)
        both = torch.from_numpy(rows)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def verify(self) -> None:
        """Read all ids and compare with their hash.

        Raises:
            ValueError: if they differ: the file is damaged.
        """
        digest = hashlib.sha256()
        for start in range(0, len(self.ids), 1 << 22):
            digest.update(np.ascontiguousarray(self.ids[start : start + (1 << 22)]).data)
        if self.sha256 is not None and digest.hexdigest() != self.sha256:
            raise ValueError(f"{self.path or 'ids'}: the ids do not match their sha256: damaged or changed")


def write_tokens(
    path: str | os.PathLike[str],
    documents: Iterable[Document | str],
    tokenizer: "Tokenizer",
    *,
    separator: str | None = END_OF_TEXT,
    max_tokens: int | None = None,
) -> TokenData:
    """Encode documents one after another into a token file, each followed by the separator's id.

    What looks like a special token inside a document is encoded as ordinary text.

    Args:
        separator: a special token of the tokenizer, or ``None`` for none.
        max_tokens: stop after so many, within a document if need be.

    Raises:
        ArgumentError: if the tokenizer has no such special token, or there is no token to write.
        OSError: if the disk does not take it; then nothing has changed.
    """
    if separator is not None and separator not in tokenizer.special_tokens:
        known = ", ".join(tokenizer.special_tokens) or "none"
        raise ArgumentError("separator", f"{separator!r} is not a special token; the tokenizer has {known}")
    end = None if separator is None else tokenizer.special_tokens[separator]
    if max_tokens is not None:
        check_integer("max_tokens", max_tokens, 1, 2**62)
    dtype = np.dtype(tokenizer.dtype).newbyteorder("<")
    digest, counts = hashlib.sha256(), {"tokens": 0, "documents": 0, "bytes": 0}
    target = Path(path)
    with replacing(target) as file:
        file.write(b" " * HEADER)
        for text in _texts(documents):
            ids = tokenizer.encode_to_numpy(text, disallowed_special=())
            if end is not None:
                ids = np.append(ids, np.asarray(end, dtype=ids.dtype))
            if max_tokens is not None:
                ids = ids[: max_tokens - counts["tokens"]]
            data = ids.astype(dtype, copy=False).tobytes()
            file.write(data)
            digest.update(data)
            counts["tokens"] += len(ids)
            counts["documents"] += 1
            counts["bytes"] += len(text.encode("utf-8", "replace"))
            if counts["tokens"] == max_tokens:
                break
        if not counts["tokens"]:
            raise ArgumentError("documents", "hold no token at all")
        file.seek(0)
        file.write(_header(dtype, counts, tokenizer, digest.hexdigest()))
    return open_tokens(target)


def _texts(documents: Iterable[Document | str]) -> Iterator[str]:
    if isinstance(documents, str):
        raise ArgumentError("documents", "must be several documents, got one string: put it into a list")
    for number, document in enumerate(documents):
        text = document.text if isinstance(document, Document) else document
        if not isinstance(text, str):
            raise ArgumentError(
                "documents", f"number {number} is {type(text).__name__}, not a str or a Document"
            )
        yield text


def tokenizer_hash(tokenizer: "Tokenizer") -> str:
    """sha256 of everything that decides how a tokenizer encodes."""
    digest = hashlib.sha256(tokenizer.pattern.encode())
    for pair in tokenizer.merges:
        digest.update(b"\x00".join(part.hex().encode() for part in pair) + b"\n")
    for token, id_ in sorted(tokenizer.special_tokens.items()):
        digest.update(f"{token}\x00{id_}\n".encode())
    digest.update(str(tokenizer.vocab_size).encode())
    return digest.hexdigest()


def _header(dtype: np.dtype, counts: dict[str, int], tokenizer: "Tokenizer", sha256: str) -> bytes:
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": dtype.name,
        **counts,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "sha256": sha256,
    }
    return json.dumps(fields).encode().ljust(HEADER - 1) + b"\n"


def open_tokens(path: str | os.PathLike[str], dtype: str | None = None) -> TokenData:
    """Map a token file, or a NumPy file, or a file of bare ids, into memory.

    Args:
        dtype: for a file of bare ids (nanoGPT's ``.bin``): ``uint16`` or ``uint32``, little-endian.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a file that is none of these, or that is shorter or longer than its header says.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"path: there is no token file {str(source)!r}")
    with source.open("rb") as file:
        start = file.read(HEADER)
    if start.startswith(b"\x93NUMPY"):
        ids = np.load(source, mmap_mode="r")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"{source} must hold integers in one axis, got {ids.dtype} of shape {ids.shape}")
        return TokenData(ids, path=str(source))
    if dtype is not None:
        if dtype not in _TYPES:
            raise ArgumentError("dtype", f"must be one of {', '.join(_TYPES)}; got {dtype!r}")
        return TokenData(np.memmap(source, np.dtype(dtype).newbyteorder("<"), "r"), path=str(source))
    header = _read_header(source, start)
    kind = np.dtype(header["dtype"]).newbyteorder("<")
    expected, size = HEADER + header["tokens"] * kind.itemsize, source.stat().st_size
    if size != expected:
        raise ValueError(f"{source} has {size:,} bytes where its header says {expected:,}: it is damaged")
    ids = np.memmap(source, kind, "r", offset=HEADER, shape=(header["tokens"],))
    return TokenData(
        ids,
        header["vocab_size"],
        header["documents"],
        header["bytes"],
        header["sha256"],
        header["tokenizer_sha256"],
        str(source),
    )


def _read_header(source: Path, start: bytes) -> dict[str, Any]:
    try:
        header = json.loads(start)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"{source} is neither a token file of this library nor a NumPy file; "
            "for bare ids say dtype='uint16' or 'uint32'"
        )
    if header.get("version") != VERSION:
        raise ValueError(f"{source} has version {header.get('version')!r}; this library reads {VERSION}")
    return header
