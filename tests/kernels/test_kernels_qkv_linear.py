"""The linear layer of queries, keys and values: errors against float64, odd widths, layouts, bad input."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import qkv_linear
from kernels._runtime import DTYPES

module = importlib.import_module("kernels.qkv_linear")
SIZES = [10, 6, 3]
Check = Callable[..., None]


def ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    return qkv_linear(x, weight, bias, SIZES)


def torchs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    return F.linear(x, weight, bias).split(SIZES, -1)


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    torch.manual_seed(0)
    drawn = [torch.randn(*shape), torch.randn(sum(SIZES), shape[-1]), torch.randn(sum(SIZES))]
    return [each.to(device, dtype).requires_grad_() for each in drawn]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 13), (2, 3, 16), (150, 9)])
def test_as_exact_as_pytorch(
    assert_as_exact: Check, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    tensors = [each.detach() for each in draw(shape, dtype, device)]
    assert_as_exact(ours, torchs, torchs, tensors)
    assert_as_exact(ours, torchs, torchs, tensors[:2])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_exact_as_pytorch_at_size(assert_as_exact: Check, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4097, 768), torch.randn(2304, 768) * 768**-0.5
    tensors = [each.to(device, dtype) for each in (x, weight, torch.randn(2304))]
    sizes = [768] * 3
    right = lambda x, w, b: F.linear(x, w, b).split(sizes, -1)  # noqa: E731
    assert_as_exact(lambda x, w, b: qkv_linear(x, w, b, sizes), right, right, tensors)


def test_gradients_side_by_side_and_their_sums(device: str) -> None:
    """Wider than a tile, more rows than a program walks over, and each gradient of another layout."""
    rows = module.ROWS * module.STEPS * 2 + 1
    parts = [
        torch.rand(rows, 600, device=device)[:, ::2],
        torch.rand(7, rows, device=device).mT,
        torch.rand(1, 1, device=device).expand(rows, 5),
    ]
    packed, sums = module.launch_pack(*parts)
    assert torch.equal(packed, torch.cat(parts, 1))
    assert torch.allclose(sums, packed.sum(0), rtol=1e-5)
    again = module.launch_pack(*parts)[1]
    assert torch.equal(sums, again)


@pytest.mark.parametrize("wanted", range(3))
def test_what_is_frozen_gets_no_gradient(wanted: int, device: str) -> None:
    tensors = draw((7, 12), device=device)
    for place, each in enumerate(tensors):
        each.requires_grad_(place == wanted)
    q, k, v = ours(*tensors)
    (q.square().sum() + k.sum() - v.square().sum()).backward()
    assert [each.grad is not None for each in tensors] == [place == wanted for place in range(3)]
    q, k, v = torchs(*tensors)
    (right,) = torch.autograd.grad(q.square().sum() + k.sum() - v.square().sum(), tensors[wanted])
    assert torch.allclose(tensors[wanted].grad, right, rtol=1e-4, atol=1e-4)


def test_only_one_output_used(device: str) -> None:
    tensors = draw((2, 5, 12), device=device)
    found, right = (torch.autograd.grad(each(*tensors)[1].square().sum(), tensors) for each in (ours, torchs))
    for a, b in zip(found, right, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_any_layout_and_empty(device: str) -> None:
    _, weight, bias = draw((1, 12), device=device)
    for x in (torch.randn(12, 3, 4, device=device).permute(1, 2, 0), torch.randn(0, 3, 12, device=device)):
        leaves = [x.requires_grad_(), weight, bias]
        results = []
        for each in (ours, torchs):
            outputs = each(*leaves)
            results.append([*outputs, *torch.autograd.grad(outputs, leaves, [2 * o for o in outputs])])
        for a, b in zip(*results, strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_under_autocast_products_take_16_bits(device: str) -> None:
    x, weight, bias = draw((7, 12), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        found, expected = ours(x, weight, bias), torchs(x, weight, bias)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype == torch.bfloat16
        assert torch.equal(a, b)
    assert torch.autograd.grad(found[0].sum(), bias)[0].dtype == torch.float32


def test_torch_compile_keeps_it_whole(device: str) -> None:
    tensors = draw((2, 5, 12), device=device)

    def function(*tensors: Tensor) -> Tensor:
        q, k, v = ours(2 * tensors[0], *tensors[1:])
        return (q[..., :3] * v).sum() + k.square().sum()

    compiled = torch.compile(
        function, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager"
    )
    for a, b in zip(
        *(torch.autograd.grad(each(*tensors), tensors) for each in (compiled, function)), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    parts = [torch.randn(4, width, device=device) for width in SIZES]
    torch.library.opcheck(torch.ops.lmlib.qkv_linear_backward.default, parts)
    given = (torch.randn(5, 8, device=device), torch.randn(24, 8, device=device), None)
    torch.library.opcheck(torch.ops.lmlib.qkv_linear_forward.default, given)


def test_float64_goes_to_pytorch(device: str) -> None:
    assert torch.autograd.gradcheck(ours, draw((3, 5), torch.float64, device))


def test_no_second_derivative_rather_than_a_wrong_one(device: str) -> None:
    tensors = draw((3, 5), device=device)
    (dx,) = torch.autograd.grad(ours(*tensors)[0].square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_bad_input_is_named(device: str) -> None:
    x, weight, bias = (each.detach() for each in draw((3, 5), device=device))
    with pytest.raises(ValueError, match=r"weight must be \(F, 5\) for x of shape \(3, 5\), got \(19, 4\)"):
        ours(x, weight[:, :4], bias)
    with pytest.raises(ValueError, match="x must have at least one axis"):
        ours(x[0, 0], weight, bias)
    with pytest.raises(ValueError, match=r"bias must be \(19,\), got \(18,\)"):
        ours(x, weight, bias[1:])
    for sizes in ([10, 6], [10, 9, 0], [10, 6, 4]):
        with pytest.raises(ValueError, match="sizes must be three that add up to 19"):
            qkv_linear(x, weight, bias, sizes)
    with pytest.raises(ValueError, match=r"bias must have x's dtype, torch.float32, got torch.bfloat16"):
        ours(x, weight, bias.bfloat16())
    for place, name in enumerate(("x", "weight", "bias")):
        tensors = [x, weight, bias]
        tensors[place] = tensors[place].long()
        with pytest.raises(TypeError, match=f"^{name} must hold floating-point numbers, got torch.int64"):
            ours(*tensors)
