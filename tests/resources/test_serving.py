"""Serving bounds against sums over PyTorch's own tensors, brute force and probability."""

import random

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlib.resources import PRESETS, ArgumentError, MoE, load
from lmlib.resources.hardware import device
from lmlib.resources.kv_cache import cache
from lmlib.resources.parameters import parameters
from lmlib.resources.serving import (
    decode,
    experts_met,
    largest_batch,
    least_devices,
    prefill,
    room,
    weights_read,
)

H100 = device("h100")


@pytest.mark.parametrize("name", ["llama-3-8b", "qwen2.5-7b", "gemma-2-2b"])
def test_weights_read_are_all_matrices_of_the_model_but_the_input_embedding(name):
    config = transformers.AutoConfig.for_model(**PRESETS[name].config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16)
    matrices = {
        key: weight
        for key, weight in model.named_parameters(remove_duplicate=False)
        if weight.dim() == 2 and "embed_tokens" not in key
    }
    if config.tie_word_embeddings and not any("lm_head" in key for key in matrices):
        matrices["head"] = model.get_input_embeddings().weight
    assert weights_read(load(name), 1).total == sum(weight.nbytes for weight in matrices.values())


@given(st.integers(1, 40))
@settings(max_examples=10, deadline=None)
def test_experts_met_are_those_of_random_routing(tokens):
    moe = MoE(n_experts=16, top_k=3, d_ff=8)
    chance = random.Random(tokens)
    met = 0
    for _ in range(3000):
        visited: set[int] = set()
        for _ in range(tokens):
            visited.update(chance.sample(range(16), 3))
        met += len(visited)
    assert experts_met(moe, tokens) == pytest.approx(met / 3000 / 16, abs=0.01)


@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-20b"])
def test_a_step_is_never_faster_than_its_parts(name):
    model = load(name)
    bound = decode(model, H100, 16, 4096, 16)
    assert bound.seconds.value >= bound.weights.value + bound.cache.value
    assert bound.seconds.value >= bound.products.value + bound.attention.value
    assert float(bound.cache.value) == pytest.approx(
        float(cache(model, 4096, 16, "bf16").total) / (16 * 3.35e12)
    )
    assert bound.bound in ("weights", "cache", "products", "attention")


@given(st.sampled_from(["llama-3-8b", "gemma-2-9b", "deepseek-v2-lite"]), st.integers(1, 8192))
@settings(max_examples=20, deadline=None)
def test_the_largest_batch_is_the_last_whose_cache_fits(name, context):
    model = load(name)
    batch = int(largest_batch(model, H100, context).value)
    left = room(model, H100).total
    assert batch * cache(model, context, 1, "bf16").total <= left
    assert (batch + 1) * cache(model, context, 1, "bf16").total > left


def test_room_is_what_weights_leave_and_may_be_less_than_nothing():
    model = load("llama-3-70b")
    assert room(model, H100).total == 72 * 10**9 - 2 * int(parameters(model).total)
    assert largest_batch(model, H100, 1).value == 0
    assert least_devices(model, H100, 8192) == 2
    with pytest.raises(ArgumentError):
        least_devices(load("deepseek-v3"), device("t4"), 10**6, most=4)


def test_more_devices_narrower_weights_and_larger_batches():
    model = load("llama-3-8b")
    one, two = decode(model, H100, 8, 8192), decode(model, H100, 8, 8192, 2)
    assert float(two.seconds.value) == pytest.approx(float(one.seconds.value) / 2)
    narrow = decode(model, H100, 1, 128, weight_dtype="fp8")
    assert float(narrow.weights.value) == pytest.approx(float(decode(model, H100, 1, 128).weights.value) / 2)
    rates = [float(decode(model, H100, batch, 8192).tokens_per_second.value) for batch in (1, 2, 8, 64)]
    assert rates == sorted(rates)


def test_prefill_is_bound_by_arithmetic_and_decoding_by_memory():
    model = load("llama-3-8b")
    assert prefill(model, H100, 8192).bound == "products"
    assert decode(model, H100, 1, 8192).bound == "weights"
    for bad in ({"batch": 0}, {"context": 0}, {"n_devices": 0}):
        with pytest.raises(ArgumentError):
            decode(model, H100, **{"batch": 1, "context": 1} | bad)
