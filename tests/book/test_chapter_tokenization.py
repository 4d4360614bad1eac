"""Chapter 1's claims can fail: break the idea, and the chapter's last cell says so."""

import copy

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lmlib.book import settings

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


def _until_checked(notebook: nbformat.NotebookNode, stop: str) -> nbformat.NotebookNode:
    """The code cells up to the one that makes the claim `stop`, and the chapter's check."""
    short = copy.deepcopy(notebook)
    cells = [cell for cell in short.cells if cell.cell_type == "code"]
    end = next(i for i, cell in enumerate(cells) if f'"{stop}"' in cell.source)
    short.cells = [*cells[: end + 1], cells[-1]]
    return short


@pytest.mark.notebook
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_idea_fails_its_claim(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    change, claim = BROKEN[case]
    chapter = nbformat.read(settings.root() / "chapters/01_tokenization.ipynb", as_version=4)
    notebook = _until_checked(chapter, claim)
    imports = next(
        i for i, cell in enumerate(notebook.cells) if "from lmlib.tokenization import" in cell.source
    )
    notebook.cells.insert(imports + 1, nbformat.v4.new_code_cell(change))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(settings.root())}})
    with pytest.raises(CellExecutionError, match=rf"does not hold.*\[{claim}\]"):
        client.execute()
