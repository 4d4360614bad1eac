"""Products of cuBLASLt on a GPU beside PyTorch's and float64, and where they do not fit."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import cublaslt, gelu_mlp, linear_cross_entropy

HALVES = (torch.bfloat16, torch.float16)


def draw(dtype: torch.dtype, rows: int = 1100, width: int = 264, inner: int = 520) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, dy = torch.randn(rows, width), torch.randn(rows, width)
    w_up, w_down = torch.randn(inner, width) * width**-0.5, torch.randn(width, inner) * inner**-0.5
    return tuple(each.to("cuda", dtype) for each in (x, w_up, torch.randn(inner) * 0.3, w_down, dy))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def test_nothing_fits_on_the_cpu() -> None:
    assert not cublaslt.fits(torch.zeros(8, 8, dtype=torch.bfloat16), 8, 8)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> cublaslt._Product:
    """A product without the library, with three algorithms: the fastest one rounds on the way."""
    last = []

    def launch(_: object, proposal: str, a: Tensor, b: Tensor, d: Tensor) -> None:
        last[:] = [proposal]
        products = b.double()[:, None] * a.double()
        pieces = products.chunk(2, -1) if proposal == "rounds" else [products]
        d.copy_(torch.stack([piece.sum(-1).to(d.dtype) for piece in pieces]).sum(0))

    def milliseconds(run: Callable[[], None]) -> float:
        run()
        return {"first": 3.0, "rounds": 1.0, "same": 2.0}[last[0]]

    monkeypatch.setattr(cublaslt._Product, "__init__", lambda product, sizes: None)
    monkeypatch.setattr(cublaslt._Product, "_proposals", lambda product: ["first", "rounds", "same"])
    monkeypatch.setattr(cublaslt._Product, "_launch", launch)
    monkeypatch.setattr(cublaslt, "_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(cublaslt, "TIMED_ROWS", 24)
    monkeypatch.setattr(cublaslt, "_timed", defaultdict(set))
    sizes = cublaslt._Sizes(16, 24, 32, True, cublaslt.PLAIN, torch.bfloat16, 0, 16)
    product = cublaslt._Product(sizes)
    product.sizes, product.lock, product.chosen = sizes, threading.Lock(), None
    return product


def test_zeros_do_not_choose_an_algorithm(pretended: cublaslt._Product) -> None:
    """All algorithms agree on them; the first call's own result is right all the same."""
    a, b = torch.zeros(16, 32, dtype=torch.bfloat16), torch.randn(24, 32).bfloat16()
    d = torch.full((24, 16), float("nan"), dtype=torch.bfloat16)
    pretended(a, b, d, None, None)
    assert pretended.chosen == "same"
    assert torch.equal(d, torch.zeros_like(d))


@pytest.mark.parametrize(("limit", "value"), [("TIMED_ROWS", 25), ("TIMED_BYTES", 2 * (16 + 24) * 32 - 1)])
def test_few_rows_are_not_worth_the_time_and_large_factors_not_the_memory(
    pretended: cublaslt._Product, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(cublaslt, limit, value)
    monkeypatch.setattr(cublaslt, "_milliseconds", lambda run: pytest.fail("timed"))
    a, b = torch.randn(16, 32).bfloat16(), torch.randn(24, 32).bfloat16()
    d = torch.empty(24, 16, dtype=torch.bfloat16)
    pretended(a, b, d, None, None)
    assert pretended.chosen == "first"
    assert torch.equal(d, F.linear(b.double(), a.double()).bfloat16())


@pytest.mark.parametrize(
    ("epilogue", "copied"),
    [(cublaslt.GELU_DERIVATIVE, (16 + 24) * 32 + 24 * 16), (cublaslt.GELU_AUX, (16 + 24) * 32)],
)
def test_what_the_derivative_reads_is_copied_as_well(
    pretended: cublaslt._Product, monkeypatch: pytest.MonkeyPatch, epilogue: int, copied: int
) -> None:
    """Of the forward the GELU's input is a result, which the choice may write to."""
    pretended.sizes = pretended.sizes._replace(epilogue=epilogue)
    monkeypatch.setattr(cublaslt._Product, "_set", lambda product, what, value: None)
    a, b = torch.randn(16, 32).bfloat16(), torch.randn(24, 32).bfloat16()
    d, pre = torch.empty(24, 16, dtype=torch.bfloat16), torch.zeros(24, 16, dtype=torch.bfloat16)
    for limit, chosen in ((2 * copied - 1, "first"), (2 * copied, "same")):
        monkeypatch.setattr(cublaslt, "TIMED_BYTES", limit)
        pretended.chosen = None
        pretended(a, b, d, None, pre)
        assert pretended.chosen == chosen


def test_numbers_of_rows_without_end_are_not_all_timed(
    pretended: cublaslt._Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones are; another product and a number that is known are timed as before."""
    monkeypatch.setattr(cublaslt, "TIMED_COUNTS", 2)
    sizes = pretended.sizes

    def chosen(rows: int, width: int = 16) -> object:
        pretended.sizes, pretended.chosen = sizes._replace(n=rows, m=width), None
        a, b = torch.randn(width, 32).bfloat16(), torch.randn(rows, 32).bfloat16()
        d = torch.empty(rows, width, dtype=torch.bfloat16)
        pretended(a, b, d, None, None)
        assert torch.equal(d, F.linear(b.double(), a.double()).bfloat16())
        return pretended.chosen

    assert [chosen(rows) for rows in (24, 25, 26, 27, 24)] == ["same", "same", "first", "first", "same"]
    assert chosen(26, width=8) == "same"


def test_nothing_is_chosen_while_a_graph_is_captured(
    pretended: cublaslt._Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = torch.randn(16, 32).bfloat16(), torch.randn(24, 32).bfloat16()
    d = torch.empty(24, 16, dtype=torch.bfloat16)
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        pretended(a, b, d, None, None)
    assert pretended.chosen is None
    assert torch.equal(d, F.linear(b.double(), a.double()).bfloat16())
    pretended(a, b, d, None, None)
    assert pretended.chosen == "same"


def test_the_choice_leaves_the_input_of_the_gelu_alone(
    pretended: cublaslt._Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor points to a random one meanwhile, and to the right one when it counts."""
    pretended.sizes = pretended.sizes._replace(epilogue=cublaslt.GELU_DERIVATIVE)
    pointers: list[int | None] = []
    monkeypatch.setattr(cublaslt._Product, "_set", lambda product, what, value: pointers.append(value.value))
    a, b = torch.randn(16, 32).bfloat16(), torch.randn(24, 32).bfloat16()
    d, pre = torch.empty(24, 16, dtype=torch.bfloat16), torch.randn(24, 16).bfloat16()
    kept = pre.clone()
    pretended(a, b, d, None, pre)
    assert torch.equal(pre, kept)
    assert pointers[0] == pointers[2] == pre.data_ptr() != pointers[1]


@pytest.mark.parametrize("columns", [8, 5])
def test_a_fingerprint_is_of_every_bit(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a view too, in blocks of any size; two equal changes that cancel in a sum are seen."""
    monkeypatch.setattr(cublaslt, "BLOCK", 16)
    torch.manual_seed(0)
    one = torch.randn(7, 8).bfloat16()[:, :columns]
    same = one.clone()
    assert torch.equal(cublaslt._fingerprint(one), cublaslt._fingerprint(same))
    bits = same.view(torch.int16)
    bits[3, 1] += 1
    assert not torch.equal(cublaslt._fingerprint(one), cublaslt._fingerprint(same))
    bits[3, 4] -= 1
    assert not torch.equal(cublaslt._fingerprint(one), cublaslt._fingerprint(same))


def test_views_that_begin_in_the_middle_are_copied() -> None:
    whole = torch.arange(1024, dtype=torch.bfloat16)
    begin = -whole.data_ptr() % cublaslt.ALIGNED_BYTES // 2  # elements to the next whole address
    assert cublaslt._aligned(whole[begin:]).data_ptr() == whole[begin:].data_ptr()
    copied = cublaslt._aligned(whole[begin + 8 :])
    assert copied.data_ptr() != whole[begin + 8 :].data_ptr()
    assert torch.equal(copied, whole[begin + 8 :])


@pytest.fixture
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU on this machine; on one that has: `make gpu`")


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
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
def hopper(gpu: None) -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("on other GPUs cuBLASLt takes the GELU in a pass of its own, and is not used")


@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("offset", [1, 8])
def test_views_that_begin_anywhere(offset: int) -> None:
    x, w_up, bias, w_down, dy = draw(torch.bfloat16)

    def shifted(each: Tensor) -> Tensor:
        return torch.cat([each.new_zeros(offset), each.flatten()])[offset:].view(each.shape)

    expected = cublaslt.linear_gelu(x, w_up, bias)
    found = cublaslt.linear_gelu(*map(shifted, (x, w_up, bias)))
    assert all(map(torch.equal, found, expected))
    dpre = cublaslt.gelu_backward(dy, w_down, expected[1])
    assert torch.equal(cublaslt.gelu_backward(*map(shifted, (dy, w_down, expected[1]))), dpre)


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("timed", [True, False])
def test_rows_of_the_result_may_lie_further_apart(timed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublaslt, "TIMED_ROWS", 1 if timed else 10**9)
    cublaslt._product.cache_clear()
    x, w_up, *_ = draw(torch.bfloat16)
    buffer = torch.full((len(x), 576), 7.0, device="cuda", dtype=torch.bfloat16)
    cublaslt.linear(x, w_up, out=buffer[:, :520])
    cublaslt._product.cache_clear()
    assert torch.equal(buffer[:, :520], cublaslt.linear(x, w_up))
    assert (buffer[:, 520:] == 7).all()


@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
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


@pytest.mark.gpu
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("V", [520, 1001])
def test_the_loss_uses_it(V: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = cublaslt.linear
    monkeypatch.setattr(cublaslt, "linear", lambda *given, **named: calls.append(1) or plain(*given, **named))
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 64, device="cuda").bfloat16().requires_grad_() for n in (100, V))
    targets = torch.randint(0, V, (100,), device="cuda")
    found = linear_cross_entropy(hidden, weight, targets, chunk=40)
    exact = F.cross_entropy(F.linear(hidden.double(), weight.double()), targets)
    assert len(calls) == 3
    for one, other in zip(
        torch.autograd.grad(found, (hidden, weight)),
        torch.autograd.grad(exact, (hidden, weight)),
        strict=True,
    ):
        assert error(one, other.double()) < 1e-2
