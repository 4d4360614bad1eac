"""Products of cuBLASLt on a GPU beside PyTorch's and float64, and where they do not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import cublaslt, gelu_mlp

on_hopper = pytest.mark.gpu
HALVES = (torch.bfloat16, torch.float16)


def draw(dtype: torch.dtype, rows: int = 1000, width: int = 264, inner: int = 520) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, dy = torch.randn(rows, width), torch.randn(rows, width)
    w_up, w_down = torch.randn(inner, width) * width**-0.5, torch.randn(width, inner) * inner**-0.5
    return tuple(each.to("cuda", dtype) for each in (x, w_up, torch.randn(inner) * 0.3, w_down, dy))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def test_nothing_fits_on_the_cpu() -> None:
    assert not cublaslt.fits(torch.zeros(8, 8, dtype=torch.bfloat16), 8, 8)


@on_hopper
@pytest.mark.parametrize(
    ("dtype", "sizes", "fit"),
    [
        (torch.bfloat16, (768, 3072), True),
        (torch.float16, (8,), True),
        (torch.float32, (8,), False),
        (torch.bfloat16, (12, 64), False),
        (torch.bfloat16, (0, 64), False),
    ],
)
def test_what_fits(dtype: torch.dtype, sizes: tuple[int, ...], fit: bool) -> None:
    hopper = torch.cuda.get_device_capability() == (9, 0)
    assert cublaslt.fits(torch.zeros(8, 8, dtype=dtype, device="cuda"), *sizes) == (fit and hopper)


@pytest.fixture
def hopper() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("on other GPUs cuBLASLt takes the GELU in a pass of its own, and is not used")


@on_hopper
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("biased", [True, False])
def test_products_are_as_exact_as_pytorchs(dtype: torch.dtype, biased: bool) -> None:
    x, w_up, bias, w_down, dy = draw(dtype)
    given = bias if biased else None
    wide = [each.double() for each in (x, w_up, bias, w_down, dy)]
    exact_pre = F.linear(wide[0], wide[1], wide[2] if biased else None)
    pre = F.linear(x, w_up, given)
    y, (h, kept) = cublaslt.linear(x, w_up, given), cublaslt.linear_gelu(x, w_up, given)
    least = error(pre, exact_pre)
    assert error(y, exact_pre) <= 1.01 * least
    assert error(kept, exact_pre) <= 1.01 * least
    exact_h = F.gelu(exact_pre, approximate="tanh")
    assert error(h, exact_h) <= 1.05 * error(F.gelu(pre, approximate="tanh"), exact_h)
    point = kept.double().requires_grad_()
    (slope,) = torch.autograd.grad(F.gelu(point, approximate="tanh").sum(), point)
    exact = (wide[4] @ wide[3]) * slope
    theirs = torch.ops.aten.gelu_backward(dy @ w_down, kept, approximate="tanh")
    assert error(cublaslt.gelu_backward(dy, w_down, kept), exact) <= 1.05 * error(theirs, exact)


@on_hopper
@pytest.mark.usefixtures("hopper")
def test_the_choice_of_an_algorithm_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first proposal is what the library would take by itself."""
    x, w_up, bias, *_ = draw(torch.bfloat16, 4096, 768, 3072)
    found = cublaslt.linear_gelu(x, w_up, bias)
    cublaslt._product.cache_clear()
    proposals = cublaslt._Product._proposals
    monkeypatch.setattr(cublaslt._Product, "_proposals", lambda product: proposals(product)[:1])
    first = cublaslt.linear_gelu(x, w_up, bias)
    cublaslt._product.cache_clear()
    assert all(map(torch.equal, found, first))


@on_hopper
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("known", [True, False])
def test_captured_into_a_graph(known: bool) -> None:
    """A first call inside the capture cannot time anything, and need not."""
    x, w_up, bias, *_ = draw(torch.bfloat16)
    expected = cublaslt.linear_gelu(x, w_up, bias)
    if not known:
        cublaslt._product.cache_clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = cublaslt.linear_gelu(x, w_up, bias)
    for each in found:
        each.zero_()
    graph.replay()
    assert all(map(torch.equal, found, expected))


@on_hopper
@pytest.mark.usefixtures("hopper")
def test_many_threads_multiply_at_once() -> None:
    """A product's descriptor holds the pointers of one call: none may see another's."""
    from concurrent.futures import ThreadPoolExecutor

    x, w_up, *_ = draw(torch.bfloat16)
    biases = [torch.full((520,), float(i), device="cuda", dtype=torch.bfloat16) for i in range(8)]

    def run(bias: Tensor) -> bool:
        expected = F.linear(x, w_up, bias)
        found = [cublaslt.linear(x, w_up, bias) for _ in range(50)]
        torch.cuda.synchronize()
        return all(torch.allclose(each, expected, rtol=2**-7, atol=2**-7) for each in found)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, biases))


@on_hopper
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("method", ["linear_gelu", "gelu_backward"])
def test_the_feed_forward_uses_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain: Callable[..., object] = getattr(cublaslt, method)
    monkeypatch.setattr(cublaslt, method, lambda *given: calls.append(1) or plain(*given))
    x, w_up, bias, w_down, _ = draw(torch.bfloat16)
    for approximate in ("none", "tanh"):
        y = gelu_mlp(x.requires_grad_(), w_up, bias, w_down, None, approximate)
        y.sum().backward()
    assert len(calls) == 1
