"""How kernels are compared: their errors against float64, beside those of PyTorch's own kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

# The rule: ‖ours - float64‖ / ‖float64‖ is at most SLACK times the same of PyTorch's kernel at the same
# dtype, plus half a unit in the last place of float32, below which the order of a sum decides. The norm of n
# rounding errors is itself off by a share of some 1/sqrt(2 n): a few values may be luckier there than here.
SLACK, HALF_UNIT, LUCK = 1.05, 2.0**-24, 2.0
# Triton's interpreter is less exact than a GPU: it cuts float32 to bfloat16 instead of rounding to nearest,
# has no fused multiply-add, and adds in another order.
INTERPRETER_SLACK = 2.5
INTERPRETER_UNIT = {torch.float32: 2.0**-21, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def flat(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def results(
    function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Sequence[Tensor] | None
) -> list[Tensor]:
    """Outputs, and gradients of the inputs where ``upstream`` gives those of the outputs."""
    leaves = [each.detach().requires_grad_(upstream is not None) for each in inputs]
    outputs = flat(function(*leaves))
    found = list(outputs)
    if upstream is not None:
        sent = [each.to(output.dtype) for each, output in zip(upstream, outputs, strict=True)]
        found += torch.autograd.grad(outputs, leaves, sent)
    return [each.detach().double() for each in found]


def relative(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / right.norm().clamp_min(1e-30))


@pytest.fixture(scope="session")
def device() -> str:
    """The GPU where there is one; else the CPU, under Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def assert_as_exact() -> Callable[..., None]:
    """``check(ours, torchs, reference, inputs, gradients=True)``: the rule, for outputs and gradients."""

    def check(
        ours: Callable[..., Any],
        torchs: Callable[..., Any],
        reference: Callable[..., Any],
        inputs: Sequence[Tensor],
        gradients: bool = True,
    ) -> None:
        dtype = inputs[0].dtype
        wide = [each.double() for each in inputs]
        upstream = None
        if gradients:
            upstream = [torch.randn_like(each).to(dtype) for each in flat(reference(*wide))]
        right = results(reference, wide, upstream)
        slack, unit = SLACK, HALF_UNIT
        if not inputs[0].is_cuda:
            slack, unit = INTERPRETER_SLACK, INTERPRETER_UNIT[dtype]
        mine, theirs = results(ours, inputs, upstream), results(torchs, inputs, upstream)
        for place, (a, b, c) in enumerate(zip(mine, theirs, right, strict=True)):
            luck = LUCK / max(c.numel(), 1) ** 0.5
            assert relative(a, c) <= (slack + luck) * relative(b, c) + unit, f"result {place}"

    return check
