"""Cross-entropy, whole and in chunks, against PyTorch's and against finite differences."""

import builtins
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.architecture import ModelConfig, TransformerLM
from lmlib.resources.units import ArgumentError
from lmlib.training.loss import LossModule, cross_entropy, linear_cross_entropy


def _rows(
    n: int, v: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, v, generator=made, dtype=torch.float64)
    targets = torch.randint(v, (n,), generator=made)
    targets[::4] = -100
    return logits.to(dtype).requires_grad_(), targets


def _peer(logits: torch.Tensor, targets: torch.Tensor, z_loss: float, reduction: str) -> torch.Tensor:
    loss = F.cross_entropy(logits, targets, reduction="none")
    loss = loss + z_loss * logits.logsumexp(-1).square() * (targets != -100)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / (targets != -100).sum()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_equals_pytorch(reduction: str, z_loss: float) -> None:
    logits, targets = _rows(13, 11)
    ours = cross_entropy(logits, targets, reduction=reduction, z_loss=z_loss)
    theirs = _peer(logits, targets, z_loss, reduction)
    torch.testing.assert_close(ours, theirs)
    (mine,) = torch.autograd.grad(ours.sum(), logits)
    (other,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(mine, other)
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy(x, targets, reduction=reduction, z_loss=z_loss), logits
    )


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e30, -1e30, -1e30], [3e38, 0, 0]], requires_grad=True)
    targets = torch.tensor([1, 2, 0])
    loss = cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(loss, torch.tensor([1e4, math.log(3), 0.0]))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits, targets = _rows(50, 1000, dtype=torch.bfloat16)
    exact = F.cross_entropy(logits.double(), targets)
    torch.testing.assert_close(cross_entropy(logits, targets).double(), exact, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 9),
    chunk=st.integers(1, 12),
    z_loss=st.sampled_from([0.0, 0.1]),
    softcap=st.sampled_from([None, 2.0]),
    reduction=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 100),
)
def test_chunks_equal_the_whole(
    n: int, chunk: int, z_loss: float, softcap: float | None, reduction: str, seed: int
) -> None:
    made = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 5, generator=made, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, generator=made, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(7, (n,), generator=made)
    targets[1::3] = -100
    logits = hidden @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    theirs = _peer(logits, targets, z_loss, reduction)
    ours = linear_cross_entropy(
        hidden, weight, targets, reduction=reduction, z_loss=z_loss, softcap=softcap, chunk=chunk
    )
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(3 * ours, (hidden, weight)),
        torch.autograd.grad(3 * theirs, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_chunked_gradcheck(softcap: float | None) -> None:
    hidden = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 4, -100, 2, 2, 1])
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, z_loss=0.1, softcap=softcap, chunk=4),
        (hidden, weight),
    )


def test_no_gradient_no_work_and_the_whole_logits_never_exist() -> None:
    hidden, weight = torch.randn(64, 8), torch.randn(100, 8, requires_grad=True)
    targets = torch.randint(100, (64,))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*arguments, **(options or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        linear_cross_entropy(hidden, weight, targets, chunk=8).backward()
    assert weight.grad is not None
    assert hidden.grad is None
    assert largest == 8 * 100  # a chunk's logits; the whole would be 6,400


def test_bf16_gradients_of_the_weight_are_summed_in_fp32() -> None:
    """2,000 chunks that each add the same small gradient: summed in bf16 the sum would stick."""
    hidden = torch.ones(2000, 4, dtype=torch.bfloat16)
    weight = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(2000, dtype=torch.int64)
    linear_cross_entropy(hidden, weight, targets, reduction="sum", chunk=1).backward()
    assert weight.grad is not None
    torch.testing.assert_close(
        weight.grad[0], torch.full((4,), -4000 / 3, dtype=torch.bfloat16), rtol=2e-2, atol=0
    )


@pytest.mark.parametrize("form", ["full", "chunked", "kernel"])
def test_forms_of_the_loss_module_agree(form: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=50, context_length=16, d_model=16, n_layers=1, n_heads=2, logit_scale=0.5)
    model = TransformerLM(config)
    tokens, targets = torch.randint(50, (2, 3, 16))
    targets[0, :5] = -100
    loss, auxiliary = LossModule(model, form=form, chunk=7, z_loss=1e-3)(tokens, targets)
    logits = model(tokens).flatten(0, 1)
    expected = _peer(logits, targets.flatten(), 1e-3, "sum")
    torch.testing.assert_close(loss, expected)
    assert auxiliary == 0
    for mine, other in zip(
        torch.autograd.grad(loss, list(model.parameters())),
        torch.autograd.grad(expected, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernels", "form"),
    [("eager", "chunked"), ("sdpa", "chunked"), ("triton", "kernel"), ("triton-sdpa", "kernel")],
)
def test_the_form_that_the_kernels_of_a_model_choose(kernels: str, form: str) -> None:
    config = ModelConfig(50, 16, 16, 1, 2, kernels=kernels)
    assert LossModule(TransformerLM(config)).form == form
    capped = LossModule(TransformerLM(config.replace(logit_softcap=2.0)))
    assert capped.form == "chunked"  # the kernel knows no soft cap


def test_the_kernel_takes_as_many_tokens_at_once_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import kernels

    seen = []

    def counted(*args: torch.Tensor, chunk: int | None = None, **options: Any) -> torch.Tensor:
        seen.append(chunk)
        return original(*args, chunk=chunk, **options)

    original = kernels.linear_cross_entropy
    monkeypatch.setitem(vars(kernels), "linear_cross_entropy", counted)
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(50, 16, 16, 1, 2, kernels="triton-sdpa"))
    tokens, targets = torch.randint(50, (2, 3, 16))
    losses = [LossModule(model, chunk=chunk)(tokens, targets)[0] for chunk in (7, 2**20)]
    assert seen == [7, 2**20]
    torch.testing.assert_close(*losses)
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(losses[0], expected)


def test_forward_does_not_import_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 ends its graph at an import, so that the step is compiled in two."""
    module = LossModule(TransformerLM(ModelConfig(50, 16, 16, 1, 2, kernels="triton-sdpa")))
    tokens = torch.randint(50, (1, 16))
    imported, plain = [], builtins.__import__

    def watched(name: str, *rest: Any, **named: Any) -> Any:
        imported.append(name)
        return plain(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", watched)
    module(tokens, tokens)
    assert "kernels" not in imported


def test_softcap_of_the_model_is_applied() -> None:
    config = ModelConfig(
        vocab_size=50, context_length=16, d_model=16, n_layers=1, n_heads=2, logit_softcap=0.5
    )
    model = TransformerLM(config)
    tokens, targets = torch.randint(50, (2, 3, 16))
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    for form in ("full", "chunked", "kernel"):
        torch.testing.assert_close(LossModule(model, form=form)(tokens, targets)[0], expected)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: cross_entropy(torch.randn(3, 4), torch.tensor([0, 1])), "targets"),
        (lambda: cross_entropy(torch.randn(2, 4), torch.tensor([0.0, 1.0])), "targets"),
        (lambda: cross_entropy(torch.randn(2, 4), torch.tensor([0, 1]), reduction="sums"), "reduction"),
        (lambda: cross_entropy(torch.randn(2, 4), torch.tensor([0, 1]), z_loss=-1), "z_loss"),
        (lambda: linear_cross_entropy(torch.randn(2, 4), torch.randn(5, 3), torch.tensor([0, 1])), "weight"),
        (
            lambda: linear_cross_entropy(torch.randn(2, 4), torch.randn(5, 4), torch.tensor([0, 1]), chunk=0),
            "chunk",
        ),
        (lambda: LossModule(torch.nn.Identity(), form="fused"), "loss"),
    ],
)
def test_bad_input_names_the_argument(call, field: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArgumentError) as caught:
        call()
    assert caught.value.field == field
