"""Clipping against torch.nn.utils.clip_grad_norm_."""

import pytest
import torch

from lmlib.training.clip import clip_grad_norm, global_norm


def _parameters(scale: float) -> list[torch.nn.Parameter]:
    made = torch.Generator().manual_seed(0)
    found = []
    for shape in ((3, 4), (5,), ()):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = scale * torch.randn(shape, generator=made)
        found.append(parameter)
    found.append(torch.nn.Parameter(torch.zeros(2)))  # has no gradient
    return found


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("max_norm", [0.5, 1.0])
def test_equals_pytorch(scale: float, max_norm: float) -> None:
    ours, theirs = _parameters(scale), _parameters(scale)
    norm = clip_grad_norm(ours, max_norm)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    for mine, other in zip(ours, theirs, strict=True):
        if other.grad is None:
            assert mine.grad is None
        else:
            torch.testing.assert_close(mine.grad, other.grad)


def test_none_only_measures() -> None:
    parameters = _parameters(10.0)
    before = [each.grad.clone() for each in parameters if each.grad is not None]
    norm = clip_grad_norm(parameters, None)
    torch.testing.assert_close(norm, torch.cat([each.flatten() for each in before]).norm())
    after = [each.grad for each in parameters if each.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _drawn(dtype: torch.dtype, count: int = 8) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return [torch.randn(900 + 31 * place, generator=made).to(dtype) for place in range(count)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_norm_of_16_bits_is_float64s(dtype: torch.dtype) -> None:
    """One norm of each tensor rounded to 16 bits would be 1e-4 to 2e-3 off; so many steps change the loss."""
    gradients = _drawn(dtype)
    exact = torch.cat([each.double() for each in gradients]).norm()
    found = global_norm(gradients)
    assert found.dtype == torch.float32
    assert abs(found.double() / exact - 1) < 1e-6
    if dtype != torch.float32:
        rounded = torch.stack([each.norm() for each in gradients]).double().norm()
        assert abs(rounded / exact - 1) > 1e-5  # the bound above tells the two apart


def test_the_norm_of_16_bits_does_not_overflow() -> None:
    """float16 ends at 65,504, and the norm of these is 320,000."""
    gradients = [torch.full((100,), 2.0**14, dtype=torch.float16) for _ in range(4)]
    assert global_norm(gradients) == 2.0**14 * 20


def test_the_norm_of_mixed_dtypes_is_float64s() -> None:
    for order in (1, -1):
        gradients = [*_drawn(torch.bfloat16, 3), *_drawn(torch.float32, 3)][::order]
        exact = torch.cat([each.double() for each in gradients]).norm()
        assert abs(global_norm(gradients).double() / exact - 1) < 1e-6


def test_the_norm_of_nothing_and_of_empty_tensors() -> None:
    assert global_norm([]) == 0
    empty = torch.empty(0, 3)
    assert global_norm([empty, empty]) == 0
    assert global_norm([empty.bfloat16(), torch.full((4,), 2.0, dtype=torch.bfloat16)]) == 4
    assert global_norm(iter([torch.full((4,), 2.0, dtype=torch.float64)])).dtype == torch.float64


def test_nothing_to_clip() -> None:
    assert clip_grad_norm([], 1.0) == 0


def test_a_norm_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="max_norm: must be from"):
        clip_grad_norm(_parameters(1.0), 0.0)
