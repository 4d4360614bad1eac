"""Matrix product in Triton: the kernel to learn tiling on, not one to replace the vendor's library.

Source: the tiling of any GPU matrix product; the grouped order of programs is that of Triton's tutorial on
matrix multiplication (Tillet et al. 2019, "Triton: an intermediate language and compiler for tiled neural
network computations", describes the language).

- One program computes a BLOCK_M x BLOCK_N tile of the result, as a sum over BLOCK_K wide strips of both
  inputs. A strip costs (BLOCK_M + BLOCK_N) BLOCK_K elements read for 2 BLOCK_M BLOCK_N BLOCK_K operations:
  larger tiles read less, until registers run out.
- Programs run in groups of GROUP_M rows of tiles, column after column: those that run at one time share rows
  of ``a`` and columns of ``b`` in the L2 cache; row after row would bring in all of ``b`` for each.
- Sums are float32. Float32 inputs are multiplied as float32 (``precision="ieee"``) or, faster and with 10
  bits of mantissa, in the matrix units (``precision="tf32"``): never silently.
- On a GPU ``triton.autotune`` chooses the tile: at the first call with new sizes it times every candidate.

FLOPs: 2 M N K. Bytes, at least: M K + K N read and M N written.
"""

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kernels._runtime import HAVE_TRITON, INTERPRETED, UPCAST, Operator, cdiv, tl, triton, usable
from kernels.bench.case import Bench, Shape, Work, normal

PRECISIONS = ("ieee", "tf32")

# (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages)
CANDIDATES = (
    (128, 256, 64, 8, 3),
    (128, 256, 64, 8, 4),
    (256, 128, 64, 8, 3),
    (128, 128, 64, 8, 4),
    (128, 128, 64, 4, 3),
    (128, 128, 32, 4, 4),
    (64, 128, 64, 4, 4),
    (64, 64, 64, 4, 4),
    (32, 64, 64, 4, 4),
    (64, 64, 32, 4, 3),
)
FIXED = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "GROUP_M": 8}


@triton.jit
def _matmul_kernel(
    A,
    a_stride_m,
    a_stride_k,
    B,
    b_stride_k,
    b_stride_n,
    C,
    c_stride_m,
    c_stride_n,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """C = A B, one tile of C."""
    pid = tl.program_id(0)
    rows_of_tiles = tl.cdiv(M, BLOCK_M)
    columns_of_tiles = tl.cdiv(N, BLOCK_N)
    # Which tile: within a group of GROUP_M rows of tiles, column by column.
    per_group = GROUP_M * columns_of_tiles
    first = pid // per_group * GROUP_M
    height = tl.minimum(rows_of_tiles - first, GROUP_M)
    tile_m = first + pid % per_group % height
    tile_n = pid % per_group // height

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows and columns beyond the edge wrap round: what they compute is not stored, so they need no mask.
    a = A + (m % M).to(tl.int64)[:, None] * a_stride_m + k[None, :] * a_stride_k
    b = B + (n % N).to(tl.int64)[None, :] * b_stride_n + k[:, None] * b_stride_k
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k0 in tl.range(0, K, BLOCK_K):
        # Beyond K, in contrast, both must be zero.
        strip_a = tl.load(a, mask=k[None, :] < K - k0, other=0.0)
        strip_b = tl.load(b, mask=k[:, None] < K - k0, other=0.0)
        if UPCAST:
            strip_a = strip_a.to(tl.float32)
            strip_b = strip_b.to(tl.float32)
        total = tl.dot(strip_a, strip_b, total, input_precision=PRECISION)
        a += BLOCK_K * a_stride_k
        b += BLOCK_K * b_stride_k
    inside = (m[:, None] < M) & (n[None, :] < N)
    c = C + m.to(tl.int64)[:, None] * c_stride_m + n[None, :] * c_stride_n
    tl.store(c, total.to(C.dtype.element_ty), mask=inside)


@functools.cache
def _tuned(element_size: int) -> Any:
    """The kernel with its tile chosen by timing; candidates that can't hold the element size are left out."""
    candidates = [c for c in CANDIDATES if element_size == 2 or (c[0] * c[1] <= 128 * 128 and c[2] <= 32)]
    configs = [
        triton.Config(
            {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": 8}, num_warps=warps, num_stages=stages
        )
        for m, n, k, warps, stages in candidates
    ]
    return triton.autotune(configs=configs, key=["M", "N", "K"])(_matmul_kernel)


def _launch(a: Tensor, b: Tensor, precision: str) -> Tensor:
    M, K = a.shape
    N = b.shape[1]
    c = a.new_empty(M, N)
    if not M * N:
        return c
    if not K:
        return c.zero_()
    arguments = (a, *a.stride(), b, *b.stride(), c, *c.stride(), M, N, K)
    fixed = {"PRECISION": precision, "UPCAST": UPCAST}

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (cdiv(M, meta["BLOCK_M"]) * cdiv(N, meta["BLOCK_N"]),)

    if INTERPRETED:  # nothing to time there
        _matmul_kernel[grid](*arguments, **FIXED, **fixed)
    else:
        _tuned(a.element_size())[grid](*arguments, **fixed)
    return c


def _fake(a: Tensor, b: Tensor, precision: str) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, ctx.precision = inputs
    ctx.save_for_backward(a, b)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """dA = dC B^T and dB = A^T dC: the same kernel, with strides instead of transposes."""
    a, b = ctx.saved_tensors
    da = _product(grad, b.mT, ctx.precision) if ctx.needs_input_grad[0] else None
    db = _product(a.mT, grad, ctx.precision) if ctx.needs_input_grad[1] else None
    return da, db, None


_product = Operator("matmul_backward", _launch, _fake)
_operator = Operator("matmul", _launch, _fake, _setup, _backward)


def reference(a: Float[Tensor, "M K"], b: Float[Tensor, "K N"]) -> Float[Tensor, "M N"]:
    """``a @ b``."""
    return a @ b


def matmul(a: Float[Tensor, "M K"], b: Float[Tensor, "K N"], precision: str = "ieee") -> Float[Tensor, "M N"]:
    """The product of two matrices of any strides and sizes, of one dtype; sums are float32.

    Args:
        precision: how float32 inputs are multiplied on a GPU, ``"ieee"`` (as float32) or ``"tf32"``.

    Where the kernel cannot run (float64, no Triton) it is ``a @ b``. Bitwise repeatable on one machine, once
    the tile is chosen.

    Raises:
        ValueError: not matrices, inner sizes or dtypes or devices that differ, an unknown precision.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(
            f"a must be (M, K) and b (K, N) with one K, got shapes {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if a.dtype != b.dtype or a.device != b.device:
        raise ValueError(
            f"a and b must share dtype and device, got {a.dtype} on {a.device} and {b.dtype} on {b.device}"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    if not HAVE_TRITON or not usable(a, b):
        return a @ b
    result: Tensor = _operator(a, b, precision)
    return result


def _inputs(shape: Shape, generator: torch.Generator) -> dict[str, Any]:
    # A product of K normal numbers each has a spread of sqrt(K): scaled, so that float16 holds it.
    return {
        "a": normal(shape, generator, "m", "k", scale=shape["k"] ** -0.5),
        "b": normal(shape, generator, "k", "n"),
    }


def _work(shape: Shape) -> dict[str, Work]:
    M, N, K = shape["m"], shape["n"], shape["k"]
    moved = (M * K + K * N + M * N) * shape.dtype.itemsize
    return {
        "forward": Work(bytes=moved, flops=2 * M * N * K),
        "backward": Work(bytes=2 * moved, flops=4 * M * N * K),
    }


BENCH = Bench(
    name="matmul",
    inputs=_inputs,
    ours=matmul,
    reference=reference,
    grads=("a", "b"),
    peers={"torch.matmul": lambda: reference},
    work=_work,
    shapes=(Shape({"m": 4096, "n": 4096, "k": 4096}), Shape({"m": 8192, "n": 8192, "k": 8192})),
    tiny=(Shape({"m": 100, "n": 70, "k": 90}),),
    full=tuple(Shape({"m": n, "n": n, "k": n}) for n in (512, 1024, 2048)),
    bound="matmul",
)
