"""Stochastic gradient descent with momentum (Polyak 1964; Sutskever et al. 2013, "On the importance of
initialization and momentum in deep learning", ICML), with PyTorch's convention: the rate multiplies the
velocity, not the gradient that enters it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from lmlib.resources.units import ArgumentError, check_number


class SGD(torch.optim.Optimizer):
    """``velocity = momentum * velocity + gradient``; ``weight -= lr * velocity``.

    Args:
        params: tensors or groups.
        lr: learning rate.
        momentum: 0 keeps no velocity at all.
        nesterov: step along ``gradient + momentum * velocity`` instead.
        weight_decay: decoupled, as AdamW's: shrinks each weight by ``lr * weight_decay``.

    Raises:
        ArgumentError: for a number out of bounds, or Nesterov without momentum.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        check_number("lr", lr, 0, 1e6)
        check_number("momentum", momentum, 0, 1)
        check_number("weight_decay", weight_decay, 0, 1e6)
        if nesterov and not momentum:
            raise ArgumentError("nesterov", "needs a momentum above 0")
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what ``closure``, run first, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(self._direction(weight, group), alpha=-group["lr"])
        return loss

    def _direction(self, weight: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        gradient, momentum = weight.grad, group["momentum"]
        assert gradient is not None
        if not momentum:
            return gradient
        state = self.state[weight]
        if not state:
            state["velocity"] = torch.zeros_like(weight)
        velocity = state["velocity"].mul_(momentum).add_(gradient)
        return gradient.add(velocity, alpha=momentum) if group["nesterov"] else velocity
