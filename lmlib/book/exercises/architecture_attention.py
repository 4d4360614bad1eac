"""Exercises on attention: rotary positions, the masked sum, shared heads, and the module around them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlib.book.exercises.machinery import Case, Exercise, Wrong


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of a case: normal, float64, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- architecture/rope


def rope(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    half = x.shape[-1] // 2
    rates = theta ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half)
    angles = positions[..., None] * rates
    a, b = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _neighbours(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    pairs = torch.cat((x[..., 0::2], x[..., 1::2]), -1)
    turned = rope(pairs, positions, theta)
    half = x.shape[-1] // 2
    return torch.stack((turned[..., :half], turned[..., half:]), -1).flatten(-2)


def _ignores_positions(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    return rope(x, torch.arange(x.shape[-2]), theta)


def _backwards(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    return rope(x, -positions, theta)


def _one_rate(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    return rope(x, positions, 1.0)


def _half_the_exponent(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    return rope(x, positions, theta**0.5)


_QUARTER = torch.tensor(math.pi / 2, dtype=torch.float64)
_ROW = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)


def _turned(values: list[float], position: float, theta: float) -> Tensor:
    """The expected answer for one vector, pair by pair, as products of complex numbers."""
    half = len(values) // 2
    pairs = [complex(values[i], values[i + half]) for i in range(half)]
    turned = [
        pair * complex(math.cos(angle), math.sin(angle))
        for pair, angle in zip(pairs, (position * theta ** (-i / half) for i in range(half)), strict=True)
    ]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned], dtype=torch.float64)


_VECTORS = draw(2, 3, 4, 8)
_PLACES = torch.tensor([5, 0, 17, 3])

ROPE = Exercise(
    name="architecture/rope",
    title="RoPE, with positions",
    task="""
Write `rope(x, positions, theta=10000.0)`. `x` has the shape (..., T, K) with an even K, and `positions` (T,)
or one that broadcasts to (..., T). Coordinate i of the first half and coordinate i of the second half are a
point in the plane: turn it counter-clockwise by the angle `position · theta ** (-2i / K)`.

The pairs are coordinates i and i + K/2, the layout of Llama and GPT-NeoX, not neighbours.
""",
    difficulty=2,
    minutes=20,
    starter="""
import torch
from torch import Tensor


def rope(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    raise NotImplementedError
""",
    hints=(
        "A point (a, b) turned by an angle is (a cos − b sin, b cos + a sin).",
        "K/2 rates: `theta ** (-torch.arange(K // 2) / (K // 2))`. Angles: `positions[..., None] * rates`, "
        "of shape (..., T, K/2).",
        "Cut x in two halves a and b along the last axis, compute both lines, and `torch.cat` them again.",
    ),
    solution=rope,
    in_page=False,
    remark="""
Turning changes no length, and turning query and key by the same angle changes no product: that is why scores
depend on the distance only. Positions are an argument and not `arange(T)`, because a cache continues in the
middle, and because packed documents start again at 0.
""",
    cases=(
        Case("position 0", (_ROW, torch.tensor([0])), _ROW, "An angle of 0 turns nothing."),
        Case(
            "a quarter turn of one pair",
            (torch.tensor([[1.0, 0.0]], dtype=torch.float64), _QUARTER[None]),
            torch.tensor([[0.0, 1.0]], dtype=torch.float64),
            "(1, 0) turned counter-clockwise by 90 degrees is (0, 1). Check the signs, and use the positions "
            "that are given, not 0, 1, 2, …",
            then=lambda got: got.round(decimals=9) + 0.0,
        ),
        Case(
            "two pairs turn at two rates",
            (_ROW, torch.tensor([2]), 100.0),
            _turned([1.0, 2.0, 3.0, 4.0], 2, 100.0)[None],
            "The pairs are (1, 3) and (2, 4), coordinates i and i + K/2, not neighbours. Pair i turns by "
            "theta ** (-2i / K) a token, here 1 and 1/10.",
        ),
        Case(
            "positions of our own, batch and heads",
            (_VECTORS, _PLACES),
            torch.stack(
                [
                    _turned(vector.tolist(), int(place), 10000.0)
                    for row in _VECTORS.flatten(0, 1)
                    for vector, place in zip(row, _PLACES, strict=True)
                ]
            ).view(2, 3, 4, 8),
            "Axis -2 of x counts tokens, and each has its own position; heads of one token share it.",
            call="rope(x, torch.tensor([5, 0, 17, 3]))  # x of shape (2, 3, 4, 8)",
        ),
        Case(
            "scores do not change when both move",
            (draw(2, 1, 16), torch.tensor([[7], [3]])),
            float(
                (
                    rope(draw(2, 1, 16)[0], torch.tensor([1004]))
                    * rope(draw(2, 1, 16)[1], torch.tensor([1000]))
                ).sum()
            ),
            then=lambda got: float((got[0] * got[1]).sum()),
            call="(rope(q, 7) * rope(k, 3)).sum()  # against positions 1,004 and 1,000",
        ),
    ),
    wrong=(
        Wrong(_neighbours, "not neighbours"),
        Wrong(_ignores_positions, "the positions that are given"),
        Wrong(_backwards, "Check the signs"),
        Wrong(_one_rate, "1 and 1/10"),
        Wrong(_half_the_exponent, "-2i / K"),
    ),
)

# ---- architecture/attention


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


def _unscaled(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return attention(q * q.shape[-1] ** 0.5, k, v, mask)


def _by_the_width(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return attention(q / q.shape[-1] ** 0.5, k, v, mask)


def _masked_late(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights if mask is None else weights * mask) @ v


def _over_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-2) @ v


def _mask_reversed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    return (scores if mask is None else scores.masked_fill(mask, -1e9)).softmax(-1) @ v


def _one_batch_axis(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.mT if q.ndim == 2 else torch.einsum("btk,bsk->bts", q, k)
    scores = scores / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


_ONE_QUERY = torch.tensor([[2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
_TWO_KEYS = torch.tensor([[math.log(3), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
_TWO_VALUES = torch.tensor([[4.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
_CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


def _batch(*lead: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(*lead, 5, 8), draw(*lead, 5, 8, seed=1), draw(*lead, 5, 6, seed=2)


ATTENTION = Exercise(
    name="architecture/attention",
    title="Scaled dot-product attention",
    task="""
Write `attention(q, k, v, mask=None)` for `q` (..., T, K), `k` (..., S, K) and `v` (..., S, W), with any
number of leading axes, none included. Scores are the products of queries and keys divided by √K; weights are
their softmax over the keys; the answer, (..., T, W), is the sum of the values with these weights. `mask` is
boolean, broadcasts to (..., T, S) and is True where the query **may** see the key; every query sees at least
one.
""",
    difficulty=2,
    minutes=25,
    starter="""
import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    raise NotImplementedError
""",
    hints=(
        "All products at once are one matrix product: `q @ k.transpose(-2, -1)`, of shape (..., T, S).",
        "A query's weights are one row, so the softmax goes along the last axis.",
        "A key that may not be seen must get a weight of 0 *and* leave the others with a sum of 1. Set its "
        "score to minus infinity before the softmax: `scores.masked_fill(~mask, -torch.inf)`.",
    ),
    solution=attention,
    in_page=False,
    remark="""
`torch.nn.functional.scaled_dot_product_attention` computes the same without ever holding the T × S weights;
chapter 5 builds a kernel that does so.
""",
    cases=(
        Case(
            "one query, two keys",
            (_ONE_QUERY, _TWO_KEYS, _TWO_VALUES),
            torch.tensor([[3.0, 1.0]], dtype=torch.float64),
            "q·k is 2 log 3 and 0, K is 4. Divided by √4 they are log 3 and 0: weights 3/4 and 1/4, which "
            "add to 1 over the keys.",
        ),
        Case(
            "a masked key",
            (_ONE_QUERY, _TWO_KEYS, _TWO_VALUES, torch.tensor([[False, True]])),
            torch.tensor([[0.0, 4.0]], dtype=torch.float64),
            "The mask is True where a key may be seen. Mask before the softmax: what is left has to add "
            "to 1.",
        ),
        Case(
            "more queries than one: the softmax goes over keys",
            (draw(3, 4), draw(2, 4, seed=1), draw(2, 2, seed=2)),
            F.scaled_dot_product_attention(draw(3, 4), draw(2, 4, seed=1), draw(2, 2, seed=2)),
            "Each query's weights add to 1, so the softmax goes over the keys, the last axis of the scores.",
            call="attention(q, k, v)  # q (3, 4), k (2, 4), v (2, 2)",
        ),
        Case(
            "a batch, causal",
            (*_batch(3), _CAUSAL),
            F.scaled_dot_product_attention(*_batch(3), attn_mask=_CAUSAL),
            "Leading axes are a batch: transpose the last two axes only.",
            call="attention(q, k, v, causal)  # q, k (3, 5, 8), v (3, 5, 6)",
        ),
        Case(
            "batch and heads, causal",
            (*_batch(2, 3), _CAUSAL),
            F.scaled_dot_product_attention(*_batch(2, 3), attn_mask=_CAUSAL),
            "Any number of leading axes: let `@` broadcast instead of naming them.",
            call="attention(q, k, v, causal)  # q, k (2, 3, 5, 8), v (2, 3, 5, 6)",
        ),
        Case(
            "large scores",
            (1e4 * draw(2, 4), draw(3, 4, seed=1), draw(3, 2, seed=2)),
            F.scaled_dot_product_attention(1e4 * draw(2, 4), draw(3, 4, seed=1), draw(3, 2, seed=2)),
            "Subtract the largest score before taking exponentials, or use `softmax`.",
            call="attention(10000 * q, k, v)",
        ),
    ),
    wrong=(
        Wrong(_unscaled, "Divided by √4"),
        Wrong(_by_the_width, "Divided by √4"),
        Wrong(_masked_late, "Mask before the softmax"),
        Wrong(_mask_reversed, "True where a key may be seen"),
        Wrong(_over_queries, "over the keys"),
        Wrong(_one_batch_axis, "Any number of leading axes"),
    ),
)

# ---- architecture/grouped


def grouped_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    B, H, T, K = q.shape
    G = k.shape[1]
    groups = q.view(B, G, H // G, T, K)
    scores = groups @ k[:, :, None].transpose(-2, -1) / K**0.5
    seen = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ v[:, :, None]).view(B, H, T, -1)


def _tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    return grouped_attention(q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1))


def _first_head_for_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return grouped_attention(q, k[:, :1], v[:, :1])


def _averaged_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    means = q.unflatten(1, (k.shape[1], -1)).mean(2)
    return grouped_attention(means, k, v).repeat_interleave(q.shape[1] // k.shape[1], 1)


def _sees_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    times = q.shape[1] // k.shape[1]
    return attention(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


def _shared(H: int, G: int, T: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return draw(2, H, T, 6), draw(2, G, T, 6, seed=1), draw(2, G, T, 6, seed=2)


def _torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's answer, with keys and values repeated for it."""
    times = q.shape[1] // k.shape[1]
    return F.scaled_dot_product_attention(
        q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1), is_causal=True
    )


GROUPED = Exercise(
    name="architecture/grouped",
    title="Query heads that share keys",
    task="""
Write `grouped_attention(q, k, v)`: causal attention of H query heads with G key/value heads, where G
divides H. `q` is (B, H, T, K), `k` and `v` are (B, G, T, K), the answer is (B, H, T, K). The first H/G query
heads use key/value head 0, the next H/G use head 1, and so on.

For a point of honour, do it without copying keys and values.
""",
    difficulty=3,
    minutes=25,
    starter="""
import torch
from torch import Tensor


def grouped_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise NotImplementedError
""",
    hints=(
        "With copies: `k.repeat_interleave(H // G, dim=1)` gives each head H/G times *in a row*. "
        "`k.repeat` gives 0, 1, 0, 1: another model.",
        "Without: view q as (B, G, H/G, T, K), and keys as (B, G, 1, T, K). The product then broadcasts over "
        "the 1.",
        "The causal mask: `torch.ones(T, T, dtype=torch.bool).tril()`, True on and below the diagonal.",
    ),
    solution=grouped_attention,
    in_page=False,
    remark="""
Nothing in a training curve shows that heads are shared in another order: a model trained so is as good. Only
published weights stop making sense, which is why the check uses different keys in every head.
""",
    cases=(
        Case(
            "as many as queries",
            _shared(2, 2),
            _torchs(*_shared(2, 2)),
            "With G = H it is ordinary causal attention: a query sees itself and what came before.",
            call="grouped_attention(q, k, v)  # H = 2, G = 2",
        ),
        Case(
            "one for all (MQA)",
            _shared(3, 1),
            _torchs(*_shared(3, 1)),
            "Each query head has scores of its own, also where the keys are shared.",
            call="grouped_attention(q, k, v)  # H = 3, G = 1",
        ),
        Case(
            "two for four (GQA)",
            _shared(4, 2),
            _torchs(*_shared(4, 2)),
            "Query heads 0 and 1 use key head 0; heads 2 and 3 use key head 1. Repeat each head in a row.",
            call="grouped_attention(q, k, v)  # H = 4, G = 2",
        ),
        Case(
            "three for six, seven tokens",
            _shared(6, 3, 7),
            _torchs(*_shared(6, 3, 7)),
            call="grouped_attention(q, k, v)  # H = 6, G = 3",
        ),
    ),
    wrong=(
        Wrong(_tiled, "Repeat each head in a row"),
        Wrong(_first_head_for_all, "itself and what came before"),
        Wrong(_averaged_queries, "scores of its own"),
        Wrong(_sees_all, "itself and what came before"),
    ),
)

# ---- architecture/self-attention


def self_attention(x: Tensor, qkv: Tensor, out: Tensor, n_heads: int) -> Tensor:
    B, T, D = x.shape
    q, k, v = (x @ qkv.T).view(B, T, 3, n_heads, D // n_heads).permute(2, 0, 3, 1, 4)
    positions = torch.arange(T, device=x.device)
    seen = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
    mixed = attention(rope(q, positions), rope(k, positions), v, seen)
    return mixed.transpose(1, 2).reshape(B, T, D) @ out.T


def _attend(x: Tensor, qkv: Tensor, out: Tensor, n_heads: int, **wrong: bool) -> Tensor:
    B, T, D = x.shape
    K = D // n_heads
    if wrong.get("interleaved"):
        q, k, v = (x @ qkv.T).view(B, T, n_heads, K, 3).permute(4, 0, 2, 1, 3)
    elif wrong.get("no_transpose"):
        q, k, v = (part.reshape(B, n_heads, T, K) for part in (x @ qkv.T).chunk(3, -1))
    else:
        q, k, v = (x @ qkv.T).view(B, T, 3, n_heads, K).permute(2, 0, 3, 1, 4)
    positions = torch.arange(T)
    if not wrong.get("unrotated"):
        q, k = rope(q, positions), rope(k, positions)
    if wrong.get("values_too"):
        v = rope(v, positions)
    seen = torch.ones(T, T, dtype=torch.bool)
    mixed = attention(q, k, v, seen if wrong.get("future") else seen.tril())
    return mixed.transpose(1, 2).reshape(B, T, D) @ out.T


def _unrotated(x: Tensor, qkv: Tensor, out: Tensor, n_heads: int) -> Tensor:
    return _attend(x, qkv, out, n_heads, unrotated=True)


def _rotated_values(x: Tensor, qkv: Tensor, out: Tensor, n_heads: int) -> Tensor:
    return _attend(x, qkv, out, n_heads, values_too=True)


def _sees_the_future(x: Tensor, qkv: Tensor, out: Tensor, n_heads: int) -> Tensor:
    return _attend(x, qkv, out, n_heads, future=True)


def _mixes_tokens_with_heads(x: Tensor, qkv: Tensor, out: Tensor, n_heads: int) -> Tensor:
    return _attend(x, qkv, out, n_heads, no_transpose=True)


def _rotated_before_splitting(x: Tensor, qkv: Tensor, out: Tensor, n_heads: int) -> Tensor:
    B, T, D = x.shape
    q, k, v = (x @ qkv.T).chunk(3, -1)
    positions = torch.arange(T)
    parts = (rope(q, positions), rope(k, positions), v)
    q, k, v = (part.view(B, T, n_heads, -1).transpose(1, 2) for part in parts)
    mixed = attention(q, k, v, torch.ones(T, T, dtype=torch.bool).tril())
    return mixed.transpose(1, 2).reshape(B, T, D) @ out.T


def _one_by_one(x: Tensor, qkv: Tensor, out: Tensor, n_heads: int) -> Tensor:
    """The answer by another way: one head at a time, one query at a time."""
    D = x.shape[-1]
    K = D // n_heads
    answer = torch.zeros_like(x)
    for b, row in enumerate(x):
        mixed = torch.zeros_like(row)
        for head in range(n_heads):
            rows = slice(head * K, (head + 1) * K)
            q, k, v = (row @ qkv[part * D : (part + 1) * D][rows].T for part in range(3))
            q, k = (
                torch.stack([_turned(each.tolist(), t, 10000.0) for t, each in enumerate(y)]) for y in (q, k)
            )
            for t in range(len(row)):
                weights = (k[: t + 1] @ q[t] / K**0.5).softmax(0)
                mixed[t, rows] = weights @ v[: t + 1]
        answer[b] = mixed @ out.T
    return answer


def _module(B: int, T: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(B, T, D), draw(3 * D, D, seed=1) / D**0.5, draw(D, D, seed=2) / D**0.5


SELF_ATTENTION = Exercise(
    name="architecture/self-attention",
    title="Causal self-attention with many heads",
    task="""
Write `self_attention(x, qkv, out, n_heads)` for `x` (B, T, D). `qkv` is (3D, D): its first D rows make the
queries, the next D the keys, the last D the values; multiply once, with `x @ qkv.T`. Head h takes coordinates
h K to (h + 1) K of each, with K = D / n_heads. Rotate queries and keys by their positions 0, 1, …, attend
causally, put the heads side by side again, and multiply with `out` (D, D).

`rope` and `attention` are given: those of the exercises before.
""",
    difficulty=3,
    minutes=30,
    starter="""
import torch
from torch import Tensor


def self_attention(x: Tensor, qkv: Tensor, out: Tensor, n_heads: int) -> Tensor:
    raise NotImplementedError
""",
    hints=(
        "`rope` and `attention` count tokens along axis -2. So each of q, k and v has to become "
        "(B, n_heads, T, K).",
        "(B, T, D) is viewed as (B, T, n_heads, K), then axes 1 and 2 change places. A view as "
        "(B, n_heads, T, K) at once would mix tokens with heads.",
        "The way back: `mixed.transpose(1, 2).reshape(B, T, D)`, then `@ out.T`.",
    ),
    solution=self_attention,
    in_page=False,
    given=(rope, attention),
    remark="""
One product with a matrix of 3 D rows does the work of three, reads x once and gives the hardware one large
task. Values are not rotated: positions decide where to look, not what is found there.
""",
    cases=(
        Case(
            "one token, one head",
            (*_module(1, 1, 4), 1),
            _one_by_one(*_module(1, 1, 4), 1),
            "A single token gives all its weight to itself: x times the values' rows, then times out.",
            call="self_attention(x, qkv, out, 1)  # x (1, 1, 4)",
        ),
        Case(
            "one head, three tokens",
            (*_module(1, 3, 4), 1),
            _one_by_one(*_module(1, 3, 4), 1),
            "Rotate queries and keys, not values; and let no token see a later one.",
            call="self_attention(x, qkv, out, 1)  # x (1, 3, 4)",
        ),
        Case(
            "two heads",
            (*_module(1, 3, 8), 2),
            _one_by_one(*_module(1, 3, 8), 2),
            "Split into heads first, (B, T, n_heads, K), then swap axes 1 and 2, then rotate inside a head.",
            call="self_attention(x, qkv, out, 2)  # x (1, 3, 8)",
        ),
        Case(
            "a batch",
            (*_module(2, 5, 12), 3),
            _one_by_one(*_module(2, 5, 12), 3),
            call="self_attention(x, qkv, out, 3)  # x (2, 5, 12)",
        ),
    ),
    wrong=(
        Wrong(_unrotated, "Rotate queries and keys"),
        Wrong(_rotated_values, "not values"),
        Wrong(_sees_the_future, "let no token see a later one"),
        Wrong(_mixes_tokens_with_heads, "Split into heads first"),
        Wrong(_rotated_before_splitting, "rotate inside a head"),
    ),
)
