"""Chapter 2's claims can fail: break the idea, and the chapter's last cell says so."""

from collections.abc import Callable

import nbformat
import pytest

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
    "a block that adds nothing to the stream": (
        "from lmlib.architecture.model import Block\n"
        "Block.forward = lambda self, x, rotation=None, cache=None: self.mlp(self.mlp_norm(x))",
        "architecture/skeleton",
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


def _quick(notebook: nbformat.NotebookNode, claim: str) -> nbformat.NotebookNode:
    """Without the cells that train, and without the claims of other cells, which may be about those."""

    def needed(cell: nbformat.NotebookNode) -> bool:
        claims = "hide-input" in cell.metadata.get("tags", [])
        return f'"{claim}"' in cell.source or not (claims or any(slow in cell.source for slow in SLOW))

    notebook.cells = [cell for cell in notebook.cells if needed(cell)]
    return notebook


@pytest.mark.notebook
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_idea_fails_its_claim(case: str, cells_until: Callable, fails_its_claim: Callable) -> None:
    change, claim = BROKEN[case]
    notebook = _quick(cells_until("02_architecture", claim), claim)
    place = next(i for i, cell in enumerate(notebook.cells) if "torch.manual_seed(seed)" in cell.source)
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(change))
    fails_its_claim(notebook, claim)


@pytest.mark.notebook
def test_what_is_not_broken_passes(cells_until: Callable, run_cells: Callable) -> None:
    last = "architecture/rope-relative"
    run_cells(_quick(cells_until("02_architecture", last), last))
