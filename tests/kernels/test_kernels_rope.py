"""RoPE: against transformers and float64, layouts, in place only where autograd allows it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import rope
from kernels._runtime import DTYPES

module = importlib.import_module("kernels.rope")
Check = Callable[..., None]


def tables(T: int, half: int, device: str, batch: int = 0) -> tuple[Tensor, Tensor]:
    shape = (batch, T, half) if batch else (T, half)
    angle = torch.randn(shape, device=device) * 3
    return angle.cos(), angle.sin()


def heads(B: int, T: int, H: int, G: int, K: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(B, T, count, K, device=device).to(dtype) for count in (H, G)]


def compare(check: Check, sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    q, k = heads(*sizes, dtype, device)
    for batch in (0, sizes[0]):
        cos, sin = tables(sizes[1], sizes[4] // 2, device, batch)

        def torchs(q: Tensor, k: Tensor, cos: Tensor = cos, sin: Tensor = sin) -> tuple[Tensor, Tensor]:
            return module._eager(q, k, cos, sin)

        def ours(q: Tensor, k: Tensor, cos: Tensor = cos, sin: Tensor = sin) -> tuple[Tensor, Tensor]:
            return rope(q, k, cos, sin)

        check(ours, torchs, torchs, [q, k])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 2, 1, 64), (2, 5, 6, 3, 24)])
def test_as_exact_as_pytorch(
    assert_as_exact: Check, sizes: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    compare(assert_as_exact, sizes, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(2, 700, 32, 8, 128), (3, 65, 12, 12, 96), (1, 4000, 5, 1, 256)])
def test_as_exact_as_pytorch_at_size(
    assert_as_exact: Check, sizes: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    compare(assert_as_exact, sizes, dtype, device)


def test_equals_transformers(device: str) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    q, k = heads(2, 7, 4, 2, 16, torch.float32, device)
    cos, sin = tables(7, 8, device)
    wide = [torch.cat((table, table), -1)[None] for table in (cos, sin)]
    expected = llama.apply_rotary_pos_emb(q, k, *wide, unsqueeze_dim=2)
    for found, right in zip(rope(q, k, cos, sin), expected, strict=True):
        assert torch.allclose(found, right, rtol=1e-5, atol=1e-6)


def test_turning_back(device: str) -> None:
    q, k = heads(1, 3, 2, 2, 8, torch.float32, device)
    cos, sin = tables(3, 4, device)
    there = rope(q, k, cos, sin)
    for found, right in zip(rope(*there, cos, -sin), (q, k), strict=True):
        assert torch.allclose(found, right, atol=1e-5)


def test_layouts_are_read_in_place(device: str) -> None:
    """Heads first, and slices of one projection of q, k and v."""
    cos, sin = tables(5, 4, device)
    q, k = (
        x.transpose(1, 2).contiguous().transpose(1, 2) for x in heads(2, 5, 4, 2, 8, torch.float32, device)
    )
    qkv = torch.randn(2, 5, 8, 8, device=device)
    for pair in ((q, k), (qkv[:, :, :4], qkv[:, :, 4:6])):
        expected = module.reference(*pair, cos, sin)
        for found, right in zip(rope(*pair, cos, sin), expected, strict=True):
            assert found.is_contiguous()
            assert torch.allclose(found, right, atol=1e-6)


def test_in_place_without_gradients(device: str) -> None:
    q, k = heads(2, 5, 3, 1, 8, torch.float32, device)
    cos, sin = tables(5, 4, device)
    expected = rope(q, k, cos, sin)
    found = rope(q, k, cos, sin, inplace=True)
    for new, old, right in zip(found, (q, k), expected, strict=True):
        assert new.data_ptr() == old.data_ptr()
        assert torch.equal(new, right)


def test_in_place_with_gradients(device: str) -> None:
    """Results of operations are overwritten; leaves and views are not, and gradients are right either way."""
    leaves = [x.requires_grad_() for x in heads(2, 5, 3, 1, 8, torch.float32, device)]
    cos, sin = tables(5, 4, device)
    weights = [torch.randn_like(x) for x in leaves]

    def gradients(q: Tensor, k: Tensor, inplace: bool) -> tuple[tuple[Tensor, ...], bool]:
        new = rope(q, k, cos, sin, inplace=inplace)
        same = new[0].data_ptr() == q.data_ptr()
        return torch.autograd.grad(new, leaves, weights), same

    def products() -> list[Tensor]:
        return [x * 2 for x in leaves]

    def views() -> list[Tensor]:
        return [(x * 2).reshape(10, -1).view_as(x) for x in leaves]

    expected, same = gradients(*products(), inplace=False)
    assert not same
    for make, overwritten in ((products, True), (views, False)):
        found, same = gradients(*make(), inplace=True)
        assert same == overwritten
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    before = leaves[0].detach().clone()
    assert not gradients(*leaves, inplace=True)[1]
    assert torch.equal(leaves[0].detach(), before)


def test_autograd_sees_the_overwriting(device: str) -> None:
    """What another operation saved of q cannot silently be the rotated q."""
    q, k = (x.requires_grad_() * 1 for x in heads(1, 3, 2, 1, 8, torch.float32, device))
    square = q.square().sum()
    rope(q, k, *tables(3, 4, device), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


def test_empty_compiled_and_bad_input(device: str) -> None:
    cos, sin = tables(3, 4, device)
    q = torch.randn(0, 3, 2, 8, device=device)
    assert rope(q, q, cos, sin)[0].shape == q.shape
    q, k = (x.requires_grad_() for x in heads(2, 3, 4, 2, 8, torch.float32, device))

    def function(q: Tensor, k: Tensor) -> Tensor:
        new_q, new_k = rope(q * 2, k, cos, sin, inplace=True)
        return new_q.square().sum() + new_k.sin().sum()

    compiled = torch.compile(function, fullgraph=True, backend="inductor" if q.is_cuda else "aot_eager")
    found, expected = (torch.autograd.grad(each(q, k), (q, k)) for each in (compiled, function))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="same B, T and K"):
        rope(q, k[:, :2], cos, sin)
    with pytest.raises(ValueError, match="cos and sin must have one of the shapes"):
        rope(q, k, cos[:2], sin[:2])
