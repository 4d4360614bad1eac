"""Exercises on what surrounds attention: gates, blocks, experts, the whole model, decoding with a cache."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmlib.book.exercises.architecture_attention import attention, draw, rope
from lmlib.book.exercises.machinery import Case, Exercise, Wrong

# ---- architecture/swiglu


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    gates = x @ gate.T
    return (gates * torch.sigmoid(gates) * (x @ up.T)) @ down.T


def _glu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (torch.sigmoid(x @ gate.T) * (x @ up.T)) @ down.T


def _gates_swapped(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return swiglu(x, up, gate, down)


def _ungated(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.silu(x @ gate.T) @ down.T


def _geglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return (F.gelu(x @ gate.T) * (x @ up.T)) @ down.T


def _gated(*lead: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return draw(*lead, 4), draw(6, 4, seed=1), draw(6, 4, seed=2), draw(4, 6, seed=3)


def _linears(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The expected answer, by PyTorch's functions."""
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


_ONE = _numbers(1.0)[None]

SWIGLU = Exercise(
    name="architecture/swiglu",
    title="SwiGLU",
    task="""
Write `swiglu(x, gate, up, down)` for `x` (..., D), with matrices `gate` and `up` of (F, D) and `down` of
(D, F): silu(x gateᵀ) times x upᵀ, coordinate by coordinate, and the result times downᵀ. silu(z) is
z · sigmoid(z).
""",
    difficulty=1,
    minutes=10,
    starter="""
import torch
from torch import Tensor


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    raise NotImplementedError
""",
    hints=(
        "`x @ gate.T` has the shape (..., F); so has `x @ up.T`.",
        "silu keeps its input as a factor: `z * torch.sigmoid(z)`.",
        "Only the gate goes through silu; the product of both goes through `down`.",
    ),
    solution=swiglu,
    in_page=False,
    remark="""
Without the second matrix this would be an ordinary layer with silu in place of ReLU. With it, each of the F
coordinates is a product of two views of the token, and gate and up are computed in one product in practice.
""",
    cases=(
        Case(
            "width 1",
            (_ONE, 2 * _ONE, 3 * _ONE, 5 * _ONE),
            5 * 3 * 2 * torch.sigmoid(2 * _ONE),
            "silu(2) is 2 · sigmoid(2), only the gate goes through it, and it is multiplied with 3.",
            call="swiglu(x, gate, up, down)  # all of width 1: x = 1, gate = 2, up = 3, down = 5",
        ),
        Case("a token", _gated(1), _linears(*_gated(1)), call="swiglu(x, gate, up, down)  # x (1, 4), F = 6"),
        Case(
            "batch and tokens",
            _gated(2, 3),
            _linears(*_gated(2, 3)),
            "Leading axes are a batch: `@` with a transposed matrix works on the last axis only.",
            call="swiglu(x, gate, up, down)  # x (2, 3, 4), F = 6",
        ),
    ),
    wrong=(
        Wrong(_glu, "2 · sigmoid(2)"),
        Wrong(_gates_swapped, "only the gate"),
        Wrong(_ungated, "multiplied with 3"),
        Wrong(_geglu, "2 · sigmoid(2)"),
    ),
)

# ---- the parts that the next exercises are given


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def self_attention(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    q, k, v = (
        (x @ weights[name].T).unflatten(-1, (n_heads, -1)).transpose(1, 2)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    positions = torch.arange(x.shape[1])
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    mixed = attention(rope(q, positions), rope(k, positions), v, seen)
    return mixed.transpose(1, 2).flatten(2) @ weights["o_proj"].T


def feed_forward(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return swiglu(x, weights["gate_proj"], weights["up_proj"], weights["down_proj"])


def layer_weights(d_model: int, d_ff: int, seed: int) -> dict[str, Tensor]:
    """Random weights of one layer, norms included."""
    shapes = {
        "attention_norm": (d_model,),
        "q_proj": (d_model, d_model),
        "k_proj": (d_model, d_model),
        "v_proj": (d_model, d_model),
        "o_proj": (d_model, d_model),
        "mlp_norm": (d_model,),
        "gate_proj": (d_ff, d_model),
        "up_proj": (d_ff, d_model),
        "down_proj": (d_model, d_ff),
    }
    return {
        name: draw(*shape, seed=100 * seed + place) / shape[-1] ** 0.5
        if len(shape) > 1
        else 1 + draw(*shape, seed=100 * seed + place) / 4
        for place, (name, shape) in enumerate(shapes.items())
    }


# ---- architecture/block


def block(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    x = x + self_attention(rms_norm(x, weights["attention_norm"]), weights, n_heads)
    return x + feed_forward(rms_norm(x, weights["mlp_norm"]), weights)


def _post_norm(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    x = rms_norm(x + self_attention(x, weights, n_heads), weights["attention_norm"])
    return rms_norm(x + feed_forward(x, weights), weights["mlp_norm"])


def _no_residual(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    x = self_attention(rms_norm(x, weights["attention_norm"]), weights, n_heads)
    return feed_forward(rms_norm(x, weights["mlp_norm"]), weights)


def _normed_stream(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    x = rms_norm(x, weights["attention_norm"])
    x = x + self_attention(x, weights, n_heads)
    x = rms_norm(x, weights["mlp_norm"])
    return x + feed_forward(x, weights)


def _parallel(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    mixed = self_attention(rms_norm(x, weights["attention_norm"]), weights, n_heads)
    return x + mixed + feed_forward(rms_norm(x, weights["mlp_norm"]), weights)


def _norms_swapped(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    swapped = {"attention_norm": weights["mlp_norm"], "mlp_norm": weights["attention_norm"]}
    return block(x, weights | swapped, n_heads)


_QUIET = layer_weights(4, 6, 1)
_QUIET |= {name: torch.zeros_like(_QUIET[name]) for name in ("o_proj", "down_proj")}
_DEAF = layer_weights(4, 6, 1)
_DEAF |= {"o_proj": torch.zeros(4, 4, dtype=torch.float64)}
_TOKENS = 3 * draw(1, 3, 4, seed=9)


def _step_by_step(x: Tensor, w: dict[str, Tensor], n_heads: int) -> Tensor:
    """The expected answer, from PyTorch's norm, attention and activation."""
    B, T, D = x.shape

    def norm(y: Tensor, name: str) -> Tensor:
        return F.rms_norm(y, (D,), w[name], 1e-5)

    def heads(y: Tensor, name: str) -> Tensor:
        return F.linear(y, w[name]).view(B, T, n_heads, -1).transpose(1, 2)

    h = norm(x, "attention_norm")
    q, k = (rope(heads(h, name), torch.arange(T)) for name in ("q_proj", "k_proj"))
    mixed = F.scaled_dot_product_attention(q, k, heads(h, "v_proj"), is_causal=True)
    x = x + F.linear(mixed.transpose(1, 2).reshape(B, T, D), w["o_proj"])
    return x + _linears(norm(x, "mlp_norm"), w["gate_proj"], w["up_proj"], w["down_proj"])


BLOCK = Exercise(
    name="architecture/block",
    title="A pre-norm block",
    task="""
Write `block(x, weights, n_heads)`: one block with pre-norm. `x` is the residual stream (B, T, D); `weights`
holds `attention_norm` and `mlp_norm` (D) and the matrices that the functions given look up by name. Attention
reads the normed stream and adds to the stream; then the feed-forward layer does the same with its own norm.
""",
    difficulty=2,
    minutes=15,
    starter="""
import torch
from torch import Tensor


def block(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Tensor:
    raise NotImplementedError
""",
    hints=(
        "Two lines, each `x = x + part(norm(x))`.",
        "What is added to is the stream as it came, not its norm.",
        "The second line starts from the x of the first: the feed-forward layer sees what attention added.",
    ),
    solution=block,
    in_page=False,
    given=(rope, attention, rms_norm, swiglu, self_attention, feed_forward),
    remark="""
With the last matrices of both halves at zero the block is the identity, whatever the rest is. A deep pre-norm
model therefore starts near a shallow one, and gradients have a way past every layer.
""",
    cases=(
        Case(
            "both halves add nothing",
            (_TOKENS, _QUIET, 2),
            _TOKENS,
            "With o_proj and down_proj at zero a pre-norm block hands x on unchanged: a norm stands before "
            "what reads, not on the stream, and each half is added.",
            call="block(x, weights, 2)  # o_proj and down_proj are zero",
        ),
        Case(
            "only the feed-forward layer",
            (_TOKENS, _DEAF, 2),
            _step_by_step(_TOKENS, _DEAF, 2),
            "Each half has its own norm: `mlp_norm` goes before the feed-forward layer.",
            call="block(x, weights, 2)  # o_proj is zero",
        ),
        Case(
            "both",
            (_TOKENS, layer_weights(4, 6, 2), 2),
            _step_by_step(_TOKENS, layer_weights(4, 6, 2), 2),
            "The feed-forward layer reads the stream after attention has added to it.",
            call="block(x, weights, 2)",
        ),
        Case(
            "a batch",
            (draw(2, 5, 12), layer_weights(12, 20, 3), 3),
            _step_by_step(draw(2, 5, 12), layer_weights(12, 20, 3), 3),
            call="block(x, weights, 3)  # x (2, 5, 12)",
        ),
    ),
    wrong=(
        Wrong(_post_norm, "not on the stream"),
        Wrong(_no_residual, "each half is added"),
        Wrong(_normed_stream, "not on the stream"),
        Wrong(_norms_swapped, "its own norm"),
        Wrong(_parallel, "after attention has added"),
    ),
)

# ---- architecture/moe


def route(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    N, E = logits.shape
    probabilities = logits.softmax(-1)
    chosen = probabilities.topk(top_k, -1).indices
    weights = probabilities.gather(-1, chosen)
    weights = weights / weights.sum(-1, keepdim=True)
    share = F.one_hot(chosen, E).sum((0, 1)) / (N * top_k)
    return chosen, weights, E * (share * probabilities.mean(0)).sum()


def _not_normalised(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen, _, balance = route(logits, top_k)
    return chosen, logits.softmax(-1).gather(-1, chosen), balance


def _softmax_over_tokens(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    weights, chosen = logits.softmax(0).topk(top_k, -1)
    return chosen, weights / weights.sum(-1, keepdim=True), route(logits, top_k)[2]


def _first_choice_only(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen, weights, _ = route(logits, top_k)
    share = F.one_hot(chosen[:, 0], logits.shape[1]).double().mean(0)
    return chosen, weights, logits.shape[1] * (share * logits.softmax(-1).mean(0)).sum()


def _without_e(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen, weights, balance = route(logits, top_k)
    return chosen, weights, balance / logits.shape[1]


def _shares_squared(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen, weights, _ = route(logits, top_k)
    share = F.one_hot(chosen, logits.shape[1]).double().mean((0, 1))
    return chosen, weights, logits.shape[1] * share.square().sum()


def _chosen(answer: Any) -> list[list[int]]:
    return answer[0].tolist()


def _weights(answer: Any) -> list[list[float]]:
    return answer[1].tolist()


def _balance(answer: Any) -> float:
    return float(answer[2])


_LOG2 = float(_numbers(2.0).log())
_ROUTED = _numbers(0.0, _LOG2, 0.0, 2 * _LOG2)[None]  # probabilities 1/8, 2/8, 1/8, 4/8
_EVEN = _numbers(9.0, 0.0, 0.0, 9.0).view(2, 2)
_LOPSIDED = _numbers(_LOG2, 0.0, _LOG2, 0.0).view(2, 2)  # everything prefers expert 0, with 2/3

MOE = Exercise(
    name="architecture/moe",
    title="A router, and what keeps it fair",
    task="""
Write `route(logits, top_k)` for the router's `logits` (N, E) of N tokens and E experts. It returns

- `chosen` (N, top_k): for each token the experts of the highest probability (softmax over experts), highest
  first;
- `weights` (N, top_k): their probabilities, divided by their sum for each token;
- the balance loss, a scalar: E times the sum over experts of share × mean probability, where an expert's
  share is the part of all N · top_k choices that fell on it, and its mean probability is over all tokens.
""",
    difficulty=3,
    minutes=30,
    starter="""
import torch
import torch.nn.functional as F
from torch import Tensor


def route(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError
""",
    hints=(
        "`values, indices = probabilities.topk(top_k, -1)` gives both, in falling order.",
        "Shares: `F.one_hot(chosen, E)` is (N, top_k, E). Sum over the first two axes, divide by N · top_k.",
        "If every expert has a share of 1/E and a mean probability of 1/E, the loss is E · E · 1/E² = 1.",
    ),
    solution=route,
    in_page=False,
    remark="""
Shares are counted, and counting has no gradient: it flows through the mean probabilities alone. An expert
with a large share has its own probability pushed down. The loss is 1 where all are used alike, and with
top_k = 1 it is E where one expert gets everything.
""",
    cases=(
        Case(
            "the two best of four",
            (_ROUTED, 2),
            [[3, 1]],
            "The softmax goes over a token's experts, the last axis; the highest comes first.",
            then=_chosen,
            call="route(log([[1, 2, 1, 4]]), 2)[0]",
        ),
        Case(
            "their weights",
            (_ROUTED, 2),
            [[2 / 3, 1 / 3]],
            "Probabilities 4/8 and 2/8, divided by their sum.",
            then=_weights,
            call="route(log([[1, 2, 1, 4]]), 2)[1]",
        ),
        Case(
            "perfect balance costs 1",
            (_EVEN, 1),
            1.0,
            "Both experts have a share of 1/2 and a mean probability of 1/2: E times the sum is 1.",
            then=_balance,
            call="route([[9, 0], [0, 9]], 1)[2]",
        ),
        Case(
            "everything to one expert",
            (_LOPSIDED, 1),
            4 / 3,
            "Shares 1 and 0, mean probabilities 2/3 and 1/3: 2 · (1 · 2/3). Share times *probability*, since "
            "a share alone has no gradient.",
            then=_balance,
            call="route(log([[2, 1], [2, 1]]), 1)[2]",
        ),
        Case(
            "all choices count",
            (_ROUTED, 2),
            4 * (4 / 8 / 2 + 2 / 8 / 2),
            "With top_k = 2 every token makes two choices, and an expert's share is of all N · top_k.",
            then=_balance,
            call="route(log([[1, 2, 1, 4]]), 2)[2]",
        ),
        Case(
            "many tokens: the choices",
            (draw(6, 5), 3),
            draw(6, 5).argsort(-1, descending=True)[:, :3].tolist(),
            "Each token chooses for itself: the softmax goes over the experts.",
            then=_chosen,
            call="route(logits, 3)[0]  # logits (6, 5)",
        ),
        Case(
            "many tokens: the weights",
            (draw(6, 5), 3),
            draw(6, 5).topk(3, -1).values.softmax(-1).tolist(),
            then=_weights,
            call="route(logits, 3)[1]  # logits (6, 5)",
        ),
    ),
    wrong=(
        Wrong(_not_normalised, "divided by their sum"),
        Wrong(_softmax_over_tokens, "over a token's experts"),
        Wrong(_without_e, "E times the sum"),
        Wrong(_shares_squared, "Share times *probability*"),
        Wrong(_first_choice_only, "two choices"),
    ),
)

# ---- architecture/transformer


def transformer(tokens: Tensor, model: dict[str, Any], n_heads: int) -> Tensor:
    x = model["embedding"][tokens]
    for weights in model["layers"]:
        x = block(x, weights, n_heads)
    return rms_norm(x, model["norm"]) @ model["head"].T


def _no_last_norm(tokens: Tensor, model: dict[str, Any], n_heads: int) -> Tensor:
    return transformer_stream(tokens, model, n_heads) @ model["head"].T


def _probabilities(tokens: Tensor, model: dict[str, Any], n_heads: int) -> Tensor:
    return transformer(tokens, model, n_heads).softmax(-1)


def _tied_head(tokens: Tensor, model: dict[str, Any], n_heads: int) -> Tensor:
    return transformer(tokens, model | {"head": model["embedding"]}, n_heads)


def _one_layer(tokens: Tensor, model: dict[str, Any], n_heads: int) -> Tensor:
    return transformer(tokens, model | {"layers": model["layers"][:1]}, n_heads)


def _from_the_embedding(tokens: Tensor, model: dict[str, Any], n_heads: int) -> Tensor:
    embedded = model["embedding"][tokens]
    x = embedded
    for weights in model["layers"]:
        x = block(embedded, weights, n_heads)
    return rms_norm(x, model["norm"]) @ model["head"].T


def _last_token_only(tokens: Tensor, model: dict[str, Any], n_heads: int) -> Tensor:
    return transformer(tokens, model, n_heads)[:, -1]


def transformer_stream(tokens: Tensor, model: dict[str, Any], n_heads: int) -> Tensor:
    """The residual stream after the last layer."""
    x = model["embedding"][tokens]
    for weights in model["layers"]:
        x = block(x, weights, n_heads)
    return x


def random_model(vocab_size: int, d_model: int, d_ff: int, n_layers: int) -> dict[str, Any]:
    """Random weights of a whole model, as `transformer` takes them."""
    return {
        "embedding": draw(vocab_size, d_model, seed=7),
        "layers": [layer_weights(d_model, d_ff, seed) for seed in range(1, n_layers + 1)],
        "norm": 1 + draw(d_model, seed=8) / 4,
        "head": draw(vocab_size, d_model, seed=9) / d_model**0.5,
    }


def _logits(tokens: Tensor, model: dict[str, Any], n_heads: int) -> Tensor:
    """The expected answer, from PyTorch's functions."""
    x = F.embedding(tokens, model["embedding"])
    for weights in model["layers"]:
        x = _step_by_step(x, weights, n_heads)
    return F.linear(F.rms_norm(x, x.shape[-1:], model["norm"], 1e-5), model["head"])


_MODELS = [random_model(11, 8, 12, n_layers) for n_layers in range(3)]
_TEXT = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])

TRANSFORMER = Exercise(
    name="architecture/transformer",
    title="The whole model",
    task="""
Write `transformer(tokens, model, n_heads)`: logits (B, T, V) for `tokens` (B, T). `model` holds `embedding`
(V, D), `layers`, a list with one dictionary of weights for each block, `norm` (D), the norm before the head,
and `head` (V, D). `block` is given: the one of the exercise before.
""",
    difficulty=3,
    minutes=20,
    starter="""
from typing import Any
import torch
from torch import Tensor


def transformer(tokens: Tensor, model: dict[str, Any], n_heads: int) -> Tensor:
    raise NotImplementedError
""",
    hints=(
        "The embedding is a table: `model['embedding'][tokens]` picks a row for each token, (B, T, D).",
        "Each block takes the stream that the one before has left.",
        "In the end `rms_norm(x, model['norm']) @ model['head'].T`. No softmax: the loss takes logits.",
    ),
    solution=transformer,
    in_page=False,
    given=(rope, attention, rms_norm, swiglu, self_attention, feed_forward, block),
    remark="""
That is all of it. A pre-norm stream is never normed on its way, so its size grows with depth, and the norm
before the head is what keeps logits of one size. The tests of this book copy such weights into the library's
`TransformerLM` and see the same logits.
""",
    cases=(
        Case(
            "no layers: embedding, norm, head",
            (_TEXT, _MODELS[0], 2),
            _logits(_TEXT, _MODELS[0], 2),
            "Without layers: rows of the embedding, the norm before the head, and the head's own matrix. "
            "Logits of every token, not probabilities.",
            call="transformer(tokens, model, 2)  # a model without layers",
        ),
        Case(
            "one layer",
            (_TEXT, _MODELS[1], 2),
            _logits(_TEXT, _MODELS[1], 2),
            call="transformer(tokens, model, 2)  # a model with one layer",
        ),
        Case(
            "two layers",
            (_TEXT, _MODELS[2], 2),
            _logits(_TEXT, _MODELS[2], 2),
            "The second block reads what the first has left, not the embedding; and all layers count.",
            call="transformer(tokens, model, 2)  # a model with two layers",
        ),
        Case(
            "one token",
            (_TEXT[:1, :1], _MODELS[2], 4),
            _logits(_TEXT[:1, :1], _MODELS[2], 4),
            call="transformer(tokens, model, 4)  # tokens (1, 1)",
        ),
    ),
    wrong=(
        Wrong(_no_last_norm, "the norm before the head"),
        Wrong(_probabilities, "not probabilities"),
        Wrong(_tied_head, "the head's own matrix"),
        Wrong(_last_token_only, "Logits of every token"),
        Wrong(_one_layer, "all layers count"),
        Wrong(_from_the_embedding, "not the embedding"),
    ),
)

# ---- architecture/cache

Cache = tuple[Tensor, Tensor]


def step(
    x: Tensor, cache: tuple[Tensor, Tensor], weights: dict[str, Tensor], n_heads: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    q, k, v = (
        (x @ weights[name].T).unflatten(-1, (n_heads, -1)).transpose(1, 2)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    position = torch.tensor([cache[0].shape[-2]])
    keys = torch.cat((cache[0], rope(k, position)), -2)
    values = torch.cat((cache[1], v), -2)
    mixed = attention(rope(q, position), keys, values)
    return mixed.transpose(1, 2).flatten(2) @ weights["o_proj"].T, (keys, values)


def _position_zero(x: Tensor, cache: Cache, weights: dict[str, Tensor], n_heads: int) -> tuple[Tensor, Cache]:
    q, k, v = _heads(x, weights, n_heads)
    keys, values = torch.cat((cache[0], k), -2), torch.cat((cache[1], v), -2)
    return _merged(attention(q, keys, values), weights), (keys, values)


def _rotates_again(x: Tensor, cache: Cache, weights: dict[str, Tensor], n_heads: int) -> tuple[Tensor, Cache]:
    q, k, v = _heads(x, weights, n_heads)
    keys, values = torch.cat((cache[0], k), -2), torch.cat((cache[1], v), -2)
    places = torch.arange(keys.shape[-2])
    return _merged(attention(rope(q, places[-1:]), rope(keys, places), values), weights), (keys, values)


def _without_itself(
    x: Tensor, cache: Cache, weights: dict[str, Tensor], n_heads: int
) -> tuple[Tensor, Cache]:
    out, after = step(x, cache, weights, n_heads)
    if not cache[0].shape[-2]:
        return out, after
    q, _, _ = _heads(x, weights, n_heads)
    q = rope(q, torch.tensor([cache[0].shape[-2]]))
    return _merged(attention(q, *cache), weights), after


def _put_in_front(x: Tensor, cache: Cache, weights: dict[str, Tensor], n_heads: int) -> tuple[Tensor, Cache]:
    out, (keys, values) = step(x, cache, weights, n_heads)
    return out, (keys.roll(1, -2), values.roll(1, -2))


def _forgets(x: Tensor, cache: Cache, weights: dict[str, Tensor], n_heads: int) -> tuple[Tensor, Cache]:
    return step(x, cache, weights, n_heads)[0], cache


def _heads(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> tuple[Tensor, ...]:
    names = ("q_proj", "k_proj", "v_proj")
    return tuple((x @ weights[name].T).unflatten(-1, (n_heads, -1)).transpose(1, 2) for name in names)


def _merged(mixed: Tensor, weights: dict[str, Tensor]) -> Tensor:
    return mixed.transpose(1, 2).flatten(2) @ weights["o_proj"].T


def _after(x: Tensor, weights: dict[str, Tensor], n_heads: int) -> Cache:
    """The cache that the tokens of ``x`` leave: rotated keys, and values."""
    _, k, v = _heads(x, weights, n_heads)
    return rope(k, torch.arange(x.shape[1])), v


_LAYER = layer_weights(8, 12, 4)
_STORY = draw(2, 6, 8, seed=5)
_FULL = self_attention(_STORY, _LAYER, 2)  # the whole text at once: what steps must agree with


def _at(length: int) -> tuple[Tensor, Cache, dict[str, Tensor], int]:
    """Arguments of the step that follows the first ``length`` tokens of the story."""
    return _STORY[:, length : length + 1], _after(_STORY[:, :length], _LAYER, 2), _LAYER, 2


CACHE = Exercise(
    name="architecture/cache",
    title="One token at a time",
    task="""
A model that writes adds one token after another. Write `step(x, cache, weights, n_heads)`: self-attention for
one new token `x` (B, 1, D), after n tokens whose keys, already rotated, and values are in `cache`, a pair of
tensors (B, n_heads, n, K). Return what attention answers for the new token, (B, 1, D), and the cache with
the token's own key and value behind the others. The first token comes with an empty cache, n = 0.

What steps answer one by one must be what `self_attention`, which is given, answers for the whole text.
""",
    difficulty=4,
    minutes=40,
    starter="""
import torch
from torch import Tensor


def step(
    x: Tensor, cache: tuple[Tensor, Tensor], weights: dict[str, Tensor], n_heads: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    raise NotImplementedError
""",
    hints=(
        "The new token's position is the number of tokens in the cache, `cache[0].shape[-2]`.",
        "Rotate its key once, at its own position, and append it with `torch.cat(..., -2)`. Keys in the "
        "cache have been rotated already.",
        "No mask is needed: everything in the cache came before, and the token sees itself.",
        "So append first, then `attention(rotated query, all keys, all values)`.",
    ),
    solution=step,
    in_page=False,
    given=(rope, attention, self_attention),
    remark="""
Rotated keys can be kept because a rotation depends on the token's own position and nothing else. A step costs
as much arithmetic as one token, and reads the whole cache: chapter 7 is about what follows from that.
""",
    cases=(
        Case(
            "the first token: what it answers",
            _at(0),
            _FULL[:, :1],
            "An empty cache has n = 0: the token sees only itself.",
            then=lambda answer: answer[0],
            call="step(x, empty cache, weights, 2)[0]",
        ),
        Case(
            "the first token: the cache",
            _at(0),
            _after(_STORY[:, :1], _LAYER, 2),
            "Return the cache with the new key and value in it.",
            then=lambda answer: answer[1],
            call="step(x, empty cache, weights, 2)[1]",
        ),
        Case(
            "the cache after the fourth token",
            _at(3),
            _after(_STORY[:, :4], _LAYER, 2),
            "The new token's key is rotated at position n, the number of tokens before it, and stands behind "
            "the others, which stay as they are.",
            then=lambda answer: answer[1],
            call="step(x, cache of 3 tokens, weights, 2)[1]",
        ),
        Case(
            "what the fourth token answers",
            _at(3),
            _FULL[:, 3:4],
            "The token attends to the cache and to itself: append first, then attend.",
            then=lambda answer: answer[0],
            call="step(x, cache of 3 tokens, weights, 2)[0]",
        ),
        Case(
            "what the sixth answers",
            _at(5),
            _FULL[:, 5:],
            then=lambda answer: answer[0],
            call="step(x, cache of 5 tokens, weights, 2)[0]",
        ),
    ),
    wrong=(
        Wrong(_position_zero, "rotated at position n"),
        Wrong(_rotates_again, "rotated at position n"),
        Wrong(_put_in_front, "stands behind"),
        Wrong(_forgets, "the new key and value in it"),
        Wrong(_without_itself, "append first, then attend"),
    ),
)
