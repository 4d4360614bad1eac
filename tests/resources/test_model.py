"""Descriptions of models: what is refused, and what from_hf reads."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lmlib.resources import MLP, PRESETS, ArgumentError, Attention, LatentAttention, Layer, Model, MoE, load
from lmlib.resources.config import SUPPORTED
from lmlib.resources.model import describe
from lmlib.resources.parameters import parameters

LLAMA = dict(PRESETS["llama-3-8b"].config)


def small(**changes):
    layer = Layer(Attention(4, 2, 16), MLP(96))
    given = {"d_model": 64, "vocab_size": 100, "context_length": 32, "layers": (layer,), "tied": True}
    return Model("small", **(given | changes))


@pytest.mark.parametrize(
    ("make", "field", "words"),
    [
        (lambda: Attention(6, 4, 16), "n_kv_heads", "must divide n_heads = 6, got 4"),
        (lambda: Attention(0, 1, 16), "n_heads", "from 1 to"),
        (lambda: Attention(4, 4, -16), "head_dim", "-16"),
        (lambda: Attention(4, 4, 16.0), "head_dim", "integer"),
        (lambda: Attention(True, 1, 16), "n_heads", "integer"),
        (lambda: Attention(4, 4, 16, window=0), "window", "from 1 to"),
        (lambda: Attention(4, 4, 16, qk_norm="yes"), "qk_norm", "none, head, width"),
        (lambda: Attention(4, 4, 16, sinks=1), "sinks", "true or false"),
        (lambda: LatentAttention(4, None, 0, 8, 8, 8), "kv_lora_rank", "from 1 to"),
        (lambda: MLP(10**9), "d_ff", "from 1 to 1,048,576, got 1,000,000,000"),
        (lambda: MLP(8, activation="swish2"), "activation", "silu"),
        (lambda: MoE(8, 9, 16), "top_k", "from 1 to 8, got 9"),
        (lambda: MoE(8, 2, 16, shared_gate=True), "shared_gate", "shared_d_ff is 0"),
        (lambda: Layer(MLP(8), MLP(8)), "attention", "Attention"),
        (lambda: Layer(Attention(4, 4, 16), None), "mlp", "MoE"),
        (lambda: small(layers=()), "n_layers", "from 1 to"),
        (lambda: small(d_model=-1), "d_model", "-1"),
        (lambda: small(vocab_size=10**12), "vocab_size", "16,777,216"),
        (lambda: small(norm="batchnorm"), "norm", "rmsnorm, layernorm"),
        (lambda: small(tied=None), "tied", "true or false"),
    ],
)
def test_refused(make, field, words):
    with pytest.raises(ArgumentError, match=field) as caught:
        make()
    assert caught.value.field == field
    assert words in str(caught.value)


def test_equal_layers_are_grouped():
    model = load("gemma-2-9b")
    assert [count for _, count in model.groups] == [21, 21]
    assert len(model.runs) == 42
    assert [(describe(layer), count) for layer, count in load("deepseek-v3").runs] == [
        ("mla, dense", 3),
        ("mla, moe", 58),
    ]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "unknown", None, 3, "bert"])
def test_architecture_and_missing_keys_are_named(kind):
    with pytest.raises(ArgumentError) as caught:
        Model.from_hf({"model_type": kind})
    if kind in SUPPORTED:
        assert "is missing" in caught.value.message
    else:
        assert caught.value.field == "model_type"
        assert all(name in caught.value.message for name in SUPPORTED)


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
     "max_position_embeddings"],
)  # fmt: skip
def test_every_size_is_required(key):
    with pytest.raises(ArgumentError) as caught:
        Model.from_hf({name: value for name, value in LLAMA.items() if name != key})
    assert caught.value.field == key
    assert "missing" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"hidden_size": -4096}, "hidden_size"),
        ({"num_key_value_heads": 5}, "n_kv_heads"),
        ({"head_dim": None, "num_attention_heads": 33}, "num_attention_heads"),
        ({"hidden_act": "tanh"}, "hidden_act"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
)
def test_bad_values_are_refused(changes, field):
    with pytest.raises(ArgumentError) as caught:
        Model.from_hf(LLAMA | changes)
    assert caught.value.field == field


def test_a_configuration_that_is_no_object():
    with pytest.raises(ArgumentError, match="list"):
        Model.from_hf([1])


def test_defaults_are_taken_in_the_open():
    config = {
        key: value
        for key, value in LLAMA.items()
        if key not in ("num_key_value_heads", "tie_word_embeddings")
    }
    model = Model.from_hf(config)
    assert model.layers[0].attention.kind == "mha"
    assert [line.split(" ")[0] for line in model.assumptions] == [
        "num_key_value_heads",
        "tie_word_embeddings",
    ]
    assert Model.from_hf(LLAMA).assumptions == ()


@pytest.mark.parametrize("kind", SUPPORTED)
def test_what_transformers_writes_can_be_read(kind):
    """A whole ``config.json``, with all its other keys, and its defaults."""
    changes = {"num_experts_per_tok": 2} if kind == "deepseek_v2" else {}
    config = AutoConfig.for_model(kind, **changes)
    model = Model.from_hf(config.to_dict())
    assert model.n_layers == config.num_hidden_layers
    assert model.d_model == config.hidden_size
    assert model.tied == config.tie_word_embeddings
    types = getattr(config, "layer_types", None)
    if types and "sliding_attention" in types:
        windows = [layer.attention.window for layer in model.layers]
        assert windows == [config.sliding_window if t == "sliding_attention" else None for t in types]


@pytest.mark.parametrize("name", PRESETS)
def test_a_key_that_is_left_out_is_refused_or_said_or_means_nothing(name):
    """Of every key of every preset: no other model comes out in silence."""
    config = PRESETS[name].config
    whole, silent, misnamed = Model.from_hf(config), [], []
    for key in config:
        try:
            model = Model.from_hf({other: value for other, value in config.items() if other != key})
        except ArgumentError as refused:
            misnamed += [] if key in str(refused) else [(key, str(refused))]
            continue
        said = [line for line in model.assumptions if line not in whole.assumptions]
        if replace(model, assumptions=()) != replace(whole, assumptions=()):
            silent += [] if any(key in line for line in said) else [key]
    assert (silent, misnamed) == ([], [])


SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64, "head_dim": 16, "n_embd": 64,
    "n_layer": 3, "n_head": 4, "n_positions": 64, "moe_intermediate_size": 32, "num_local_experts": 4,
    "num_experts": 4, "num_experts_per_tok": 2, "n_routed_experts": 4, "shared_expert_intermediate_size": 32,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "pad_token_id": 0, "sliding_window": 16,
}  # fmt: skip


def changed(config):
    """Each flag turned over and each size doubled, one at a time."""
    for key, value in config.items():
        if isinstance(value, bool):
            yield key, not value
        elif isinstance(value, int) and value > 0 and not key.endswith("token_id"):
            yield key, 2 * value


@pytest.mark.parametrize("kind", SUPPORTED)
def test_no_key_changes_a_model_unseen(kind):
    """Of all keys that transformers knows: it builds as many parameters as we count, or we refuse."""
    known = AutoConfig.for_model(kind).to_dict()
    sizes = {key: value for key, value in SMALL.items() if key in known}
    compared, wrong = 0, []
    for key, value in changed(AutoConfig.for_model(kind, **sizes).to_dict()):
        try:
            config = AutoConfig.for_model(kind, **sizes | {key: value})
            with torch.device("meta"):
                built = sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters())
        except Exception:  # not a model for transformers either: heads that do not divide, and such
            continue
        try:
            ours = parameters(Model.from_hf(config.to_dict())).total
        except ArgumentError:
            continue
        compared += 1
        wrong += [(key, value, built, ours)] if ours != built else []
    assert wrong == []
    assert compared >= 8
