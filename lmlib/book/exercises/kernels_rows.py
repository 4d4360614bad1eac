"""Exercises on kernels that work row by row, in Triton: softmax, and RMSNorm forward and backward."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels._runtime import tl, triton
from lmlib.book.exercises.kernels_checks import (
    DEVICE,
    GPU,
    Inputs,
    bytes_of,
    compared,
    draw,
    fast,
    in_one_pass,
    slip,
)
from lmlib.book.exercises.machinery import Case, Exercise, Wrong

BF16 = torch.bfloat16
INF = float("inf")


def _sliced(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """A slice of a wider tensor: its rows do not lie end to end."""
    return draw(rows, columns + 7, seed=seed, dtype=dtype)[:, 3 : columns + 3]


# ---- kernels/softmax


@triton.jit
def softmax_kernel(X, Y, columns, x_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(X + row * x_stride + column, mask=inside, other=float("-inf")).to(tl.float32)
    power = tl.exp(x - tl.max(x, 0))
    y = power / tl.sum(power, 0)
    tl.store(Y + row * columns + column, y.to(Y.dtype.element_ty), mask=inside)


def softmax(x: Tensor) -> Tensor:
    rows, columns = x.shape
    y = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    softmax_kernel[(rows,)](x, y, columns, x.stride(0), BLOCK=triton.next_power_of_2(columns))
    return y


def _softmax_of_torch(x: Tensor) -> Tensor:
    return torch.softmax(x, 1)


def _softmax_slip(name: str, old: str, new: str) -> Any:
    return slip(name, old, new, softmax, softmax_kernel)


def _softmax_case(name: str, make: Any, message: str, call: str) -> Case:
    return compared(
        name,
        make,
        message,
        call=call,
        results=("y",),
        reference=_softmax_of_torch,
        peer=_softmax_of_torch,
    )


def _softmax_bounds(x: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    least = bytes_of(x)
    return (least, least), (least, least)


def _masked_scores() -> Inputs:
    x = draw(6, 100, scale=3.0)
    x[:, 40:] = -INF
    return (x,)


SOFTMAX = Exercise(
    name="kernels/softmax",
    title="Softmax, a row in registers",
    task="""
Write `softmax(x)` in Triton: the softmax of each row of `x` (R, D), with D of any size up to 16,384. The
result is contiguous and has the dtype of `x`. Read each number once and write each once; compute in float32.

Rows may be slices of wider ones: then row r starts `x.stride(0) * r` numbers after row 0. The last axis is
always contiguous.
""",
    difficulty=2,
    minutes=25,
    starter="""
import torch
from kernels._runtime import tl, triton
from torch import Tensor


@triton.jit
def softmax_kernel(X, Y, columns, x_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)


def softmax(x: Tensor) -> Tensor:
    raise NotImplementedError
""",
    hints=(
        "One program for each row. `tl.arange(0, BLOCK)` needs a power of two, so take the next one above D, "
        "`triton.next_power_of_2(D)`, and mask what lies beyond the row.",
        "`tl.load(..., mask=inside, other=...)` fills the rest of the block. Which number adds nothing to "
        "the sum of exponentials, and is never the maximum?",
        'Load with `other=float("-inf")` and `.to(tl.float32)`, subtract `tl.max(x, 0)`, take `tl.exp`, '
        "divide by `tl.sum(power, 0)`, and store with `.to(Y.dtype.element_ty)`.",
    ),
    solution=softmax,
    parts=(softmax_kernel,),
    in_page=False,
    remark="""
A program keeps its row in registers between reading and writing. That is all that fusion is. Beyond some
16,384 columns a row no longer fits, and `kernels/softmax.py` goes over it in blocks, with a running maximum.
""",
    cases=(
        Case(
            "two rows of two",
            lambda: (torch.tensor([[0.0, 0.0], [1.0986123, 0.0]], device=DEVICE),),
            [[0.5, 0.5], [0.75, 0.25]],
            "Exponentials over their sum, each row for itself.",
            then=lambda y: y.tolist(),
            call="softmax(torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]))",
            seconds=60.0,
        ),
        _softmax_case(
            "an odd number of columns",
            lambda: (draw(5, 131) - 4.0,),
            "What lies beyond the row counts as -inf: zeros there would join the maximum and the sum.",
            "softmax(x)  # x (5, 131), around -4",
        ),
        _softmax_case(
            "one row, one column",
            lambda: (draw(1, 1),),
            "A block of one number is a block.",
            "softmax(x)  # x (1, 1)",
        ),
        _softmax_case(
            "large scores",
            lambda: (1000.0 + draw(3, 64, scale=30.0),),
            "exp(1000) overflows: subtract the row's maximum first.",
            "softmax(x)  # x (3, 64), around 1,000",
        ),
        _softmax_case(
            "masked scores",
            _masked_scores,
            "A score of -inf gets the weight 0.",
            "softmax(x)  # x (6, 100), from column 40 on -inf",
        ),
        _softmax_case(
            "a slice of a wider tensor",
            lambda: (_sliced(7, 50),),
            "Rows of a slice lie x.stride(0) apart, not D; the result's lie D apart.",
            "softmax(x)  # x = wide[:, 3:53]",
        ),
        _softmax_case(
            "bfloat16",
            lambda: (draw(9, 300, dtype=BF16, scale=3.0),),
            "Widen to float32 after loading, narrow when storing; the result has x's dtype.",
            "softmax(x)  # x (9, 300), bfloat16",
        ),
        in_one_pass(
            "bytes moved",
            lambda: (draw(8, 200),),
            "Each number is read once and written once, by a Triton kernel: keep the row between the steps.",
            call="softmax(x)  # x (8, 200), float32",
            bounds=_softmax_bounds,
        ),
    )
    + (
        (
            _softmax_case(
                "GPU: many wide rows, bfloat16",
                lambda: (draw(4099, 16_384, dtype=BF16, scale=3.0),),
                "Right in the small, wrong in the large: look at masks and strides.",
                "softmax(x)  # x (4,099, 16,384), bfloat16",
            ),
            fast(
                "GPU: speed",
                lambda: (draw(16_384, 4096, dtype=BF16),),
                "One kernel, one read, one write; 4 to 16 warps for a row this long (`num_warps=8`).",
                call="softmax(x)  # x (16,384, 4,096), bfloat16",
                share=50,
                moved=lambda x: 2 * bytes_of(x),
            ),
        )
        if GPU
        else ()
    ),
    wrong=(
        Wrong(_softmax_slip("zeros_beyond_the_row", 'other=float("-inf")', "other=0.0"), "counts as -inf"),
        Wrong(_softmax_slip("no_maximum", "tl.exp(x - tl.max(x, 0))", "tl.exp(x)"), "subtract the row's"),
        Wrong(_softmax_slip("no_strides", "X + row * x_stride", "X + row * columns"), "x.stride(0) apart"),
        Wrong(
            _softmax_slip(
                "reads_twice",
                "    y = power",
                "    x = tl.load(X + row * x_stride + column, mask=inside)\n    y = power",
            ),
            "keep the row between the steps",
        ),
        Wrong(
            _softmax_slip("always_float32", "dtype=x.dtype", "dtype=torch.float32"),
            "the result has x's dtype",
        ),
        Wrong(_softmax_of_torch, "by a Triton kernel"),
    ),
)

# ---- kernels/rms-norm


@triton.jit
def norm_kernel(X, RESIDUAL, WEIGHT, Y, TOTAL, columns, x_stride, residual_stride, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(X + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(RESIDUAL + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(WEIGHT + column, mask=inside, other=0.0).to(tl.float32)
    total = x + residual
    y = total * tl.rsqrt(tl.sum(total * total, 0) / columns + eps) * weight
    tl.store(TOTAL + row * columns + column, total.to(TOTAL.dtype.element_ty), mask=inside)
    tl.store(Y + row * columns + column, y.to(Y.dtype.element_ty), mask=inside)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    y, total = (torch.empty((rows, columns), dtype=x.dtype, device=x.device) for _ in range(2))
    block = triton.next_power_of_2(columns)
    norm_kernel[(rows,)](
        x, residual, weight, y, total, columns, x.stride(0), residual.stride(0), eps, BLOCK=block
    )
    return y, total


def _add_rms_norm_of_torch(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return F.rms_norm(total, total.shape[-1:], weight, eps), total


def _norm_slip(name: str, old: str, new: str) -> Any:
    return slip(name, old, new, add_rms_norm, norm_kernel)


def _norm_case(name: str, make: Any, message: str, call: str) -> Case:
    return compared(
        name,
        make,
        message,
        call=call,
        results=("y", "total"),
        reference=_add_rms_norm_of_torch,
        peer=_add_rms_norm_of_torch,
    )


def _norm_inputs(rows: int, columns: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Inputs:
    x, residual = (draw(rows, columns, seed=seed, dtype=dtype, scale=scale) for seed in (0, 1))
    return x, residual, draw(columns, seed=2, dtype=dtype), 1e-6


def _norm_bounds(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[tuple[int, int], tuple[int, int]]:
    both, rows = bytes_of(x, residual), len(x)
    return (both + bytes_of(weight), both + rows * bytes_of(weight)), (both, both + 4 * rows)


RMS_NORM = Exercise(
    name="kernels/rms-norm",
    title="Add, then RMSNorm, in one kernel",
    task="""
In a transformer a sum stands before every norm. Write `add_rms_norm(x, residual, weight, eps)` in Triton. For
`x` and `residual` (R, D) and `weight` (D,) it returns the pair (y, total), where `total = x + residual` and y
is the RMSNorm of total: each row divided by the root of (the mean of its squares + eps), times the weight.

Compute in float32; both results are contiguous and have the dtype of `x`. One kernel, which reads x and
residual once. Rows of both may be slices of wider ones, each with a stride of its own. D is at most 16,384.
""",
    difficulty=2,
    minutes=30,
    starter="""
import torch
from kernels._runtime import tl, triton
from torch import Tensor


@triton.jit
def norm_kernel(X, RESIDUAL, WEIGHT, Y, TOTAL, columns, x_stride, residual_stride, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    raise NotImplementedError
""",
    hints=(
        "Start from `_one_row` in the section on RMSNorm: it is this kernel without the residual.",
        "A row of the block has BLOCK numbers, D of them real. Zeros beyond the row add nothing to the sum "
        "of squares; but the mean divides by D.",
        "`total` is there, in float32, when you need it for the norm: store it, and go on with the "
        "registers. Do not load it again.",
    ),
    solution=add_rms_norm,
    parts=(norm_kernel,),
    in_page=False,
    remark="""
Unfused, the sum reads two tensors and writes one, and the norm moves 36 bytes a number more. Fused it is two
reads and two writes, 8 bytes in 16 bits. The weight is read once a row here, mostly from L2; the library's
kernel gives each program several rows.
""",
    cases=(
        Case(
            "one row of two",
            lambda: (
                torch.tensor([[1.0, 4.0]], device=DEVICE),
                torch.tensor([[2.0, 0.0]], device=DEVICE),
                torch.tensor([1.0, 2.0], device=DEVICE),
                0.0,
            ),
            [[[0.8485281, 2.2627417]], [[3.0, 4.0]]],
            "The sum is (3, 4), its mean square 12.5: divide by the root of 12.5, then times the weight.",
            then=lambda got: [each.tolist() for each in got],
            call="add_rms_norm([[1, 4]], [[2, 0]], [1, 2], 0)  # tensors",
            tolerance=1e-5,
            seconds=60.0,
        ),
        _norm_case(
            "an odd number of columns",
            lambda: _norm_inputs(5, 131),
            "The mean divides by D, not by the block's size.",
            "add_rms_norm(x, residual, weight, 1e-6)  # x (5, 131)",
        ),
        _norm_case(
            "small numbers",
            lambda: _norm_inputs(4, 33, scale=1e-3),
            "eps is added to the mean of the squares, inside the root.",
            "add_rms_norm(x, residual, weight, 1e-6)  # x (4, 33), about 0.001",
        ),
        _norm_case(
            "a row of zeros",
            lambda: (torch.zeros(1, 8, device=DEVICE), draw(1, 8, scale=0.0), draw(8), 1e-6),
            "A row of zeros stays zero: eps keeps the division finite.",
            "add_rms_norm(zeros, zeros, weight, 1e-6)  # (1, 8)",
        ),
        _norm_case(
            "slices of wider tensors",
            lambda: (_sliced(6, 40), draw(6, 90, seed=1)[:, 50:], draw(40, seed=2), 1e-6),
            "x and residual have strides of their own; the results' rows lie D apart.",
            "add_rms_norm(wide[:, 3:43], wider[:, 50:], weight, 1e-6)",
        ),
        _norm_case(
            "bfloat16",
            lambda: _norm_inputs(9, 300, BF16),
            "Widen to float32 after loading; both results have x's dtype.",
            "add_rms_norm(x, residual, weight, 1e-6)  # x (9, 300), bfloat16",
        ),
        in_one_pass(
            "bytes moved",
            lambda: _norm_inputs(16, 200),
            "Read x and residual once and write y and total once, in a Triton kernel: total stays in "
            "registers.",
            call="add_rms_norm(x, residual, weight, 1e-6)  # x (16, 200), float32",
            bounds=_norm_bounds,
        ),
    )
    + (
        (
            _norm_case(
                "GPU: many wide rows, bfloat16",
                lambda: _norm_inputs(4099, 16_384, BF16),
                "Right in the small, wrong in the large: look at masks and strides.",
                "add_rms_norm(x, residual, weight, 1e-6)  # x (4,099, 16,384), bfloat16",
            ),
            fast(
                "GPU: speed",
                lambda: _norm_inputs(16_384, 4096, BF16),
                "One kernel, two reads, two writes; 4 to 16 warps for a row this long (`num_warps=8`).",
                call="add_rms_norm(x, residual, weight, 1e-6)  # x (16,384, 4,096), bfloat16",
                share=60,
                moved=lambda x, residual, weight, eps: 2 * bytes_of(x, residual),
            ),
        )
        if GPU
        else ()
    ),
    wrong=(
        Wrong(_norm_slip("mean_over_the_block", "/ columns + eps", "/ BLOCK + eps"), "divides by D"),
        Wrong(
            _norm_slip(
                "eps_outside_the_root",
                "total * tl.rsqrt(tl.sum(total * total, 0) / columns + eps)",
                "total / (tl.sqrt(tl.sum(total * total, 0) / columns) + eps)",
            ),
            "inside the root",
        ),
        Wrong(
            _norm_slip(
                "one_stride_for_both", "RESIDUAL + row * residual_stride", "RESIDUAL + row * x_stride"
            ),
            "strides of their own",
        ),
        Wrong(
            _norm_slip("norm_of_x_alone", "total * total", "x * x"),
            "The sum is (3, 4)",
        ),
        Wrong(
            _norm_slip(
                "loads_total_again",
                "    tl.store(Y",
                "    total = tl.load(TOTAL + row * columns + column, mask=inside, other=0.0)\n    tl.store(Y",
            ),
            "total stays in registers",
        ),
        Wrong(_add_rms_norm_of_torch, "in a Triton kernel"),
    ),
)

# ---- kernels/rms-norm-backward


@triton.jit
def norm_backward_kernel(
    DY, X, WEIGHT, DX, PARTS, rows, columns, dy_stride, x_stride, eps, BLOCK: tl.constexpr
):
    column = tl.arange(0, BLOCK)
    inside = column < columns
    weight = tl.load(WEIGHT + column, mask=inside, other=0.0).to(tl.float32)
    part = tl.zeros((BLOCK,), tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        dy = tl.load(DY + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(X + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(x * x, 0) / columns + eps)
        n = x * rstd
        g = dy * weight
        dx = (g - n * (tl.sum(g * n, 0) / columns)) * rstd
        tl.store(DX + row * columns + column, dx.to(DX.dtype.element_ty), mask=inside)
        part += dy * n
    tl.store(PARTS + tl.program_id(0) * columns + column, part, mask=inside)


# fmt: off
def rms_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, programs: int
) -> tuple[Tensor, Tensor]:
    rows, columns = x.shape
    dx = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    parts = torch.empty((programs, columns), dtype=torch.float32, device=x.device)
    norm_backward_kernel[(programs,)](
        dy, x, weight, dx, parts, rows, columns, dy.stride(0), x.stride(0), eps,
        BLOCK=triton.next_power_of_2(columns), num_warps=8,
    )
    return dx, parts.sum(0).to(weight.dtype)
# fmt: on


def _backward_of_torch(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, programs: int
) -> tuple[Tensor, Tensor]:
    leaves = [each.detach().requires_grad_() for each in (x, weight)]
    y = F.rms_norm(leaves[0], x.shape[-1:], leaves[1], eps)
    dx, dweight = torch.autograd.grad(y, leaves, dy)
    return dx, dweight


def _backward_slip(name: str, old: str, new: str) -> Any:
    return slip(name, old, new, rms_norm_backward, norm_backward_kernel)


def _backward_case(name: str, make: Any, message: str, call: str) -> Case:
    return compared(
        name,
        make,
        message,
        call=call,
        results=("dx", "dweight"),
        reference=_backward_of_torch,
        peer=_backward_of_torch,
    )


def _backward_inputs(rows: int, columns: int, programs: int, dtype: torch.dtype = torch.float32) -> Inputs:
    dy, x = (draw(rows, columns, seed=seed, dtype=dtype) for seed in (0, 1))
    return dy, x, draw(columns, seed=2, dtype=dtype), 1e-6, programs


def _backward_bounds(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, programs: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    read, written, parts = bytes_of(dy, x), bytes_of(x), 4 * programs * x.shape[1]
    # The weight once for each program or row; parts added in PyTorch or in a kernel.
    most = read + len(x) * bytes_of(weight) + parts
    return (read + bytes_of(weight), most), (written + parts, written + parts + bytes_of(weight))


def _twice(function: Any) -> Any:
    def called(*arguments: Any) -> bool:
        first = function(*arguments)
        again = [function(*arguments) for _ in range(5)]
        return all(torch.equal(a, b) for each in again for a, b in zip(first, each, strict=True))

    return called


RMS_NORM_BACKWARD = Exercise(
    name="kernels/rms-norm-backward",
    title="RMSNorm backward, both gradients in one pass",
    task="""
Write `rms_norm_backward(dy, x, weight, eps, programs)` in Triton. For y = RMSNorm(x) · weight and the
upstream gradient `dy` (R, D) it returns the pair (dx, dweight). Nothing was saved in the forward but `x`.
Read dy and x once.

The gradient of the weight adds up over rows, and rows belong to different programs. So start exactly
`programs` programs: program p takes rows p, p + programs, p + 2 · programs, … and keeps a sum of its own,
which it writes to row p of a float32 tensor (programs, D). Add up those rows afterwards, in a kernel or with
PyTorch. No atomics: the result must have the same bits each time.

Compute in float32. `dx` is contiguous with the dtype of `x`, and dweight has that of `weight`. Rows of dy and
x may be slices of wider ones.
""",
    difficulty=3,
    minutes=50,
    starter="""
import torch
from kernels._runtime import tl, triton
from torch import Tensor


@triton.jit
def norm_backward_kernel(
    DY, X, WEIGHT, DX, PARTS, rows, columns, dy_stride, x_stride, eps, BLOCK: tl.constexpr
):
    column = tl.arange(0, BLOCK)


def rms_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, programs: int
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError
""",
    hints=(
        "With r the reciprocal root of the row, n = x r and g = dy · weight, the gradient of x is "
        "r (g − n · mean(g n)), and that of the weight is the sum over rows of dy · n.",
        "`for row in range(tl.program_id(0), rows, tl.num_programs(0))` walks over a program's rows. "
        "Load the weight before the loop, and start the sum there: `tl.zeros((BLOCK,), tl.float32)`.",
        "Both means divide by D, not by BLOCK. A program that has no row writes zeros. After the kernel, "
        "`parts.sum(0)` adds in a fixed order.",
    ),
    solution=rms_norm_backward,
    parts=(norm_backward_kernel,),
    in_page=False,
    remark="""
Computing r again costs arithmetic on numbers that are there anyway, and saves a tensor. As an autograd
function: keep `x` and `weight` in `save_for_backward`, and return `(*rms_norm_backward(...), None)`. How many
programs are best? A few for each SM: more of them write more parts, fewer leave the chip idle.
""",
    cases=(
        Case(
            "one row of two",
            lambda: (
                torch.tensor([[1.0, 0.0]], device=DEVICE),
                torch.tensor([[3.0, 4.0]], device=DEVICE),
                torch.tensor([1.0, 1.0], device=DEVICE),
                0.0,
                1,
            ),
            [[[0.1810193, -0.1357645]], [0.8485281, 0.0]],
            "n is (0.849, 1.131) and r 0.283: dx = r (g − n · mean(g n)), dweight = dy · n.",
            then=lambda got: [each.tolist() for each in got],
            call="rms_norm_backward([[1, 0]], [[3, 4]], [1, 1], 0, 1)  # tensors",
            tolerance=1e-5,
            seconds=60.0,
        ),
        _backward_case(
            "an odd number of columns",
            lambda: _backward_inputs(1, 131, 1),
            "Both means divide by D, not by the block's size.",
            "rms_norm_backward(dy, x, weight, 1e-6, 1)  # x (1, 131)",
        ),
        _backward_case(
            "more rows than programs",
            lambda: _backward_inputs(11, 40, 4),
            "A program walks over rows p, p + programs, …, and its sum grows with each.",
            "rms_norm_backward(dy, x, weight, 1e-6, 4)  # x (11, 40)",
        ),
        _backward_case(
            "more programs than rows",
            lambda: _backward_inputs(2, 40, 5),
            "A program without rows writes zeros: an empty tensor holds whatever was there.",
            "rms_norm_backward(dy, x, weight, 1e-6, 5)  # x (2, 40)",
        ),
        _backward_case(
            "slices of wider tensors",
            lambda: (_sliced(6, 40), draw(6, 90, seed=1)[:, 50:], draw(40, seed=2), 1e-6, 2),
            "dy and x have strides of their own; dx has rows D apart.",
            "rms_norm_backward(wide[:, 3:43], wider[:, 50:], weight, 1e-6, 2)",
        ),
        _backward_case(
            "bfloat16",
            lambda: _backward_inputs(33, 100, 4, BF16),
            "Widen after loading and keep parts in float32; dx and dweight have the dtypes of x and weight.",
            "rms_norm_backward(dy, x, weight, 1e-6, 4)  # bfloat16",
        ),
        in_one_pass(
            "bytes moved",
            lambda: _backward_inputs(24, 128, 3),
            "Read dy and x once, for both gradients together, and write one row of sums for each program.",
            call="rms_norm_backward(dy, x, weight, 1e-6, 3)  # x (24, 128), float32",
            bounds=_backward_bounds,
        ),
    )
    + (
        (
            _backward_case(
                "GPU: many rows, bfloat16",
                lambda: _backward_inputs(8191, 4099, 264, BF16),
                "Right in the small, wrong in the large: keep the sums in float32.",
                "rms_norm_backward(dy, x, weight, 1e-6, 264)  # x (8,191, 4,099), bfloat16",
            ),
            Case(
                "GPU: the same bits",
                lambda: _backward_inputs(8191, 1024, 264),
                True,
                "Atomics add in the order in which programs come. Write parts, and add them in order.",
                around=_twice,
                call="rms_norm_backward(dy, x, weight, 1e-6, 264), six times",
                seconds=60.0,
            ),
            fast(
                "GPU: speed",
                lambda: _backward_inputs(16_384, 4096, 528, BF16),
                "Two reads, one write; 8 or 16 warps for a row this long (`num_warps=8`).",
                call="rms_norm_backward(dy, x, weight, 1e-6, 528)  # x (16,384, 4,096), bfloat16",
                share=30,
                moved=lambda dy, x, weight, eps, programs: 3 * bytes_of(x),
            ),
        )
        if GPU
        else ()
    ),
    wrong=(
        Wrong(_backward_slip("no_projection", "(g - n * (tl.sum(g * n, 0) / columns))", "g"), "mean(g n)"),
        Wrong(
            _backward_slip("mean_over_the_block", "g * n, 0) / columns", "g * n, 0) / BLOCK"), "divide by D"
        ),
        Wrong(_backward_slip("only_the_last_row", "part += dy * n", "part = dy * n"), "its sum grows"),
        Wrong(
            _backward_slip(
                "a_row_a_program",
                "range(tl.program_id(0), rows, tl.num_programs(0))",
                "range(tl.program_id(0), tl.program_id(0) + 1)",
            ),
            "walks over rows",
        ),
        Wrong(
            _backward_slip("one_stride_for_both", "DY + row * dy_stride", "DY + row * x_stride"),
            "strides of their own",
        ),
        Wrong(_backward_of_torch, "for both gradients together"),
    ),
)
