"""RMSNorm and LayerNorm: statistics in fp32 whatever the input's type, the result in the input's type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lmlib.architecture.config import ModelConfig
from lmlib.architecture.switch import kernel


def wide(x: Tensor) -> Tensor:
    """``x`` in fp32, or in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / rms(x) × weight over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float, kernels: str) -> None:
        super().__init__()
        self.eps, self.kernels = eps, kernels
        self.weight = nn.Parameter(torch.ones(width))
        self.fused = kernel("rms_norm") if kernels.startswith("triton") else None

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        if self.fused is not None:
            return self.fused(x, self.weight, self.eps)
        if self.kernels == "sdpa":
            # Under autocast the fused norms may answer in fp32, and the input's type should stay.
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).to(x.dtype)
        h = wide(x)
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return (h * self.weight).to(x.dtype)

    def after_sum(self, branch: Tensor, x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The norm of ``x + branch + shift``, and that sum, in one kernel where there is one."""
        if shift is not None:
            branch = branch + shift.to(branch.dtype)
        if self.fused is not None:
            return self.fused(branch, self.weight, self.eps, residual=x)
        x = x + branch
        return self(x), x


class LayerNorm(nn.Module):
    """(x - mean) / std × weight + bias over the last axis (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, width: int, eps: float, kernels: str) -> None:
        super().__init__()
        self.eps, self.kernels = eps, kernels
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.fused = kernel("layer_norm") if kernels.startswith("triton") else None

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        if self.fused is not None:
            return self.fused(x, self.weight, self.bias, self.eps)
        if self.kernels != "eager":
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, weight.shape, weight, bias, self.eps).to(x.dtype)
        h = wide(x)
        h = h - h.mean(-1, keepdim=True)
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return (h * self.weight + self.bias).to(x.dtype)

    def after_sum(self, branch: Tensor, x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The norm of ``x + branch + shift``, and that sum, in one kernel where there is one."""
        if self.fused is not None:
            narrow = None if shift is None else shift.to(self.weight.dtype)
            return self.fused(branch, self.weight, self.bias, self.eps, residual=x, shift=narrow)
        x = x + (branch if shift is None else branch + shift.to(branch.dtype))
        return self(x), x


def make_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """The norm of the residual stream that the configuration asks for."""
    kind = RMSNorm if config.norm == "rmsnorm" else LayerNorm
    return kind(config.d_model, config.norm_eps, config.kernels)
