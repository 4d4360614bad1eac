"""Where a token stands: rotary positions with their scalings, and sinusoids.

- Angles are computed in fp32 from explicit positions, so that any offset, gap or stretch can be asked for.
- Rotation pairs coordinate i with i + K/2 (GPT-NeoX's and Llama's layout), not neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmlib.architecture.config import ModelConfig
from lmlib.architecture.norms import wide
from lmlib.architecture.parts import RopeScaling

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (T, K/2) or (B, T, K/2)


def frequencies(dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[Tensor, " half"]:
    """Radians per token of each pair: theta^(-2i/dim) (Su et al. 2021, arXiv:2104.09864, section 3.2.2)."""
    plain = 1 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    return _llama3(plain, scaling) if scaling.kind == "llama3" else _yarn(plain, theta, scaling)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Keep what turns often within the original context, divide what hardly turns, ramp between."""
    wavelength = 2 * math.pi / plain
    turns = (scaling.original_context_length or 1) / wavelength
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return kept * plain + (1 - kept) * plain / scaling.factor


def _yarn(plain: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """The same idea with a ramp that is linear in the pair's index (arXiv:2309.00071, section 3.2)."""
    half = len(plain)

    def index(turns: float) -> float:
        length = scaling.original_context_length or 1
        return half * math.log(length / (turns * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(index(scaling.beta_fast)), 0)
    high = min(math.ceil(index(scaling.beta_slow)), 2 * half - 1)
    ramp = (torch.arange(half, dtype=torch.float32) - low) / max(high - low, 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return kept * plain + (1 - kept) * plain / scaling.factor


class Rotary(nn.Module):
    """Cosines and sines of positions."""

    rates: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = 1.0
        scaling = config.rope_scaling
        if scaling is not None and scaling.kind == "yarn":
            self.factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
        self.register_buffer("rates", self._rates(), persistent=False)

    def _rates(self) -> Tensor:
        return frequencies(self.config.rope_dim, self.config.rope_theta, self.config.rope_scaling)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Keep fp32 where the model is cast, and values where it leaves the meta device."""
        super()._apply(fn, recurse)
        device = self.rates.device
        with torch.device("cpu"):
            rates = self._rates()
        self.rates = rates.to(device)
        return self

    def forward(self, positions: Int[Tensor, "*B T"]) -> Rotation:
        angles = positions[..., None].float() * self.rates
        return angles.cos() * self.factor, angles.sin() * self.factor


def rotate(
    x: Float[Tensor, "B T H K"], cos: Float[Tensor, "*B T half"], sin: Float[Tensor, "*B T half"]
) -> Float[Tensor, "B T H K"]:
    """Turn each pair of coordinates by its angle; computed in fp32, returned in ``x``'s type."""
    a, b = wide(x).chunk(2, -1)
    cos, sin = cos[..., None, :], sin[..., None, :]  # the same for all heads
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def rotate_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated queries and keys, with the signature of ``kernels.rope``."""
    return rotate(q, cos, sin), rotate(k, cos, sin)


def sinusoids(positions: Int[Tensor, "*B T"], width: int) -> Float[Tensor, "*B T D"]:
    """Sines in the even coordinates, cosines in the odd ones (Vaswani et al. 2017, section 3.5)."""
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = positions[..., None].float() * 10000.0**-steps
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)
