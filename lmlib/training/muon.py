"""Muon: momentum whose matrices are made orthogonal before they are applied.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon/; that it scales, with weight decay and with the size of an update
matched to AdamW's so that both share a learning rate, is from Liu et al. 2025, arXiv:2502.16982, section 2.2.

- A hidden matrix moves by ``U V^T`` of its momentum ``U S V^T``: every direction equally far, where plain
  momentum would move along a few large singular directions.
- ``U V^T`` is approached by five Newton-Schulz iterations, products of matrices only, stable in bf16.
- Embeddings, the head, and vectors are not maps between hidden spaces: AdamW updates those.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lmlib.resources.units import ArgumentError, check_choice, check_integer, check_number
from lmlib.training.adamw import adam_step, check_adam

# x -> a x + b x^3 + c x^5 on every singular value. The slope at 0 is as large as it can be made while values
# stay near 1, so that five rounds suffice; they end between about 0.7 and 1.2, which does no harm (Jordan et
# al. 2024, "Tuning the coefficients").
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SCALES = ("adamw", "spectral")


def orthogonalize(
    matrices: Float[Tensor, "*B rows columns"], steps: int = 5, dtype: torch.dtype | None = None
) -> Float[Tensor, "*B rows columns"]:
    """The nearest matrix with singular values of 1, roughly; each of a batch of matrices by itself.

    Args:
        steps: Newton-Schulz iterations.
        dtype: to compute in; default bf16 on a GPU, where it is fast, and the input's own elsewhere.

    Raises:
        ArgumentError: for a vector.
    """
    if matrices.ndim < 2:
        raise ArgumentError("matrices", f"must have two axes or more, got shape {tuple(matrices.shape)}")
    check_integer("steps", steps, 1, 100)
    a, b, c = COEFFICIENTS
    if dtype is None:
        dtype = torch.bfloat16 if matrices.is_cuda else matrices.dtype
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT  # the square products below are then of the short side
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # singular values are at most 1 now
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def update_scale(rows: int, columns: int, scale: str) -> float:
    """What an orthogonal update is multiplied by.

    ``adamw``: ``0.2 sqrt(max(rows, columns))``, so that the root mean square of the update is about 0.2, as
    AdamW's is (Liu et al. 2025, eq. 4); ``spectral``: ``sqrt(max(1, rows / columns))`` (Jordan et al. 2024).
    """
    return 0.2 * math.sqrt(max(rows, columns)) if scale == "adamw" else math.sqrt(max(1.0, rows / columns))


class Muon(torch.optim.Optimizer):
    """Muon for the groups that say ``"muon": True``, AdamW for the others.

    ``lmlib.training.optimizers`` makes the groups of a language model. A parameter of three axes (the experts
    of a layer) is a stack of matrices.

    Args:
        params: groups ``{"params": [...], "muon": bool, ...}``; tensors alone are all Muon's.
        lr, weight_decay: as for AdamW; with ``scale="adamw"`` its values serve.
        momentum: decay of Muon's average. nesterov: look one step ahead.
        scale: see ``update_scale``. steps: Newton-Schulz iterations.
        betas, eps: of the groups that are AdamW's.

    Raises:
        ArgumentError: for a number out of bounds, or a vector in a group that is Muon's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        scale: str = "adamw",
        steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        check_adam(lr, betas, eps, weight_decay)
        check_number("momentum", momentum, 0, 1)
        check_choice("scale", scale, SCALES)
        check_integer("steps", steps, 1, 100)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "scale": scale,
            "steps": steps,
            "betas": tuple(betas),
            "eps": eps,
            "muon": True,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for weight in group["params"]:
                if group["muon"] and weight.ndim not in (2, 3):
                    raise ArgumentError(
                        "params", f"Muon is for matrices and stacks of them, got shape {tuple(weight.shape)}"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what ``closure``, run first, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._muon_step(group)
            else:
                adam_step(self, group, "foreach")
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}  # (weight, direction) by shape
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            momentum = state["momentum"]
            momentum.lerp_(weight.grad, 1 - group["momentum"])
            direction = weight.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
            alike.setdefault((weight.shape, weight.dtype, weight.device), []).append((weight, direction))
        for rows in alike.values():  # matrices of one shape go through the iterations together
            updates = orthogonalize(torch.stack([direction for _, direction in rows]), group["steps"])
            for (weight, _), change in zip(rows, updates, strict=True):
                scale = update_scale(weight.shape[-2], weight.shape[-1], group["scale"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(change, alpha=-group["lr"] * scale)
