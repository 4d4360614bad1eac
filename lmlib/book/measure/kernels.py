"""Fused norm and fused loss as single operators, so that they keep and take what a fused kernel does.

On CUDA the norm is PyTorch's own. Elsewhere PyTorch has no fused RMSNorm, so one is registered that saves
its input and one fp32 number a row; inside an operator, temporaries are not PyTorch's to see. They have a
namespace of their own: `kernels` registers operators of the same names under `lmlib`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5


@torch.library.custom_op("lmlib_measure::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight in fp32, in x's type; and the reciprocal root, in fp32."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return (wide * scale * weight.float()).to(x.dtype).contiguous(), scale


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty(
        (*x.shape[:-1], 1), dtype=torch.float32
    )


@torch.library.custom_op("lmlib_measure::rms_norm_backward", mutates_args=())
def rms_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    normal, wide = x.float() * scale, gradient.float()
    weighted = wide * weight.float()
    inner = (weighted * normal).mean(-1, keepdim=True)
    for_weight = (wide * normal).reshape(-1, x.shape[-1]).sum(0)
    return (
        (scale * (weighted - normal * inner)).to(x.dtype).contiguous(),
        for_weight.to(weight.dtype).contiguous(),
    )


@rms_norm_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight)


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        out, scale = rms_norm(x, weight)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def, override]
        x, weight, scale = ctx.saved_tensors
        return rms_norm_backward(gradient, x, weight, scale)


def fused_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm in one kernel, which keeps x and 4 bytes a row."""
    if x.is_cuda:  # the kernel wants one type; autocast brings 16-bit heads to a norm with fp32 weights
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), EPS)
    return _FusedNorm.apply(x, weight)


@torch.library.custom_op("lmlib_measure::cross_entropy_in_place", mutates_args=("logits",))
def cross_entropy_in_place(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (n, vocab) in fp32; leaves its gradient where the logits were."""
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for rows, wanted in zip(logits.split(256), targets.split(256), strict=True):
        log_p = rows.float().log_softmax(-1)
        total -= log_p.gather(1, wanted[:, None]).sum()
        gradient = log_p.exp_()
        gradient[torch.arange(len(rows), device=rows.device), wanted] -= 1
        rows.copy_(gradient / len(logits))
    return total / len(logits)


@cross_entropy_in_place.register_fake
def _(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.new_empty((), dtype=torch.float32)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        gradient = logits.detach()
        loss = cross_entropy_in_place(gradient, targets)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream), None


def fused_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy whose backward pass needs no memory beyond the logits'."""
    return _FusedLoss.apply(logits, targets)
