"""The feed-forward block: two matrices and an activation, or three with a gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lmlib.architecture.config import GATED, ModelConfig
from lmlib.architecture.switch import kernel


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": _relu2,
}


def gating(config: ModelConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """act(gate) × up for the configuration's activation (Shazeer 2020, arXiv:2002.05202)."""
    if config.mlp == "swiglu" and config.triton:
        return kernel("swiglu")
    return partial(_gated, ACTIVATIONS[GATED.get(config.mlp, config.mlp)])


def _gated(act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    return act(gate) * up


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) × up(x)) with gate and up stored as one matrix."""

    def __init__(self, config: ModelConfig, d_ff: int | None = None, gated: bool | None = None) -> None:
        super().__init__()
        d_ff = config.d_ff if d_ff is None else d_ff
        self.gated = config.gated if gated is None else gated
        if self.gated:
            self.gate_up_proj = nn.Linear(config.d_model, 2 * d_ff, bias=config.bias)
            self.gate = gating(config)
        else:
            self.up_proj = nn.Linear(config.d_model, d_ff, bias=config.bias)
            self.act = ACTIVATIONS[config.mlp]
        self.fused: Callable[..., Tensor] | None = None
        if config.triton and not self.gated and config.mlp in ("gelu", "gelu_tanh"):
            approximate = "tanh" if config.mlp == "gelu_tanh" else "none"
            self.fused = partial(kernel("gelu_mlp"), approximate=approximate)
        self.down_proj = nn.Linear(d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Float[Tensor, "B T D"], biased: bool = True) -> Float[Tensor, "B T D"]:
        """``biased=False`` leaves the bias of the last layer for the caller to add."""
        down = self.down_proj
        if self.fused is not None and type(down) is type(self.up_proj) is nn.Linear:
            bias = down.bias if biased else None
            return self.fused(x, self.up_proj.weight, self.up_proj.bias, down.weight, bias)
        h = self.gate(*self.gate_up_proj(x).chunk(2, -1)) if self.gated else self.act(self.up_proj(x))
        return down(h) if biased else F.linear(h, down.weight)
