"""Cross-entropy of logits: the loss and its gradient in one pass over a matrix of N rows and V columns.

    loss_t = lse_t - x_t[target_t] + z_loss * lse_t^2,    lse_t = log sum_v exp(x_tv)
    dloss_t / dx_tv = (1 + 2 z_loss lse_t) exp(x_tv - lse_t) - [v = target_t]

- The gradient needs nothing but the logits, so the forward writes it: one program per row finds the largest
  logit and the sum of exponentials together (online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867),
  then reads the row once more, from the L2 cache, and writes the gradient. Log-probabilities never exist.
- Each thread keeps a maximum and a sum of its own, so there is no barrier inside the loop.
- A vocabulary of 50,257 makes rows that start at odd addresses, where compilers fall back to loads of two
  bytes. Here the few elements before the first and after the last multiple of 16 bytes are handled apart,
  and everything between moves 16 bytes at a time.
- The backward multiplies by the incoming gradient only where that is not 1, which the GPU finds out itself.
- ``reduction="none"``, and everything under ``torch.compile``, keeps maximum and sum of each row instead and
  computes the gradient in the backward.

Bytes, at least: N V read, and N V written for the gradient. FLOPs: about 8 N V, never the limit.
Memory: the gradient and 8 bytes a row; with ``inplace`` 8 bytes a row. The same bits on every run.
z-loss: PaLM (Chowdhery et al. 2022, arXiv:2204.02311), section 5.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kernels._math import divide
from kernels._runtime import (
    Operator,
    as_rows,
    cdiv,
    check_floating,
    l2_bytes,
    next_power_of_2,
    sm_count,
    tl,
    triton,
    usable,
)
from kernels.bench.case import Bench, Function, Inputs, Shape, Work, compiled, installed, normal

REDUCTIONS = ("mean", "sum", "none")
WARPS_OF_SM = 64  # that can be under way
# Values that one program adds up, and its warps. One alone would take 140 microseconds for 262,144 rows.
SUMMED, SUMMED_WARPS = 8192, 8


class Launch(NamedTuple):
    """How one kernel is cut: elements moved at once by a thread, elements per loop trip, and warps."""

    vec: int
    block: int
    warps: int


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def span_of_row(first, V, VEC: tl.constexpr):
    """Of the row [first, first + V): where its first whole vector starts, and the length of all of them."""
    start = tl.multiple_of((first + VEC - 1) // VEC * VEC, VEC)
    end = (first + V) // VEC * VEC
    return start, tl.multiple_of(tl.maximum(end - start, 0).to(tl.int32), VEC)


@triton.jit
def edges_of_row(first, start, n, V, VEC: tl.constexpr):
    """Columns of what lies before and after the whole vectors, and which of them exist (2 VEC of them)."""
    head = (start - first).to(tl.int32)
    lane = tl.arange(0, 2 * VEC)
    before = lane < VEC
    column = tl.where(before, lane, head + n + lane - VEC)
    return column, (column < tl.where(before, head, V)) & (column < V)


@triton.jit
def in_powers_of_2(x):
    """log2(e) x, rounded. As a plain product the compiler would fuse it with the sum that it goes into.

    There it would not be rounded, as it is elsewhere, and what should cancel would not.
    """
    return tl.fma(x, 1.4426950408889634, 0.0)


@triton.jit
def below(x, cut):
    """2^(log2(e) x - cut), one rounding before the exponential."""
    return tl.math.exp2(tl.fma(x, 1.4426950408889634, -cut))


@triton.jit
def lane_max_and_sum(x, n, VEC: tl.constexpr, BLOCK: tl.constexpr):
    """Online softmax of n elements from the aligned pointer x, lane by lane: (BLOCK // VEC,) of each result.

    m is the largest element so far, cut is log2(e) m as rounded, and s the sum of 2^(log2(e) x - cut).
    """
    lane = tl.arange(0, BLOCK // VEC)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    # Finite, so that elements of -inf count as nothing, and never as inf - inf.
    m = tl.full((BLOCK // VEC,), -1e38, tl.float32)
    s = tl.zeros((BLOCK // VEC,), tl.float32)
    for at in range(0, n, BLOCK):
        inside = at + lane < n
        values = tl.load(x + at + lane, mask=inside, other=float("-inf"), eviction_policy="evict_last")
        values = values.to(tl.float32)
        old, m = m, tl.maximum(m, tl.max(values, 1))
        cut = in_powers_of_2(m)
        # From old again, not kept: the registers are needed.
        s = s * tl.math.exp2(in_powers_of_2(old) - cut) + tl.sum(below(values, cut[:, None]), 1)
    return m, in_powers_of_2(m), s


@triton.jit
def log_of_total(largest, total):
    """log(total) + largest, in two parts: what the first rounding of log2(e) largest lost is in the first."""
    lost = tl.fma(largest, 1.4426950408889634, -in_powers_of_2(largest))
    return (tl.math.log2(total) - lost) * 0.6931471805599453


@triton.jit
def write_gradient(
    x, first, grad, grad_first, V, target, cut, p_scale, scale, VEC: tl.constexpr, BLOCK: tl.constexpr
):
    """One row of p_scale * 2^(log2(e) x - cut) - scale * [v = target]; grad may be x itself."""
    start, n = span_of_row(first, V, VEC)
    column, exists = edges_of_row(first, start, n, V, VEC)
    edge = tl.load(x + first + column, mask=exists, other=0.0).to(tl.float32)
    edge = below(edge, cut) * p_scale - tl.where(column == target, scale, 0.0)
    tl.store(grad + grad_first + column, edge.to(grad.dtype.element_ty), mask=exists)

    # The rows of both start equally far from a multiple of VEC.
    grad_start = tl.multiple_of((grad_first + VEC - 1) // VEC * VEC, VEC)
    target -= start - first
    lane = tl.arange(0, BLOCK // VEC)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    for at in range(0, n, BLOCK):
        inside = at + lane < n
        values = tl.load(x + start + at + lane, mask=inside, other=0.0, eviction_policy="evict_first")
        p = below(values.to(tl.float32), cut) * p_scale
        p = tl.where(at + lane == target, p - scale, p)
        tl.store(grad + grad_start + at + lane, p.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def write_zeros(grad, first, V, VEC: tl.constexpr, BLOCK: tl.constexpr):
    """One row of zeros."""
    start, n = span_of_row(first, V, VEC)
    column, exists = edges_of_row(first, start, n, V, VEC)
    lane = tl.arange(0, BLOCK // VEC)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    tl.store(grad + first + column, tl.zeros((2 * VEC,), grad.dtype.element_ty), mask=exists)
    for at in range(0, n, BLOCK):
        zeros = tl.zeros((BLOCK // VEC, VEC), grad.dtype.element_ty)
        tl.store(grad + start + at + lane, zeros, mask=at + lane < n)


@triton.jit
def _forward_kernel(
    logits,
    stride,
    targets,
    grad,
    grad_stride,
    losses,
    stats,
    stats_stride,
    count,
    V,
    ignore_index,
    z_loss,
    GRAD: tl.constexpr,
    MEAN: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss of one row, its maximum and sum; with GRAD also its gradient, divided by the count where MEAN."""
    row = tl.program_id(0).to(tl.int64)
    first = row * stride
    target = tl.load(targets + row).to(tl.int64)
    if target == ignore_index:
        tl.store(losses + row, 0.0)
        tl.store(stats + row, 0.0)
        tl.store(stats + stats_stride + row, 1.0)
        if GRAD:
            write_zeros(grad, row * grad_stride, V, VEC, BLOCK)
    else:
        valid = (target >= 0) & (target < V)
        # Read before anything is written: the gradient may overwrite the logits.
        at_target = tl.load(logits + first + target, mask=valid, other=float("nan")).to(tl.float32)
        start, n = span_of_row(first, V, VEC)
        m, cut, s = lane_max_and_sum(logits + start, n, VEC, BLOCK)
        column, exists = edges_of_row(first, start, n, V, VEC)
        edge = tl.load(logits + first + column, mask=exists, other=float("-inf")).to(tl.float32)
        largest = tl.maximum(tl.max(m, 0), tl.max(edge, 0))
        largest_cut = in_powers_of_2(largest)
        total = tl.sum(s * tl.math.exp2(cut - largest_cut), 0) + tl.sum(below(edge, largest_cut), 0)

        log_total = log_of_total(largest, total)
        lse = largest + log_total
        tl.store(losses + row, log_total + (largest - at_target) + z_loss * lse * lse)
        tl.store(stats + row, largest)
        tl.store(stats + stats_stride + row, total)
        if GRAD:
            scale = tl.where(valid, 1.0, float("nan"))
            if MEAN:
                scale = divide(scale, tl.load(count), True)
            p_scale = divide(scale * (1.0 + 2.0 * z_loss * lse), total, True)
            write_gradient(
                logits, first, grad, row * grad_stride, V, target, largest_cut, p_scale, scale, VEC, BLOCK
            )


@triton.jit
def _gradient_kernel(
    logits,
    stride,
    targets,
    stats,
    stats_stride,
    row_grads,
    row_grads_stride,
    grad,
    grad_stride,
    V,
    ignore_index,
    z_loss,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of one row from its maximum and sum and from the gradient that came to its loss."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row).to(tl.int64)
    if target == ignore_index:
        write_zeros(grad, row * grad_stride, V, VEC, BLOCK)
    else:
        largest = tl.load(stats + row)
        total = tl.load(stats + stats_stride + row)
        lse = largest + log_of_total(largest, total)
        scale = tl.load(row_grads + row * row_grads_stride).to(tl.float32)
        scale = tl.where((target >= 0) & (target < V), scale, float("nan"))
        p_scale = divide(scale * (1.0 + 2.0 * z_loss * lse), total, True)
        cut = in_powers_of_2(largest)
        write_gradient(
            logits, row * stride, grad, row * grad_stride, V, target, cut, p_scale, scale, VEC, BLOCK
        )


@triton.jit
def _count_kernel(targets, N, ignore_index, counts, BLOCK: tl.constexpr):
    """How many targets of each block are not ignored, as float32."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(targets + at, mask=at < N, other=ignore_index)
    tl.store(counts + tl.program_id(0), tl.sum((target != ignore_index).to(tl.int32), 0).to(tl.float32))


@triton.jit
def _total_kernel(values, N, count, totals, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of each block of values, over the count where MEAN."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(values + at, mask=at < N, other=0.0), 0)
    if MEAN:
        total = divide(total, tl.load(count), True)
    tl.store(totals + tl.program_id(0), total)


@triton.jit
def _scale_kernel(x, stride, rows, columns, factor, BLOCK: tl.constexpr):
    """x *= factor, or nothing at all where the factor is 1."""
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        lane = tl.arange(0, BLOCK)
        for row in range(tl.program_id(0), rows, tl.num_programs(0)):
            start = x + tl.cast(row, tl.int64) * stride
            for at in range(0, columns, BLOCK):
                inside = at + lane < columns
                values = tl.load(start + at + lane, mask=inside, other=0.0).to(tl.float32)
                tl.store(start + at + lane, (values * by).to(x.dtype.element_ty), mask=inside)


# ---------------------------------------------------------------------------------------------------------
# Launching them
# ---------------------------------------------------------------------------------------------------------


def _launch(logits: Tensor, grad: Tensor | None) -> Launch:
    """Vectors of 16 bytes where rows of logits and gradient are equally far from a multiple of them."""
    vec = 16 // logits.element_size()
    both = [logits] if grad is None else [logits, grad]
    equally_far = grad is None or (logits.stride(0) - grad.stride(0)) % vec == 0
    if any(each.data_ptr() % 16 for each in both) or not equally_far:
        vec = 1
    V = logits.shape[1]
    if not logits.is_cuda:
        return Launch(vec, min(next_power_of_2(max(V, 2 * vec)), 65536), 1)
    warps = _warps(V, logits)
    block = 16_384 if warps == 32 else min(max(512 * warps, 1024), 4096)
    return Launch(vec, min(max(next_power_of_2(V), 32 * vec), block), warps)


def _warps(V: int, logits: Tensor) -> int:
    """As few on a row as there can be, so that many are under way, while those fit into the cache."""
    under_way = WARPS_OF_SM * sm_count(logits.device) * V * logits.element_size()  # at one warp a row
    needed = cdiv(under_way, max(l2_bytes(logits.device) * 7 // 10, 1))
    return min(max(next_power_of_2(needed), min(next_power_of_2(V) // 1024, 4)), 32)


def _empty_results(logits: Tensor) -> tuple[Tensor, Tensor]:
    N = logits.shape[0]
    return logits.new_empty(N, dtype=torch.float32), logits.new_empty(2, N, dtype=torch.float32)


def gradient_like(logits: Tensor) -> Tensor:
    """An empty gradient whose rows are as far from multiples of 16 bytes as those of the logits (N, V)."""
    N, V = logits.shape
    if logits.is_contiguous():
        return torch.empty_like(logits)
    vec = 16 // logits.element_size()
    return logits.new_empty(N, V + (logits.stride(0) - V) % vec)[:, :V]


def launch_forward(
    logits: Tensor,
    targets: Tensor,
    grad: Tensor | None,
    losses: Tensor,
    stats: Tensor,
    count: Tensor | None,
    ignore_index: int,
    z_loss: float,
) -> None:
    """Fill losses (N,), stats (2, N) and, where given, grad (N, V), which may be the logits themselves.

    ``stats`` is what ``launch_gradient`` needs: the largest logit of each row, and the sum of its
    exponentials below that one.

    With a count (a float32 on the device) the gradient is divided by it, and is that of the mean.
    """
    N, V = logits.shape
    if N == 0:
        return
    cut = _launch(logits, grad)
    written = logits if grad is None else grad
    _forward_kernel[(N,)](
        logits, logits.stride(0), targets, written, written.stride(0), losses, stats, stats.stride(0),
        losses if count is None else count, V, ignore_index, z_loss,
        GRAD=grad is not None, MEAN=count is not None, VEC=cut.vec, BLOCK=cut.block, num_warps=cut.warps,
    )  # fmt: skip


def launch_gradient(
    logits: Tensor,
    targets: Tensor,
    stats: Tensor,
    row_grads: Tensor,
    grad: Tensor,
    ignore_index: int,
    z_loss: float,
) -> None:
    """Fill grad (N, V), which may be the logits themselves, from stats (2, N) and row_grads (N,)."""
    N, V = logits.shape
    if N == 0:
        return
    cut = _launch(logits, grad)
    _gradient_kernel[(N,)](
        logits, logits.stride(0), targets, stats, stats.stride(0), row_grads, row_grads.stride(0),
        grad, grad.stride(0), V, ignore_index, z_loss, VEC=cut.vec, BLOCK=cut.block, num_warps=cut.warps,
    )  # fmt: skip


def count_targets(targets: Tensor, ignore_index: int) -> Tensor:
    """How many of the targets (N,) are not ignored, a float32 on their device."""
    N = len(targets)
    counts = torch.empty(max(cdiv(N, SUMMED), 1), dtype=torch.float32, device=targets.device)
    _count_kernel[(len(counts),)](targets, N, ignore_index, counts, BLOCK=SUMMED, num_warps=SUMMED_WARPS)
    return counts[0] if len(counts) == 1 else reduce_losses(counts, None)


def reduce_losses(losses: Tensor, count: Tensor | None) -> Tensor:
    """Sum of the losses (N,), over the count where there is one, a float32; always in the same order."""
    N = len(losses)
    totals = torch.empty(max(cdiv(N, SUMMED), 1), dtype=torch.float32, device=losses.device)
    mean = count is not None and len(totals) == 1
    _total_kernel[(len(totals),)](
        losses, N, count if mean else losses, totals, MEAN=mean, BLOCK=SUMMED, num_warps=SUMMED_WARPS
    )
    return totals[0] if len(totals) == 1 else reduce_losses(totals, count)


def scale_in_place(x: Tensor, factor: Tensor) -> None:
    """x (rows, columns) times a number that is on the device, where it is not 1."""
    if x.numel() == 0:
        return
    rows, columns = x.shape
    grid = (min(rows, 16 * sm_count(x.device)),)
    block = min(next_power_of_2(columns), 4096)
    _scale_kernel[grid](x, x.stride(0), rows, columns, factor, BLOCK=block, num_warps=4)


def take_gradient(gradient: Tensor, upstream: Tensor) -> Tensor:
    """A saved gradient times the one that came in; in its own memory unless the graph will be used again."""
    traced = type(upstream) is not Tensor  # a compiled backward is being made
    if traced or _keeps_graph():
        return (gradient.float() * upstream.float()).to(gradient.dtype)
    scale_in_place(gradient if gradient.dim() == 2 else gradient.reshape(1, -1), upstream)
    return gradient


def _keeps_graph() -> bool:
    """Whether ``backward`` runs with ``retain_graph=True``, so that saved tensors must stay as they are."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return bool(asked()) if asked else True


# ---------------------------------------------------------------------------------------------------------
# Operators
# ---------------------------------------------------------------------------------------------------------


def _fused_forward(
    logits: Tensor, targets: Tensor, ignore_index: int, mean: bool, z_loss: float
) -> tuple[Tensor, Tensor]:
    return _loss_and_gradient(logits, targets, gradient_like(logits), ignore_index, mean, z_loss)


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, grad: Tensor, ignore_index: int, mean: bool, z_loss: float
) -> tuple[Tensor, Tensor]:
    losses, stats = _empty_results(logits)
    count = count_targets(targets, ignore_index) if mean else None
    launch_forward(logits, targets, grad, losses, stats, count, ignore_index, z_loss)
    return reduce_losses(losses, count), grad


def _fused_fake(
    logits: Tensor, targets: Tensor, ignore_index: int, mean: bool, z_loss: float
) -> tuple[Tensor, Tensor]:
    return logits.new_empty((), dtype=torch.float32), gradient_like(logits)


def _fused_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or autograd would make zeros as large as the logits
    ctx.save_for_backward(output[1])


def _fused_backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Any, ...]:
    (gradient,) = ctx.saved_tensors
    return None if upstream is None else take_gradient(gradient, upstream), None, None, None, None


_fused = Operator("cross_entropy_fused", _fused_forward, _fused_fake, _fused_setup, _fused_backward)


class _InPlace(torch.autograd.Function):
    """As ``_fused``, with the gradient in the storage of the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, ignore_index: int, mean: bool, z_loss: float
    ) -> Tensor:
        loss, ctx.gradient = _loss_and_gradient(logits, targets, logits.detach(), ignore_index, mean, z_loss)
        torch.autograd.graph.increment_version(logits)  # whoever saved the logits for a backward will be told
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        gradient = take_gradient(ctx.gradient, upstream)
        if not _keeps_graph():
            ctx.gradient = None
        return gradient, None, None, None, None


def _rows_forward(logits: Tensor, targets: Tensor, ignore_index: int, z_loss: float) -> tuple[Tensor, Tensor]:
    losses, stats = _empty_results(logits)
    launch_forward(logits, targets, None, losses, stats, None, ignore_index, z_loss)
    return losses, stats


def _rows_fake(logits: Tensor, targets: Tensor, ignore_index: int, z_loss: float) -> tuple[Tensor, Tensor]:
    return _empty_results(logits)


def _rows_setup(ctx: Any, inputs: Any, output: Any) -> None:
    logits, targets, ctx.ignore_index, ctx.z_loss = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, output[1])


def _rows_backward(ctx: Any, row_grads: Tensor | None, _: Any) -> tuple[Any, ...]:
    if row_grads is None:
        return None, None, None, None
    logits, targets, stats = ctx.saved_tensors
    return _gradient(logits, targets, stats, row_grads, ctx.ignore_index, ctx.z_loss), None, None, None


def _gradient_forward(
    logits: Tensor, targets: Tensor, stats: Tensor, row_grads: Tensor, ignore_index: int, z_loss: float
) -> Tensor:
    grad = gradient_like(logits)
    launch_gradient(logits, targets, stats, row_grads, grad, ignore_index, z_loss)
    return grad


def _gradient_fake(
    logits: Tensor, targets: Tensor, stats: Tensor, row_grads: Tensor, ignore_index: int, z_loss: float
) -> Tensor:
    return gradient_like(logits)


_gradient = Operator("cross_entropy_gradient", _gradient_forward, _gradient_fake)
_rows = Operator("cross_entropy_rows", _rows_forward, _rows_fake, _rows_setup, _rows_backward)


# ---------------------------------------------------------------------------------------------------------
# For users
# ---------------------------------------------------------------------------------------------------------


def check_targets(targets: Tensor, rows: Any, V: int, ignore_index: int, reduction: str) -> None:
    """Refuse what cannot be a loss's targets; their values only on the CPU, where looking costs no wait.

    Raises:
        ValueError: another shape than the rows', or an unknown reduction.
        TypeError: targets that are not integers.
        IndexError: a target that is neither ignored nor in [0, V).
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if targets.shape != rows:
        raise ValueError(f"targets must have the shape {tuple(rows)} of the rows, got {tuple(targets.shape)}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        bad = targets[(targets != ignore_index) & ((targets < 0) | (targets >= V))]
        if bad.numel():
            raise IndexError(
                f"targets must be from 0 to {V - 1} or ignore_index ({ignore_index}), got {bad[0].item()}"
            )


def reference(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
) -> Tensor:
    """The same in plain PyTorch, in float32 or better."""
    V = logits.shape[-1]
    x = logits.reshape(-1, V)
    x = x if x.dtype == torch.float64 else x.float()
    losses = F.cross_entropy(x, targets.reshape(-1).long(), ignore_index=ignore_index, reduction="none")
    kept = targets.reshape(-1) != ignore_index
    if z_loss:
        losses = losses + torch.where(kept, z_loss * x.logsumexp(-1) ** 2, 0.0)
    return reduced(losses, kept, reduction).reshape(targets.shape if reduction == "none" else ())


def reduced(losses: Tensor, kept: Tensor, reduction: str) -> Tensor:
    """Losses (N,), their sum, or their mean over those kept."""
    if reduction == "none":
        return losses
    return losses.sum() / kept.sum() if reduction == "mean" else losses.sum()


def cross_entropy(
    logits: Float[Tensor, "... V"],
    targets: Int[Tensor, "..."],
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
    inplace: bool = False,
) -> Float[Tensor, "..."]:
    """Cross-entropy in nats, as ``F.cross_entropy`` of the logits in float32.

    Args:
        logits: float32, bfloat16 or float16; rows may be strided. Other dtypes are computed in PyTorch.
        targets: integers, the class of each row, or ``ignore_index``: such rows count for nothing.
        reduction: "mean" over the rows not ignored (NaN where all are, as in PyTorch), "sum" or "none".
        z_loss: weight of the squared logsumexp, which keeps it near 0.
        inplace: the gradient overwrites the logits, which nobody may read afterwards; autograd notices an
            operation that needs them. Without effect where no gradient is wanted, with ``reduction="none"``,
            and under ``torch.compile``.

    Returns:
        float32 (float64 for float64 logits): a scalar, or with "none" one loss per row.

    Raises:
        ValueError, TypeError, IndexError: see ``check_targets``; TypeError also for logits of integers. On a
            GPU a target that is out of range is not looked for, since that would wait for the GPU: loss and
            gradient of its row are NaN.
    """
    check_targets(targets, logits.shape[:-1], logits.shape[-1], ignore_index, reduction)
    check_floating(logits=logits)
    if not usable(logits) or logits.shape[-1] == 0 or targets.device != logits.device:
        return reference(logits, targets, ignore_index, reduction, z_loss)
    x = as_rows(logits)
    flat = targets.reshape(-1).contiguous()
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    if reduction != "none" and wants_gradient and not torch.compiler.is_compiling():
        if inplace:
            return _InPlace.apply(x, flat, ignore_index, reduction == "mean", z_loss)
        return _fused(x, flat, ignore_index, reduction == "mean", z_loss)[0]
    losses = _rows(x, flat, ignore_index, z_loss)[0]
    return reduced(losses, flat != ignore_index, reduction).reshape(
        targets.shape if reduction == "none" else ()
    )


# ---------------------------------------------------------------------------------------------------------
# Benchmark
# ---------------------------------------------------------------------------------------------------------


def _inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    size, device = (shape["rows"],), generator.device
    return {
        "logits": normal(shape, generator, "rows", "vocab_size", scale=2.0),
        "targets": torch.randint(0, shape["vocab_size"], size, generator=generator, device=device),
    }


def _eager(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets)


def _eager_float32(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets)


def _liger() -> Function:
    function = installed("liger_kernel.ops.cross_entropy", "LigerCrossEntropyFunction")

    def call(logits: Tensor, targets: Tensor) -> Tensor:
        # It writes the gradient over its input, so it gets a tensor that is not a leaf.
        done = function.apply(logits.view_as(logits), targets, None, -100, 0.0, 0.0, "mean", None, False)
        return done[0] if isinstance(done, tuple) else done

    return call


def _work(shape: Shape) -> dict[str, Work]:
    matrix = shape["rows"] * shape["vocab_size"]
    size = matrix * shape.dtype.itemsize
    return {"forward": Work(size, 4 * matrix), "forward + backward": Work(2 * size, 8 * matrix)}


def _shape(rows: int, vocab_size: int, dtype: torch.dtype = torch.bfloat16) -> Shape:
    return Shape({"rows": rows, "vocab_size": vocab_size}, dtype)


BENCH = Bench(
    name="cross_entropy",
    inputs=_inputs,
    ours=cross_entropy,
    reference=reference,
    grads=("logits",),
    phases=("forward + backward",),
    peers={
        "eager, bfloat16": lambda: _eager,
        "eager, float32": lambda: _eager_float32,
        "torch.compile": compiled(_eager_float32),
        "Liger": _liger,
    },
    work=_work,
    shapes=(_shape(8192, 50257), _shape(8192, 32000), _shape(4096, 151936)),
    full=tuple(_shape(2**28 // size, size) for size in (1024, 4096, 16384, 65536, 262144)),
    tiny=(_shape(5, 257), _shape(3, 64, torch.float32)),
)
