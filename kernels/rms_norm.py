"""RMSNorm, forward and backward, alone or fused with the addition of a residual before it.

    total = x + residual                       (only where a residual is given; rounded to its dtype)
    y = total * rstd * weight,  rstd = 1 / sqrt(mean(total^2) + eps)          over the last axis

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019, arXiv:1910.07467), equation 4.

Contract: x of any leading axes and float32, bfloat16 or float16; weight of the last axis' length, of any
of these dtypes. Arithmetic is float32; y has x's dtype, total the residual's. Rows may be strided (no copy);
other layouts are copied. At most MAX_COLUMNS columns; beyond, and where kernels can't run, the reference
computes.

Bytes, with R rows, D columns and b bytes a value: forward R (2 D b + 4), with residual R (4 D b + 4);
backward R (3 D b + 4), with residual R (4 D b + 4); in each the weight besides. About 4 and 8 R D FLOPs:
one operation a byte, so the memory bus decides.

- Forward: of narrow rows a program holds some whole in registers. A row of more than 1,024 columns it goes
  over twice, in chunks: first the sum of squares, then y. What the second pass reads is still in the cache,
  so memory sees one read and one write; a program needs few registers, so more rows are under way at once.
  With a residual rows are held whole at any width.
- Backward: with n = total * rstd and g = dy * weight, dx = (g - n mean(g n)) rstd, and dweight = sum over
  rows of dy * n. A fixed number of programs walk over the rows and each keeps its part of dweight in
  registers; a second kernel adds the parts. No atomics: on one machine the same inputs give the same bits.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kernels._rows import Launch, add_parts, can_chain, grid, rows_of_tile, stages, whole_rows
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
from kernels.bench.case import Bench, Inputs, Shape, UnavailableError, Work, compiled, installed, normal

MAX_COLUMNS = 32_768  # a row of more spills out of the registers


@triton.jit
def _forward(
    X,
    RESIDUAL,
    WEIGHT,
    Y,
    TOTAL,
    RSTD,
    rows,
    columns,
    x_stride,
    residual_stride,
    eps,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some whole rows a program, in registers."""
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < columns
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    mask = (row < rows) & inside
    total = tl.load(X + row * x_stride + column, mask, other=0.0).to(tl.float32)
    weight = tl.load(WEIGHT + column, inside, other=0.0)
    if ADD:
        total += tl.load(RESIDUAL + row * residual_stride + column, mask, other=0.0).to(tl.float32)
        rounded = total.to(TOTAL.dtype.element_ty)
        tl.store(TOTAL + row * columns + column, rounded, mask)
        total = rounded.to(tl.float32)  # what the backward will read, and what unfused code would see
    rstd = tl.rsqrt(tl.sum(total * total, 1, keep_dims=True) / columns + eps)
    y = total * rstd * weight.to(tl.float32)
    tl.store(Y + row * columns + column, y.to(Y.dtype.element_ty), mask)
    tl.store(RSTD + row, rstd, row < rows)


@triton.jit
def _forward_in_chunks(X, WEIGHT, Y, RSTD, columns, x_stride, eps, CHUNK: tl.constexpr):
    """One row a program, gone over twice: its scale, then y; evict_last keeps it in the cache meanwhile."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((CHUNK,), tl.float32)
    for start in tl.range(0, columns, CHUNK):
        column = start + tl.arange(0, CHUNK)
        x = tl.load(X + row * x_stride + column, column < columns, other=0.0, eviction_policy="evict_last")
        squares += x.to(tl.float32) * x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(squares, 0) / columns + eps)
    tl.store(RSTD + row, rstd)
    for start in tl.range(0, columns, CHUNK):
        column = start + tl.arange(0, CHUNK)
        inside = column < columns
        x = tl.load(X + row * x_stride + column, inside, other=0.0, eviction_policy="evict_first")
        weight = tl.load(WEIGHT + column, inside, other=0.0, eviction_policy="evict_last")
        y = x.to(tl.float32) * rstd * weight.to(tl.float32)
        tl.store(Y + row * columns + column, y.to(Y.dtype.element_ty), inside, cache_modifier=".cs")


@triton.jit
def _backward(
    DY,
    DTOTAL,
    TOTAL,
    WEIGHT,
    RSTD,
    DX,
    PARTS,
    rows,
    columns,
    dy_stride,
    dtotal_stride,
    total_stride,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    CHAINED: tl.constexpr,
):
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < columns
    weight = tl.load(WEIGHT + column, inside, other=0.0)
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)[:, None].to(tl.int64)
        mask = (row < rows) & inside
        dy = tl.load(DY + row * dy_stride + column, mask, other=0.0).to(tl.float32)
        total = tl.load(TOTAL + row * total_stride + column, mask, other=0.0).to(tl.float32)
        rstd = tl.load(RSTD + row, row < rows, other=0.0)
        normed = total * rstd
        dweight += dy * normed
        dy *= weight.to(tl.float32)
        mean = tl.sum(dy * normed, 1, keep_dims=True) / columns
        dx = (dy - normed * mean) * rstd
        if ADD:
            dx += tl.load(DTOTAL + row * dtotal_stride + column, mask, other=0.0).to(tl.float32)
        tl.store(DX + row * columns + column, dx.to(DX.dtype.element_ty), mask)
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()  # add_parts may start to start
    part = tl.sum(dweight, 0, keep_dims=True)
    tl.store(PARTS + tl.program_id(0).to(tl.int64) * columns + column, part, inside)


# -- launching -----------------------------------------------------------------------------------------------


def forward_launch(rows: int, columns: int, device: torch.device, add: bool = False) -> Launch:
    """The forward's launch for a shape, with a residual to add or without, from timings on Hopper GPUs."""
    block = next_power_of_2(columns)
    if add:
        return whole_rows(rows, columns, device)
    if block < 2048:
        tile = rows_of_tile(2048, block, rows, device)
        return Launch(tile, max(tile * block // 512, 1))
    # 16 bytes a lane. Half a row at a time; where all rows fit on the GPU at once, eight to a processor, a
    # quarter: with twice the warps the last rows would wait for the first.
    if rows <= 8 * sm_count(device):
        chunk = min(max(block // 4, 2048), 4096)
    else:
        chunk = min(block // 2, 4096)
        while chunk > 512 and cdiv(columns, chunk) * chunk > columns * 7 // 6:
            chunk //= 2  # of 5,120 columns 4,096 would leave three quarters of the second chunk empty
    return Launch(1, chunk // 256, chunk=chunk)


def backward_launch(rows: int, columns: int, device: torch.device) -> Launch:
    """The backward's launch for a shape, from timings on Hopper GPUs."""
    block = next_power_of_2(columns)
    tile = rows_of_tile(4096, block, rows, device)
    if block >= 16_384:  # no registers are left to load ahead
        return Launch(tile, warps=16 if block == 16_384 else 32, per_sm=1)
    if block >= 2048:
        return Launch(tile, warps=4 if block == 2048 else 8, per_sm=1, stages=3 if block == 8192 else 4)
    if block >= 512:
        return Launch(rows_of_tile(2 * block, block, rows, device), warps=2, per_sm=4, stages=4)
    return Launch(tile, warps=4, per_sm=2, stages=3)


def launch_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, launch: Launch | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """y, total and rstd; without a residual total is an empty tensor."""
    columns = x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x.new_empty(0) if residual is None else torch.empty_like(y, dtype=residual.dtype)
    rstd = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    if y.numel() == 0:
        return y, total, rstd
    flat = as_rows(x)
    added = flat if residual is None else as_rows(residual)
    rows = flat.shape[0]
    launch = launch or forward_launch(rows, columns, x.device, add=residual is not None)
    weight = weight.contiguous()
    if launch.chunk and residual is None:  # a sum is gone over once
        _forward_in_chunks[(rows,)](
            flat, weight, y, rstd, columns, flat.stride(0), eps, CHUNK=launch.chunk, num_warps=launch.warps
        )
        return y, total, rstd
    _forward[(cdiv(rows, launch.rows),)](
        flat,
        added,
        weight,
        y,
        total,
        rstd,
        rows,
        columns,
        flat.stride(0),
        added.stride(0),
        eps,
        ADD=residual is not None,
        ROWS=launch.rows,
        BLOCK=next_power_of_2(columns),
        num_warps=launch.warps,
    )
    return y, total, rstd


def launch_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to total (in its dtype) and to the weight."""
    columns = total.shape[-1]
    dx = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    if dx.numel() == 0:
        return dx, torch.zeros_like(weight, memory_format=torch.contiguous_format)
    dweight = torch.empty(columns, dtype=weight.dtype, device=weight.device)
    flat, dy = as_rows(total), as_rows(dy)
    added = dy if dtotal is None else as_rows(dtotal)
    rows = flat.shape[0]
    launch = launch or backward_launch(rows, columns, dx.device)
    programs = grid(rows, launch, dx.device)
    parts = torch.empty((programs, columns), dtype=torch.float32, device=dx.device)
    block = next_power_of_2(columns)
    value_bytes = dy.element_size() + total.element_size() * (1 if dtotal is None else 2)
    chained = can_chain(dx.device)
    _backward[(programs,)](
        dy,
        added,
        flat,
        weight.contiguous(),
        rstd,
        dx,
        parts,
        rows,
        columns,
        dy.stride(0),
        added.stride(0),
        flat.stride(0),
        ADD=dtotal is not None,
        ROWS=launch.rows,
        BLOCK=block,
        STAGES=stages(launch, launch.rows * block * value_bytes, dx.device),
        CHAINED=chained,
        num_warps=launch.warps,
    )
    add_parts(parts, dweight, chained)
    return dx, dweight


# -- the operators -------------------------------------------------------------------------------------------


def _backward_op(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return launch_backward(dy, dtotal, total, weight, rstd)


def _backward_fake(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, _, rstd = launch_forward(x, None, weight, eps)
    return y, rstd


def _norm_fake(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _norm_setup(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _norm_backward(ctx, dy: Tensor | None, _):
    if dy is None:
        return None, None, None
    x, weight, rstd = ctx.saved_tensors
    return *_norm_gradients(dy, None, x, weight, rstd), None


def _add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return launch_forward(x, residual, weight, eps)


def _add_norm_fake(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, rstd = _norm_fake(x, weight, eps)
    return y, residual.new_empty(residual.shape), rstd


def _add_norm_setup(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.x_dtype = inputs[0].dtype
    ctx.save_for_backward(output[1], inputs[2], output[2])


def _add_norm_backward(ctx, dy: Tensor | None, dtotal: Tensor | None, _):
    total, weight, rstd = ctx.saved_tensors
    if dy is None:  # only the sum was used
        return (None, None, None, None) if dtotal is None else (dtotal.to(ctx.x_dtype), dtotal, None, None)
    gradient, dweight = _norm_gradients(dy, dtotal, total, weight, rstd)
    return gradient.to(ctx.x_dtype), gradient, dweight, None


_norm_gradients = Operator("rms_norm_backward", _backward_op, _backward_fake)
_rms_norm = Operator("rms_norm", _norm, _norm_fake, _norm_setup, _norm_backward)
_add_rms_norm = Operator("add_rms_norm", _add_norm, _add_norm_fake, _add_norm_setup, _add_norm_backward)


# -- the function --------------------------------------------------------------------------------------------


def reference(
    x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """The same in plain PyTorch, in float32 (float64 stays float64), rounded where the kernel rounds."""
    total = x if residual is None else (x + residual).to(residual.dtype)
    wide = total if total.dtype == torch.float64 else total.float()
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    y = (wide * rstd * weight.to(wide.dtype)).to(x.dtype)
    return y if residual is None else (y, total)


def rms_norm(
    x: Float[Tensor, "*leading columns"],
    weight: Float[Tensor, " columns"],
    eps: float = 1e-6,
    residual: Float[Tensor, "*leading columns"] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """RMSNorm over the last axis of x, or of x + residual.

    Returns:
        y; with a residual, (y, x + residual). Gradients of both reach x, residual and weight. The backward is
        bitwise repeatable: same inputs, same GPU model, same bits.

    Raises:
        ValueError: weight is not one value for each column, or residual's shape is not x's.
        TypeError: a tensor of integers.
    """
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"weight must have shape {tuple(x.shape[-1:])}, x's last axis, got {tuple(weight.shape)}"
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}")
    check_floating(x=x, weight=weight, residual=residual)
    if not usable(x, weight, residual) or x.shape[-1] > MAX_COLUMNS:
        return reference(x, weight, eps, residual)
    if residual is None:
        return _rms_norm(x, weight, eps)[0]
    y, total, _ = _add_rms_norm(x, residual, weight, eps)
    return y, total


# -- the benchmark -------------------------------------------------------------------------------------------

ROWS = 16_384


def _inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    inputs = {
        "x": normal(shape, generator, "rows", "columns"),
        "weight": normal(shape, generator, "columns"),
    }
    if shape.sizes.get("residual"):
        inputs["residual"] = normal(shape, generator, "rows", "columns")
    return inputs


def _eager(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    y = torch.nn.functional.rms_norm(total, weight.shape, weight, 1e-6)
    return y if residual is None else (y, total)


def _unfused(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


def _liger() -> Callable[..., Tensor]:
    function = installed("liger_kernel.ops.rms_norm", "LigerRMSNormFunction")
    return lambda x, weight: function.apply(x, weight, 1e-6, 0.0, "llama", False)


def _liger_add() -> Callable[..., tuple[Tensor, Tensor]]:
    function = installed("liger_kernel.ops.fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
    return lambda x, weight, residual: function.apply(x, residual, weight, 1e-6, 0.0, "llama", False)


def _cuda() -> Callable[..., Tensor]:
    from kernels.cuda import rms_norm as cuda

    if not cuda.available():
        raise UnavailableError("CUDA C++ needs a CUDA GPU, nvcc and ninja")
    return lambda x, weight: cuda.rms_norm(x, weight, 1e-6)


def _work(shape: Shape) -> dict[str, Work]:
    values, extra = shape["rows"] * shape["columns"], 2 if shape.sizes.get("residual") else 0
    size = shape.dtype.itemsize
    backward = 3 + (1 if extra else 0)
    return {
        "forward": Work((2 + extra) * values * size, 4 * values),
        "backward": Work(backward * values * size, 8 * values),
    }


def _shape(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, **more: bool) -> Shape:
    return Shape({"rows": rows, "columns": columns, **more}, dtype)


BENCH = (
    Bench(
        name="rms_norm",
        inputs=_inputs,
        ours=rms_norm,
        reference=reference,
        grads=("x", "weight"),
        peers={
            "F.rms_norm": lambda: _eager,
            "eager, unfused": lambda: _unfused,
            "torch.compile": compiled(_unfused),
            "Liger": _liger,
            "CUDA C++ (ours)": _cuda,
        },
        work=_work,
        shapes=tuple(_shape(ROWS, columns) for columns in (1024, 4096, 8192)),
        full=tuple(
            _shape(rows, columns)
            for rows in (1024, 4096, 16_384, 65_536)
            for columns in (512, 1024, 2048, 4096, 8192, 16_384)
            if (rows, columns) not in ((ROWS, 1024), (ROWS, 4096), (ROWS, 8192))
        ),
        tiny=(_shape(5, 131), _shape(3, 64, torch.float32)),
    ),
    Bench(
        name="add_rms_norm",
        inputs=_inputs,
        ours=rms_norm,
        reference=reference,
        grads=("x", "weight", "residual"),
        peers={
            "F.rms_norm and +": lambda: _eager,
            "torch.compile": compiled(_eager),
            "Liger": _liger_add,
        },
        work=_work,
        shapes=tuple(_shape(ROWS, columns, residual=True) for columns in (1024, 4096, 8192)),
        tiny=(_shape(5, 131, residual=True),),
    ),
)
