"""Backward pass of FlashAttention-2 in Triton: gradients of q, k and v with the probabilities recomputed.

Source: Dao (2023, arXiv:2307.08691), algorithm 2. With S = scale Q K^T, P = softmax(S), O = P V:

    dV = P^T dO     dP = dO V^T     dS = P * (dP - delta)     dQ = scale dS K     dK = scale dS^T Q

where ``delta``, the row sum of dO * O, equals the row sum of P * dP, and P = exp(S - logsumexp) needs no
second softmax. Three kernels:

- ``_delta_kernel``: one pass over O and dO.
- ``_keys_kernel``: one program owns BLOCK_S keys and walks over the queries that see them, through all heads
  of the group; dK and dV stay in registers, so GQA needs no sum between programs. It computes the transposed
  tiles S^T and dP^T, whose layout in registers is already that of the left operands of the next products.
- ``_queries_kernel``: one program owns BLOCK_T queries and walks over their keys, for dQ.

Walking twice computes S and dP twice: seven products of tiles for each pair of tiles instead of five. But no
two programs add to one number, so there are no atomics, and two runs give the same bits. And it was faster: a
single walk that also added its share of dQ to a float32 buffer (Hopper's copy engine can add) holds more in
registers, and on an H100 took longer on every shape tried (2026-11-26; see NOTES.md).

FLOPs, counted as in the papers whatever is recomputed: 10 K per query-key pair, 2.5 times the forward's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels._runtime import UPCAST, Operator, capability, cdiv, tl, triton
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


@triton.jit(do_not_specialize=["H", "T"])
def _delta_kernel(
    OUT,
    o_stride_b,
    o_stride_h,
    o_stride_t,
    DOUT,
    do_stride_b,
    do_stride_h,
    do_stride_t,
    DELTA,
    H,
    T,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """delta = row sums of dO * O, in float32."""
    t0 = tl.program_id(0) * BLOCK_T
    batch_head = tl.program_id(1)
    batch, head = batch_head // H, batch_head % H
    o_head = head_of(OUT, o_stride_b, o_stride_h, batch, head, False)
    do_head = head_of(DOUT, do_stride_b, do_stride_h, batch, head, False)
    o = load_tile(o_head, o_stride_t, batch, head, t0, T, HEAD_DIM, WIDTH, BLOCK_T, False, False)
    do = load_tile(do_head, do_stride_t, batch, head, t0, T, HEAD_DIM, WIDTH, BLOCK_T, False, False)
    t = t0 + tl.arange(0, BLOCK_T)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(DELTA + tl.cast(batch_head, tl.int64) * T + t, delta, mask=t < T)


@triton.jit
def _walk_queries(
    dk,
    dv,
    k,
    v,
    Q,
    q_stride_t,
    DOUT,
    do_stride_t,
    LSE,
    DELTA,
    batch,
    head,
    start,
    end,
    T,
    S,
    s,
    window,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    MASKED: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Add to dK and dV of the keys ``s`` what the queries ``start`` .. ``end`` of one head send them."""
    for t0 in tl.range(start, end, BLOCK_T):
        q = load_tile(Q, q_stride_t, batch, head, t0, T, HEAD_DIM, WIDTH, BLOCK_T, TMA, UPCAST)
        do = load_tile(DOUT, do_stride_t, batch, head, t0, T, HEAD_DIM, WIDTH, BLOCK_T, TMA, UPCAST)
        t = t0 + tl.arange(0, BLOCK_T)
        # Rows beyond T: exp2(0 - inf) = 0, so that they send nothing.
        lse = tl.load(LSE + t, mask=t < T, other=float("inf"))
        delta = tl.load(DELTA + t, mask=t < T, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee")
        p = tl.math.exp2(scores * scale_log2 - (lse * 1.4426950408889634)[None, :])
        if MASKED:
            seen = visible((t + S - T)[None, :], s[:, None], S, window, CAUSAL, WINDOWED)
            p = tl.where(seen, p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        ds = (p * (dp - delta[None, :])).to(q.dtype)
        dk = tl.dot(ds, q, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=["B", "G", "T", "S", "window", "section"])
def _keys_kernel(
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
    DOUT,
    do_stride_b,
    do_stride_h,
    do_stride_t,
    DK,
    dk_stride_b,
    dk_stride_h,
    dk_stride_t,
    DV,
    dv_stride_b,
    dv_stride_h,
    dv_stride_t,
    LSE,
    DELTA,
    B,
    G,
    T,
    S,
    window,
    scale,
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
    """dK and dV of BLOCK_S keys of one key/value head."""
    # The first keys are seen by the most queries, and go first.
    tile, batch_head = place(tl.cdiv(S, BLOCK_S), B * G, section)
    batch, kv_head = batch_head // G, batch_head % G
    s0 = tile * BLOCK_S
    s = s0 + tl.arange(0, BLOCK_S)
    shift = S - T

    # Queries start .. inner lie on the diagonal, inner .. outer see all keys of the tile, outer .. end lie on
    # the edge of the window. In the tile that holds the end of the keys all are masked.
    start = 0
    inner = 0
    outer = tl.cdiv(T, BLOCK_T) * BLOCK_T
    end = T
    if CAUSAL:
        start = tl.maximum(s0 - shift, 0) // BLOCK_T * BLOCK_T
        inner = tl.cdiv(tl.maximum(s0 + BLOCK_S - 1 - shift, 0), BLOCK_T) * BLOCK_T
    if WINDOWED:
        end = tl.minimum(T, tl.maximum(s0 + BLOCK_S - 1 - shift + window, 0))
        outer = tl.maximum(s0 + window - shift, 0) // BLOCK_T * BLOCK_T
    if s0 + BLOCK_S > S:
        inner = tl.cdiv(T, BLOCK_T) * BLOCK_T
    inner = tl.minimum(inner, tl.cdiv(tl.maximum(end, start), BLOCK_T) * BLOCK_T)
    outer = tl.maximum(outer, inner)

    k_head = head_of(K, k_stride_b, k_stride_h, batch, kv_head, TMA)
    v_head = head_of(V, v_stride_b, v_stride_h, batch, kv_head, TMA)
    k = load_tile(k_head, k_stride_t, batch, kv_head, s0, S, HEAD_DIM, WIDTH, BLOCK_S, TMA, UPCAST)
    v = load_tile(v_head, v_stride_t, batch, kv_head, s0, S, HEAD_DIM, WIDTH, BLOCK_S, TMA, UPCAST)
    dk = tl.zeros((BLOCK_S, WIDTH), tl.float32)
    dv = tl.zeros((BLOCK_S, WIDTH), tl.float32)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        q_head = head_of(Q, q_stride_b, q_stride_h, batch, head, TMA)
        do_head = head_of(DOUT, do_stride_b, do_stride_h, batch, head, TMA)
        row = (tl.cast(batch, tl.int64) * G * GROUP + head) * T
        # fmt: off
        dk, dv = _walk_queries(
            dk, dv, k, v, q_head, q_stride_t, do_head, do_stride_t, LSE + row, DELTA + row,
            batch, head, start, inner, T, S, s, window, scale_log2,
            HEAD_DIM, WIDTH, BLOCK_T, CAUSAL, WINDOWED, True, TMA, UPCAST,
        )
        dk, dv = _walk_queries(
            dk, dv, k, v, q_head, q_stride_t, do_head, do_stride_t, LSE + row, DELTA + row,
            batch, head, inner, tl.minimum(outer, end), T, S, s, window, scale_log2,
            HEAD_DIM, WIDTH, BLOCK_T, CAUSAL, WINDOWED, False, TMA, UPCAST,
        )
        if WINDOWED:
            dk, dv = _walk_queries(
                dk, dv, k, v, q_head, q_stride_t, do_head, do_stride_t, LSE + row, DELTA + row,
                batch, head, outer, end, T, S, s, window, scale_log2,
                HEAD_DIM, WIDTH, BLOCK_T, CAUSAL, WINDOWED, True, TMA, UPCAST,
            )
        # fmt: on
    dk_head = head_of(DK, dk_stride_b, dk_stride_h, batch, kv_head, False)
    dv_head = head_of(DV, dv_stride_b, dv_stride_h, batch, kv_head, False)
    store_tile(dk_head, dk_stride_t, s0, S, dk * scale, HEAD_DIM, WIDTH, BLOCK_S)
    store_tile(dv_head, dv_stride_t, s0, S, dv, HEAD_DIM, WIDTH, BLOCK_S)


@triton.jit
def _walk_keys_for_dq(
    dq,
    q,
    do,
    lse2,
    delta,
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
    """Add to dQ what the keys ``start`` .. ``end`` send."""
    for s0 in tl.range(start, end, BLOCK_S):
        k = load_tile(K, k_stride_t, batch, kv_head, s0, S, HEAD_DIM, WIDTH, BLOCK_S, TMA, UPCAST)
        v = load_tile(V, v_stride_t, batch, kv_head, s0, S, HEAD_DIM, WIDTH, BLOCK_S, TMA, UPCAST)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        p = tl.math.exp2(scores * scale_log2 - lse2[:, None])
        if MASKED:
            s = s0 + tl.arange(0, BLOCK_S)
            seen = visible(position[:, None], s[None, :], S, window, CAUSAL, WINDOWED)
            p = tl.where(seen, p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=["B", "H", "T", "S", "window", "section"])
def _queries_kernel(
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
    DOUT,
    do_stride_b,
    do_stride_h,
    do_stride_t,
    DQ,
    dq_stride_b,
    dq_stride_h,
    dq_stride_t,
    LSE,
    DELTA,
    B,
    H,
    T,
    S,
    window,
    scale,
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
    """dQ of BLOCK_T queries of one head."""
    n_tiles = tl.cdiv(T, BLOCK_T)
    tile, batch_head = place(n_tiles, B * H, section)
    if CAUSAL:
        tile = n_tiles - 1 - tile
    batch, head = batch_head // H, batch_head % H
    kv_head = head // GROUP
    t0 = tile * BLOCK_T
    first = t0 + S - T
    position = first + tl.arange(0, BLOCK_T)
    start, inner, outer, end = key_ranges(first, S, window, BLOCK_T, BLOCK_S, CAUSAL, WINDOWED)

    q_head = head_of(Q, q_stride_b, q_stride_h, batch, head, TMA)
    do_head = head_of(DOUT, do_stride_b, do_stride_h, batch, head, TMA)
    k_head = head_of(K, k_stride_b, k_stride_h, batch, kv_head, TMA)
    v_head = head_of(V, v_stride_b, v_stride_h, batch, kv_head, TMA)
    q = load_tile(q_head, q_stride_t, batch, head, t0, T, HEAD_DIM, WIDTH, BLOCK_T, TMA, UPCAST)
    do = load_tile(do_head, do_stride_t, batch, head, t0, T, HEAD_DIM, WIDTH, BLOCK_T, TMA, UPCAST)
    t = t0 + tl.arange(0, BLOCK_T)
    row = tl.cast(batch_head, tl.int64) * T
    lse2 = tl.load(LSE + row + t, mask=t < T, other=float("inf")) * 1.4426950408889634
    delta = tl.load(DELTA + row + t, mask=t < T, other=0.0)
    dq = tl.zeros((BLOCK_T, WIDTH), tl.float32)
    # fmt: off
    if WINDOWED:
        dq = _walk_keys_for_dq(
            dq, q, do, lse2, delta, k_head, k_stride_t, v_head, v_stride_t, batch, kv_head, start, inner,
            S, position, window, scale_log2, HEAD_DIM, WIDTH, BLOCK_S, CAUSAL, WINDOWED, True, TMA, UPCAST,
        )
    dq = _walk_keys_for_dq(
        dq, q, do, lse2, delta, k_head, k_stride_t, v_head, v_stride_t, batch, kv_head, inner, outer,
        S, position, window, scale_log2, HEAD_DIM, WIDTH, BLOCK_S, CAUSAL, WINDOWED, False, TMA, UPCAST,
    )
    dq = _walk_keys_for_dq(
        dq, q, do, lse2, delta, k_head, k_stride_t, v_head, v_stride_t, batch, kv_head, outer, end,
        S, position, window, scale_log2, HEAD_DIM, WIDTH, BLOCK_S, CAUSAL, WINDOWED, True, TMA, UPCAST,
    )
    # fmt: on
    dq_head = head_of(DQ, dq_stride_b, dq_stride_h, batch, head, False)
    store_tile(dq_head, dq_stride_t, t0, T, dq * scale, HEAD_DIM, WIDTH, BLOCK_T)


class BackwardTiles(NamedTuple):
    """Tiles of the kernel over keys and of the kernel over queries."""

    keys: Tile
    queries: Tile


def backward_tiles(width: int, element_size: int, hopper: bool) -> BackwardTiles:
    """Tiles for a padded head dimension and an element size in bytes; on Hopper found by a sweep."""
    if UPCAST:
        return BackwardTiles(Tile(64, 64, 4, 1), Tile(64, 64, 4, 1))
    if element_size == 4:  # see ``attention.forward_tile``
        small = Tile(32, 32, 4, 1) if width <= 64 else Tile(16, 32 if width == 128 else 16, 8, 1)
        return BackwardTiles(small, small)
    if width == 256:
        return BackwardTiles(Tile(32, 64, 8, 1), Tile(64, 32, 8, 1))
    if hopper and width == 128:
        return BackwardTiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2))
    if hopper:
        return BackwardTiles(Tile(128, 64, 4, 2), Tile(64, 64, 4, 3))
    if width == 128:
        return BackwardTiles(Tile(32, 64, 4, 2), Tile(64, 32, 4, 2))
    return BackwardTiles(Tile(64, 64, 4, 2), Tile(64, 64, 4, 2))


def _inputs(tensors: tuple[Tensor, ...], tile: Tile, width: int, tma: bool) -> list[object]:
    """q, k, v and dout as a kernel takes them: descriptor or pointer, then three strides, each."""
    blocks = (tile.block_t, tile.block_s, tile.block_s, tile.block_t)
    found: list[object] = []
    for x, block in zip(tensors, blocks, strict=True):
        found += [describe(x, block, width) if tma else x, *x.stride()[:3]]
    return found


def launch_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    window: int,
    scale: float,
    tiles: BackwardTiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, laid out as they are. ``window`` 0 means none."""
    B, H, T, K = q.shape
    G, S = k.shape[1:3]
    dq, dk, dv = like(q), like(k), like(v)
    if not T * S * B * H * K:
        return dq.zero_(), dk.zero_(), dv.zero_()
    tensors = tuple(with_unit_stride(x) for x in (q, k, v, dout))
    dout = tensors[3]
    width = width_of(K)
    tma = can_use_tma(*tensors)
    if tiles is None:
        tiles = backward_tiles(width, q.element_size(), capability(q.device)[0] == 9)
    section = section_of(k)
    shared = {
        "GROUP": H // G,
        "HEAD_DIM": K,
        "WIDTH": width,
        "CAUSAL": causal,
        "WINDOWED": window > 0,
        "TMA": tma,
        "UPCAST": UPCAST,
    }

    delta = torch.empty_like(lse)
    _delta_kernel[(cdiv(T, 64), B * H)](
        out, *out.stride()[:3], dout, *dout.stride()[:3], delta, H, T, HEAD_DIM=K, WIDTH=width, BLOCK_T=64
    )
    tile = tiles.keys
    _keys_kernel[(cdiv(S, tile.block_s) * B * G,)](
        *_inputs(tensors, tile, width, tma),
        dk,
        *dk.stride()[:3],
        dv,
        *dv.stride()[:3],
        lse,
        delta,
        B,
        G,
        T,
        S,
        window,
        scale,
        scale * LOG2_E,
        min(section, B * G),
        BLOCK_T=tile.block_t,
        BLOCK_S=tile.block_s,
        **tile.options(),
        **shared,
    )
    tile = tiles.queries
    _queries_kernel[(cdiv(T, tile.block_t) * B * H,)](
        *_inputs(tensors, tile, width, tma),
        dq,
        *dq.stride()[:3],
        lse,
        delta,
        B,
        H,
        T,
        S,
        window,
        scale,
        scale * LOG2_E,
        min(section * (H // G), B * H),
        BLOCK_T=tile.block_t,
        BLOCK_S=tile.block_s,
        **tile.options(),
        **shared,
    )
    return dq, dk, dv


def _launch(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return launch_backward(dout, q, k, v, out, lse, causal, window, scale)


def _fake(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return like(q), like(k), like(v)


backward = Operator("flash_attention_backward", _launch, _fake)
