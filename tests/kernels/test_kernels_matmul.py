"""The tiled matrix product against float64: dtypes, odd sizes, strides, gradients, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import matmul
from kernels._runtime import HAVE_TRITON
from kernels.matmul import reference

pytestmark = pytest.mark.skipif(not HAVE_TRITON, reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def normal(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(sum(sizes))
    return torch.randn(*sizes, generator=generator, device=DEVICE).to(dtype).requires_grad_()


def assert_close(a: Tensor, b: Tensor, tolerance: float | None = None, **options: Any) -> None:
    """Product and both gradients against float64."""
    c = matmul(a, b, **options)
    dc = torch.randn(c.shape, device=DEVICE).to(c.dtype)
    found = (c, *torch.autograd.grad(c, (a, b), dc))
    exact = [x.detach().double().requires_grad_() for x in (a, b)]
    product = reference(*exact)
    wanted = (product, *torch.autograd.grad(product, exact, dc.double()))
    for one, other in zip(found, wanted, strict=True):
        error = float((one.detach().double() - other.detach()).norm() / other.detach().norm())
        assert error < (tolerance or TOLERANCE[a.dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_dtype(dtype: torch.dtype) -> None:
    assert_close(normal(70, 90, dtype=dtype), normal(90, 65, dtype=dtype))


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 200, 3), (64, 64, 64), (65, 1, 129), (150, 33, 7)])
def test_odd_sizes(sizes: tuple[int, int, int]) -> None:
    M, K, N = sizes
    assert_close(normal(M, K), normal(K, N))


def test_more_row_tiles_than_one_group_holds() -> None:
    assert_close(normal(64 * 9 + 1, 16), normal(16, 70))


def test_transposed_sliced_and_broadcast_inputs() -> None:
    assert_close(normal(40, 30).mT, normal(50, 40).mT)
    assert_close(normal(30, 80)[:, 10:50], normal(1, 20).expand(40, 20))
    assert_close(normal(30, 80)[::3, ::2], normal(40, 20))


@pytest.mark.parametrize("sizes", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty(sizes: tuple[int, int, int]) -> None:
    M, K, N = sizes
    a, b = normal(M, K), normal(K, N)
    c = matmul(a, b)
    assert c.shape == (M, N)
    assert not c.any()
    da, db = torch.autograd.grad(c, (a, b), torch.ones_like(c))
    assert da.shape == a.shape
    assert db.shape == b.shape


def test_float64_goes_to_pytorch() -> None:
    a, b = (x.detach().double().requires_grad_() for x in (normal(3, 4), normal(4, 5)))
    assert torch.autograd.gradcheck(matmul, (a, b))


def test_it_stays_in_a_compiled_graph() -> None:
    a, b = normal(20, 30), normal(30, 10)
    compiled = torch.compile(lambda a, b: matmul(a, b).relu(), fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(a, b).sum(), (a, b))
    eager = torch.autograd.grad(matmul(a, b).relu().sum(), (a, b))
    assert all(torch.equal(x, y) for x, y in zip(ours, eager, strict=True))


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), {}, r"one K, got shapes \(2, 3\) and \(2, 3\)"),
        (torch.zeros(2, 3, 4), torch.zeros(4, 3), {}, "must be"),
        (torch.zeros(2, 3), torch.zeros(3, 2).double(), {}, "share dtype"),
        (torch.zeros(2, 3), torch.zeros(3, 2), {"precision": "tf16"}, "precision must be one of"),
    ],
)
def test_bad_input_is_named(a: Tensor, b: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matmul(a, b, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_large_odd_sizes_on_a_gpu(dtype: torch.dtype) -> None:
    assert_close(normal(1000, 777, dtype=dtype), normal(777, 1234, dtype=dtype))


@pytest.mark.gpu
def test_tf32_is_asked_for_never_silent() -> None:
    a, b = normal(512, 512), normal(512, 512)
    assert_close(a, b, precision="ieee")
    assert_close(a, b, precision="tf32", tolerance=2e-3)
    exact = reference(a.double(), b.double())
    error = float((matmul(a, b, precision="tf32") - exact).norm() / exact.norm())
    assert error > 1e-5
