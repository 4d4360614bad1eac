"""Hugging Face's ``config.json`` read into a ``ModelConfig``, and written from one.

- Sizes are read by ``lmlib.resources.config``, strictly; here come the choices that cost nothing: epsilon,
  frequencies, scalings. What would change the logits and is not known here is refused.
- A family can hold a model if writing and reading its configuration gives the same back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmlib.architecture.config import GATED, UNGATED, ModelConfig
from lmlib.architecture.parts import MoEConfig, RopeScaling
from lmlib.resources import config as sizes
from lmlib.resources.model import MLP, Attention, Model, MoE
from lmlib.resources.units import ArgumentError, check_number

FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "mixtral")
CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
}
# What a configuration may leave out, as each family's class fills it in.
_EPS = {"mixtral": 1e-5}
_THETA = {"mixtral": 1e6}
_REFUSED = {
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "add_cross_attention": (None, False),
    "reorder_and_upcast_attn": (None, False, True),  # changes rounding only
    "quantization_config": (None,),
}
_FAR = 100
# Our names of the keys that reading may refuse.
_OURS = {
    "num_local_experts": "moe",
    "hidden_act": "mlp",
    "n_head": "n_heads",
    "num_attention_heads": "n_heads",
}
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """The ``ModelConfig`` of a ``config.json``.

    Raises:
        ArgumentError: for a family that is not in ``FAMILIES``, a missing size, or a setting that this
            book's model does not have; ``field`` is the key.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ArgumentError("model_type", f"must be one of {', '.join(FAMILIES)}; got {family!r}")
    for key, allowed in _REFUSED.items():
        if config.get(key) not in allowed:
            raise ArgumentError(key, f"{config[key]!r} is not supported")
    return _from_sizes(sizes.read(config), family, config)


def _from_sizes(model: Model, family: str, config: Mapping[str, Any]) -> ModelConfig:
    layer = model.layers[0]
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(attention, Attention)
    choices: dict[str, Any] = _gpt2(config) if family == "gpt2" else _llama_like(family, config)
    if isinstance(mlp, MoE):
        weight = config.get("router_aux_loss_coef", 0.001)
        choices["moe"] = MoEConfig(mlp.n_experts, mlp.top_k, mlp.d_ff, balance_weight=weight)
    gated = not isinstance(mlp, MLP) or mlp.gated
    names = {activation: name for name, activation in (GATED if gated else UNGATED).items()}
    if mlp.activation not in names:
        raise ArgumentError("hidden_act", f"must be one of {', '.join(names)}; got {mlp.activation}")
    return ModelConfig(
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        d_model=model.d_model,
        n_layers=model.n_layers,
        n_heads=attention.n_heads,
        n_kv_heads=attention.n_kv_heads,
        head_dim=attention.head_dim,
        d_ff=mlp.d_ff,
        norm=model.norm,
        mlp="relu" if names[mlp.activation] == "relu2" else names[mlp.activation],
        bias=isinstance(mlp, MLP) and mlp.bias,
        qkv_bias=attention.qkv_bias,
        out_bias=attention.out_bias,
        tied=model.tied,
        qk_norm=attention.qk_norm == "head",
        **_windows([other.attention.window for other in model.layers]),
        **choices,
    )


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"position": "learned", "norm_eps": config.get("layer_norm_epsilon", 1e-5)}


def _llama_like(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    # Since version 5, transformers keeps base and scaling together in rope_parameters.
    rope, older = (config.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
    for key, given in (("rope_parameters", rope), ("rope_scaling", older)):
        if not isinstance(given, Mapping):
            raise ArgumentError(key, f"must be an object, got {given!r}")
    theta = rope.get("rope_theta") or config.get("rope_theta") or _THETA.get(family, 10000.0)
    return {
        "position": "rope",
        "norm_eps": _number("rms_norm_eps", config.get("rms_norm_eps", _EPS.get(family, 1e-6))),
        "rope_theta": _number("rope_theta", theta),
        "rope_scaling": _read_scaling(rope or older, config),
    }


def _number(key: str, value: Any) -> float:
    return float(check_number(key, value, 1e-12, 10**12))


def _read_scaling(rope: Mapping[str, Any], config: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    for place in (rope, config):
        if place.get("partial_rotary_factor") not in (None, 1.0):
            raise ArgumentError("partial_rotary_factor", f"must be 1, got {place['partial_rotary_factor']!r}")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise ArgumentError("rope_type", f"must be default, linear, llama3 or yarn; got {kind!r}")
    for key in ("mscale", "mscale_all_dim"):
        if rope.get(key) is not None:
            raise ArgumentError(key, f"{rope[key]!r} is not supported")
    if rope.get("truncate") is False:
        raise ArgumentError("truncate", "false is not supported")
    if "factor" not in rope:
        raise ArgumentError("factor", f"is missing from the {kind} scaling")
    if kind == "linear":
        return RopeScaling(kind, rope["factor"])
    original = rope.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    names = ["low_freq_factor", "high_freq_factor"]
    if kind == "yarn":
        names = ["beta_fast", "beta_slow", "attention_factor"]
    given = {name: rope[name] for name in names if rope.get(name) is not None}
    return RopeScaling(kind, rope["factor"], original, **given)


def _windows(windows: list[int | None]) -> dict[str, Any]:
    """``window`` and the shortest ``window_pattern`` that repeats into these."""
    window = next((w for w in windows if w is not None), None)
    if window is None:
        return {}
    letters = "".join("G" if w is None else "L" for w in windows)
    for length in range(1, len(letters) + 1):
        pattern = letters[:length]
        if (pattern * len(letters))[: len(letters)] == letters:
            break
    return {"window": window, "window_pattern": pattern}


def write_config(config: ModelConfig, family: str | None = None) -> dict[str, Any]:
    """A ``config.json`` of ``family``, or of the first family that can hold this model.

    Raises:
        ArgumentError: if none can, with the fields that stand in the way in the nearest one.
    """
    if family is not None and family not in FAMILIES:
        raise ArgumentError("family", f"must be one of {', '.join(FAMILIES)}; got {family!r}")
    obstacles: dict[str, list[str]] = {}
    for candidate in FAMILIES if family is None else (family,):
        written = _write_gpt2(config) if candidate == "gpt2" else _write_llama_like(config, candidate)
        obstacles[candidate] = _differences(config, written)
        if not obstacles[candidate]:
            return written
    nearest = min(obstacles, key=lambda name: len(obstacles[name]))
    given = {name: getattr(config, name, None) for name in obstacles[nearest]}
    fields = ", ".join(f"{name}={value!r}" for name, value in given.items())
    raise ArgumentError("config", f"no family holds this model; {nearest} comes nearest, but lacks {fields}")


def _differences(config: ModelConfig, written: dict[str, Any]) -> list[str]:
    """Fields in which the model read back is another one."""
    try:
        back = read_config(written)
    except ArgumentError as error:
        return [_OURS.get(error.field, error.field)] * _FAR  # further away than any that can be read
    ours, theirs = _essence(config), _essence(back)
    return [name for name in ours if ours[name] != theirs.get(name)]


def _essence(config: ModelConfig) -> dict[str, Any]:
    """What the logits depend on, each thing said in one way; what only training reads is left out."""
    values = config.to_dict()
    for name in ("kernels", "embedding_std", "head_init_scale", "residual_init_scale", "window_pattern"):
        del values[name]
    values["window"] = [config.layer_window(layer) for layer in range(config.n_layers)]
    values["attention_scale"] = config.scale
    if config.position != "rope":
        del values["rope_theta"]
    if config.moe is not None:
        if config.moe.first_dense == 0:
            values["d_ff"] = None
        for name in ("balance_weight", "z_weight"):
            del values["moe"][name]
        values["moe"]["balance"] = config.moe.balance == "bias"
    return values


def _write_gpt2(config: ModelConfig) -> dict[str, Any]:
    activation = {**UNGATED, **GATED}[config.mlp]
    return {
        "architectures": [CLASSES["gpt2"]],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "activation_function": "gelu_new" if activation == "gelu_tanh" else activation,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _write_llama_like(config: ModelConfig, family: str) -> dict[str, Any]:
    activation = {**UNGATED, **GATED}[config.mlp]
    written = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff if config.moe is None else config.moe.d_ff,
        "hidden_act": _ACTIVATIONS[activation],
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        **_write_rope(config),
    }
    windows = [config.layer_window(layer) for layer in range(config.n_layers)]
    if family in ("llama", "qwen3"):
        written["attention_bias"] = config.qkv_bias
    if family == "llama":
        written["mlp_bias"] = config.bias
    if family in ("mistral", "mixtral"):
        written["sliding_window"] = windows[0]
    if family in ("qwen2", "qwen3"):
        kinds = ["full_attention" if w is None else "sliding_attention" for w in windows]
        written |= {"layer_types": kinds, "use_sliding_window": any(windows), "sliding_window": config.window}
        written["max_window_layers"] = kinds.count("full_attention")
    if family == "mixtral" and config.moe is not None:
        written |= {"num_local_experts": config.moe.n_experts, "num_experts_per_tok": config.moe.top_k}
        written["router_aux_loss_coef"] = config.moe.balance_weight
    return written


def _write_rope(config: ModelConfig) -> dict[str, Any]:
    """Base and scaling, in the words of transformers 4 and of 5."""
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind != "linear":
            rope["original_max_position_embeddings"] = scaling.original_context_length
        if scaling.kind == "llama3":
            rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        if scaling.kind == "yarn":
            rope |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
            if scaling.attention_factor is not None:
                rope["attention_factor"] = scaling.attention_factor
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
    }
