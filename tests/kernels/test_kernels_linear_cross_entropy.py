"""The linear layer with cross-entropy, in chunks, against all the logits at once in float64."""

import importlib

import pytest
import torch
from torch import Tensor

from kernels.linear_cross_entropy import chunk_rows, linear_cross_entropy, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("kernels.linear_cross_entropy")
    for name, value in (("CHUNK_BYTES", 1), ("CHUNK_SHARE", 0.0), ("MIN_ROWS", 5)):
        monkeypatch.setattr(module, name, value)


def drawn(rows: int, V: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, D, generator=generator).to(DEVICE, dtype)
    weight = (torch.randn(V, D, generator=generator) / D**0.5).to(DEVICE, dtype)
    targets = torch.randint(0, V, (rows,), generator=generator).to(DEVICE)
    return hidden, weight, targets


def off(found: Tensor, right: Tensor) -> float:
    right = right.detach().double()
    return ((found.detach().double() - right).norm() / right.norm().clamp_min(1e-9)).item()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("rows", "V", "dtype", "z_loss"),
    [(12, 37, torch.float32, 1e-2), (7, 64, torch.bfloat16, 0.0), (11, 5, torch.float16, 0.0)],
)
def test_loss_and_gradients_are_those_of_float64(
    rows: int, V: int, dtype: torch.dtype, z_loss: float, reduction: str
) -> None:
    hidden, weight, targets = drawn(rows, V, 16, dtype)
    targets[2] = -100
    ours = [each.clone().requires_grad_() for each in (hidden, weight)]
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    loss = linear_cross_entropy(*ours, targets, reduction=reduction, z_loss=z_loss)
    right = reference(*exact, targets, reduction=reduction, z_loss=z_loss)
    upstream = torch.full_like(right, 1.7)
    loss.backward(upstream.float())
    right.backward(upstream)
    assert off(loss, right) < LIMIT[dtype]
    for found, expected in zip(ours, exact, strict=True):
        assert found.grad.dtype == dtype
        assert off(found.grad, expected.grad) < LIMIT[dtype]


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_input_gets_no_gradient(frozen: int) -> None:
    hidden, weight, targets = drawn(6, 17, 8, torch.float32)
    pair = [hidden, weight]
    pair[1 - frozen].requires_grad_()
    linear_cross_entropy(*pair, targets).backward()
    assert pair[frozen].grad is None
    exact = [each.detach().double().requires_grad_() for each in pair]
    reference(*exact, targets).backward()
    assert off(pair[1 - frozen].grad, exact[1 - frozen].grad) < 2e-6


@pytest.mark.parametrize("chunk", [1, 5, 12, 1000])
def test_any_chunk_gives_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("kernels.linear_cross_entropy")
    seen = []
    launch = module.launch_forward
    monkeypatch.setattr(module, "launch_forward", lambda *args: (seen.append(len(args[0])), launch(*args)))
    hidden, weight, targets = drawn(12, 37, 16, torch.float32)
    ours = [each.clone().requires_grad_() for each in (hidden, weight)]
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    linear_cross_entropy(*ours, targets, chunk=chunk).backward()
    reference(*exact, targets).backward()
    assert max(seen) == min(chunk, 12)
    assert sum(seen) == 12
    for found, expected in zip(ours, exact, strict=True):
        assert off(found.grad, expected.grad) < LIMIT[torch.float32]


def test_without_gradients_and_with_leading_axes() -> None:
    hidden, weight, targets = drawn(6, 17, 8, torch.float32)
    found = linear_cross_entropy(hidden.view(2, 3, 8), weight, targets.view(2, 3), reduction="none")
    assert found.shape == (2, 3)
    assert off(found.flatten(), reference(hidden.double(), weight.double(), targets, reduction="none")) < 1e-6


def test_no_rows_give_zero_gradients() -> None:
    hidden, weight, targets = drawn(0, 17, 8, torch.float32)
    weight.requires_grad_()
    linear_cross_entropy(hidden, weight, targets, reduction="sum").backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_chunks_are_even_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("kernels.linear_cross_entropy")
    for name, value in (("CHUNK_BYTES", 72_000_000), ("CHUNK_SHARE", 0.7), ("MIN_ROWS", 256)):
        monkeypatch.setattr(module, name, value)
    assert chunk_rows(8192, 50257, 1024, 2) * 50257 * 2 <= 0.7 * 50257 * 1024 * 2
    assert chunk_rows(3, 50257, 1024, 2) == 3
    assert chunk_rows(8192, 1_000_000, 8, 4) == 256


def test_bad_input_is_refused() -> None:
    hidden, weight, targets = drawn(6, 17, 8, torch.float32)
    with pytest.raises(ValueError, match="weight must be"):
        linear_cross_entropy(hidden, weight[:, :4], targets)
    with pytest.raises(ValueError, match="one dtype"):
        linear_cross_entropy(hidden, weight.double(), targets)
    with pytest.raises(ValueError, match="chunk must be at least 1 token, got 0"):
        linear_cross_entropy(hidden, weight, targets, chunk=0)


@pytest.mark.gpu
def test_compile_keeps_it_whole() -> None:
    hidden, weight, targets = drawn(64, 1001, 64, torch.bfloat16)
    ours = [each.clone().requires_grad_() for each in (hidden, weight)]
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    torch.compile(linear_cross_entropy, fullgraph=True)(*ours, targets).backward()
    reference(*exact, targets).backward()
    for found, expected in zip(ours, exact, strict=True):
        assert off(found.grad, expected.grad) < 1e-2
