"""Parameters of a model, weight by weight.

- ``layer_weights`` lists every weight of a block with its shape, what it is for and how tensor
  parallelism splits it; parameters, FLOPs and shards are all sums over that list.
- What "active" leaves out differs between papers, so ``active`` asks: DeepSeek-V3's 36.6B is without
  the input embedding, its 37B with it, and Mixtral's 12.9B counts embedding and head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from lmlib.resources.ledger import Ledger, Term, derive, evaluate
from lmlib.resources.model import MLP, Attention, LatentAttention, Layer, Model, MoE, describe
from lmlib.resources.sources import WEIGHTS
from lmlib.resources.units import ArgumentError, check_integer

MATMUL, BIAS, NORM, SINK, BUFFER = "matmul", "bias", "norm", "sink", "buffer"
_PREDICTION = "arXiv:2412.19437, section 2.2"
WHOLE, COLUMN, ROW = "whole", "column", "row"


@dataclass(frozen=True)
class Weight:
    """One weight tensor.

    Args:
        dims: its shape as formulas, outputs first, as in ``torch.nn.Linear``.
        symbols: the value of each name in ``dims``.
        role: ``matmul``, ``bias``, ``norm``, ``sink`` or ``buffer`` (kept, but not trained).
        split: what tensor parallelism cuts: ``column`` outputs, ``row`` inputs, ``whole`` nothing
            (Shoeybi et al. 2019, arXiv:1909.08053, section 3).
        expert: whether each of ``n_experts`` experts has one.
    """

    name: str
    dims: tuple[str, ...]
    symbols: tuple[tuple[str, int], ...]
    role: str = MATMUL
    split: str = WHOLE
    expert: bool = False

    @cached_property
    def values(self) -> dict[str, int]:
        """The symbols as a dictionary."""
        return dict(self.symbols)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Sizes of one copy, outputs first."""
        return tuple(int(evaluate(dim, **self.values)) for dim in self.dims)

    @cached_property
    def one(self) -> str:
        """The formula of one copy's size."""
        return " * ".join(f"({dim})" if "+" in dim else dim for dim in self.dims)

    @cached_property
    def stored(self) -> str:
        """The formula of the size of all copies."""
        return f"n_experts * {self.one}" if self.expert else self.one

    @cached_property
    def active(self) -> str:
        """The formula of the size of the copies that one token meets."""
        return f"top_k * {self.one}" if self.expert else self.one

    @cached_property
    def size(self) -> int:
        """Parameters of all copies."""
        return int(evaluate(self.stored, **self.values))

    @cached_property
    def active_size(self) -> int:
        """Parameters that one token meets."""
        return int(evaluate(self.active, **self.values))


class _Maker:
    """Builds weights that share one set of symbols."""

    def __init__(self, prefix: str, expert: bool = False, **symbols: int) -> None:
        self.prefix, self.expert, self.symbols = prefix, expert, symbols

    def weight(self, name: str, *dims: str, role: str = MATMUL, split: str = WHOLE) -> Weight:
        text = " ".join(dims)
        used = tuple(
            (key, value)
            for key, value in self.symbols.items()
            if key in text or (self.expert and key in ("n_experts", "top_k"))
        )
        return Weight(f"{self.prefix}.{name}", dims, used, role, split, self.expert)

    def linear(
        self, name: str, outputs: str, inputs: str, split: str, bias: bool = False
    ) -> Iterator[Weight]:
        yield self.weight(name, outputs, inputs, split=split)
        if bias:
            yield self.weight(f"{name}.bias", outputs, role=BIAS, split=COLUMN if split == COLUMN else WHOLE)


def _attention(model: Model, a: Attention) -> Iterator[Weight]:
    make = _Maker(
        "attention", n_heads=a.n_heads, n_kv_heads=a.n_kv_heads, head_dim=a.head_dim, d_model=model.d_model
    )
    queries, keys = "n_heads * head_dim", "n_kv_heads * head_dim"
    if a.fused_qkv:
        yield from make.linear(
            "qkv_proj", "(n_heads + 2 * n_kv_heads) * head_dim", "d_model", COLUMN, a.qkv_bias
        )
    else:
        for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from make.linear(name, outputs, "d_model", COLUMN, a.qkv_bias)
    yield from make.linear("o_proj", "d_model", queries, ROW, a.out_bias)
    if a.qk_norm == "head":
        yield make.weight("q_norm", "head_dim", role=NORM)
        yield make.weight("k_norm", "head_dim", role=NORM)
    elif a.qk_norm == "width":
        yield make.weight("q_norm", queries, role=NORM, split=COLUMN)
        yield make.weight("k_norm", keys, role=NORM, split=COLUMN)
    if a.sinks:
        yield make.weight("sinks", "n_heads", role=SINK, split=COLUMN)


def _latent(model: Model, a: LatentAttention) -> Iterator[Weight]:
    make = _Maker(
        "attention",
        n_heads=a.n_heads,
        q_lora_rank=a.q_lora_rank or 0,
        kv_lora_rank=a.kv_lora_rank,
        rope_head_dim=a.rope_head_dim,
        nope_head_dim=a.nope_head_dim,
        v_head_dim=a.v_head_dim,
        d_model=model.d_model,
    )
    queries = "n_heads * (nope_head_dim + rope_head_dim)"
    if a.q_lora_rank is None:
        yield from make.linear("q_proj", queries, "d_model", COLUMN)
    else:
        yield from make.linear("q_a_proj", "q_lora_rank", "d_model", WHOLE, a.bias)
        yield make.weight("q_a_norm", "q_lora_rank", role=NORM)
        yield from make.linear("q_b_proj", queries, "q_lora_rank", COLUMN)
    yield from make.linear("kv_a_proj", "kv_lora_rank + rope_head_dim", "d_model", WHOLE, a.bias)
    yield make.weight("kv_a_norm", "kv_lora_rank", role=NORM)
    yield from make.linear("kv_b_proj", "n_heads * (nope_head_dim + v_head_dim)", "kv_lora_rank", COLUMN)
    yield from make.linear("o_proj", "d_model", "n_heads * v_head_dim", ROW, a.bias)


def _feed_forward(make: _Maker, d_ff: str, gated: bool, bias: bool) -> Iterator[Weight]:
    for name in ("gate_proj", "up_proj") if gated else ("up_proj",):
        yield from make.linear(name, d_ff, "d_model", COLUMN, bias)
    yield from make.linear("down_proj", "d_model", d_ff, ROW, bias)


def _moe(model: Model, moe: MoE) -> Iterator[Weight]:
    sizes = {"n_experts": moe.n_experts, "d_model": model.d_model}
    router = _Maker("router", False, **sizes)
    yield from router.linear("weight", "n_experts", "d_model", WHOLE, moe.router_bias)
    if moe.correction_bias:
        yield router.weight("correction_bias", "n_experts", role=BUFFER)
    experts = _Maker("experts", True, **sizes, top_k=moe.top_k, d_ff=moe.d_ff)
    yield from _feed_forward(experts, "d_ff", gated=True, bias=moe.bias)
    if moe.shared_d_ff:
        shared = _Maker("shared", shared_d_ff=moe.shared_d_ff, d_model=model.d_model)
        yield from _feed_forward(shared, "shared_d_ff", gated=True, bias=False)
        if moe.shared_gate:
            yield shared.weight("gate", "1", "d_model")


def _norms(model: Model, prefix: str, names: tuple[str, ...]) -> Iterator[Weight]:
    make = _Maker(prefix, d_model=model.d_model)
    for name in names:
        yield make.weight(name, "d_model", role=NORM)
        if model.norm == "layernorm":
            yield make.weight(f"{name}.bias", "d_model", role=NORM)


@lru_cache(maxsize=512)
def layer_weights(model: Model, layer: Layer) -> tuple[Weight, ...]:
    """Every weight of one block."""
    attention, mlp = layer.attention, layer.mlp
    names = ("attention", "mlp", "attention_out", "mlp_out")[: layer.norms]
    weights = list(_norms(model, "norm", names))
    weights += (
        _latent(model, attention) if isinstance(attention, LatentAttention) else _attention(model, attention)
    )
    if isinstance(mlp, MLP):
        make = _Maker("mlp", d_ff=mlp.d_ff, d_model=model.d_model)
        weights += _feed_forward(make, "d_ff", mlp.gated, mlp.bias)
    else:
        weights += _moe(model, mlp)
    return tuple(weights)


@lru_cache(maxsize=64)
def group_names(model: Model) -> tuple[str, ...]:
    """One name for each of ``model.groups``: ``28 layers (gqa, dense)``, numbered where two would agree."""
    names: list[str] = []
    for layer, count in model.groups:
        name = f"{count} layer{'s' if count > 1 else ''} ({describe(layer)})"
        same = sum(other.split(" #")[0] == name for other in names)
        names.append(f"{name} #{same + 1}" if same else name)
    return tuple(names)


def embedding(model: Model) -> Term:
    """The token embedding."""
    return derive(
        "embedding",
        "vocab_size * d_model",
        "parameters",
        WEIGHTS,
        vocab_size=model.padded_vocab_size,
        d_model=model.d_model,
    )


def _positions(model: Model) -> Iterator[Term]:
    if model.learned_positions:
        yield derive(
            "positions",
            "learned_positions * d_model",
            "parameters",
            WEIGHTS,
            learned_positions=model.learned_positions,
            d_model=model.d_model,
        )


def _final_norm(model: Model) -> Term:
    formula = "2 * d_model" if model.norm == "layernorm" else "d_model"
    return derive("final norm", formula, "parameters", WEIGHTS, d_model=model.d_model)


def _head_bias(model: Model) -> Iterator[Term]:
    if model.head_bias:
        yield derive("head bias", "vocab_size", "parameters", WEIGHTS, vocab_size=model.padded_vocab_size)


def _head(model: Model) -> Iterator[Term]:
    if not model.tied:
        yield derive(
            "head",
            "d_model * vocab_size",
            "parameters",
            WEIGHTS,
            d_model=model.d_model,
            vocab_size=model.padded_vocab_size,
        )
    yield from _head_bias(model)


def _layers(model: Model, active: bool, buffers: bool = False) -> Iterator[Ledger]:
    for name, (layer, count) in zip(group_names(model), model.groups, strict=True):
        terms = tuple(
            _derive(
                weight.name, f"layers * {weight.active if active else weight.stored}", weight.values, count
            )
            for weight in layer_weights(model, layer)
            if (weight.role == BUFFER) == buffers
        )
        if terms:
            yield Ledger(name, "parameters", terms)


def _derive(name: str, formula: str, symbols: dict[str, int], layers: int = 1) -> Term:
    return derive(name, formula, "parameters", WEIGHTS, layers=layers, **symbols)


@lru_cache(maxsize=64)
def parameters(model: Model) -> Ledger:
    """All trained parameters; a tied head adds none. Buffers are apart, see ``buffers``."""
    entries: tuple[Term | Ledger, ...] = (
        embedding(model),
        *_positions(model),
        *_layers(model, active=False),
        _final_norm(model),
        *_head(model),
    )
    return Ledger("parameters", "parameters", entries)


@lru_cache(maxsize=64)
def active(model: Model, *, count_embedding: bool, count_head: bool) -> Ledger:
    """Parameters that one token meets: ``top_k`` of ``n_experts`` experts, and by convention the rest.

    Args:
        count_embedding: whether to count the input embedding and learned positions.
        count_head: whether to count the head. A tied matrix counts once if either is asked for.
    """
    entries: list[Term | Ledger] = []
    if count_embedding or (count_head and model.tied):
        entries.append(embedding(model))
    if count_embedding:
        entries += _positions(model)
    entries += [*_layers(model, active=True), _final_norm(model)]
    if count_head:
        entries += _head(model)
    return Ledger("active parameters", "parameters", tuple(entries))


def non_embedding(model: Model) -> Ledger:
    """Parameters without input embedding, positions and head (Kaplan et al. 2020, section 2.1)."""
    entries: tuple[Term | Ledger, ...] = (*_layers(model, active=False), _final_norm(model))
    return Ledger("non-embedding parameters", "parameters", entries)


@lru_cache(maxsize=64)
def buffers(model: Model) -> Ledger:
    """Values that a checkpoint stores but no gradient trains: the correction biases of routers."""
    return Ledger("buffers", "parameters", tuple(_layers(model, active=False, buffers=True)))


def matmul_size(model: Model) -> int:
    """Parameters in matrices that a token is multiplied with: active ones, and the head even if tied."""
    inside = sum(
        count * weight.active_size
        for layer, count in model.groups
        for weight in layer_weights(model, layer)
        if weight.role == MATMUL
    )
    return inside + model.d_model * model.padded_vocab_size


def multi_token_prediction(model: Model, *, projection: bool, active_only: bool) -> Ledger:
    """Parameters of one extra layer that predicts a further token (arXiv:2412.19437, section 2.2).

    The router's buffer is among them, as in the published figure. The layer is
    a copy of the last one behind a projection of ``2 * d_model`` to ``d_model``, with a norm for each input
    and one before the shared head. The published 11.5B leave out the ``projection``.
    """
    if not model.next_n_predict_layers:
        raise ArgumentError("model", f"{model.name} has no layer that predicts further tokens")
    terms = [
        _derive(weight.name, weight.active if active_only else weight.stored, weight.values)
        for weight in layer_weights(model, model.layers[-1])
    ]
    if projection:
        terms.append(
            derive("eh_proj", "2 * d_model * d_model", "parameters", _PREDICTION, d_model=model.d_model)
        )
        terms.append(
            derive("input and output norms", "3 * d_model", "parameters", _PREDICTION, d_model=model.d_model)
        )
    return Ledger("multi-token prediction", "parameters", tuple(terms))


def block_scales(model: Model, block: int = 128) -> int:
    """Scales of a checkpoint whose linear weights are stored in FP8 with one scale a square block.

    Covers blocks and extra prediction layers; router, embedding and head stay in higher precision
    (arXiv:2412.19437, section 3.3).
    """
    check_integer("block", block, 1, 2**16)
    last = model.layers[-1]
    counts = [*model.groups, (last, model.next_n_predict_layers)]
    scales = 0
    for layer, count in counts:
        for weight in layer_weights(model, layer):
            if weight.role == MATMUL and not weight.name.startswith("router"):
                rows, columns = weight.shape
                copies = weight.values["n_experts"] if weight.expert else 1
                scales += count * copies * -(-rows // block) * -(-columns // block)
    return scales
