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


def test_bf16_norms_are_summed_in_fp32() -> None:
    gradients = [torch.full((1000,), 0.1, dtype=torch.bfloat16) for _ in range(300)]
    exact = torch.stack(gradients).double().norm()
    assert abs(global_norm(gradients).double() / exact - 1) < 5e-3
    assert global_norm(gradients).dtype == torch.float32


def test_nothing_to_clip() -> None:
    assert clip_grad_norm([], 1.0) == 0


def test_a_norm_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="max_norm: must be from"):
        clip_grad_norm(_parameters(1.0), 0.0)
