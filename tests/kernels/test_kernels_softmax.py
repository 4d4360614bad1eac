"""Softmax: errors against float64 beside PyTorch's, from 1 to 262,144 columns, extremes, layouts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import softmax
from kernels._runtime import DTYPES

module = importlib.import_module("kernels.softmax")
torchs = partial(torch.softmax, dim=-1)
Check = Callable[..., None]


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str, scale: float = 2.0) -> Tensor:
    torch.manual_seed(0)
    return (torch.randn(shape, device=device) * scale).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 131), (2, 3, 64), (40, 7)])
def test_as_exact_as_pytorch(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    assert_as_exact(softmax, torchs, torchs, [draw(shape, dtype, device)])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(2000, 1000), (900, 4096), (500, 16_384), (70, 32_768), (33, 50_257), (9, 65_537), (5, 262_144)]
)
def test_as_exact_as_pytorch_at_size(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    # Scale 1: with more, few values of a row decide its error, and the comparison is a matter of luck.
    assert_as_exact(softmax, torchs, torchs, [draw(shape, dtype, device, 1.0)])


@pytest.mark.parametrize("columns", [256, 257, 999, 1003])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows_in_parts(dtype: torch.dtype, columns: int, device: str) -> None:
    """The path of wide rows, with small parts: every alignment of a row's start and end."""
    launch = module.Launch(1, 128, 4)
    x, dy = draw((2, 9, columns), dtype, device)
    y = module.launch_forward(x, launch)
    right = torchs(x.double())
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert torch.allclose(y.double(), right, rtol=tolerance, atol=1e-7)
    dx = module.launch_backward(dy, y, launch).double()
    p, g = y.double(), dy.double()
    expected = p * (g - (p * g).sum(-1, keepdim=True))
    assert float((dx - expected).norm() / expected.norm()) < tolerance


def test_wide_strided_rows(device: str) -> None:
    launch = module.Launch(1, 128, 4)
    x = draw((4, 700), torch.float32, device)[:, 3:400]
    assert torch.allclose(module.launch_forward(x, launch), torchs(x), rtol=1e-5, atol=1e-8)


PARTS = [None, module.Launch(1, 64, 2)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("launch", PARTS)
def test_large_values_of_16_bits(launch: module.Launch | None, dtype: torch.dtype, device: str) -> None:
    """log2(e) times the maximum is rounded by more than 1e-4 there: it has to cancel in every share."""
    x = draw((4, 300), dtype, device).double()
    x = (x + torch.tensor([[-30_000.0], [-5000], [5000], [30_000]], device=device)).to(dtype)
    found, right = module.launch_forward(x, launch).double(), torchs(x.double())
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert torch.allclose(found, right, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("value", [-60_000.0, -1000.0, 50_000.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_maximum_that_stays_rescales_nothing(dtype: torch.dtype, value: float, device: str) -> None:
    """Equal values in 64 parts: what each part would add to the rounding shows 64 times."""
    x = torch.full((1, 4096), value, dtype=dtype, device=device)
    found = module.launch_forward(x, module.Launch(1, 64, 2)).double()
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert found.mul(2**12).sub(1).abs().max() < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("launch", PARTS)
def test_the_least_and_the_largest_numbers(
    launch: module.Launch | None, dtype: torch.dtype, device: str
) -> None:
    """A mask of the least finite number, over whole parts, over all, and the largest number."""
    least, largest = torch.finfo(dtype).min, torch.finfo(dtype).max
    x = draw((4, 300), dtype, device)
    x[0, 70:] = least
    x[1, :290] = least
    x[2] = least
    x[3, 17] = largest
    found, right = module.launch_forward(x[:, 1:], launch), torchs(x[:, 1:].double())
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert torch.allclose(found.double(), right, rtol=tolerance, atol=1e-6)
    found, right = module.launch_forward(x, launch), torchs(x.double())
    assert torch.allclose(found.double(), right, rtol=tolerance, atol=1e-6)


def test_the_maximum_before_the_first_border(device: str) -> None:
    x = torch.zeros(2, 101, device=device)
    x[1, 0] = 1000.0
    assert torch.equal(module.launch_forward(x, module.Launch(1, 32, 1)), torchs(x))


@pytest.mark.parametrize(
    ("columns", "forward", "backward"),
    [
        (64, (32, 64, 2), (32, 64, 2)),  # backward not tried
        (1024, (2, 1024, 2), (2, 1024, 2)),
        (4096, (1, 4096, 4), (1, 4096, 4)),
        (8192, (1, 4096, 8), (1, 8192, 8)),
        (10_240, (1, 4096, 8), (1, 8192, 16)),  # backward not tried
        (16_384, (1, 8192, 16), (1, 8192, 32)),
        (24_576, (1, 8192, 16), (1, 8192, 32)),  # backward not tried
        (32_768, (1, 8192, 16), (1, 8192, 32)),
        (50_257, (1, 16_384, 32), (1, 8192, 32)),
        (131_072, (1, 16_384, 32), (1, 16_384, 32)),  # backward not tried
    ],
)
def test_launches_of_many_rows(columns: int, forward: tuple[int, ...], backward: tuple[int, ...]) -> None:
    """Of 16 bits, what was fastest, or within 2.5 % of it, on an H200, of the shapes tried there."""
    device = torch.device("cpu")
    assert module.default_launch(100_000, columns, 2, device) == forward
    assert module.default_launch(100_000, columns, 2, device, backward=True) == backward
    assert module.default_launch(1, columns, 2, device).rows == 1


@pytest.mark.parametrize(
    ("columns", "part", "warps"),
    [(8192, 4096, 16), (16_384, 4096, 16), (32_768, 8192, 32), (50_257, 8192, 32)],
)
def test_launches_of_float32(columns: int, part: int, warps: int) -> None:
    """What was fastest, or within 3.5 % of it, on an H200: by bytes, as of 16 bits."""
    assert module.default_launch(100_000, columns, 4, torch.device("cpu")) == (1, part, warps)


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40),
    st.floats(-100, 100, width=32),
)
@settings(max_examples=25, deadline=None)
def test_sums_to_one_and_ignores_a_shift(values: list[float], shift: float) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.tensor([values], device=device)
    y = softmax(x)
    assert torch.allclose(y.sum(-1), torch.ones(1, device=device), atol=1e-5)
    small = x.clamp(-50, 50)
    assert torch.allclose(softmax(small + shift), softmax(small), rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("launch", [None, "wide"])
def test_infinities(launch: str | None, device: str) -> None:
    """A mask of -inf, also over whole leading parts; a row of nothing else is NaN, as in PyTorch."""
    x = torch.randn(3, 300, device=device)
    x[0, :200] = float("-inf")
    x[1, 17] = float("-inf")
    x[2] = float("-inf")
    found = module.launch_forward(x, module.Launch(1, 128, 4) if launch else None)
    assert torch.allclose(found, torchs(x), rtol=1e-5, atol=1e-8, equal_nan=True)


def test_empty_one_column_and_layouts(device: str) -> None:
    for shape in ((0, 4), (4, 0), (2, 0, 3)):
        x = torch.randn(shape, device=device, requires_grad=True)
        softmax(x).sum().backward()
        assert x.grad is not None
        assert x.grad.shape == shape
    assert torch.equal(softmax(torch.randn(5, 1, device=device)), torch.ones(5, 1, device=device))
    turned = torch.randn(6, 5, 4, device=device).permute(2, 0, 1)
    assert torch.allclose(softmax(turned), torchs(turned), atol=1e-6)
    assert softmax(torch.tensor(3.0, device=device).double().reshape(1)).dtype == torch.float64


def test_repeatable_and_compiled(device: str) -> None:
    x = draw((4, 3001 if device == "cuda" else 65), torch.bfloat16, device).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return (softmax(2 * x).float() ** 2).sum()

    first, second = (torch.autograd.grad(function(x), x)[0] for _ in range(2))
    assert torch.equal(first, second)
    compiled = torch.compile(function, fullgraph=True, backend="inductor" if x.is_cuda else "aot_eager")
    assert torch.allclose(torch.autograd.grad(compiled(x), x)[0], first, rtol=2e-2, atol=1e-4)
    torch.library.opcheck(torch.ops.lmlib.softmax.default, (x,))
