"""Chapter 4's claims can fail: break the idea, and the chapter's last cell says so."""

import copy

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lmlib.book import settings

# What is broken, put behind the chapter's imports, and the claim that must notice.
BROKEN = {
    "bf16 with the resolution of fp16": (
        'FORMATS["bf16"] = FORMATS["fp16"]',
        "resources/our-bf16",
    ),
    "an optimizer with one moment instead of two": (
        "torch.optim.AdamW = lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)",
        "resources/sixteen",
    ),
    "attention that is not counted": (
        "flops.attended_pairs = lambda *arguments, **options: 0",
        "resources/flops-forward",
    ),
    "a pipeline that does all forward passes first": (
        "import lmlib.resources.layout\n"
        "lmlib.resources.layout.Layout.in_flight = lambda self, stage: self.microbatches",
        "resources/in-flight",
    ),
    "a network that keeps what the ledger does not know": (
        "F.silu = lambda x: x * torch.sigmoid(x)",
        "resources/activations",
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
    chapter = nbformat.read(settings.root() / "chapters/04_resources.ipynb", as_version=4)
    notebook = _until_checked(chapter, claim)
    place = next(
        i for i, cell in enumerate(notebook.cells) if "lmlib.resources.formats import" in cell.source
    )
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(change))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(settings.root())}})
    with pytest.raises(CellExecutionError, match=rf"does not hold.*\[{claim}\]"):
        client.execute()
