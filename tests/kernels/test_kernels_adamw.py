"""FusedAdamW against torch.optim.AdamW: steps, groups, masters in float32, saved states, odd tensors."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from kernels import FusedAdamW
from kernels.adamw import reference

SHAPES = ((7,), (33, 20), (1,), (3, 5, 7), (700,))
HYPER = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def params(device: str, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    torch.manual_seed(0)
    shapes = (*SHAPES, (3000, 1111), (2048 * 5,)) if device == "cuda" else SHAPES
    return [Parameter(torch.randn(shape, device=device).to(dtype)) for shape in shapes]


def set_grads(*lists: list[Parameter]) -> None:
    """The same random gradients for each list, in its own dtype."""
    for row in zip(*lists, strict=True):
        drawn = torch.randn_like(row[-1], dtype=torch.float32).to(row[-1].dtype)
        for p in row:
            p.grad = drawn.to(p.dtype)


def copies(source: list[Parameter], dtype: torch.dtype) -> list[Parameter]:
    return [Parameter(p.detach().to(dtype, copy=True)) for p in source]


def worst(found: list[Parameter], right: list[Parameter]) -> float:
    return max(
        float((a.detach().double() - b.detach()).norm() / b.detach().double().norm())
        for a, b in zip(found, right, strict=True)
    )


def test_equals_torch_to_float32_rounding(device: str) -> None:
    ours = params(device)
    torchs, exact = copies(ours, torch.float32), copies(ours, torch.float64)
    optimizers = [FusedAdamW(ours, **HYPER)]
    optimizers += [torch.optim.AdamW(each, **HYPER) for each in (torchs, exact)]
    for _ in range(12):
        set_grads(exact, torchs, ours)
        for optimizer in optimizers:
            optimizer.step()
    assert worst(ours, exact) <= 1.05 * worst(torchs, exact) + 2.0**-24
    assert worst(ours, torchs) < 1e-6
    for mine, theirs in zip(ours, torchs, strict=True):
        for name in ("exp_avg", "exp_avg_sq", "step"):
            a, b = optimizers[0].state[mine][name], optimizers[1].state[theirs][name]
            assert torch.allclose(a, b.to(a.device), rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_from_a_master(dtype: torch.dtype, device: str) -> None:
    """Steps too small for bfloat16 add up in the master."""
    ours = params(device, dtype)
    exact = copies(ours, torch.float64)
    hyper = {**HYPER, "lr": 1e-4}
    mine, theirs = FusedAdamW(ours, **hyper), torch.optim.AdamW(exact, **hyper)
    for _ in range(12):
        set_grads(exact, ours)
        mine.step()
        theirs.step()
    for p, right in zip(ours, exact, strict=True):
        master = mine.state[p]["master"]
        assert master.dtype == mine.state[p]["exp_avg"].dtype == torch.float32
        assert torch.allclose(master.double(), right, rtol=1e-5, atol=1e-6)
        unit = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]  # the interpreter cuts
        assert torch.allclose(p.float(), master, rtol=unit, atol=1e-6)


@pytest.mark.parametrize("moments", [torch.bfloat16, torch.float32])
def test_without_a_master_each_step_is_rounded_once(moments: torch.dtype, device: str) -> None:
    """Against the same step in float64 from the same 16-bit values; the kernel and plain PyTorch alike."""
    strided = Parameter(torch.randn(20, 30, device=device).bfloat16().t())  # not contiguous: plain PyTorch
    ours = [*params(device, torch.bfloat16), strided]
    optimizer = FusedAdamW(ours, **HYPER, moments=moments, master=False)
    for step in range(1, 5):
        before = [p.detach().double() for p in ours]
        names = ("exp_avg", "exp_avg_sq")
        states = [[optimizer.state[p][n].double() for n in names] if step > 1 else None for p in ours]
        set_grads(ours)
        optimizer.step()
        for p, old, state in zip(ours, before, states, strict=True):
            assert p.grad is not None
            m, v = state or (torch.zeros_like(old), torch.zeros_like(old))
            reference(old, p.grad.double(), m, v, step=step, **HYPER)
            unit = 2.0**-8 if p.is_cuda else 2.0**-7  # the interpreter cuts off where a GPU rounds
            assert torch.allclose(p.double(), old, rtol=1.01 * unit, atol=1e-6)
            for name, right in zip(names, (m, v), strict=True):
                kept = optimizer.state[p][name]
                assert kept.dtype == moments
                assert "master" not in optimizer.state[p]
                close = 1.01 * unit if moments == torch.bfloat16 else 1e-5
                assert torch.allclose(kept.double(), right, rtol=close, atol=1e-7)


def test_states_without_a_master_are_saved_and_go_on_with_the_same_bits(device: str) -> None:
    first = params(device, torch.bfloat16)
    second = copies(first, torch.bfloat16)
    kinds = {"moments": torch.bfloat16, "master": False}
    one, other = FusedAdamW(first, **HYPER, **kinds), FusedAdamW(second, **HYPER, **kinds)
    set_grads(first, second)
    one.step()
    for p, q in zip(first, second, strict=True):
        q.data.copy_(p)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    set_grads(first, second)
    one.step()
    other.step()
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))
    assert {t.dtype for t in other.state[second[0]].values() if t.dim()} == {torch.bfloat16}
    restored = copy.deepcopy(other)
    assert (restored._moments, restored._master) == (torch.bfloat16, False)


def test_groups_schedules_closures_and_missing_gradients(device: str) -> None:
    ours = params(device)
    torchs = copies(ours, torch.float32)

    def make(cls: type, tensors: list[Parameter]) -> torch.optim.Optimizer:
        groups = [{"params": tensors[:2], "weight_decay": 0.0}, {"params": tensors[2:], "lr": 3e-2}]
        return cls(groups, lr=1e-2)

    mine, theirs = make(FusedAdamW, ours), make(torch.optim.AdamW, torchs)
    for step in range(5):
        set_grads(torchs, ours)
        if step in (1, 2):
            ours[step].grad = torchs[step].grad = None  # from now on their numbers of steps differ
        for optimizer in (mine, theirs):
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        assert mine.step(lambda: 3.5) == 3.5
        theirs.step()
        assert worst(ours, torchs) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_factor_scales_the_gradients_of_one_step(dtype: torch.dtype, device: str) -> None:
    """As if each had been multiplied in float32 before; the gradients themselves stay, the factor goes."""
    ours = params(device, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    scaled = copies(ours, wide)
    optimizers = [FusedAdamW(each, **HYPER) for each in (ours, scaled)]
    for factor in (0.25, None, 3e-4):
        set_grads(scaled, ours)
        before = [p.grad.clone() for p in ours]
        if factor is not None:
            optimizers[0].grad_factor = torch.tensor(factor, device=device)
            for p in scaled:
                p.grad = p.grad * factor
        for optimizer in optimizers:
            optimizer.step()
        assert optimizers[0].grad_factor is None
        assert all(torch.equal(p.grad, grad) for p, grad in zip(ours, before, strict=True))
    for mine, theirs in zip(ours, scaled, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            a, b = (o.state[p][name] for o, p in zip(optimizers, (mine, theirs), strict=True))
            # Where a sum of two steps cancels, what is left is the rounding of either, whatever its size.
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-9 * b.abs().max().item())
    assert worst(ours, scaled) < {torch.bfloat16: 2.0**-7}.get(dtype, 1e-6)


def test_states_are_exchanged_with_torch(device: str) -> None:
    ours = params(device)
    torchs = copies(ours, torch.float32)
    mine, theirs = FusedAdamW(ours, **HYPER), torch.optim.AdamW(torchs, **HYPER, fused=device == "cuda")
    for _ in range(2):
        set_grads(torchs, ours)
        mine.step()
        theirs.step()
    first, second = copy.deepcopy(mine.state_dict()), copy.deepcopy(theirs.state_dict())
    mine = FusedAdamW(ours)
    mine.load_state_dict(second)
    theirs = torch.optim.AdamW(torchs)
    theirs.load_state_dict(first)
    assert mine.param_groups[0]["weight_decay"] == theirs.param_groups[0]["weight_decay"] == 0.1
    for _ in range(2):
        set_grads(torchs, ours)
        mine.step()
        theirs.step()
    assert worst(ours, torchs) < 1e-6


def test_saving_and_resuming_gives_the_same_bits(device: str) -> None:
    def run(stop: int) -> list[Tensor]:
        tensors = params(device, torch.bfloat16)
        optimizer = FusedAdamW(tensors, **HYPER)
        torch.manual_seed(1)
        for step in range(4):
            if step == stop:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                optimizer = FusedAdamW(tensors)
                optimizer.load_state_dict(torch.load(file))
            set_grads(tensors)
            optimizer.step()
        return [p.detach() for p in tensors]

    assert all(torch.equal(a, b) for a, b in zip(run(2), run(99), strict=True))


def test_odd_tensors(device: str) -> None:
    """Unaligned, not contiguous, empty, float64, and with gradients of another layout."""
    base = torch.randn(60, device=device)
    drawn = [base[1:50], base[:40].reshape(5, 8).mT, base[:0], base.double(), base[:48].reshape(6, 8)]
    ours = [Parameter(x.clone(memory_format=torch.preserve_format)) for x in drawn]
    ours[0] = Parameter(base[1:50])
    torchs = [Parameter(x.clone(memory_format=torch.preserve_format)) for x in ours]
    mine, theirs = FusedAdamW(ours, **HYPER), torch.optim.AdamW(torchs, **HYPER)
    for _ in range(3):
        set_grads(torchs, ours)
        ours[4].grad = torch.randn(8, 6, device=device).mT
        torchs[4].grad = ours[4].grad.clone()
        mine.step()
        theirs.step()
    ours.pop(2), torchs.pop(2)
    assert worst(ours, torchs) < 1e-6


def test_bad_input_is_named() -> None:
    p = Parameter(torch.ones(3))
    for hyper in ({"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": -1.0}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(hyper))} must be"):
            FusedAdamW([p], **hyper)
    amsgrad = torch.optim.AdamW([p], amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad is not supported"):
        FusedAdamW([p]).load_state_dict(amsgrad.state_dict())
    with pytest.raises(ValueError, match="moments must be one of"):
        FusedAdamW([p], moments=torch.int32)
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="gradients must be dense"):
        FusedAdamW(embedding.parameters()).step()
