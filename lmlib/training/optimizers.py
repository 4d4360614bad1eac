"""From a few settings to an optimizer of a language model: which parameter is updated how.

- Weight decay is for matrices: shrinking a norm's gain or a bias has no such effect as regularising a map.
- Muon is for the matrices inside the blocks; embedding, head and vectors are AdamW's.
- A group may carry ``lr_scale``: the trainer sets its rate to the schedule's times that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lmlib.resources.units import ArgumentError, check_choice, check_number
from lmlib.training.adamw import AdamW, check_adam
from lmlib.training.master import MasterWeights, take_unrounded
from lmlib.training.muon import Muon
from lmlib.training.precision import Precision, precision
from lmlib.training.sgd import SGD

KINDS = ("adamw", "muon", "sgd")
IMPLEMENTATIONS = ("auto", "loop", "foreach", "fused", "triton")
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimizer, and its numbers; the learning rate itself comes from the schedule.

    Args:
        kind: ``adamw``, ``muon`` or ``sgd``.
        betas, eps: AdamW's.
        weight_decay: decoupled, for matrices.
        momentum: Muon's or SGD's; default 0.95 for Muon, 0.9 for SGD.
        implementation: AdamW's: ``loop`` and ``foreach`` are ours, to be read (``lmlib.training.adamw``);
            ``fused`` is PyTorch's single kernel, ``triton`` that of ``kernels``; ``auto`` is ``fused`` on a
            GPU and ``foreach`` elsewhere.
        muon_lr_scale: Muon's rate as a multiple of the schedule's.

    Raises:
        ArgumentError: for an unknown choice or a number out of bounds.
    """

    kind: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    momentum: float | None = None
    implementation: str = "auto"
    muon_lr_scale: float = 1.0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        check_adam(0.0, self.betas, self.eps, self.weight_decay)
        check_number("muon_lr_scale", self.muon_lr_scale, 0, 1e6)
        if self.momentum is not None:
            check_number("momentum", self.momentum, 0, 1)
            if self.kind == "adamw":
                raise ArgumentError("momentum", "is a choice of muon and sgd; AdamW has betas")

    def __call__(self, model: nn.Module, policy: Precision) -> torch.optim.Optimizer:
        """The optimizer of a model; what a ``Trainer`` calls."""
        return self.build(model, policy)

    def build(
        self, model: nn.Module, policy: "Precision | str" = "fp32", groups: Groups | None = None
    ) -> torch.optim.Optimizer:
        """The optimizer, with fp32 master weights where the policy asks for them.

        Args:
            groups: parameter groups of your own; default ``parameter_groups``.
        """
        if groups is None:
            groups = parameter_groups(
                model,
                weight_decay=self.weight_decay,
                muon=self.kind == "muon",
                muon_lr_scale=self.muon_lr_scale,
            )
        own = self.kind == "adamw" and self.implementation == "triton"  # keeps master weights itself
        wrapped = precision(policy).master and not own
        return MasterWeights(groups, self._make) if wrapped else self._make(groups)

    def _make(self, groups: Groups) -> torch.optim.Optimizer:
        adam: dict[str, Any] = {"betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        if self.kind == "muon":
            momentum = 0.95 if self.momentum is None else self.momentum
            return Muon(groups, momentum=momentum, **adam)
        if self.kind == "sgd":
            momentum = 0.9 if self.momentum is None else self.momentum
            return SGD(groups, momentum=momentum, weight_decay=self.weight_decay)
        chosen = self.implementation
        if chosen == "auto":
            chosen = "fused" if groups[0]["params"][0].is_cuda else "foreach"
        if chosen == "fused":
            return torch.optim.AdamW(groups, lr=1e-3, fused=True, **adam)
        if chosen == "triton":
            import kernels

            return _with_masters(kernels.FusedAdamW(groups, lr=1e-3, **adam))
        return AdamW(groups, implementation=chosen, **adam)


def _with_masters(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Start the master weights of an optimizer that keeps them itself from values that were not rounded."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if (master := take_unrounded(parameter)) is not None:
                optimizer.state[parameter]["master"] = master
    return optimizer


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.1,
    muon: bool = False,
    muon_lr_scale: float = 1.0,
    is_hidden: Callable[[str, nn.Parameter], bool] | None = None,
) -> Groups:
    """A model's trained parameters in groups: matrices with decay, vectors without; Muon's on their own.

    Args:
        is_hidden: which matrices are Muon's, by name; default ``hidden_matrix``.

    Raises:
        ArgumentError: for a model that has nothing to train.
    """
    choose = is_hidden or hidden_matrix
    kinds: dict[str, list[nn.Parameter]] = {"muon": [], "matrix": [], "vector": []}
    for name, parameter in model.named_parameters():  # a tied parameter comes once
        if parameter.requires_grad:
            hidden = muon and choose(name, parameter)
            kinds["muon" if hidden else "matrix" if parameter.ndim >= 2 else "vector"].append(parameter)
    options: dict[str, dict[str, Any]] = {
        "muon": {"weight_decay": weight_decay, "lr_scale": muon_lr_scale},
        "matrix": {"weight_decay": weight_decay},
        "vector": {"weight_decay": 0.0},
    }
    groups: Groups = [
        {"params": kinds[kind], **options[kind], **({"muon": kind == "muon"} if muon else {})}
        for kind in kinds
        if kinds[kind]
    ]
    if not groups:
        raise ArgumentError("model", "has no parameter that requires a gradient")
    return groups


def hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix (or a stack of them) inside a block: a map between hidden spaces."""
    return parameter.ndim in (2, 3) and "blocks." in name and "router" not in name
