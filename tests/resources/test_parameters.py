"""Parameters against published counts and against transformers' own models on the meta device."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from lmlib.resources import MLP, PRESETS, Attention, Layer, Model, MoE, load
from lmlib.resources.ledger import evaluate
from lmlib.resources.parameters import (
    MATMUL,
    active,
    buffers,
    layer_weights,
    matmul_size,
    non_embedding,
    parameters,
)

# Numbers of trained parameters: model cards, reports and safetensors headers of the released weights.
COUNTS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}

# Active parameters with input embedding and head.
ACTIVE = {
    "mixtral-8x7b": 12_879_925_248,
    "mixtral-8x22b": 39_161_468_928,
    "qwen3-30b-a3b": 3_353_032_704,
    "qwen3-235b-a22b": 22_190_763_520,
    "deepseek-v2": 21_375_800_320,
    "deepseek-v2-lite": 2_661_150_208,
    "deepseek-v3": 37_552_297_472 - 14_848,
    "gpt-oss-20b": 4_187_440_704,
    "gpt-oss-120b": 5_711_982_912,
}

# Architectures that no preset has, small.
OTHERS = {
    "qwen2_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    },
    "gemma3_text": {"head_dim": 16, "sliding_window": 8},
    "phi": {},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 24, "attention_bias": True},
    "deepseek_v2": {
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 12,
        "v_head_dim": 10,
        "moe_intermediate_size": 24,
        "n_routed_experts": 4,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "attention_bias": True,
    },
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 64,
}


def built(config: dict) -> torch.nn.Module:
    """transformers' own model of a configuration, without memory."""
    keys = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **keys))


def test_the_table_covers_every_preset():
    assert set(COUNTS) == set(PRESETS)
    assert len(PRESETS) == 49


@pytest.mark.parametrize("name", PRESETS)
def test_published_count(name):
    assert parameters(load(name)).total == COUNTS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_equal_to_transformers(name):
    reference = built(dict(PRESETS[name].config))
    assert parameters(load(name)).total == sum(p.numel() for p in reference.parameters())
    stored = {
        key
        for key in reference.state_dict()
        if key not in dict(reference.named_parameters(remove_duplicate=False))
    }
    assert buffers(load(name)).total == sum(reference.state_dict()[key].numel() for key in stored)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_equal_transformers(kind):
    config = {"model_type": kind, **SMALL, **OTHERS[kind]}
    reference = built(config)
    assert parameters(Model.from_hf(config)).total == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters(name):
    assert active(load(name), count_embedding=True, count_head=True).total == ACTIVE[name]


@pytest.mark.parametrize("name", PRESETS)
def test_conventions_of_active(name):
    model = load(name)
    both = active(model, count_embedding=True, count_head=True).total
    neither = active(model, count_embedding=False, count_head=False).total
    matrix = model.vocab_size * model.d_model
    positions = model.learned_positions * model.d_model
    assert both - neither == matrix * (1 if model.tied else 2) + positions
    if not model.is_moe:
        assert both == parameters(model).total
        assert neither == non_embedding(model).total


@pytest.mark.parametrize("name", PRESETS)
def test_numbers_of_every_term_evaluate_to_its_value(name):
    for _, term in parameters(load(name)).terms():
        assert evaluate(term.numbers) == term.value


@pytest.mark.parametrize("name", ["llama-3-8b", "deepseek-v3", "gpt2"])
def test_matmul_size_is_what_the_weights_say(name):
    model = load(name)
    matrices = sum(
        weight.active_size
        for layer in model.layers
        for weight in layer_weights(model, layer)
        if weight.role == MATMUL
    )
    assert matmul_size(model) == matrices + model.d_model * model.vocab_size


sizes = st.integers(1, 64)


@st.composite
def models(draw):
    """Small models of every kind of attention and feed-forward block, layers mixed."""
    kv = draw(st.integers(1, 4))
    head_dim, heads = draw(sizes), kv * draw(st.integers(1, 4))
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        window = draw(st.none() | sizes)
        attention = Attention(heads, kv, head_dim, draw(st.booleans()), draw(st.booleans()), window=window)
        experts = draw(st.integers(1, 8))
        mlp = draw(
            st.builds(MLP, sizes, st.booleans(), st.booleans())
            | st.builds(MoE, st.just(experts), st.integers(1, experts), sizes, shared_d_ff=st.integers(0, 9))
        )
        layers.append(Layer(attention, mlp, draw(st.integers(0, 4))))
    return Model("drawn", draw(sizes), draw(sizes), 64, tuple(layers), draw(st.booleans()))


@given(models())
def test_grouped_layers_sum_to_the_single_ones(model):
    whole = parameters(model).total
    inside = sum(
        weight.size
        for layer in model.layers
        for weight in layer_weights(model, layer)
        if weight.role != "buffer"
    )
    assert whole == inside + model.d_model * (1 + model.vocab_size * (1 if model.tied else 2))


@given(models())
def test_tying_saves_one_matrix(model):
    tied, untied = replace(model, tied=True), replace(model, tied=False)
    assert parameters(untied).total - parameters(tied).total == model.vocab_size * model.d_model


@given(models(), sizes)
def test_one_expert_is_a_dense_layer_and_a_router(model, d_ff):
    attention = model.layers[0].attention
    dense = replace(model, layers=(Layer(attention, MLP(d_ff)),))
    sparse = replace(model, layers=(Layer(attention, MoE(1, 1, d_ff)),))
    assert parameters(sparse).total == parameters(dense).total + model.d_model
    assert parameters(sparse).total == active(sparse, count_embedding=True, count_head=True).total


@given(models(), st.integers(1, 6))
def test_grouped_heads_only_change_keys_and_values(model, groups):
    heads = 4 * groups
    many = replace(model, layers=(Layer(Attention(heads, heads, 8), MLP(8)),))
    few = replace(model, layers=(Layer(Attention(heads, groups, 8), MLP(8)),))
    assert parameters(many).total - parameters(few).total == 2 * (heads - groups) * 8 * model.d_model


@given(models(), st.integers(1, 256))
def test_padding_the_vocabulary(model, multiple):
    padded = replace(model, pad_vocab_to=multiple)
    assert padded.padded_vocab_size % multiple == 0
    assert 0 <= padded.padded_vocab_size - model.vocab_size < multiple
    rows = 1 if model.tied else 2
    added = parameters(padded).total - parameters(model).total
    assert added == rows * model.d_model * (padded.padded_vocab_size - model.vocab_size)
