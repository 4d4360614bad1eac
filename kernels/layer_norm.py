"""LayerNorm, forward and backward, alone or fused with the addition of a residual before it.

    total = x + shift + residual               (only where a residual is given; rounded to its dtype)
    y = n weight + bias,  n = (total - mean) rstd,  rstd = 1 / sqrt(variance + eps)    over the last axis

Source: Ba, Kiros and Hinton, "Layer Normalization" (2016, arXiv:1607.06450), equation 4.

What RMSNorm's kernels do (``kernels.rms_norm``, which explains the walk over rows and the adding of parts),
with a mean taken out and a bias. With g = dy weight: dx = (g - mean(g) - n mean(g n)) rstd; dweight and dbias
are the sums over rows of dy n and dy.

``shift`` is the bias of the linear layer that made x, left for this kernel to add: its gradient, the sum over
rows of dx, then costs no pass over dx.

Contract: x of any leading axes and float32, bfloat16 or float16; weight and bias of the last axis' length and
of one dtype. Arithmetic is float32; y has x's dtype, total the residual's. Rows may be strided (no copy);
other layouts are copied. At most MAX_COLUMNS columns; beyond, and where kernels can't run, the reference
computes.

Forward: up to 2,048 columns, and with a residual at any width, a program holds rows whole: the mean comes
first and then the squares of what is left, from registers, so that nothing cancels. Wider rows it goes over
twice.

Bytes, with R rows, D columns and b bytes a value: forward R (2 D b + 8), with residual R (4 D b + 8);
backward R (3 D b + 8), with residual R (4 D b + 8). About 8 and 12 R D FLOPs: the memory bus decides. Rows of
more than HELD_COLUMNS the backward reads twice, the second time from the cache: beside its sums they would
spill out of the registers. No atomics: on one machine the same inputs give the same bits.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kernels._rows import Launch, add_parts, can_chain, grid, rows_of_tile, stages, whole_rows
from kernels._runtime import Operator, as_rows, cdiv, check_floating, next_power_of_2, tl, triton, usable
from kernels.bench.case import Bench, Inputs, Shape, Work, compiled, installed, normal

MAX_COLUMNS = 16_384  # the backward holds sums for weight and bias: those of more columns spill
HELD_COLUMNS = 8192  # the backward holds rows of so many columns in registers as well; of more, only the sums


@triton.jit
def _forward(
    X,
    RESIDUAL,
    WEIGHT,
    BIAS,
    SHIFT,
    Y,
    TOTAL,
    STATS,
    rows,
    columns,
    x_stride,
    residual_stride,
    eps,
    ADD: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows ``ROWS * program`` and following; STATS holds the means of all rows, then their rstd."""
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < columns
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    mask = (row < rows) & inside
    total = tl.load(X + row * x_stride + column, mask, other=0.0).to(tl.float32)
    weight = tl.load(WEIGHT + column, inside, other=0.0)
    bias = tl.load(BIAS + column, inside, other=0.0)
    if SHIFTED:
        total += tl.load(SHIFT + column, inside, other=0.0).to(tl.float32)
    if ADD:
        total += tl.load(RESIDUAL + row * residual_stride + column, mask, other=0.0).to(tl.float32)
        rounded = total.to(TOTAL.dtype.element_ty)
        tl.store(TOTAL + row * columns + column, rounded, mask)
        total = rounded.to(tl.float32)  # what the backward will read, and what unfused code would see
    mean = tl.sum(total, 1, keep_dims=True) / columns
    centred = tl.where(inside, total - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) / columns + eps)
    y = centred * rstd * weight.to(tl.float32) + bias.to(tl.float32)
    tl.store(Y + row * columns + column, y.to(Y.dtype.element_ty), mask)
    tl.store(STATS + row, mean, row < rows)
    tl.store(STATS + rows + row, rstd, row < rows)


@triton.jit
def _forward_in_chunks(
    X,
    WEIGHT,
    BIAS,
    Y,
    STATS,
    rows,
    columns,
    x_stride,
    eps,
    CHUNK: tl.constexpr,
    VECTOR: tl.constexpr,
    EVEN: tl.constexpr,
):
    """One row a program, gone over twice: its statistics, then y from the cache. EVEN: no chunk ends early.

    A thread has VECTOR values of each chunk. It adds up what they are off the mean of its first ones, and the
    squares of that, so that none waits for others until the row has ended. In n chunks these
    squares are at most n times the ones off the mean of all its values: little can cancel.
    """
    row = tl.program_id(0).to(tl.int64)
    thread = tl.arange(0, CHUNK // VECTOR)
    lane = thread[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    first = tl.load(X + row * x_stride + lane, (lane < columns) | EVEN, other=0.0).to(tl.float32)
    centre = tl.sum(first, 1) / tl.minimum(tl.maximum(columns - thread * VECTOR, 1), VECTOR)
    sums = tl.zeros((CHUNK // VECTOR,), tl.float32)
    squares = tl.zeros((CHUNK // VECTOR,), tl.float32)
    for start in tl.range(0, columns, CHUNK):
        inside = (start + lane < columns) | EVEN
        x = tl.load(X + row * x_stride + start + lane, inside, other=0.0, eviction_policy="evict_last")
        off = x.to(tl.float32) - centre[:, None]
        if not EVEN:
            off = tl.where(inside, off, 0.0)
        sums += tl.sum(off, 1)
        squares += tl.sum(off * off, 1)
    chunks = columns // CHUNK
    rest = tl.minimum(tl.maximum(columns - chunks * CHUNK - thread * VECTOR, 0), VECTOR)
    counts = (chunks * VECTOR + rest).to(tl.float32)
    off = sums / tl.maximum(counts, 1.0)
    squares -= sums * off
    mean = tl.sum(counts * (centre + off), 0) / columns
    off += centre - mean  # not means - mean: what the sum above has lost is still in it
    rstd = tl.rsqrt(tl.sum(squares + counts * off * off, 0) / columns + eps)
    tl.store(STATS + row, mean)
    tl.store(STATS + rows + row, rstd)
    for start in tl.range(0, columns, CHUNK):
        column = start + tl.arange(0, CHUNK)
        inside = (column < columns) | EVEN
        x = tl.load(X + row * x_stride + column, inside, other=0.0, eviction_policy="evict_first")
        weight = tl.load(WEIGHT + column, inside, other=0.0, eviction_policy="evict_last")
        bias = tl.load(BIAS + column, inside, other=0.0, eviction_policy="evict_last")
        y = (x.to(tl.float32) - mean) * rstd * weight.to(tl.float32) + bias.to(tl.float32)
        tl.store(Y + row * columns + column, y.to(Y.dtype.element_ty), inside, cache_modifier=".cs")


@triton.jit
def _backward(
    DY,
    DTOTAL,
    TOTAL,
    WEIGHT,
    STATS,
    DX,
    PARTS,
    rows,
    columns,
    dy_stride,
    dtotal_stride,
    total_stride,
    ADD: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """dx of the rows that this program walks over, and its parts of dweight, dbias and dshift in a row."""
    column = tl.arange(0, BLOCK)[None, :]
    inside = column < columns
    weight = tl.load(WEIGHT + column, inside, other=0.0)
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    dbias = tl.zeros((ROWS, BLOCK), tl.float32)
    if SHIFTED:
        dshift = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)[:, None].to(tl.int64)
        mask = (row < rows) & inside
        dy = tl.load(DY + row * dy_stride + column, mask, other=0.0).to(tl.float32)
        total = tl.load(TOTAL + row * total_stride + column, mask, other=0.0).to(tl.float32)
        mean = tl.load(STATS + row, row < rows, other=0.0)
        rstd = tl.load(STATS + rows + row, row < rows, other=0.0)
        normed = tl.where(inside, (total - mean) * rstd, 0.0)
        dweight += dy * normed
        dbias += dy
        dy *= weight.to(tl.float32)
        shared = tl.sum(dy, 1, keep_dims=True) / columns
        along = tl.sum(dy * normed, 1, keep_dims=True) / columns
        dx = (dy - shared - normed * along) * rstd
        if ADD:
            dx += tl.load(DTOTAL + row * dtotal_stride + column, mask, other=0.0).to(tl.float32)
        tl.store(DX + row * columns + column, dx.to(DX.dtype.element_ty), mask)
        if SHIFTED:
            dshift += tl.where(mask, dx, 0.0)
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()  # add_parts may start to start
    part = PARTS + tl.program_id(0).to(tl.int64) * (3 if SHIFTED else 2) * columns + column
    tl.store(part, tl.sum(dweight, 0, keep_dims=True), inside)
    tl.store(part + columns, tl.sum(dbias, 0, keep_dims=True), inside)
    if SHIFTED:
        tl.store(part + 2 * columns, tl.sum(dshift, 0, keep_dims=True), inside)


@triton.jit
def _backward_in_two_reads(
    DY,
    DTOTAL,
    TOTAL,
    WEIGHT,
    STATS,
    DX,
    PARTS,
    rows,
    columns,
    dy_stride,
    dtotal_stride,
    total_stride,
    ADD: tl.constexpr,
    SHIFTED: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """The same row by row, each read for its two means and then, from the cache, for dx and the sums."""
    column = tl.arange(0, BLOCK)
    inside = column < columns
    dweight = tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    if SHIFTED:
        dshift = tl.zeros((BLOCK,), tl.float32)
    for row in tl.range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        mean = tl.load(STATS + row)
        rstd = tl.load(STATS + rows + row)
        dys, totals = DY + row * dy_stride + column, TOTAL + row * total_stride + column
        # Other hints than below also keep the compiler from making one load of two.
        dy = tl.load(dys, inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        total = tl.load(totals, inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        dy *= tl.load(WEIGHT + column, inside, other=0.0).to(tl.float32)
        shared = tl.sum(dy, 0) / columns
        along = tl.sum(dy * ((total - mean) * rstd), 0) / columns
        dy = tl.load(dys, inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        total = tl.load(totals, inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        normed = (total - mean) * rstd
        dweight += dy * normed
        dbias += dy
        dy *= tl.load(WEIGHT + column, inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        dx = (dy - shared - normed * along) * rstd
        if ADD:
            dx += tl.load(DTOTAL + row * dtotal_stride + column, inside, other=0.0).to(tl.float32)
        tl.store(DX + row * columns + column, dx.to(DX.dtype.element_ty), inside)
        if SHIFTED:
            dshift += dx
    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()  # add_parts may start to start
    part = PARTS + tl.program_id(0).to(tl.int64) * (3 if SHIFTED else 2) * columns + column
    tl.store(part, dweight, inside)
    tl.store(part + columns, dbias, inside)
    if SHIFTED:
        tl.store(part + 2 * columns, dshift, inside)


# -- launching -----------------------------------------------------------------------------------------------


def forward_launch(rows: int, columns: int, device: torch.device, add: bool = False) -> Launch:
    """The forward's launch for a shape, with a residual to add or without, from timings on Hopper GPUs."""
    if columns <= 2048 or add:
        return whole_rows(rows, columns, device)
    chunk = next_power_of_2(columns // 4 + 1) // 2  # at least four a row, so that the last is no large part
    return Launch(1, chunk // 256, chunk=chunk)


def backward_launch(rows: int, columns: int, device: torch.device, shifted: bool = False) -> Launch:
    """The backward's launch for a shape: RMSNorm's, with room for a second sum and perhaps a third."""
    block = next_power_of_2(columns)
    tile = rows_of_tile(4096 if block <= 1024 else 2048, block, rows, device)
    if block >= 8192:  # no registers are left to load ahead
        return Launch(tile, warps=16, per_sm=1)
    if block >= 2048:
        return Launch(tile, warps=8, per_sm=1, stages=3)
    # Four tiles ahead, by four warps: on a Hopper GPU a third faster than three ahead, or than eight warps.
    if shifted:
        return Launch(rows_of_tile(2048, block, rows, device), warps=4, per_sm=3, stages=4)
    return Launch(tile, warps=4, per_sm=2, stages=4)


def launch_forward(
    x: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, total and stats (2, rows); without a residual total is an empty tensor."""
    columns = x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x.new_empty(0) if residual is None else torch.empty_like(y, dtype=residual.dtype)
    flat = as_rows(x)
    rows = flat.shape[0]
    stats = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    if y.numel() == 0:
        return y, total, stats
    added = flat if residual is None else as_rows(residual)
    launch = launch or forward_launch(rows, columns, x.device, add=residual is not None)
    weight, bias = weight.contiguous(), bias.contiguous()
    if launch.chunk and residual is None:  # a sum is gone over once
        _forward_in_chunks[(rows,)](
            flat, weight, bias, y, stats, rows, columns, flat.stride(0), eps,
            CHUNK=launch.chunk, VECTOR=16 // x.element_size(), EVEN=columns % launch.chunk == 0,
            num_warps=launch.warps,
        )  # fmt: skip
        return y, total, stats
    _forward[(cdiv(rows, launch.rows),)](
        flat,
        added,
        weight,
        bias,
        bias if shift is None else shift.contiguous(),
        y,
        total,
        stats,
        rows,
        columns,
        flat.stride(0),
        added.stride(0),
        eps,
        ADD=residual is not None,
        SHIFTED=shift is not None,
        ROWS=launch.rows,
        BLOCK=next_power_of_2(columns),
        num_warps=launch.warps,
    )
    return y, total, stats


def launch_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    total: Tensor,
    weight: Tensor,
    stats: Tensor,
    shifted: bool,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of total (in its dtype), and of weight, bias and perhaps shift (2 or 3, columns)."""
    columns, sums = total.shape[-1], 3 if shifted else 2
    dx = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    if dx.numel() == 0:
        return dx, weight.new_zeros(sums, columns)
    both = torch.empty((sums, columns), dtype=weight.dtype, device=weight.device)
    flat, dy = as_rows(total), as_rows(dy)
    added = dy if dtotal is None else as_rows(dtotal)
    rows = flat.shape[0]
    launch = launch or backward_launch(rows, columns, dx.device, shifted)
    programs = grid(rows, launch, dx.device)
    parts = torch.empty((programs, sums * columns), dtype=torch.float32, device=dx.device)
    block = next_power_of_2(columns)
    value_bytes = dy.element_size() + total.element_size() * (1 if dtotal is None else 2)
    chained = can_chain(dx.device)
    whole = {"ROWS": launch.rows, "STAGES": stages(launch, launch.rows * block * value_bytes, dx.device)}
    kernel, tiles = (_backward, whole) if block <= HELD_COLUMNS else (_backward_in_two_reads, {})
    kernel[(programs,)](
        dy,
        added,
        flat,
        weight.contiguous(),
        stats,
        dx,
        parts,
        rows,
        columns,
        dy.stride(0),
        added.stride(0),
        flat.stride(0),
        ADD=dtotal is not None,
        SHIFTED=shifted,
        BLOCK=block,
        CHAINED=chained,
        num_warps=launch.warps,
        **tiles,
    )
    add_parts(parts, both, chained)
    return dx, both


# -- the operators -------------------------------------------------------------------------------------------


def _backward_op(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, stats: Tensor, shifted: bool
) -> tuple[Tensor, Tensor]:
    return launch_backward(dy, dtotal, total, weight, stats, shifted)


def _backward_fake(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, stats: Tensor, shifted: bool
) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(3 if shifted else 2, *weight.shape)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, _, stats = launch_forward(x, None, None, weight, bias, eps)
    return y, stats


def _norm_fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows = x.numel() // max(x.shape[-1], 1)
    return x.new_empty(x.shape), x.new_empty((2, rows), dtype=torch.float32)


def _norm_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _norm_backward(ctx: Any, dy: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None
    x, weight, stats = ctx.saved_tensors
    dx, both = _gradients(dy, None, x, weight, stats, False)
    return dx, both[0], both[1], None


def _add_norm(
    x: Tensor, shift: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return launch_forward(x, shift, residual, weight, bias, eps)


def _add_norm_fake(
    x: Tensor, shift: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    y, stats = _norm_fake(x, weight, bias, eps)
    return y, residual.new_empty(residual.shape), stats


def _add_norm_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.x_dtype, ctx.shifted = inputs[0].dtype, inputs[1] is not None
    ctx.save_for_backward(output[1], inputs[3], output[2])


def _add_norm_backward(
    ctx: Any, dy: Tensor | None, dtotal: Tensor | None, _: Any
) -> tuple[Tensor | None, ...]:
    total, weight, stats = ctx.saved_tensors
    if dy is None:  # only the sum was used
        if dtotal is None:
            return (None,) * 6
        dshift = dtotal.reshape(-1, dtotal.shape[-1]).float().sum(0).to(weight.dtype) if ctx.shifted else None
        return dtotal.to(ctx.x_dtype), dshift, dtotal, None, None, None
    gradient, sums = _gradients(dy, dtotal, total, weight, stats, ctx.shifted)
    dshift = sums[2] if ctx.shifted else None
    return gradient.to(ctx.x_dtype), dshift, gradient, sums[0], sums[1], None


_gradients = Operator("layer_norm_backward", _backward_op, _backward_fake)
_layer_norm = Operator("layer_norm", _norm, _norm_fake, _norm_setup, _norm_backward)
_add_layer_norm = Operator("add_layer_norm", _add_norm, _add_norm_fake, _add_norm_setup, _add_norm_backward)


# -- for users -----------------------------------------------------------------------------------------------


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same in plain PyTorch, in float32 (float64 stays float64), rounded where the kernel rounds."""
    wide_x = x if shift is None else x.to(torch.promote_types(x.dtype, torch.float32)) + shift
    total = x if residual is None else (wide_x + residual).to(residual.dtype)
    wide = total if total.dtype == torch.float64 else total.float()
    centred = wide - wide.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = (centred * rstd * weight.to(wide.dtype) + bias.to(wide.dtype)).to(x.dtype)
    return y if residual is None else (y, total)


def layer_norm(
    x: Float[Tensor, "*leading columns"],
    weight: Float[Tensor, " columns"],
    bias: Float[Tensor, " columns"],
    eps: float = 1e-5,
    residual: Float[Tensor, "*leading columns"] | None = None,
    shift: Float[Tensor, " columns"] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """LayerNorm over the last axis of x, or of x + residual, or of x + shift + residual.

    Returns:
        y; with a residual, (y, the sum). Gradients of both reach x, residual, shift, weight and bias. The
        backward is bitwise repeatable: same inputs, same GPU model, same bits.

    Raises:
        ValueError: weight, bias or shift is not one value for each column, their dtypes differ, residual's
            shape is not x's, or there is a shift without a residual.
        TypeError: a tensor of integers.
    """
    for name, each in (("weight", weight), ("bias", bias), ("shift", shift)):
        if each is None:
            continue
        if x.dim() == 0 or each.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} must have shape {tuple(x.shape[-1:])}, x's last axis, got {tuple(each.shape)}"
            )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}")
    if weight.dtype != bias.dtype:
        raise ValueError(f"weight and bias must have one dtype, got {weight.dtype} and {bias.dtype}")
    if shift is not None and (residual is None or shift.dtype != weight.dtype):
        raise ValueError(f"shift needs a residual, and weight's dtype, {weight.dtype}, got {shift.dtype}")
    check_floating(x=x, weight=weight, bias=bias, residual=residual, shift=shift)
    if not usable(x, weight, bias, residual, shift) or x.shape[-1] > MAX_COLUMNS:
        return reference(x, weight, bias, eps, residual, shift)
    if residual is None:
        return _layer_norm(x, weight, bias, eps)[0]
    y, total, _ = _add_layer_norm(x, shift, residual, weight, bias, eps)
    return y, total


# -- the benchmark -------------------------------------------------------------------------------------------


def _inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    inputs = {
        "x": normal(shape, generator, "rows", "columns"),
        "weight": normal(shape, generator, "columns"),
        "bias": normal(shape, generator, "columns"),
    }
    if shape.sizes.get("residual"):
        inputs["residual"] = normal(shape, generator, "rows", "columns")
    return inputs


def _eager(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    y = torch.nn.functional.layer_norm(total, weight.shape, weight, bias, 1e-5)
    return y if residual is None else (y, total)


def _liger() -> Callable[..., Tensor]:
    function = installed("liger_kernel.ops.layer_norm", "LigerLayerNormFunction")
    return lambda x, weight, bias: function.apply(x, weight, bias, 1e-5)


def _work(shape: Shape) -> dict[str, Work]:
    values, extra = shape["rows"] * shape["columns"], 2 if shape.sizes.get("residual") else 0
    size = shape.dtype.itemsize
    return {
        "forward": Work((2 + extra) * values * size, 8 * values),
        "backward": Work((3 + (1 if extra else 0)) * values * size, 12 * values),
    }


def _shape(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, **more: bool) -> Shape:
    return Shape({"rows": rows, "columns": columns, **more}, dtype)


BENCH = (
    Bench(
        name="layer_norm",
        inputs=_inputs,
        ours=layer_norm,
        reference=reference,
        grads=("x", "weight", "bias"),
        peers={"F.layer_norm": lambda: _eager, "torch.compile": compiled(_eager), "Liger": _liger},
        work=_work,
        shapes=(_shape(32_768, 768), _shape(16_384, 4096)),
        full=(_shape(4096, 1024), _shape(65_536, 1024), _shape(16_384, 8192), _shape(8192, 16_384)),
        tiny=(_shape(5, 131), _shape(3, 64, torch.float32)),
    ),
    Bench(
        name="add_layer_norm",
        inputs=_inputs,
        ours=layer_norm,
        reference=reference,
        grads=("x", "weight", "bias", "residual"),
        peers={"F.layer_norm and +": lambda: _eager, "torch.compile": compiled(_eager)},
        work=_work,
        shapes=(_shape(32_768, 768, residual=True), _shape(16_384, 4096, residual=True)),
        tiny=(_shape(5, 131, residual=True),),
    ),
)
