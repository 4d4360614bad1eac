"""The files in which other libraries keep a byte-level BPE vocabulary: read, written, refused where unsure.

* GPT-2: `vocab.json` (token -> id) and `merges.txt` (one merge a line), bytes as printable characters.
* Hugging Face: `tokenizer.json`, the same content with the pre-tokenization and the special tokens.
* tiktoken: one `base64 rank` a line. It holds no merges, only the order in which tokens were made; that
  suffices, because a token's bytes, merged with the merges of lower rank, come down to its two parts.
"""

import base64
import binascii
import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lmlib.tokenization.merging import Pair, merge_ids
from lmlib.tokenization.patterns import PATTERNS
from lmlib.tokenization.storage import read_json, write_text
from lmlib.tokenization.tokenizer import Tokenizer

FilePath = str | os.PathLike[str]
Merge = tuple[bytes, bytes]


@lru_cache(maxsize=1)
def byte_characters() -> str:
    """The 256 printable characters that stand for the bytes in GPT-2's files.

    Printable bytes of latin-1 stand for themselves, the other 68 are moved to U+0100 and up
    (`bytes_to_unicode` in OpenAI's GPT-2 release).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(moved)) for byte in range(256))


def to_characters(token: bytes) -> str:
    """A token as GPT-2's files write it: b" the" is "Ġthe"."""
    return token.decode("latin-1").translate(dict(enumerate(byte_characters())))


def from_characters(text: str, where: str) -> bytes:
    """The bytes of a token as GPT-2's files write it. Raises ValueError that names `where`."""
    numbers = _byte_numbers()
    try:
        return bytes(numbers[character] for character in text)
    except KeyError as error:
        raise ValueError(
            f"{where}: token {text!r} has the character {error.args[0]!r}, which is no byte"
        ) from None


@lru_cache(maxsize=1)
def _byte_numbers() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_characters())}


# -- GPT-2 ---------------------------------------------------------------------------------------------------


def load_gpt2(
    vocab_path: FilePath,
    merges_path: FilePath,
    special_tokens: Iterable[str] = ("<|endoftext|>",),
    *,
    pattern: str = "gpt2",
) -> Tokenizer:
    """Reads `vocab.json` (also called encoder.json) and `merges.txt` (vocab.bpe).

    special_tokens: which tokens are special, since the files do not say; new ones get the next free ids.
    Raises ValueError that names the file and the entry for a file that is truncated or not of this kind.
    """
    vocab = _read_vocab(Path(vocab_path), read_json(Path(vocab_path)), set(special_tokens))
    return Tokenizer(vocab, _read_merge_lines(Path(merges_path)), special_tokens, pattern=pattern)


def save_gpt2(tokenizer: Tokenizer, vocab_path: FilePath, merges_path: FilePath) -> None:
    """Writes `vocab.json` and `merges.txt`. They do not say which tokens are special, nor the pattern."""
    write_text(Path(vocab_path), json.dumps(_vocab_entries(tokenizer), ensure_ascii=False))
    lines = [f"{to_characters(left)} {to_characters(right)}" for left, right in tokenizer.merges]
    write_text(Path(merges_path), "\n".join(["#version: 0.2", *lines, ""]))


def _vocab_entries(tokenizer: Tokenizer) -> dict[str, int]:
    names = {id_: name for name, id_ in tokenizer.special_tokens.items()}
    return {names.get(id_) or to_characters(token): id_ for id_, token in tokenizer.vocab.items()}


def _read_vocab(path: Path, entries: Any, specials: set[str]) -> dict[int, bytes]:
    if not isinstance(entries, dict) or not all(isinstance(id_, int) for id_ in entries.values()):
        raise ValueError(f"{path} is not a vocabulary: it must map tokens to integer ids")
    vocab: dict[int, bytes] = {}
    for token, id_ in entries.items():
        if id_ in vocab:
            raise ValueError(f"{path}: two tokens have the id {id_}, one of them {token!r}")
        vocab[id_] = token.encode() if token in specials else from_characters(token, str(path))
    return vocab


def _read_merge_lines(path: Path) -> list[Merge]:
    merges = []
    for number, line in enumerate(_read_lines(path), 1):
        if line.startswith("#version") or not line:
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise ValueError(f"{path}, line {number}: a merge is two tokens and one space, got {line!r}")
        left, right = (from_characters(part, f"{path}, line {number}") for part in parts)
        merges.append((left, right))
    return merges


def _read_lines(path: Path) -> list[str]:
    try:
        # Not splitlines: some of the 256 characters would count as line ends there.
        return path.read_bytes().decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte offset {error.start}") from None


# -- Hugging Face tokenizers ---------------------------------------------------------------------------------

# Oniguruma, which reads these, takes `{1,3}+` for a repetition of the repetition and `$` for a line's end.
_PORTABLE = {
    name: source.replace("{1,3}+", "{1,3}").replace(r"\s++$", r"\s++(?![\s\S])")
    for name, source in PATTERNS.items()
}


def load_hf(path: FilePath) -> Tokenizer:
    """Reads a `tokenizer.json` of the kind byte-level BPE (GPT-2, Llama 3, Qwen and others).

    Added tokens become special tokens. Raises ValueError that names what is unsupported: another model type,
    a normalizer, another pre-tokenizer, dropout, added tokens that swallow the space beside them.
    """
    path = Path(path)
    document = read_json(path)
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise ValueError(f"{path} is not a BPE tokenizer.json: its model has no merges or another type")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "fuse_unk"):
        if model.get(key):
            raise ValueError(f"{path}: model.{key} is {model[key]!r}; byte-level BPE has none")
    if document.get("normalizer"):
        raise ValueError(
            f"{path}: has the normalizer {document['normalizer'].get('type')!r}; none is supported"
        )
    specials: dict[str, int] = {}
    for token in document.get("added_tokens") or ():
        if flags := [flag for flag in ("single_word", "lstrip", "rstrip") if token.get(flag)]:
            raise ValueError(
                f"{path}: added token {token['content']!r} has {flags[0]}, which is not supported"
            )
        specials[token["content"]] = token["id"]
    vocab = _read_vocab(path, model["vocab"], set(specials))
    merges = [_read_merge(path, number, entry) for number, entry in enumerate(model["merges"])]
    tokenizer = Tokenizer(vocab, merges, specials, pattern=_hf_pattern(path, document.get("pre_tokenizer")))
    if model.get("ignore_merges"):
        _check_every_token_is_reached(path, tokenizer)
    return tokenizer


def save_hf(tokenizer: Tokenizer, path: FilePath) -> None:
    """Writes a `tokenizer.json` that `tokenizers.Tokenizer.from_file` reads."""
    pattern = tokenizer.pattern
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": pattern == "gpt2",
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": _PORTABLE.get(pattern, pattern)},
        "behavior": "Isolated",
        "invert": False,
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": name, **flags, "special": True}
            for name, id_ in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level
        if pattern == "gpt2"
        else {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": _vocab_entries(tokenizer),
            "merges": [[to_characters(left), to_characters(right)] for left, right in tokenizer.merges],
        },
    }
    write_text(Path(path), json.dumps(document, ensure_ascii=False))


def _read_merge(path: Path, number: int, entry: Any) -> Merge:
    parts = entry.split(" ") if isinstance(entry, str) else entry
    if not isinstance(parts, list) or len(parts) != 2:
        raise ValueError(f"{path}: merge {number} must be two tokens, got {entry!r}")
    left, right = (from_characters(part, f"{path}, merge {number}") for part in parts)
    return left, right


def _hf_pattern(path: Path, pre_tokenizer: Any) -> str:
    steps = pre_tokenizer or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") for step in steps]
    if kinds in (["ByteLevel"], ["Split", "ByteLevel"]) and not steps[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
            return "gpt2"
        split = steps[0]
        source = split.get("pattern", {}).get("Regex") if len(kinds) == 2 else None
        if source and split.get("behavior") == "Isolated" and not split.get("invert"):
            return next((name for name, portable in _PORTABLE.items() if source == portable), source)
    raise ValueError(f"{path}: the pre-tokenizer {json.dumps(pre_tokenizer)[:200]} is not byte-level BPE's")


def _check_every_token_is_reached(path: Path, tokenizer: Tokenizer) -> None:
    special = set(tokenizer.special_tokens.values())
    for id_, token in tokenizer.vocab.items():
        if id_ not in special and merge_ids(
            tokenizer.byte_ids(token), tokenizer.pair_ranks, tokenizer.merged_ids
        ) != [id_]:
            raise ValueError(f"{path}: ignore_merges is set, and no merges lead to the token {token!r}")


# -- tiktoken ------------------------------------------------------------------------------------------------


def load_tiktoken(
    path: FilePath, special_tokens: Mapping[str, int] | Iterable[str] = (), *, pattern: str
) -> Tokenizer:
    """Reads a tiktoken rank file, which holds neither the pattern nor the special tokens.

    Raises ValueError that names the line that is not `base64 rank`, or the token that no merge leads to.
    """
    path = Path(path)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read_lines(path), 1):
        if not line:
            continue
        try:
            token, rank = line.split(" ")
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}, line {number}: expected `base64 rank`, got {line!r:.80}") from None
    return from_ranks(ranks, special_tokens, pattern=pattern)


def from_ranks(
    ranks: Mapping[bytes, int], special_tokens: Mapping[str, int] | Iterable[str] = (), *, pattern: str
) -> Tokenizer:
    """The tokenizer of tiktoken's `mergeable_ranks`: token -> rank, which is also its id."""
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"the ranks lack the single byte 0x{missing[0]:02x} (truncated?)")
    byte_ids = [ranks[bytes([byte])] for byte in range(256)]
    tokens = {rank: token for token, rank in ranks.items()}
    merges: list[Merge] = []
    made: list[int] = []
    known: dict[Pair, int] = {}
    for token, id_ in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = merge_ids([byte_ids[byte] for byte in token], known, made)
        if len(parts) != 2:
            raise ValueError(
                f"token {token!r} (rank {id_}) is not two tokens of lower rank: {len(parts)} remain"
            )
        known[parts[0], parts[1]] = len(made)
        made.append(id_)
        merges.append((tokens[parts[0]], tokens[parts[1]]))
    return Tokenizer(tokens, merges, special_tokens, pattern=pattern)


def to_ranks(tokenizer: Tokenizer) -> dict[bytes, int]:
    """tiktoken's `mergeable_ranks`: for `tiktoken.Encoding(pat_str=PATTERNS[...], mergeable_ranks=...)`.

    Raises ValueError if the ids do not follow the order of the merges, which is all that tiktoken knows.
    """
    ids = list(tokenizer.merged_ids)
    if ids != sorted(ids) or len(set(ids)) != len(ids):
        raise ValueError(
            "the ids do not follow the order of the merges, so tiktoken would merge in another order"
        )
    special = set(tokenizer.special_tokens.values())
    return {token: id_ for id_, token in tokenizer.vocab.items() if id_ not in special}


def save_tiktoken(tokenizer: Tokenizer, path: FilePath) -> None:
    """Writes a tiktoken rank file; keep the pattern and the special tokens yourself. Raises as `to_ranks`."""
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in to_ranks(tokenizer).items()]
    write_text(Path(path), "".join(lines))
