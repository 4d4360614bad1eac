"""Chapter 5's claims can fail: break the idea, and the chapter's last cell says so."""

import copy

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lmlib.book import settings

# What is broken: (text of the chapter, what stands there instead) or code behind the imports; the claim.
BROKEN = {
    "a running maximum whose old sum is not rescaled": (
        "s = s * (m - m_new).exp() + (part - m_new).exp().sum(1, keepdim=True)",
        "s = s + (part - m_new).exp().sum(1, keepdim=True)",
        "kernels/online-softmax",
    ),
    "a backward of attention without delta": (
        "ds = p * (dp - delta[..., t : t + block, :]) * scale",
        "ds = p * dp * scale",
        "kernels/flash-tiles",
    ),
    "tiles that keep the scores for the backward": (
        "ctx.save_for_backward(q, k, v, out, lse)",
        "ctx.save_for_backward(q, k, v, out, lse); ctx.extra = F.relu((q @ k.mT).requires_grad_())",
        "kernels/flash-largest",
    ),
    "a kernel that reads its row twice": (
        "y = x * tl.rsqrt(tl.sum(x * x, 0) / columns + eps) * weight",
        "x = tl.load(X + row * columns + column, inside, other=0.0).to(tl.float32)\n"
        "    y = x * tl.rsqrt(tl.sum(x * x, 0) / columns + eps) * weight",
        "kernels/ladder-bytes",
    ),
    "tiles numbered row after row": (
        "first = pid // (group * side) * group",
        "group = 1\n        first = pid // (group * side) * group",
        "kernels/grouped-order",
    ),
}


def _broken(notebook: nbformat.NotebookNode, old: str, new: str, stop: str) -> nbformat.NotebookNode:
    """The code cells up to the one that makes the claim `stop`, one text changed, and the chapter's check."""
    short = copy.deepcopy(notebook)
    cells = [cell for cell in short.cells if cell.cell_type == "code"]
    end = next(i for i, cell in enumerate(cells) if f'"{stop}"' in cell.source)
    changed = [cell for cell in cells[: end + 1] if old in cell.source]
    assert len(changed) == 1, f"{old!r} stands in {len(changed)} cells"
    changed[0].source = changed[0].source.replace(old, new)
    short.cells = [*cells[: end + 1], cells[-1]]
    return short


@pytest.mark.notebook
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_idea_fails_its_claim(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLIB_BOOK_BUILD", "1")
    old, new, claim = BROKEN[case]
    chapter = nbformat.read(settings.root() / "chapters/05_kernels.ipynb", as_version=4)
    notebook = _broken(chapter, old, new, claim)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(settings.root())}})
    with pytest.raises(CellExecutionError, match=rf"does not hold.*\[{claim}\]"):
        client.execute()
