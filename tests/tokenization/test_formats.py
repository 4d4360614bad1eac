"""Files: each comes back the same, is read by the library it belongs to, and is refused when damaged."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tiktoken.load
import tokenizers

from lmlib.tokenization import PATTERNS, Tokenizer, formats
from lmlib.tokenization.trainer import from_merges

Small = Callable[[str], Tokenizer]
NAMES = ("gpt2", "cl100k", "o200k")


@pytest.mark.parametrize("name", NAMES)
def test_own_file(name: str, tmp_path: Path, small: Small) -> None:
    path = tmp_path / "tokenizer.json"
    small(name).save(path)
    assert Tokenizer.load(path) == small(name)
    custom = from_merges(small(name).merges, ["<|x|>"], r"\w+|\W")
    custom.save(path)
    assert Tokenizer.load(path) == custom
    assert pickle.loads(pickle.dumps(custom)) == custom
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]


def test_own_file_damaged(tmp_path: Path, small: Small) -> None:
    path = tmp_path / "tokenizer.json"
    small("gpt2").save(path)
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is truncated or not JSON: .* column"):
        Tokenizer.load(path)
    path.write_text(whole.replace('"gpt2"', '"cl100k"', 1), encoding="utf-8")
    with pytest.raises(ValueError, match="does not match its own sha256"):
        Tokenizer.load(path)
    path.write_text(whole.replace('"version":1', '"version":2', 1), encoding="utf-8")
    with pytest.raises(ValueError, match="has version 2"):
        Tokenizer.load(path)
    document = json.loads(whole)
    del document["merges"]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match="lacks 'merges'"):
        Tokenizer.load(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not a tokenizer file of this library"):
        Tokenizer.load(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        Tokenizer.load(tmp_path / "missing.json")


def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    small("gpt2").save(path)

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small("cl100k").save(path)
    assert Tokenizer.load(path) == small("gpt2")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]


def test_gpt2_files(tmp_path: Path, small: Small, sample: str) -> None:
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    tokenizer = small("gpt2")
    formats.save_gpt2(tokenizer, vocab, merges)
    assert formats.load_gpt2(vocab, merges, tokenizer.special_tokens) == tokenizer
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert theirs.encode(sample).ids == tokenizer.encode_ordinary(sample)


def test_gpt2_files_damaged(tmp_path: Path, small: Small) -> None:
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    tokenizer = small("gpt2")
    formats.save_gpt2(tokenizer, vocab, merges)
    whole = vocab.read_text(encoding="utf-8")
    vocab.write_text(whole[:1000], encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json is truncated or not JSON"):
        formats.load_gpt2(vocab, merges)
    entries = json.loads(whole)
    few = {token: id_ for token, id_ in entries.items() if id_ < 200}
    vocab.write_text(json.dumps(few), encoding="utf-8")
    with pytest.raises(ValueError, match="lacks 56 of the 256 single bytes, first 0xc8"):
        formats.load_gpt2(vocab, merges)
    fewer = {token: id_ for token, id_ in entries.items() if id_ < 300}
    vocab.write_text(json.dumps(fewer), encoding="utf-8")
    with pytest.raises(ValueError, match=r"merge \d+, .* the vocabulary lacks"):
        formats.load_gpt2(vocab, merges)
    vocab.write_text(json.dumps({**entries, " x": 9999}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json: token ' x' has the character ' ', which is no byte"):
        formats.load_gpt2(vocab, merges, tokenizer.special_tokens)
    vocab.write_text(whole, encoding="utf-8")
    merges.write_text("#version: 0.2\na b c\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"merges\.txt, line 2: .* 'a b c'"):
        formats.load_gpt2(vocab, merges, tokenizer.special_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_hugging_face_file(name: str, tmp_path: Path, small: Small, sample: str) -> None:
    path = tmp_path / "tokenizer.json"
    formats.save_hf(small(name), path)
    assert formats.load_hf(path) == small(name)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.save(str(path))  # as they write it
    assert formats.load_hf(path) == small(name)
    assert theirs.encode(sample).ids == small(name).encode(sample, allowed_special="all")


def test_hugging_face_files_that_are_refused(tmp_path: Path, small: Small) -> None:
    path = tmp_path / "tokenizer.json"
    formats.save_hf(small("gpt2"), path)
    document = json.loads(path.read_text(encoding="utf-8"))

    def refused(message: str, **change: object) -> None:
        path.write_text(json.dumps({**document, **change}), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            formats.load_hf(path)

    refused("has the normalizer 'NFC'", normalizer={"type": "NFC"})
    refused("not a BPE tokenizer.json", model={"type": "Unigram", "vocab": []})
    refused("model.dropout is 0.1", model={**document["model"], "dropout": 0.1})
    refused("the pre-tokenizer .*Whitespace.* is not byte-level", pre_tokenizer={"type": "Whitespace"})
    refused("add_prefix_space", pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True})
    refused("has lstrip", added_tokens=[{**document["added_tokens"][0], "lstrip": True}])
    unreached = {**document["model"], "merges": document["model"]["merges"][:-1], "ignore_merges": True}
    refused("no merges lead to the token", model=unreached)


@pytest.mark.parametrize("name", NAMES)
def test_tiktoken_file(name: str, tmp_path: Path, small: Small, sample: str) -> None:
    path = tmp_path / "ranks.tiktoken"
    formats.save_tiktoken(small(name), path)
    back = formats.load_tiktoken(path, small(name).special_tokens, pattern=name)
    assert back == small(name)  # the merges too, which the file does not hold
    theirs = tiktoken.Encoding(
        "read",
        pat_str=PATTERNS[name],
        mergeable_ranks=tiktoken.load.load_tiktoken_bpe(str(path)),
        special_tokens={},
    )
    assert theirs.encode_ordinary(sample) == small(name).encode_ordinary(sample)


def test_merges_recovered_from_published_ranks(openai: Callable[[str], Tokenizer]) -> None:
    gpt2 = openai("gpt2")
    assert formats.from_ranks(formats.to_ranks(gpt2), gpt2.special_tokens, pattern="gpt2") == gpt2


def test_tiktoken_files_that_are_refused(tmp_path: Path, small: Small) -> None:
    path = tmp_path / "ranks.tiktoken"
    formats.save_tiktoken(small("gpt2"), path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:300], "IQ="]))
    with pytest.raises(ValueError, match=r"ranks\.tiktoken, line 301: expected `base64 rank`, got 'IQ='"):
        formats.load_tiktoken(path, pattern="gpt2")
    path.write_text("".join(lines[:200]))
    with pytest.raises(ValueError, match="lack the single byte 0xc8"):
        formats.load_tiktoken(path, pattern="gpt2")
    path.write_text("".join([*lines[:256], "YWJj 256\n"]))
    with pytest.raises(ValueError, match=r"b'abc' \(rank 256\) is not two tokens"):
        formats.load_tiktoken(path, pattern="gpt2")
    merges = [(b"a", b"b"), (b"c", b"d")]
    vocab = {**{byte: bytes([byte]) for byte in range(256)}, 256: b"cd", 257: b"ab"}
    with pytest.raises(ValueError, match="order of the merges"):
        formats.save_tiktoken(Tokenizer(vocab, merges), path)


def test_ids_out_of_range(small: Small) -> None:
    tokenizer = small("gpt2")
    last = tokenizer.vocab_size - 1
    for bad in (-1, last + 1, 10**12):
        with pytest.raises(ValueError, match=rf"token id {bad} \(position 1\) .* from 0 to {last}"):
            tokenizer.decode([65, bad])
        with pytest.raises(ValueError, match=str(bad)):
            list(tokenizer.decode_iterable([bad]))
    with pytest.raises(TypeError, match="must be an integer, got 'x'"):
        tokenizer.decode(["x"])  # type: ignore[list-item]
    assert tokenizer.decode(np.array([72, 105], dtype=np.uint16)) == tokenizer.decode([72, 105])


BYTES = {byte: bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize(
    ("vocab", "merges", "specials", "message"),
    [
        ({k: v for k, v in BYTES.items() if k != 7}, [], (), "lacks 1 of the 256 single bytes, first 0x07"),
        ({**BYTES, 256: b"ab", 257: b"ab"}, [], (), "b'ab' has two ids, 256 and 257"),
        (BYTES, [(b"a", b"b")], (), "merge 0, b'a' [+] b'b': the vocabulary lacks b'ab'"),
        ({**BYTES, 256: b"ab"}, [(b"a", b"b")] * 2, (), "merge 1, .* repeats merge 0"),
        (BYTES, [], {"<a>": 300, "<b>": 300}, "two special tokens have the same id"),
        (BYTES, [], {"<a>": 65}, "'<a>' has id 65, which the vocabulary gives to b'A'"),
        (BYTES, [], [""], "empty"),
    ],
)
def test_vocabularies_that_are_refused(vocab: object, merges: object, specials: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer(vocab, merges, specials)  # type: ignore[arg-type]


def test_special_tokens_find_or_get_their_ids() -> None:
    tokenizer = Tokenizer({**BYTES, 300: b"<a>"}, [], ["<a>", "<b>"])
    assert tokenizer.special_tokens == {"<a>": 300, "<b>": 301}
    assert tokenizer.vocab_size == tokenizer.n_vocab == len(tokenizer) == 302
    assert tokenizer.token_bytes(300) == b"<a>"
    assert tokenizer.encode("x<b>", allowed_special={"<b>"}) == [120, 301]
    with pytest.raises(ValueError, match="'<c>' is not one of"):
        tokenizer.encode("x", allowed_special={"<c>"})
    with pytest.raises(ValueError, match='must be "all" or a collection'):
        tokenizer.encode("x", allowed_special="<a>")
    with pytest.raises(ValueError, match="'zz' is not in the vocabulary"):
        tokenizer.token_id("zz")


def test_ids_beyond_16_bits_get_32(small: Small) -> None:
    assert Tokenizer(BYTES, [], {"<a>": 65535}).dtype == np.uint16
    assert Tokenizer(BYTES, [], {"<a>": 65536}).dtype == np.uint32
