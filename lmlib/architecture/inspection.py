"""What a model attends to: the weights that its attention computes and does not keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmlib.architecture.attention import Attend, visible
from lmlib.architecture.model import TransformerLM
from lmlib.architecture.norms import wide


@torch.no_grad()
def attention_weights(model: TransformerLM, tokens: Int[Tensor, "B T"]) -> list[Float[Tensor, "B H T T"]]:
    """The weights of every layer's attention in one forward pass, first layer first.

    Fused attention never holds them, so they are computed again from the queries and keys that it was given:
    H·T² numbers a layer and sequence, for short texts only.

    Raises:
        ValueError: as of the model's ``forward``.
    """
    found: list[Tensor] = []

    def keep(attend: Attend, arguments: tuple[Tensor, ...], result: Any) -> None:
        found.append(_weights(attend, *arguments[:2]))

    removers: list[Callable[[], None]] = [
        module.register_forward_hook(keep).remove for module in model.modules() if isinstance(module, Attend)
    ]
    try:
        model.hidden(tokens)
    finally:
        for remove in removers:
            remove()
    return found


def _weights(attend: Attend, q: Float[Tensor, "B H T K"], k: Float[Tensor, "B G T K"]) -> Tensor:
    groups = wide(q).unflatten(1, (k.shape[1], -1))
    scores = groups @ wide(k)[:, :, None].transpose(-2, -1) * attend.scale
    if attend.softcap is not None:
        scores = attend.softcap * torch.tanh(scores / attend.softcap)
    seen = visible(q.shape[2], k.shape[2], attend.window, q.device)
    return scores.masked_fill(~seen, float("-inf")).softmax(-1).flatten(1, 2)
