"""The linear layer with cross-entropy, in chunks and in stripes, against all the logits in float64."""

import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.linear_cross_entropy import Plan, chunk_rows, linear_cross_entropy, reference
from kernels.linear_cross_entropy_stripes import stripe_starts, stripe_width

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
MODULE = importlib.import_module("kernels.linear_cross_entropy")
CHUNKS, STRIPES, ONE = Plan(5), Plan(0, 16), Plan(1000)


@pytest.fixture(params=[CHUNKS, STRIPES, ONE], ids=["chunks", "stripes", "once"])
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Each way in turn, in pieces so small that there are several; stripes need 16 columns or more."""
    monkeypatch.setattr(MODULE, "_plan", lambda *_, **__: request.param)
    return request.param


def drawn(rows: int, V: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, D, generator=generator).to(DEVICE, dtype)
    weight = (torch.randn(V, D, generator=generator) / D**0.5).to(DEVICE, dtype)
    targets = torch.randint(0, V, (rows,), generator=generator).to(DEVICE)
    return hidden, weight, targets


def off(found: Tensor, right: Tensor) -> float:
    right = right.detach().double()
    return ((found.detach().double() - right).norm() / right.norm().clamp_min(1e-9)).item()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("rows", "V", "dtype", "z_loss"),
    [
        (12, 37, torch.float32, 1e-2),
        (7, 64, torch.bfloat16, 0.0),
        (9, 41, torch.bfloat16, 1e-2),
        (11, 19, torch.float16, 0.0),
        (1, 50, torch.float32, 0.0),
    ],
)
@pytest.mark.usefixtures("plan")
def test_loss_and_gradients_are_those_of_float64(
    rows: int, V: int, dtype: torch.dtype, z_loss: float, reduction: str
) -> None:
    hidden, weight, targets = drawn(rows, V, 16, dtype)
    targets[2:3] = -100
    ours = [each.clone().requires_grad_() for each in (hidden, weight)]
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    loss = linear_cross_entropy(*ours, targets, reduction=reduction, z_loss=z_loss)
    right = reference(*exact, targets, reduction=reduction, z_loss=z_loss)
    upstream = torch.full_like(right, 1.7)
    loss.backward(upstream.float())
    right.backward(upstream)
    assert off(loss, right) < LIMIT[dtype]
    for found, expected in zip(ours, exact, strict=True):
        assert found.grad.dtype == dtype
        assert off(found.grad, expected.grad) < LIMIT[dtype]


def with_gradients(loss: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The loss of hidden and weight, and their gradients where 1 comes in."""

    def both(*inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [each.detach().requires_grad_() for each in inputs]
        found = loss(*leaves)
        return found, *torch.autograd.grad(found, leaves)

    return both


@pytest.mark.parametrize("columns", [37, 64])
@pytest.mark.parametrize("dtype", list(LIMIT))
@pytest.mark.usefixtures("plan")
def test_no_further_from_the_truth_than_pytorch(
    dtype: torch.dtype, columns: int, assert_as_exact: Callable[..., None]
) -> None:
    """Where 1 comes in, as in training: another number costs our gradients a rounding, see the next test."""
    hidden, weight, targets = drawn(20, columns, 16, dtype)

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets)

    def torchs(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets)

    def exact(hidden: Tensor, weight: Tensor) -> Tensor:
        return reference(hidden, weight, targets)

    functions = map(with_gradients, (ours, torchs, exact))
    assert_as_exact(*functions, [hidden, weight], gradients=False)


@pytest.mark.parametrize("upstream", [1.6875, 3 / 1024])
@pytest.mark.parametrize("dtype", list(LIMIT))
@pytest.mark.usefixtures("plan")
def test_what_comes_in_costs_one_rounding(dtype: torch.dtype, upstream: float) -> None:
    """Our gradients are rounded before it comes, and once more by it; PyTorch knows it in time."""
    inputs = drawn(20, 37, 16, dtype)

    def gradients(by: float) -> tuple[Tensor, ...]:
        return with_gradients(lambda *pair: by * linear_cross_entropy(*pair, inputs[2]))(*inputs[:2])[1:]

    info = torch.finfo(dtype)
    unit = info.eps / 2 if DEVICE == "cuda" else info.eps  # the interpreter cuts off
    for one, found in zip(gradients(1.0), gradients(upstream), strict=True):
        exact = one.double() * upstream
        # Float16's numbers below the smallest normal one are as far apart as at that one.
        size = exact.abs().clamp_min(info.smallest_normal)
        assert ((found.double() - exact).abs() <= 1.001 * unit * size).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.usefixtures("plan")
def test_the_same_bits_twice(reduction: str) -> None:
    hidden, weight, targets = drawn(9, 45, 16, torch.bfloat16)
    found = []
    for _ in range(2):
        leaves = [each.clone().requires_grad_() for each in (hidden, weight)]
        loss = linear_cross_entropy(*leaves, targets, reduction=reduction)
        found.append((loss, *torch.autograd.grad(loss.sum(), leaves)))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.usefixtures("plan")
def test_all_ignored_give_zeros() -> None:
    hidden, weight, targets = drawn(6, 37, 8, torch.float32)
    leaves = [each.requires_grad_() for each in (hidden, weight)]
    loss = linear_cross_entropy(*leaves, targets.fill_(-100), reduction="sum")
    loss.backward()
    assert loss == 0
    assert not any(each.grad.any() for each in leaves)


def test_a_target_that_does_not_exist_shows_in_stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU nobody looks at targets beforehand, and the overlap of the last two stripes must not count."""
    hidden, weight, _ = drawn(5, 37, 8, torch.float32)
    targets = torch.tensor([-1, 37, 38, 10**9, 36], device=DEVICE)
    monkeypatch.setattr(MODULE, "_plan", lambda *_, **__: STRIPES)
    monkeypatch.setattr(MODULE, "check_targets", lambda *_: None)
    hidden.requires_grad_()
    losses = linear_cross_entropy(hidden, weight, targets, reduction="none")
    losses.sum().backward()
    assert losses.isnan().tolist() == [True] * 4 + [False]
    assert hidden.grad.isnan().any(1).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.usefixtures("plan")
def test_a_frozen_input_gets_no_gradient(frozen: int) -> None:
    hidden, weight, targets = drawn(6, 17, 8, torch.float32)
    pair = [hidden, weight]
    pair[1 - frozen].requires_grad_()
    linear_cross_entropy(*pair, targets).backward()
    assert pair[frozen].grad is None
    exact = [each.detach().double().requires_grad_() for each in pair]
    reference(*exact, targets).backward()
    assert off(pair[1 - frozen].grad, exact[1 - frozen].grad) < 2e-6


@pytest.mark.parametrize("chunk", [1, 5, 12, 1000])
def test_any_chunk_gives_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    launch = MODULE.launch_forward
    monkeypatch.setattr(MODULE, "launch_forward", lambda *args: (seen.append(len(args[0])), launch(*args)))
    hidden, weight, targets = drawn(12, 37, 16, torch.float32)
    ours = [each.clone().requires_grad_() for each in (hidden, weight)]
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    linear_cross_entropy(*ours, targets, chunk=chunk).backward()
    reference(*exact, targets).backward()
    assert max(seen) == min(chunk, 12)
    assert sum(seen) == 12
    for found, expected in zip(ours, exact, strict=True):
        assert off(found.grad, expected.grad) < LIMIT[torch.float32]


@pytest.mark.usefixtures("plan")
def test_without_gradients_and_with_leading_axes() -> None:
    hidden, weight, targets = drawn(6, 17, 8, torch.float32)
    found = linear_cross_entropy(hidden.view(2, 3, 8), weight, targets.view(2, 3), reduction="none")
    assert found.shape == (2, 3)
    assert off(found.flatten(), reference(hidden.double(), weight.double(), targets, reduction="none")) < 1e-6


def test_no_rows_give_zero_gradients() -> None:
    hidden, weight, targets = drawn(0, 17, 8, torch.float32)
    weight.requires_grad_()
    linear_cross_entropy(hidden, weight, targets, reduction="sum").backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_chunks_are_even_and_bounded() -> None:
    assert chunk_rows(8192, 50257, 1024, 2) * 50257 * 2 <= 0.7 * 50257 * 1024 * 2
    assert chunk_rows(3, 50257, 1024, 2) == 3
    assert chunk_rows(8192, 1_000_000, 8, 4) == 256


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(
    ("N", "V", "D"), [(8192, 50257, 1024), (8192, 128256, 2048), (65536, 32000, 512), (20000, 4099, 64)]
)
def test_stripes_are_aligned_and_bounded(N: int, V: int, D: int, itemsize: int) -> None:
    width = stripe_width(N, V, D, itemsize)
    assert width < V
    assert width * itemsize % 128 == 0
    assert (width - 128 // itemsize) * N * itemsize <= max(140_000_000, 1.35 * V * D * itemsize)
    starts = stripe_starts(V, width)
    assert (starts[0], starts[-1]) == (0, V - width)
    assert all(0 < b - a <= width for a, b in pairwise(starts))


def test_narrow_vocabularies() -> None:
    assert stripe_width(100, 256, 64, 2) == 256  # all at once
    assert stripe_width(10**8, 7, 64, 2) == 0
    assert stripe_width(10**8, 50, 64, 2) == 48
    assert stripe_starts(50, 48) == [0, 2]
    assert stripe_starts(64, 16) == [0, 16, 32, 48]


def test_what_is_chosen() -> None:
    def chosen(N: int, V: int, D: int, dtype: torch.dtype = torch.bfloat16, **options: bool) -> str:
        hidden, weight = (torch.empty(rows, D, dtype=dtype, device="meta") for rows in (N, V))
        plan = MODULE._plan(hidden, weight, 0, **{"of_hidden": True, "of_weight": True, **options})
        return "stripes" if plan.width else "once" if plan.rows >= N else "chunks"

    assert chosen(1024, 50257, 1024) == "once"
    assert chosen(65536, 256, 1024) == "once"
    assert chosen(8192, 50257, 1024) == "stripes"
    assert chosen(8192, 128256, 2048) == "stripes"
    assert chosen(8192, 50257, 4096) == "chunks"  # a product takes longer there than the sums
    assert chosen(65536, 128256, 4096) == "chunks"
    assert chosen(8192, 50257, 4096, again=True) == "stripes"  # all logits are computed twice anyhow
    assert chosen(8192, 50257, 1024, of_weight=False) == "chunks"  # no sums at all
    assert chosen(8192, 50257, 1024, torch.float32) == "chunks"  # products are slow


def test_the_choice_gives_the_right_result(monkeypatch: pytest.MonkeyPatch) -> None:
    stripes = importlib.import_module("kernels.linear_cross_entropy_stripes")
    for module, name, value in (
        (MODULE, "CHUNK_BYTES", 1),
        (MODULE, "CHUNK_SHARE", 0.0),
        (MODULE, "MIN_ROWS", 1),
        (stripes, "STRIPE_BYTES", 1000),
        (stripes, "STRIPE_SHARE", 0.0),
        (stripes, "LINE_BYTES", 16),
    ):
        monkeypatch.setattr(module, name, value)
    seen = []
    launch = stripes.Stripes.__init__
    monkeypatch.setattr(stripes.Stripes, "__init__", lambda *args: (seen.append(args[4]), launch(*args))[0])
    hidden, weight, targets = drawn(12, 101, 8, torch.bfloat16)
    ours = [each.clone().requires_grad_() for each in (hidden, weight)]
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    for reduction in ("mean", "none"):
        linear_cross_entropy(*ours, targets, reduction=reduction).sum().backward()
        reference(*exact, targets, reduction=reduction).sum().backward()
    assert seen == [40, 40, 40]
    for found, expected in zip(ours, exact, strict=True):
        assert off(found.grad, expected.grad) < LIMIT[torch.bfloat16]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(("have", "adds"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_are_added_as_each_pytorch_can(
    dtype: torch.dtype, have: bool, adds: bool, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right where there is a GPU or a CPU, and by the operators that the version has."""
    module = importlib.import_module("kernels.linear_cross_entropy_stripes")
    monkeypatch.setattr(module, "HAVE_OUT_DTYPE", have)
    monkeypatch.setattr(module, "ADDS_TO_FLOAT32", adds)
    a, b, _ = drawn(7, 5, 16, dtype)
    total = torch.ones(7, 5, device=DEVICE)
    right = a.double() @ b.double().t() + (not fresh)
    module.add_product(total, a, b.t(), fresh)
    assert off(total, right) < (1e-6 if have or DEVICE == "cpu" else LIMIT[dtype])

    names: set[str] = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.add(str(func))
            # Some versions of PyTorch have it for GPUs and fail on tensors without values.
            wide = str(func) == "aten.addmm.dtype_out"
            return kwargs["out"] if wide else func(*args, **(kwargs or {}))

    empty = [each.to("meta") for each in (total, a, b.t())]
    with Seen():
        module.add_product(*empty, fresh)
    assert ("aten.addmm.dtype_out" in names) == (adds and not fresh)
    assert any("dtype" in name for name in names) == have


def test_bad_input_is_refused() -> None:
    hidden, weight, targets = drawn(6, 17, 8, torch.float32)
    with pytest.raises(ValueError, match="weight must be"):
        linear_cross_entropy(hidden, weight[:, :4], targets)
    with pytest.raises(ValueError, match="one dtype"):
        linear_cross_entropy(hidden, weight.double(), targets)
    with pytest.raises(ValueError, match="chunk must be at least 1 token, got 0"):
        linear_cross_entropy(hidden, weight, targets, chunk=0)


@pytest.mark.gpu
def test_memory_is_the_gradients_the_sums_of_hidden_and_a_stripe() -> None:
    N, V, D = 8192, 50257, 1024
    leaves = [each.requires_grad_() for each in drawn(N, V, D, torch.bfloat16)[:2]]
    targets = torch.randint(0, V, (N,), device=DEVICE)
    for _ in range(2):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        grads = torch.autograd.grad(linear_cross_entropy(*leaves, targets), leaves)
        peak = torch.cuda.max_memory_allocated() - before
        del grads
    expected = 2 * V * D + 4 * N * D + 2 * N * stripe_width(N, V, D, 2)
    assert peak == pytest.approx(expected, rel=0.01)
    assert peak < 0.3e9


@pytest.mark.gpu
@pytest.mark.usefixtures("plan")
def test_compile_keeps_it_whole() -> None:
    hidden, weight, targets = drawn(64, 1001, 64, torch.bfloat16)
    ours = [each.clone().requires_grad_() for each in (hidden, weight)]
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    torch.compile(linear_cross_entropy, fullgraph=True)(*ours, targets).backward()
    reference(*exact, targets).backward()
    for found, expected in zip(ours, exact, strict=True):
        assert off(found.grad, expected.grad) < 1e-2
