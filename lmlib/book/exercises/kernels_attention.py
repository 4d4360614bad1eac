"""Exercises on FlashAttention: forward in tiles of PyTorch and in Triton, backward by recomputation."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels._runtime import INTERPRETED, UPCAST, tl, triton
from lmlib.book.exercises.kernels_checks import (
    DEVICE,
    GPU,
    SECONDS,
    Inputs,
    Seen,
    bytes_of,
    compared,
    draw,
    slip,
    watched,
    watching,
)
from lmlib.book.exercises.machinery import Case, Exercise, Wrong

BF16 = torch.bfloat16


def _written_out(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention with the scores in memory, and each row's logsumexp in float32 or better."""
    T, S = q.shape[-2], k.shape[-2]
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        scores = scores.masked_fill(later, -math.inf)
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return scores.softmax(-1) @ v, wide.logsumexp(-1)


def _forward_of_tiles(
    q: Tensor, k: Tensor, v: Tensor, block_t: int, block_s: int, causal: bool
) -> tuple[Tensor, Tensor]:
    return _written_out(q, k, v, causal)


def _qkv(
    *lead: int, T: int, S: int, K: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    q = draw(*lead, T, K, dtype=dtype, scale=scale)
    return q, draw(*lead, S, K, seed=1, dtype=dtype), draw(*lead, S, K, seed=2, dtype=dtype)


def _largest_of(limit: Callable[..., int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Of a function, one that says whether it made a tensor of more bytes than `limit` allows."""

    def around(function: Callable[..., Any]) -> Callable[..., str]:
        def called(*arguments: Any) -> str:
            seen, most = watched(function)(*arguments), limit(*arguments)
            return _SMALL if seen.largest <= most else f"{seen.largest / most:.1f} times that"

        return called

    return around


def _flops_of(function: Callable[..., Any]) -> Callable[..., str]:
    """Of a function with `causal` as last argument, one that says what share of the products it saves."""

    def called(*arguments: Any) -> str:
        from torch.utils.flop_counter import FlopCounterMode  # imports Triton, so not before kernels._runtime

        counts = []
        for causal in (False, True):
            with FlopCounterMode(display=False) as counter:
                function(*arguments, causal)
            counts.append(counter.get_total_flops())
        share = counts[1] / max(counts[0], 1)
        return _HALF if share <= 0.65 else f"{100 * share:.0f} % of them"

    return called


_SMALL = "no tensor larger than an input"
_HALF = "about half of the products"


def _memory_of(limit: Callable[..., int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Of a function, one that says whether its peak on the GPU is within `limit` bytes beyond its inputs."""

    def around(function: Callable[..., Any]) -> Callable[..., str]:
        def called(*arguments: Any) -> str:
            from kernels.bench.timing import Timed, memory_of

            work = Timed(lambda _: function(*arguments))
            memory_of(work)
            (peak, _), most = memory_of(work), limit(*arguments)
            return _LINEAR if peak <= most else f"{peak / most:.1f} times as much"

        return called

    return around


_LINEAR = "memory linear in length"


# ---- kernels/flash-tiles


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, block_t: int, block_s: int, causal: bool
) -> tuple[Tensor, Tensor]:
    T, S = q.shape[-2], k.shape[-2]
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    for t in range(0, T, block_t):
        queries = q[..., t : t + block_t, :].float() * q.shape[-1] ** -0.5
        end = min(t + block_t, T)
        position = torch.arange(t, end, device=q.device)[:, None] + S - T
        m = torch.full((*queries.shape[:-1], 1), -torch.inf, device=q.device)
        total, acc = torch.zeros_like(m), torch.zeros_like(queries)
        for s in range(0, end + S - T if causal else S, block_s):
            keys, values = k[..., s : s + block_s, :].float(), v[..., s : s + block_s, :].float()
            scores = queries @ keys.mT
            if causal:
                later = torch.arange(s, s + keys.shape[-2], device=q.device) > position
                scores = scores.masked_fill(later, -torch.inf)
            m_new = torch.maximum(m, scores.amax(-1, keepdim=True))
            p, shrink = (scores - m_new).exp(), (m - m_new).exp()
            total = total * shrink + p.sum(-1, keepdim=True)
            acc = acc * shrink + p @ values
            m = m_new
        out[..., t:end, :] = acc / total
        lse[..., t:end] = (m + total.log()).squeeze(-1)
    return out, lse


def _tiles_slip(name: str, old: str, new: str) -> Any:
    return slip(name, old, new, flash_forward)


def _tiles_case(name: str, make: Callable[[], Inputs], message: str, call: str) -> Case:
    return compared(
        name,
        make,
        message,
        call=call,
        results=("out", "lse"),
        reference=_forward_of_tiles,
        peer=_forward_of_tiles,
        interpreted=False,
    )


def _by_hand(block_s: int) -> Callable[[], Inputs]:
    """One query whose scores are 0 and log 3."""

    def make() -> Inputs:
        q = torch.tensor([[2.0, 0.0, 0.0, 0.0]], device=DEVICE)
        k = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, 0.0, 0.0]], device=DEVICE)
        v = torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0]], device=DEVICE)
        return q, k, v, 1, block_s, False

    return make


_BY_HAND = [[[1.0, 3.0, 0.0, 0.0]], [math.log(4)]]

FLASH_TILES = Exercise(
    name="kernels/flash-tiles",
    title="FlashAttention forward, in tiles of PyTorch",
    task="""
Write `flash_forward(q, k, v, block_t, block_s, causal)` for `q` (..., T, K), `k` and `v` (..., S, K). It
returns the pair (out, lse): attention with scores divided by √K, and the logsumexp of each query's scores,
(..., T).

Take `block_t` queries at a time, and for them `block_s` keys at a time; neither need divide T or S. No tensor
that you make may be larger than an input: the scores of a tile, yes, those of a row, no. Where `causal`, the
queries are the **last** T of S positions (T ≤ S), each sees the keys up to its own, and tiles that no query
of the block sees are not computed.

Compute in float32; `out` has the dtype of `q`, lse is float32.
""",
    difficulty=3,
    minutes=50,
    starter="""
import torch
from torch import Tensor


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, block_t: int, block_s: int, causal: bool
) -> tuple[Tensor, Tensor]:
    raise NotImplementedError
""",
    hints=(
        "For each query of the block carry three things through the keys: the largest score so far, the sum "
        "of exponentials relative to it, and the sum of values with these exponentials as weights.",
        "When the maximum grows from m to m', multiply both sums by `exp(m - m')` before you add the new "
        "tile. At the end out is one sum over the other, and lse is the maximum plus the log of the sum.",
        "Query t stands at position t + S − T. Keys at later positions get the score −inf before the maximum "
        "is taken. The last query of a block decides where the loop over keys ends.",
    ),
    solution=flash_forward,
    in_page=False,
    remark="""
Each iteration of the outer loop is independent of the others: in Triton it becomes a program. The first tile
of keys holds key 0, which every query sees, so that the maximum is finite from the first tile on and −inf −
(−inf) never comes up. With a sliding window it would.
""",
    cases=(
        Case(
            "one query, two keys",
            _by_hand(2),
            _BY_HAND,
            "The scores are 0 and log 3 (divided by √4): weights 1/4 and 3/4, logsumexp log 4.",
            then=lambda got: [each.tolist() for each in got],
            call="flash_forward(q, k, v, 1, 2, False)  # scores 0 and log 3",
            tolerance=1e-5,
        ),
        Case(
            "two tiles of one key",
            _by_hand(1),
            _BY_HAND,
            "In the second tile the maximum grows from 0 to log 3: what was summed before, weights and "
            "values, shrinks to a third.",
            then=lambda got: [each.tolist() for each in got],
            call="flash_forward(q, k, v, 1, 1, False)  # scores 0 and log 3",
            tolerance=1e-5,
        ),
        _tiles_case(
            "tiles that do not divide the lengths",
            lambda: (*_qkv(T=5, S=7, K=6), 2, 3, False),
            "The last tile of queries or of keys may be short.",
            "flash_forward(q, k, v, 2, 3, False)  # q (5, 6), k (7, 6)",
        ),
        _tiles_case(
            "causal",
            lambda: (*_qkv(T=10, S=10, K=6), 4, 3, True),
            "Mask before the maximum is taken. A tile may hold keys that some of its queries see and others "
            "do not, wherever it lies.",
            "flash_forward(q, k, v, 4, 3, True)  # q and k (10, 6)",
        ),
        _tiles_case(
            "causal, with more keys than queries",
            lambda: (*_qkv(T=5, S=12, K=6), 2, 4, True),
            "Queries are the last of the positions: query t sees key s where s ≤ t + S − T.",
            "flash_forward(q, k, v, 2, 4, True)  # q (5, 6), k (12, 6)",
        ),
        _tiles_case(
            "batch and heads, not contiguous",
            lambda: (*(x.transpose(1, 2) for x in _qkv(2, 20, T=3, S=3, K=8)), 8, 8, True),
            "Leading axes are a batch: index from the end, with `...`.",
            "flash_forward(q, k, v, 8, 8, True)  # q, k (2, 3, 20, 8)",
        ),
        _tiles_case(
            "large scores",
            lambda: (*_qkv(T=6, S=9, K=8, scale=300.0), 4, 4, False),
            "Exponentials of differences from the maximum so far, and no others.",
            "flash_forward(300 * q, k, v, 4, 4, False)",
        ),
        _tiles_case(
            "bfloat16",
            lambda: (*_qkv(2, T=40, S=40, K=16, dtype=BF16), 16, 16, True),
            "Carry maximum and sums in float32; out has q's dtype, lse float32.",
            "flash_forward(q, k, v, 16, 16, True)  # bfloat16",
        ),
        Case(
            "no large tensor",
            lambda: (*_qkv(2, T=256, S=256, K=8), 16, 16, True),
            _SMALL,
            "The scores of a tile are (..., block_t, block_s): no tensor may have all keys of a query.",
            around=_largest_of(lambda q, *_: bytes_of(q)),
            call="flash_forward(q, k, v, 16, 16, True)  # q (2, 256, 8)",
            seconds=SECONDS,
        ),
        Case(
            "tiles above the diagonal",
            lambda: (*_qkv(T=128, S=128, K=8), 16, 16),
            _HALF,
            "With a causal mask the loop over keys ends with the block's last query.",
            around=_flops_of,
            call="flash_forward(q, k, v, 16, 16, ...), products with and without a mask",
            seconds=SECONDS,
        ),
    )
    + (
        (
            _tiles_case(
                "GPU: long, bfloat16",
                lambda: (*_qkv(1, 4, T=4096, S=4096, K=64, dtype=BF16), 256, 256, True),
                "Right in the small, wrong in the large: carry the sums in float32.",
                "flash_forward(q, k, v, 256, 256, True)  # q (1, 4, 4,096, 64), bfloat16",
            ),
            Case(
                "GPU: memory",
                lambda: (*_qkv(1, 4, T=16_384, S=16_384, K=64, dtype=BF16), 512, 512, True),
                _LINEAR,
                "At the peak a few tiles beside the output: what belongs to a tile should not outlive it.",
                around=_memory_of(lambda q, *_: 3 * bytes_of(q) + 16 * 4 * 512 * 512 * 4),
                call="flash_forward(q, k, v, 512, 512, True)  # q (1, 4, 16,384, 64)",
                seconds=SECONDS,
            ),
        )
        if GPU
        else ()
    ),
    wrong=(
        Wrong(_tiles_slip("no_scale", " * q.shape[-1] ** -0.5", ""), "divided by √4"),
        Wrong(_tiles_slip("sum_not_rescaled", "total * shrink", "total"), "shrinks to a third"),
        Wrong(_tiles_slip("output_not_rescaled", "acc * shrink", "acc"), "shrinks to a third"),
        Wrong(
            _tiles_slip("positions_from_the_front", "[:, None] + S - T", "[:, None]"),
            "the last of the positions",
        ),
        Wrong(
            _tiles_slip(
                "masked_after_the_exponential", "scores = scores.masked_fill(later, -torch.inf)", "pass"
            ),
            "Mask before the maximum",
        ),
        Wrong(
            _tiles_slip("all_tiles", "end + S - T if causal else S", "S"), "ends with the block's last query"
        ),
        Wrong(_forward_of_tiles, "no tensor may have all keys"),
    ),
)

# ---- kernels/flash-backward


def flash_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    block_t: int,
    block_s: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    T, S, scale = q.shape[-2], k.shape[-2], q.shape[-1] ** -0.5
    dq, dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (q, k, v))
    delta = (dout.float() * out.float()).sum(-1, keepdim=True)
    for t in range(0, T, block_t):
        end = min(t + block_t, T)
        queries, upstream = q[..., t:end, :].float(), dout[..., t:end, :].float()
        position = torch.arange(t, end, device=q.device)[:, None] + S - T
        for s in range(0, end + S - T if causal else S, block_s):
            keys, values = k[..., s : s + block_s, :].float(), v[..., s : s + block_s, :].float()
            p = (queries @ keys.mT * scale - lse[..., t:end, None]).exp()
            if causal:
                later = torch.arange(s, s + keys.shape[-2], device=q.device) > position
                p = p.masked_fill(later, 0.0)
            dv[..., s : s + block_s, :] += p.mT @ upstream
            dp = upstream @ values.mT
            dscores = p * (dp - delta[..., t:end, :]) * scale
            dq[..., t:end, :] += dscores @ keys
            dk[..., s : s + block_s, :] += dscores.mT @ queries
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _backward_of_torch(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    block_t: int,
    block_s: int,
    causal: bool,
) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    made, _ = _written_out(leaves[0], leaves[1], leaves[2], causal)
    return torch.autograd.grad(made, leaves, dout)


def _backward_inputs(
    *lead: int,
    T: int,
    S: int,
    K: int,
    blocks: tuple[int, int],
    causal: bool,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    q, k, v = _qkv(*lead, T=T, S=S, K=K, dtype=dtype)
    out, lse = _written_out(q.double(), k.double(), v.double(), causal)
    return draw(*lead, T, K, seed=3, dtype=dtype), q, k, v, out.to(dtype), lse.float(), *blocks, causal


def _recompute_slip(name: str, old: str, new: str) -> Any:
    return slip(name, old, new, flash_backward)


def _recompute_case(name: str, make: Callable[[], Inputs], message: str, call: str) -> Case:
    return compared(
        name,
        make,
        message,
        call=call,
        results=("dq", "dk", "dv"),
        reference=_backward_of_torch,
        peer=_backward_of_torch,
        interpreted=False,
    )


def _backward_by_hand() -> Inputs:
    q, k, v, *_ = _by_hand(2)()
    out, lse = (torch.tensor(each, device=DEVICE) for each in _BY_HAND)
    dout = torch.tensor([[0.0, 1.0, 0.0, 0.0]], device=DEVICE)
    return dout, q, k, v, out, lse, 1, 2, False


# delta 3, dp (0, 4), weights (1/4, 3/4): gradients of the scores -3/4 and 3/4, halved by the scale.
_BACKWARD_BY_HAND = [
    [[0.375 * math.log(3), 0.0, 0.0, 0.0]],
    [[-0.75, 0.0, 0.0, 0.0], [0.75, 0.0, 0.0, 0.0]],
    [[0.0, 0.25, 0.0, 0.0], [0.0, 0.75, 0.0, 0.0]],
]

FLASH_BACKWARD = Exercise(
    name="kernels/flash-backward",
    title="FlashAttention backward, by recomputation",
    task="""
Write `flash_backward(dout, q, k, v, out, lse, block_t, block_s, causal)`, which returns the triple (dq, dk,
dv) for the forward of the exercise before. `dout` is the gradient of `out`; `out` and `lse` are what the
forward returned. The weights were not kept: compute those of each tile again, from the scores and lse.

As before no tensor that you make may be larger than an input in float32, tiles that no query of the block
sees are not computed, and all sums are carried in float32; the gradients have the dtypes of q, k and v.
""",
    difficulty=4,
    minutes=60,
    starter="""
import torch
from torch import Tensor


def flash_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    block_t: int,
    block_s: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError
""",
    hints=(
        "With lse known there is nothing to rescale: a tile's weights are `exp(scores - lse)`, at once. "
        "Masked ones are 0.",
        "dV = Pᵀ dO and dP = dO Vᵀ. The gradient of the scores is P ∘ (dP − δ), where δ is, for each query, "
        "the sum of P ∘ dP over all keys.",
        "That sum over all keys is also the sum of dO ∘ O over the head's coordinates: compute it before the "
        "loops. Then dQ += dS K / √K and dK += dSᵀ Q / √K, tile by tile.",
    ),
    solution=flash_backward,
    in_page=False,
    remark="""
Five products for each tile, where the forward has two: that is the 2.5 in the convention for FLOPs. On a GPU
the loops are shared out: programs that own queries sum dQ, programs that own keys sum dK and dV, and the
weights are computed in both. `torch.autograd.Function` ties this to `flash_forward`; the chapter shows how.
""",
    cases=(
        Case(
            "one query, two keys",
            _backward_by_hand,
            _BACKWARD_BY_HAND,
            "Weights 1/4 and 3/4, dP = (0, 4), δ = 3: the scores get −3/4 and 3/4, and both products with "
            "them are divided by √4.",
            then=lambda got: [each.tolist() for each in got],
            call="flash_backward(dout, q, k, v, out, lse, 1, 2, False)  # scores 0 and log 3",
            tolerance=1e-5,
        ),
        _recompute_case(
            "tiles that do not divide the lengths",
            lambda: _backward_inputs(T=5, S=7, K=6, blocks=(2, 3), causal=False),
            "dK and dV add up over the blocks of queries, dQ over those of keys.",
            "flash_backward(dout, q, k, v, out, lse, 2, 3, False)  # q (5, 6), k (7, 6)",
        ),
        _recompute_case(
            "causal, with more keys than queries",
            lambda: _backward_inputs(T=6, S=11, K=6, blocks=(2, 4), causal=True),
            "A masked weight is 0, whatever exp(score − lse) says; query t stands at position t + S − T.",
            "flash_backward(dout, q, k, v, out, lse, 2, 4, True)  # q (6, 6), k (11, 6)",
        ),
        _recompute_case(
            "batch and heads",
            lambda: _backward_inputs(2, 3, T=20, S=20, K=8, blocks=(8, 8), causal=True),
            "Leading axes are a batch: index from the end, with `...`.",
            "flash_backward(dout, q, k, v, out, lse, 8, 8, True)  # q (2, 3, 20, 8)",
        ),
        _recompute_case(
            "bfloat16",
            lambda: _backward_inputs(2, T=150, S=150, K=16, blocks=(4, 32), causal=True, dtype=BF16),
            "Add up in float32, narrow at the end: gradients have the dtypes of q, k and v.",
            "flash_backward(dout, q, k, v, out, lse, 4, 32, True)  # q (2, 150, 16), bfloat16",
        ),
        Case(
            "no large tensor",
            lambda: _backward_inputs(2, T=256, S=256, K=8, blocks=(16, 16), causal=True),
            _SMALL,
            "The weights of a tile are (..., block_t, block_s): no tensor may have all keys of a query.",
            around=_largest_of(lambda dout, q, *_: bytes_of(q)),
            call="flash_backward(dout, q, k, v, out, lse, 16, 16, True)  # q (2, 256, 8)",
            seconds=SECONDS,
        ),
        Case(
            "tiles above the diagonal",
            lambda: _backward_inputs(T=128, S=128, K=8, blocks=(16, 16), causal=True)[:-1],
            _HALF,
            "With a causal mask the loop over keys ends with the block's last query.",
            around=_flops_of,
            call="flash_backward(dout, q, k, v, out, lse, 16, 16, ...), products with and without a mask",
            seconds=SECONDS,
        ),
    )
    + (
        (
            _recompute_case(
                "GPU: long, bfloat16",
                lambda: _backward_inputs(
                    1, 4, T=4096, S=4096, K=64, blocks=(256, 256), causal=True, dtype=BF16
                ),
                "Right in the small, wrong in the large: carry the sums in float32.",
                "flash_backward(dout, q, k, v, out, lse, 256, 256, True)  # q (1, 4, 4,096, 64), bfloat16",
            ),
            Case(
                "GPU: memory",
                lambda: _backward_inputs(
                    1, 4, T=8192, S=8192, K=64, blocks=(512, 512), causal=True, dtype=BF16
                ),
                _LINEAR,
                "At the peak the gradients and a few tiles: what belongs to a tile should not outlive it.",
                around=_memory_of(lambda dout, q, *_: 16 * bytes_of(q) + 16 * 4 * 512 * 512 * 4),
                call="flash_backward(dout, q, k, v, out, lse, 512, 512, True)  # q (1, 4, 8,192, 64)",
                seconds=SECONDS,
            ),
        )
        if GPU
        else ()
    ),
    wrong=(
        Wrong(_recompute_slip("no_delta", "(dp - delta[..., t:end, :])", "dp"), "δ = 3"),
        Wrong(_recompute_slip("no_scale_in_the_end", "t:end, :]) * scale", "t:end, :])"), "divided by √4"),
        Wrong(
            _recompute_slip(
                "last_block_only",
                "dv[..., s : s + block_s, :] += p",
                "dv[..., s : s + block_s, :] = p",
            ),
            "add up over the blocks",
        ),
        Wrong(_recompute_slip("not_masked", "p = p.masked_fill(later, 0.0)", "pass"), "A masked weight is 0"),
        Wrong(
            _recompute_slip(
                "sums_in_the_dtype_of_q", "torch.zeros_like(x, dtype=torch.float32)", "torch.zeros_like(x)"
            ),
            "Add up in float32",
        ),
        Wrong(_recompute_slip("all_tiles", "end + S - T if causal else S", "S"), "block's last query"),
        Wrong(_backward_of_torch, "no tensor may have all keys"),
    ),
)

# ---- kernels/flash-triton


# fmt: off
@triton.jit
def flash_kernel(
    Q, K, V, OUT, LSE,
    q_stride_b, q_stride_h, q_stride_t,
    k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t,
    H, T, S, scale,
    HEAD_DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
    CAUSAL: tl.constexpr, UPCAST: tl.constexpr,
):
    batch = tl.program_id(1) // H
    head = tl.program_id(1) % H
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.arange(0, HEAD_DIM)
    q_tile = Q + batch * q_stride_b + head * q_stride_h + t[:, None] * q_stride_t + column[None, :]
    q = tl.load(q_tile, mask=t[:, None] < T, other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    m = tl.full((BLOCK_T,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_T,), tl.float32)
    acc = tl.zeros((BLOCK_T, HEAD_DIM), tl.float32)
    end = S
    if CAUSAL:
        end = tl.minimum(S, (tl.program_id(0) + 1) * BLOCK_T)
    for start in range(0, end, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        k_tile = K + batch * k_stride_b + head * k_stride_h + s[:, None] * k_stride_t + column[None, :]
        v_tile = V + batch * v_stride_b + head * v_stride_h + s[:, None] * v_stride_t + column[None, :]
        k = tl.load(k_tile, mask=s[:, None] < S, other=0.0)
        v = tl.load(v_tile, mask=s[:, None] < S, other=0.0)
        if UPCAST:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        seen = s[None, :] < S
        if CAUSAL:
            seen = seen & (s[None, :] <= t[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        m_new = tl.maximum(m, tl.max(scores, 1))
        p = tl.exp(scores - m_new[:, None])
        shrink = tl.exp(m - m_new)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    row = tl.program_id(1) * T + t
    out = (acc / total[:, None]).to(OUT.dtype.element_ty)
    tl.store(OUT + row[:, None] * HEAD_DIM + column[None, :], out, mask=t[:, None] < T)
    tl.store(LSE + row, m + tl.log(total), mask=t < T)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    B, H, T, K = q.shape
    out = torch.empty((B, H, T, K), dtype=q.dtype, device=q.device)
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    block = 64 if K <= 64 else 32  # tiles of keys and values must fit into shared memory, in float32 too
    flash_kernel[(triton.cdiv(T, block), B * H)](
        q, k, v, out, lse, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        H, T, k.shape[2], K**-0.5,
        HEAD_DIM=K, BLOCK_T=block, BLOCK_S=block, CAUSAL=causal, UPCAST=UPCAST, num_stages=2,
    )
    return out, lse
# fmt: on


def _triton_slip(name: str, old: str, new: str) -> Any:
    return slip(name, old, new, flash_attention, flash_kernel)


def _triton_case(name: str, make: Callable[[], Inputs], message: str, call: str) -> Case:
    return compared(
        name, make, message, call=call, results=("out", "lse"), reference=_written_out, peer=_written_out
    )


def _kernel_ran(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of the function, one that calls it without and with a causal mask, and says what it did."""

    def called(*arguments: Any) -> dict[str, str]:
        calls: list[Seen] = []
        for causal in (False, True):
            with watching() as seen:
                function(*arguments, causal)
            calls.append(seen)
        whole, half = calls
        small = max(each.largest for each in calls) <= bytes_of(arguments[0])
        share = 100 * half.loaded / max(whole.loaded, 1)
        return {
            "Triton kernel": "ran" if half.launches else "none ran",
            "memory": _SMALL if small else "a larger one",
            "causal": _FEWER if not INTERPRETED or 0 < share <= 80 else f"{share:.0f} % of the bytes",
        }

    return called


_FEWER = "loads less than without a mask"


def _against_flash(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of the function, one that times it on a GPU beside PyTorch's own attention."""

    def called(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> str:
        from kernels.bench.timing import Clock, Timed

        clock = Clock()
        both = {
            "yours": Timed(lambda _: function(q, k, v, causal)),
            "torch": Timed(lambda _: F.scaled_dot_product_attention(q, k, v, is_causal=causal)),
        }
        for work in both.values():
            clock.warm_up(work)
        samples = {name: sorted(each) for name, each in clock.compare(both, 0.2).items()}
        yours, theirs = (samples[name][len(samples[name]) // 2] for name in ("yours", "torch"))
        return _NEAR if yours <= 5 * theirs else f"{yours / theirs:.1f} times PyTorch's"

    return called


_NEAR = "at most 5 times PyTorch's time"

FLASH_TRITON = Exercise(
    name="kernels/flash-triton",
    title="FlashAttention forward, in Triton",
    task="""
Write `flash_attention(q, k, v, causal)` in Triton, for `q` (B, H, T, K), `k` and `v` (B, H, S, K), with K one
of 16, 32, 64 and 128, and any lengths; where `causal`, T = S. It returns the pair (out, lse), contiguous:
attention with scores divided by √K, in the dtype of `q`, and each query's logsumexp (B, H, T) in float32.

One program owns a tile of queries of one head and walks over the keys. Scores never go to memory, and with a
causal mask the walk ends at the diagonal. Only the last axis of q, k and v is sure to be contiguous: heads
are often a transposed view. Products of tiles take the input's dtype, sums are float32.
""",
    difficulty=4,
    minutes=90,
    starter="""
import torch
from kernels._runtime import UPCAST, tl, triton
from torch import Tensor


@triton.jit
def flash_kernel(Q, K, V, OUT, LSE, H, T, S, scale, UPCAST: tl.constexpr):
    tile = tl.program_id(0)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    raise NotImplementedError
""",
    hints=(
        "The kernel is one iteration of the outer loop of `flash_forward`. Take a grid of (tiles of queries, "
        "B · H), and pass each tensor's first three strides.",
        "Load tiles of (BLOCK, K) with a mask on the rows; keys beyond S must get the score −inf, zeros will "
        "not do. `tl.dot` multiplies tiles whose sides are powers of two, 16 or more; `tl.trans` transposes.",
        'A GPU multiplies float32 tiles in TF32 unless you say `input_precision="ieee"`. The interpreter '
        "multiplies the raw bits of bfloat16: pass `UPCAST`, which is true there and only there, as a "
        "constexpr, and cast tiles to `tl.float32` where it is. The weights are cast to the values' dtype "
        "before the second product: `p.to(v.dtype)`.",
    ),
    solution=flash_attention,
    parts=(flash_kernel,),
    in_page=False,
    remark="""
What the library's kernel adds: key/value heads shared by several query heads, windows, head dimensions that
are no power of two, masks only in tiles on an edge, powers of two instead of e, the longest programs first,
Hopper's copy engine, and tiles chosen by measurement. Hold yours beside it with the exercise on benchmarks.
""",
    cases=(
        _triton_case(
            "one tile, not causal",
            lambda: (*_qkv(1, 1, T=64, S=64, K=16), False),
            "Scores divided by √K, softmax over keys, then the product with the values; lse is the maximum "
            "plus the log of the sum.",
            "flash_attention(q, k, v, False)  # q and k (1, 1, 64, 16)",
        ),
        _triton_case(
            "one query",
            lambda: (*_qkv(1, 1, T=1, S=5, K=16), False),
            "Keys beyond S get the score −inf: a zero row as key has the score 0, and joins the softmax.",
            "flash_attention(q, k, v, False)  # q (1, 1, 1, 16), k (1, 1, 5, 16)",
        ),
        _triton_case(
            "several tiles of odd length",
            lambda: (*_qkv(1, 1, T=70, S=150, K=32, scale=3.0), False),
            "When the maximum grows, rescale the sum of weights and the output so far, both.",
            "flash_attention(q, k, v, False)  # q (1, 1, 70, 32), k (1, 1, 150, 32)",
        ),
        _triton_case(
            "causal",
            lambda: (*_qkv(1, 1, T=150, S=150, K=16), True),
            "Query t sees the keys s ≤ t. Tiles on the diagonal need the mask; those beyond are left out.",
            "flash_attention(q, k, v, True)  # q and k (1, 1, 150, 16)",
        ),
        _triton_case(
            "batch and heads, transposed views",
            lambda: (*(x.transpose(1, 2) for x in _qkv(2, 20, T=3, S=3, K=16)), True),
            "Each of q, k and v has strides of its own for batch, head and row; the results are contiguous.",
            "flash_attention(q, k, v, True)  # q = (2, 20, 3, 16).transpose(1, 2)",
        ),
        _triton_case(
            "bfloat16",
            lambda: (*_qkv(1, 2, T=70, S=70, K=64, dtype=BF16), True),
            "Under the interpreter cast tiles to float32 before `tl.dot` (`UPCAST`). Sums are float32, out "
            "has q's dtype.",
            "flash_attention(q, k, v, True)  # q (1, 2, 70, 64), bfloat16",
        ),
        _triton_case(
            "heads of 128",
            lambda: (*_qkv(1, 1, T=65, S=65, K=128), True),
            "The head dimension is a constexpr of the kernel, not a fixed number.",
            "flash_attention(q, k, v, True)  # q and k (1, 1, 65, 128)",
        ),
        Case(
            "what is moved and kept",
            lambda: _qkv(1, 1, T=512, S=512, K=16),
            {"Triton kernel": "ran", "memory": _SMALL, "causal": _FEWER},
            "A Triton kernel does it, scores stay on the chip, and with a causal mask the walk over the "
            "keys ends with the tile's last query.",
            around=_kernel_ran,
            call="flash_attention(q, k, v, ...)  # q and k (1, 1, 512, 16), without and with a mask",
            seconds=SECONDS,
        ),
    )
    + (
        (
            _triton_case(
                "GPU: long, bfloat16",
                lambda: (*_qkv(2, 8, T=4099, S=4099, K=128, dtype=BF16), True),
                "Right in the small, wrong in the large: carry the sums in float32.",
                "flash_attention(q, k, v, True)  # q (2, 8, 4,099, 128), bfloat16",
            ),
            Case(
                "GPU: memory",
                lambda: (*_qkv(1, 16, T=16_384, S=16_384, K=64, dtype=BF16), True),
                _LINEAR,
                "Nothing but out and lse: no scores, no copies of q, k and v.",
                around=_memory_of(lambda q, *_: bytes_of(q) + 8 * q.numel() // q.shape[-1] + 2**21),
                call="flash_attention(q, k, v, True)  # q (1, 16, 16,384, 64), bfloat16",
                seconds=SECONDS,
            ),
            Case(
                "GPU: speed",
                lambda: (*_qkv(4, 16, T=4096, S=4096, K=64, dtype=BF16), True),
                _NEAR,
                "Products in bfloat16 with float32 sums, tiles of 64 to 128, and no work beyond the "
                "diagonal.",
                around=_against_flash,
                call="flash_attention(q, k, v, True)  # q (4, 16, 4,096, 64), bfloat16",
                seconds=2 * SECONDS,
            ),
        )
        if GPU
        else ()
    ),
    wrong=(
        Wrong(_triton_slip("no_scale", 'tl.trans(k), input_precision="ieee") * scale', "tl.trans(k))"), "√K"),
        Wrong(
            _triton_slip("zeros_beyond_the_keys", "seen = s[None, :] < S", "seen = s[None, :] >= 0"),
            "Keys beyond S",
        ),
        Wrong(_triton_slip("output_not_rescaled", "acc * shrink[:, None]", "acc"), "rescale the sum"),
        Wrong(
            _triton_slip("sees_the_next_key", "s[None, :] <= t[:, None]", "s[None, :] <= t[:, None] + 1"),
            "s ≤ t",
        ),
        Wrong(
            _triton_slip("taken_for_contiguous", "*k.stride()[:3]", "*out.stride()[:3]"), "strides of its own"
        ),
        Wrong(_triton_slip("never_upcast", "UPCAST=UPCAST", "UPCAST=False"), "before `tl.dot`"),
        Wrong(
            _triton_slip("walks_to_the_end", "tl.minimum(S, (tl.program_id(0) + 1) * BLOCK_T)", "S"),
            "with the tile's last query",
        ),
        Wrong(_written_out, "A Triton kernel does it"),
    ),
)
