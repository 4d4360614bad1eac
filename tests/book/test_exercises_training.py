"""Chapter 3's exercises: what the solutions compute, against PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.book.exercises import training


@settings(deadline=None)
@given(st.lists(st.floats(-3000, 3000), min_size=2, max_size=9), st.data())
def test_the_loss_is_torch_s(logits, data):
    target = data.draw(st.integers(0, len(logits) - 1))
    oracle = torch.tensor(logits, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(oracle, torch.tensor(target))
    assert training.cross_entropy(logits, target) == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=1, max_size=6))
def test_updates_are_torch_s(gradients):
    weights = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    optimizer = torch.optim.AdamW([weights], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for gradient in gradients:
        weights.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    ours = training.adamw([0.5, -1.0, 2.0], gradients, 0.01, 0.1, 0.9, 0.95)
    assert ours == pytest.approx(weights.tolist(), rel=1e-6, abs=1e-7)


@settings(deadline=None)
@given(st.lists(st.floats(-9, 9), min_size=4, max_size=4), st.floats(0.1, 20))
def test_clipping_is_torch_s_but_for_its_epsilon(gradient, max_norm):
    tensors = [torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
    for tensor, part in zip(tensors, (gradient[:2], gradient[2:]), strict=True):
        tensor.grad = torch.tensor(part, dtype=torch.float64)
    norm = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    clipped, ours = training.clip([gradient[:2], gradient[2:]], max_norm)
    assert ours == pytest.approx(norm.item(), rel=1e-9, abs=1e-12)
    assert clipped == [pytest.approx(tensor.grad.tolist(), rel=1e-4, abs=1e-6) for tensor in tensors]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any))
def test_pieces_add_up_to_torch_s_gradient(counts):
    weight = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    inputs = torch.linspace(-1, 2, 2 * sum(counts), dtype=torch.float64).view(-1, 2)
    (expected,) = torch.autograd.grad((inputs @ weight).square().mean(), weight)
    pieces = []
    for part in inputs.split(counts):
        (gradient,) = torch.autograd.grad((part @ weight).square().mean(), weight)
        pieces.append((gradient.tolist(), len(part)))
    assert training.whole_gradient(pieces) == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)
