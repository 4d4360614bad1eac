"""Learning rates that carry over from a narrow model to a wide one: maximal update parametrisation, muP.

Yang et al. 2022, arXiv:2203.03466, tables 3 and 8; for Muon by the spectral condition of Yang, Simon and
Bernstein 2023, arXiv:2310.17813. With w = d_model / base_d_model:

| parameter | initial std | AdamW's rate | Muon's rate |
|---|---|---|---|
| embeddings, norms, biases | as it is | 1 | (AdamW's) |
| matrices inside blocks | as it is: 1 / sqrt(fan-in) | 1 / w | 1 / sqrt(w) |
| head | 1 / sqrt(w) of what it is | 1 / w | (AdamW's) |

Adam moves every entry by about the rate, and a product sums ``fan_in`` such moves, all in one direction:
hence 1 / w. Muon's update has the root mean square of Adam's but is orthogonal, so that its norm grows with
sqrt(w) only. Attention scores need 1 / head_dim where heads grow wider; keep ``head_dim`` and add heads, and
there is nothing to change. Depth is not covered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lmlib.resources.units import ArgumentError, check_integer
from lmlib.training.optimizers import Groups, OptimizerSettings, hidden_matrix


def ratio(model: nn.Module, base_d_model: int) -> float:
    """How many times wider than the base a model is.

    Raises:
        ArgumentError: for a tied head, which cannot be both: its rate must fall, the embedding's must not.
    """
    config: Any = model.config
    check_integer("base_d_model", base_d_model, 1, 2**24)
    if config.tied:
        raise ArgumentError("tied", "must be false with muP: embedding and head want different rates")
    return config.d_model / base_d_model


@torch.no_grad()
def initialize(model: nn.Module, base_d_model: int) -> None:
    """Make a freshly drawn head smaller, as the table says; all else is drawn as muP wants it already."""
    factor = ratio(model, base_d_model) ** -0.5
    head: Any = model.head
    head.weight.mul_(factor)


def groups(model: nn.Module, base_d_model: int, settings: OptimizerSettings) -> Groups:
    """Parameter groups whose ``lr_scale`` is that of the table; weight decay keeps its strength per step.

    Decay shrinks a weight by rate times decay, so that decay is multiplied with what the rate was divided by.

    Raises:
        ArgumentError: for SGD, whose rates scale differently, or a tied head.
    """
    if settings.kind == "sgd":
        raise ArgumentError("optimizer.kind", "must be adamw or muon with muP, got 'sgd'")
    width, muon = ratio(model, base_d_model), settings.kind == "muon"
    found: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = hidden_matrix(name, parameter) or (parameter.ndim >= 2 and "blocks." in name)
        orthogonal = muon and hidden_matrix(name, parameter)
        scale = 1.0
        if orthogonal:
            scale = settings.muon_lr_scale * width**-0.5
        elif inside or name.startswith("head."):
            scale = 1 / width
        found.setdefault((orthogonal, scale, parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": scale,
            "weight_decay": settings.weight_decay / scale if decays else 0.0,
            **({"muon": orthogonal} if muon else {}),
        }
        for (orthogonal, scale, decays), parameters in found.items()
    ]
