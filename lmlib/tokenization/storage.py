"""The tokenizer's own file, and files that appear under their name only when they are complete."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

FORMAT = "lmlib-tokenizer"
VERSION = 1

Parts = tuple[dict[int, bytes], list[tuple[bytes, bytes]], dict[str, int], str]


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes `path`'s place at the end, at once; if anything fails, nothing has changed."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are private, ordinary ones are not
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, all or nothing."""
    with replacing(path) as file:
        file.write(text.encode())


def save(
    path: Path,
    vocab: Mapping[int, bytes],
    merges: Sequence[tuple[bytes, bytes]],
    special_tokens: Mapping[str, int],
    pattern: str,
) -> None:
    """Writes the JSON file that `load` reads; a byte is written as the character of its number (latin-1)."""
    special_ids = set(special_tokens.values())
    ordinary = {id_: token for id_, token in vocab.items() if id_ not in special_ids}
    ids = {token: id_ for id_, token in ordinary.items()}
    content = {
        "pattern": pattern,
        "special_tokens": dict(special_tokens),
        "vocab": [[id_, token.decode("latin-1")] for id_, token in sorted(ordinary.items())],
        "merges": [[ids[left], ids[right]] for left, right in merges],
    }
    document = {"format": FORMAT, "version": VERSION, "sha256": _hash(content), **content}
    write_text(path, json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")


def load(path: Path) -> Parts:
    """(vocab, merges, special_tokens, pattern) of a file that `save` wrote.

    Raises ValueError that names the file, and what is wrong with it.
    """
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'{path} is not a tokenizer file of this library ("format" is not {FORMAT!r})')
    if document.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {document.get('version')!r}; this library reads version {VERSION}"
        )
    content = {key: document.get(key) for key in ("pattern", "special_tokens", "vocab", "merges")}
    if missing := [key for key, value in content.items() if value is None]:
        raise ValueError(f"{path} lacks {missing[0]!r}")
    if _hash(content) != document.get("sha256"):
        raise ValueError(f"{path} does not match its own sha256: it was changed after it was saved")
    vocab = {id_: token.encode("latin-1") for id_, token in document["vocab"]}
    merges = [(vocab[left], vocab[right]) for left, right in document["merges"]]
    return vocab, merges, document["special_tokens"], document["pattern"]


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError that says where it stops being JSON."""
    try:
        return json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte offset {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is truncated or not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None


def write_array(path: str | os.PathLike[str], parts: Iterable[bytes], dtype: "np.dtype") -> int:
    """Writes ids (uint32 in `parts`) as `dtype` into a .npy file, all or nothing; returns how many."""
    import numpy as np

    with replacing(Path(path)) as file:
        file.write(_npy_header(dtype, 0))
        count = 0
        for part in parts:
            ids = np.frombuffer(part, dtype=np.uint32)
            file.write(ids.astype(dtype).tobytes())
            count += len(ids)
        file.seek(0)
        file.write(_npy_header(dtype, count))
    return count


def _npy_header(dtype: "np.dtype", count: int) -> bytes:
    """A version 1.0 .npy header of 128 bytes, whatever the count (NumPy Enhancement Proposal 1)."""
    fields = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count},), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + fields.ljust(117).encode("ascii") + b"\n"


def _hash(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
