"""Read a Hugging Face ``config.json`` into a ``Model``.

- Only architectures listed in ``SUPPORTED`` are read, each as its transformers class builds it.
- A size that the configuration must state is never guessed: a missing key is refused by name.
- Where the architecture itself documents a default (Gemma ties its embeddings), an absent key takes it,
  and ``Model.assumptions`` says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmlib.resources.model import LARGEST_LAYERS, MLP, Attention, LatentAttention, Layer, Model, MoE
from lmlib.resources.units import ArgumentError, check_integer

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class _Keys:
    """The keys of one configuration, read strictly; ``assumed`` collects the defaults that were used."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.assumed: list[str] = []

    def integer(self, *names: str, default: int | None = None, why: str = "") -> int:
        """The integer under the first of ``names`` that is present and not null."""
        for name in names:
            value = self.config.get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise ArgumentError(name, f"must be an integer of at least 0, got {value!r}")
                return value
        if default is None:
            raise ArgumentError(names[0], f"is missing from this {self.config['model_type']} configuration")
        self.assumed.append(f"{names[0]} = {default}: {why or self._because()}")
        return default

    def layers(self, name: str) -> int:
        """The number of layers, bounded before a list of that length is made."""
        return check_integer(name, self.integer(name), 1, LARGEST_LAYERS)

    def flag(self, name: str, default: bool) -> bool:
        value = self.config.get(name)
        if value is None:
            self.assumed.append(f"{name} = {str(default).lower()}: {self._because()}")
            return default
        if not isinstance(value, bool):
            raise ArgumentError(name, f"must be true or false, got {value!r}")
        return value

    def activation(self, name: str, default: str = "") -> str:
        value = self.config.get(name)
        if value is None and default:
            self.assumed.append(f"{name} = {default}: {self._because()}")
            value = default
        if value not in _ACTIVATIONS:
            raise ArgumentError(name, f"must be one of {', '.join(_ACTIVATIONS)}; got {value!r}")
        return _ACTIVATIONS[value]

    def refuse(self, name: str) -> None:
        """Refuse a flag that adds weights which are not described here."""
        if self.config.get(name):
            raise ArgumentError(name, f"true is not supported for {self.config['model_type']}")

    def _because(self) -> str:
        return f"absent, the default of {self.config['model_type']}"


def _heads(keys: _Keys, kv_default: bool = True) -> tuple[int, int, int]:
    """n_heads, n_kv_heads and head_dim, the last two with the defaults of every Llama-like class."""
    d_model = keys.integer("hidden_size")
    n_heads = keys.integer("num_attention_heads")
    if n_heads == 0:
        raise ArgumentError("num_attention_heads", "must be at least 1, got 0")
    n_kv_heads = n_heads
    if kv_default:
        n_kv_heads = keys.integer(
            "num_key_value_heads", default=n_heads, why="absent, as many as there are query heads"
        )
    if keys.config.get("head_dim") is None and d_model % n_heads:
        raise ArgumentError(
            "num_attention_heads",
            f"must divide hidden_size = {d_model} where head_dim is absent, got {n_heads}",
        )
    head_dim = keys.integer("head_dim", default=d_model // n_heads, why="absent, hidden_size / heads")
    return n_heads, n_kv_heads, head_dim


def _windows(keys: _Keys, n_layers: int, pattern: Callable[[int], bool]) -> list[int | None]:
    """The window of each layer, from ``layer_types`` or, if absent, from the class's own pattern."""
    types = keys.config.get("layer_types")
    if types is None:
        keys.assumed.append("layer_types: absent, the alternation that is the architecture's default")
        types = ["sliding_attention" if pattern(i) else "full_attention" for i in range(n_layers)]
    if not isinstance(types, Sequence) or len(types) != n_layers:
        raise ArgumentError("layer_types", f"must list all {n_layers} layers")
    unknown = set(types) - {"sliding_attention", "full_attention"}
    if unknown:
        raise ArgumentError(
            "layer_types", f"must hold sliding_attention or full_attention, got {sorted(map(str, unknown))}"
        )
    if "sliding_attention" not in types:
        return [None] * n_layers
    window = keys.integer("sliding_window")
    return [window if kind == "sliding_attention" else None for kind in types]


def _build(keys: _Keys, layers: Sequence[Layer], tied: bool, norm: str = "rmsnorm", **other: Any) -> Model:
    tied = keys.flag("tie_word_embeddings", tied)
    if "d_model" not in other:
        other |= {
            "d_model": keys.integer("hidden_size"),
            "context_length": keys.integer("max_position_embeddings"),
        }
    return Model(
        name=str(keys.config["model_type"]),
        vocab_size=keys.integer("vocab_size"),
        layers=tuple(layers),
        tied=tied,
        norm=norm,
        assumptions=tuple(keys.assumed),
        **other,
    )


def _gpt2(keys: _Keys) -> Model:
    keys.refuse("add_cross_attention")
    d_model, n_heads = keys.integer("n_embd"), keys.integer("n_head")
    if n_heads == 0 or d_model % n_heads:
        raise ArgumentError("n_head", f"must divide n_embd = {d_model}, got {n_heads}")
    d_ff = keys.integer("n_inner", default=4 * d_model, why="absent, 4 × n_embd")
    attention = Attention(n_heads, n_heads, d_model // n_heads, qkv_bias=True, out_bias=True, fused_qkv=True)
    activation = keys.activation("activation_function", "gelu_new")
    layer = Layer(attention, MLP(d_ff, gated=False, bias=True, activation=activation))
    positions = keys.integer("n_positions", "max_position_embeddings")
    return _build(
        keys,
        [layer] * keys.layers("n_layer"),
        tied=True,
        norm="layernorm",
        d_model=d_model,
        context_length=positions,
        learned_positions=positions,
    )


def _gpt_neox(keys: _Keys) -> Model:
    n_heads, n_kv_heads, head_dim = _heads(keys, kv_default=False)
    bias = keys.flag("attention_bias", True)
    attention = Attention(n_heads, n_kv_heads, head_dim, qkv_bias=bias, out_bias=bias, fused_qkv=True)
    mlp = MLP(
        keys.integer("intermediate_size"),
        gated=False,
        bias=True,
        activation=keys.activation("hidden_act", "gelu"),
    )
    layer = Layer(attention, mlp, parallel=keys.flag("use_parallel_residual", True))
    return _build(keys, [layer] * keys.layers("num_hidden_layers"), tied=False, norm="layernorm")


def _phi(keys: _Keys) -> Model:
    n_heads, n_kv_heads, head_dim = _heads(keys)
    if keys.flag("qk_layernorm", False):
        raise ArgumentError("qk_layernorm", "true is not supported for phi")
    attention = Attention(n_heads, n_kv_heads, head_dim, qkv_bias=True, out_bias=True)
    mlp = MLP(
        keys.integer("intermediate_size"),
        gated=False,
        bias=True,
        activation=keys.activation("hidden_act", "gelu_new"),
    )
    layer = Layer(attention, mlp, norms=1, parallel=True)
    layers = [layer] * keys.layers("num_hidden_layers")
    return _build(keys, layers, tied=False, norm="layernorm", head_bias=True)


def _llama(keys: _Keys) -> Model:
    n_heads, n_kv_heads, head_dim = _heads(keys)
    bias = keys.flag("attention_bias", False)
    attention = Attention(n_heads, n_kv_heads, head_dim, qkv_bias=bias, out_bias=bias)
    mlp = MLP(
        keys.integer("intermediate_size"),
        bias=keys.flag("mlp_bias", False),
        activation=keys.activation("hidden_act", "silu"),
    )
    return _build(keys, [Layer(attention, mlp)] * keys.layers("num_hidden_layers"), tied=False)


def _window_everywhere(keys: _Keys) -> int | None:
    """``sliding_window`` where null, or absent as in Mistral 7B v0.2, means none."""
    window = keys.config.get("sliding_window")
    return None if window is None else keys.integer("sliding_window")


def _mistral(keys: _Keys) -> Model:
    n_heads, n_kv_heads, head_dim = _heads(keys)
    if "sliding_window" not in keys.config:
        raise ArgumentError("sliding_window", "is missing from this mistral configuration (null for none)")
    attention = Attention(n_heads, n_kv_heads, head_dim, window=_window_everywhere(keys))
    mlp = MLP(keys.integer("intermediate_size"), activation=keys.activation("hidden_act", "silu"))
    return _build(keys, [Layer(attention, mlp)] * keys.layers("num_hidden_layers"), tied=False)


def _mixtral(keys: _Keys) -> Model:
    n_heads, n_kv_heads, head_dim = _heads(keys)
    attention = Attention(n_heads, n_kv_heads, head_dim, window=_window_everywhere(keys))
    moe = MoE(
        keys.integer("num_local_experts", "num_experts"),
        keys.integer("num_experts_per_tok"),
        keys.integer("intermediate_size"),
        activation=keys.activation("hidden_act", "silu"),
    )
    return _build(keys, [Layer(attention, moe)] * keys.layers("num_hidden_layers"), tied=False)


def _phi3(keys: _Keys) -> Model:
    n_heads, n_kv_heads, head_dim = _heads(keys)
    window = _window_everywhere(keys)
    attention = Attention(n_heads, n_kv_heads, head_dim, window=window, fused_qkv=True)
    mlp = MLP(keys.integer("intermediate_size"), activation=keys.activation("hidden_act", "silu"))
    return _build(keys, [Layer(attention, mlp)] * keys.layers("num_hidden_layers"), tied=False)


def _olmo2(keys: _Keys) -> Model:
    n_heads, n_kv_heads, head_dim = _heads(keys)
    bias = keys.flag("attention_bias", False)
    attention = Attention(n_heads, n_kv_heads, head_dim, qkv_bias=bias, out_bias=bias, qk_norm="width")
    mlp = MLP(keys.integer("intermediate_size"), activation=keys.activation("hidden_act", "silu"))
    return _build(keys, [Layer(attention, mlp)] * keys.layers("num_hidden_layers"), tied=False)


def _qwen_windows(keys: _Keys, n_layers: int) -> list[int | None]:
    """Qwen 2 and 3: a window only if ``use_sliding_window``, from layer ``max_window_layers`` on."""
    if not keys.flag("use_sliding_window", False):
        return [None] * n_layers
    first = keys.integer("max_window_layers") if keys.config.get("layer_types") is None else 0
    return _windows(keys, n_layers, lambda i: i >= first)


def _qwen_dense(keys: _Keys, attention: Attention) -> Model:
    mlp = MLP(keys.integer("intermediate_size"), activation=keys.activation("hidden_act", "silu"))
    windows = _qwen_windows(keys, keys.layers("num_hidden_layers"))
    return _build(keys, _with_windows(Layer(attention, mlp), windows), tied=False)


def _with_windows(layer: Layer, windows: Sequence[int | None]) -> list[Layer]:
    """One layer for each window; equal ones are the same object."""
    attention = layer.attention
    assert isinstance(attention, Attention)
    made = {w: replace(layer, attention=replace(attention, window=w)) for w in set(windows)}
    return [made[w] for w in windows]


def _qwen2(keys: _Keys) -> Model:
    return _qwen_dense(keys, Attention(*_heads(keys), qkv_bias=True))


def _qwen3(keys: _Keys) -> Model:
    if keys.config.get("head_dim") is None:
        raise ArgumentError("head_dim", "is missing from this qwen3 configuration")
    bias = keys.flag("attention_bias", False)
    return _qwen_dense(keys, Attention(*_heads(keys), qkv_bias=bias, out_bias=bias, qk_norm="head"))


def _mixed_experts(keys: _Keys, dense: Layer, sparse: Layer, n_layers: int) -> list[Layer]:
    """Qwen MoE: every ``decoder_sparse_step``-th layer has experts, unless in ``mlp_only_layers``."""
    step = keys.integer("decoder_sparse_step", default=1)
    if step == 0:
        raise ArgumentError("decoder_sparse_step", "must be at least 1, got 0")
    plain = keys.config.get("mlp_only_layers") or []
    return [dense if i in plain or (i + 1) % step else sparse for i in range(n_layers)]


def _qwen_moe(keys: _Keys, attention: Attention, moe: MoE) -> Model:
    if keys.flag("use_sliding_window", False):
        raise ArgumentError("use_sliding_window", f"true is not supported for {keys.config['model_type']}")
    n_layers = keys.layers("num_hidden_layers")
    mlp = MLP(keys.integer("intermediate_size"), activation=moe.activation)
    layers = _mixed_experts(keys, Layer(attention, mlp), Layer(attention, moe), n_layers)
    return _build(keys, layers, tied=False)


def _qwen2_moe(keys: _Keys) -> Model:
    moe = MoE(
        keys.integer("num_experts"),
        keys.integer("num_experts_per_tok"),
        keys.integer("moe_intermediate_size"),
        shared_d_ff=keys.integer("shared_expert_intermediate_size"),
        shared_gate=True,
        activation=keys.activation("hidden_act", "silu"),
    )
    return _qwen_moe(keys, Attention(*_heads(keys), qkv_bias=keys.flag("qkv_bias", True)), moe)


def _qwen3_moe(keys: _Keys) -> Model:
    moe = MoE(
        keys.integer("num_experts", "num_local_experts"),
        keys.integer("num_experts_per_tok"),
        keys.integer("moe_intermediate_size"),
        activation=keys.activation("hidden_act", "silu"),
    )
    bias = keys.flag("attention_bias", False)
    attention = Attention(*_heads(keys), qkv_bias=bias, out_bias=bias, qk_norm="head")
    return _qwen_moe(keys, attention, moe)


def _gemma_layer(keys: _Keys, activation: str, norms: int, qk_norm: str) -> Layer:
    if keys.config.get("head_dim") is None:
        raise ArgumentError("head_dim", f"is missing from this {keys.config['model_type']} configuration")
    bias = keys.flag("attention_bias", False)
    attention = Attention(*_heads(keys), qkv_bias=bias, out_bias=bias, qk_norm=qk_norm)
    mlp = MLP(keys.integer("intermediate_size"), activation=keys.activation(activation, "gelu_pytorch_tanh"))
    return Layer(attention, mlp, norms=norms)


def _gemma(keys: _Keys) -> Model:
    layer = _gemma_layer(keys, "hidden_act", norms=2, qk_norm="none")
    return _build(keys, [layer] * keys.layers("num_hidden_layers"), tied=True)


def _gemma2(keys: _Keys) -> Model:
    layer = _gemma_layer(keys, "hidden_activation", norms=4, qk_norm="none")
    windows = _windows(keys, keys.layers("num_hidden_layers"), lambda i: i % 2 == 0)
    return _build(keys, _with_windows(layer, windows), tied=True)


def _gemma3(keys: _Keys) -> Model:
    layer = _gemma_layer(keys, "hidden_activation", norms=4, qk_norm="head")
    period = keys.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
    windows = _windows(keys, keys.layers("num_hidden_layers"), lambda i: (i + 1) % max(period, 1) != 0)
    return _build(keys, _with_windows(layer, windows), tied=True)


def _gpt_oss(keys: _Keys) -> Model:
    bias = keys.flag("attention_bias", True)
    attention = Attention(*_heads(keys), qkv_bias=bias, out_bias=bias, sinks=True)
    moe = MoE(
        keys.integer("num_local_experts", "num_experts"),
        keys.integer("num_experts_per_tok", "experts_per_token"),
        keys.integer("intermediate_size"),
        router_bias=True,
        bias=True,
        activation="clipped_swiglu",
    )
    windows = _windows(keys, keys.layers("num_hidden_layers"), lambda i: i % 2 == 0)
    return _build(keys, _with_windows(Layer(attention, moe), windows), tied=False)


def _deepseek(keys: _Keys) -> Model:
    if "q_lora_rank" not in keys.config:
        raise ArgumentError("q_lora_rank", "is missing from this DeepSeek configuration (null for none)")
    attention = LatentAttention(
        keys.integer("num_attention_heads"),
        None if keys.config["q_lora_rank"] is None else keys.integer("q_lora_rank"),
        keys.integer("kv_lora_rank"),
        keys.integer("qk_rope_head_dim"),
        keys.integer("qk_nope_head_dim"),
        keys.integer("v_head_dim"),
        bias=keys.flag("attention_bias", False),
    )
    keys.refuse("mlp_bias")
    if keys.config.get("moe_layer_freq") not in (None, 1):
        raise ArgumentError("moe_layer_freq", f"must be 1, got {keys.config['moe_layer_freq']!r}")
    v3 = keys.config["model_type"] == "deepseek_v3"
    activation = keys.activation("hidden_act", "silu")
    d_expert = keys.integer("moe_intermediate_size")
    moe = MoE(
        keys.integer("n_routed_experts"),
        keys.integer("num_experts_per_tok"),
        d_expert,
        shared_d_ff=d_expert * keys.integer("n_shared_experts"),
        correction_bias=v3,
        activation=activation,
    )
    dense = Layer(attention, MLP(keys.integer("intermediate_size"), activation=activation))
    n_layers, n_dense = keys.layers("num_hidden_layers"), keys.integer("first_k_dense_replace")
    layers = [dense] * min(n_dense, n_layers) + [Layer(attention, moe)] * max(n_layers - n_dense, 0)
    extra = keys.integer("num_nextn_predict_layers", "num_mtp_layers", default=0) if v3 else 0
    return _build(keys, layers, tied=False, next_n_predict_layers=extra)


_READERS: dict[str, Callable[[_Keys], Model]] = {
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gpt_oss": _gpt_oss,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmo2": _olmo2,
    "phi": _phi,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
}

SUPPORTED = tuple(_READERS)


def read(config: Mapping[str, Any], name: str = "") -> Model:
    """Read a configuration as ``json.load`` gives it.

    Raises:
        ArgumentError: for an architecture that is not in ``SUPPORTED``, a missing key, or a size that is
            refused; ``field`` names the key where one is at fault.
    """
    if not isinstance(config, Mapping):
        raise ArgumentError("config", f"must be an object of keys and values, got {type(config).__name__}")
    kind = config.get("model_type")
    if kind not in _READERS:
        raise ArgumentError("model_type", f"must be one of {', '.join(SUPPORTED)}; got {kind!r}")
    model = _READERS[kind](_Keys(config))
    return replace(model, name=name) if name else model
