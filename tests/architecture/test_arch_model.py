"""The whole model: gradients, causality, windows, cache, positions, other implementations, compilation."""

from __future__ import annotations

import copy
import io
import random
from contextlib import suppress
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.func import functional_call

from lmlib.architecture import KVCache, MLAConfig, ModelConfig, MoEConfig, RopeScaling, TransformerLM
from lmlib.architecture.norms import LayerNorm, RMSNorm

BASE: dict[str, Any] = {"vocab_size": 50, "context_length": 64, "d_model": 32, "n_layers": 3, "n_heads": 4}
MLA = MLAConfig(kv_lora_rank=8, nope_head_dim=6, rope_head_dim=4, v_head_dim=5)
DEEPSEEK = {
    "attention": "mla",
    "mla": MLAConfig(8, 6, 4, 5, q_lora_rank=7),
    "moe": MoEConfig(6, 3, 16, n_shared=2, first_dense=1, score="sigmoid", balance="bias"),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gqa, head norms": {"n_kv_heads": 2, "qk_norm": True},
    "mqa": {"n_kv_heads": 1},
    "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu_tanh", "bias": True, "tied": True},
    "window": {"window": 5},
    "window of one": {"window": 1},
    "window mix": {"n_kv_heads": 2, "window": 6, "window_pattern": "LG"},
    "gemma2": {
        "norm_position": "both",
        "mlp": "geglu_tanh",
        "attention_softcap": 5.0,
        "logit_softcap": 3.0,
        "window": 7,
        "window_pattern": "LG",
    },
    "post-norm": {"norm_position": "post", "position": "sinusoidal", "mlp": "relu"},
    "output norm": {"norm_position": "output", "mlp": "relu2", "position": "none"},
    "no norm": {"norm_position": "none"},
    "yarn": {"rope_scaling": RopeScaling("yarn", 4.0, 16)},
    "mla": {"attention": "mla", "mla": MLA},
    "moe": {"moe": MoEConfig(4, 2, 16, n_shared=1, z_weight=0.01)},
    "deepseek": DEEPSEEK,
}


def build(name: str, **other: Any) -> TransformerLM:
    """A model with random norms and biases too, so that none hides a mistake."""
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(**BASE | CONFIGS[name] | other))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def some_tokens(length: int = 40, batch: int = 2) -> Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kernels", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_pass_gradcheck(name: str, kernels: str) -> None:
    """Derivatives of logits and auxiliary loss by all parameters, in float64, along random directions."""
    tiny: dict[str, Any] = {"vocab_size": 5, "d_model": 8, "n_heads": 2, "n_layers": 2, "d_ff": 6}
    if name in ("gqa, head norms", "window mix"):
        tiny["n_kv_heads"] = 1
    if "moe" in CONFIGS[name]:
        tiny["moe"] = MoEConfig(3, 2, 3, n_shared=1, first_dense=1, z_weight=0.1)
    if "mla" in CONFIGS[name]:
        tiny["mla"] = MLAConfig(3, 2, 2, 3, q_lora_rank=3)
    model = build(name, **tiny, kernels=kernels, window=CONFIGS[name].get("window") and 2).double()
    names, values = zip(*model.named_parameters(), strict=True)
    tokens = torch.tensor([[0, 3, 1, 4]])

    def outputs(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        logits = functional_call(model, dict(zip(names, parameters, strict=True)), (tokens,))
        return logits, model.auxiliary_loss()

    # One by one, which takes seconds a model, only where there is least to compute.
    assert torch.autograd.gradcheck(outputs, values, fast_mode=(name, kernels) != ("mqa", "sdpa"))


@pytest.mark.parametrize("kernels", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(name: str, kernels: str) -> None:
    model = build(name, kernels=kernels)
    tokens = some_tokens(20)
    before = model(tokens)
    for place in (0, 7, 19):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % 50
        after = model(other)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=1e-5, atol=1e-6)
        changed = (after[:, place:] - before[:, place:]).abs().amax(-1)
        assert changed[:, 0].min() > 1e-4


@pytest.mark.parametrize("kernels", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [1, 2, 5])
@torch.no_grad()
def test_a_window_is_as_wide_as_it_says(kernels: str, window: int) -> None:
    """One layer: token 0 reaches the logits of tokens 0 to window - 1, and no others."""
    model = build("window", n_layers=1, window=window, kernels=kernels)
    tokens = some_tokens(12, 1)
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 50
    reached = (model(tokens) - model(other)).abs().amax(-1)[0] > 1e-5
    assert reached.tolist() == [place < window for place in range(12)]


@torch.no_grad()
def test_global_layers_see_beyond_the_window() -> None:
    tokens = some_tokens(30, 1)
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 50
    for pattern, reaches in (("L", False), ("LG", True), ("GLL", True)):
        model = build("window", window=3, window_pattern=pattern)
        assert bool((model(tokens) - model(other))[0, -1].abs().max() > 1e-6) == reaches


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_kernels_agree(name: str) -> None:
    tokens = some_tokens()
    eager, sdpa = build(name, kernels="eager"), build(name, kernels="sdpa")
    torch.testing.assert_close(eager(tokens), sdpa(tokens), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kernels", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_decoding_with_a_cache_equals_the_full_forward(name: str, kernels: str) -> None:
    model = build(name, kernels=kernels)
    tokens = some_tokens()
    whole = model(tokens)
    for steps in ([1] * 40, [7, 13, *[1] * 20], [20, 3, 2, 9, 1, 5], [40], [1, 39]):
        cache = model.new_cache()
        parts = [model(part, cache) for part in tokens.split(steps, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=2e-5)
        assert cache.length == 40


@pytest.mark.parametrize("name", ["llama", "mla", "window mix"])
@torch.no_grad()
def test_a_cache_goes_back(name: str) -> None:
    model = build(name)
    tokens = some_tokens(9)
    cache = model.new_cache()
    model(tokens, cache)
    cache.truncate(5)
    again = model(tokens[:, 5:], cache)
    torch.testing.assert_close(again, model(tokens)[:, 5:], rtol=1e-4, atol=2e-5)
    with pytest.raises(ValueError, match="length: must be from 0 to 9, got 10"):
        cache.truncate(10)


@torch.no_grad()
def test_a_window_that_has_dropped_tokens_says_so() -> None:
    model = build("window")
    cache = model.new_cache()
    for token in some_tokens(30).split(1, 1):
        model(token, cache)
    with pytest.raises(ValueError, match="window 5 has dropped its first"):
        cache.truncate(2)


@pytest.mark.parametrize("pattern", ["GL", "LG"])
@torch.no_grad()
def test_a_refused_truncation_forgets_nothing(pattern: str) -> None:
    """The layer that sees all could go back, the one with a window cannot: then neither does."""
    model = build("window", window=3, window_pattern=pattern)
    tokens = some_tokens(30)
    cache = model.new_cache()
    for token in tokens[:, :29].split(1, 1):
        model(token, cache)
    with pytest.raises(ValueError, match="so that 2 cannot be restored"):
        cache.truncate(2)
    torch.testing.assert_close(model(tokens[:, 29:], cache), model(tokens)[:, 29:], rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_a_cache_survives_any_mixture_of_steps_and_truncations() -> None:
    draws = random.Random(1)
    for _ in range(60):
        model = build(
            "window", window=draws.choice([1, 2, 3, 5, 8]), window_pattern=draws.choice(["L", "GL"])
        )
        cache, text = model.double().new_cache(draws.choice([40, 64])), torch.empty(1, 0, dtype=torch.long)
        for _ in range(10):
            if cache.length and draws.random() < 0.3:
                length = draws.randint(0, cache.length)
                with suppress(ValueError):
                    cache.truncate(length)
                    text = text[:, :length]
            new = torch.randint(50, (1, draws.randint(1, 9)))
            if cache.length + new.shape[1] > cache.max_length:
                break
            text = torch.cat((text, new), 1)
            expected = model(text)[:, -new.shape[1] :]
            torch.testing.assert_close(model(new, cache), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_rope_sees_distances_only() -> None:
    """All positions shifted alike: the same logits, but for rounding; stretched: others."""
    model = build("llama").double()
    tokens, places = some_tokens(20), torch.arange(20)
    torch.testing.assert_close(model(tokens, positions=places + 40), model(tokens), rtol=1e-4, atol=1e-5)
    assert (model(tokens, positions=2 * places) - model(tokens)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["llama", "gpt2", "post-norm"])
@torch.no_grad()
def test_positions_may_differ_between_rows(name: str) -> None:
    model = build(name)
    tokens = some_tokens(10)
    places = torch.stack((torch.arange(10), torch.arange(20, 30)))
    both = model(tokens, positions=places)
    for row in range(2):
        alone = model(tokens[row : row + 1], positions=places[row])
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_positions_order_of_earlier_tokens_does_not_matter() -> None:
    """With one layer and no positions, the last token sees a set."""
    model = build("llama", position="none", n_layers=1)
    tokens = some_tokens(10)
    shuffled = torch.cat((tokens[:, :9].flip(1), tokens[:, 9:]), 1)
    torch.testing.assert_close(model(shuffled)[:, -1], model(tokens)[:, -1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_pieces_of_the_forward_fit_together() -> None:
    for name in ("llama", "gemma2", "gpt2"):
        model = build(name)
        tokens = some_tokens()
        torch.testing.assert_close(model.logits(model.hidden(tokens)), model(tokens), rtol=0, atol=0)
        assert (model.head_weight is model.embedding.weight) == model.config.tied
        assert model(tokens).abs().max() < (model.config.logit_softcap or 1e9)


def test_scales_of_embedding_and_logits() -> None:
    tokens = some_tokens()
    plain, scaled = build("llama"), build("llama", logit_scale=0.25)
    torch.testing.assert_close(scaled(tokens), plain(tokens) / 4)
    twice = build("llama", embedding_scale=2.0)
    plain.embedding.weight.data *= 2
    torch.testing.assert_close(twice(tokens), plain(tokens))


def halves(model: TransformerLM) -> dict[str, torch.dtype]:
    """The type of what each module returns."""
    types: dict[str, torch.dtype] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, __, out, name=name: types.update({name: out.dtype}) if torch.is_tensor(out) else None
        )
    return types


@pytest.mark.parametrize("kernels", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_model_keeps_a_bf16_stream(name: str, kernels: str) -> None:
    model = build(name, kernels=kernels)
    wanted = model(some_tokens())
    model = model.bfloat16()
    types = halves(model)
    logits = model(some_tokens())
    inner = {types[f"blocks.{i}"] for i in range(3)} | {types["norm"], logits.dtype}
    assert inner == {torch.bfloat16}
    if model.rotary is not None:
        assert model.rotary.rates.dtype == torch.float32
    if "moe" not in CONFIGS[name]:  # a rounded router may choose another expert
        assert (logits.float() - wanted).abs().mean() < 0.1 * wanted.abs().mean()
    logits.float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_autocast_computes_products_in_bf16(name: str) -> None:
    model = build(name)
    wanted = model(some_tokens())
    types = halves(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(some_tokens())
    assert types["blocks.0.attention"] == types["blocks.0.mlp"] == logits.dtype == torch.bfloat16
    assert types["blocks.2"] == torch.float32  # the stream, as the embedding is
    if "moe" not in CONFIGS[name]:
        assert (logits.float() - wanted).abs().mean() < 0.1 * wanted.abs().mean()
    (logits.float().sum() + model.auxiliary_loss()).backward()


@pytest.mark.parametrize("width", [1, 8, 33])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", ["eager", "sdpa"])
def test_norms_equal_pytorch(kernels: str, dtype: torch.dtype, width: int) -> None:
    x = (5 + 3 * torch.randn(3, 7, width)).to(dtype)
    rms, layer = RMSNorm(width, 1e-5, kernels).to(dtype), LayerNorm(width, 1e-5, kernels).to(dtype)
    for parameter in (*rms.parameters(), *layer.parameters()):
        torch.nn.init.normal_(parameter)
    wanted_rms = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * rms.weight.double()
    wanted_layer = torch.nn.functional.layer_norm(
        x.double(), (width,), layer.weight.double(), layer.bias.double(), 1e-5
    )
    bound = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    for norm, wanted in ((rms, wanted_rms), (layer, wanted_layer)):
        out = norm(x)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), wanted, rtol=bound, atol=bound)
        both, total = norm.after_sum(x, x)
        torch.testing.assert_close(total, x + x)
        torch.testing.assert_close(both, norm(x + x))


def test_gemma2_of_transformers_is_one_of_our_configurations() -> None:
    """Four norms, soft-caps, alternating windows, scaled embedding, tied head, GeGLU."""
    theirs = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=44,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            query_pre_attn_scalar=20,
            sliding_window=5,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            attn_implementation="eager",
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    config = ModelConfig(
        **BASE,
        n_kv_heads=2,
        head_dim=12,
        d_ff=44,
        norm_eps=1e-6,
        norm_position="both",
        mlp="geglu_tanh",
        tied=True,
        window=5,
        window_pattern="LG",
        attention_scale=20**-0.5,
        attention_softcap=2.0,
        logit_softcap=3.0,
        embedding_scale=32**0.5,
    )
    ours, state = TransformerLM(config), theirs.state_dict()
    renamed = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "norm.weight": 1 + state["model.norm.weight"],
    }
    for i in range(3):
        a, b = f"blocks.{i}.", f"model.layers.{i}."
        attention, mlp = f"{b}self_attn.", f"{b}mlp."
        renamed |= {
            f"{a}attention.qkv_proj.weight": torch.cat([state[f"{attention}{x}_proj.weight"] for x in "qkv"]),
            f"{a}attention.o_proj.weight": state[f"{attention}o_proj.weight"],
            f"{a}mlp.gate_up_proj.weight": torch.cat(
                [state[f"{mlp}{x}_proj.weight"] for x in ("gate", "up")]
            ),
            f"{a}mlp.down_proj.weight": state[f"{mlp}down_proj.weight"],
            f"{a}attention_norm.weight": 1 + state[f"{b}input_layernorm.weight"],
            f"{a}attention_out_norm.weight": 1 + state[f"{b}post_attention_layernorm.weight"],
            f"{a}mlp_norm.weight": 1 + state[f"{b}pre_feedforward_layernorm.weight"],
            f"{a}mlp_out_norm.weight": 1 + state[f"{b}post_feedforward_layernorm.weight"],
        }
    ours.load_state_dict(renamed)
    with torch.no_grad():
        torch.testing.assert_close(ours(some_tokens()), theirs(some_tokens()).logits, rtol=1e-4, atol=1e-5)


def test_deepseek_v3_of_transformers_is_one_of_our_configurations() -> None:
    """Latent attention, sigmoid router with a correcting bias, shared experts, a dense first layer."""
    theirs = transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=44,
            moe_intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            n_shared_experts=2,
            n_routed_experts=6,
            num_experts_per_tok=3,
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
            routed_scaling_factor=1.0,
            kv_lora_rank=8,
            q_lora_rank=7,
            qk_nope_head_dim=6,
            qk_rope_head_dim=4,
            v_head_dim=5,
            rope_interleave=False,
            max_position_embeddings=64,
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1), 0.3)
    config = ModelConfig(**BASE, **DEEPSEEK, d_ff=44, norm_eps=1e-6)
    ours, state = TransformerLM(config), theirs.state_dict()
    renamed = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
        "head.weight": state["lm_head.weight"],
    }
    pieces = {
        "attention_norm.weight": ("input_layernorm.weight",),
        "mlp_norm.weight": ("post_attention_layernorm.weight",),
        "attention.q_proj.0.weight": ("self_attn.q_a_proj.weight",),
        "attention.q_proj.1.weight": ("self_attn.q_a_layernorm.weight",),
        "attention.q_proj.2.weight": ("self_attn.q_b_proj.weight",),
        "attention.kv_a_proj.weight": ("self_attn.kv_a_proj_with_mqa.weight",),
        "attention.kv_a_norm.weight": ("self_attn.kv_a_layernorm.weight",),
        "attention.kv_b_proj.weight": ("self_attn.kv_b_proj.weight",),
        "attention.o_proj.weight": ("self_attn.o_proj.weight",),
    }
    dense = {
        "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "mlp.down_proj.weight": ("mlp.down_proj.weight",),
    }
    shared = ("mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight")
    sparse = {
        "mlp.router.weight": ("mlp.gate.weight",),
        "mlp.router.correction_bias": ("mlp.gate.e_score_correction_bias",),
        "mlp.experts.gate_up_proj": ("mlp.experts.gate_up_proj",),
        "mlp.experts.down_proj": ("mlp.experts.down_proj",),
        "mlp.shared.gate_up_proj.weight": shared,
        "mlp.shared.down_proj.weight": ("mlp.shared_experts.down_proj.weight",),
    }
    for i in range(3):
        for a, b in (pieces | (sparse if i else dense)).items():
            renamed[f"blocks.{i}.{a}"] = torch.cat([state[f"model.layers.{i}.{name}"] for name in b])
    ours.load_state_dict(renamed)
    bias = torch.randn(6)
    for i in (1, 2):
        theirs.model.layers[i].mlp.gate.e_score_correction_bias.copy_(bias)
        ours.blocks[i].mlp.router.correction_bias.copy_(bias)
    with torch.no_grad():
        torch.testing.assert_close(ours(some_tokens()), theirs(some_tokens()).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gqa, head norms", torch.float32),
        ("deepseek", torch.float32),
        ("moe", torch.bfloat16),
    ],
)
def test_compiles_into_one_graph(name: str, dtype: torch.dtype) -> None:
    """Forward and backward without a graph break. The compiler's own code generation is not ours to test."""
    torch._dynamo.reset()
    model = build(name, n_layers=2).to(dtype)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    tokens = some_tokens()
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        logits = run(tokens)
        (logits.float().square().mean() + model.auxiliary_loss().float()).backward()
        gradients.append((logits, *(p.grad.clone() for p in model.parameters() if p.grad is not None)))
    bound = 1e-4 if dtype == torch.float32 else 0.05
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= bound * a.abs().max() + 1e-6
    if name == "gqa, head norms":  # another length makes the compiler take it as a variable
        for length in (17, 33):
            tokens = some_tokens(length)
            torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-4, atol=1e-5)


def test_can_be_built_without_memory_and_filled_later() -> None:
    for name in CONFIGS:
        with torch.device("meta"):
            model = TransformerLM(ModelConfig(**BASE, **CONFIGS[name]))
            shape = model(torch.zeros(2, 9, dtype=torch.long)).shape  # shapes can be asked for
        assert shape == (2, 9, 50)
        assert {p.device.type for p in model.parameters()} == {"meta"}
        model = model.to_empty(device="cpu")
        wanted = build(name)
        model.load_state_dict(wanted.state_dict())
        torch.testing.assert_close(model(some_tokens()), wanted(some_tokens()), rtol=0, atol=0)


def test_a_model_from_the_meta_device_can_be_drawn_anew() -> None:
    """Memory that ``to_empty`` hands out holds anything; buffers that count start at 0 as in a new model."""
    for name in CONFIGS:
        with torch.device("meta"):
            model = TransformerLM(ModelConfig(**BASE, **CONFIGS[name]))
        model = model.to_empty(device="cpu")
        for tensor in model.state_dict().values():
            tensor.fill_(7.0)
        torch.manual_seed(0)
        model.reset_parameters()
        fresh = TransformerLM(ModelConfig(**BASE, **CONFIGS[name]))
        torch.manual_seed(0)
        fresh.reset_parameters()
        for key, tensor in fresh.state_dict().items():
            torch.testing.assert_close(model.state_dict()[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["llama", "moe", "deepseek"])
def test_a_model_that_has_computed_can_be_copied_and_saved(name: str) -> None:
    model = build(name)
    wanted = model(some_tokens())
    torch.testing.assert_close(copy.deepcopy(model)(some_tokens()), wanted, rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(some_tokens()), wanted, rtol=0, atol=0)
    assert model.auxiliary_loss().requires_grad == (name == "moe")  # the original keeps its last loss


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[0, 50]]), "tokens: ids must be from 0 to 49, got 50"),
        (torch.tensor([[0, -1]]), "tokens: ids must be from 0 to 49, got -1"),
        (torch.zeros(1, 65, dtype=torch.long), "tokens: 65 tokens exceed the model's context_length = 64"),
        (torch.zeros(3, dtype=torch.long), r"int64 or int32 of shape \(batch, length\), got int64"),
        (torch.zeros(1, 3), "tokens: must be int64 or int32"),
        (torch.zeros(1, 3, dtype=torch.uint16), "length\\), got uint16"),
        (torch.zeros(1, 3, dtype=torch.bool), "length\\), got bool"),
        (torch.zeros(0, 3, dtype=torch.long), "tokens: must hold at least one token"),
    ],
)
def test_bad_tokens_are_refused(tokens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("llama")(tokens)


@torch.no_grad()
def test_a_full_cache_and_another_batch_are_refused() -> None:
    model = build("llama")
    cache = model.new_cache(10)
    model(some_tokens(8), cache)
    with pytest.raises(ValueError, match="3 tokens after 8 in the cache exceed the cache's max_length = 10"):
        model(some_tokens(3), cache)
    with pytest.raises(ValueError, match="holds a batch of 2, the tokens are one of 3"):
        model(some_tokens(1, 3), cache)
    with pytest.raises(ValueError, match=r"another model's: holds heads and widths \(4, 8\).* are \(2, 8\)"):
        build("window mix")(some_tokens(1), cache)
    with pytest.raises(ValueError, match="another model's, of 3 layers; this one has 2"):
        build("llama", n_layers=2)(some_tokens(1), cache)
    with pytest.raises(ValueError, match="max_length: must be from 1 to the model's context_length = 64"):
        KVCache(model.config, 65)


def test_bad_positions_are_refused() -> None:
    tokens = some_tokens(5)
    with pytest.raises(ValueError, match=r"positions: must be of shape \(5,\) or \(2, 5\), got int64"):
        build("llama")(tokens, positions=torch.arange(4))
    with pytest.raises(ValueError, match="positions: learned ones are from 0 to 63, got 64"):
        build("gpt2")(tokens, positions=torch.arange(60, 65))
