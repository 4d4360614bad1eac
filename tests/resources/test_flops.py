"""FLOPs against PyTorch's own counter, as integers, with its traps made visible."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from lmlib.resources import PRESETS, ArgumentError, Model, load
from lmlib.resources.flops import (
    MASKS,
    MIX,
    SCORES,
    attended_pairs,
    backward,
    departures,
    forward,
    six_n_d,
    training,
)
from lmlib.resources.ledger import evaluate

B, T = 2, 24
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 64,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 40}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 160, "n_positions": 64}
CONFIGS = {
    "llama": SMALL,
    "qwen2": SMALL,
    "qwen3": SMALL | {"head_dim": 24},
    "gemma": SMALL | {"head_dim": 24},
    "gemma2": SMALL | {"head_dim": 24, "sliding_window": 8},
    "gpt2": GPT2,
    "gpt_neox": SMALL,
    "phi": SMALL,
    "phi3": SMALL | {"pad_token_id": 0},
    "olmo2": SMALL,
    "mistral": SMALL | {"sliding_window": 8},
    "mixtral": SMALL | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": SMALL | SHARED,
    "qwen3_moe": SMALL | EXPERTS | {"head_dim": 24},
    "deepseek_v2": SMALL | LATENT | {"q_lora_rank": None},
    "deepseek_v3": SMALL | LATENT | {"q_lora_rank": 20, "n_group": 2, "topk_group": 2},
    "gpt_oss": SMALL
    | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8},
}


def built(kind, experts="eager", attention="eager"):
    """A small model of transformers on the CPU, with the implementations that the counter can see."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **CONFIGS[kind])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if experts is not None and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(experts)
    return model.train()


def counted(model):
    """What the counter sees in a forward and in a backward pass."""
    tokens = torch.arange(B * T).view(B, T) % 160
    with FlopCounterMode(display=False) as ahead:
        logits = model(tokens, use_cache=False).logits
    with FlopCounterMode(display=False) as back:
        logits.sum().backward()
    return ahead.get_total_flops(), back.get_total_flops()


def described(kind):
    return Model.from_hf({"model_type": kind, **CONFIGS[kind]})


@pytest.mark.parametrize("kind", CONFIGS)
def test_equal_to_the_counter(kind):
    ahead, back = counted(built(kind))
    ledger = forward(described(kind), B, T, mask="full")
    assert ledger.total == ahead
    assert backward(ledger).total == back


def test_trap_fused_attention_on_the_cpu_is_not_counted():
    """If PyTorch learns to count it, this fails: then ``math`` is no longer needed above."""
    ledger = forward(described("llama"), B, T, mask="full")
    attention = sum(term.value for path, term in ledger.terms() if path[-1] in (SCORES, MIX))
    model = built("llama", attention="sdpa")
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fused, _ = counted(model)
    assert fused in (ledger.total - attention, ledger.total)
    with sdpa_kernel(SDPBackend.MATH):
        assert counted(model)[0] == ledger.total


def test_trap_grouped_experts_are_never_overcounted():
    """The default implementation may hide the experts' products from the counter, never add to them."""
    assert (
        counted(built("mixtral", experts=None))[0] <= forward(described("mixtral"), B, T, mask="full").total
    )


@pytest.mark.parametrize(("width", "value"), [(16, 16), (64, 32)])
def test_flash_backward_has_five_products(width, value):
    """``aten._scaled_dot_product_flash_attention`` on the meta device, counted as PyTorch counts it."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    q, v = (B, 4, T, width), (B, 4, T, value)
    scores, mix = 2 * B * 4 * T * T * width, 2 * B * 4 * T * T * value
    assert sdpa_flop_count(q, q, v) == scores + mix
    assert sdpa_backward_flop_count(v, q, q, v) == 3 * scores + 2 * mix


def test_flash_backward_on_meta_equals_the_ledger():
    with torch.device("meta"):
        q, k, v = (torch.empty(B, 4, T, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0].sum().backward()
    ledger = training(described("llama"), B, T, mask="full", count="hardware", kernel="flash")
    per_layer = sum(term.value for path, term in ledger.terms() if path[-1] in (SCORES, MIX)) // 3
    assert counter.get_total_flops() == per_layer


def test_recomputation_stops_before_the_last_product():
    model = built("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ahead, back = counted(model)
    ledger = training(described("llama"), B, T, mask="full", count="hardware", recompute="full_early_stop")
    assert ahead + back == ledger.total


def test_reentrant_recomputation_runs_the_whole_layer():
    model = built("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    ahead, back = counted(model)
    ledger = training(described("llama"), B, T, mask="full", count="hardware", recompute="full")
    assert ahead + back == ledger.total


def test_core_recomputation_repeats_attention_only():
    q, k, v = (torch.randn(B, 4, T, 16, requires_grad=True) for _ in range(3))

    def core(q, k, v):
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ v

    with FlopCounterMode(display=False) as plain:
        core(q, k, v).sum().backward()
    with FlopCounterMode(display=False) as again:
        checkpoint(core, q, k, v, use_reentrant=True).sum().backward()
    model = described("llama")
    once = training(model, B, T, mask="full", count="hardware")
    twice = training(model, B, T, mask="full", count="hardware", recompute="core")
    assert twice.total - once.total == 3 * (again.get_total_flops() - plain.get_total_flops())


@given(st.integers(1, 40), st.integers(0, 40), st.none() | st.integers(1, 50))
def test_causal_pairs_are_those_of_the_mask(length, past, window):
    expected = sum(
        1
        for query in range(past, past + length)
        for key in range(query + 1)
        if window is None or query - key < window
    )
    assert attended_pairs(length, "causal", window, past) == expected
    assert attended_pairs(length, "full", window, past) == length * (past + length)


@given(st.integers(1, 10_000))
def test_half_is_half_of_full(length):
    assert 2 * attended_pairs(length, "half") == attended_pairs(length, "full")
    assert attended_pairs(length, "causal") - attended_pairs(length, "half") == length / 2


@pytest.mark.parametrize("name", ["llama-3-8b", "gemma-2-9b", "deepseek-v3", "gpt-oss-20b"])
def test_pieces_of_a_prompt_cost_what_the_prompt_costs(name):
    """All but the logits' place: prefill in pieces, token by token at the end, is one prefill."""
    model = load(name)
    pieces = [(0, 5000), (5000, 1200), (6200, 1), (6201, 1)]
    parts = sum(forward(model, 2, n, mask="causal", past=past).total for past, n in pieces)
    assert parts == forward(model, 2, 6202, mask="causal").total


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", PRESETS)
def test_departures_lead_from_six_n_d_to_the_exact_count(name, mask):
    model = load(name)
    assert departures(model, 3, 777, mask=mask).total == training(model, 3, 777, mask=mask).total


@pytest.mark.parametrize(
    ("name", "length", "full", "half"),
    [
        ("llama-2-7b", 4096, 1.140, 1.060),
        ("llama-3-8b", 8192, 1.202, 1.068),
        ("llama-3-70b", 8192, 1.137, 1.061),
    ],
)
def test_ratio_to_six_n_d(name, length, full, half):
    for mask, expected in (("full", full), ("half", half)):
        ledger = departures(load(name), 1, length, mask=mask)
        assert float(ledger.total / ledger["6 N D"].value) == pytest.approx(expected, abs=0.0006)


@pytest.mark.parametrize("name", PRESETS)
def test_model_flops_are_three_forwards_and_the_numbers_evaluate(name):
    ledger = training(load(name), 2, 512, mask="causal")
    assert ledger.total == 3 * forward(load(name), 2, 512, mask="causal").total
    for _, term in ledger.terms():
        assert evaluate(term.numbers) == term.value


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"mask": "triangle"}, "mask"),
        ({"batch": 0}, "batch"),
        ({"length": -1}, "length"),
        ({"length": 2.0}, "length"),
        ({"count": "both"}, "count"),
        ({"kernel": "fast"}, "kernel"),
        ({"recompute": "some"}, "recompute"),
    ],
)
def test_refused(arguments, field):
    good = {"batch": 1, "length": 8, "mask": "full", "count": "hardware"}
    with pytest.raises(ArgumentError) as caught:
        training(load("gpt2"), **(good | arguments))
    assert caught.value.field == field


def test_half_is_refused_with_a_cache():
    with pytest.raises(ArgumentError, match="causal"):
        forward(load("gpt2"), 1, 1, mask="half", past=8)


def test_six_n_d():
    assert six_n_d(70_000_000_000, 15 * 10**12).value == 6 * 70_000_000_000 * 15 * 10**12
