"""Chapter 2's claims can fail: break the idea, and the chapter's last cell says so."""

import copy
import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lmlib.book import settings

# What is broken, put behind the chapter's imports, and the claim that must notice.
BROKEN = {
    "attention without its mask": (
        "attention_module.visible = lambda T, S, window, device: torch.ones(T, S, dtype=torch.bool)",
        "architecture/attention",
    ),
    "attention that does not scale its scores": (
        "_plain = attention_module.eager_attention\n"
        "attention_module.eager_attention = lambda *qkv, scale, **rest: _plain(*qkv, scale=1.0, **rest)",
        "architecture/attention",
    ),
    "a rotation that turns keys the wrong way": (
        "import lmlib.architecture.positions as p\n"
        "_turn, _calls = p.rotate, []\n"
        "def _both_ways(x, cos, sin):\n"
        "    _calls.append(1)\n"
        "    return _turn(x, cos, sin if len(_calls) % 2 else -sin)\n"
        "p.rotate = _both_ways",
        "architecture/rope-relative",
    ),
    "parameters that the ledger does not know": (
        "_build = TransformerLM\n"
        "def TransformerLM(config):\n"
        "    made = _build(config)\n"
        "    made.extra = nn.Parameter(torch.zeros(3))\n"
        "    return made",
        "architecture/parameters",
    ),
}
# Cells that only train, which the broken ideas above do not need.
SLOW = ("trained, curves = {}, {}", "cheat, cheat_losses", "trained[0]")


def _until_checked(notebook: nbformat.NotebookNode, stop: str) -> nbformat.NotebookNode:
    """The quick code cells up to the one that makes the claim `stop`, and the chapter's check."""
    short = copy.deepcopy(notebook)
    cells = [cell for cell in short.cells if cell.cell_type == "code"]
    made = re.compile(rf'claim\(\s*"{stop}"')  # a widget or an exercise may bear the same name
    end = next(i for i, cell in enumerate(cells) if made.search(cell.source))
    kept = [cell for cell in cells[: end + 1] if not any(slow in cell.source for slow in SLOW)]
    short.cells = [*kept, cells[-1]]
    return short


def _run(notebook: nbformat.NotebookNode) -> None:
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(settings.root())}}).execute()


@pytest.mark.notebook
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_idea_fails_its_claim(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    change, claim = BROKEN[case]
    chapter = nbformat.read(settings.root() / "chapters/02_architecture.ipynb", as_version=4)
    notebook = _until_checked(chapter, claim)
    place = next(i for i, cell in enumerate(notebook.cells) if "torch.manual_seed(seed)" in cell.source)
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(change))
    with pytest.raises(CellExecutionError, match=rf"does not hold.*\[{claim}\]"):
        _run(notebook)


@pytest.mark.notebook
def test_what_is_not_broken_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    chapter = nbformat.read(settings.root() / "chapters/02_architecture.ipynb", as_version=4)
    _run(_until_checked(chapter, "architecture/rope-relative"))
