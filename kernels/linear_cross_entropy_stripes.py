"""The linear layer and cross-entropy, a stripe of the vocabulary at a time, for all rows.

- Ahead, from the first stripe to the last: logits by one matrix product, and a kernel that carries on the
  largest logit of each row, the sum of its exponentials and the logit of its target. At the last stripe they
  are those of the whole row, and the gradient is written in the logits' place at once.
- Back, from the last to the first: the logits again, their gradient in their place, and two products. That of
  the weight is complete, so that it is rounded once and goes where it belongs; that of hidden is summed in
  float32 over the stripes.
- Stripes are equally wide, a multiple of 128 bytes, which keeps the products on their fastest kernels. The
  last one ends with the vocabulary and begins inside the one before. Ahead it leaves those columns out, and
  the gradient of its logits is 0 there. The zeros that it so writes to the gradient of the weight are
  overwritten by the stripe before, whose turn comes later.

With n stripes, FLOPs: 2 N V D for each of 4 - 1/n products. Bytes: 8 n N D for hidden's sums, and N V logits
written three times and read four times. Memory: the weight's gradient, N D float32, and one stripe.
Online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867.
"""

import torch
from torch import Tensor

from kernels._math import divide
from kernels._runtime import cdiv, next_power_of_2, tl, triton
from kernels.cross_entropy import (
    below,
    edges_of_row,
    in_powers_of_2,
    lane_max_and_sum,
    log_of_total,
    span_of_row,
    write_gradient,
    write_zeros,
)

STRIPE_BYTES, STRIPE_SHARE = 140_000_000, 1.35
LINE_BYTES = 128
BLOCK, WARPS = 4096, 8  # columns per loop trip of a row's program
HAVE_OUT_DTYPE = hasattr(torch.ops.aten.mm, "dtype_out")  # 16-bit factors, float32 product: torch 2.8
ADDS_TO_FLOAT32 = torch.__version__ >= "2.10"  # torch 2.8 and 2.9 add such a product to 16-bit numbers only


def stripe_width(N: int, V: int, D: int, itemsize: int) -> int:
    """Columns of a stripe: stripes of about the same size, of STRIPE_BYTES or a STRIPE_SHARE of the weight.

    V where that holds all of them, and 0 where V columns are less than 16 bytes.
    """
    most = int(max(STRIPE_BYTES, STRIPE_SHARE * V * D * itemsize)) // (max(N, 1) * itemsize)
    if most >= V:
        return V
    line, vec = LINE_BYTES // itemsize, 16 // itemsize
    even = cdiv(V, cdiv(V, max(most, 1)))
    return min(cdiv(even, line) * line, V // vec * vec)


def stripe_starts(V: int, width: int) -> list[int]:
    """First columns of the stripes; the last of these ends with the vocabulary."""
    return [*range(0, V - width, width), V - width]


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _ahead_kernel(
    logits,
    stride,
    targets,
    losses,
    stats,
    stats_stride,
    row_grads,
    row_grads_stride,
    start,
    skip,
    width,
    V,
    ignore_index,
    z_loss,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    GRAD: tl.constexpr,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row of a stripe that begins at column ``start``; its first ``skip`` columns count for nothing.

    Until the LAST stripe ``losses`` holds the logit of the target, or NaN while it has not come; then the
    loss and, with GRAD, the gradient take the places of both.
    """
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row).to(tl.int64)
    if target == ignore_index:
        tl.store(losses + row, 0.0)
        tl.store(stats + row, 0.0)
        tl.store(stats + stats_stride + row, 1.0)
        if GRAD:
            write_zeros(logits, row * stride, width, VEC, BLOCK)
    else:
        first = row * stride + skip
        own = width - skip
        here = target - start - skip
        mine = (here >= 0) & (here < own)
        # Read before anything is written: the gradient may overwrite the logits.
        at_target = tl.load(logits + first + here, mask=mine, other=float("nan")).to(tl.float32)
        begin, n = span_of_row(first, own, VEC)
        m, cut, s = lane_max_and_sum(logits + begin, n, VEC, BLOCK)
        column, exists = edges_of_row(first, begin, n, own, VEC)
        edge = tl.load(logits + first + column, mask=exists, other=float("-inf")).to(tl.float32)
        largest = tl.maximum(tl.max(m, 0), tl.max(edge, 0))
        if not FIRST:
            before = tl.load(stats + row)
            total_before = tl.load(stats + stats_stride + row)
            at_target = tl.where(mine, at_target, tl.load(losses + row))
            largest = tl.maximum(largest, before)
        largest_cut = in_powers_of_2(largest)
        total = tl.sum(s * tl.math.exp2(cut - largest_cut), 0) + tl.sum(below(edge, largest_cut), 0)
        if not FIRST:
            total += total_before * below(before, largest_cut)
        tl.store(stats + row, largest)
        tl.store(stats + stats_stride + row, total)
        if LAST:
            log_total = log_of_total(largest, total)
            lse = largest + log_total
            tl.store(losses + row, log_total + (largest - at_target) + z_loss * lse * lse)
        else:
            tl.store(losses + row, at_target)
        if GRAD:
            scale = tl.load(row_grads + row * row_grads_stride)
            scale = tl.where((target >= 0) & (target < V), scale, float("nan"))
            p_scale = divide(scale * (1.0 + 2.0 * z_loss * lse), total, True)
            write_gradient(logits, first, logits, first, own, here, largest_cut, p_scale, scale, VEC, BLOCK)
            write_zeros(logits, row * stride, skip, VEC, BLOCK)


@triton.jit
def _back_kernel(
    logits,
    stride,
    targets,
    stats,
    stats_stride,
    row_grads,
    row_grads_stride,
    start,
    skip,
    width,
    V,
    ignore_index,
    z_loss,
    VEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of one row of a stripe in the logits' place; 0 in its first ``skip`` columns."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row).to(tl.int64)
    if target == ignore_index:
        write_zeros(logits, row * stride, width, VEC, BLOCK)
    else:
        first = row * stride + skip
        largest = tl.load(stats + row)
        total = tl.load(stats + stats_stride + row)
        lse = largest + log_of_total(largest, total)
        scale = tl.load(row_grads + row * row_grads_stride)
        scale = tl.where((target >= 0) & (target < V), scale, float("nan"))
        p_scale = divide(scale * (1.0 + 2.0 * z_loss * lse), total, True)
        cut = in_powers_of_2(largest)
        here = target - start - skip
        write_gradient(logits, first, logits, first, width - skip, here, cut, p_scale, scale, VEC, BLOCK)
        write_zeros(logits, row * stride, skip, VEC, BLOCK)


# ---------------------------------------------------------------------------------------------------------
# Launching them
# ---------------------------------------------------------------------------------------------------------


def add_product(total: Tensor, a: Tensor, b: Tensor, fresh: bool = False) -> None:
    """total += a @ b, or total = a @ b where it is ``fresh``; also for a float32 total of 16-bit factors."""
    if total.dtype == a.dtype:
        torch.mm(a, b, out=total) if fresh else total.addmm_(a, b)
    elif total.is_cpu:
        add_product(total, a.to(total.dtype), b.to(total.dtype), fresh)
    elif not HAVE_OUT_DTYPE:
        total.copy_(a @ b) if fresh else total.add_(a @ b)
    elif fresh:
        torch.ops.aten.mm.dtype_out(a, b, total.dtype, out=total)
    elif ADDS_TO_FLOAT32:
        torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, out=total)
    else:
        total.add_(torch.ops.aten.mm.dtype(a, b, total.dtype))


class Stripes:
    """The logits of all rows (N, D) by a weight (V, D), in one buffer of N rows and ``width`` columns."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, width: int, ignore_index: int, z_loss: float
    ) -> None:
        self.hidden, self.weight, self.targets = hidden, weight, targets
        self.options = len(weight), ignore_index, z_loss
        self.starts = stripe_starts(len(weight), width)
        self.buffer = hidden.new_empty(len(hidden), width)
        self.vec = 16 // hidden.element_size()

    def losses(self, row_grads: Tensor | None) -> tuple[Tensor, Tensor]:
        """Loss of each row, its maximum and sum (2, N).

        With ``row_grads`` (N,), the gradients that come to the losses, the buffer then holds the gradient of
        the last stripe's logits.
        """
        N, last = len(self.hidden), len(self.starts) - 1
        losses = torch.empty(N, dtype=torch.float32, device=self.hidden.device)
        stats = torch.empty(2, N, dtype=torch.float32, device=self.hidden.device)
        sent = losses if row_grads is None else row_grads
        for place in range(last + 1):
            self._multiply(place)
            _ahead_kernel[(N,)](
                self.buffer, self.buffer.stride(0), self.targets, losses, stats, N, sent, sent.stride(0),
                *self._columns(place), *self.options,
                FIRST=place == 0, LAST=place == last, GRAD=place == last and row_grads is not None,
                **self._launch(),
            )  # fmt: skip
        return losses, stats

    def gradients(
        self, stats: Tensor, row_grads: Tensor, of_hidden: bool, of_weight: bool, last_is_there: bool
    ) -> tuple[Tensor, Tensor]:
        """Of hidden and weight, an empty tensor for one that nobody wants; the buffer is gone then.

        ``last_is_there``: the buffer holds the gradient of the last stripe's logits, as ``losses`` left it.
        """
        N, D = self.hidden.shape
        grad = self.weight.new_empty(self.weight.shape if of_weight else 0)
        sums = torch.empty(N if of_hidden else 0, D, dtype=torch.float32, device=self.hidden.device)
        last = len(self.starts) - 1
        for place in range(last, -1, -1):
            if place < last or not last_is_there:
                self._multiply(place)
                _back_kernel[(N,)](
                    self.buffer, self.buffer.stride(0), self.targets, stats, stats.stride(0),
                    row_grads, row_grads.stride(0), *self._columns(place), *self.options,
                    **self._launch(),
                )  # fmt: skip
            rows = self._rows(place)
            if of_weight:
                torch.mm(self.buffer.t(), self.hidden, out=grad[rows])
            if of_hidden:
                add_product(sums, self.buffer, self.weight[rows], fresh=place == last)
        del self.buffer
        return sums.to(self.hidden.dtype) if of_hidden else self.hidden.new_empty(0), grad

    def _rows(self, place: int) -> slice:
        """Rows of the weight, columns of the logits."""
        return slice(self.starts[place], self.starts[place] + self.buffer.shape[1])

    def _columns(self, place: int) -> tuple[int, int, int]:
        """Where a stripe begins, how many of its columns the one before has, and its width."""
        start, width = self.starts[place], self.buffer.shape[1]
        return start, place * width - start, width

    def _multiply(self, place: int) -> None:
        torch.mm(self.hidden, self.weight[self._rows(place)].t(), out=self.buffer)

    def _launch(self) -> dict[str, int]:
        if self.buffer.is_cpu:  # one trip: the interpreter's cost follows their number
            return {"VEC": self.vec, "BLOCK": next_power_of_2(self.buffer.shape[1]), "num_warps": 1}
        return {"VEC": self.vec, "BLOCK": BLOCK, "num_warps": WARPS}
