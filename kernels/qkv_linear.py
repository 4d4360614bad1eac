"""The linear layer that makes queries, keys and values, with a backward that touches their gradients once.

    q, k, v = split(x W^T + b)

One matrix for all three reads x once, and its product is large. But attention's backward hands back three
gradients, which plain PyTorch first copies side by side (a read and a write), and then reads again for the
gradient of the bias. Here the copy adds up the columns on its way. The products are PyTorch's (on Hopper the
forward's is ``kernels.cublaslt``'s), and q, k and v are views of one tensor.

Contract: x of any leading axes; x, weight and bias of one dtype, float32, bfloat16 or float16.
Bytes with N tokens, F columns of q, k and v together and b bytes a value: 2 N F b for the copy, where plain
PyTorch moves 3 N F b. No atomics: the same inputs give the same bits.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kernels import cublaslt
from kernels._rows import add_parts
from kernels._runtime import Operator, as_rows, cdiv, check_floating, tl, triton, usable
from kernels.bench.case import Bench, Inputs, Shape, Work, compiled, normal

# Of a tile; tiles of a program, one below the other; tiles loaded ahead; warps.
ROWS, COLUMNS, STEPS, STAGES, WARPS = 16, 128, 8, 3, 2


@triton.jit
def _copy_part(
    PART, stride, width, OUT, PARTS, rows, columns, first, tile, group,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """STEPS tiles of one gradient to where its columns begin, ``first``, and the sums of their columns."""
    column = tile * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        row = (group * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < width)
        values = tl.load(PART + row * stride + column, mask=inside, other=0.0)
        tl.store(OUT + row * columns + first + column, values, mask=inside)
        sums += values.to(tl.float32)
    total = tl.sum(sums, 0, keep_dims=True)
    tl.store(PARTS + group * columns + first + column, total, mask=column < width)


@triton.jit
def _pack_kernel(
    DQ, q_stride, q_width, DK, k_stride, k_width, DV, v_stride, v_width, OUT, PARTS, rows,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns = q_width + k_width + v_width
    q_tiles, k_tiles = tl.cdiv(q_width, COLUMNS), tl.cdiv(k_width, COLUMNS)
    # One axis of programs, as only the first may be longer than 65,535.
    across = q_tiles + k_tiles + tl.cdiv(v_width, COLUMNS)
    tile, group = tl.program_id(0) % across, (tl.program_id(0) // across).to(tl.int64)
    # fmt: off
    if tile < q_tiles:
        _copy_part(DQ, q_stride, q_width, OUT, PARTS, rows, columns, 0, tile, group,
                   ROWS, COLUMNS, STEPS, STAGES)
    elif tile < q_tiles + k_tiles:
        _copy_part(DK, k_stride, k_width, OUT, PARTS, rows, columns, q_width, tile - q_tiles, group,
                   ROWS, COLUMNS, STEPS, STAGES)
    else:
        _copy_part(DV, v_stride, v_width, OUT, PARTS, rows, columns, q_width + k_width,
                   tile - q_tiles - k_tiles, group, ROWS, COLUMNS, STEPS, STAGES)
    # fmt: on


def launch_pack(dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients (N, widths) side by side, and the sums of their columns in the same dtype."""
    parts = [as_rows(each) for each in (dq, dk, dv)]
    widths, rows = [each.shape[1] for each in parts], len(dq)
    packed, sums = dq.new_empty(rows, sum(widths)), dq.new_empty(sum(widths))
    if not packed.numel():
        return packed, sums.zero_()
    partial = torch.empty(cdiv(rows, ROWS * STEPS), sum(widths), dtype=torch.float32, device=dq.device)
    _pack_kernel[(sum(cdiv(width, COLUMNS) for width in widths) * len(partial),)](
        *(each for part in parts for each in (part, part.stride(0), part.shape[1])),
        packed, partial, rows, ROWS=ROWS, COLUMNS=COLUMNS, STEPS=STEPS, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
    return packed, add_parts(partial, sums)


def _pack_fake(dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    width = dq.shape[1] + dk.shape[1] + dv.shape[1]
    return dq.new_empty(dq.shape[0], width), dq.new_empty(width)


_pack = Operator("qkv_linear_backward", launch_pack, _pack_fake)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if cublaslt.fits(x, *weight.shape):
        return cublaslt.linear(x.contiguous(), weight, bias)
    return F.linear(x, weight, bias)


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_product = Operator("qkv_linear_forward", _linear, _linear_fake)


class _QKVLinear(torch.autograd.Function):
    """Not an operator: its outputs are views, and only the copy in its backward is a kernel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, q: int, k: int, v: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight)
        ctx.bias = bias is not None
        return _product(x, weight, bias).split([q, k, v], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable  # an error, not a wrong number
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        packed, sums = _pack(*(each.contiguous() for each in grads))
        of_x, of_weight = ctx.needs_input_grad[:2]
        return (
            packed @ weight if of_x else None,
            packed.t() @ x if of_weight else None,
            sums if ctx.bias else None,
            None,
            None,
            None,
        )


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain PyTorch."""
    return cast(tuple[Tensor, Tensor, Tensor], F.linear(x, weight, bias).split(list(sizes), -1))


def qkv_linear(
    x: Float[Tensor, "... D"],
    weight: Float[Tensor, "F D"],
    bias: Float[Tensor, " F"] | None,
    sizes: Sequence[int],
) -> tuple[Float[Tensor, "... Q"], Float[Tensor, "... K"], Float[Tensor, "... V"]]:
    """``linear(x, weight, bias)`` cut into three of ``sizes`` columns; under autocast all are cast first.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
        TypeError: tensors of integers.
    """
    check_floating(x=x, weight=weight, bias=bias)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if x.dim() < 1:
        raise ValueError("x must have at least one axis, got a single value")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"weight must be (F, {x.shape[-1]}) for x of shape {tuple(x.shape)}, got {tuple(weight.shape)}"
        )
    if len(sizes) != 3 or min(sizes) < 1 or sum(sizes) != weight.shape[0]:
        raise ValueError(f"sizes must be three that add up to {weight.shape[0]}, got {tuple(sizes)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, each in (("weight", weight), ("bias", bias)):
        if each is not None and each.dtype != x.dtype:
            raise ValueError(f"{name} must have x's dtype, {x.dtype}, got {each.dtype}")
    if not usable(x, weight, bias) or not x.numel():
        return reference(x, weight, bias, sizes)
    bias = None if bias is None else bias.contiguous()
    parts = _QKVLinear.apply(as_rows(x), weight.contiguous(), bias, *sizes)
    q, k, v = (part.unflatten(0, x.shape[:-1]) for part in parts)
    return q, k, v


# -- the benchmark -------------------------------------------------------------------------------------------


def _inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    width = shape["d_model"]
    return {
        "x": normal(shape, generator, "rows", "d_model"),
        "weight": normal(shape, generator, 3 * width, "d_model", scale=width**-0.5),
        "bias": normal(shape, generator, 3 * width, scale=0.1),
    }


def _ours(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return qkv_linear(x, weight, bias, [x.shape[-1]] * 3)


def _plain(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return reference(x, weight, bias, [x.shape[-1]] * 3)


def _work(shape: Shape) -> dict[str, Work]:
    N, D, size = shape["rows"], shape["d_model"], shape.dtype.itemsize
    return {
        "forward": Work(4 * N * D * size, 6 * N * D * D),
        "backward": Work((2 * 3 + 3 * 2 + 2) * N * D * size, 12 * N * D * D),
    }


def _shape(rows: int, d_model: int, dtype: torch.dtype = torch.bfloat16) -> Shape:
    return Shape({"rows": rows, "d_model": d_model}, dtype)


BENCH = Bench(
    name="qkv_linear",
    inputs=_inputs,
    ours=_ours,
    reference=_plain,
    grads=("x", "weight", "bias"),
    bound="matmul",
    peers={"eager": lambda: _plain, "torch.compile": compiled(_plain)},
    work=_work,
    shapes=(_shape(32_768, 768),),
    full=(_shape(8192, 768), _shape(8192, 4096)),
    tiny=(_shape(33, 24), _shape(20, 16, torch.float32)),
)
