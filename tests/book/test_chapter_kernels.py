"""Chapter 5's claims can fail: break the idea, and the chapter's last cell says so."""

from collections.abc import Callable

import nbformat
import pytest

from lmlib.book.claims import CLAIM_MIME
from lmlib.book.kernel_record import completed, newest

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
    "a row that is held whole after all": (
        "chunked = partial(launch_forward, launch=RowLaunch(1, warps=2, chunk=512))",
        "chunked = partial(launch_forward, launch=RowLaunch(1, warps=2))",
        "kernels/chunks-bytes",
    ),
    "a call that waits for its work": (
        "lambda: queue.submit(torch.mm, x, x), lambda each: each.result()",
        "lambda: queue.submit(torch.mm, x, x).result(), lambda each: each",
        "kernels/queue",
    ),
    "an operation that the sum on paper does not have": (
        "    wide = x.float()\n",
        "    wide = x.float() + 0\n",
        "kernels/eager-bytes",
    ),
    "a loss whose gradient forgets the target": (
        "gradient.scatter_add_(1, target, -torch.ones_like(lse))",
        "pass",
        "kernels/chunked-loss",
    ),
    "a row filled with minus infinity, where the chapter needs the mistake": (
        "other=0.0).to(tl.float32)\n    power = tl.exp(x - tl.max(x, 0))",
        'other=float("-inf")).to(tl.float32)\n    power = tl.exp(x - tl.max(x, 0))',
        "kernels/odd-sizes",
    ),
    "a kernel of the library that is off by 5 %": (
        "    # float32 where it is declared: fewer roundings hide less",
        "    if declared.name == 'swiglu':\n"
        "        from dataclasses import replace\n\n"
        "        declared = replace(declared, ours=lambda gate, up: 1.05 * kernels.swiglu(gate, up))",
        "kernels/every-kernel",
    ),
    "a record in which a kernel is slower than was reached before": (
        "return found and (1 / found[0], found[1])",
        "return found and (2 / found[0], found[1])",
        "kernels/aim-loss-time",
    ),
    "records of which the later ones are not read": (
        'bench = completed(swept, *(f"kernels-{name}" for name in LATER))',
        "bench = swept",
        "kernels/aims-measured",
    ),
    "a model of memory that forgets attention's kept results": (
        'abs(each["peak_bytes"] / each["predicted"]["bytes"] - 1)',
        'abs(each["peak_bytes"] / each["predicted"]["terms"]["calculator"] - 1)',
        "kernels/large-memory",
    ),
    "a step held against the plain program's time, not its speed": (
        'return made[f"{runner}: speed"].median / plain_speed(made)',
        'return plain_speed(made) / made[f"{runner}: speed"].median',
        "kernels/step-h100",
    ),
    "tiles numbered row after row": (
        "first = pid // (group * side) * group",
        "group = 1\n        first = pid // (group * side) * group",
        "kernels/grouped-order",
    ),
}

# Claims of many names are made in one cell, which another one names in full.
MADE_WITH = {
    "kernels/aim-loss-time": "kernels/aims-measured",
    "kernels/step-h100": "kernels/block-saves",
}

# Cells that take seconds and make one claim each, which only that claim's test needs.
SLOW = {"def compiled_source(": "kernels/compile-fuses", "import Case, verify": "kernels/every-kernel"}


def _quick(notebook: nbformat.NotebookNode, claim: str) -> nbformat.NotebookNode:
    """Without the slow cells of other claims, and without those claims."""
    others = [text for pair in SLOW.items() if pair[1] != claim for text in pair]
    notebook.cells = [cell for cell in notebook.cells if not any(text in cell.source for text in others)]
    return notebook


@pytest.mark.notebook
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_idea_fails_its_claim(case: str, cells_until: Callable, fails_its_claim: Callable) -> None:
    old, new, claim = BROKEN[case]
    notebook = _quick(cells_until("05_kernels", MADE_WITH.get(claim, claim)), claim)
    changed = [cell for cell in notebook.cells if old in cell.source]
    assert len(changed) == 1, f"{old!r} stands in {len(changed)} cells"
    changed[0].source = changed[0].source.replace(old, new)
    fails_its_claim(notebook, claim)


@pytest.mark.notebook
def test_an_aim_names_the_record_that_its_value_stands_in(
    cells_until: Callable, run_notebook: Callable
) -> None:
    """Two records hold the cases: an aim must not name both, nor the wrong one."""
    later = ("products", "rows", "launches", "sums", "wide")
    bench = completed(newest(), *(f"kernels-{name}" for name in later))
    assert bench is not None
    notebook = _quick(cells_until("05_kernels", "kernels/aims-measured"), "kernels/aims-measured")
    run_notebook(notebook)
    made = [output.get("data", {}).get(CLAIM_MIME) for cell in notebook.cells for output in cell.outputs]
    where = {each["name"]: each["where"] for each in made if each}
    for aim, kernel in (
        ("adamw-ahead", "adamw"),
        ("loss-time", "cross_entropy"),
        ("softmax-4096", "softmax"),
    ):
        assert where[f"kernels/aim-{aim}"] == bench.of(kernel)[0].where
    assert where["kernels/aims-measured"] == bench.where
