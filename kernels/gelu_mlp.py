"""GPT-2's feed-forward block: two linear layers with a GELU between them.

    pre = x w_up^T + b_up,    h = gelu(pre),    y = h w_down^T + b_down
    gelu(z) = z Phi(z), or by tanh, as in GPT-2: z (1 + tanh(u)) / 2, u = sqrt(2/pi) (z + 0.044715 z^3)

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)" (2016, arXiv:1606.08415), section 2.

- The GELU of a block is cheap to compute and dear to move: pre and h are four times as wide as x. On Hopper
  the one by tanh is computed inside the products around it (``kernels.cublaslt``): h and pre are written by
  one, and dh is never in memory.
- Elsewhere the products are PyTorch's, and each pass between them does all that can be done on the way: the
  backward's reads dh and pre once, writes dpre = dh gelu'(pre), and adds up the columns of dpre, so that the
  gradient of b_up costs no pass. (In Triton a GELU inside a product is no faster, see NOTES.)
- Phi and its derivative share one exponential: Phi by formula 7.1.26 of Abramowitz and Stegun (1964), whose
  error of 1.5e-7 is far below the rounding of 16 bits; float32 takes the exact function.

Contract: x of any leading axes; all of one dtype, float32, bfloat16 or float16; biases may be missing.
FLOPs with N tokens, D columns of x and F of h: 4 N D F forward, 8 N D F backward. Bytes, at least: forward
write pre, read it, write h and read it, backward write dh, read dh, pre and h, write dpre and read it twice:
4 and 7 N F elements, where plain PyTorch has 4 and 8; inside the products 3 and 6.
The same bits on every run.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kernels import cublaslt
from kernels._rows import add_parts, column_sums
from kernels._runtime import Operator, as_rows, cdiv, check_floating, tl, triton, usable
from kernels.bench.case import Bench, Inputs, Shape, Work, compiled, normal

BLOCK = 2048  # values of a program of the forward's pass
# A tile of the backward's pass; tiles of a program, one below the other; its warps, and tiles loaded ahead.
ROWS, COLUMNS, STEPS, WARPS, STAGES = 16, 256, 8, 4, 3


# -- kernels -------------------------------------------------------------------------------------------------


@triton.jit
def _gelu_parts(z, FORM: tl.constexpr):
    """gelu(z) / z, and what is to be added to it for the derivative of gelu(z).

    FORM is "exact", "quick" (to 1.5e-7) or "tanh".
    """
    if FORM == "tanh":
        square = tl.minimum(z * z, 1e4)  # or the derivative of the largest z would be 0 times infinity
        below = tl.sigmoid(1.5957691216057308 * z * (1.0 + 0.044715 * square))
        more = z * below * (1.0 - below) * (1.5957691216057308 + 0.2140644488178007 * square)
        return below, more
    bell = tl.exp2(z * z * -0.7213475204444817)
    if FORM == "exact":
        below = 0.5 * (1.0 + tl.math.erf(z * 0.7071067811865476))
    else:
        t = 1.0 / (1.0 + 0.2316418882663604 * tl.abs(z))
        poly = 0.5307027145 * t - 0.7265760135
        poly = poly * t + 0.7107068705
        poly = poly * t - 0.142248368
        poly = (poly * t + 0.127414796) * t
        tail = poly * bell
        below = tl.where(z < 0, tail, 1.0 - tail)
    return below, z * bell * 0.3989422804014327


@triton.jit
def _gelu_kernel(PRE, H, count, FORM: tl.constexpr, BLOCK: tl.constexpr):
    """h = gelu(pre), where the product before it is PyTorch's."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(PRE + at, mask=at < count, other=0.0).to(tl.float32)
    below, _ = _gelu_parts(z, FORM)
    tl.store(H + at, (z * below).to(H.dtype.element_ty), mask=at < count)


@triton.jit
def _gelu_backward_kernel(
    DH, PRE, DPRE, PARTS, rows, columns,
    FORM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dpre = dh gelu'(pre) of STEPS tiles, and the sums of their columns."""
    # One axis of programs, as only the first may be longer than 65,535.
    across = tl.cdiv(columns, COLUMNS)
    tile, group = tl.program_id(0) % across, (tl.program_id(0) // across).to(tl.int64)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    first = group * (ROWS * STEPS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        row = first + step * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & (column < columns)
        at = row * columns + column
        z = tl.load(PRE + at, mask=inside, other=0.0).to(tl.float32)
        dh = tl.load(DH + at, mask=inside, other=0.0).to(tl.float32)
        below, more = _gelu_parts(z, FORM)
        dpre = dh * (below + more)
        tl.store(DPRE + at, dpre.to(DPRE.dtype.element_ty), mask=inside)
        sums += dpre
    total = tl.sum(sums, 0, keep_dims=True)
    tl.store(PARTS + group * columns + column, total, mask=column < columns)


# -- launching -----------------------------------------------------------------------------------------------


def _form(pre: Tensor, tanh: bool) -> str:
    return "tanh" if tanh else "exact" if pre.dtype == torch.float32 else "quick"


def launch_gelu(pre: Tensor, tanh: bool = False) -> Tensor:
    """gelu(pre) of a contiguous tensor."""
    h = torch.empty_like(pre)
    form = _form(pre, tanh)
    _gelu_kernel[(cdiv(pre.numel(), BLOCK),)](pre, h, pre.numel(), FORM=form, BLOCK=BLOCK)
    return h


def launch_gelu_backward(dh: Tensor, pre: Tensor, tanh: bool = False) -> tuple[Tensor, Tensor]:
    """dpre (N, F) of dh and pre, both (N, F) and contiguous, and the sums of its columns (F,)."""
    rows, columns = pre.shape
    dpre, sums = torch.empty_like(pre), torch.empty(columns, dtype=pre.dtype, device=pre.device)
    parts = torch.empty(cdiv(rows, ROWS * STEPS), columns, dtype=torch.float32, device=pre.device)
    _gelu_backward_kernel[(cdiv(columns, COLUMNS) * len(parts),)](
        dh, pre, dpre, parts, rows, columns,
        FORM=_form(pre, tanh), ROWS=ROWS, COLUMNS=COLUMNS, STEPS=STEPS, STAGES=STAGES,
        num_warps=WARPS,
    )  # fmt: skip
    return dpre, add_parts(parts, sums)


# -- the operators -------------------------------------------------------------------------------------------


def _forward(
    x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down: Tensor, b_down: Tensor | None, tanh: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if tanh and cublaslt.fits(x, *w_up.shape):
        h, pre = cublaslt.linear_gelu(x.contiguous(), w_up, b_up)
    else:
        pre = F.linear(x, w_up, b_up)
        h = launch_gelu(pre, tanh)
    return F.linear(h, w_down, b_down), pre, h


def _forward_fake(
    x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down: Tensor, b_down: Tensor | None, tanh: bool
) -> tuple[Tensor, Tensor, Tensor]:
    M, inner = x.shape[0], w_up.shape[0]
    return x.new_empty(M, w_down.shape[0]), x.new_empty(M, inner), x.new_empty(M, inner)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, w_up, _, w_down, _, ctx.tanh = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w_up, w_down, *output[1:])


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    x, w_up, w_down, pre, h = ctx.saved_tensors
    of_x, of_up, of_bias, of_down = ctx.needs_input_grad[:4]
    dpre, db_up = _gelu_backward(dy, w_down, pre, ctx.tanh, of_bias)
    return (
        dpre @ w_up if of_x else None,
        dpre.t() @ x if of_up else None,
        db_up if of_bias else None,
        dy.t() @ h if of_down else None,
        dy.sum(0) if ctx.needs_input_grad[4] else None,
        None,
    )


def _gelu_backward_op(
    dy: Tensor, w_down: Tensor, pre: Tensor, tanh: bool, biased: bool
) -> tuple[Tensor, Tensor]:
    """dpre and the sums of its columns, which are of no meaning where nobody wants them."""
    if tanh and cublaslt.fits(dy, *w_down.shape):
        dpre = cublaslt.gelu_backward(dy.contiguous(), w_down, pre)
        return dpre, column_sums(dpre) if biased else pre.new_zeros(pre.shape[1])
    return launch_gelu_backward(dy @ w_down, pre, tanh)


def _gelu_backward_fake(
    dy: Tensor, w_down: Tensor, pre: Tensor, tanh: bool, biased: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(pre), pre.new_empty(pre.shape[1])


_gelu_backward = Operator("gelu_backward", _gelu_backward_op, _gelu_backward_fake)
_operator = Operator("gelu_mlp", _forward, _forward_fake, _setup, _backward)


# -- for users -----------------------------------------------------------------------------------------------


def reference(
    x: Tensor,
    w_up: Tensor,
    b_up: Tensor | None,
    w_down: Tensor,
    b_down: Tensor | None,
    approximate: str = "none",
) -> Tensor:
    """The same in plain PyTorch."""
    return F.linear(F.gelu(F.linear(x, w_up, b_up), approximate=approximate), w_down, b_down)


def gelu_mlp(
    x: Float[Tensor, "... D"],
    w_up: Float[Tensor, "F D"],
    b_up: Float[Tensor, " F"] | None,
    w_down: Float[Tensor, "E F"],
    b_down: Float[Tensor, " E"] | None,
    approximate: str = "none",
) -> Float[Tensor, "... E"]:
    """``linear(gelu(linear(x, w_up, b_up)), w_down, b_down)``; under autocast all are cast first.

    What kernels cannot run on goes to plain PyTorch.

    Args:
        approximate: "none" or "tanh", as for ``F.gelu``.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or another ``approximate``.
        TypeError: tensors of integers.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    given = {"x": x, "w_up": w_up, "b_up": b_up, "w_down": w_down, "b_down": b_down}
    check_floating(**given)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, w_up, w_down = x.to(dtype), w_up.to(dtype), w_down.to(dtype)
        b_up, b_down = (None if each is None else each.to(dtype) for each in (b_up, b_down))
    _check(x, w_up, b_up, w_down, b_down)
    if not usable(x, w_up, b_up, w_down, b_down) or not x.numel() or not w_up.numel():
        return reference(x, w_up, b_up, w_down, b_down, approximate)
    rows, tanh = as_rows(x), approximate == "tanh"
    # Biases that are columns of something are copied: the products want their values side by side.
    b_up, b_down = (None if each is None else each.contiguous() for each in (b_up, b_down))
    y = _operator(rows, w_up.contiguous(), b_up, w_down.contiguous(), b_down, tanh)[0]
    return y.view(*x.shape[:-1], w_down.shape[0])


def _check(x: Tensor, w_up: Tensor, b_up: Tensor | None, w_down: Tensor, b_down: Tensor | None) -> None:
    if x.dim() < 1:
        raise ValueError("x must have at least one axis, got a single value")
    if w_up.dim() != 2 or w_up.shape[1] != x.shape[-1]:
        raise ValueError(
            f"w_up must be (F, {x.shape[-1]}) for x of shape {tuple(x.shape)}, got {tuple(w_up.shape)}"
        )
    if w_down.dim() != 2 or w_down.shape[1] != w_up.shape[0]:
        raise ValueError(f"w_down must be (E, {w_up.shape[0]}), got {tuple(w_down.shape)}")
    for name, bias, weight in (("b_up", b_up, w_up), ("b_down", b_down, w_down)):
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"{name} must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    for name, each in (("w_up", w_up), ("b_up", b_up), ("w_down", w_down), ("b_down", b_down)):
        if each is not None and each.dtype != x.dtype:
            raise ValueError(f"{name} must have x's dtype, {x.dtype}, got {each.dtype}")


# -- the benchmark -------------------------------------------------------------------------------------------


def _inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    width, inner = shape["d_model"], shape["d_ff"]
    return {
        "x": normal(shape, generator, "rows", "d_model"),
        "w_up": normal(shape, generator, "d_ff", "d_model", scale=width**-0.5),
        "b_up": normal(shape, generator, "d_ff", scale=0.1),
        "w_down": normal(shape, generator, "d_model", "d_ff", scale=inner**-0.5),
        "b_down": normal(shape, generator, "d_model", scale=0.1),
    }


def _by_tanh(x: Tensor, w_up: Tensor, b_up: Tensor, w_down: Tensor, b_down: Tensor) -> Tensor:
    return gelu_mlp(x, w_up, b_up, w_down, b_down, "tanh")


def _plain(x: Tensor, w_up: Tensor, b_up: Tensor, w_down: Tensor, b_down: Tensor) -> Tensor:
    return reference(x, w_up, b_up, w_down, b_down, "tanh")


def _work(shape: Shape) -> dict[str, Work]:
    N, D, inner = shape["rows"], shape["d_model"], shape["d_ff"]
    size = shape.dtype.itemsize
    flops = 4 * N * D * inner
    return {  # with the GELU inside the products
        "forward": Work((3 * N * inner + 2 * N * D) * size, flops),
        "backward": Work((6 * N * inner + 4 * N * D) * size, 2 * flops),
    }


def _shape(rows: int, d_model: int, dtype: torch.dtype = torch.bfloat16) -> Shape:
    return Shape({"rows": rows, "d_model": d_model, "d_ff": 4 * d_model}, dtype)


BENCH = Bench(
    name="gelu_mlp",
    inputs=_inputs,
    ours=_by_tanh,
    reference=_plain,
    grads=("x", "w_up", "b_up", "w_down", "b_down"),
    bound="matmul",
    peers={"eager": lambda: _plain, "torch.compile": compiled(_plain)},
    work=_work,
    shapes=(_shape(32_768, 768), _shape(16_384, 1600)),
    full=(_shape(8192, 768), _shape(8192, 4096)),
    tiny=(_shape(33, 24), _shape(20, 16, torch.float32)),
)
