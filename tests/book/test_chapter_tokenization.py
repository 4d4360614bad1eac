"""Chapter 1's claims can fail: break the idea, and the chapter's last cell says so."""

from collections.abc import Callable

import nbformat
import pytest

# What is broken, put behind the chapter's imports, and the claim that must notice.
BROKEN = {
    "a stream that forgets what stood before the chunk": (
        "Tokenizer.encode_iterable = lambda self, chunks: (\n"
        "    id for chunk in chunks for id in self.encode_ordinary(chunk))",
        "tokenization/stream-equal",
    ),
    "tokens counted without what stood before them": (
        "import lmlib.data.ngrams\n"
        "steps = lmlib.data.ngrams.NGram._steps\n"
        "lmlib.data.ngrams.NGram._steps = lambda self, document: (\n"
        "    ((None,) * (self.order - 1), unit) for _, unit in steps(self, document))",
        "tokenization/trigram-below-unigram",
    ),
    "ties broken the other way": (
        "naive.best_pair = lambda pairs, vocab: min(\n"
        "    pairs, key=lambda p: (-pairs[p], vocab[p[0]], vocab[p[1]]))",
        "tokenization/same-merges",
    ),
}


@pytest.mark.notebook
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_idea_fails_its_claim(case: str, cells_until: Callable, fails_its_claim: Callable) -> None:
    change, claim = BROKEN[case]
    notebook = cells_until("01_tokenization", claim)
    imports = next(
        i for i, cell in enumerate(notebook.cells) if "from lmlib.tokenization import" in cell.source
    )
    notebook.cells.insert(imports + 1, nbformat.v4.new_code_cell(change))
    fails_its_claim(notebook, claim)
