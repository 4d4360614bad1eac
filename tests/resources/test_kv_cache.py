"""Cache bytes against published figures and against the tensors that transformers really keeps."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from lmlib.resources import PRESETS, ArgumentError, Model, load
from lmlib.resources.kv_cache import cache, per_token

# Bytes a token in bf16.
PER_TOKEN = {
    "gpt2": 36_864, "gpt2-medium": 98_304, "gpt2-large": 184_320, "gpt2-xl": 307_200,
    "pythia-70m": 12_288, "pythia-160m": 36_864, "pythia-410m": 98_304, "pythia-1b": 131_072,
    "llama-2-7b": 524_288, "llama-2-13b": 819_200, "llama-2-70b": 327_680,
    "llama-3-8b": 131_072, "llama-3-70b": 327_680, "llama-3-405b": 516_096,
    "llama-3.2-1b": 32_768, "llama-3.2-3b": 114_688, "tinyllama-1.1b": 22_528,
    "mistral-7b-v0.1": 131_072, "mixtral-8x7b": 131_072, "mixtral-8x22b": 229_376,
    "gemma-2b": 18_432, "gemma-7b": 458_752,
    "gemma-2-2b": 106_496, "gemma-2-9b": 344_064, "gemma-2-27b": 376_832,
    "qwen2.5-0.5b": 12_288, "qwen2.5-1.5b": 28_672, "qwen2.5-3b": 36_864, "qwen2.5-7b": 57_344,
    "qwen2.5-14b": 196_608, "qwen2.5-32b": 262_144, "qwen2.5-72b": 327_680,
    "qwen3-0.6b": 114_688, "qwen3-1.7b": 114_688, "qwen3-4b": 147_456,
    "qwen3-8b": 147_456, "qwen3-14b": 163_840, "qwen3-32b": 262_144,
    "qwen3-30b-a3b": 98_304, "qwen3-235b-a22b": 192_512,
    "deepseek-v2": 69_120, "deepseek-v2-lite": 31_104, "deepseek-v3": 70_272,
    "gpt-oss-20b": 49_152, "gpt-oss-120b": 73_728,
}  # fmt: skip

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 64,
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 2,
}
CONFIGS = {
    "llama": SMALL,
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 160, "n_positions": 64},
    "gpt_neox": SMALL,
    "qwen3": SMALL | {"head_dim": 24},
    "gemma": SMALL | {"head_dim": 24, "num_key_value_heads": 1},
    "gemma2": SMALL | {"head_dim": 24, "sliding_window": 8},
    "gemma3_text": SMALL | {"head_dim": 24, "sliding_window": 8},
    "mistral": SMALL | {"sliding_window": 8},
    "deepseek_v3": SMALL | LATENT,
    "gpt_oss": SMALL
    | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8},
}


def kept_bytes(kept):
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.layers)


def run(kind, make, tokens, dtype):
    """Run a prompt through a small model and return what its cache holds."""
    config = AutoConfig.for_model(kind, **CONFIGS[kind])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
    kept = make(model.config)
    with torch.no_grad():
        model(torch.arange(3 * tokens).view(3, tokens) % 160, past_key_values=kept, use_cache=True)
    return kept_bytes(kept)


def described(kind):
    return Model.from_hf({"model_type": kind, **CONFIGS[kind]})


@pytest.mark.parametrize("name", PER_TOKEN)
def test_bytes_per_token(name):
    assert per_token(load(name)).total == PER_TOKEN[name]


def test_presets_without_a_row_follow_the_formula_for_full_heads():
    """Pythia from 1.4B on: two vectors of the model's width a layer."""
    for name in set(PRESETS) - set(PER_TOKEN):
        model = load(name)
        assert per_token(model).total == 2 * 2 * model.n_layers * model.d_model


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")])
@pytest.mark.parametrize("kind", CONFIGS)
def test_equal_to_the_tensors_of_transformers(kind, dtype, name):
    """Seven tokens, shorter than any window."""
    held = run(kind, lambda config: DynamicCache(config=config), 7, dtype)
    assert held == cache(described(kind), 7, batch=3, dtype=name).total


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text", "gpt_oss"])
def test_windows_cap_the_cache(kind):
    """A preallocated cache keeps ``window`` tokens in a windowed layer and all of them in the others."""
    held = run(kind, lambda config: StaticCache(config=config, max_cache_len=20), 20, torch.float32)
    assert held == cache(described(kind), 20, batch=3, dtype="fp32").total


def test_a_growing_cache_keeps_one_token_less_than_the_window():
    """transformers drops the token that the next query can no longer see; ours counts the full window."""
    held = run("mistral", lambda config: DynamicCache(config=config), 20, torch.float32)
    model = described("mistral")
    assert cache(model, 20, batch=3, dtype="fp32").total - held == 3 * per_token(model, "fp32").total


@pytest.mark.parametrize("name", PRESETS)
def test_cache_grows_by_bytes_per_token_until_the_window(name):
    model = load(name)
    assert cache(model, 128, batch=5).total == 5 * 128 * per_token(model).total
    assert cache(model, 0).total == 0
    grown = cache(model, 100_001).total - cache(model, 100_000).total
    windowed = any(layer.attention.window for layer in model.layers)
    assert (grown < per_token(model).total) == windowed


def test_smaller_dtypes():
    model = load("deepseek-v3")
    assert 4 * cache(model, 1000, dtype="int4").total == cache(model, 1000, dtype="bf16").total
    assert 2 * cache(model, 1000, dtype="fp8").total == cache(model, 1000, dtype="fp16").total


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"tokens": -1}, "tokens"),
        ({"batch": 0}, "batch"),
        ({"dtype": "bf8"}, "dtype"),
        ({"tokens": 1.5}, "tokens"),
    ],
)
def test_refused(arguments, field):
    with pytest.raises(ArgumentError) as caught:
        cache(load("gpt2"), **({"tokens": 4} | arguments))
    assert caught.value.field == field
