"""The byte-level BPE tokenizer that people use: exact, streaming, and without a slow path.

Encoding cuts a text into pretokens (`patterns`) and applies the merges to each (`merging`). What a pretoken,
or a chunk of several, came to is remembered, because language repeats itself. The memos are bounded; they
change the time and never the result.
"""

import codecs
import operator
import os
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Literal

from lmlib.tokenization import fast, storage
from lmlib.tokenization.merging import Pair, merge_ids
from lmlib.tokenization.patterns import pretokenizer
from lmlib.tokenization.processes import worker_pool
from lmlib.tokenization.recognition import own_encodings
from lmlib.tokenization.stream import (
    BLOCK,
    read_text,
    replace_surrogates,
    segments,
    special_finder,
    split_specials,
    utf8,
    without_surrogates,
)

if TYPE_CHECKING:
    import numpy as np

_TEXT_BLOCK = 1 << 20  # characters pretokenized at once, so that a long text costs no second copy of itself
_LONGEST_REMEMBERED = 256  # characters: longer chunks hardly repeat and would fill the memo
_MEMO_SIZE = 1 << 20  # chunks; full memos are emptied. About 200 MB at the very most, 30 MB on 10 MB of prose

_REPAYS_A_CALL = 1 << 12  # characters from which compiled code that is loaded already is the faster way

Specials = Literal["all"] | Collection[str]
Implementation = Literal["auto", "python", "numba"]


class Memo(dict[str, bytes]):
    """A function's values, remembered up to a number of entries; looked up at the speed of a dict."""

    def __init__(self, function: Callable[[str], bytes], max_entries: int) -> None:
        super().__init__()
        self._function = function
        self._max_entries = max_entries

    def __missing__(self, key: str) -> bytes:
        value = self._function(key)
        if len(key) <= _LONGEST_REMEMBERED:
            if len(self) >= self._max_entries:
                self.clear()
            self[key] = value
        return value


class Tokenizer:
    """Byte-level BPE: any text to token ids and back, without loss.

    vocab: id -> bytes of each token; all 256 single bytes must be there. Ids need not be contiguous.
    merges: pairs of byte strings in the order they were learned.
    special_tokens: strings that are one token wherever they are allowed. Either with their ids, or just the
        strings: those that `vocab` has keep their id, others get the next free ones.
    pattern: a name of `PATTERNS` ("gpt2", "cl100k", "o200k") or a regular expression for `regex`.
    implementation: "python", "numba" (the same ids, faster; patterns "gpt2" and "cl100k"), or "auto": Numba
        where it is installed and the text so large that loading it does not matter.

    Raises ImportError for "numba" where Numba is not installed, and ValueError for a missing byte, a
    repeated token, a merge whose parts or result `vocab` lacks, an empty or repeated special token, two
    tokens with one id, or an implementation that does not exist for the pattern.
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Iterable[tuple[bytes, bytes]],
        special_tokens: Mapping[str, int] | Iterable[str] = (),
        *,
        pattern: str = "gpt2",
        implementation: Implementation = "auto",
    ) -> None:
        self._pretokenizer = pretokenizer(pattern)
        fast.check(implementation, self._pretokenizer.name)
        self.implementation = implementation
        self.special_tokens = _number_specials(special_tokens, vocab)
        special_ids = set(self.special_tokens.values())
        ordinary = {_index(id_): bytes(token) for id_, token in vocab.items() if id_ not in special_ids}
        self._ids = {token: id_ for id_, token in ordinary.items()}
        if len(self._ids) != len(ordinary):
            raise ValueError(_repeated_token(ordinary))
        self._bytes = ordinary | {id_: name.encode() for name, id_ in self.special_tokens.items()}
        self._vocab_size = max(self._bytes) + 1
        self._byte_ids = self._find_bytes()
        self._merges = tuple((bytes(left), bytes(right)) for left, right in merges)
        self._ranks, self._made = self._index_merges()
        self._finders: dict[frozenset[str], Any] = {}
        self._forget()

    # -- what the tokenizer knows ---------------------------------------------------------------------------

    @property
    def pattern(self) -> str:
        """The name of the pre-tokenization pattern, or the regular expression if it is a custom one."""
        known = self._pretokenizer
        return known.source if known.name == "custom" else known.name

    @property
    def vocab(self) -> dict[int, bytes]:
        """id -> bytes of every token, special tokens included, in the order of the ids."""
        return dict(sorted(self._bytes.items()))

    @property
    def merges(self) -> tuple[tuple[bytes, bytes], ...]:
        """Pairs of byte strings in the order they were learned."""
        return self._merges

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the number of rows that an embedding needs."""
        return self._vocab_size

    @property
    def n_vocab(self) -> int:
        """The same as vocab_size, under tiktoken's name."""
        return self.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        specials = ", ".join(list(self.special_tokens)[:3]) or "none"
        return (
            f"Tokenizer({self.vocab_size:,} tokens, pattern {self.pattern!r:.40}, special tokens: {specials})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash((self.pattern, len(self._bytes), self._merges))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (*self._identity(), self.implementation)

    def _identity(self) -> tuple[Any, ...]:
        return self.vocab, self._merges, self.special_tokens, self.pattern

    @property
    def pair_ranks(self) -> Mapping[Pair, int]:
        """Pair of ids -> rank of their merge: 0 for the one learned first."""
        return MappingProxyType(self._ranks)

    @property
    def merged_ids(self) -> Sequence[int]:
        """Rank of a merge -> id of the token that it makes."""
        return self._made

    def pretokens(self, text: str) -> list[str]:
        """The pieces of a text that are merged apart, in order. They join to the text again."""
        return self._pretokenizer.pretokens(text)

    def byte_ids(self, data: bytes) -> list[int]:
        """The ids of single bytes: what a pretoken is before any merge."""
        return list(map(self._byte_ids.__getitem__, data))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token. Raises ValueError if there is no such id."""
        return self._checked([token_id])[0]

    def token_id(self, token: str | bytes) -> int:
        """The id of one token, special or not. Raises ValueError if the vocabulary does not hold it."""
        if isinstance(token, str) and token in self.special_tokens:
            return self.special_tokens[token]
        found = self._ids.get(token.encode() if isinstance(token, str) else bytes(token))
        if found is None:
            raise ValueError(f"token {token!r} is not in the vocabulary of {len(self._bytes):,} tokens")
        return found

    # -- text to ids ----------------------------------------------------------------------------------------

    def encode(
        self, text: str, *, allowed_special: Specials = frozenset(), disallowed_special: Specials = "all"
    ) -> list[int]:
        """Token ids of a text, special tokens treated as tiktoken treats them.

        allowed_special: special tokens that become their id, or "all". Where several could begin, the longest
            does.
        disallowed_special: special tokens whose text is refused with a ValueError; "all" means all that are
            not allowed, so that text from strangers cannot smuggle one in. With an empty collection the text
            of a special token is encoded like any other.
        """
        allowed, disallowed = self._resolve_specials(allowed_special, disallowed_special)
        self._refuse(text, disallowed)
        if not allowed:
            return self.encode_ordinary(text)
        ids: list[int] = []
        for part, is_special in split_specials(text, self._finder(allowed)):
            if is_special:
                ids.append(self.special_tokens[part])
            else:
                ids += self.encode_ordinary(part)
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of a text in which no special token means anything."""
        try:
            return _unpack(self._encode(text))
        except UnicodeEncodeError:
            return _unpack(self._encode(replace_surrogates(text)))

    def encode_batch(
        self,
        texts: Iterable[str],
        *,
        n_workers: int = 1,
        allowed_special: Specials = frozenset(),
        disallowed_special: Specials = "all",
    ) -> list[list[int]]:
        """`encode` of each text, in order, by n_workers processes (which take about a second to start)."""
        if isinstance(texts, str):  # whose items, characters, would be encoded one by one
            raise TypeError("texts must be a collection of texts, got a single one; `encode` takes that")
        self._resolve_specials(allowed_special, disallowed_special)
        options = {"allowed_special": allowed_special, "disallowed_special": disallowed_special}
        if _index(n_workers, "n_workers", least=1) == 1:
            return [self.encode(text, **options) for text in texts]  # type: ignore[arg-type]
        texts = list(texts)
        with worker_pool(n_workers, _adopt, (self, options)) as pool:
            return list(pool.map(_encode_adopted, texts, chunksize=max(1, len(texts) // (8 * n_workers))))

    def encode_iterable(
        self,
        chunks: Iterable[str] | IO[str],
        *,
        allowed_special: Specials = frozenset(),
        disallowed_special: Specials = "all",
    ) -> Iterator[int]:
        """Token ids of a text that arrives in chunks, or of an open text file, one at a time.

        The ids are those of the whole text, wherever the chunks end, be it inside a word, a special token or
        a surrogate pair. Memory is constant: one block of text, or the longest single pretoken. (With a
        custom pattern, one document: nothing is known there about where a text may be cut.)
        """
        for part in self._streamed(_chunks_of(chunks), allowed_special, disallowed_special, BLOCK):
            yield from _unpack(part)

    def encode_to_numpy(
        self, text: str, *, allowed_special: Specials = frozenset(), disallowed_special: Specials = "all"
    ) -> "np.ndarray":
        """Token ids of a text as an array of `dtype`, shape (n_tokens,)."""
        import numpy as np

        if encoder := self._fast_encoder(len(text)):
            allowed, disallowed = self._resolve_specials(allowed_special, disallowed_special)
            self._refuse(text, disallowed)
            ids = encoder.encode(utf8(text), self._special_bytes(allowed))
            return ids.astype(self.dtype, copy=False)
        parts = self._streamed([text], allowed_special, disallowed_special, _TEXT_BLOCK)
        return np.frombuffer(b"".join(parts), dtype=np.uint32).astype(self.dtype)

    def encode_file(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        allowed_special: Specials = frozenset(),
        disallowed_special: Specials = "all",
    ) -> int:
        """Encodes a UTF-8 file of any size into a NumPy file; returns the number of tokens.

        Read it with `numpy.load(target, mmap_mode="r")`: an array of `dtype`, shape (n_tokens,). The file
        appears under its name only when it is complete. Raises ValueError, with the byte offset, for a file
        that is not UTF-8.
        """
        size = Path(source).stat().st_size
        parts = self._streamed(read_text(source), allowed_special, disallowed_special, _TEXT_BLOCK, size)
        return storage.write_array(target, parts, self.dtype)

    @property
    def dtype(self) -> "np.dtype":
        """The smallest unsigned type that holds every id: uint16 up to 65,536 tokens, else uint32."""
        import numpy as np

        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    # -- ids to text ----------------------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the tokens, joined. Raises ValueError for an id that is not in the vocabulary."""
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        try:
            return b"".join(map(self._bytes.__getitem__, ids))
        except (KeyError, TypeError):
            return b"".join(self._checked(ids))

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of the tokens.

        errors: what to do with bytes that are not UTF-8, as part of a character is not: "replace" puts
            U+FFFD, "strict" raises UnicodeDecodeError, "ignore" drops them.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_iterable(self, ids: Iterable[int], errors: str = "replace") -> Iterator[str]:
        """The text of tokens as they arrive: a character is given out once its last byte is there."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors)
        for id_ in ids:
            text = decoder.decode(self.token_bytes(id_))
            if text:
                yield text
        if rest := decoder.decode(b"", final=True):
            yield rest

    # -- keeping --------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tokenizer to one JSON file, which appears only when it is complete."""
        storage.save(Path(path), self.vocab, self._merges, self.special_tokens, self.pattern)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads what `save` wrote. Raises ValueError if the file is truncated, changed or of another kind."""
        vocab, merges, special_tokens, pattern = storage.load(Path(path))
        return cls(vocab, merges, special_tokens, pattern=pattern)

    # -- inside ---------------------------------------------------------------------------------------------

    def _find_bytes(self) -> list[int]:
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        if missing:
            raise ValueError(
                f"the vocabulary lacks {len(missing)} of the 256 single bytes, first 0x{missing[0]:02x}; "
                "byte-level BPE needs them all (is the vocabulary truncated?)"
            )
        return [self._ids[bytes([byte])] for byte in range(256)]

    def _index_merges(self) -> tuple[dict[Pair, int], list[int]]:
        ids, made = self._ids, []
        ranks: dict[Pair, int] = {}
        for rank, (left, right) in enumerate(self._merges):
            for part in (left, right, left + right):
                if part not in ids:
                    raise ValueError(f"merge {rank}, {left!r} + {right!r}: the vocabulary lacks {part!r}")
            pair = ids[left], ids[right]
            if pair in ranks:
                raise ValueError(f"merge {rank}, {left!r} + {right!r}, repeats merge {ranks[pair]}")
            ranks[pair] = rank
            made.append(ids[left + right])
        return ranks, made

    def _forget(self) -> None:
        """Empties the memos."""
        self._encoder: fast.Encoder | None = None
        self._words = Memo(self._encode_word, _MEMO_SIZE)
        self._chunks = Memo(self._encode_chunk, _MEMO_SIZE)

    @cached_property
    def _own(self) -> set[int]:
        """The tokens that are their own encoding: looked for once, when the first word is to be merged."""
        return own_encodings(self._byte_ids, self._ranks, self._made)

    def _encode_word(self, word: str) -> bytes:
        data = word.encode()
        known = self._ids.get(data, -1)
        ids = [known] if known in self._own else merge_ids(self.byte_ids(data), self._ranks, self._made)
        return array("I", ids).tobytes()

    def _encode_chunk(self, chunk: str) -> bytes:
        cut = self._pretokenizer
        return b"".join(map(self._words.__getitem__, cut.quick_pretokens(chunk) or cut.pretokens(chunk)))

    def _encode(self, text: str) -> bytes:
        """Ids of ordinary text, four bytes each: joining bytes is faster than collecting integers."""
        if encoder := self._fast_encoder(len(text)):
            return encoder.encode(text.encode()).tobytes()
        cut = self._pretokenizer
        word, chunk = self._words.__getitem__, self._chunks.__getitem__
        parts = []
        for block in cut.blocks(text):
            pretokens = cut.quick_pretokens(block)
            parts.append(
                b"".join(map(chunk, cut.chunks(block)) if pretokens is None else map(word, pretokens))
            )
        return b"".join(parts)

    def _streamed(
        self,
        chunks: Iterable[str],
        allowed_special: Specials,
        disallowed_special: Specials,
        block: int,
        size: int = 0,
    ) -> Iterator[bytes]:
        """Ids of a stream, four bytes each. size: of the whole text, roughly, as far as it is known."""
        allowed, disallowed = self._resolve_specials(allowed_special, disallowed_special)
        if disallowed:
            chunks = self._refusing(chunks, disallowed)
        if encoder := self._fast_encoder(size):
            encoded = (chunk.encode() for chunk in without_surrogates(chunks))
            for ids in encoder.encode_stream(encoded, self._special_bytes(allowed)):
                yield ids.tobytes()
            return
        for part, is_special in segments(chunks, self._pretokenizer, allowed, block):
            yield array("I", [self.special_tokens[part]]).tobytes() if is_special else self._encode(part)

    def _fast_encoder(self, size: int) -> "fast.Encoder | None":
        """The compiled encoder if it is to encode a text of so many characters; None if the memos are."""
        if self.implementation == "python":
            return None
        if self._encoder is None:
            name = self._pretokenizer.name
            if self.implementation == "auto" and not fast.worthwhile(name, size):
                return None
            kind = fast.kind_of(name)
            assert kind is not None  # checked in __init__ or by `worthwhile`
            merges = [(*pair, made) for pair, made in zip(self._ranks, self._made, strict=True)]
            self._encoder = fast.Encoder(self._byte_ids, merges, kind)
        return self._encoder if self.implementation == "numba" or size >= _REPAYS_A_CALL else None

    def _special_bytes(self, specials: Iterable[str]) -> dict[bytes, int]:
        return {special.encode(): self.special_tokens[special] for special in specials}

    def _resolve_specials(
        self, allowed: Specials, disallowed: Specials
    ) -> tuple[frozenset[str], frozenset[str]]:
        known = frozenset(self.special_tokens)
        for name, value in (("allowed_special", allowed), ("disallowed_special", disallowed)):
            if isinstance(value, str) and value != "all":
                raise ValueError(f'{name} must be "all" or a collection of special tokens, got {value!r}')
        allowed_set = known if allowed == "all" else frozenset(allowed)
        if unknown := allowed_set - known:
            raise ValueError(f"allowed_special: {sorted(unknown)[0]!r} is not one of {sorted(known)}")
        return allowed_set, known - allowed_set if disallowed == "all" else frozenset(disallowed)

    def _finder(self, specials: frozenset[str]) -> Any:
        if specials not in self._finders:
            self._finders[specials] = special_finder(specials)
        return self._finders[specials]

    def _refuse(self, text: str, disallowed: frozenset[str]) -> None:
        if disallowed and (found := self._finder(disallowed).search(text)):
            raise ValueError(
                f"the text holds the special token {found.group()!r} at character {found.start()}; allow it "
                f"with allowed_special={{{found.group()!r}}}, or encode it as ordinary text with "
                "disallowed_special=()"
            )

    def _refusing(self, chunks: Iterable[str], disallowed: frozenset[str]) -> Iterator[str]:
        """The chunks, as long as no disallowed special token appears in them or over their borders."""
        overlap, tail = max(map(len, disallowed)) - 1, ""
        for chunk in chunks:
            window = tail + chunk
            self._refuse(window, disallowed)
            tail = window[len(window) - overlap :] if overlap < len(window) else window
            yield chunk

    def _checked(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each id, with an error that names the first bad one."""
        found = []
        for position, id_ in enumerate(ids):
            token = self._bytes.get(_index(id_, "token id"))
            if token is None:
                raise ValueError(
                    f"token id {id_} (position {position}) is not in the vocabulary: "
                    f"ids go from {min(self._bytes)} to {max(self._bytes)}"
                )
            found.append(token)
        return found


def _rebuild(
    vocab: dict[int, bytes],
    merges: tuple[tuple[bytes, bytes], ...],
    special_tokens: dict[str, int],
    pattern: str,
    implementation: Implementation,
) -> Tokenizer:
    return Tokenizer(vocab, merges, special_tokens, pattern=pattern, implementation=implementation)


def _index(value: Any, name: str = "token id", least: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def check_specials(special_tokens: Iterable[str]) -> list[str]:
    """The special tokens as a list. Raises ValueError for an empty or repeated one, TypeError for others."""
    if isinstance(special_tokens, str):
        raise TypeError(f"special_tokens must be a collection of strings, got the string {special_tokens!r}")
    specials = list(special_tokens)
    for position, special in enumerate(specials):
        if not isinstance(special, str):
            raise TypeError(f"special_tokens[{position}] must be a string, got {special!r}")
        if not special:
            raise ValueError(
                f"special_tokens[{position}] is empty; a special token needs at least one character"
            )
        if special in specials[:position]:
            raise ValueError(f"special_tokens[{position}], {special!r}, is repeated")
    return specials


def _number_specials(
    special_tokens: Mapping[str, int] | Iterable[str], vocab: Mapping[int, bytes]
) -> dict[str, int]:
    names = check_specials(special_tokens)
    if isinstance(special_tokens, Mapping):
        numbered = {name: _index(special_tokens[name], f"id of {name!r}", least=0) for name in names}
        for name, id_ in numbered.items():
            if vocab.get(id_, name.encode()) != name.encode():
                raise ValueError(
                    f"special token {name!r} has id {id_}, which the vocabulary gives to {vocab[id_]!r}"
                )
        if len(set(numbered.values())) != len(numbered):
            raise ValueError(f"two special tokens have the same id: {numbered}")
        return numbered
    present = {token: id_ for id_, token in vocab.items()}
    free, numbered = max(vocab, default=-1) + 1, {}
    for name in names:
        if name.encode() in present:
            numbered[name] = present[name.encode()]
        else:
            numbered[name], free = free, free + 1
    return numbered


def _repeated_token(vocab: Mapping[int, bytes]) -> str:
    first: dict[bytes, int] = {}
    for id_, token in vocab.items():
        if token in first:
            return f"token {token!r} has two ids, {first[token]} and {id_}"
        first[token] = id_
    raise AssertionError("no token is repeated")


def _unpack(ids: bytes) -> list[int]:
    return memoryview(ids).cast("I").tolist()


def _chunks_of(source: Iterable[str] | IO[str]) -> Iterable[str]:
    if isinstance(source, str):
        return [source]
    if hasattr(source, "read"):  # a file's lines can be as long as the file, its blocks cannot
        return iter(lambda: source.read(BLOCK), "")
    return source


_adopted: tuple[Tokenizer, dict[str, Any]]


def _adopt(tokenizer: Tokenizer, options: dict[str, Any]) -> None:
    """In a worker process: keep the tokenizer, and with it its memos, for all texts that come."""
    global _adopted
    _adopted = tokenizer, options


def _encode_adopted(text: str) -> list[int]:
    tokenizer, options = _adopted
    return tokenizer.encode(text, **options)
