"""FlashAttention-2 in Triton: softmax(Q K^T) V without the T x S matrix of scores ever in memory.

Source: Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning" (2023,
arXiv:2307.08691), algorithms 1 and 2; online softmax: Milakov and Gimelshein (2018, arXiv:1805.02867).

- One program owns BLOCK_T queries of one head and walks over the keys, BLOCK_S at a time. It keeps, for each
  query, the largest score so far ``m``, the sum ``total`` of exp(score - m), and the unnormalised output
  ``acc``. When ``m`` grows, what was summed under the old one is rescaled. At the end output = acc / total.
- Only tiles on an edge of the mask pay for masking: the walk is split into an edge of the window, a middle
  where every query sees every key, and the causal diagonal with the end of the keys.
- Exponentials are powers of two: log2(e) is folded into the scale, which turns "subtract, multiply, exp" into
  one fused multiply-add and one instruction.
- Query heads that share a key/value head read the same tiles; keys are never repeated in memory.
- Programs with the most keys start first, since started last they would run on alone on an idle GPU, and
  heads are taken in sections whose keys and values fit in the L2 cache.
- Saved for the backward: q, k, v, the output, and the logsumexp of each row in float32. Memory is linear in
  length. The backward pass is in ``attention_backward``, what both share in ``attention_tiles``.

FLOPs: 4 K per query-key pair (2 T S K B H each for Q K^T and P V; half of that when causal and T = S).
Bytes, at least: q, k, v read and the output written once, and 4 bytes per row for the logsumexp.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kernels._runtime import UPCAST, Operator, capability, cdiv, check_floating, tl, triton, usable
from kernels.attention_backward import backward
from kernels.attention_tiles import (
    LOG2_E,
    Tile,
    can_use_tma,
    describe,
    head_of,
    key_ranges,
    like,
    load_tile,
    place,
    section_of,
    store_tile,
    visible,
    width_of,
    with_unit_stride,
)
from kernels.bench.case import Bench, Shape, UnavailableError, Work, normal

MAX_HEAD_DIM = 256


@triton.jit
def _walk_keys(
    acc,
    m,
    total,
    q,
    K,
    k_stride_t,
    V,
    v_stride_t,
    batch,
    kv_head,
    start,
    end,
    S,
    position,
    window,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    MASKED: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Algorithm 1's inner loop, over the keys ``start`` .. ``end``; it masks only where MASKED."""
    for s0 in tl.range(start, end, BLOCK_S):
        k = load_tile(K, k_stride_t, batch, kv_head, s0, S, HEAD_DIM, WIDTH, BLOCK_S, TMA, UPCAST)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if MASKED:
            s = s0 + tl.arange(0, BLOCK_S)
            seen = visible(position[:, None], s[None, :], S, window, CAUSAL, WINDOWED)
            scores = tl.where(seen, scores, float("-inf"))
        # m is finite from the start, also in rows that have seen nothing yet: no inf - inf below.
        m_new = tl.maximum(m, tl.max(scores, 1) * scale_log2)
        p = tl.math.exp2(scores * scale_log2 - m_new[:, None])
        rescale = tl.math.exp2(m - m_new)
        total = total * rescale + tl.sum(p, 1)
        acc = acc * rescale[:, None]
        m = m_new
        v = load_tile(V, v_stride_t, batch, kv_head, s0, S, HEAD_DIM, WIDTH, BLOCK_S, TMA, UPCAST)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
    return acc, m, total


@triton.jit(do_not_specialize=["B", "H", "T", "S", "window", "section"])
def _forward_kernel(
    Q,
    q_stride_b,
    q_stride_h,
    q_stride_t,
    K,
    k_stride_b,
    k_stride_h,
    k_stride_t,
    V,
    v_stride_b,
    v_stride_h,
    v_stride_t,
    OUT,
    o_stride_b,
    o_stride_h,
    o_stride_t,
    LSE,
    B,
    H,
    T,
    S,
    window,
    scale_log2,
    section,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Output and logsumexp of BLOCK_T queries of one head."""
    n_tiles = tl.cdiv(T, BLOCK_T)
    tile, batch_head = place(n_tiles, B * H, section)
    if CAUSAL:
        tile = n_tiles - 1 - tile  # the last queries see the most keys: they go first
    batch = batch_head // H
    head = batch_head % H
    kv_head = head // GROUP
    t0 = tile * BLOCK_T
    first = t0 + S - T  # the key position of the tile's first query: queries are the last T of S positions
    position = first + tl.arange(0, BLOCK_T)

    start, inner, outer, end = key_ranges(first, S, window, BLOCK_T, BLOCK_S, CAUSAL, WINDOWED)

    q_head = head_of(Q, q_stride_b, q_stride_h, batch, head, TMA)
    k_head = head_of(K, k_stride_b, k_stride_h, batch, kv_head, TMA)
    v_head = head_of(V, v_stride_b, v_stride_h, batch, kv_head, TMA)
    q = load_tile(q_head, q_stride_t, batch, head, t0, T, HEAD_DIM, WIDTH, BLOCK_T, TMA, UPCAST)
    m = tl.full((BLOCK_T,), -1e38, tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    acc = tl.zeros((BLOCK_T, WIDTH), tl.float32)
    # fmt: off
    if WINDOWED:
        acc, m, total = _walk_keys(
            acc, m, total, q, k_head, k_stride_t, v_head, v_stride_t, batch, kv_head, start, inner,
            S, position, window, scale_log2, HEAD_DIM, WIDTH, BLOCK_S, CAUSAL, WINDOWED, True, TMA, UPCAST,
        )
    acc, m, total = _walk_keys(
        acc, m, total, q, k_head, k_stride_t, v_head, v_stride_t, batch, kv_head, inner, outer,
        S, position, window, scale_log2, HEAD_DIM, WIDTH, BLOCK_S, CAUSAL, WINDOWED, False, TMA, UPCAST,
    )
    acc, m, total = _walk_keys(
        acc, m, total, q, k_head, k_stride_t, v_head, v_stride_t, batch, kv_head, outer, end,
        S, position, window, scale_log2, HEAD_DIM, WIDTH, BLOCK_S, CAUSAL, WINDOWED, True, TMA, UPCAST,
    )
    # fmt: on
    # A row that saw no key (T > S): output 0, logsumexp -inf.
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    acc = acc * (1.0 / total)[:, None]
    lse = tl.where(empty, float("-inf"), (m + tl.math.log2(total)) * 0.6931471805599453)
    out_head = head_of(OUT, o_stride_b, o_stride_h, batch, head, False)
    store_tile(out_head, o_stride_t, t0, T, acc, HEAD_DIM, WIDTH, BLOCK_T)
    t = t0 + tl.arange(0, BLOCK_T)
    tl.store(LSE + tl.cast(batch_head, tl.int64) * T + t, lse, mask=t < T)


def forward_tile(width: int, element_size: int, hopper: bool) -> Tile:
    """The tile for a padded head dimension and an element size in bytes; on Hopper found by a sweep."""
    if UPCAST:
        return Tile(64, 64, 4, 1)
    if element_size == 4:  # no matrix unit: small tiles, or the unrolled products take minutes to compile
        return Tile(32, 32, 4, 1) if width <= 64 else Tile(16, 32 if width == 128 else 16, 8, 1)
    if hopper:
        if width == 256:
            return Tile(128, 64, 8, 2)
        return Tile(64, 64, 4, 3) if width == 128 else Tile(64, 128, 4, 2)
    if width == 256:
        return Tile(64, 32, 4, 2)
    return Tile(128, 64, 8, 2) if width == 128 else Tile(128, 64, 4, 3)


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int, scale: float, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """Output, shaped and strided as ``q``, and logsumexp (B, H, T) in float32. ``window`` 0 means none."""
    B, H, T, K = q.shape
    G, S = k.shape[1:3]
    out = like(q)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
    if not out.numel():
        return out, lse
    if not S:
        return out.zero_(), lse.fill_(-math.inf)
    q, k, v = with_unit_stride(q), with_unit_stride(k), with_unit_stride(v)
    width = width_of(K)
    tma = can_use_tma(q, k, v)
    if tile is None:
        tile = forward_tile(width, q.element_size(), capability(q.device)[0] == 9)
    inputs = (
        (describe(q, tile.block_t, width), describe(k, tile.block_s, width), describe(v, tile.block_s, width))
        if tma
        else (q, k, v)
    )
    _forward_kernel[(cdiv(T, tile.block_t) * B * H,)](
        inputs[0],
        *q.stride()[:3],
        inputs[1],
        *k.stride()[:3],
        inputs[2],
        *v.stride()[:3],
        out,
        *out.stride()[:3],
        lse,
        B,
        H,
        T,
        S,
        window,
        scale * LOG2_E,
        min(section_of(k) * (H // G), B * H),
        GROUP=H // G,
        HEAD_DIM=K,
        WIDTH=width,
        BLOCK_T=tile.block_t,
        BLOCK_S=tile.block_s,
        CAUSAL=causal,
        WINDOWED=window > 0,
        TMA=tma,
        UPCAST=UPCAST,
        **tile.options(),
    )
    return out, lse


def _launch(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    return launch_forward(q, k, v, causal, window, scale)


def _forward_fake(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    return like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.causal, ctx.window, ctx.scale = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return None, None, None, None, None, None
    return (*backward(dout, *ctx.saved_tensors, ctx.causal, ctx.window, ctx.scale), None, None, None)


_operator = Operator("flash_attention", _launch, _forward_fake, _setup, _backward)


# ---------------------------------------------------------------------------------------------------------
# For everybody
# ---------------------------------------------------------------------------------------------------------


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(
                f"{name} must have 4 axes (batch, heads, length, head dim), got shape {tuple(x.shape)}"
            )
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"q, k and v must share dtype and device, got q {q.dtype} on {q.device}, "
                f"{name} {x.dtype} on {x.device}"
            )
    if k.shape != v.shape:
        raise ValueError(f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q and k must agree in batch and head dim, got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if q.shape[1] != k.shape[1] and (k.shape[1] == 0 or q.shape[1] % k.shape[1]):
        raise ValueError(
            f"the heads of q must be a multiple of those of k, got {q.shape[1]} and {k.shape[1]}"
        )
    if window is not None and (window < 1 or not causal):
        raise ValueError(
            f"window must be at least 1 and needs causal=True, got window={window}, causal={causal}"
        )
    if scale is not None and not (0 < scale < math.inf):
        raise ValueError(f"scale must be positive and finite, got {scale}")


def reference(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T K"]:
    """The same in plain PyTorch, with the scores in memory; in float64 the oracle of the tests."""
    T, S = q.shape[2], k.shape[2]
    group = q.shape[1] // max(k.shape[1], 1)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen = _mask(T, S, causal, window, q.device)
    weights = torch.softmax(scores.masked_fill(~seen, -math.inf), -1)
    return weights.masked_fill(~seen, 0.0) @ v  # rows that see nothing: 0 where softmax gives nan


def _mask(T: int, S: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    position = torch.arange(S - T, S, device=device)[:, None]
    s = torch.arange(S, device=device)[None, :]
    seen = s <= position if causal else torch.ones(T, S, dtype=torch.bool, device=device)
    return seen & (s > position - window) if window is not None else seen


def _fallback(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float | None
) -> Tensor:
    """PyTorch's own attention, for dtypes, devices and head dimensions that the kernels don't take."""
    T, S = q.shape[2], k.shape[2]
    if not q.numel() or not S or (causal and T > S):
        return reference(q, k, v, causal, window, scale)
    square = causal and window is None and T == S
    mask = _mask(T, S, causal, window, q.device) if causal and not square else None
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=square, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def flash_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B G S K"],
    v: Float[Tensor, "B G S K"],
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B H T K"]:
    """Attention of H query heads to G key/value heads, each shared by H / G query heads in a row.

    Args:
        q: queries; the last T of S positions where T and S differ (decoding with a cache).
        k, v: keys and values. None of the three need be contiguous.
        causal: a query sees the keys up to its own position. Rows that see no key (T > S) give 0.
        window: with ``causal``, the query at position t sees keys t - window + 1 .. t only.
        scale: of the scores; K ** -0.5 where it is None.

    Float32, bfloat16 and float16 with K up to 256 run in the kernels (float32 without tf32), anything else in
    PyTorch's ``scaled_dot_product_attention``. In the kernels output and gradients are bitwise repeatable and
    can be differentiated once.

    Raises:
        ValueError: shapes, dtypes or devices that don't fit together, a window without ``causal`` or below 1,
            a scale that is not positive.
        TypeError: tensors of integers.
    """
    _check(q, k, v, causal, window, scale)
    check_floating(q=q)
    if not usable(q, k, v) or not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        return _fallback(q, k, v, causal, window, scale)
    result = _operator(q, k, v, causal, window or 0, q.shape[3] ** -0.5 if scale is None else scale)
    return result[0]


# ---------------------------------------------------------------------------------------------------------
# Benchmark
# ---------------------------------------------------------------------------------------------------------


def _inputs(shape: Shape, generator: torch.Generator) -> dict[str, Any]:
    query = ("batch", "heads", "length", "head_dim")
    key = ("batch", "kv_heads", "length", "head_dim")
    drawn = {"q": normal(shape, generator, *query)}
    return drawn | {name: normal(shape, generator, *key) for name in ("k", "v")}


def _sdpa(backend: str) -> Callable[[], Callable[..., Tensor]]:
    """PyTorch's scaled_dot_product_attention, held to one backend."""

    def make() -> Callable[..., Tensor]:
        if not torch.cuda.is_available():
            raise UnavailableError("backends of scaled_dot_product_attention are compared on a GPU only")
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
                )

        return attend

    return make


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.numel() // q.shape[-1] * k.shape[2] > 2**32:
        raise UnavailableError("the scores would take more than 8 GiB")
    return reference(q, k, v)


def _work(shape: Shape) -> dict[str, Work]:
    B, H, G, T, K = (shape[name] for name in ("batch", "heads", "kv_heads", "length", "head_dim"))
    size = shape.dtype.itemsize
    queries, keys, rows = B * H * T * K * size, B * G * T * K * size, B * H * T * 4
    flops = 2 * B * H * T * T * K  # half of 4: causal, by the convention of the papers
    return {
        "forward": Work(bytes=2 * queries + 2 * keys + rows, flops=flops),
        # q, out and dout read, dq written; k and v read, dk and dv written
        "backward": Work(bytes=4 * queries + 4 * keys + rows, flops=flops * 5 // 2),
    }


def _shape(batch: int, heads: int, kv_heads: int, length: int, head_dim: int) -> Shape:
    return Shape(
        {"batch": batch, "heads": heads, "kv_heads": kv_heads, "length": length, "head_dim": head_dim}
    )


def _checked(shape: Shape) -> Shape:
    """One key/value head and at most 4,096 positions: the reference's scores in float64 must fit."""
    heads, length = shape["heads"] // shape["kv_heads"], min(shape["length"], 4096)
    return shape.with_sizes(batch=1, heads=heads, kv_heads=1, length=length)


BENCH = Bench(
    name="attention",
    inputs=_inputs,
    ours=flash_attention,
    reference=reference,
    grads=("q", "k", "v"),
    peers={
        "eager": lambda: _eager,
        "SDPA flash": _sdpa("FLASH_ATTENTION"),
        "SDPA cuDNN": _sdpa("CUDNN_ATTENTION"),
        "SDPA efficient": _sdpa("EFFICIENT_ATTENTION"),
    },
    work=_work,
    shapes=(
        _shape(4, 16, 16, 4096, 64),
        _shape(4, 16, 16, 4096, 128),
        _shape(1, 16, 16, 16384, 128),
        _shape(1, 16, 16, 16384, 64),
    ),
    tiny=(_shape(1, 2, 1, 100, 32),),
    full=tuple(
        _shape(max(16384 // length, 1), 16, heads, length, head_dim)
        for length in (128, 512, 1024, 2048, 8192, 65536)
        for head_dim in (16, 32, 64, 128)
        for heads in ((4, 16) if length == 2048 else (16,))
    ),
    bound="matmul",
    check=_checked,
)
