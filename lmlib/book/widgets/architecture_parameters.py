"""The widget of parameters: where they are, for any sizes."""

from lmlib.book.declare import (
    Choice,
    InputError,
    LedgerTable,
    Number,
    Output,
    Toggle,
    Value,
    Widget,
    register,
)
from lmlib.resources import kv_cache
from lmlib.resources.model import MLP, Attention, Layer, Model
from lmlib.resources.parameters import parameters
from lmlib.resources.units import ArgumentError

MLPS = (("swiglu", "SwiGLU (three matrices)"), ("gelu", "GELU (two matrices)"))
NORMS = (("rmsnorm", "RMSNorm"), ("layernorm", "LayerNorm"))
CONTEXT = 4096  # changes no parameter where positions are rotary


def count(
    d_model: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    d_ff: int,
    vocab_size: int,
    mlp: str,
    norm: str,
    tied: bool,
) -> list[Output]:
    """Parameters term by term, and what a token leaves in the cache."""
    if d_model % n_heads:
        raise InputError("n_heads", f"Must divide the width {d_model:,}; {n_heads} does not.")
    try:
        attention = Attention(n_heads, n_kv_heads, d_model // n_heads)
        activation = "silu" if mlp == "swiglu" else "gelu"
        layer = Layer(attention, MLP(d_ff, gated=mlp == "swiglu", activation=activation))
        model = Model("custom", d_model, vocab_size, CONTEXT, (layer,) * n_layers, tied, norm)
    except ArgumentError as refused:
        raise InputError(refused.field, str(refused)) from None
    ledger = parameters(model)
    ends = vocab_size * d_model * (1 if tied else 2)
    return [
        Value("Parameters", ledger.total, headline=True),
        Value("In embedding and head", f"{100 * ends / ledger.total:.1f} %"),
        Value("KV cache", kv_cache.per_token(model).total, "bytes per token", help="keys and values in bf16"),
        LedgerTable("Parameters", [term for _, term in ledger.terms()], "Parameters"),
    ]


register(
    Widget(
        name="architecture/parameters",
        title="Where the parameters are",
        description="Start from Llama 3 8B and turn the knobs. Positions are rotary and cost nothing.",
        inputs=(
            Number("d_model", "Width of the stream", 4096, 8, 65_536, slider=True, scale="log"),
            Number("n_layers", "Layers", 32, 1, 512, slider=True, scale="log"),
            Number("n_heads", "Query heads", 32, 1, 512),
            Number("n_kv_heads", "Key/value heads", 8, 1, 512),
            Number("d_ff", "Inner width of feed-forward", 14_336, 1, 262_144),
            Number("vocab_size", "Vocabulary", 128_256, 1, 2_000_000, unit="tokens"),
            Choice("mlp", "Feed-forward", MLPS, "swiglu"),
            Choice("norm", "Norm", NORMS, "rmsnorm"),
            Toggle("tied", "Embedding and head are one matrix", False),
        ),
        compute=count,
        section="../chapters/02_architecture.html#sec-arch-skeleton",
    )
)
