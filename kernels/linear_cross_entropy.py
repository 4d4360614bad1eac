"""The last linear layer and cross-entropy together: logits of all tokens are never in memory at once.

    logits = hidden weight^T,    loss = cross_entropy(logits, targets)

There are two ways. In both the forward computes the gradients, and the backward multiplies them by the one
that comes in, which rounds 16-bit ones once more unless it is a power of two. The products are PyTorch's,
on Hopper those of the logits ``kernels.cublaslt``'s, by the algorithm that it chooses.

Chunks of tokens. For each: logits by one product, their gradient by the cross-entropy kernel in their place,
then two products for the gradients of hidden and weight.

- A vocabulary of 50,257 keeps products from their fastest kernels, fivefold: so rows of logits are padded to
  128 bytes, and the columns beyond the last multiple of eight go apart.
- The gradient of a 16-bit weight is summed in float32 and rounded once; a sum rounded after each chunk would
  be 1.6 times as far from the truth as PyTorch's. It is kept in blocks of rows, and each is freed when it is
  rounded, so that both forms of the whole are never there together.
- Each chunk reads and writes those sums once more, and small ones take longer: hence ``chunk_rows``, and
  the argument ``chunk`` for who has memory to spare.

Stripes of the vocabulary (``linear_cross_entropy_stripes.py``). The weight's gradient is never summed, but
most logits are computed twice: faster where D is small, as a product then takes less time than the sums.

``chunk=None``: all at once where that takes no more than a stripe may, else what costs less by ``_plan``.
``reduction="none"`` computes all logits again in the backward, when the rows' gradients are known.

FLOPs: 2 N V D for each of three products, in n stripes of 4 - 1/n. Bytes, at least: hidden, weight and both
gradients once; more by 8 V D for each chunk, or 8 N D for each stripe.
Memory: the gradients, one chunk or stripe, and for the sums of 16-bit numbers 2 V D bytes more in chunks, or
2 N D in stripes; against 2 N V elements unfused.
The same bits on every run.
Idea of chunks: Liger Kernel (Hsu et al. 2024, arXiv:2410.10989), section 3.2.
"""

from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kernels import cublaslt
from kernels._runtime import Operator, as_rows, cdiv, check_floating, usable
from kernels.bench.case import Bench, Function, Inputs, Shape, Work, compiled, installed, normal
from kernels.cross_entropy import (
    check_targets,
    count_targets,
    launch_forward,
    launch_gradient,
    reduce_losses,
    reduced,
    take_gradient,
)
from kernels.cross_entropy import reference as cross_entropy_reference
from kernels.linear_cross_entropy_stripes import HAVE_OUT_DTYPE, Stripes, add_product, stripe_width

CHUNK_BYTES, CHUNK_SHARE, MIN_ROWS = 72_000_000, 0.7, 256
PARTS = 4  # of the sums, by rows of the weight
ALIGNED = 8  # columns
LAST_SHARE = 64  # last columns are few if they are at most one in so many
FLOPS_PER_BYTE = {2: 230, 4: 20}  # of products and copies on an H100, by the size of an element


def chunk_rows(N: int, V: int, D: int, itemsize: int) -> int:
    """Rows of a chunk: chunks of about the same size, of CHUNK_BYTES or a CHUNK_SHARE of the weight at most.

    Never less than MIN_ROWS, where there are so many.
    """
    bytes_ = max(CHUNK_BYTES, int(CHUNK_SHARE * V * D * itemsize))
    most = max(bytes_ // (V * itemsize), MIN_ROWS)
    even = cdiv(max(N, 1), cdiv(max(N, 1), most))
    return min(cdiv(even, 64) * 64, most, max(N, 1))


class Plan(NamedTuple):
    """Tokens of a chunk, or columns of a stripe where that is not 0."""

    rows: int
    width: int = 0


def _plan(
    hidden: Tensor, weight: Tensor, chunk: int, of_hidden: bool, of_weight: bool, again: bool = False
) -> Plan:
    """What was asked for, or where ``chunk`` is 0 what costs less, in bytes moved.

    Counted are the sums in float32: in chunks those of the weight, zeroed, read and written by each, rounded
    and copied; in stripes those of hidden. Logits computed twice count as the bytes that could be moved
    meanwhile, and not where they are computed ``again`` anyhow.
    """
    N, (V, D), itemsize = len(hidden), weight.shape, hidden.element_size()
    if chunk:
        return Plan(min(chunk, max(N, 1)))
    width = stripe_width(N, V, D, itemsize)
    if width >= V:
        return Plan(max(N, 1))
    rows = chunk_rows(N, V, D, itemsize)
    in_chunks = V * D * (8 * cdiv(N, rows) + 14) * of_weight
    twice = 0 if again else 2 * N * D * (V - width) // FLOPS_PER_BYTE[itemsize]
    in_stripes = 8 * N * D * cdiv(V, max(width, 1)) * of_hidden + twice
    return Plan(0, width) if width and in_stripes < in_chunks else Plan(rows)


def _each_chunk(hidden: Tensor, weight: Tensor, rows: int, use: Callable[[slice, Tensor], None]) -> None:
    """``use(part, its logits)`` for each chunk of rows, in one buffer, which is free again afterwards."""
    N, V = len(hidden), len(weight)
    per_line = 128 // hidden.element_size()
    # oneDNN with AMX multiplies what lies between rows of 16 bits by 0: no NaN may be there.
    new = hidden.new_zeros if hidden.is_cpu else hidden.new_empty
    buffer = new(rows, cdiv(V, per_line) * per_line)
    whole = V // ALIGNED * ALIGNED
    for start in range(0, N, rows):
        part = slice(start, min(start + rows, N))
        logits = buffer[: part.stop - part.start, :V]
        for columns in (slice(0, whole), slice(whole, V)):
            if columns.start < columns.stop:
                _write_logits(hidden[part], weight[columns], logits[:, columns])
        use(part, logits)


def _write_logits(hidden: Tensor, weight: Tensor, logits: Tensor) -> None:
    """``hidden @ weight.T``; by ``kernels.cublaslt`` where that can."""
    whole = hidden.is_contiguous() and weight.is_contiguous()
    if whole and cublaslt.is_aligned(logits) and cublaslt.fits(hidden, *weight.shape, logits.stride(0)):
        cublaslt.linear(hidden, weight, out=logits)
    else:
        torch.mm(hidden, weight.t(), out=logits)


class _Gradients:
    """Gradients of hidden and weight, grown chunk by chunk; an empty tensor for one that nobody wants.

    Where all rows are one chunk there is nothing to sum, and the product rounds the weight's for itself.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, of_hidden: bool, of_weight: bool, once: bool) -> None:
        self.inputs = hidden, weight
        self.wanted = of_hidden, of_weight
        self.hidden = hidden.new_empty(hidden.shape if of_hidden else 0)
        V, D = weight.shape
        self.whole = V // ALIGNED * ALIGNED
        self.once = once
        self.sums: list[Tensor] = []
        self.parts: list[slice] = []
        if of_weight and once:
            self.parts = [slice(0, self.whole), slice(self.whole, V)]
            self.sums = [weight.new_zeros(V, D) if not len(hidden) else weight.new_empty(V, D)]
        elif of_weight:
            length = max(cdiv(self.whole, PARTS * ALIGNED) * ALIGNED, ALIGNED)
            bounds = [*range(0, self.whole, length), self.whole, V]
            self.parts = [slice(a, b) for a, b in pairwise(bounds) if a < b]
            dtype = torch.float32 if hidden.is_cpu or HAVE_OUT_DTYPE else weight.dtype
            self.sums = [weight.new_zeros(each.stop - each.start, D, dtype=dtype) for each in self.parts]

    def add(self, part: slice, grad: Tensor) -> None:
        """Add the chunk whose gradient of the logits is ``grad``."""
        hidden, weight = self.inputs
        if self.wanted[0]:
            # The few last columns first: what is rounded on the way is then small. Where they are not few,
            # and the product not large, all at once.
            target, whole, V = self.hidden[part], self.whole, len(weight)
            if whole == V or V - whole > V // LAST_SHARE:
                torch.mm(grad, weight, out=target)
            else:
                torch.mm(grad[:, whole:], weight[whole:], out=target)
                target.addmm_(grad[:, :whole], weight[:whole])
        if self.once:
            for columns in self.parts:
                if columns.start < columns.stop:
                    torch.mm(grad[:, columns].t(), hidden[part], out=self.sums[0][columns])
            return
        for columns, total in zip(self.parts, self.sums, strict=True):
            add_product(total, grad[:, columns].t(), hidden[part])

    def of_weight(self) -> Tensor:
        """The gradient of the weight in its own dtype; the sums are gone then."""
        _, weight = self.inputs
        if not self.wanted[1]:
            return weight.new_empty(0)
        if self.once:
            return self.sums.pop()
        rounded = []
        while self.sums:
            rounded.append(self.sums.pop(0).to(weight.dtype))
        return torch.cat(rounded)


def _empty_gradients(
    hidden: Tensor, weight: Tensor, of_hidden: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if of_hidden else 0),
        weight.new_empty(weight.shape if of_weight else 0),
    )


def _plain_arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Neither autograd nor autocast inside: what is given has the dtype to compute in."""

    @wraps(function)
    def plain(*args: Any) -> Any:
        with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False):
            return function(*args)

    return plain


# ---------------------------------------------------------------------------------------------------------
# Operators
# ---------------------------------------------------------------------------------------------------------


@_plain_arithmetic
def _fused_forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    mean: bool,
    z_loss: float,
    chunk: int,
    of_hidden: bool,
    of_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    count = count_targets(targets, ignore_index) if mean else None
    plan = _plan(hidden, weight, chunk, of_hidden, of_weight)
    if plan.width:
        each = hidden.new_ones((), dtype=torch.float32) if count is None else count.reciprocal()
        row_grads = each.expand(len(hidden))
        stripes = Stripes(hidden, weight, targets, plan.width, ignore_index, z_loss)
        losses, stats = stripes.losses(row_grads)
        return reduce_losses(losses, count), *stripes.gradients(stats, row_grads, of_hidden, of_weight, True)
    losses, stats = _rows_fake(hidden, weight, targets, ignore_index, z_loss, chunk)
    gradients = _Gradients(hidden, weight, of_hidden, of_weight, plan.rows >= len(hidden))

    def use(part: slice, logits: Tensor) -> None:
        found = stats[:, part]
        launch_forward(logits, targets[part], logits, losses[part], found, count, ignore_index, z_loss)
        gradients.add(part, logits)

    _each_chunk(hidden, weight, plan.rows, use)
    return reduce_losses(losses, count), gradients.hidden, gradients.of_weight()


def _fused_fake(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    mean: bool,
    z_loss: float,
    chunk: int,
    of_hidden: bool,
    of_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return hidden.new_empty((), dtype=torch.float32), *_empty_gradients(hidden, weight, of_hidden, of_weight)


def _fused_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.wanted = inputs[7:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _fused_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Any, ...]:
    gradients: list[Tensor | None] = [None, None]
    if upstream is not None:
        for place, (saved, wanted) in enumerate(zip(ctx.saved_tensors, ctx.wanted, strict=True)):
            gradients[place] = take_gradient(saved, upstream) if wanted else None
    return (*gradients, *[None] * 7)


@_plain_arithmetic
def _rows_forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, z_loss: float, chunk: int
) -> tuple[Tensor, Tensor]:
    plan = _plan(hidden, weight, chunk, True, True, again=True)
    if plan.width:
        return Stripes(hidden, weight, targets, plan.width, ignore_index, z_loss).losses(None)
    losses, stats = _rows_fake(hidden, weight, targets, ignore_index, z_loss, chunk)

    def use(part: slice, logits: Tensor) -> None:
        launch_forward(logits, targets[part], None, losses[part], stats[:, part], None, ignore_index, z_loss)

    _each_chunk(hidden, weight, plan.rows, use)
    return losses, stats


def _rows_fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, z_loss: float, chunk: int
) -> tuple[Tensor, Tensor]:
    N = hidden.shape[0]
    return hidden.new_empty(N, dtype=torch.float32), hidden.new_empty(2, N, dtype=torch.float32)


def _rows_setup(ctx: Any, inputs: Any, output: Any) -> None:
    hidden, weight, targets, ctx.ignore_index, ctx.z_loss, ctx.chunk = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weight, targets, output[1])


def _rows_backward(ctx: Any, row_grads: Tensor | None, _: Any) -> tuple[Any, ...]:
    if row_grads is None:
        return (None,) * 6
    wanted = tuple(ctx.needs_input_grad[:2])
    found = _gradients(*ctx.saved_tensors, row_grads, ctx.ignore_index, ctx.z_loss, ctx.chunk, *wanted)
    return (*(each if need else None for each, need in zip(found, wanted, strict=True)), *[None] * 4)


@_plain_arithmetic
def _gradients_forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    stats: Tensor,
    row_grads: Tensor,
    ignore_index: int,
    z_loss: float,
    chunk: int,
    of_hidden: bool,
    of_weight: bool,
) -> tuple[Tensor, Tensor]:
    plan = _plan(hidden, weight, chunk, of_hidden, of_weight, again=True)
    if plan.width:
        stripes = Stripes(hidden, weight, targets, plan.width, ignore_index, z_loss)
        return stripes.gradients(stats, row_grads, of_hidden, of_weight, False)
    gradients = _Gradients(hidden, weight, of_hidden, of_weight, plan.rows >= len(hidden))

    def use(part: slice, logits: Tensor) -> None:
        launch_gradient(logits, targets[part], stats[:, part], row_grads[part], logits, ignore_index, z_loss)
        gradients.add(part, logits)

    _each_chunk(hidden, weight, plan.rows, use)
    return gradients.hidden, gradients.of_weight()


def _gradients_fake(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    stats: Tensor,
    row_grads: Tensor,
    ignore_index: int,
    z_loss: float,
    chunk: int,
    of_hidden: bool,
    of_weight: bool,
) -> tuple[Tensor, Tensor]:
    return _empty_gradients(hidden, weight, of_hidden, of_weight)


_fused = Operator("linear_cross_entropy_fused", _fused_forward, _fused_fake, _fused_setup, _fused_backward)
_losses = Operator("linear_cross_entropy_rows", _rows_forward, _rows_fake, _rows_setup, _rows_backward)
_gradients = Operator("linear_cross_entropy_gradients", _gradients_forward, _gradients_fake)


# ---------------------------------------------------------------------------------------------------------
# For users
# ---------------------------------------------------------------------------------------------------------


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
) -> Tensor:
    """The same in plain PyTorch, with all the logits in memory."""
    return cross_entropy_reference(F.linear(hidden, weight), targets, ignore_index, reduction, z_loss)


def linear_cross_entropy(
    hidden: Float[Tensor, "... D"],
    weight: Float[Tensor, "V D"],
    targets: Int[Tensor, "..."],
    ignore_index: int = -100,
    reduction: str = "mean",
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> Float[Tensor, "..."]:
    """Cross-entropy in nats of the logits ``hidden @ weight.T``, which are rounded to the inputs' dtype.

    Args:
        hidden: what the last norm gives; float32, bfloat16 or float16 run on the kernel.
        weight: of the output layer, in the dtype of ``hidden`` (under autocast both are cast).
        targets, ignore_index, reduction, z_loss: as for ``kernels.cross_entropy``.
        chunk: tokens whose logits exist at a time, at least 1; more are faster and take more memory (all at
            once: N V elements). ``None``: little memory, in the way that costs less for these sizes; the
            stripes of the vocabulary are only taken here.

    Returns:
        float32 (float64 for float64 inputs): a scalar, or with "none" one loss per row.

    Raises:
        ValueError: shapes or dtypes that do not fit together, a chunk below 1, and what ``check_targets``
            refuses.
        TypeError: tensors of integers.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"weight must be (V, {hidden.shape[-1]}) for hidden of shape {tuple(hidden.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden and weight must have one dtype, got {hidden.dtype} and {weight.dtype}")
    check_targets(targets, hidden.shape[:-1], weight.shape[0], ignore_index, reduction)
    check_floating(hidden=hidden)
    if not usable(hidden, weight) or not weight.numel() or targets.device != hidden.device:
        return reference(hidden, weight, targets, ignore_index, reduction, z_loss)
    x = as_rows(hidden)
    flat = targets.reshape(-1).contiguous()
    wanted = [torch.is_grad_enabled() and each.requires_grad for each in (hidden, weight)]
    if reduction != "none" and any(wanted):
        return _fused(x, weight, flat, ignore_index, reduction == "mean", z_loss, chunk or 0, *wanted)[0]
    losses = _losses(x, weight, flat, ignore_index, z_loss, chunk or 0)[0]
    return reduced(losses, flat != ignore_index, reduction).reshape(
        targets.shape if reduction == "none" else ()
    )


# ---------------------------------------------------------------------------------------------------------
# Benchmark
# ---------------------------------------------------------------------------------------------------------


def _inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    size, device = (shape["rows"],), generator.device
    return {
        "hidden": normal(shape, generator, "rows", "d_model"),
        "weight": normal(shape, generator, "vocab_size", "d_model", scale=shape["d_model"] ** -0.5),
        "targets": torch.randint(0, shape["vocab_size"], size, generator=generator, device=device),
    }


def _eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets)


def _eager_float32(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


def _liger() -> Function:
    function = installed(
        "liger_kernel.ops.fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction"
    )

    def call(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        done = function.apply(hidden, weight, targets)
        return done[0] if isinstance(done, tuple) else done

    return call


def _work(shape: Shape) -> dict[str, Work]:
    N, V, D = shape["rows"], shape["vocab_size"], shape["d_model"]
    size = shape.dtype.itemsize * D * (N + V)
    return {"forward + backward": Work(2 * size, 6 * N * V * D)}


def _shape(rows: int, vocab_size: int, d_model: int, dtype: torch.dtype = torch.bfloat16) -> Shape:
    return Shape({"rows": rows, "vocab_size": vocab_size, "d_model": d_model}, dtype)


BENCH = Bench(
    name="linear_cross_entropy",
    inputs=_inputs,
    ours=linear_cross_entropy,
    reference=reference,
    grads=("hidden", "weight"),
    phases=("forward + backward",),
    bound="matmul",
    peers={
        "eager, bfloat16": lambda: _eager,
        "eager, float32": lambda: _eager_float32,
        "torch.compile": compiled(_eager_float32),
        "Liger": _liger,
    },
    work=_work,
    shapes=(_shape(8192, 50257, 1024), _shape(8192, 128256, 2048)),
    full=tuple(_shape(8192, 50257, width) for width in (512, 2048, 4096)),
    tiny=(_shape(20, 65, 16, torch.float32), _shape(7, 33, 8)),
)
