"""Weights from and to Hugging Face folders: logits equal transformers' in both directions."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lmlib.architecture import (
    MLAConfig,
    ModelConfig,
    MoEConfig,
    TransformerLM,
    load_pretrained,
    save_pretrained,
)
from lmlib.architecture.huggingface_config import read_config, write_config
from lmlib.resources.units import ArgumentError

VOCAB, LENGTH = 67, 48
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 24}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
GPT2 = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 50}),
    "llama": ("Llama", SIZES),
    "llama with llama3 scaling": ("Llama", SIZES | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama with yarn": ("Llama", SIZES | {"rope_parameters": YARN}),
    "llama with yarn and its factor": (
        "Llama",
        SIZES | {"rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0}},
    ),
    "qwen3 with yarn": ("Qwen3", SIZES | {"head_dim": 16, "rope_parameters": YARN}),
    "llama with linear scaling": ("Llama", SIZES | {"rope_parameters": LINEAR}),
    "llama with biases and wide heads": (
        "Llama",
        SIZES | {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "hidden_act": "gelu"},
    ),
    "mistral with window": ("Mistral", SIZES | {"sliding_window": 7}),
    "mistral without window": ("Mistral", SIZES | {"sliding_window": None}),
    "qwen2": ("Qwen2", SIZES | {"tie_word_embeddings": True}),
    "qwen2 with windows": (
        "Qwen2",
        SIZES | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", SIZES | {"head_dim": 16}),
    "mixtral": ("Mixtral", SIZES | {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral with window": ("Mixtral", SIZES | {"num_local_experts": 4, "sliding_window": 6}),
}


def randomise(model: torch.nn.Module) -> None:
    """Norms and biases too, which would hide a mistake at 1 and 0."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        spread = 0.25 if parameter.ndim > 1 else 0.5
        parameter.data.normal_(float(parameter.ndim == 1), spread, generator=generator)


def theirs(case: str, folder: Path) -> transformers.PreTrainedModel:
    """A random model of transformers, saved to ``folder``."""
    name, values = CASES[case]
    config = getattr(transformers, f"{name}Config")(**values)
    kind = {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM")
    model = getattr(transformers, kind)(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal_transformers_both_ways(case: str, tmp_path: Path) -> None:
    model = theirs(case, tmp_path / "theirs")
    wanted = model(tokens()).logits
    ours = load_pretrained(tmp_path / "theirs")
    assert difference(ours(tokens()), wanted) < 1e-5
    save_pretrained(ours, tmp_path / "ours", family=model.config.model_type)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert type(back) is type(model)
    assert difference(back(tokens()).logits, wanted) < 1e-5
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("kernels", ["eager", "sdpa"])
@torch.no_grad()
def test_long_rope_positions_agree(kernels: str, tmp_path: Path) -> None:
    """At positions in the thousands, a frequency that is a little off would show."""
    name, values = CASES["llama with llama3 scaling"]
    CASES["long"] = (name, values | {"max_position_embeddings": 4096})
    model = theirs("long", tmp_path)
    del CASES["long"]
    ours = load_pretrained(tmp_path, kernels=kernels)
    places = torch.arange(4000, 4000 + LENGTH)
    wanted = model(tokens(), position_ids=places[None]).logits
    assert difference(ours(tokens(), positions=places), wanted) < 1e-4


@torch.no_grad()
def test_shards_are_written_and_read(tmp_path: Path) -> None:
    model = theirs("llama", tmp_path / "theirs")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    ours = load_pretrained(tmp_path / "sharded")
    save_pretrained(ours, tmp_path / "ours", max_shard_bytes=30_000)
    files = sorted(file.name for file in (tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2
    assert all((tmp_path / "ours" / file).stat().st_size < 33_000 for file in files)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    torch.testing.assert_close(back(tokens()).logits, model(tokens()).logits)
    save_pretrained(ours, tmp_path / "ours")  # one file now, and nothing of the old ones
    assert sorted(file.name for file in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]
    torch.testing.assert_close(load_pretrained(tmp_path / "ours")(tokens()), ours(tokens()), rtol=0, atol=0)


@torch.no_grad()
def test_first_gpt2_checkpoints_without_prefix_and_with_masks(tmp_path: Path) -> None:
    model = theirs("gpt2", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(tensors, file)
    assert difference(load_pretrained(tmp_path)(tokens()), model(tokens()).logits) < 1e-5


@torch.no_grad()
def test_configuration_in_the_words_of_transformers_4(tmp_path: Path) -> None:
    model = theirs("llama with llama3 scaling", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert difference(load_pretrained(tmp_path)(tokens()), model(tokens()).logits) < 1e-5


def test_type_and_context_on_request(tmp_path: Path) -> None:
    theirs("llama", tmp_path)
    model = load_pretrained(tmp_path, dtype=torch.bfloat16, context_length=16, kernels="eager")
    assert model.embedding.weight.dtype == torch.bfloat16
    assert model.rotary is not None
    assert model.rotary.rates.dtype == torch.float32
    assert model.config.context_length == 16
    assert model.config.kernels == "eager"
    with pytest.raises(ValueError, match="context_length: must be at most the checkpoint's 64"):
        load_pretrained(tmp_path, context_length=65)


def edited(folder: Path, copy: Path, change: Any) -> Path:
    """A copy of a folder with other tensors."""
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    return copy


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    theirs("llama", tmp_path / "good")
    name = "model.layers.1.self_attn.k_proj.weight"
    lacks = edited(tmp_path / "good", tmp_path / "a", lambda t: t.pop(name))
    with pytest.raises(ValueError, match=f"lacks {name}"):
        load_pretrained(lacks)
    extra = edited(tmp_path / "good", tmp_path / "b", lambda t: t.update(surplus=torch.ones(2)))
    with pytest.raises(ValueError, match="no place for: surplus"):
        load_pretrained(extra)
    shape = edited(tmp_path / "good", tmp_path / "c", lambda t: t.update({name: torch.ones(16, 31)}))
    with pytest.raises(ValueError, match=rf"{name} of shape \(16, 31\) instead of \(16, 32\)"):
        load_pretrained(shape)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    theirs("llama", tmp_path / "good")
    weights = tmp_path / "good" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors' is damaged"):
        load_pretrained(tmp_path / "good")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        load_pretrained(tmp_path / "good")
    (tmp_path / "good" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_pretrained(tmp_path / "good")
    with pytest.raises(FileNotFoundError, match="must be a folder or a name on the hub"):
        load_pretrained(tmp_path / "nowhere")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    model = TransformerLM(ModelConfig(VOCAB, 16, 32, 2, 4))
    save_pretrained(model, tmp_path, max_shard_bytes=30_000)
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of"):
        load_pretrained(tmp_path)


def test_a_quantized_tensor_is_named(tmp_path: Path) -> None:
    """Integers without their scales would load as nonsense."""
    theirs("llama", tmp_path / "good")
    name = "model.layers.1.self_attn.k_proj.weight"
    whole = edited(tmp_path / "good", tmp_path / "a", lambda t: t.update({name: t[name].to(torch.int8)}))
    with pytest.raises(ValueError, match=f"{name} of type I8 instead of one of F64, F32, F16, BF16"):
        load_pretrained(whole)
    half = edited(tmp_path / "good", tmp_path / "b", lambda t: t.update({name: t[name].half()}))
    assert load_pretrained(half).blocks[1].attention.qkv_proj.weight.dtype == torch.float32


def test_an_index_that_errs_is_refused(tmp_path: Path) -> None:
    save_pretrained(TransformerLM(ModelConfig(VOCAB, 16, 32, 2, 4)), tmp_path, max_shard_bytes=30_000)
    index = tmp_path / "model.safetensors.index.json"
    right = json.loads(index.read_text())
    name = "model.layers.1.mlp.up_proj.weight"
    other = next(file for file in right["weight_map"].values() if file != right["weight_map"][name])
    for place, message in ((other, f"{other}' lacks {name}, which the index names"), (None, "no weight_map")):
        index.write_text(json.dumps({"weight_map": right["weight_map"] | {name: place}}))
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path)


def test_hub_name_offline_fails_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="give a folder"):
        load_pretrained("nobody/nothing-at-all")
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "bert"}, "model_type"),
        ({"hidden_size": None}, "hidden_size"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_theta": "many"}, "rope_theta"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
    ],
)
def test_unknown_settings_are_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_config({"model_type": "llama", **SIZES, **change})
    assert caught.value.field == field


def test_other_gpt2_attention_is_refused() -> None:
    with pytest.raises(ArgumentError, match="scale_attn_by_inverse_layer_idx"):
        read_config({"model_type": "gpt2", **GPT2, "scale_attn_by_inverse_layer_idx": True})


BASE: dict[str, Any] = {"vocab_size": VOCAB, "context_length": 32, "d_model": 32, "n_layers": 3, "n_heads": 4}


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("llama", {}),
        ("llama", {"window_pattern": "GL", "moe": None}),
        ("llama", {"attention_scale": 8**-0.5, "kernels": "eager", "head_init_scale": 0.0}),
        ("mistral", {"window": 5}),
        ("qwen2", {"qkv_bias": True, "window": 5, "window_pattern": "GLL"}),
        ("qwen3", {"qk_norm": True}),
        ("mixtral", {"moe": MoEConfig(4, 2, 24, balance_weight=0.5)}),
        ("gpt2", {"norm": "layernorm", "mlp": "gelu", "bias": True, "position": "learned", "tied": True}),
    ],
)
def test_the_family_that_fits_is_found(family: str, values: dict[str, Any]) -> None:
    assert write_config(ModelConfig(**BASE, **values))["model_type"] == family


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"norm_position": "both"}, "norm_position"),
        ({"attention": "mla", "mla": MLAConfig(8, 6, 4, 8)}, "attention"),
        ({"logit_softcap": 30.0}, "logit_softcap"),
        ({"position": "none"}, "position"),
        ({"mlp": "relu"}, "position"),
        ({"moe": MoEConfig(4, 2, 24, n_shared=1)}, "moe"),
        ({"moe": MoEConfig(4, 2, 24, balance="bias")}, "moe"),
        ({"attention_scale": 0.5}, "attention_scale"),
    ],
)
def test_what_no_family_holds_is_refused_by_name(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ArgumentError, match=f"no family holds this model.*{field}="):
        write_config(ModelConfig(**BASE, **values))


def test_nothing_is_lost_when_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TransformerLM(ModelConfig(**BASE))
    save_pretrained(model, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("lmlib.architecture.huggingface.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_pretrained(TransformerLM(ModelConfig(**BASE, tied=True)), tmp_path, max_shard_bytes=9_000)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
