"""The configuration: what is derived, what is refused, and that the ledgers count the module's parameters."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lmlib.architecture import MLAConfig, ModelConfig, MoEConfig, RopeScaling, TransformerLM
from lmlib.resources import parameters
from lmlib.resources.flops import forward, training
from lmlib.resources.kv_cache import cache
from lmlib.resources.units import ArgumentError

BASE: dict[str, Any] = {"vocab_size": 50, "context_length": 32, "d_model": 32, "n_layers": 3, "n_heads": 4}
MLA = MLAConfig(kv_lora_rank=8, nope_head_dim=6, rope_head_dim=4, v_head_dim=5)

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gqa, window, head norms": {"n_kv_heads": 2, "window": 5, "window_pattern": "LG", "qk_norm": True},
    "mqa, wide heads": {"n_kv_heads": 1, "head_dim": 12, "qkv_bias": True},
    "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu_tanh", "bias": True, "tied": True},
    "post": {"norm_position": "post", "position": "sinusoidal", "mlp": "relu", "bias": True},
    "gemma2": {"norm_position": "both", "mlp": "geglu_tanh", "attention_softcap": 5.0, "tied": True},
    "none": {"norm_position": "none", "position": "none", "mlp": "relu2"},
    "output": {"norm_position": "output", "norm": "layernorm", "mlp": "silu", "out_bias": True},
    "mla": {"attention": "mla", "mla": MLA},
    "mla, query latent": {"attention": "mla", "mla": MLAConfig(8, 6, 4, 5, q_lora_rank=7), "bias": True},
    "moe": {"moe": MoEConfig(4, 2, 16)},
    "deepseek": {
        "attention": "mla",
        "mla": MLA,
        "moe": MoEConfig(6, 3, 16, n_shared=2, first_dense=1, score="sigmoid", balance="bias"),
    },
}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_ledger_counts_the_parameters_and_buffers(name: str) -> None:
    config = ModelConfig(**BASE, **CONFIGS[name])
    with torch.device("meta"):
        model = TransformerLM(config)
    ledger = config.resources()
    assert count(model) == parameters.parameters(ledger).total
    saved = sum(tensor.numel() for tensor in model.state_dict().values())
    assert saved == count(model) + parameters.buffers(ledger).total


@settings(deadline=None, max_examples=60)
@given(
    groups=st.integers(1, 3),
    kv=st.integers(1, 3),
    head_dim=st.integers(1, 5).map(lambda half: 2 * half),
    d_ff=st.integers(1, 40),
    n_layers=st.integers(1, 4),
    norm=st.sampled_from(["rmsnorm", "layernorm"]),
    norm_position=st.sampled_from(["pre", "post", "both", "output", "none"]),
    mlp=st.sampled_from(["swiglu", "geglu", "gelu", "relu", "relu2"]),
    position=st.sampled_from(["rope", "learned", "sinusoidal", "none"]),
    flags=st.tuples(*[st.booleans()] * 4),
)
def test_ledger_counts_any_model(
    groups: int, kv: int, head_dim: int, d_ff: int, n_layers: int, flags: tuple[bool, ...], **choices: str
) -> None:
    bias, qkv_bias, tied, qk_norm = flags
    config = ModelConfig(
        29,
        16,
        24,
        n_layers,
        groups * kv,
        n_kv_heads=kv,
        head_dim=head_dim,
        d_ff=d_ff,
        bias=bias,
        qkv_bias=qkv_bias,
        tied=tied,
        qk_norm=qk_norm,
        **choices,  # type: ignore[arg-type]
    )
    with torch.device("meta"):
        model = TransformerLM(config)
    assert count(model) == parameters.parameters(config.resources()).total


@pytest.mark.parametrize("name", CONFIGS)
def test_ledger_counts_the_flops(name: str) -> None:
    """Against PyTorch's own counter, which sees the products that the written-out model computes."""
    config = ModelConfig(**BASE, **CONFIGS[name], kernels="eager")
    model = TransformerLM(config)
    tokens = torch.randint(50, (2, 16))
    with FlopCounterMode(display=False) as counter:
        logits = model(tokens)
    ahead = counter.get_total_flops()
    assert ahead == forward(config.resources(), 2, 16, mask="full").total
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    assert ahead + counter.get_total_flops() == training(config.resources(), 2, 16, mask="full").total


def test_derived_sizes() -> None:
    config = ModelConfig(**BASE)
    assert (config.n_kv_heads, config.head_dim, config.d_ff) == (4, 8, 128)
    assert ModelConfig(**BASE | {"d_model": 768, "n_heads": 12}).d_ff == 2048
    assert ModelConfig(**BASE, mlp="gelu").d_ff == 128
    assert ModelConfig(**BASE | {"d_model": 512, "n_heads": 16}).d_ff == 1408
    assert ModelConfig(**BASE, attention="mla", mla=MLA).head_dim == 10


def test_replace_derives_anew_what_was_derived() -> None:
    config = ModelConfig(**BASE, d_ff=100)
    wider = config.replace(d_model=64)
    assert (wider.head_dim, wider.d_ff) == (16, 100)
    assert wider.replace(d_model=32) == config
    assert ModelConfig(**BASE).replace(n_heads=8).n_kv_heads == 8


@pytest.mark.parametrize("name", CONFIGS)
def test_dictionary_round_trip_through_json(name: str) -> None:
    config = ModelConfig(**BASE, **CONFIGS[name])
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_scaling_survives_the_dictionary() -> None:
    config = ModelConfig(**BASE, rope_scaling=RopeScaling("llama3", 8.0, 16))
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_unknown_and_missing_keys_are_named() -> None:
    with pytest.raises(ArgumentError, match="n_layer: is not known; allowed are vocab_size"):
        ModelConfig.from_dict({**BASE, "n_layer": 3})
    with pytest.raises(ArgumentError, match=r"moe\.experts: is not known"):
        ModelConfig.from_dict({**BASE, "moe": {"experts": 3}})
    with pytest.raises(ArgumentError, match="context_length: is missing"):
        ModelConfig.from_dict({"vocab_size": 5})
    with pytest.raises(ArgumentError, match="derived: is not known"):
        ModelConfig.from_dict({**BASE, "derived": []})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"d_model": 32.0}, "d_model"),
        ({"n_layers": True}, "n_layers"),
        ({"n_heads": 5}, "n_heads"),
        ({"n_kv_heads": 3}, "n_kv_heads"),
        ({"n_heads": 32}, "head_dim"),
        ({"head_dim": 7}, "head_dim"),
        ({"d_ff": 0}, "d_ff"),
        ({"norm": "batchnorm"}, "norm"),
        ({"norm_position": "before"}, "norm_position"),
        ({"norm_eps": 0}, "norm_eps"),
        ({"mlp": "tanh"}, "mlp"),
        ({"bias": 1}, "bias"),
        ({"qkv_bias": 1}, "qkv_bias"),
        ({"position": "alibi"}, "position"),
        ({"position": "learned", "rope_scaling": RopeScaling("linear", 2.0)}, "rope_scaling"),
        ({"rope_scaling": {"kind": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"window": 0}, "window"),
        ({"window_pattern": "LX"}, "window_pattern"),
        ({"window_pattern": ""}, "window_pattern"),
        ({"attention": "mla"}, "mla"),
        ({"mla": MLA}, "mla"),
        ({"attention": "mla", "mla": MLA, "n_kv_heads": 2}, "n_kv_heads"),
        ({"attention": "mla", "mla": MLA, "window": 4}, "window"),
        ({"attention": "mla", "mla": MLA, "qk_norm": True}, "qk_norm"),
        ({"attention": "mla", "mla": MLAConfig(8, 6, 3, 5)}, "mla.rope_head_dim"),
        ({"attention_softcap": 0}, "attention_softcap"),
        ({"logit_softcap": -1.0}, "logit_softcap"),
        ({"embedding_std": -0.1}, "embedding_std"),
        ({"kernels": "cuda"}, "kernels"),
        ({"moe": {"n_experts": 4}}, "moe"),
        ({"d_model": 33, "head_dim": 8, "position": "sinusoidal"}, "d_model"),
    ],
)
def test_bad_values_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        ModelConfig(**BASE | changes)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: MoEConfig(4, 5, 8), "moe.top_k"),
        (lambda: MoEConfig(4, 2, 8, balance="luck"), "moe.balance"),
        (lambda: MLAConfig(0, 6, 4, 5), "mla.kv_lora_rank"),
        (lambda: RopeScaling("ntk", 2.0), "rope_scaling.kind"),
        (lambda: RopeScaling("linear", 0.5), "rope_scaling.factor"),
        (lambda: RopeScaling("yarn", 2.0), "rope_scaling.original_context_length"),
        (lambda: RopeScaling("llama3", 2.0, 16, 4.0, 4.0), "rope_scaling.high_freq_factor"),
    ],
)
def test_bad_parts_are_refused_by_name(make: Any, field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["llama", "mqa, wide heads", "mla"])
def test_cache_takes_the_bytes_of_the_ledger(name: str) -> None:
    config = ModelConfig(**BASE, **CONFIGS[name])
    model = TransformerLM(config)
    filled = model.new_cache()
    model(torch.zeros(3, 2, dtype=torch.long), filled)
    assert filled.nbytes == cache(config.resources(), config.context_length, 3, "fp32").total


def test_cache_of_a_window_takes_at_most_twice_the_ledger() -> None:
    config = ModelConfig(**BASE, window=5)
    filled = TransformerLM(config).new_cache()
    TransformerLM(config)(torch.zeros(3, 30, dtype=torch.long), filled)
    assert filled.nbytes == 2 * cache(config.resources(), 30, 3, "fp32").total
