"""The lesson: small enough to check by hand, and equal to the tools."""

import subprocess
import sys

import pytest
import regex

from lmlib.tokenization import naive
from lmlib.tokenization.patterns import GPT2
from lmlib.tokenization.trainer import from_merges, train_bpe

TEXT = (
    "low low low lower lowest newer wider. Don't we'll 12 345 "
    "\u00e9t\u00e9 \u4f60\u597d \U0001f600\n\n  two  spaces "
)


def test_merges_of_the_classic_example() -> None:
    # Sennrich et al. (2016), figure 1 in spirit: counted by hand. "lo" and "ow" both occur 4 times; "ow" is
    # greater as bytes.
    steps = list(naive.merge_steps("low low lower lowest"))
    assert [step.vocab[step.new_id] for step in steps] == [b"ow", b"low", b" low", b" lowe"]
    assert steps[0].count == 4
    assert steps[0].ties == ((108, 111),)
    assert [step.count for step in steps] == [4, 4, 3, 2]
    assert steps[-1].words == ((257,), (258,), (259, 114), (259, 115, 116))
    assert steps[-1].n_tokens == 7


def test_merge_takes_pairs_from_left_to_right() -> None:
    assert naive.merge([1, 1, 1, 1, 1], (1, 1), 2) == [2, 2, 1]
    assert naive.merge([], (1, 1), 2) == []


def test_pretokenize_is_gpt2_pattern() -> None:
    assert naive.pretokenize(TEXT) == regex.findall(GPT2, TEXT)


def test_naive_and_fast_learn_and_encode_the_same() -> None:
    vocab, merges = naive.train(TEXT * 3, 300, ["<|end|>"])
    tokenizer = train_bpe(TEXT * 3, 300, ["<|end|>"])
    assert tokenizer.vocab == vocab
    assert list(tokenizer.merges) == [(vocab[left], vocab[right]) for left, right in merges]
    assert naive.encode(TEXT, merges) == tokenizer.encode(TEXT)
    assert naive.decode(naive.encode(TEXT, merges), vocab) == TEXT


def test_steps_are_the_training() -> None:
    _, merges = naive.train(TEXT, 270)
    steps = [step.pair for step in naive.merge_steps(TEXT)]
    assert len(steps) == 7  # the eighth pair occurs only once: the steps end there, training goes on
    assert steps == merges[:7]
    assert from_merges([(b"o", b"w")]).encode("ow") == [256]


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="257"):
        naive.train(TEXT, 257, ["<a>", "<b>"])


def test_needs_only_the_standard_library() -> None:
    code = (
        "import sys; from lmlib.tokenization import naive; naive.train('aa aa', 257); "
        "print(sorted({'numpy', 'regex', 'torch', 'tqdm', 'numba'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
