"""Which implementation runs: the same results from both, and no compiler for small inputs."""

import subprocess
import sys
from pathlib import Path

import pytest

import lmlib.tokenization
from lmlib.tokenization import Tokenizer, fast, train_bpe

np = pytest.importorskip("numpy")
needs_numba = pytest.mark.skipif(not fast.available(), reason="the fast path needs Numba (pip install numba)")

TEXT = "\n\n".join(path.read_text() for path in sorted(Path(lmlib.tokenization.__file__).parent.glob("*.py")))
SPECIALS = ["<|endoftext|>", "<|pad|>"]


@pytest.fixture(scope="module")
def both():
    corpus = [TEXT, "naïve 漢字 😀<|endoftext|>" * 30]
    return {
        name: train_bpe(corpus, 900, SPECIALS, pattern="cl100k", implementation=name, progress=False)
        for name in ("python", "numba")
    }


@needs_numba
@pytest.mark.parametrize("pattern", ["gpt2", "cl100k"])
def test_both_learn_the_same_vocabulary_from_files(pattern, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT + "<|endoftext|>" + TEXT[::-1])
    one, other = (
        train_bpe(path, 700, SPECIALS, pattern=pattern, implementation=name, n_workers=n, progress=False)
        for name, n in (("python", 1), ("numba", 2))
    )
    assert one.vocab == other.vocab
    assert one.merges == other.merges


@needs_numba
def test_both_encode_alike_in_every_way(both, tmp_path):
    assert both["python"].merges == both["numba"].merges
    text = "<|endoftext|>" + TEXT + "\ud83d\ude00 lone \ud800 <|pad|><|endoftext|>\n\n  "
    path = tmp_path / "text.txt"
    path.write_text(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    found = {}
    for name, trained in both.items():
        ours = Tokenizer(
            trained.vocab, trained.merges, trained.special_tokens, pattern="cl100k", implementation=name
        )
        ours.encode_file(path, tmp_path / f"{name}.npy", allowed_special="all")
        found[name] = [
            ours.encode(text, allowed_special="all"),
            ours.encode(text, allowed_special={"<|pad|>"}, disallowed_special=()),
            ours.encode_ordinary(text),
            list(ours.encode_iterable(list(text), allowed_special="all")),
            ours.encode_to_numpy(text, allowed_special="all").tolist(),
            np.load(tmp_path / f"{name}.npy").tolist(),
            str(ours.encode_to_numpy(text, disallowed_special=()).dtype),
        ]
        with pytest.raises(ValueError, match=r"<\|endoftext\|>.*at character 0"):
            ours.encode_to_numpy(text)
    assert found["numba"] == found["python"]
    assert found["numba"][0] == found["numba"][3] == found["numba"][4] == found["numba"][5]


@needs_numba
def test_an_interrupted_stream_leaves_no_file(both, tmp_path):
    ours = Tokenizer(both["numba"].vocab, both["numba"].merges, pattern="cl100k", implementation="numba")
    path = tmp_path / "bad.txt"
    path.write_bytes(b"words " * 1000 + b"\xff")
    with pytest.raises(ValueError, match="offset 6000"):
        ours.encode_file(path, tmp_path / "ids.npy")
    with pytest.raises(ValueError, match=r"bad.txt.*offset 6000"):
        train_bpe(path, 300, implementation="numba")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.txt"]


def test_what_cannot_be_had_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"implementation must be .* got 'rust'"):
        train_bpe("text", 300, implementation="rust")
    with pytest.raises(ValueError, match=r"'cl100k', 'gpt2'\], got 'o200k'"):
        train_bpe("text", 300, pattern="o200k", implementation="numba")
    bytes_only = {b: bytes([b]) for b in range(256)}
    with pytest.raises(ValueError, match="got 'custom'"):
        Tokenizer(bytes_only, [], pattern=r"\w+|\W", implementation="numba")
    monkeypatch.setattr(fast, "available", lambda: False)
    with pytest.raises(ImportError, match="pip install numba"):
        Tokenizer(bytes_only, [], implementation="numba")
    monkeypatch.setattr(fast, "_REPAYS_LOADING", 1000)
    ours = Tokenizer(bytes_only, [])  # "auto" does without
    assert ours.encode_to_numpy("ab" * 3000).size == 6000
    assert ours._encoder is None


def test_small_inputs_never_load_numba():
    code = (
        "import sys\n"
        "from lmlib.tokenization import train_bpe\n"
        "tokenizer = train_bpe(['low lower lowest'] * 1000, 270)\n"
        "assert tokenizer.decode(tokenizer.encode('lower' * 1000)) == 'lower' * 1000\n"
        "assert tokenizer.encode_to_numpy('lower ' * 1000).size\n"
        "assert 'numba' not in sys.modules and 'lmlib.tokenization.fast.scan' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@needs_numba
def test_large_texts_take_the_fast_path_where_it_is_compiled(both, monkeypatch):
    monkeypatch.setattr(fast, "_REPAYS_LOADING", 1000)
    trained = both["python"]
    ours = Tokenizer(trained.vocab, trained.merges, pattern="cl100k")
    assert ours.encode("small", disallowed_special=()) == trained.encode("small")
    assert ours._encoder is None
    assert ours.encode(TEXT * 3, disallowed_special=()) == trained.encode(TEXT * 3, disallowed_special=())
    assert (ours._encoder is not None) == fast.is_compiled()
