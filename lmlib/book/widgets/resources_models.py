"""What every calculator of chapter 4 asks about the model: a published one, own sizes, or a config.json."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from lmlib.book.declare import Choice, Input, InputError, Note, Number, Output, Text, Toggle, Value
from lmlib.book.widgets.resources_explain import refused_beside
from lmlib.resources import model as limits
from lmlib.resources.config import SUPPORTED, read
from lmlib.resources.model import MLP, Attention, Layer, Model, MoE
from lmlib.resources.presets import PRESETS, load
from lmlib.resources.units import ArgumentError

SIZES, CONFIG = "sizes", "config"
REHEARSAL = {"model": "deepseek-v2"}
"""The entry that goes through most formulas: experts, latent attention, a leading dense layer."""
_GROUP = "The model"
_OWN = ("model", (SIZES,))


def _size(name: str, default: int, maximum: int, help_: str = "", minimum: int = 1) -> Number:
    return Number(name, name, default, minimum, maximum, help=help_, group=_GROUP, visible_when=_OWN)


def sizes_of(model: Model) -> dict[str, Any] | None:
    """The fields that describe this model in full; None where they cannot (latent attention, windows,
    biases)."""
    layer = model.layers[0]
    attention, mlp = layer.attention, layer.mlp
    if not isinstance(attention, Attention):
        return None
    sizes = {
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "n_heads": attention.n_heads,
        "n_kv_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "d_ff": mlp.d_ff,
        "gated": mlp.gated if isinstance(mlp, MLP) else True,
        "n_experts": mlp.n_experts if isinstance(mlp, MoE) else 0,
        "top_k": mlp.top_k if isinstance(mlp, MoE) else 2,
        "vocab_size": model.vocab_size,
        "tied": model.tied,
    }
    rebuilt = _from_sizes(**sizes)
    same = (rebuilt.runs, rebuilt.norm, rebuilt.learned_positions, rebuilt.head_bias) == (
        model.runs,
        model.norm,
        model.learned_positions,
        model.head_bias,
    )
    return sizes if same else None


@lru_cache(maxsize=16)
def _from_sizes(
    d_model: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    d_ff: int,
    gated: bool,
    n_experts: int,
    top_k: int,
    vocab_size: int,
    tied: bool,
) -> Model:
    attention = Attention(n_heads, n_kv_heads, head_dim)
    mlp: MLP | MoE = MLP(d_ff, gated)
    if n_experts:
        if not gated:
            raise ArgumentError("gated", "experts are gated here: switch it on, or set n_experts to 0")
        mlp = MoE(n_experts, top_k, d_ff)
    return Model(
        name="your model",
        d_model=d_model,
        vocab_size=vocab_size,
        context_length=limits.LARGEST_CONTEXT,
        layers=(Layer(attention, mlp),) * n_layers,
        tied=tied,
    )


@lru_cache(maxsize=16)
def _from_config(text: str) -> Model:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise InputError(
            "config", f"This is not JSON: {fault}. Paste the whole file, from {{ to }}."
        ) from None
    try:
        return read(config)
    except ArgumentError as refused:
        raise InputError("config", f"`{refused.field}` {refused.message}.") from None


def model_inputs(default: str = "llama-3-8b") -> tuple[Input, ...]:
    """The inputs about the model, first of all; ``compute`` behind ``with_model`` gets a ``Model`` for
    them."""
    options = (
        (SIZES, "Sizes of your own"),
        (CONFIG, "A config.json of your own"),
        *((name, preset.title) for name, preset in PRESETS.items()),
    )
    presets = {name: sizes for name in PRESETS if (sizes := sizes_of(load(name)))}
    width, heads = limits.LARGEST_WIDTH, limits.LARGEST_HEADS
    return (
        Choice("model", "Model", options, default, presets=presets, group=_GROUP),
        Text(
            "config",
            "config.json",
            json.dumps(PRESETS["deepseek-v3"].config, indent=1),
            help="As published beside the weights on Hugging Face. Read are: " + ", ".join(SUPPORTED) + ".",
            max_length=20_000,
            rows=8,
            group=_GROUP,
            visible_when=("model", (CONFIG,)),
        ),
        _size("d_model", 4096, width, "Width of the residual stream"),
        _size("n_layers", 32, limits.LARGEST_LAYERS),
        _size("n_heads", 32, heads, "Query heads"),
        _size("n_kv_heads", 8, heads, "Key/value heads; must divide n_heads"),
        _size("head_dim", 128, width, "Width of one head"),
        _size("d_ff", 14_336, width, "Inner width of the feed-forward layer, or of one expert"),
        Toggle(
            "gated",
            "gated",
            True,
            help="SwiGLU: three matrices in place of two",
            group=_GROUP,
            visible_when=_OWN,
        ),
        _size("n_experts", 0, limits.LARGEST_EXPERTS, "0: one dense feed-forward layer", minimum=0),
        _size("top_k", 2, limits.LARGEST_EXPERTS, "Experts that one token visits"),
        _size("vocab_size", 128_256, limits.LARGEST_VOCABULARY),
        Toggle(
            "tied",
            "tied",
            False,
            help="The head is the input embedding's matrix",
            group=_GROUP,
            visible_when=_OWN,
        ),
    )


_OWN_FIELDS = tuple(_from_sizes.__wrapped__.__annotations__)[:-1]


def read_model(values: dict[str, Any]) -> Model:
    """Take the model's inputs out of ``values`` and build what they describe."""
    chosen, config = values.pop("model"), values.pop("config")
    sizes = {name: values.pop(name) for name in _OWN_FIELDS}
    if chosen == SIZES:
        return _from_sizes(**sizes)
    return _from_config(config) if chosen == CONFIG else load(chosen)


def with_model(
    compute: Callable[..., Sequence[Output]], aliases: dict[str, str] | None = None
) -> Callable[..., Sequence[Output]]:
    """``compute(model, **rest)`` as a widget's compute; refusals of the library stand beside their field."""

    def answer(**values: Any) -> Sequence[Output]:
        own = values["model"] == CONFIG
        with refused_beside(values, aliases or {}):
            model = read_model(values)
            outputs = compute(model, **values)
        return _with_assumptions(model, outputs) if own else outputs

    return answer


def _with_assumptions(model: Model, outputs: Sequence[Output]) -> Sequence[Output]:
    """What a pasted configuration left open, said behind the figures that rest on it."""
    if not model.assumptions:
        return outputs
    figures = next((at for at, each in enumerate(outputs) if not isinstance(each, Value)), len(outputs))
    note = Note("Not in this config.json, and taken to be: " + "; ".join(model.assumptions) + ".", "warning")
    return [*outputs[:figures], note, *outputs[figures:]]


def check_context(model: Model, context_length: int) -> str:
    """A warning where the model was not made for this length, or ``""``.

    Raises:
        InputError: where learned positions end before it.
    """
    if model.learned_positions and context_length > model.learned_positions:
        raise InputError(
            "context_length",
            f"{context_length:,} tokens are too many: this model has learned positions for "
            f"{model.learned_positions:,}.",
        )
    if context_length > model.context_length:
        return (
            f"This model was made for {model.context_length:,} tokens; {context_length:,} are counted, "
            "whatever quality they would have."
        )
    return ""
