"""SwiGLU's elementwise part, silu(gate) * up, forward and backward.

    y = gate * sigmoid(gate) * up

Source: Shazeer, "GLU Variants Improve Transformer" (2020, arXiv:2002.05202), equation 6.

Contract: gate and up of one shape and dtype (float32, bfloat16, float16). Arithmetic is float32, rounded
once. Rows may be strided, so the two halves of a fused projection cost no copy; other layouts are copied.

Bytes a value of b bytes: forward 3 b (read gate and up, write y), backward 5 b (read gate, up and dy, write
both gradients). The sigmoid is computed again in the backward instead of being kept. About 5 and 12 FLOPs a
value. Every value is computed by one thread: results are bitwise repeatable.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kernels._math import sigmoid
from kernels._runtime import Operator, as_rows, cdiv, check_floating, tl, triton, usable
from kernels.bench.case import Bench, Inputs, Shape, Work, compiled, installed, normal

BLOCK, WARPS = 2048, 8
LARGEST_FLAT = 2**31 - 2**16  # values addressed by 32-bit offsets in one row


@triton.jit
def _forward(
    GATE, UP, Y, columns, gate_stride, up_stride, y_stride, BLOCK: tl.constexpr, PRECISE: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    gate = tl.load(GATE + row * gate_stride + column, mask, other=0.0).to(tl.float32)
    up = tl.load(UP + row * up_stride + column, mask, other=0.0).to(tl.float32)
    y = gate * sigmoid(gate, PRECISE) * up
    tl.store(Y + row * y_stride + column, y.to(Y.dtype.element_ty), mask)


@triton.jit
def _backward(
    DY,
    GATE,
    UP,
    DGATE,
    DUP,
    columns,
    dy_stride,
    gate_stride,
    up_stride,
    out_stride,
    BLOCK: tl.constexpr,
    PRECISE: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    dy = tl.load(DY + row * dy_stride + column, mask, other=0.0).to(tl.float32)
    gate = tl.load(GATE + row * gate_stride + column, mask, other=0.0).to(tl.float32)
    up = tl.load(UP + row * up_stride + column, mask, other=0.0).to(tl.float32)
    share = sigmoid(gate, PRECISE)
    silu = gate * share
    dgate = dy * up * (share + silu * (1.0 - share))
    tl.store(DGATE + row * out_stride + column, dgate.to(DGATE.dtype.element_ty), mask)
    tl.store(DUP + row * out_stride + column, (dy * silu).to(DUP.dtype.element_ty), mask)


def _flat(*tensors: Tensor) -> list[Tensor]:
    """All as (rows, columns): one long row where all are contiguous, so that widths don't matter."""
    if all(t.is_contiguous() for t in tensors) and tensors[0].numel() <= LARGEST_FLAT:
        return [t.view(1, -1) for t in tensors]
    return [as_rows(t) for t in tensors]


def _launch(kernel, inputs: list[Tensor], outputs: list[Tensor], block: int, warps: int) -> None:
    inputs = _flat(*inputs)
    rows, columns = inputs[0].shape
    first = 0
    while first < rows:  # a grid's second axis ends at 65,535
        count = min(rows - first, 65_535)
        part = [t[first : first + count] for t in inputs]
        results = [t.view(rows, columns)[first : first + count] for t in outputs]
        kernel[(cdiv(columns, block), count)](
            *part,
            *results,
            columns,
            *(t.stride(0) for t in part),
            columns,
            BLOCK=block,
            PRECISE=outputs[0].dtype == torch.float32,
            num_warps=warps,
        )
        first += count


def launch_forward(gate: Tensor, up: Tensor, block: int = BLOCK, warps: int = WARPS) -> Tensor:
    """y, contiguous."""
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if y.numel():
        _launch(_forward, [gate, up], [y], block, warps)
    return y


def launch_backward(
    dy: Tensor, gate: Tensor, up: Tensor, block: int = BLOCK, warps: int = WARPS
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to gate and up, contiguous."""
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    dup = torch.empty_like(dgate)
    if dgate.numel():
        _launch(_backward, [dy, gate, up], [dgate, dup], block, warps)
    return dgate, dup


def _swiglu_op(gate: Tensor, up: Tensor) -> Tensor:
    return launch_forward(gate, up)


def _swiglu_fake(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


def _gradients_op(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return launch_backward(dy, gate, up)


def _gradients_fake(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_backward(ctx, dy: Tensor):
    return _gradients(dy, *ctx.saved_tensors)


_gradients = Operator("swiglu_backward", _gradients_op, _gradients_fake)
_swiglu = Operator("swiglu", _swiglu_op, _swiglu_fake, _setup, _swiglu_backward)


def reference(gate: Tensor, up: Tensor) -> Tensor:
    """The same in plain PyTorch, in float32 (float64 stays float64)."""
    wide = gate.dtype if gate.dtype == torch.float64 else torch.float32
    return (torch.nn.functional.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


def swiglu(gate: Float[Tensor, "*shape"], up: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """silu(gate) * up.

    Raises:
        ValueError: the shapes or the dtypes differ.
        TypeError: tensors of integers.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"gate and up must have one shape and dtype, got {tuple(gate.shape)} {gate.dtype} "
            f"and {tuple(up.shape)} {up.dtype}"
        )
    check_floating(gate=gate)
    if not usable(gate, up) or gate.dim() == 0:
        return reference(gate, up)
    return _swiglu(gate, up)


def _inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    return {name: normal(shape, generator, "rows", "columns") for name in ("gate", "up")}


def _eager(gate: Tensor, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(gate) * up


def _liger() -> Callable[..., Tensor]:
    function = installed("liger_kernel.ops.swiglu", "LigerSiLUMulFunction")
    return lambda gate, up: function.apply(gate, up)


def _work(shape: Shape) -> dict[str, Work]:
    values = shape["rows"] * shape["columns"]
    size = shape.dtype.itemsize
    return {"forward": Work(3 * values * size, 5 * values), "backward": Work(5 * values * size, 12 * values)}


def _shape(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Shape:
    return Shape({"rows": rows, "columns": columns}, dtype)


BENCH = Bench(
    name="swiglu",
    inputs=_inputs,
    ours=swiglu,
    reference=reference,
    grads=("gate", "up"),
    peers={"eager": lambda: _eager, "torch.compile": compiled(_eager), "Liger": _liger},
    work=_work,
    shapes=(_shape(16_384, 11_008),),
    full=tuple(_shape(rows, 11_008) for rows in (256, 1024, 4096)),
    tiny=(_shape(5, 131), _shape(3, 64, torch.float32)),
)
