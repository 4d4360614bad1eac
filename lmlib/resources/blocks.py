"""The ops of one transformer block: attention in three kernels, feed-forward blocks, residual sums."""

from lmlib.resources.model import MLP, Attention, LatentAttention, Layer, MoE
from lmlib.resources.parameters import layer_weights
from lmlib.resources.program import Builder
from lmlib.resources.tape import Op, Tensor

QUERIES = "tokens * n_heads * head_dim"
KEYS = "tokens * n_kv_heads * head_dim"
PAIRS = "batch * n_heads * context_length**2"
STREAM = "tokens * d_model"


def layer_program(build: Builder, layer: Layer, rotary: bool = True) -> tuple[Tensor, Tensor]:
    """Append the ops of a layer; return its input and its output, which the caller frees.

    ``rotary``: whether positions enter as rotations (they do unless they are learned).
    """
    build.profile.check(layer.attention)
    build.weights = {weight.name: weight for weight in layer_weights(build.model, layer)}
    x = build.tensor("layer input", build.stream, STREAM)
    if build.profile.recompute == "full":
        build.begin()
        y = _residuals(build, layer, rotary, x)
        build.end((x,), (y,))
    else:
        y = _residuals(build, layer, rotary, x)
    return x, y


def _residuals(build: Builder, layer: Layer, rotary: bool, x: Tensor) -> Tensor:
    if layer.parallel:
        return _parallel(build, layer, rotary, x)
    attended = _branch(build, layer, "attention", rotary, x)
    middle = build.add("residual after attention", x, attended)
    build.free(attended)
    fed = _branch(build, layer, "mlp", rotary, middle)
    y = build.add("residual after mlp", middle, fed)
    build.free(fed, middle)
    return y


def _parallel(build: Builder, layer: Layer, rotary: bool, x: Tensor) -> Tensor:
    """Attention and MLP side by side (GPT-J, GPT-NeoX); with one norm they share its output."""
    first = _norm(build, "attention", x)
    attended = build.dropout(
        "attention dropout", _attention(build, layer, rotary, first), build.compute, STREAM
    )
    second = _norm(build, "mlp", x) if layer.norms > 1 else first
    fed = build.dropout("mlp dropout", _mlp(build, layer.mlp, second), build.compute, STREAM)
    build.free(first, *((second,) if second is not first else ()))
    both = build.add("sum of attention and mlp", attended, fed, build.compute)
    build.free(attended, fed)
    y = build.add("residual", x, both)
    build.free(both)
    return y


def _norm(build: Builder, name: str, x: Tensor) -> Tensor:
    return build.norm(f"norm.{name}", x, build.stream, STREAM, "tokens")


def _branch(build: Builder, layer: Layer, name: str, rotary: bool, x: Tensor) -> Tensor:
    """Norm, attention or feed-forward, a norm of the output where there are four, dropout."""
    normed = _norm(build, name, x) if f"norm.{name}" in build.weights else x
    attends = name == "attention"
    out = _attention(build, layer, rotary, normed) if attends else _mlp(build, layer.mlp, normed)
    if normed is not x:
        build.free(normed)
    if f"norm.{name}_out" in build.weights:
        before, out = out, build.norm(f"norm.{name}_out", out, build.compute, STREAM, "tokens")
        build.free(before)
    return build.dropout(f"{name} dropout", out, build.compute, STREAM)


def _attention(build: Builder, layer: Layer, rotary: bool, x: Tensor) -> Tensor:
    a = layer.attention
    if isinstance(a, LatentAttention):
        q, k, v = _latent_heads(build, a, x)
        mixed = "tokens * n_heads * v_head_dim"
    else:
        q, k, v = _heads(build, a, rotary, x)
        mixed = QUERIES
    if build.profile.recompute in ("core", "core_act"):
        build.begin()
        out = _core(build, a, q, k, v, mixed)
        build.end((q, k, v), (out,))
    else:
        out = _core(build, a, q, k, v, mixed)
    y = build.linear("attention.o_proj", out, STREAM)
    build.free(out, q, k, v)
    return y


def _heads(build: Builder, a: Attention, rotary: bool, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    build.symbols |= {"n_heads": a.n_heads, "n_kv_heads": a.n_kv_heads, "head_dim": a.head_dim}
    if a.fused_qkv:
        joint = build.linear(
            "attention.qkv_proj",
            x,
            "tokens * (n_heads + 2 * n_kv_heads) * head_dim",
            "queries, keys and values",
        )
        parts = (("queries", QUERIES), ("keys", KEYS), ("values", KEYS))
        q, k, v = (build.tensor(name, build.compute, elements, joint) for name, elements in parts)
        build.op(Op("split", (joint,), (q, k, v)))
        build.free(joint)
    else:
        q = build.linear("attention.q_proj", x, QUERIES, "queries")
        k = build.linear("attention.k_proj", x, KEYS, "keys")
        v = build.linear("attention.v_proj", x, KEYS, "values")
    if a.qk_norm != "none":
        old, (q, k) = (q, k), _qk_norm(build, a, q, k)
        build.free(*old)
    if rotary:
        old = (q, k)
        q, k = build.rotate("queries", q, QUERIES), build.rotate("keys", k, KEYS)
        build.free(*old)
    return q, k, v


def _qk_norm(build: Builder, a: Attention, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    rows = ("tokens * n_heads", "tokens * n_kv_heads") if a.qk_norm == "head" else ("tokens", "tokens")
    return (
        build.norm("attention.q_norm", q, build.compute, QUERIES, rows[0]),
        build.norm("attention.k_norm", k, build.compute, KEYS, rows[1]),
    )


def _latent_heads(build: Builder, a: LatentAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latent attention, expanded to full heads as in training (arXiv:2405.04434, section 2.1)."""
    c = build.compute
    build.symbols |= {
        "n_heads": a.n_heads,
        "nope_head_dim": a.nope_head_dim,
        "rope_head_dim": a.rope_head_dim,
        "v_head_dim": a.v_head_dim,
        "kv_lora_rank": a.kv_lora_rank,
    }
    whole, rotated = "tokens * n_heads * (nope_head_dim + rope_head_dim)", "tokens * n_heads * rope_head_dim"
    if a.q_lora_rank is None:
        q = build.linear("attention.q_proj", x, whole, "queries")
    else:
        build.symbols["q_lora_rank"] = a.q_lora_rank
        latent = build.linear("attention.q_a_proj", x, "tokens * q_lora_rank", "query latent")
        normed = build.norm("attention.q_a_norm", latent, c, "tokens * q_lora_rank", "tokens")
        build.free(latent)
        q = build.linear("attention.q_b_proj", normed, whole, "queries")
        build.free(normed)
    q_parts = _split(
        build, q, ("query part without rotation", "tokens * n_heads * nope_head_dim"), ("query part", rotated)
    )
    turned = build.rotate("query part", q_parts[1], rotated)
    build.free(q_parts[1])
    queries = _join(build, "queries, joined", whole, q_parts[0], turned)

    latent = build.linear(
        "attention.kv_a_proj",
        x,
        "tokens * (kv_lora_rank + rope_head_dim)",
        "key/value latent and rotated key",
    )
    kv, shared = _split(
        build,
        latent,
        ("key/value latent", "tokens * kv_lora_rank"),
        ("shared key part", "tokens * rope_head_dim"),
    )
    normed = build.norm("attention.kv_a_norm", kv, c, "tokens * kv_lora_rank", "tokens")
    build.free(kv)
    turned = build.rotate("shared key part", shared, "tokens * rope_head_dim")
    build.free(shared)
    joint = build.linear(
        "attention.kv_b_proj",
        normed,
        "tokens * n_heads * (nope_head_dim + v_head_dim)",
        "keys and values, expanded",
    )
    build.free(normed)
    k_part, v = _split(
        build,
        joint,
        ("key part without rotation", "tokens * n_heads * nope_head_dim"),
        ("values", "tokens * n_heads * v_head_dim"),
    )
    keys = _join(build, "keys, joined", whole, k_part, turned)
    return queries, keys, v


def _split(build: Builder, x: Tensor, *parts: tuple[str, str]) -> tuple[Tensor, ...]:
    """Views of ``x``, which only they hold from now on."""
    views = tuple(build.tensor(name, build.compute, elements, x) for name, elements in parts)
    build.op(Op(f"split {x.name}", (x,), views))
    build.free(x)
    return views


def _join(build: Builder, name: str, elements: str, *parts: Tensor) -> Tensor:
    out = build.tensor(name, build.compute, elements)
    build.op(Op(name, parts, (out,), frees=parts))
    return out


def _core(
    build: Builder, a: Attention | LatentAttention, q: Tensor, k: Tensor, v: Tensor, mixed: str
) -> Tensor:
    """Attention between the projections; q, k and v belong to the caller."""
    if build.profile.attention == "flash":
        return _flash(build, a, q, k, v, mixed)
    assert isinstance(a, Attention)
    return (_eager if build.profile.attention == "eager" else _math)(build, a, q, k, v)


def _flash(
    build: Builder, a: Attention | LatentAttention, q: Tensor, k: Tensor, v: Tensor, mixed: str
) -> Tensor:
    (q, k), casts = _narrow(build, q, k)
    heads_first = _heads_first(build, a)
    out = build.tensor(f"attention output{' by head' if heads_first else ''}", build.compute, mixed)
    sums = build.tensor("log of softmax sums", 4, "tokens * n_heads")
    scratch: tuple[Tensor, ...] = ()
    if build.profile.device == "cuda":
        # FlashAttention-2's backward sums the queries' gradient in fp32, and makes keys' and values'
        # gradients for every query head before it adds those of a group (flash_api.cpp, mha_bwd).
        scratch = (
            build.sized("queries' gradient in fp32", f"2 * ({q.formula})", dict(q.symbols)),
            build.tensor("sums of output times gradient", 4, "tokens * n_heads"),
        )
        if a.n_kv_heads != a.n_heads:
            scratch += (
                build.tensor("gradients of keys and values, each query head", 2 * build.compute, QUERIES),
            )
    build.op(
        Op(
            "flash attention",
            (q, k, v),
            (out, sums),
            (q, k, v, out, sums),
            frees=(sums, *casts),
            backward_scratch=scratch,
        )
    )
    if not heads_first or (isinstance(a, Attention) and a.n_heads == 1):  # one head is a view
        return out
    beside = build.tensor("attention output", build.compute, mixed)
    build.unary("heads side by side", out, beside, passes=True)
    build.free(out)
    return beside


def _heads_first(build: Builder, a: Attention | LatentAttention) -> bool:
    """Whether heads come before tokens in the queries' memory, so that the output has to be copied.

    A fused RMSNorm and ``F.rms_norm`` write their output contiguous, and flash attention gives its output
    the queries' layout. Every other way leaves queries as the projection wrote them, token by token.
    """
    profile = build.profile
    return (
        isinstance(a, Attention)
        and a.qk_norm == "head"
        and profile.norm != "manual"
        and build.model.norm != "layernorm"
    )


def _one_head(a: Attention | LatentAttention) -> bool:
    """Whether there is a single head with a projection of its own: tokens by heads are heads by tokens."""
    return isinstance(a, Attention) and a.n_heads == 1 and not a.fused_qkv


def _narrow(build: Builder, *wide: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What an attention product reads, and those of it that were cast for it: the caller frees them."""
    read = tuple(build.narrow(x, "attention") for x in wide)
    return tuple(x for x, _ in read), tuple(x for x, cast in read if cast)


def _repeat(build: Builder, a: Attention, name: str, x: Tensor, width: int) -> Tensor:
    """Keys or values for every query head, contiguous: ``x`` itself where it is that already."""
    there = (name == "keys" and _heads_first(build, a)) or _one_head(a)
    there = there and a.n_kv_heads == a.n_heads
    out = build.tensor(f"{name}, each query head", width, QUERIES, x if there else None)
    return build.unary(f"{name}: repeat", x, out, passes=a.n_kv_heads == a.n_heads)


def _eager(build: Builder, a: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    c, cpu = build.compute, build.profile.device == "cpu"
    # What is contiguous already is not copied; autograd and Python refer to the same storage once more.
    there = q if _heads_first(build, a) or _one_head(a) else None
    lined_up = build.tensor("queries, contiguous", build.width(q), QUERIES, there)
    queries = build.unary("queries: contiguous", q, lined_up, passes=True)
    keys, values = _repeat(build, a, "keys", k, build.width(k)), _repeat(build, a, "values", v, c)
    build.wide |= {out for x, out in ((q, queries), (k, keys)) if x in build.wide}
    read, casts = _narrow(build, queries, keys)
    scores = build.tensor("scores", c, PAIRS)
    build.op(Op("scores", read, (scores,), read, frees=casts))
    scaled = build.unary("scaled scores", scores, build.tensor("scaled scores", c, PAIRS))
    build.free(scores)
    # Python refers to the scaled scores until the softmax has returned, and to the masked ones during it.
    masked = build.unary("masked scores", scaled, build.tensor("masked scores", c, PAIRS))
    logits, going = masked, [masked]
    if c == 2 and cpu:  # CUDA's softmax reads bf16 and writes fp32 in one kernel
        logits = build.unary("scores: cast", masked, build.tensor("scores in fp32", 4, PAIRS))
        going.append(logits)
    probabilities = build.tensor("attention probabilities", 4, PAIRS)
    build.unary("softmax", logits, probabilities, (probabilities,))
    build.free(*going)
    if c == 4:
        build.free(scaled)
    else:
        before = probabilities
        narrow = build.tensor("attention probabilities, narrow", 2, PAIRS)
        probabilities = build.unary("probabilities: cast", probabilities, narrow)
        build.free(before, scaled)
    probabilities = build.dropout("probabilities dropout", probabilities, c, PAIRS)
    mixed = build.tensor("attention output by head", c, QUERIES)
    build.op(Op("mix values", (probabilities, values), (mixed,), (probabilities, values)))
    build.free(probabilities)
    # One head is beside itself already: a view.
    beside = build.tensor("attention output", c, QUERIES, mixed if a.n_heads == 1 else None)
    out = build.unary("heads side by side", mixed, beside)
    build.free(mixed, queries, keys, values)
    return out


def _math(build: Builder, a: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's reference kernel: everything in fp32 (aten/native/transformers/attention.cpp).

    Its variables refer to casts, scaled queries, mask and repeated keys until it returns. The mask is added
    to the scores in place; under a dispatch mode it is not, which takes as much as the softmax does anyway.
    """
    c = build.compute
    (q, k), casts = _narrow(build, q, k)  # autocast hands the kernel all three in 16 bits
    held: list[Tensor] = []
    if c == 2:
        q = build.unary("queries: cast", q, build.tensor("queries in fp32", 4, QUERIES))
        k = build.unary("keys: cast", k, build.tensor("keys in fp32", 4, KEYS))
        v = build.unary("values: cast", v, build.tensor("values in fp32", 4, KEYS))
        held += [q, k, v]
    queries = build.unary("queries: scale", q, build.tensor("queries, scaled in fp32", 4, QUERIES))
    mask = build.tensor("causal mask in fp32", 4, "context_length**2")
    yes_or_no = build.tensor("causal mask, yes or no", 1, "context_length**2")
    build.op(Op("causal mask", (), (mask,), scratch=(yes_or_no,)))
    held += [queries, mask]
    grouped = a.n_kv_heads != a.n_heads
    if grouped:
        k, v = _repeat(build, a, "keys", k, 4), _repeat(build, a, "values", v, 4)
        held += [k, v]
    keys = build.unary("keys: scale", k, build.tensor("keys, scaled in fp32", 4, QUERIES))
    heads_first = _heads_first(build, a)
    left = _merged(build, a, "queries", queries, heads_first)
    right = _merged(build, a, "keys", keys, grouped or heads_first)
    scores = build.tensor("scores", 4, PAIRS)
    build.op(Op("scores", (left, right), (scores,), (left, right), frees=(left, right, keys)))
    probabilities = build.tensor("attention probabilities", 4, PAIRS)
    build.unary("softmax", scores, probabilities, (probabilities,))
    build.free(scores)
    held.append(probabilities)
    if c == 2:  # the kernel returns these too, though nobody asks
        narrow = build.tensor("attention probabilities, narrow", 2, PAIRS)
        held.append(build.unary("probabilities: cast", probabilities, narrow))
    values = _merged(build, a, "values", v, grouped)
    mixed = build.tensor("attention output in fp32", 4, QUERIES)
    build.op(Op("mix values", (probabilities, values), (mixed,), (probabilities, values), frees=(values,)))
    if c == 2:
        wide, by_head = mixed, build.tensor("attention output by head", c, QUERIES)
        mixed = build.unary("output: cast", wide, by_head)
        held.append(wide)
    build.free(*held, *casts)
    out = build.unary("heads side by side", mixed, build.tensor("attention output", c, QUERIES))
    build.free(mixed)
    return out


def _merged(build: Builder, a: Attention, name: str, x: Tensor, contiguous: bool) -> Tensor:
    """Batch and heads as one axis, which a batched product wants: a view, or a copy if that cannot be."""
    view = contiguous or build.symbols["batch"] == 1 or a.n_heads == 1
    out = build.tensor(f"{name}, batch and heads merged", 4, QUERIES, x if view else None)
    return build.unary(f"{name}: merge batch and heads", x, out, passes=True)


def _mlp(build: Builder, mlp: MLP | MoE, x: Tensor) -> Tensor:
    if isinstance(mlp, MoE):
        return _moe(build, mlp, x)
    build.symbols["d_ff"] = mlp.d_ff
    return _feed_forward(build, "mlp", x, "tokens * d_ff", STREAM, mlp.gated, mlp.activation)


def _feed_forward(
    build: Builder, name: str, x: Tensor, inner: str, outer: str, gated: bool, activation: str
) -> Tensor:
    c = build.compute
    first = "gate_proj" if gated else "up_proj"
    inside = build.linear(f"{name}.{first}", x, inner)
    recomputed = build.profile.recompute == "core_act"
    if gated and recomputed:  # both projections are made first: they are the checkpoint's inputs
        up = build.linear(f"{name}.up_proj", x, inner)
    if recomputed:
        build.begin()
    active = build.tensor(f"{name} activation", c, inner)
    build.unary(f"{name}: {activation}", inside, active, (active if activation == "relu" else inside,))
    if not recomputed:
        build.free(inside)
    product = active
    if gated:
        if not recomputed:
            up = build.linear(f"{name}.up_proj", x, inner)
        product = build.tensor(f"{name} product", c, inner)
        build.op(Op(f"{name}: product", (active, up), (product,), (active, up)))
        build.free(active, *(() if recomputed else (up,)))
    out = build.linear(f"{name}.down_proj", product, outer)
    build.free(product)
    if recomputed:
        held = (inside, up) if gated else (inside,)
        build.end(held, (out,))
        build.free(*held)
    return out


def _moe(build: Builder, moe: MoE, x: Tensor) -> Tensor:
    """Routed experts: gather, experts, weights, scatter-add; then the shared expert."""
    c, s = build.compute, build.stream
    build.symbols |= {"n_experts": moe.n_experts, "top_k": moe.top_k, "d_ff": moe.d_ff}
    logits = build.linear("router.weight", x, "tokens * n_experts", "router logits")
    if c == 2:
        wide = build.unary(
            "router: cast", logits, build.tensor("router logits in fp32", 4, "tokens * n_experts")
        )
        build.free(logits)
        logits = wide
    probabilities = build.tensor("router probabilities", 4, "tokens * n_experts")
    build.unary("router: softmax", logits, probabilities, (probabilities,))
    build.free(logits)
    chosen = build.tensor("chosen experts", 8, "tokens * top_k")
    weights = build.tensor("routing weights", 4, "tokens * top_k")
    build.op(Op("router: top k", (probabilities,), (weights, chosen), (chosen,), frees=(probabilities,)))
    routed = build.tensor("routed tokens", s, "tokens * top_k * d_model")
    build.op(Op("gather", (x,), (routed,), (chosen,)))
    if build.profile.autocast:
        build.wide.add(routed)
    out = _feed_forward(
        build, "experts", routed, "tokens * top_k * d_ff", "tokens * top_k * d_model", True, moe.activation
    )
    build.free(routed)
    weighted = build.tensor("weighted expert outputs", c, "tokens * top_k * d_model")
    build.op(Op("weight experts", (out, weights), (weighted,), (out, weights), frees=(out, weights)))
    summed = build.tensor("expert outputs", c, STREAM)
    build.op(Op("scatter-add", (weighted,), (summed,), (weighted, chosen), frees=(weighted, chosen)))
    if not moe.shared_d_ff:
        return summed
    build.symbols["shared_d_ff"] = moe.shared_d_ff
    shared = _feed_forward(build, "shared", x, "tokens * shared_d_ff", STREAM, True, moe.activation)
    if moe.shared_gate:
        gate = build.linear("shared.gate", x, "tokens", "shared gate")
        gated = build.tensor("gated shared output", c, STREAM)
        build.op(Op("shared: gate", (shared, gate), (gated,), (shared, gate), frees=(shared, gate)))
        shared = gated
    both = build.tensor("expert and shared outputs", c, STREAM)
    build.op(Op("sum of experts", (summed, shared), (both,), frees=(summed, shared), passes=True))
    return both
