"""Token files: what is read is what the tokenizer said, or an error; never half a file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lmlib.data import Document, micro_world
from lmlib.resources.units import ArgumentError
from lmlib.tokenization import Tokenizer, train_bpe
from lmlib.training.dataset import HEADER, TokenData, open_tokens, tokenizer_hash, write_tokens

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(micro_world(n_documents=30).texts(), vocab_size=400, special_tokens=[END])


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [
        *micro_world(seed=1, n_documents=20).documents(),
        Document(f"says {END} in its text"),
        Document(""),
    ]


def test_holds_the_tokenizers_ids(tmp_path: Path, tokenizer: Tokenizer, documents: list[Document]) -> None:
    made = write_tokens(tmp_path / "a.bin", documents, tokenizer)
    expected: list[int] = []
    for document in documents:
        expected += [*tokenizer.encode(document.text, disallowed_special=()), tokenizer.special_tokens[END]]
    assert made.ids.tolist() == expected
    assert made.ids.dtype == np.uint16
    assert isinstance(made.ids, np.memmap)
    assert (made.n_documents, made.vocab_size) == (22, 400)
    assert made.n_bytes == sum(len(document.text.encode()) for document in documents)
    assert made.tokenizer == tokenizer_hash(tokenizer)
    made.verify()
    again = write_tokens(tmp_path / "b.bin", (document.text for document in documents), tokenizer)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert again.sha256 == made.sha256
    cut = write_tokens(tmp_path / "c.bin", documents, tokenizer, max_tokens=100, separator=None)
    bare = [id_ for document in documents for id_ in tokenizer.encode(document.text, disallowed_special=())]
    assert cut.ids.tolist() == bare[:100]


def test_windows_are_inputs_and_the_same_moved_by_one(tmp_path: Path) -> None:
    data = TokenData.from_array(np.arange(50, dtype=np.uint16))
    tokens, targets = data.windows(np.array([0, 7, 40]), 9)
    assert tokens[1].tolist() == list(range(7, 16))
    assert torch.equal(targets, tokens + 1)
    assert targets[2, -1] == 49
    with pytest.raises(ArgumentError, match="starts"):
        data.windows(np.array([41]), 9)


def test_other_formats(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(9, dtype=np.uint32))
    assert open_tokens(tmp_path / "ids.npy").ids.tolist() == list(range(9))
    (tmp_path / "ids.bin").write_bytes(np.arange(9, dtype="<u2").tobytes())
    assert open_tokens(tmp_path / "ids.bin", dtype="uint16").ids.tolist() == list(range(9))
    with pytest.raises(ValueError, match="neither a token file"):
        open_tokens(tmp_path / "ids.bin")
    np.save(tmp_path / "floats.npy", np.ones(3))
    with pytest.raises(ValueError, match="integers in one axis"):
        open_tokens(tmp_path / "floats.npy")
    with pytest.raises(FileNotFoundError, match="no token file"):
        open_tokens(tmp_path / "missing.bin")


def test_a_failure_leaves_what_was_there(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "ids.bin"
    write_tokens(path, ["first"], tokenizer)
    before = path.read_bytes()

    def broken():  # type: ignore[no-untyped-def]
        yield "second" * 1000
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_tokens(path, broken(), tokenizer)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ids.bin"]


@pytest.mark.parametrize("change", ["short", "long", "flip", "header", "version"])
def test_damage_is_noticed(tmp_path: Path, tokenizer: Tokenizer, change: str) -> None:
    path = tmp_path / "ids.bin"
    write_tokens(path, ["some text", "and more"], tokenizer)
    data = bytearray(path.read_bytes())
    if change == "short":
        del data[-1]
    elif change == "long":
        data += b"\0\0"
    elif change == "flip":
        data[HEADER + 3] ^= 1
    elif change == "header":
        data[5] ^= 128
    else:
        header = {**json.loads(data[:HEADER]), "version": 9}
        data[:HEADER] = json.dumps(header).encode().ljust(HEADER)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged|neither a token file|version 9"):
        open_tokens(path).verify()


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda path, t: write_tokens(path, ["a"], t, separator="<|other|>"), "separator"),
        (lambda path, t: write_tokens(path, "a text", t), "documents"),
        (lambda path, t: write_tokens(path, [3], t), "documents"),
        (lambda path, t: write_tokens(path, [], t), "documents"),
        (lambda path, t: write_tokens(path, ["a"], t, max_tokens=0), "max_tokens"),
        (lambda path, t: TokenData.from_array([1.5]), "ids"),
        (lambda path, t: TokenData.from_array([-1]), "ids"),
        (lambda path, t: TokenData.from_array([5], vocab_size=5), "ids"),
        (lambda path, t: TokenData.from_array([[5]]), "ids"),
    ],
)
def test_bad_input_names_the_argument(tmp_path: Path, tokenizer: Tokenizer, call, field: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArgumentError) as caught:
        call(tmp_path / "ids.bin", tokenizer)
    assert caught.value.field == field
    assert not list(tmp_path.iterdir())
