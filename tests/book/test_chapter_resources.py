"""Chapter 4's claims can fail: break the idea, and the chapter's last cell says so."""

from collections.abc import Callable

import nbformat
import pytest

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


@pytest.mark.notebook
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_idea_fails_its_claim(case: str, cells_until: Callable, fails_its_claim: Callable) -> None:
    change, claim = BROKEN[case]
    notebook = cells_until("04_resources", claim)
    place = next(
        i for i, cell in enumerate(notebook.cells) if "lmlib.resources.formats import" in cell.source
    )
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(change))
    fails_its_claim(notebook, claim)
