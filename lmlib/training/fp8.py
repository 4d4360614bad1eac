"""Products of eight-bit numbers: E4M3 forward, E5M2 backward, one scale a tensor.

- A tensor is stored as ``values * scale``: ``values`` in eight bits, ``scale`` one fp32 number, chosen so
  that the largest entry becomes the format's largest. Micikevicius et al. 2022, arXiv:2209.05433, sections 3
  and 4.
- Weights and activations take E4M3 (more fraction), gradients E5M2 (more range).
- Products are summed in fp32. On a GPU with units for it (Ada, Hopper and later) ``torch._scaled_mm`` does
  them; elsewhere they are emulated: a product of two such numbers is exact in fp32, so that only the sums
  differ (Hopper's units keep about 14 bits of them: DeepSeek-V3, arXiv:2412.19437, section 3.3.2).
- The scale is that of the tensor at hand, which costs a pass over it. Recipes for speed take the largest
  entry of earlier steps instead ("delayed scaling"), or one scale for each small block.
- ``quantize`` is plain PyTorch: six passes over a tensor. On an H200 they cost more than a product in eight
  bits saves, for matrices of up to 8,192 (chapter 3): this module is for the arithmetic, not for speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmlib.resources.units import ArgumentError

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_MULTIPLE = 16  # of every dimension, for the GPU's units


@dataclass(frozen=True)
class Scaled:
    """A tensor in eight bits: ``values * scale``.

    Args:
        values: dtype ``E4M3`` or ``E5M2``.
        scale: fp32, no dimensions.
    """

    values: Tensor
    scale: Float[Tensor, ""]

    def decoded(self) -> Tensor:
        """The numbers that it stands for, fp32."""
        return self.values.float() * self.scale

    def transposed(self) -> Scaled:
        """Rows become columns; a view."""
        return Scaled(self.values.T, self.scale)


def largest(dtype: torch.dtype) -> float:
    """The largest finite value of an eight-bit format: 448 or 57,344.

    Raises:
        ArgumentError: for another dtype.
    """
    if dtype not in (E4M3, E5M2):
        raise ArgumentError("dtype", f"must be torch.float8_e4m3fn or torch.float8_e5m2, got {dtype}")
    return torch.finfo(dtype).max


def best_scale(x: Tensor, dtype: torch.dtype = E4M3) -> Float[Tensor, ""]:
    """What to divide ``x`` by so that its largest entry becomes the format's largest; 1 for zeros."""
    peak = x.detach().abs().amax().float()
    return torch.where(peak > 0, peak / largest(dtype), torch.ones_like(peak)).clamp_min(2.0**-120)


def quantize(x: Tensor, dtype: torch.dtype = E4M3, scale: Tensor | float | None = None) -> Scaled:
    """``x`` in eight bits, rounded to nearest; what is too large becomes the largest (it saturates).

    PyTorch's own cast makes it not-a-number or infinity in some versions; here it is cut first.

    Args:
        scale: to divide by; default ``best_scale``. 1 is the plain cast.
    """
    top = largest(dtype)
    chosen = best_scale(x, dtype) if scale is None else torch.as_tensor(scale, device=x.device)
    chosen = chosen.float()
    return Scaled((x.detach().float() / chosen).clamp(-top, top).to(dtype), chosen)


def has_units(device: torch.device | str) -> bool:
    """Whether a device multiplies eight-bit floats itself: compute capability 8.9 or later."""
    chosen = torch.device(device)
    if chosen.type != "cuda" or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(chosen) >= (8, 9)


def product(
    a: Scaled, b: Scaled, dtype: torch.dtype = torch.float32, *, emulate: bool | None = None
) -> Float[Tensor, "M N"]:
    """``a @ b``, of (M, K) and (K, N), summed in fp32 and given as ``dtype``.

    Args:
        emulate: whether to multiply in fp32; default: only where the device cannot do it (no units, sizes
            that are not multiples of 16, or E5M2 on both sides).

    Raises:
        ArgumentError: for shapes that do not fit.
    """
    if a.values.ndim != 2 or b.values.ndim != 2 or a.values.shape[1] != b.values.shape[0]:
        raise ArgumentError(
            "b",
            f"must have as many rows as a has columns, got {tuple(a.values.shape)} @ {tuple(b.values.shape)}",
        )
    if emulate is None:
        whole = all(size % _MULTIPLE == 0 for size in (*a.values.shape, b.values.shape[1]))
        emulate = not (whole and has_units(a.values.device) and E4M3 in (a.values.dtype, b.values.dtype))
    if emulate:
        return ((a.values.float() @ b.values.float()) * (a.scale * b.scale)).to(dtype)
    # The units read both along K: the left by rows, the right by columns.
    by_rows, by_columns = a.values.contiguous(), b.values.T.contiguous().T
    found: Tensor = torch._scaled_mm(
        by_rows, by_columns, scale_a=a.scale, scale_b=b.scale, out_dtype=torch.bfloat16
    )
    return found.to(dtype)


class _Linear(torch.autograd.Function):
    """``x @ weight.T`` with three eight-bit products: forward, to the input, to the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scaled: bool) -> Tensor:
        fixed = None if scaled else 1.0
        x8, w8 = quantize(x, E4M3, fixed), quantize(weight, E4M3, fixed)
        ctx.save_for_backward(x8.values, x8.scale, w8.values, w8.scale)
        ctx.fixed, ctx.dtypes = fixed, (x.dtype, weight.dtype)
        return product(x8, w8.transposed(), x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, x_scale, w, w_scale = ctx.saved_tensors
        g8 = quantize(gradients[0], E5M2, ctx.fixed)
        to_x = product(g8, Scaled(w, w_scale), ctx.dtypes[0])
        to_weight = product(g8.transposed(), Scaled(x, x_scale), ctx.dtypes[1])
        return to_x, to_weight, None


def linear(
    x: Float[Tensor, "... D"], weight: Float[Tensor, "F D"], *, scaled: bool = True
) -> Float[Tensor, "... F"]:
    """``x @ weight.T`` whose three products, two of them in backward, are of eight-bit numbers.

    Args:
        scaled: one scale a tensor; otherwise numbers are cast as they are.
    """
    flat = x.reshape(-1, x.shape[-1])
    found: Tensor = _Linear.apply(flat, weight, scaled)  # type: ignore[no-untyped-call]
    return found.view(*x.shape[:-1], weight.shape[0])


class EightBitLinear(nn.Linear):
    """A linear layer that multiplies in eight bits; what it stores is ``nn.Linear``'s."""

    scaled = True

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... F"]:
        """``x @ weight.T + bias``, the product as of ``linear``."""
        found = linear(x, self.weight, scaled=self.scaled)
        return found if self.bias is None else found + self.bias


def convert(model: Any, *, scaled: bool = True) -> Any:
    """Make the linear layers inside a model's blocks multiply in eight bits, in place.

    Embedding, norms, attention scores and head stay as they are, as does what is stored: weights and the
    optimizer's averages keep their dtype. Layers change their class, so that everything that asks for a plain
    linear layer, to read its weight in a kernel of its own, sees that they are none.
    """
    for layer in model.blocks.modules():
        if isinstance(layer, nn.Linear):
            layer.__class__ = EightBitLinear
            cast(EightBitLinear, layer).scaled = scaled
    return model
