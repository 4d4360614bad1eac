"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2), to be read and to be run.

- ``update`` is the algorithm for one parameter; ``update_many`` is the same over lists of tensors at once
  (``torch._foreach_*``), which on a GPU saves thousands of small launches a step.
- Decay is decoupled: it shrinks the weight by ``lr * weight_decay``, before the step and apart from the
  moments, so that it is not divided by the gradient's size.
- Real runs on a GPU may take PyTorch's fused kernel or ours: see ``lmlib.training.optimizers``.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lmlib.resources.units import ArgumentError, check_choice, check_number

IMPLEMENTATIONS = ("loop", "foreach")


def update(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step for one tensor, in place; ``step`` counts from 1. All tensors have the weight's shape."""
    beta1, beta2 = betas
    weight.mul_(1 - lr * weight_decay)  # decoupled decay
    mean.lerp_(gradient, 1 - beta1)  # moving average of the gradient
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)  # and of its square
    # Both averages start at 0 and are too small at first: divide by the weight that they have gathered.
    scale = math.sqrt(1 - beta2**step)
    weight.addcdiv_(mean, square.sqrt().div_(scale).add_(eps), value=-lr / (1 - beta1**step))


def update_many(
    weights: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """``update`` for many tensors that have taken the same number of steps."""
    beta1, beta2 = betas
    torch._foreach_mul_(weights, 1 - lr * weight_decay)
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    below = torch._foreach_sqrt(squares)
    torch._foreach_div_(below, math.sqrt(1 - beta2**step))
    torch._foreach_add_(below, eps)
    torch._foreach_addcdiv_(weights, means, below, -lr / (1 - beta1**step))


class AdamW(torch.optim.Optimizer):
    """AdamW with PyTorch's interface, so that schedules, scalers and checkpoints work with it as they are.

    Args:
        params: tensors, or groups ``{"params": [...], "lr": ..., "weight_decay": ...}``.
        lr: learning rate. betas: decay of the two averages. eps: added to the root of the second.
        weight_decay: shrinks each weight by ``lr * weight_decay`` a step.
        implementation: ``loop``, one tensor after another; or ``foreach``, all at once.

    Raises:
        ArgumentError: for a number out of bounds.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        implementation: str = "loop",
    ) -> None:
        check_adam(lr, betas, eps, weight_decay)
        check_choice("implementation", implementation, IMPLEMENTATIONS)
        self.implementation = implementation
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what ``closure``, run first, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            adam_step(self, group, self.implementation)
        return loss


def adam_step(optimizer: torch.optim.Optimizer, group: dict[str, Any], implementation: str) -> None:
    """AdamW's step for one parameter group of any optimizer, which keeps ``mean``, ``square``, ``step``."""
    options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
    together: dict[int, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
    for weight in group["params"]:
        if weight.grad is None:
            continue
        state = optimizer.state[weight]
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(weight)
            state["square"] = torch.zeros_like(weight)
        state["step"] += 1
        tensors = (weight, weight.grad, state["mean"], state["square"])
        if implementation == "loop":
            update(*tensors, state["step"], **options)
        else:
            together.setdefault(state["step"], []).append(tensors)
    for step, rows in together.items():
        weights, gradients, means, squares = (list(column) for column in zip(*rows, strict=True))
        update_many(weights, gradients, means, squares, step, **options)


def check_adam(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    """Raise ArgumentError for a hyperparameter that cannot be meant."""
    check_number("lr", lr, 0, 1e6)
    check_number("eps", eps, 0, 1)
    check_number("weight_decay", weight_decay, 0, 1e6)
    if len(betas) != 2:
        raise ArgumentError("betas", f"must be two numbers, got {betas!r}")
    for beta in betas:
        check_number("betas", beta, 0, 1)
        if beta == 1:
            raise ArgumentError("betas", "must be below 1: with 1 nothing of a gradient would be taken in")
