"""SwiGLU: errors against float64 beside PyTorch's, strided halves, extremes, torch.compile."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import swiglu
from kernels._runtime import DTYPES

module = importlib.import_module("kernels.swiglu")
Check = Callable[..., None]


def torchs(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> list[Tensor]:
    torch.manual_seed(0)
    return [(torch.randn(shape, device=device) * 2).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (1, 131), (2, 3, 64), (70, 33)])
def test_as_exact_as_pytorch(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    if shape != (1,):
        assert_as_exact(swiglu, torchs, torchs, draw(shape, dtype, device))
    assert swiglu(*draw(shape, dtype, device)).shape == shape


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(700, 11_008), (3, 500, 1333), (70_000, 16)])
def test_as_exact_as_pytorch_at_size(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    assert_as_exact(swiglu, torchs, torchs, draw(shape, dtype, device))


def test_halves_of_a_projection_are_read_in_place(device: str) -> None:
    both = torch.randn(3, 5, 48, device=device, requires_grad=True)
    gate, up = both.chunk(2, -1)
    weights = torch.randn(3, 5, 24, device=device)
    found = torch.autograd.grad(swiglu(gate, up), both, weights)[0]
    expected = torch.autograd.grad(torchs(*both.chunk(2, -1)), both, weights)[0]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    turned = torch.randn(2, 7, 6, device=device).mT
    assert torch.allclose(swiglu(turned[0], turned[1]), torchs(turned[0], turned[1]), atol=1e-6)


def test_more_rows_than_a_grid_has(device: str) -> None:
    """65,535 rows a launch: only strided rows need one each."""
    rows = 65_540 if device == "cuda" else 3
    gate, up = torch.randn(rows, 8, device=device).chunk(2, -1)
    assert torch.allclose(swiglu(gate, up), torchs(gate, up), atol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_large_values(device: str) -> None:
    gate = torch.tensor([-1e4, -90.0, -88.5, 0.0, 88.5, 1e4], device=device)
    up = torch.ones_like(gate)
    assert torch.allclose(swiglu(gate, up), torchs(gate, up), rtol=1e-5, atol=1e-36)


def test_empty_float64_compiled_and_bad_input(device: str) -> None:
    empty = torch.empty(0, 4, device=device, requires_grad=True)
    assert torch.autograd.grad(swiglu(empty, empty).sum(), empty)[0].shape == (0, 4)
    gate, up = draw((3, 20), torch.float32, device)
    assert torch.equal(swiglu(gate.double(), up.double()), torchs(gate.double(), up.double()))
    leaf = gate.requires_grad_()

    def function(gate: Tensor, up: Tensor) -> Tensor:
        return swiglu(gate * 3, up).square().sum()

    compiled = torch.compile(function, fullgraph=True, backend="inductor" if leaf.is_cuda else "aot_eager")
    found, expected = (torch.autograd.grad(each(leaf, up), leaf)[0] for each in (compiled, function))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    torch.library.opcheck(torch.ops.lmlib.swiglu.default, (leaf, up))
    with pytest.raises(ValueError, match="gate and up must have one shape and dtype"):
        swiglu(gate, up.half())
