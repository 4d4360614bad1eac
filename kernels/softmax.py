"""Softmax over the last axis, forward and backward, from 1 to 262,144 columns and more.

    y = exp(x - max(x)) / sum(exp(x - max(x)))          dx = y (dy - sum(dy y))

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018, arXiv:1805.02867),
algorithm 3, for rows that don't fit into registers.

Contract: x of any leading axes, float32, bfloat16 or float16. Arithmetic is float32, rounded once. Rows may
be strided (no copy); other layouts are copied.

Bytes, with R rows, D columns and b bytes a value: forward 2 R D b, backward 3 R D b. About 5 and 4 R D
FLOPs.

- Up to RESIDENT columns a program holds whole rows in registers: one read, one write, one exponential a
  value. In the backward up to RESIDENT_BACKWARD.
- Wider rows are read twice. The first pass carries the maximum so far and the sum of exponentials relative to
  it, rescaled whenever the maximum grows, each thread its own; the second writes. Up to about 150,000 columns
  of 16 bits the rows in flight fit into L2, so that the second reading does not reach device memory.
- A vocabulary of 50,257 makes every row start at another alignment, and a warp that may not assume 16-byte
  alignment loads 2 bytes a thread. So the row is cut: its aligned middle, loaded 16 bytes a thread, and fewer
  than 8 values at each end.

Every row is summed by one program in a fixed order: results are bitwise repeatable.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kernels._math import divide, exp
from kernels._runtime import (
    Operator,
    as_rows,
    cdiv,
    check_floating,
    next_power_of_2,
    sm_count,
    tl,
    triton,
    usable,
)
from kernels.bench.case import Bench, Shape, Work, compiled, installed, normal

RESIDENT, RESIDENT_BACKWARD = 4096, 8192  # columns
VECTOR_BYTES = 16


class Launch(NamedTuple):
    """Rows of a tile, columns of a tile, warps of a program."""

    rows: int
    block: int
    warps: int


@triton.jit
def _middle(first, columns, VECTOR: tl.constexpr):
    """The aligned part of a row that starts at offset ``first``: its start and its length."""
    start = (first + VECTOR - 1) // VECTOR * VECTOR
    end = (first + columns) // VECTOR * VECTOR
    return start, (end - start).to(tl.int32)


@triton.jit
def _ends(first, columns, start, length, VECTOR: tl.constexpr):
    """Offsets of what the middle leaves out at both ends of the row, and which of them exist."""
    index = tl.arange(0, 2 * VECTOR)[None, :]
    offset = tl.where(index < VECTOR, start - VECTOR + index, start + length + index - VECTOR)
    return offset, tl.where(index < VECTOR, offset >= first, offset < first + columns)


@triton.jit
def _unit(largest):
    """log2(e), and 1 where log2(e) times the largest value overflows.

    So far out 16-bit values are equal, or so far apart that the power is 0 in any unit.
    """
    return tl.where(tl.abs(largest) > 2e38, 1.0, 1.4426950408889634)


@triton.jit
def _in_units(x):
    """x times its unit, rounded: a plain product the compiler would fuse with the sum that it goes into."""
    return tl.fma(x, _unit(x), 0.0)


@triton.jit
def _power(x, largest, PRECISE: tl.constexpr):
    """e^(x - largest). 16 bits: one operation before the power: the largest is rounded alike for all."""
    if PRECISE:
        return exp(x - largest, True)
    else:
        return tl.math.exp2(tl.fma(x, _unit(largest), -_in_units(largest)))


@triton.jit
def _rescale(old, largest, PRECISE: tl.constexpr):
    """e^(old - largest) of two maxima, each rounded as in ``_power``: exactly 1 where they are equal."""
    if PRECISE:
        return exp(old - largest, True)
    else:
        return tl.math.exp2(_in_units(old) - _in_units(largest))


@triton.jit
def _finite(largest):
    """0 where there was nothing but -inf: avoids -inf - -inf."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def _factor(total, PRECISE: tl.constexpr):
    """What 16-bit results are multiplied by, so that only one division is left; float32 ones are divided."""
    return total if PRECISE else 1.0 / total


@triton.jit
def _share(power, factor, PRECISE: tl.constexpr):
    return divide(power, factor, True) if PRECISE else power * factor


@triton.jit
def _resident_forward(
    X, Y, rows, columns, x_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISE: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    x = tl.load(X + row * x_stride + column, mask, other=float("-inf")).to(tl.float32)
    power = _power(x, tl.max(x, 1, keep_dims=True), PRECISE)
    y = _share(power, _factor(tl.sum(power, 1, keep_dims=True), PRECISE), PRECISE)
    tl.store(Y + row * columns + column, y.to(Y.dtype.element_ty), mask)


@triton.jit
def _resident_backward(
    DY, Y, DX, rows, columns, dy_stride, y_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < columns)
    dy = tl.load(DY + row * dy_stride + column, mask, other=0.0).to(tl.float32)
    y = tl.load(Y + row * y_stride + column, mask, other=0.0).to(tl.float32)
    dx = y * (dy - tl.sum(dy * y, 1, keep_dims=True))
    tl.store(DX + row * columns + column, dx.to(DX.dtype.element_ty), mask)


@triton.jit
def _wide_forward(
    X,
    Y,
    columns,
    x_stride,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    ENDS: tl.constexpr,
    PRECISE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = row * x_stride
    start, length = first, columns
    if ENDS:
        start, length = _middle(first, columns, VECTOR)
    # A lane has VECTOR values a trip, and a maximum and a sum of its own: nothing waits for other lanes.
    column = tl.arange(0, BLOCK // VECTOR)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    largest = tl.full((BLOCK // VECTOR,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK // VECTOR,), tl.float32)
    for done in tl.range(0, length, BLOCK):
        mask = done + column < length
        x = tl.load(X + start + done + column, mask, other=float("-inf"), eviction_policy="evict_last").to(
            tl.float32
        )
        old, largest = largest, tl.maximum(largest, tl.max(x, 1))
        shift = _finite(largest)
        total = total * _rescale(old, shift, PRECISE) + tl.sum(_power(x, shift[:, None], PRECISE), 1)
    row_largest = tl.max(largest, 0)
    if ENDS:
        offset, exists = _ends(first, columns, start, length, VECTOR)
        ends = tl.load(X + offset, exists, other=float("-inf")).to(tl.float32)
        row_largest = tl.maximum(row_largest, tl.max(ends))
    row_total = tl.sum(total * _rescale(largest, row_largest, PRECISE), 0)
    if ENDS:
        row_total += tl.sum(_power(ends, row_largest, PRECISE))
    factor = _factor(row_total, PRECISE)
    y_row = Y + start if ENDS else Y + row * columns
    for done in tl.range(0, length, BLOCK):
        mask = done + column < length
        x = tl.load(X + start + done + column, mask, other=float("-inf"), eviction_policy="evict_first").to(
            tl.float32
        )
        y = _share(_power(x, row_largest, PRECISE), factor, PRECISE)
        tl.store(y_row + done + column, y.to(Y.dtype.element_ty), mask)
    if ENDS:
        y = _share(_power(ends, row_largest, PRECISE), factor, PRECISE)
        tl.store(Y + offset, y.to(Y.dtype.element_ty), exists)


@triton.jit
def _wide_backward(
    DY, Y, DX, columns, dy_stride, y_stride, BLOCK: tl.constexpr, VECTOR: tl.constexpr, ENDS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    first = row * columns
    if ENDS:
        start, length = _middle(first, columns, VECTOR)
        offset, exists = _ends(first, columns, start, length, VECTOR)
        end_dy = tl.load(DY + offset, exists, other=0.0).to(tl.float32)
        end_y = tl.load(Y + offset, exists, other=0.0).to(tl.float32)
        total = tl.sum(end_dy * end_y)
        dy_row, y_row = DY + start, Y + start
    else:
        start, length = first, columns
        total = 0.0
        dy_row, y_row = DY + row * dy_stride, Y + row * y_stride
    sums = tl.zeros((1, BLOCK), tl.float32)
    for done in tl.range(0, length, BLOCK):
        mask = done + column < length
        dy = tl.load(dy_row + done + column, mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        y = tl.load(y_row + done + column, mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
        sums += dy * y
    total += tl.sum(sums)
    for done in tl.range(0, length, BLOCK):
        mask = done + column < length
        dy = tl.load(dy_row + done + column, mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        y = tl.load(y_row + done + column, mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
        dx = y * (dy - total)
        tl.store(DX + start + done + column, dx.to(DX.dtype.element_ty), mask)
    if ENDS:
        dx = end_y * (end_dy - total)
        tl.store(DX + offset, dx.to(DX.dtype.element_ty), exists)


# -- launching -----------------------------------------------------------------------------------------------


def default_launch(
    rows: int, columns: int, itemsize: int, device: torch.device, backward: bool = False
) -> Launch:
    """Tile and warps for a shape, from timings on Hopper GPUs."""
    if columns > (RESIDENT_BACKWARD if backward else RESIDENT):
        return _wide_launch_backward(columns) if backward else _wide_launch(columns * itemsize, itemsize)
    block = next_power_of_2(columns)
    tile = max(1, 2048 // block)
    while tile > 1 and rows < 2 * tile * sm_count(device):
        tile //= 2  # few rows: rather busy SMs than full programs
    return Launch(tile, block, min(max(tile * block // 1024, 1), 32))


def _wide_launch(row_bytes: int, itemsize: int) -> Launch:
    """The wider the rows, the more warps on one of them: what is under way is to fit into the L2 cache."""
    warps = 8 if row_bytes <= 24_576 else 16 if row_bytes <= 65_536 else 32
    return Launch(1, 1024 * warps // itemsize, warps)


def _wide_launch_backward(columns: int) -> Launch:
    if columns <= 16_384:
        return Launch(1, 8192, 16 if columns < 16_384 else 32)
    return Launch(1, 8192 if columns < 65_536 else 16_384, 32)


def _cut(columns: int, *tensors: Tensor) -> bool:
    """Whether rows have to be cut to be loaded 16 bytes at a time (and can be: rows lie end to end)."""
    pitch = columns * tensors[0].element_size()
    together = all(t.stride(0) == columns and t.data_ptr() % VECTOR_BYTES == 0 for t in tensors)
    return together and pitch % VECTOR_BYTES != 0 and pitch >= 4 * VECTOR_BYTES


def launch_forward(x: Tensor, launch: Launch | None = None) -> Tensor:
    """y, contiguous."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    columns = x.shape[-1]
    flat = as_rows(x)
    rows = flat.shape[0]
    launch = launch or default_launch(rows, columns, x.element_size(), x.device)
    precise = x.dtype == torch.float32
    if launch.block >= columns:
        _resident_forward[(cdiv(rows, launch.rows),)](
            flat,
            y,
            rows,
            columns,
            flat.stride(0),
            ROWS=launch.rows,
            BLOCK=launch.block,
            PRECISE=precise,
            num_warps=launch.warps,
        )
    else:
        _wide_forward[(rows,)](
            flat,
            y,
            columns,
            flat.stride(0),
            BLOCK=launch.block,
            VECTOR=VECTOR_BYTES // x.element_size(),
            ENDS=_cut(columns, flat, y.view(rows, columns)),
            PRECISE=precise,
            num_warps=launch.warps,
        )
    return y


def launch_backward(dy: Tensor, y: Tensor, launch: Launch | None = None) -> Tensor:
    """dx, contiguous."""
    dx = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    if dx.numel() == 0:
        return dx
    columns = y.shape[-1]
    dy, y = as_rows(dy), as_rows(y)
    rows = y.shape[0]
    launch = launch or default_launch(rows, columns, y.element_size(), y.device, backward=True)
    if launch.block >= columns:
        _resident_backward[(cdiv(rows, launch.rows),)](
            dy,
            y,
            dx,
            rows,
            columns,
            dy.stride(0),
            y.stride(0),
            ROWS=launch.rows,
            BLOCK=launch.block,
            num_warps=launch.warps,
        )
    else:
        _wide_backward[(rows,)](
            dy,
            y,
            dx,
            columns,
            dy.stride(0),
            y.stride(0),
            BLOCK=launch.block,
            VECTOR=VECTOR_BYTES // y.element_size(),
            ENDS=_cut(columns, dy, y, dx.view(rows, columns)),
            num_warps=launch.warps,
        )
    return dx


def _softmax_op(x: Tensor) -> Tensor:
    return launch_forward(x)


def _softmax_fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _gradient_op(dy: Tensor, y: Tensor) -> Tensor:
    return launch_backward(dy, y)


def _gradient_fake(dy: Tensor, y: Tensor) -> Tensor:
    return y.new_empty(y.shape)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(output)


def _softmax_backward(ctx, dy: Tensor):
    return _gradient(dy, *ctx.saved_tensors)


_gradient = Operator("softmax_backward", _gradient_op, _gradient_fake)
_softmax = Operator("softmax", _softmax_op, _softmax_fake, _setup, _softmax_backward)


def reference(x: Tensor) -> Tensor:
    """The same in plain PyTorch, in float32 (float64 stays float64)."""
    wide = x if x.dtype == torch.float64 else x.float()
    power = (wide - wide.amax(-1, keepdim=True)).exp() if x.numel() else wide
    return (power / power.sum(-1, keepdim=True)).to(x.dtype)


def softmax(x: Float[Tensor, "*leading columns"]) -> Float[Tensor, "*leading columns"]:
    """Softmax over the last axis; a row of nothing but -inf gives NaN, as in PyTorch.

    Raises:
        TypeError: a tensor of integers.
    """
    check_floating(x=x)
    if not usable(x) or x.dim() == 0:
        return reference(x)
    return _softmax(x)


def _eager(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def _liger() -> Callable[..., Tensor]:
    function = installed("liger_kernel.ops.softmax", "LigerSoftmaxFunction")
    return lambda x: function.apply(x)


def _work(shape: Shape) -> dict[str, Work]:
    values = shape["rows"] * shape["columns"]
    size = shape.dtype.itemsize
    return {"forward": Work(2 * values * size, 5 * values), "backward": Work(3 * values * size, 4 * values)}


def _shape(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Shape:
    return Shape({"rows": rows, "columns": columns}, dtype)


BENCH = Bench(
    name="softmax",
    inputs=lambda shape, generator: {"x": normal(shape, generator, "rows", "columns", scale=2.0)},
    ours=softmax,
    reference=reference,
    grads=("x",),
    peers={"eager": lambda: _eager, "torch.compile": compiled(_eager), "Liger": _liger},
    work=_work,
    shapes=(
        *(_shape(16_384, 2**power) for power in range(10, 15)),
        _shape(65_536, 1024),
        _shape(4096, 50_257),
    ),
    full=tuple(_shape(2**28 // columns, columns) for columns in (64, 256, 32_768, 65_536, 131_072, 262_144)),
    tiny=(_shape(5, 131), _shape(3, 64, torch.float32)),
)
