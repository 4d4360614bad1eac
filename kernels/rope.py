"""Rotary position embedding of queries and keys in one launch, forward and backward, in place on request.

Half-split layout (Llama, GPT-NeoX): value i of a head is rotated together with value i + K/2,

    y[i] = x[i] cos[i] - x[i + K/2] sin[i],    y[i + K/2] = x[i + K/2] cos[i] + x[i] sin[i].

Source: Su et al., "RoFormer" (2021, arXiv:2104.09864), equation 34.

Contract: q (B, T, H, K), k (B, T, G, K); cos and sin (T, K/2) or (B, T, K/2), of any of float32,
bfloat16, float16. Arithmetic is float32, rounded once. Any strides of batch, time and head are read in place;
only values of a head must lie together (else a copy).

Bytes a value of q and k, b bytes each: 2 b, forward and backward; three FLOPs. The backward rotates the other
way and needs neither q nor k. Every value is computed by one thread: results are bitwise repeatable.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kernels._runtime import Operator, cdiv, check_floating, next_power_of_2, tl, triton, usable
from kernels.bench.case import Bench, Inputs, Shape, Work, compiled, installed, normal

TOKENS, WARPS = 1, 8


@triton.jit
def _head(X, token, head_stride, heads, half, exists, HEADS: tl.constexpr, HALF: tl.constexpr):
    """Where the low halves of a token's heads lie, (TOKENS, HEADS, HALF), and which of them exist."""
    head = tl.arange(0, HEADS)[None, :, None]
    index = tl.arange(0, HALF)[None, None, :]
    return X + token + head * head_stride + index, exists & (head < heads) & (index < half)


@triton.jit
def _load(x, half, mask):
    """Values and their partners."""
    return tl.load(x, mask, other=0.0).to(tl.float32), tl.load(x + half, mask, other=0.0).to(tl.float32)


@triton.jit
def _store_turned(y, half, mask, low, high, cos, sin):
    tl.store(y, (low * cos - high * sin).to(y.dtype.element_ty), mask)
    tl.store(y + half, (high * cos + low * sin).to(y.dtype.element_ty), mask)


@triton.jit
def _rotate(
    Q,
    K,
    COS,
    SIN,
    NEW_Q,
    NEW_K,
    tokens,
    T,
    q_heads,
    k_heads,
    half,
    q_b,
    q_t,
    q_h,
    k_b,
    k_t,
    k_h,
    cos_b,
    cos_t,
    sin_b,
    sin_t,
    new_q_b,
    new_q_t,
    new_q_h,
    new_k_b,
    new_k_t,
    new_k_h,
    BACK: tl.constexpr,
    TOKENS: tl.constexpr,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None, None]
    exists = token < tokens
    b, t = (token // T).to(tl.int64), (token % T).to(tl.int64)
    index = tl.arange(0, HALF)[None, None, :]
    mask = exists & (index < half)
    cos = tl.load(COS + b * cos_b + t * cos_t + index, mask, other=0.0).to(tl.float32)
    sin = tl.load(SIN + b * sin_b + t * sin_t + index, mask, other=0.0).to(tl.float32)
    if BACK:
        sin = -sin
    q, q_mask = _head(Q, b * q_b + t * q_t, q_h, q_heads, half, exists, Q_HEADS, HALF)
    k, k_mask = _head(K, b * k_b + t * k_t, k_h, k_heads, half, exists, K_HEADS, HALF)
    # All is asked for before anything is written: no load can move past a store, which may be to its place.
    q_low, q_high = _load(q, half, q_mask)
    k_low, k_high = _load(k, half, k_mask)
    new_q, _ = _head(NEW_Q, b * new_q_b + t * new_q_t, new_q_h, q_heads, half, exists, Q_HEADS, HALF)
    new_k, _ = _head(NEW_K, b * new_k_b + t * new_k_t, new_k_h, k_heads, half, exists, K_HEADS, HALF)
    _store_turned(new_q, half, q_mask, q_low, q_high, cos, sin)
    _store_turned(new_k, half, k_mask, k_low, k_high, cos, sin)


def launch_into(
    new_q: Tensor,
    new_k: Tensor,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    back: bool,
    tokens: int = TOKENS,
    warps: int = WARPS,
) -> None:
    """Writes the rotated q and k (which may be q and k themselves)."""
    B, T, H, head_dim = q.shape
    if B * T == 0 or head_dim == 0:
        return
    q, k, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, cos, sin))
    turns = [(0 if x.dim() == 2 else x.stride(0), x.stride(-2)) for x in (cos, sin)]
    _rotate[(cdiv(B * T, tokens),)](
        q,
        k,
        cos,
        sin,
        new_q,
        new_k,
        B * T,
        T,
        H,
        k.shape[2],
        head_dim // 2,
        *q.stride()[:3],
        *k.stride()[:3],
        *turns[0],
        *turns[1],
        *new_q.stride()[:3],
        *new_k.stride()[:3],
        BACK=back,
        TOKENS=tokens,
        Q_HEADS=next_power_of_2(H),
        K_HEADS=next_power_of_2(k.shape[2]),
        HALF=next_power_of_2(head_dim // 2),
        num_warps=warps,
    )


def _rope_op(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    new_q, new_k = _rope_fake(q, k, cos, sin, back)
    launch_into(new_q, new_k, q, k, cos, sin, back)
    return new_q, new_k


def _rope_fake(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[2], inputs[3])
    ctx.back = inputs[4]


def _rope_backward(ctx, dq: Tensor, dk: Tensor):
    cos, sin = ctx.saved_tensors
    return *_rope(dq, dk, cos, sin, not ctx.back), None, None, None


_rope = Operator("rope", _rope_op, _rope_fake, _setup, _rope_backward)


class _RopeInPlace(torch.autograd.Function):
    """Overwrites q and k, and says so to autograd."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        launch_into(q, k, q, k, cos, sin, False)
        ctx.mark_dirty(q, k)
        ctx.save_for_backward(cos, sin)
        return q, k

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dq: Tensor, dk: Tensor):
        cos, sin = ctx.saved_tensors
        return *_rope(dq, dk, cos, sin, True), None, None


def _overwritable(x: Tensor) -> bool:
    """Whether autograd lets x be overwritten at no cost: untracked, or computed and no view of anything.

    An overwritten view would send its base's gradient through a copy.
    """
    dense = x.stride(-1) == 1 and 0 not in x.stride()
    return dense and not (torch.is_grad_enabled() and x.requires_grad and (x.is_leaf or x._is_view()))


def reference(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch, in float32 (float64 stays float64), never in place."""

    def turn(x: Tensor) -> Tensor:
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        c, s = (table.to(wide).unsqueeze(-2) for table in (cos, sin))
        low, high = x.to(wide).chunk(2, -1)
        return torch.cat((low * c - high * s, high * c + low * s), -1).to(x.dtype)

    return turn(q), turn(k)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    if q.dim() != 4 or k.dim() != 4 or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        raise ValueError(
            "q and k must be (B, T, heads, K) with the same B, T and K, "
            f"got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    B, T, _, head_dim = q.shape
    allowed = ((T, head_dim // 2), (B, T, head_dim // 2))
    if head_dim % 2 or cos.shape != sin.shape or cos.shape not in allowed:
        raise ValueError(
            f"cos and sin must have one of the shapes {allowed} (K even), "
            f"got {tuple(cos.shape)} and {tuple(sin.shape)} with K = {head_dim}"
        )


def rope(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T G K"],
    cos: Float[Tensor, "*B T half"],
    sin: Float[Tensor, "*B T half"],
    inplace: bool = False,
) -> tuple[Float[Tensor, "B T H K"], Float[Tensor, "B T G K"]]:
    """q and k with each head's values rotated by their position's angles.

    Args:
        inplace: write into q and k where autograd allows it, and return them: without gradients always, with
            them where both are results of operations and no views. Elsewhere, and under ``torch.compile``,
            new tensors are returned and q and k stay as they are. The caller must not use q and k afterwards.

    Raises:
        ValueError: shapes that don't belong together, or an odd K.
        TypeError: tensors of integers.
    """
    _check(q, k, cos, sin)
    check_floating(q=q, k=k, cos=cos, sin=sin)
    if not usable(q, k, cos, sin):
        return reference(q, k, cos, sin)
    if inplace and not torch.compiler.is_compiling() and _overwritable(q) and _overwritable(k):
        return _RopeInPlace.apply(q, k, cos, sin)
    return _rope(q, k, cos, sin, False)


def _inputs(shape: Shape, generator: torch.Generator) -> Inputs:
    T, head_dim = shape["T"], shape["K"]
    frequency = 10_000.0 ** -(torch.arange(0, head_dim, 2, device=generator.device) / head_dim)
    angle = torch.arange(T, device=generator.device)[:, None] * frequency
    q, k = (normal(shape, generator, "B", "T", heads, "K") for heads in ("H", "G"))
    return {"q": q, "k": k, "cos": angle.cos(), "sin": angle.sin()}


def _eager(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """As models write it: tables of full width in the values' dtype, and half of each head turned round."""

    def turn(x: Tensor) -> Tensor:
        c, s = (torch.cat((table, table), -1).to(x.dtype).unsqueeze(-2) for table in (cos, sin))
        low, high = x.chunk(2, -1)
        return x * c + torch.cat((-high, low), -1) * s

    return turn(q), turn(k)


def _liger() -> Callable[..., tuple[Tensor, Tensor]]:
    function = installed("liger_kernel.ops.rope", "LigerRopeFunction")

    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        tables = (torch.cat((table, table), -1)[None].to(q.dtype) for table in (cos, sin))
        # It writes into its input, which must live on here: hence the clones.
        new = function.apply(q.clone().transpose(1, 2), k.clone().transpose(1, 2), *tables)
        return new[0].transpose(1, 2), new[1].transpose(1, 2)

    return turn


def _work(shape: Shape) -> dict[str, Work]:
    values = shape["B"] * shape["T"] * (shape["H"] + shape["G"]) * shape["K"]
    work = Work(2 * values * shape.dtype.itemsize, 3 * values)
    return {"forward": work, "backward": work}


def _shape(B: int, T: int, H: int, G: int, K: int, dtype: torch.dtype = torch.bfloat16) -> Shape:
    return Shape({"B": B, "T": T, "H": H, "G": G, "K": K}, dtype)


BENCH = Bench(
    name="rope",
    inputs=_inputs,
    ours=rope,
    reference=reference,
    grads=("q", "k"),
    peers={"eager": lambda: _eager, "torch.compile": compiled(_eager), "Liger": _liger},
    work=_work,
    shapes=(_shape(8, 2048, 32, 8, 128),),
    full=(_shape(1, 2048, 32, 8, 128), _shape(8, 2048, 16, 16, 64), _shape(1, 65_536, 32, 8, 128)),
    tiny=(_shape(2, 3, 4, 2, 12), _shape(1, 5, 3, 1, 8, torch.float32)),
)
